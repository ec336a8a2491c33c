//! The directory's machine: applies its commands and publishes what it holds.

use std::{collections::BTreeSet, sync::Arc};

use bytes::Bytes;
use prost::Message;
use tokio::sync::watch;
use xxhash_rust::xxh3::Xxh3;

use super::state::{Cluster, Directory, Key, MAX_SHARDS, Setting};
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
        let proto::ClusterRecord { cluster_id, incarnation, shard_count } = cluster;
        let id = cluster_id.as_ref().try_into().map_err(|_| "the cluster id must have 16 bytes")?;
        if !(1..=MAX_SHARDS).contains(&shard_count) {
            return Err(format!("the number of shards must be 1 to {MAX_SHARDS}, not {shard_count}"));
        }
        if incarnation == 0 || node.node_id == 0 {
            return Err("incarnation and node id must not be 0".into());
        }
        let state = Arc::make_mut(&mut self.state);
        state.cluster = Some(Cluster { id, incarnation, shards: shard_count });
        state.generation = 1;
        // Neighbouring buckets go to one shard: the table stays short.
        state.buckets =
            (0..u32::from(BUCKETS)).map(|bucket| (bucket * shard_count / u32::from(BUCKETS)) as u16).collect();
        state.replicas = (0..shard_count).map(|shard| (ShardId(shard), vec![node.node_id])).collect();
        state.nodes.insert(node.node_id, node.address);
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
        Reply::Done(DirectoryDone { revision: index })
    }

    fn execute(&mut self, index: u64, command: &Bytes) -> Reply {
        let command = match DirectoryCommand::decode(command.clone()) {
            Ok(DirectoryCommand { command: Some(command) }) => command,
            Ok(DirectoryCommand { command: None }) => return Reply::Refused("unknown command".into()),
            Err(e) => return Reply::Refused(format!("the command does not decode: {e}")),
        };
        match command {
            directory_command::Command::Bootstrap(command) => match self.bootstrap(command) {
                Ok(()) => Reply::Done(DirectoryDone { revision: index }),
                Err(why) => Reply::Refused(why),
            },
            directory_command::Command::PutSetting(command) => self.put_setting(index, command),
        }
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
        let cluster = proto::ClusterRecord { cluster_id: vec![7; 16].into(), incarnation: 1, shard_count };
        let node = proto::NodeRecord { node_id: 1, address: "here:1".into() };
        command(directory_command::Command::Bootstrap(Bootstrap { cluster: Some(cluster), node: Some(node) }))
    }

    fn put(name: &str, value: Option<&'static [u8]>, expected_revision: Option<u64>) -> Bytes {
        let value = value.map(Bytes::from_static);
        command(directory_command::Command::PutSetting(PutSetting { name: name.into(), value, expected_revision }))
    }

    fn reply(machine: &mut DirectoryMachine, index: u64, command: &Bytes) -> Reply {
        DirectoryReply::decode(machine.apply(index, command)).expect("decodes").reply.expect("set")
    }

    fn done(revision: u64) -> Reply {
        Reply::Done(DirectoryDone { revision })
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
