//! What the directory's commands do and refuse.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;
use crate::{
    NodeId,
    directory::MAX_NODES,
    proto::{AddNode, ConfirmReplicas, RaiseFeatureLevel, SetTargets, Target, UpdateNode},
};

fn command(command: directory_command::Command) -> Bytes {
    DirectoryCommand { command: Some(command) }.encode_to_vec().into()
}

fn bootstrap(shard_count: u32) -> Bytes {
    let cluster =
        proto::ClusterRecord { cluster_id: vec![7; 16].into(), incarnation: 1, shard_count, ..Default::default() };
    let node = proto::NodeRecord { node_id: 1, address: "here:1".into(), ..Default::default() };
    command(directory_command::Command::Bootstrap(Bootstrap { cluster: Some(cluster), node: Some(node) }))
}

fn put(name: &str, value: Option<&'static [u8]>, expected_revision: Option<u64>) -> Bytes {
    let value = value.map(Bytes::from_static);
    command(directory_command::Command::PutSetting(PutSetting { name: name.into(), value, expected_revision }))
}

fn reply(machine: &mut DirectoryMachine, index: u64, command: &Bytes) -> Reply {
    DirectoryReply::decode(machine.apply(index, command)).expect("decodes").reply.expect("set")
}

#[test]
fn every_bucket_gets_a_shard_and_the_shards_get_equal_shares() {
    for shards in [1, 2, 3, 16, 255, 256] {
        let (mut machine, watch) = DirectoryMachine::new();
        assert_eq!(reply(&mut machine, 3, &bootstrap(shards)), done(3));
        let directory = watch.borrow().clone();
        let mut share = vec![0u32; shards as usize];
        for hash in 0..u64::from(BUCKETS) {
            share[directory.shard_of(hash).expect("formed").0 as usize] += 1;
        }
        let even = u32::from(BUCKETS) / shards;
        assert!(share.iter().all(|buckets| (even..=even + 1).contains(buckets)), "{shards}: {share:?}");
        assert_eq!(directory.replicas.len(), shards as usize);
    }
}

#[test]
fn a_cluster_is_formed_once_and_only_with_sane_numbers() {
    let (mut machine, _watch) = DirectoryMachine::new();
    assert!(matches!(reply(&mut machine, 1, &bootstrap(0)), Reply::Refused(_)));
    assert!(matches!(reply(&mut machine, 2, &bootstrap(257)), Reply::Refused(_)));
    assert!(matches!(reply(&mut machine, 3, &Bytes::from_static(b"\xff\xff")), Reply::Refused(_)));
    assert!(machine.take_changes().is_empty(), "nothing changed");
    assert_eq!(reply(&mut machine, 4, &bootstrap(16)), done(4));
    assert!(matches!(reply(&mut machine, 5, &bootstrap(16)), Reply::Refused(_)));
}

#[test]
fn settings_are_written_only_at_the_expected_revision() {
    let (mut machine, watch) = DirectoryMachine::new();
    let mismatch = |revision| Reply::Mismatch(RevisionMismatch { revision });
    assert_eq!(reply(&mut machine, 5, &put("keys", Some(b"a"), Some(0))), done(5));
    assert_eq!(reply(&mut machine, 6, &put("keys", Some(b"b"), Some(0))), mismatch(5));
    assert_eq!(reply(&mut machine, 7, &put("keys", Some(b"b"), Some(5))), done(7));
    assert_eq!(reply(&mut machine, 8, &put("keys", Some(b"c"), None)), done(8));
    assert_eq!(watch.borrow().settings["keys"], Setting { value: Bytes::from_static(b"c"), revision: 8 });
    assert_eq!(reply(&mut machine, 9, &put("keys", None, Some(8))), done(9));
    assert!(watch.borrow().settings.is_empty());
    assert_eq!(reply(&mut machine, 10, &put("keys", Some(b"d"), Some(8))), mismatch(0));
    let long = "n".repeat(MAX_SETTING_NAME_BYTES + 1);
    assert!(matches!(reply(&mut machine, 11, &put(&long, Some(b""), None)), Reply::Refused(_)));
}

#[test]
fn changes_and_snapshots_restore_the_same_directory() {
    let (mut machine, watch) = DirectoryMachine::new();
    let mut records = BTreeMap::new();
    let commands = [bootstrap(16), put("a", Some(b"1"), None), put("b", Some(b"2"), None), put("a", None, None)];
    for (index, command) in (1..).zip(&commands) {
        machine.apply(index, command);
        for change in machine.take_changes() {
            match change.value {
                Some(value) => drop(records.insert(change.key, value)),
                None => drop(records.remove(&change.key)),
            }
        }
    }
    let snapshot: Vec<Record> = machine.snapshot().collect();
    let from_changes: Vec<Record> = records.into_iter().map(|(key, value)| Record { key, value }).collect();
    assert_eq!(snapshot, from_changes, "also in key order");
    let (mut restored, seen) = DirectoryMachine::new();
    restored.restore(&mut snapshot.into_iter()).expect("restores");
    assert_eq!(restored.digest(), machine.digest());
    assert_eq!(*seen.borrow(), *watch.borrow());
    restored.restore(&mut std::iter::empty()).expect("restores nothing");
    assert_eq!(restored.digest(), DirectoryMachine::new().0.digest());
}

const NONCE: [u8; 16] = [9; 16];

fn refused(reply: Reply, why: &str) {
    let Reply::Refused(text) = reply else { panic!("not refused: {reply:?}") };
    assert!(text.contains(why), "{text:?} says nothing of {why:?}");
}

fn add(address: &str, feature_level: u32, nonce: &[u8]) -> Bytes {
    let join_nonce = Bytes::copy_from_slice(nonce);
    command(directory_command::Command::AddNode(AddNode { address: address.into(), feature_level, join_nonce }))
}

fn update(node_id: NodeId, address: &str, feature_level: u32) -> Bytes {
    command(directory_command::Command::UpdateNode(UpdateNode { node_id, address: address.into(), feature_level }))
}

fn targets(placement_generation: u64, targets: &[(u32, &[NodeId])]) -> Bytes {
    let targets = targets.iter().map(|(shard, nodes)| Target { shard: *shard, node_ids: nodes.to_vec() }).collect();
    command(directory_command::Command::SetTargets(SetTargets { targets, placement_generation }))
}

fn confirm(shard: u32, nodes: &[NodeId], membership_index: u64) -> Bytes {
    let confirm = ConfirmReplicas { shard, node_ids: nodes.to_vec(), membership_index };
    command(directory_command::Command::ConfirmReplicas(confirm))
}

fn raise(feature_level: u32) -> Bytes {
    command(directory_command::Command::RaiseFeatureLevel(RaiseFeatureLevel { feature_level }))
}

/// A cluster of this many shards and nodes, and the index of the next command.
fn cluster(shards: u32, nodes: u8) -> (DirectoryMachine, watch::Receiver<Arc<Directory>>, u64) {
    let (mut machine, watch) = DirectoryMachine::new();
    assert_eq!(reply(&mut machine, 1, &bootstrap(shards)), done(1));
    for node in 2..=nodes {
        let index = u64::from(node);
        let reply = reply(&mut machine, index, &add("there:1", 1, &[node; 16]));
        assert_eq!(reply, Reply::Done(DirectoryDone { revision: index, node_id: node.into() }));
    }
    (machine, watch, u64::from(nodes) + 1)
}

fn generation(watch: &watch::Receiver<Arc<Directory>>) -> u64 {
    watch.borrow().cluster.as_ref().expect("formed").placement_generation
}

#[test]
fn before_there_is_a_cluster_nothing_is_known_of_nodes_and_shards() {
    let (mut machine, _watch) = DirectoryMachine::new();
    for asked in [add("a:1", 1, &NONCE), update(1, "a:1", 1), targets(0, &[(0, &[1])]), confirm(0, &[1], 1), raise(1)] {
        assert!(matches!(reply(&mut machine, 1, &asked), Reply::Refused(_)));
    }
    assert!(machine.take_changes().is_empty());
}

#[test]
fn a_node_that_asks_again_to_join_stays_who_it_is() {
    let (mut machine, watch, _) = cluster(4, 1);
    let joined = |revision| Reply::Done(DirectoryDone { revision, node_id: 2 });
    assert_eq!(reply(&mut machine, 2, &add("old:1", 1, &NONCE)), joined(2));
    let before = generation(&watch);
    assert_eq!(reply(&mut machine, 3, &add("new:1", 2, &NONCE)), joined(3));
    let directory = watch.borrow().clone();
    assert_eq!((directory.nodes.len(), directory.nodes[&2].address.as_str()), (2, "new:1"), "where it is now");
    assert_eq!(generation(&watch), before, "nothing to plan anew");
}

#[test]
fn no_node_id_is_given_away_twice_not_even_by_a_restored_directory() {
    let (mut machine, _watch, next) = cluster(4, 3);
    let (mut restored, _watch) = DirectoryMachine::new();
    restored.restore(&mut machine.snapshot()).expect("restores");
    for machine in [&mut machine, &mut restored] {
        let reply = reply(machine, next, &add("there:1", 1, &NONCE));
        assert_eq!(reply, Reply::Done(DirectoryDone { revision: next, node_id: 4 }));
    }
}

#[test]
fn what_a_node_says_of_itself_is_checked() {
    let (mut machine, _watch, _) = cluster(4, 2);
    assert_eq!(reply(&mut machine, 3, &update(2, "there:2", 3)), done(3));
    assert_eq!(reply(&mut machine, 4, &update(1, "here:1", 2)), done(4));
    assert_eq!(reply(&mut machine, 5, &raise(2)), done(5));
    drop(machine.take_changes());
    let long = "a".repeat(256);
    let table = [
        (add("there:1", 2, &[1; 15]), "16 bytes"),
        (add("", 2, &NONCE), "1 to 255 bytes"),
        (add(&long, 2, &NONCE), "1 to 255 bytes"),
        (add("there:1", 1, &NONCE), "feature level 2, the node knows 1 only"),
        (add("there:1", 1, &[2; 16]), "feature level 2, the node knows 1 only"),
        (update(2, "", 2), "1 to 255 bytes"),
        (update(2, "there:1", 1), "feature level 2, the node knows 1 only"),
        (update(3, "there:1", 2), "no node 3"),
    ];
    for (asked, why) in table {
        refused(reply(&mut machine, 6, &asked), why);
    }
    assert!(machine.take_changes().is_empty());
}

#[test]
fn a_cluster_takes_up_a_limited_number_of_nodes() {
    let (mut machine, _watch, next) = cluster(4, MAX_NODES as u8);
    refused(reply(&mut machine, next, &add("there:1", 1, &[200; 16])), "64 nodes already");
    assert!(matches!(reply(&mut machine, next, &add("there:1", 1, &[64; 16])), Reply::Done(_)), "it is there already");
}

#[test]
fn targets_name_known_nodes_once_and_leave_shards_alone_that_are_on_their_way() {
    let (mut machine, watch, _) = cluster(4, 4);
    let now = generation(&watch);
    assert_eq!(reply(&mut machine, 5, &targets(now, &[(0, &[1, 2, 3])])), done(5));
    drop(machine.take_changes());
    let now = now + 1;
    let table: [(Bytes, &str); 9] = [
        (targets(now, &[]), "one shard at least"),
        (targets(now, &[(1, &[1]), (1, &[2])]), "none twice"),
        (targets(now, &[(4, &[1])]), "no shard 4"),
        (targets(now, &[(1, &[])]), "one node at least"),
        (targets(now, &[(1, &[1, 2, 1])]), "none twice"),
        (targets(now, &[(1, &[1, 5])]), "no node 5"),
        (targets(now, &[(0, &[1, 2, 4])]), "on its way to [1, 2, 3]"),
        (targets(now, &[(1, &[1, 2, 3]), (0, &[1])]), "on its way to [1, 2, 3]"),
        (targets(now - 1, &[(1, &[1, 2, 3])]), "planned from generation 4, it is 5 by now"),
    ];
    for (asked, why) in table {
        refused(reply(&mut machine, 6, &asked), why);
    }
    assert!(machine.take_changes().is_empty(), "refused as a whole");
    assert_eq!(reply(&mut machine, 7, &targets(now, &[(0, &[3, 1, 2])])), done(7), "another preferred leader");
    assert_eq!(watch.borrow().replicas[&ShardId(0)].target, [3, 1, 2]);
}

#[test]
fn a_shard_has_arrived_when_its_leader_says_so_and_old_news_is_refused() {
    let (mut machine, watch, _) = cluster(4, 4);
    let replicas = || watch.borrow().replicas[&ShardId(0)].clone();
    let now = generation(&watch);
    assert!(replicas().settled());
    reply(&mut machine, 5, &targets(now, &[(0, &[2, 1, 3])]));
    assert!(!replicas().settled());
    assert_eq!(replicas().all().collect::<Vec<_>>(), [1, 2, 3]);
    assert_eq!(reply(&mut machine, 6, &confirm(0, &[1, 2, 3], 40)), done(6));
    assert!(replicas().settled(), "in whatever order");
    assert_eq!(generation(&watch), now + 1, "what has arrived leaves plans as they are");
    reply(&mut machine, 7, &targets(now + 1, &[(0, &[2, 3, 4])]));
    assert_eq!(reply(&mut machine, 8, &confirm(0, &[2, 3, 4], 50)), done(8));
    let table = [
        (confirm(0, &[1, 2, 3], 40), "a later membership is known, of index 50"),
        (confirm(0, &[], 60), "one node at least"),
        (confirm(0, &[2, 2], 60), "none twice"),
        (confirm(0, &[2, 5], 60), "no node 5"),
        (confirm(4, &[2], 60), "no shard 4"),
    ];
    drop(machine.take_changes());
    for (asked, why) in table {
        refused(reply(&mut machine, 9, &asked), why);
    }
    assert!(machine.take_changes().is_empty());
    assert_eq!(reply(&mut machine, 10, &confirm(0, &[2, 3, 4], 50)), done(10), "said again");
}

#[test]
fn the_feature_level_is_never_above_a_nodes_and_never_falls() {
    let (mut machine, watch, _) = cluster(4, 2);
    reply(&mut machine, 3, &update(1, "here:1", 3));
    refused(reply(&mut machine, 4, &raise(2)), "node 2 knows feature level 1 only");
    reply(&mut machine, 5, &update(2, "there:1", 2));
    refused(reply(&mut machine, 6, &raise(3)), "node 2 knows feature level 2 only");
    assert_eq!(reply(&mut machine, 7, &raise(2)), done(7));
    assert_eq!(reply(&mut machine, 8, &raise(2)), done(8), "again");
    refused(reply(&mut machine, 9, &raise(1)), "feature level 2 already");
    assert_eq!(watch.borrow().cluster.as_ref().map(|cluster| cluster.feature_level), Some(2));
}

#[test]
fn records_of_the_first_format_get_what_was_meant_then() {
    let (machine, watch, _) = cluster(16, 1);
    let expected = watch.borrow().clone();
    let records = machine.snapshot().map(|Record { key, value }| {
        // Its messages had these fields only.
        let value = match key[0] {
            1 => {
                let record = proto::ClusterRecord::decode(&*value).expect("decodes");
                let proto::ClusterRecord { cluster_id, incarnation, shard_count, .. } = record;
                proto::ClusterRecord { cluster_id, incarnation, shard_count, ..Default::default() }.encode_to_vec()
            }
            3 => {
                let record = proto::NodeRecord::decode(&*value).expect("decodes");
                let proto::NodeRecord { node_id, address, .. } = record;
                proto::NodeRecord { node_id, address, ..Default::default() }.encode_to_vec()
            }
            4 => {
                let record = proto::ReplicaRecord::decode(&*value).expect("decodes");
                let proto::ReplicaRecord { shard, node_ids, .. } = record;
                proto::ReplicaRecord { shard, node_ids, ..Default::default() }.encode_to_vec()
            }
            _ => value,
        };
        Record { key, value }
    });
    let (mut restored, seen) = DirectoryMachine::new();
    restored.restore(&mut records.collect::<Vec<_>>().into_iter()).expect("restores");
    assert_eq!(*seen.borrow(), expected);
    assert_eq!(restored.digest(), machine.digest());
}

/// Some command, sensible or not.
fn some_command() -> impl Strategy<Value = Bytes> {
    let nodes = || prop::collection::vec(1..6u64, 0..4);
    prop_oneof![
        (0..4u8, 0..3u32, "[a-z]{0,3}").prop_map(|(nonce, level, address)| add(&address, level, &[nonce; 16])),
        (1..6u64, 0..4u32, "[a-z]{0,3}").prop_map(|(node, level, address)| update(node, &address, level)),
        (0..12u64, 0..5u32, nodes()).prop_map(|(generation, shard, nodes)| targets(generation, &[(shard, &nodes)])),
        (0..5u32, nodes(), 0..9u64).prop_map(|(shard, nodes, index)| confirm(shard, &nodes, index)),
        (0..4u32).prop_map(raise),
        ("[ab]", prop::option::of(Just(b"x".as_slice())), prop::option::of(0..9u64))
            .prop_map(|(name, value, revision)| put(&name, value, revision)),
    ]
}

proptest! {
    #[test]
    fn snapshots_and_changes_restore_the_same_directory_and_what_is_refused_changes_nothing(
        commands in prop::collection::vec(some_command(), 0..40),
    ) {
        let (mut machine, watch) = DirectoryMachine::new();
        let mut records = BTreeMap::new();
        for (index, command) in (1..).zip([bootstrap(4)].iter().chain(&commands)) {
            let (digest, before) = (machine.digest(), watch.borrow().clone());
            let reply = reply(&mut machine, index, command);
            if !matches!(reply, Reply::Done(_)) {
                prop_assert_eq!(machine.digest(), digest);
            }
            for change in machine.take_changes() {
                match change.value {
                    Some(value) => drop(records.insert(change.key, value)),
                    None => drop(records.remove(&change.key)),
                }
            }
            let now = watch.borrow().clone();
            let cluster = now.cluster.as_ref().expect("formed");
            prop_assert!(now.nodes.keys().all(|id| *id <= cluster.last_node_id));
            prop_assert!(now.nodes.values().all(|node| node.feature_level >= cluster.feature_level));
            for (shard, replicas) in &now.replicas {
                prop_assert!(replicas.all().all(|node| now.nodes.contains_key(&node)) && !replicas.target.is_empty());
                let before = before.replicas.get(shard).map_or(0, |before| before.membership_index);
                prop_assert!(replicas.membership_index >= before);
            }
        }
        let snapshot: Vec<Record> = machine.snapshot().collect();
        let from_changes: Vec<Record> = records.into_iter().map(|(key, value)| Record { key, value }).collect();
        prop_assert_eq!(&snapshot, &from_changes);
        let (mut restored, seen) = DirectoryMachine::new();
        restored.restore(&mut snapshot.into_iter()).expect("restores");
        prop_assert_eq!(restored.digest(), machine.digest());
        prop_assert_eq!(&*seen.borrow(), &*watch.borrow());
    }
}
