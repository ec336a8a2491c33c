//! A cluster from one node to three, on in-memory stores and loopback: it grows by itself, survives the death of a
//! leader and new addresses, and every node serves every call.

mod logged;
mod toy;
mod trio;
mod wires;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::atomic::Ordering,
    time::Duration,
};

use andante_cluster::{
    Host, HostConfig, NodeId, ProposeError, ShardId,
    host::{Join, Leadership, SettingError, StartError},
    peer::{self, JoinRequest},
    report::{GroupReport, NodeReport},
    storage::memory::MemoryStores,
};
use bytes::Bytes;
use futures::future::join_all;
use tokio::time::Instant;

use logged::Logged;
use toy::{add, env, propose, shards, soon, until, value};
use trio::{Trio, counter, token};

const S0: ShardId = ShardId(0);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_node_grows_to_three_and_every_shard_gets_three_confirmed_replicas() {
    let mut trio = Trio::start_one(true).await;
    for shard in shards(trio.host(0)) {
        propose(trio.host(0), shard, add(7, u64::from(shard.0))).await.expect("applied");
    }
    trio.join().await;
    trio.join().await;
    trio.settled().await;
    let directory = trio.host(2).directory().borrow().clone();
    assert_eq!(directory.nodes.keys().copied().collect::<Vec<NodeId>>(), [1, 2, 3]);
    for shard in shards(trio.host(0)) {
        assert_eq!(counter(trio.host(2), shard, 7).await, u64::from(shard.0), "written before there were three");
    }
    trio.equal_digests().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn any_node_takes_commands_reads_and_settings_for_all() {
    let trio = Trio::start(false).await;
    for (sum, node) in (1..).zip([0, 1, 2, 1, 0, 2]) {
        let applied = trio.host(node).submit(S0, add(3, 1), soon()).await.expect("applied");
        assert_eq!(value(&applied.reply), sum);
        for reader in 0..3 {
            trio.host(reader).read_index(S0, soon()).await.expect("read");
            let seen = trio.host(reader).status(S0).applied;
            assert!(seen >= Some(applied.index), "{seen:?}: everything acknowledged is applied here");
        }
    }
    let put = |node: usize, value: &'static [u8], expected| {
        let (host, value) = (trio.host(node), Some(Bytes::from_static(value)));
        async move { host.put_setting("name", value, expected, soon()).await }
    };
    let revision = put(2, b"a", Some(0)).await.expect("written");
    assert_eq!(put(1, b"b", Some(0)).await, Err(SettingError::Mismatch { revision }));
    let mut seen = trio.host(0).directory();
    seen.wait_for(|directory| directory.settings.contains_key("name")).await.expect("runs");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn when_a_node_dies_the_others_lead_its_shards_and_it_comes_back_with_another_address() {
    let mut trio = Trio::start(true).await;
    for round in 1..=3 {
        let shards: Vec<_> = shards(trio.host(0)).collect();
        for &shard in &shards {
            assert_eq!(counter(trio.host(1), shard, 1).await, 2 * (round - 1), "round {round}");
            trio.host(1).submit(shard, add(1, 1), soon()).await.expect("applied");
        }
        let before = trio.host(0).directory().borrow().nodes[&1].address.clone();
        trio.crash(0);
        for &shard in &shards {
            // A call to the dead node might end as unknown.
            led_by_another(trio.host(2), shard, 1).await;
            trio.host(2).submit(shard, add(1, 1), soon()).await.expect("the others go on");
        }
        trio.start_again(0).await;
        assert_eq!(trio.host(0).identity().node_id, 1, "it is who it was");
        let mut directory = trio.host(2).directory();
        let moved = directory.wait_for(|directory| directory.nodes[&1].address != before).await.expect("runs").clone();
        assert_eq!(moved.nodes[&1].address, trio.host(0).peer_addr().to_string());
        trio.equal_digests().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn all_nodes_may_stop_and_start_again_with_other_addresses() {
    let mut trio = Trio::start(true).await;
    trio.host(1).submit(S0, add(1, 5), soon()).await.expect("applied");
    for node in 0..3 {
        trio.host(node).shutdown().await.expect("stops");
        trio.crash(node);
    }
    // Nobody listens where the directory says.
    trio.start_all_again().await;
    assert_eq!(counter(trio.host(2), S0, 1).await, 5);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_that_stops_in_an_orderly_way_hands_over_first() {
    let mut trio = Trio::start(false).await;
    trio.host(0).submit(S0, add(1, 1), soon()).await.expect("applied");
    for node in 0..3 {
        assert_eq!(trio.host(node).hand_over().await, 0, "all given away");
        let led = shards(trio.host(node)).filter(|shard| leads(trio.host(node), *shard)).count();
        assert_eq!(led, 0);
        trio.host(node).shutdown().await.expect("stops");
        trio.crash(node);
        let other = (node + 1) % 3;
        trio.host(other).submit(S0, add(1, 1), soon()).await.expect("applied");
        trio.start_again(node).await;
    }
    assert_eq!(counter(trio.host(0), S0, 1).await, 4);
}

async fn led_by_another(host: &Host, shard: ShardId, lost: NodeId) {
    let mut leadership = host.leadership(shard);
    let leads = |now: &Leadership| match now {
        Leadership::Leader { .. } => host.identity().node_id != lost,
        Leadership::Follower { leader } => leader.is_some_and(|leader| leader != lost),
    };
    leadership.wait_for(leads).await.expect("runs");
}

fn leads(host: &Host, shard: ShardId) -> bool {
    matches!(*host.leadership(shard).borrow(), Leadership::Leader { .. })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_without_its_followers_says_so_within_about_the_lease() {
    let mut trio = Trio::start(false).await;
    let leader = trio.leader_of(S0).await;
    for node in (0..3).filter(|node| *node != leader) {
        trio.crash(node);
    }
    let mut leadership = trio.host(leader).leadership(S0);
    leadership.wait_for(|now| *now == Leadership::Follower { leader: None }).await.expect("runs");
    let refused = trio.host(leader).propose(S0, add(1, 1), soon()).await;
    assert!(matches!(refused, Err(ProposeError::Unavailable(_) | ProposeError::NotLeader { .. })), "{refused:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_repeated_request_to_join_gets_the_same_node() {
    let trio = Trio::start_one(false).await;
    let host = trio.host(0);
    let join = Join { addresses: vec![host.peer_addr().to_string()], token: String::new() };
    let request = |nonce: u8| JoinRequest {
        address: "127.0.0.1:1".into(),
        feature_level: 1,
        nonce: vec![nonce; 16].into(),
        ..Default::default()
    };
    let mut ids = Vec::new();
    for nonce in [7, 7, 8] {
        let env = env(MemoryStores::default());
        ids.push(peer::join(&env, &join, None, request(nonce), soon()).await.expect("taken up").node_id);
    }
    assert_eq!(ids[0], ids[1]);
    assert_eq!(ids.iter().collect::<BTreeSet<_>>().len(), 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_a_good_token_of_this_cluster_lets_a_node_join() {
    let (trio, other) = (Trio::start_one(true).await, Trio::start_one(true).await);
    let foreign = token(other.host(0)).await;
    let address = trio.host(0).peer_addr().to_string();
    let mut forged = token(trio.host(0)).await;
    forged.secret[0] ^= 1;
    for (token, what) in [(forged.encode(), "a wrong secret"), ("andante".into(), "no token"), (foreign.encode(), "")] {
        let dir = tempfile::tempdir().expect("dir");
        let join = Some(Join { addresses: vec![address.clone()], token });
        let config = HostConfig { join, join_timeout: Duration::from_secs(2), ..HostConfig::new(dir.path()) };
        let refused = trio::launch(MemoryStores::default(), config).await.err();
        assert!(matches!(refused, Some(StartError::Join(_))), "{what}: {refused:?}");
    }
    assert_eq!(trio.host(0).directory().borrow().nodes.len(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_address_that_is_taken_is_found_out_before_anything_is_changed() {
    let trio = Trio::start_one(false).await;
    let dir = tempfile::tempdir().expect("dir");
    let config = HostConfig { peer_addr: trio.host(0).peer_addr(), ..HostConfig::new(dir.path()) };
    let refused = trio::launch(MemoryStores::default(), config).await.err();
    assert!(matches!(refused, Some(StartError::Listen { .. })), "{refused:?}");
    assert_eq!(std::fs::read_dir(dir.path()).expect("readable").count(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_report_tells_how_the_replicas_are_and_that_a_write_is_possible() {
    let trio = Trio::start(false).await;
    let mut led = BTreeSet::new();
    for (node, report) in trio.host(1).reports(soon()).await {
        let report = report.expect("answers");
        assert_eq!(report.node_id, node);
        for group in report.groups.iter().filter(|group| group.leader.is_some()) {
            let leader = group.leader.as_ref().expect("some");
            assert!(leader.probe_micros > 0 && leader.probe_error.is_empty(), "{leader:?}");
            assert_eq!(leader.voters, [1, 2, 3]);
            led.insert(group.group);
        }
    }
    assert_eq!(led.len(), 1 + trio.host(0).identity().shards as usize, "each is led by somebody");
}

/// What the leaders of all groups say, by group.
fn led(reports: BTreeMap<NodeId, Result<NodeReport, String>>) -> BTreeMap<u32, GroupReport> {
    let groups = reports.into_values().flatten().flat_map(|report| report.groups);
    groups.filter(|group| group.leader.is_some()).map(|group| (group.group, group)).collect()
}

/// What the probe of a group found wrong.
fn probe_error(group: &GroupReport) -> &str {
    group.leader.as_ref().map_or("it has no leader", |leader| &leader.probe_error)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn however_many_ask_for_a_report_a_group_is_probed_once_a_second() {
    let trio = Trio::start(false).await;
    let (begun, before) = (Instant::now(), led(trio.host(0).reports(soon()).await));
    assert_eq!(before.len(), 1 + trio.host(0).identity().shards as usize, "each is led by somebody");
    let mut after = BTreeMap::new();
    while begun.elapsed() < Duration::from_millis(1_500) {
        for reports in join_all((0..30).map(|i| trio.host(i % 3).reports(soon()))).await {
            after = led(reports);
        }
    }
    // However long the last round took: a second has passed since the first one.
    after.extend(led(trio.host(0).reports(soon()).await));
    let seconds = begun.elapsed().as_secs();
    for (group, before) in before {
        let after = &after[&group];
        assert_eq!(probe_error(after), "", "group {group}");
        let (written, terms) = (after.last_log - before.last_log, after.term - before.term);
        // Nobody else writes, but a new leader does, once; the directory may still be told of nodes.
        assert!(written <= seconds + terms + u64::from(group == 0), "group {group}: {written} in {seconds} s");
        assert!(written > 0, "group {group}: it was probed again");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_has_no_time_to_wait_for_a_probe_spoils_it_for_nobody() {
    let trio = Trio::start(false).await;
    let leader = trio.leader_of(S0).await;
    let group = |report: NodeReport| {
        let group = report.groups.into_iter().find(|group| group.group == S0.group().0);
        group.expect("it is reported")
    };
    // Its followers answer, so that it goes on leading, but keep nothing.
    let followers = [1, 2].map(|step| (leader + step) % 3);
    followers.iter().for_each(|node| trio.log(*node).hold_flushes());
    let hurried = group(trio.host(leader).report(Instant::now() + Duration::from_millis(50)).await);
    assert!(probe_error(&hurried).contains("under way"), "{hurried:?}");
    // At once, as long as the probe of the one in a hurry would count.
    followers.iter().for_each(|node| trio.log(*node).release_flushes());
    let patient = group(trio.host(leader).report(soon()).await);
    assert_eq!(probe_error(&patient), "", "{patient:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hand_over_to_voters_that_have_fallen_silent_ends_as_soon_as_a_majority_is_back() {
    for silent in [1, 2] {
        let trio = Trio::start(false).await;
        let leader = trio.leader_of(S0).await;
        trio.host(leader).submit(S0, add(1, 1), soon()).await.expect("applied");
        // In the order in which this shard is offered to them.
        let others = [2, 1].map(|step| (leader + step) % 3);
        let mut offered = others;
        offered.sort_unstable();
        offered.rotate_left(S0.group().0 as usize % 2);
        for node in &offered[..silent] {
            trio.wires.isolate(*node, (0..3).filter(|other| other != node));
        }
        // They were heard of just now, so it is tried: consensus never takes back what it has begun.
        let left = trio.host(leader).hand_over().await;
        assert!(silent == 1 || left > 0, "nobody is there to take over");
        if silent == 1 {
            let third = trio.host(offered[1]);
            until("the one that is not silent leads", || leads(third, S0)).await;
            third.submit(S0, add(1, 1), soon()).await.expect("two of three are a majority");
        }
        trio.wires.heal();
        let answers = join_all((0..3).map(|node| counter(trio.host(node), S0, 1))).await;
        assert_eq!(answers, [if silent == 1 { 2 } else { 1 }; 3]);
        trio.equal_digests().await;
    }
}

#[tokio::test]
async fn a_node_of_another_cluster_is_refused_in_words_and_changes_nothing() {
    let logged = Logged::start();
    let refused = "a connection was refused";
    for (secure, other_secure, here, there) in [
        // It finds out by itself, and hangs up.
        (true, true, None, "node 1 belongs to another cluster"),
        (true, false, Some("does not speak TLS"), "does one of the two use TLS"),
        (false, true, Some("does one of the two use TLS"), "does it use TLS"),
        (false, false, Some("belongs to another cluster"), "belongs to another cluster"),
    ] {
        let ours = Trio::start_one(secure).await;
        let mut theirs = Trio::start_one(other_secure).await;
        theirs.join().await;
        theirs.settled().await;
        let before = ours.host(0).directory().borrow().clone();
        theirs.crash(0);
        theirs.crash(1);
        // It looks for node 1 of its own cluster where node 1 of this one is, and says where it is itself.
        logged.take();
        theirs.start_again_at(1, vec![ours.host(0).peer_addr().to_string()]).await;
        let mut lines = Vec::new();
        until(&format!("TLS here: {secure}, there: {other_secure}: {here:?} and {there:?} are said"), || {
            lines.extend(logged.take());
            let said = |what: &str, why: &str| lines.iter().any(|line| line.contains(what) && line.contains(why));
            here.is_none_or(|why| said(refused, why)) && said("did not take this node's address", there)
        })
        .await;
        let stats = ours.host(0).peer_stats();
        until("it is counted", || stats.connections_refused.load(Ordering::Relaxed) > 0).await;
        assert_eq!(*ours.host(0).directory().borrow().clone(), *before);
        ours.host(0).submit(S0, add(1, 1), soon()).await.expect("goes on");
    }
}
