//! Hosts sharded, replicated, deterministic state machines.
//!
//! This crate knows nodes, opaque keys and their buckets, shards, replicas and logs. It never heard of a
//! campaign: what a shard *means* is behind one trait, [`Machine`].
//!
//! # The parts
//! - [`mod@env`]: the seams for time, network, randomness, storage and threads. Nothing else in the workspace reads a
//!   clock, opens a socket or starts an OS thread.
//! - [`storage`]: what a node keeps on disk: [`storage::LogStore`] (logs and votes of all its groups),
//!   [`storage::StateStore`] (records of all its shards), snapshot files.
//! - [`machine`]: the seam upward.
//! - [`raft`]: openraft over these seams. [`directory`]: group 0. [`host`]: one node with all its shards.
//! - [`placement`]: decides where replicas and leaders are to be; pure functions.
//! - [`peer`]: the transport between nodes.
//! - [`security`]: mutual TLS between nodes, and tokens to join.
//! - [`mutant!`]: seeded bugs, which only builds for tests of the tests have.
//!
//! # Duties of the caller
//! 1. Build an [`env::Env`] (production: [`env::Env::production`]) and give each node its own.
//! 2. Start a node with a factory for machines; a machine must be deterministic (see [`Machine`]).
//! 3. Treat [`ProposeError::Unknown`] as unknown: the command may have been applied or may still be.
//! 4. Shut the node down; dropping it is a crash as far as the stores are concerned (nothing acknowledged is lost).

pub mod directory;
pub mod env;
pub mod host;
pub mod ids;
pub mod machine;
#[cfg(andante_mutants)]
pub mod mutants;
pub mod peer;
pub mod placement;
mod proto;
pub mod raft;
pub mod report;
pub mod security;
pub mod storage;

pub use host::{Host, HostConfig, ProposeError};
pub use ids::{BUCKETS, GroupId, NodeId, ShardId, bucket_of};
pub use machine::{Machine, MachineError, Record, RecordChange};

/// Whether a seeded bug is to show itself: never, but in builds that have them. See `mutants`.
#[cfg(not(andante_mutants))]
#[macro_export]
macro_rules! mutant {
    ($name:ident) => {
        false
    };
}

/// Whether a seeded bug is to show itself. See [`mutants`].
#[cfg(andante_mutants)]
#[macro_export]
macro_rules! mutant {
    ($name:ident) => {
        $crate::mutants::is_chosen($crate::mutants::Mutant::$name)
    };
}
