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
        self, Bootstrap, DirectoryCommand, DirectoryDone, DirectoryReply, PutSetting, RevisionMismatch,
        directory_command, directory_reply::Reply,
    },
};

/// Most settings: they are few and small, and every node holds them all.
pub const MAX_SETTINGS: usize = 1_024;
/// Longest name of a setting; with its kind it must fit a record's key.
pub const MAX_SETTING_NAME_BYTES: usize = 100;
/// Longest value of a setting.
pub const MAX_SETTING_BYTES: usize = 64 << 10;

pub(super) fn done(revision: u64) -> Reply {
    Reply::Done(DirectoryDone { revision, node_id: 0 })
}

/// The directory's machine. It publishes each new state to whoever watches; that is an output only.
pub struct DirectoryMachine {
    pub(super) state: Arc<Directory>,
    pub(super) changed: BTreeSet<Key>,
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
        state.cluster = Some(Cluster {
            id,
            incarnation,
            shards: shard_count,
            feature_level: feature_level.max(1),
            last_node_id: node.node_id,
            placement_generation: 1,
        });
        state.generation = 1;
        // Neighbouring buckets go to one shard: the table stays short.
        state.buckets =
            (0..u32::from(BUCKETS)).map(|bucket| (bucket * shard_count / u32::from(BUCKETS)) as u16).collect();
        let here = Replicas { nodes: vec![node.node_id], target: vec![node.node_id], membership_index: 0 };
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
mod tests;
