//! The directory's machine: applies its commands and publishes what it holds.

use std::{collections::BTreeSet, sync::Arc};

use bytes::Bytes;
use prost::Message;
use tokio::sync::watch;
use xxhash_rust::xxh3::Xxh3;

use super::state::{Cluster, Directory, Key, MAX_SHARDS, NodeInfo, Replicas, Setting};
use crate::{
    BUCKETS, Machine, MachineError, Record, RecordChange, ShardId,
    proto::{
        self, AddNode, Bootstrap, ConfirmReplicas, DirectoryCommand, DirectoryDone, DirectoryReply, PutSetting,
        RevisionMismatch, SetTargets, UpdateNode, directory_command, directory_reply::Reply,
    },
};

/// Most settings: they are few and small, and every node holds them all.
pub const MAX_SETTINGS: usize = 1_024;
/// Longest name of a setting; with its kind it must fit a record's key.
pub const MAX_SETTING_NAME_BYTES: usize = 100;
/// Longest value of a setting.
pub const MAX_SETTING_BYTES: usize = 64 << 10;

/// Most nodes: each of them has a replica of the directory.
pub(super) const MAX_NODES: usize = 64;
/// Longest address of a node.
const MAX_ADDRESS_BYTES: usize = 255;
/// Bytes of a join nonce.
const JOIN_NONCE_BYTES: usize = 16;

fn done(revision: u64) -> Reply {
    Reply::Done(DirectoryDone { revision, node_id: 0 })
}

fn check_address(address: &str) -> Result<(), String> {
    if address.is_empty() || address.len() > MAX_ADDRESS_BYTES {
        return Err(format!("a node's address must have 1 to {MAX_ADDRESS_BYTES} bytes"));
    }
    Ok(())
}

/// The directory's machine. It publishes each new state to whoever watches; that is an output only.
pub struct DirectoryMachine {
    state: Arc<Directory>,
    changed: BTreeSet<Key>,
    published: watch::Sender<Arc<Directory>>,
}

impl DirectoryMachine {
    /// An empty directory and a watch of what it holds.
    pub fn new() -> (Self, watch::Receiver<Arc<Directory>>) {
        let state: Arc<Directory> = Arc::default();
        let (published, watch) = watch::channel(state.clone());
        (Self { state, changed: BTreeSet::new(), published }, watch)
    }

    fn bootstrap(&mut self, command: Bootstrap) -> Result<(), String> {
        if self.state.cluster.is_some() {
            return Err("the cluster is formed already".into());
        }
        let (Some(cluster), Some(node)) = (command.cluster, command.node) else {
            return Err("cluster or node is missing".into());
        };
        let proto::ClusterRecord { cluster_id, incarnation, shard_count, feature_level, .. } = cluster;
        let id = cluster_id.as_ref().try_into().map_err(|_| "the cluster id must have 16 bytes")?;
        if !(1..=MAX_SHARDS).contains(&shard_count) {
            return Err(format!("the number of shards must be 1 to {MAX_SHARDS}, not {shard_count}"));
        }
        if incarnation == 0 || node.node_id == 0 {
            return Err("incarnation and node id must not be 0".into());
        }
        let state = Arc::make_mut(&mut self.state);
        let (feature_level, last_node_id) = (feature_level.max(1), node.node_id);
        state.cluster = Some(Cluster { id, incarnation, shards: shard_count, feature_level, last_node_id });
        state.generation = 1;
        // Neighbouring buckets go to one shard: the table stays short.
        state.buckets =
            (0..u32::from(BUCKETS)).map(|bucket| (bucket * shard_count / u32::from(BUCKETS)) as u16).collect();
        let here = Replicas { nodes: vec![node.node_id], target: vec![node.node_id] };
        state.replicas = (0..shard_count).map(|shard| (ShardId(shard), here.clone())).collect();
        let proto::NodeRecord { node_id, address, feature_level, join_nonce } = node;
        state.nodes.insert(node_id, NodeInfo { address, feature_level: feature_level.max(1), join_nonce });
        self.changed.extend(self.state.keys());
        Ok(())
    }

    fn put_setting(&mut self, index: u64, command: PutSetting) -> Reply {
        let PutSetting { name, value, expected_revision } = command;
        if name.is_empty() || name.len() > MAX_SETTING_NAME_BYTES {
            return Reply::Refused(format!("a setting's name must have 1 to {MAX_SETTING_NAME_BYTES} bytes"));
        }
        if value.as_ref().is_some_and(|value| value.len() > MAX_SETTING_BYTES) {
            return Reply::Refused(format!("a setting's value must have at most {MAX_SETTING_BYTES} bytes"));
        }
        let revision = self.state.settings.get(&name).map_or(0, |setting| setting.revision);
        if expected_revision.is_some_and(|expected| expected != revision) {
            return Reply::Mismatch(RevisionMismatch { revision });
        }
        if revision == 0 && value.is_some() && self.state.settings.len() >= MAX_SETTINGS {
            return Reply::Refused(format!("there are {MAX_SETTINGS} settings already"));
        }
        let state = Arc::make_mut(&mut self.state);
        match value {
            Some(value) => drop(state.settings.insert(name.clone(), Setting { value, revision: index })),
            None => drop(state.settings.remove(&name)),
        }
        self.changed.insert(Key::Setting(name));
        done(index)
    }

    fn add_node(&mut self, index: u64, command: AddNode) -> Result<Reply, String> {
        let AddNode { address, feature_level, join_nonce } = command;
        let state = Arc::make_mut(&mut self.state);
        let cluster = state.cluster.as_mut().ok_or("there is no cluster yet")?;
        if join_nonce.len() != JOIN_NONCE_BYTES {
            return Err(format!("the join nonce must have {JOIN_NONCE_BYTES} bytes"));
        }
        if feature_level < cluster.feature_level {
            return Err(format!(
                "the cluster has feature level {}, the node knows {feature_level} only",
                cluster.feature_level
            ));
        }
        if let Some((id, _)) = state.nodes.iter().find(|(_, node)| node.join_nonce == join_nonce) {
            return Ok(Reply::Done(DirectoryDone { revision: index, node_id: *id }));
        }
        if state.nodes.len() >= MAX_NODES {
            return Err(format!("there are {MAX_NODES} nodes already"));
        }
        check_address(&address)?;
        cluster.last_node_id += 1;
        let node_id = cluster.last_node_id;
        state.nodes.insert(node_id, NodeInfo { address, feature_level, join_nonce });
        self.changed.extend([Key::Cluster, Key::Node(node_id)]);
        Ok(Reply::Done(DirectoryDone { revision: index, node_id }))
    }

    fn update_node(&mut self, index: u64, command: UpdateNode) -> Result<Reply, String> {
        let UpdateNode { node_id, address, feature_level } = command;
        check_address(&address)?;
        let state = Arc::make_mut(&mut self.state);
        let level = state.cluster.as_ref().map_or(1, |cluster| cluster.feature_level);
        if feature_level < level {
            return Err(format!("the cluster has feature level {level}, the node knows {feature_level} only"));
        }
        let node = state.nodes.get_mut(&node_id).ok_or_else(|| format!("there is no node {node_id}"))?;
        (node.address, node.feature_level) = (address, feature_level);
        self.changed.insert(Key::Node(node_id));
        Ok(done(index))
    }

    fn set_targets(&mut self, index: u64, command: SetTargets) -> Result<Reply, String> {
        for proto::Target { shard, node_ids } in &command.targets {
            let replicas = self.state.replicas.get(&ShardId(*shard));
            let replicas = replicas.ok_or_else(|| format!("there is no shard {shard}"))?;
            let distinct: BTreeSet<_> = node_ids.iter().collect();
            if node_ids.is_empty() || distinct.len() != node_ids.len() {
                return Err(format!("shard {shard}: a target names nodes, each once"));
            }
            if let Some(unknown) = node_ids.iter().find(|node| !self.state.nodes.contains_key(node)) {
                return Err(format!("shard {shard}: there is no node {unknown}"));
            }
            let same = replicas.target.len() == node_ids.len() && distinct.iter().all(|n| replicas.target.contains(n));
            if !replicas.settled() && !same {
                return Err(format!("shard {shard} is on its way to {:?}", replicas.target));
            }
        }
        let state = Arc::make_mut(&mut self.state);
        for proto::Target { shard, node_ids } in command.targets {
            if let Some(replicas) = state.replicas.get_mut(&ShardId(shard)) {
                replicas.target = node_ids;
                self.changed.insert(Key::Replicas(ShardId(shard)));
            }
        }
        Ok(done(index))
    }

    fn confirm_replicas(&mut self, index: u64, command: ConfirmReplicas) -> Result<Reply, String> {
        let ConfirmReplicas { shard, node_ids } = command;
        if node_ids.is_empty() {
            return Err(format!("shard {shard}: a shard has voters"));
        }
        let state = Arc::make_mut(&mut self.state);
        let replicas = state.replicas.get_mut(&ShardId(shard)).ok_or_else(|| format!("there is no shard {shard}"))?;
        replicas.nodes = node_ids;
        self.changed.insert(Key::Replicas(ShardId(shard)));
        Ok(done(index))
    }

    fn raise_feature_level(&mut self, index: u64, level: u32) -> Result<Reply, String> {
        let state = Arc::make_mut(&mut self.state);
        if let Some((id, node)) = state.nodes.iter().find(|(_, node)| node.feature_level < level) {
            return Err(format!("node {id} knows feature level {} only", node.feature_level));
        }
        let cluster = state.cluster.as_mut().ok_or("there is no cluster yet")?;
        if level < cluster.feature_level {
            return Err(format!("the cluster has feature level {} already", cluster.feature_level));
        }
        cluster.feature_level = level;
        self.changed.insert(Key::Cluster);
        Ok(done(index))
    }

    fn execute(&mut self, index: u64, command: &Bytes) -> Reply {
        let command = match DirectoryCommand::decode(command.clone()) {
            Ok(DirectoryCommand { command: Some(command) }) => command,
            Ok(DirectoryCommand { command: None }) => return Reply::Refused("unknown command".into()),
            Err(e) => return Reply::Refused(format!("the command does not decode: {e}")),
        };
        let reply = match command {
            directory_command::Command::Bootstrap(command) => self.bootstrap(command).map(|()| done(index)),
            directory_command::Command::PutSetting(command) => Ok(self.put_setting(index, command)),
            directory_command::Command::AddNode(command) => self.add_node(index, command),
            directory_command::Command::UpdateNode(command) => self.update_node(index, command),
            directory_command::Command::SetTargets(command) => self.set_targets(index, command),
            directory_command::Command::ConfirmReplicas(command) => self.confirm_replicas(index, command),
            directory_command::Command::RaiseFeatureLevel(command) => {
                self.raise_feature_level(index, command.feature_level)
            }
        };
        reply.unwrap_or_else(Reply::Refused)
    }
}

impl Machine for DirectoryMachine {
    fn apply(&mut self, index: u64, command: &Bytes) -> Bytes {
        let reply = self.execute(index, command);
        if matches!(reply, Reply::Done(_)) {
            self.published.send_replace(self.state.clone());
        }
        DirectoryReply { reply: Some(reply) }.encode_to_vec().into()
    }

    fn take_changes(&mut self) -> Vec<RecordChange> {
        let changed = std::mem::take(&mut self.changed).into_iter();
        changed.map(|key| RecordChange { key: key.bytes(), value: self.state.value(&key) }).collect()
    }

    fn snapshot(&self) -> Box<dyn Iterator<Item = Record> + Send> {
        let state = self.state.clone();
        let records = self.state.keys().into_iter();
        Box::new(records.filter_map(move |key| Some(Record { key: key.bytes(), value: state.value(&key)? })))
    }

    fn restore(&mut self, records: &mut dyn Iterator<Item = Record>) -> Result<(), MachineError> {
        let mut state = Directory::default();
        for record in records {
            state.restore(record)?;
        }
        if state.cluster.is_some() == state.buckets.is_empty() {
            return Err(MachineError("directory: cluster and bucket table must come together".into()));
        }
        self.state = Arc::new(state);
        self.changed.clear();
        self.published.send_replace(self.state.clone());
        Ok(())
    }

    fn digest(&self) -> u64 {
        let mut hash = Xxh3::new();
        for record in self.snapshot() {
            for part in [&record.key, &record.value] {
                hash.update(&(part.len() as u64).to_le_bytes());
                hash.update(part);
            }
        }
        hash.digest()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
        let mut records = std::collections::BTreeMap::new();
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
}
