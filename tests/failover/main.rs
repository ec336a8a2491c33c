//! What clients notice when nodes of a cluster die, stop and come back: three real processes, mutual TLS between them,
//! live load all the while.
//!
//! - [`kill`]: `kill -9` of a node, again and again. [`rolling`]: graceful restarts of all nodes, one after the other.
//! - [`catch_up`]: a node that was away long comes back by snapshots. [`idle`]: what a cluster costs that does nothing.
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
mod workload;

use std::io::Write as _;

/// Shards of the clusters here.
const SHARDS: u32 = 12;

/// Tells figures even when the test passes.
fn tell(text: impl AsRef<str>) {
    // Nowhere is left to say that this failed.
    let _ = writeln!(std::io::stderr(), "{}", text.as_ref());
}
