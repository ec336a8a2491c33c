//! What a host is told, and what it tells about itself.

use std::path::PathBuf;

use super::Leadership;
use crate::NodeId;

/// Shards of a new cluster when nobody says otherwise: enough to use all cores of a node and to spread over a few
/// more, few enough to be cheap.
pub const DEFAULT_SHARDS: u32 = 16;

/// What a node is told at its start.
#[derive(Debug, Clone)]
pub struct HostConfig {
    /// Where everything is kept; created when missing. One process at a time.
    pub data_dir: PathBuf,
    /// Shards of a new cluster, 1 to 256 (`None`: [`DEFAULT_SHARDS`]). A cluster keeps its number: a different one
    /// is refused later.
    pub shards: Option<u32>,
    /// `host:port` where peers will reach this node; may be empty while there are none. Kept from the first start.
    pub address: String,
    /// Log entries of a shard after which its snapshot is built and its log purged: fewer keep the log short and a
    /// rebuild quick, at the price of writing the whole shard more often.
    pub snapshot_every: u64,
    /// Free bytes on the disk below which [`Host::disk_low`](super::Host::disk_low) is set; 0: never.
    pub min_free_bytes: u64,
}

impl HostConfig {
    /// The defaults, with everything in `data_dir`.
    pub fn new(data_dir: impl Into<PathBuf>) -> Self {
        Self {
            data_dir: data_dir.into(),
            shards: None,
            address: String::new(),
            snapshot_every: 50_000,
            min_free_bytes: 1 << 30,
        }
    }
}

/// Who this node is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// The cluster, chosen at random when it was formed.
    pub cluster_id: [u8; 16],
    /// Raised when the cluster is restored from a backup.
    pub incarnation: u64,
    /// This node.
    pub node_id: NodeId,
    /// This start of the node; counted durably before anything else happens.
    pub boot_id: u64,
    /// Number of shards.
    pub shards: u32,
}

/// Where a shard stands on this node. Indexes are log indexes; `None`: nothing yet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ShardStatus {
    /// Current term.
    pub term: u64,
    /// Last entry of the log.
    pub last_log: Option<u64>,
    /// Last entry that is durable in this node's log.
    pub flushed: Option<u64>,
    /// Last entry applied.
    pub applied: Option<u64>,
    /// Entry the durable records stand for.
    pub durable: Option<u64>,
    /// Entry the snapshot file stands for.
    pub snapshot: Option<u64>,
    /// Last entry purged from the log.
    pub purged: Option<u64>,
    /// Whether this node leads.
    pub leadership: Leadership,
}
