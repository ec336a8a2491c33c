//! What a host is told, and what it tells about itself.

use std::{fmt, net::SocketAddr, path::PathBuf, time::Duration};

use super::Leadership;
use crate::NodeId;

/// Shards of a new cluster when nobody says otherwise: enough to use all cores of a node and to spread over a few
/// more, few enough to be cheap.
pub const DEFAULT_SHARDS: u32 = 16;

/// How a new node gets into a cluster.
#[derive(Clone)]
pub struct Join {
    /// `host:port` of nodes of the cluster; one that answers is enough.
    pub addresses: Vec<String>,
    /// The join token; empty in a cluster without TLS.
    pub token: String,
}

impl fmt::Debug for Join {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The token is a secret.
        f.debug_struct("Join").field("addresses", &self.addresses).finish_non_exhaustive()
    }
}

/// What a node is told at its start.
#[derive(Debug, Clone)]
pub struct HostConfig {
    /// Where everything is kept; created when missing. One process at a time.
    pub data_dir: PathBuf,
    /// Shards of a new cluster, 1 to 256 (`None`: [`DEFAULT_SHARDS`]). A cluster keeps its number: a different one
    /// is refused later.
    pub shards: Option<u32>,
    /// Where this node listens for its peers; port 0 takes a free one.
    pub peer_addr: SocketAddr,
    /// `host:port` where its peers reach this node; `None`: where it listens.
    pub advertise: Option<String>,
    /// With a new data directory: the cluster to join. `None`: form one.
    pub join: Option<Join>,
    /// How long a new node asks to be taken up before it gives up.
    pub join_timeout: Duration,
    /// Peers talk without TLS: for trusted networks and simulations. A whole cluster does or does not.
    pub plaintext_peers: bool,
    /// Highest feature level of the layer above.
    pub feature_level: u32,
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
            peer_addr: SocketAddr::from(([127, 0, 0, 1], 0)),
            advertise: None,
            join: None,
            // The cluster may be electing, or still be starting itself.
            join_timeout: Duration::from_secs(60),
            plaintext_peers: false,
            feature_level: 1,
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
#[derive(Debug, Clone, Default, PartialEq, Eq)]
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
