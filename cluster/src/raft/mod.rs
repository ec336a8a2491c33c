//! openraft over the storage seams.
//!
//! | part | does |
//! |---|---|
//! | [`types`] | openraft's types, filled in: opaque commands and replies, members with an address |
//! | [`codec`] | what consensus keeps on disk, as protobuf |
//! | [`log`] | `RaftLogStorage` over a [`LogStore`](crate::storage::LogStore), and the gate that knows what is flushed |
//! | `replica` | one group's machine: applied between two locks, cut between two applies |
//! | [`machine`] | `RaftStateMachine` over a replica, the state store and the snapshot store |
//! | `snapshot` | building and installing snapshot files |
//! | `flush` | the one task per node that makes changed records durable |
//! | `recovery` | what a group's state is after a start |
//! | [`network`] | the transport seam |
//! | [`config`] | timers and limits |
//!
//! Two rules hold everywhere: nothing that is written for an applied entry (records, snapshot) becomes visible on
//! disk before that entry is flushed in this node's own log, and a group's log is purged only up to a snapshot file
//! that is durable.

pub mod codec;
pub mod config;
mod flush;
pub mod log;
pub mod machine;
pub mod network;
pub(crate) mod recovery;
mod replica;
mod runtime;
mod snapshot;
pub mod types;

pub use flush::Flusher;
pub use recovery::Gap;
pub use replica::Replica;
pub use snapshot::{SnapshotData, SnapshotPermits};
