//! The state of a stopped node, read in two independent ways.

use std::{path::Path, sync::Arc};
use tonic::service::Routes;

use andante_cluster::{
    Machine, ShardId,
    env::Env,
    host::{Host, HostConfig, Leadership, MachineFactory, replay_logs},
};
use anyhow::Context;
use serde::Serialize;
use tokio::time::{Instant, timeout_at};

use crate::{
    actor::{BookMachine, Shard},
    node::START_TIMEOUT,
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
    /// What a start makes of durable records and log; its index is higher by the entries that the start wrote itself,
    /// which change nothing.
    pub recovered: StateDigest,
}

impl StateDigest {
    /// In readable form.
    pub fn new(applied: Option<u64>, digest: u64) -> Self {
        Self { applied, digest: format!("{digest:016x}") }
    }
}

/// Replays the logs of a stopped node, then recovers it as a start does (and counts as one), without actors and
/// without serving.
///
/// # Errors
/// As a start: there is no node, it runs, or its disk is damaged.
pub async fn stored_digests(env: Env, data_dir: &Path) -> anyhow::Result<Vec<StoredShard>> {
    let tick_ms = Settings::default().tick_ms;
    let factory: MachineFactory = Arc::new(move |id: ShardId| {
        Box::new(BookMachine::new(Shard::new(id, tick_ms, Arc::new(Catalog::default())))) as Box<dyn Machine>
    });
    let replayed = {
        let (env, dir, factory, blocking) = (env.clone(), data_dir.to_owned(), factory.clone(), env.blocking.clone());
        let replayed = blocking.call(move || replay_logs(&env, &dir, &factory)).await;
        replayed.context("the replay of the logs panicked")??
    };
    anyhow::ensure!(!replayed.is_empty(), "there is no node in {}", data_dir.display());

    let host = Host::start(env, HostConfig::new(data_dir), factory, Routes::default()).await?;
    let deadline = Instant::now() + START_TIMEOUT;
    let mut shards = Vec::new();
    for replayed in replayed {
        // A shard is led only once everything in its log is applied.
        let mut leadership = host.leadership(replayed.shard);
        let led = leadership.wait_for(|leadership| matches!(leadership, Leadership::Leader { .. }));
        timeout_at(deadline, led).await.with_context(|| format!("shard {} found no leader", replayed.shard))??;
        let (applied, digest) = host.digest(replayed.shard).await?;
        shards.push(StoredShard {
            shard: replayed.shard.0,
            replayed: StateDigest::new(replayed.applied, replayed.digest),
            recovered: StateDigest::new(applied, digest),
        });
    }
    host.shutdown().await?;
    Ok(shards)
}
