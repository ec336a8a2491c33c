//! The directory: what the nodes of a cluster agree on. Raft group 0.
//!
//! It holds the cluster's id and incarnation, the bucket-to-shard table, the nodes, each shard's replicas, and named
//! settings of the layer above (opaque here). Every node has a replica, so reading it is local.

mod machine;
mod placed;
mod state;

pub use machine::{DirectoryMachine, MAX_SETTING_BYTES, MAX_SETTING_NAME_BYTES, MAX_SETTINGS};
pub use placed::MAX_NODES;
pub use state::{Cluster, Directory, MAX_SHARDS, NodeInfo, Replicas, Setting};
