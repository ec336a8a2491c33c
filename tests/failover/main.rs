//! What clients notice when nodes of a cluster die, stop and come back: three real processes, mutual TLS between them,
//! live load all the while.
//!
//! - [`kill`]: `kill -9` of a node, again and again. [`rolling`]: graceful restarts of all nodes, one after the other.
//! - [`catch_up`]: a node that was away long comes back by snapshots. [`idle`]: what a cluster costs that does nothing.
//! - [`status`]: what `andante cluster status` says meanwhile.
//! - [`workload`]: scores and outcomes with a record of what was acknowledged, held against the ledgers at the end.
//! - [`probe`]: one small request per shard, again and again: how long each shard was away.
#![cfg(target_os = "linux")]

mod asker;
mod catch_up;
#[path = "../support/cluster.rs"]
#[allow(dead_code, unreachable_pub, reason = "shared with other tests, which use more of it")]
mod cluster;
mod idle;
mod kill;
mod probe;
mod rolling;
mod status;
mod workload;

use std::{
    io::Write as _,
    path::PathBuf,
    sync::{Mutex, MutexGuard, PoisonError},
};

/// Shards of the clusters here.
const SHARDS: u32 = 12;

/// The program whose nodes are tried: the one just built, or `FAILOVER_PROGRAM`, an optimised one for measurements.
fn program() -> PathBuf {
    std::env::var_os("FAILOVER_PROGRAM").map_or_else(|| env!("CARGO_BIN_EXE_andante").into(), PathBuf::from)
}

/// Whether that program is slow: without optimisation it takes many times as long for everything.
fn slow() -> bool {
    cfg!(debug_assertions) && std::env::var_os("FAILOVER_PROGRAM").is_none()
}

/// Of a slow program, one request in so many may lack a shard: on two busy cores an answer, or an election, may take
/// longer than a score has time.
const SLOW_PART: u64 = 50;

/// Workers of the load.
fn workers() -> usize {
    if slow() { 2 } else { 8 }
}

/// Two clusters at once would disturb each other's figures.
fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    // One that failed leaves nothing behind.
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Tells figures even when the test passes.
fn tell(text: impl AsRef<str>) {
    // Nowhere is left to say that this failed.
    let _ = writeln!(std::io::stderr(), "{}", text.as_ref());
}
