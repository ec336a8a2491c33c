//! The state of a stopped node, read in two independent ways.

use std::{path::Path, sync::Arc};

use andante_cluster::{
    Machine, ShardId,
    env::Env,
    host::{MachineFactory, StartError, recover_stopped, replay_logs},
};
use anyhow::Context;
use serde::Serialize;

use crate::{
    actor::{BookMachine, Shard},
    router::Catalog,
    settings::Settings,
};

/// A hash over a shard's state.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct StateDigest {
    /// Index of the log entry applied last, if any.
    pub applied: Option<u64>,
    /// The hash, 16 hexadecimal digits.
    pub digest: String,
}

/// The state of one shard of a stopped node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct StoredShard {
    /// The shard.
    pub shard: u32,
    /// What a fresh book makes of the snapshot and every entry of the log, without a look at the durable records.
    pub replayed: StateDigest,
    /// What a start makes of durable records and log.
    pub recovered: StateDigest,
}

impl StateDigest {
    /// In readable form.
    pub fn new(applied: Option<u64>, digest: u64) -> Self {
        Self { applied, digest: format!("{digest:016x}") }
    }
}

/// Replays the logs of a stopped node, and recovers it as a start does, without being a node: no actors, no peers.
///
/// # Errors
/// As a start: there is no node, it runs, or its disk is damaged.
pub async fn stored_digests(env: Env, data_dir: &Path) -> anyhow::Result<Vec<StoredShard>> {
    let tick_ms = Settings::default().tick_ms;
    let factory: MachineFactory = Arc::new(move |id: ShardId| {
        Box::new(BookMachine::new(Shard::new(id, tick_ms, Arc::new(Catalog::default())), None)) as Box<dyn Machine>
    });
    let (on_thread, dir) = (env.clone(), data_dir.to_owned());
    let read = env.blocking.call(move || {
        let replayed = replay_logs(&on_thread, &dir, &factory)?;
        Ok::<_, StartError>((replayed, recover_stopped(&on_thread, &dir, &factory)?))
    });
    let (replayed, recovered) = read.await.context("reading the node's state panicked")??;
    anyhow::ensure!(!replayed.is_empty(), "there is no node in {}", data_dir.display());
    let shards = replayed.into_iter().zip(recovered).map(|(replayed, recovered)| StoredShard {
        shard: replayed.shard.0,
        replayed: StateDigest::new(replayed.applied, replayed.digest),
        recovered: StateDigest::new(recovered.applied, recovered.digest),
    });
    Ok(shards.collect())
}
