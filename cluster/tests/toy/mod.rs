//! A toy machine: named counters. And a node of it on any stores.

#![allow(dead_code, reason = "each test binary uses a part")]

pub(crate) mod storage;

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
    sync::Arc,
    time::Duration,
};
use tonic::service::Routes;

use andante_cluster::{
    Host, HostConfig, Machine, MachineError, Record, RecordChange, ShardId,
    env::{Env, OsThreads, SystemClock, SystemRng, TcpNetwork},
    host::{Applied, Leadership, MachineFactory, ProposeError, StartError},
    storage::Stores,
};
use bytes::Bytes;
use tokio::time::Instant;
use xxhash_rust::xxh3::xxh3_64;

/// A command that makes the machine panic, as one does that finds its own invariants broken.
pub(crate) const PANIC: &[u8] = b"panic!";

/// Adds to a counter. A command is the counter's name (8 bytes) and what to add (8 bytes).
#[derive(Default)]
pub(crate) struct Counters {
    values: BTreeMap<[u8; 8], u64>,
    changed: BTreeSet<[u8; 8]>,
}

impl Machine for Counters {
    fn apply(&mut self, _index: u64, command: &Bytes) -> Bytes {
        assert_ne!(command.as_ref(), PANIC, "the toy's invariant is broken");
        let Some((name, amount)) = command.split_first_chunk::<8>() else { return Bytes::from_static(b"refused") };
        let Ok(amount) = amount.try_into().map(u64::from_le_bytes) else { return Bytes::from_static(b"refused") };
        let value = self.values.entry(*name).or_default();
        *value = value.wrapping_add(amount);
        self.changed.insert(*name);
        Bytes::copy_from_slice(&value.to_le_bytes())
    }

    fn take_changes(&mut self) -> Vec<RecordChange> {
        let changed = std::mem::take(&mut self.changed).into_iter();
        changed
            .map(|name| RecordChange { key: name.into(), value: Some(self.values[&name].to_le_bytes().into()) })
            .collect()
    }

    fn snapshot(&self) -> Box<dyn Iterator<Item = Record> + Send> {
        let values = self.values.clone().into_iter();
        Box::new(values.map(|(name, value)| Record { key: name.into(), value: value.to_le_bytes().into() }))
    }

    fn restore(&mut self, records: &mut dyn Iterator<Item = Record>) -> Result<(), MachineError> {
        self.changed.clear();
        self.values.clear();
        for record in records {
            let bad = |_| MachineError("not a counter".into());
            let name: [u8; 8] = record.key.try_into().map_err(bad)?;
            let value: [u8; 8] = record.value.try_into().map_err(bad)?;
            self.values.insert(name, u64::from_le_bytes(value));
        }
        Ok(())
    }

    fn digest(&self) -> u64 {
        let bytes: Vec<u8> =
            self.values.iter().flat_map(|(name, value)| [*name, value.to_le_bytes()].concat()).collect();
        xxh3_64(&bytes)
    }
}

pub(crate) fn factory() -> MachineFactory {
    Arc::new(|_| Box::<Counters>::default())
}

/// The command that adds `amount` to counter `name`.
pub(crate) fn add(name: u64, amount: u64) -> Bytes {
    Bytes::from([name.to_be_bytes(), amount.to_le_bytes()].concat())
}

/// The value in a reply.
pub(crate) fn value(reply: &Bytes) -> u64 {
    u64::from_le_bytes(reply.as_ref().try_into().expect("a value"))
}

pub(crate) fn env(stores: impl Stores) -> Env {
    Env {
        clock: Arc::new(SystemClock::default()),
        network: Arc::new(TcpNetwork),
        rng: Arc::new(SystemRng),
        blocking: Arc::new(OsThreads),
        stores: Arc::new(stores),
    }
}

pub(crate) fn config(dir: &Path) -> HostConfig {
    HostConfig { shards: Some(4), ..HostConfig::new(dir) }
}

pub(crate) async fn start(stores: impl Stores, dir: &Path) -> Host {
    try_start(stores, config(dir)).await.expect("starts")
}

/// Starts a node and waits until it leads all its shards.
pub(crate) async fn try_start(stores: impl Stores, config: HostConfig) -> Result<Host, StartError> {
    let host = Host::start(env(stores), config, factory(), Routes::default()).await?;
    all_lead(&host).await;
    Ok(host)
}

/// Waits until this node leads all its shards.
pub(crate) async fn all_lead(host: &Host) {
    for shard in shards(host) {
        leads(host, shard).await;
    }
}

pub(crate) fn shards(host: &Host) -> impl Iterator<Item = ShardId> + use<> {
    (0..host.identity().shards).map(ShardId)
}

/// Waits until this node leads a shard.
pub(crate) async fn leads(host: &Host, shard: ShardId) {
    let mut leadership = host.leadership(shard);
    leadership.wait_for(|now| matches!(now, Leadership::Leader { .. })).await.expect("the host runs");
}

/// A deadline that no healthy test meets.
pub(crate) fn soon() -> Instant {
    Instant::now() + Duration::from_secs(60)
}

pub(crate) async fn propose(host: &Host, shard: ShardId, command: Bytes) -> Result<Applied, ProposeError> {
    host.propose(shard, command, soon()).await
}

/// Adds 1 to each of `names` counters of every shard, all at once.
pub(crate) async fn add_ones(host: &Host, names: u64) {
    let commands = shards(host).flat_map(|shard| (0..names).map(move |name| (shard, name)));
    let all = commands.map(|(shard, name)| async move { propose(host, shard, add(name, 1)).await.expect("applied") });
    futures::future::join_all(all).await;
}

/// The digests of all shards.
pub(crate) async fn digests(host: &Host) -> Vec<u64> {
    let mut digests = Vec::new();
    for shard in shards(host) {
        digests.push(host.digest(shard).await.expect("runs").1);
    }
    digests
}

/// Waits until something holds, looking again whenever other tasks have run.
pub(crate) async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let waited = tokio::time::timeout(Duration::from_secs(60), async {
        while !holds() {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    });
    waited.await.unwrap_or_else(|_| panic!("never: {what}"));
}
