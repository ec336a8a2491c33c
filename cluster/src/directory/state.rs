//! The directory's state as a value, and its records.

use std::{collections::BTreeMap, fmt, sync::Arc};

use bytes::Bytes;
use prost::Message;

use crate::{BUCKETS, MachineError, NodeId, Record, ShardId, bucket_of, proto};

/// Most shards of a cluster: with 4096 buckets each still has 16 of them to give away.
pub const MAX_SHARDS: u32 = 256;

/// The cluster as a whole.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cluster {
    /// Chosen at random when the cluster was formed.
    pub id: [u8; 16],
    /// Raised when the cluster is restored from a backup.
    pub incarnation: u64,
    /// Number of shards, 1 to [`MAX_SHARDS`].
    pub shards: u32,
    /// Commands of this level and below may be proposed.
    pub feature_level: u32,
    /// Highest node id ever given away.
    pub last_node_id: NodeId,
    /// Raised by each new node and each change of targets: a plan names the one it was made from.
    pub placement_generation: u64,
}

/// A node of the cluster.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeInfo {
    /// `host:port` where its peers reach it.
    pub address: String,
    /// Highest feature level it knows.
    pub feature_level: u32,
    /// Chosen by the node when it asked to join; empty for the one that formed the cluster.
    pub join_nonce: Bytes,
}

/// Whether two lists, each without repetitions, name the same nodes in whatever order.
pub(super) fn same_nodes(some: &[NodeId], others: &[NodeId]) -> bool {
    some.len() == others.len() && some.iter().all(|node| others.contains(node))
}

/// Where a shard is, and where it is wanted.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Replicas {
    /// Its voters as its leader last confirmed them.
    pub nodes: Vec<NodeId>,
    /// The nodes that are to hold it, the preferred leader first; never empty.
    pub target: Vec<NodeId>,
    /// Index, in the shard's own log, of the membership that `nodes` are from; 0: those it was formed with.
    pub membership_index: u64,
}

impl Replicas {
    /// Whether the shard is where it is wanted.
    pub fn settled(&self) -> bool {
        same_nodes(&self.nodes, &self.target)
    }

    /// Every node that holds it or is to hold it.
    pub fn all(&self) -> impl Iterator<Item = NodeId> + '_ {
        let wanted = self.target.iter().filter(|node| !self.nodes.contains(node));
        self.nodes.iter().chain(wanted).copied()
    }
}

/// A named value of the layer above.
#[derive(Clone, PartialEq, Eq)]
pub struct Setting {
    /// Opaque here. It may be a key: never formatted.
    pub value: Bytes,
    /// Log index of the command that wrote it; never 0.
    pub revision: u64,
}

impl fmt::Debug for Setting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Setting({} bytes, revision {})", self.value.len(), self.revision)
    }
}

/// What the nodes of a cluster agree on. Cheap to clone: the parts are shared.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Directory {
    /// `None` before the cluster was formed.
    pub cluster: Option<Cluster>,
    /// Raised by each change of the bucket table.
    pub generation: u64,
    /// The shard of each bucket; empty before the cluster was formed.
    pub buckets: Arc<[u16]>,
    /// The nodes.
    pub nodes: BTreeMap<NodeId, NodeInfo>,
    /// Where each shard is and is wanted.
    pub replicas: BTreeMap<ShardId, Replicas>,
    /// Named settings.
    pub settings: BTreeMap<String, Setting>,
}

impl Directory {
    /// The shard of a hashed key; `None` before the cluster was formed.
    pub fn shard_of(&self, key_hash: u64) -> Option<ShardId> {
        self.buckets.get(usize::from(bucket_of(key_hash))).map(|shard| ShardId(u32::from(*shard)))
    }

    /// The keys of all records, in order.
    pub(super) fn keys(&self) -> Vec<Key> {
        let whole = self.cluster.iter().flat_map(|_| [Key::Cluster, Key::Buckets]);
        whole
            .chain(self.nodes.keys().map(|id| Key::Node(*id)))
            .chain(self.replicas.keys().map(|shard| Key::Replicas(*shard)))
            .chain(self.settings.keys().map(|name| Key::Setting(name.clone())))
            .collect()
    }

    /// The value of a record; `None`: there is no such record.
    pub(super) fn value(&self, key: &Key) -> Option<Vec<u8>> {
        Some(match key {
            Key::Cluster => {
                let cluster = self.cluster.as_ref()?;
                let record = proto::ClusterRecord {
                    cluster_id: cluster.id.to_vec().into(),
                    incarnation: cluster.incarnation,
                    shard_count: cluster.shards,
                    feature_level: cluster.feature_level,
                    last_node_id: cluster.last_node_id,
                    placement_generation: cluster.placement_generation,
                };
                record.encode_to_vec()
            }
            Key::Buckets => {
                self.cluster.as_ref()?;
                let runs = self.buckets.chunk_by(|a, b| a == b);
                let runs = runs.map(|run| proto::BucketRun { buckets: run.len() as u32, shard: u32::from(run[0]) });
                proto::BucketTable { generation: self.generation, runs: runs.collect() }.encode_to_vec()
            }
            Key::Node(node_id) => {
                let NodeInfo { address, feature_level, join_nonce } = self.nodes.get(node_id)?.clone();
                proto::NodeRecord { node_id: *node_id, address, feature_level, join_nonce }.encode_to_vec()
            }
            Key::Replicas(shard) => {
                let Replicas { nodes, target, membership_index } = self.replicas.get(shard)?.clone();
                let (node_ids, target_ids) = (nodes, target);
                proto::ReplicaRecord { shard: shard.0, node_ids, target_ids, membership_index }.encode_to_vec()
            }
            Key::Setting(name) => {
                let Setting { value, revision } = self.settings.get(name)?.clone();
                proto::SettingRecord { name: name.clone(), value, revision }.encode_to_vec()
            }
        })
    }

    /// Takes up one record.
    pub(super) fn restore(&mut self, record: Record) -> Result<(), MachineError> {
        let bad = |what: &str| MachineError(format!("directory: {what}"));
        let value = Bytes::from(record.value);
        let undecodable = |e: prost::DecodeError| MachineError(format!("directory: {e}"));
        match record.key.first() {
            Some(&CLUSTER) => {
                let cluster = proto::ClusterRecord::decode(value).map_err(undecodable)?;
                let id = cluster.cluster_id.as_ref().try_into().map_err(|_| bad("cluster id"))?;
                self.cluster = Some(Cluster {
                    id,
                    incarnation: cluster.incarnation,
                    shards: cluster.shard_count,
                    // Records of the first format have none of these.
                    feature_level: cluster.feature_level.max(1),
                    last_node_id: cluster.last_node_id.max(1),
                    placement_generation: cluster.placement_generation.max(1),
                });
            }
            Some(&BUCKETS_KIND) => {
                let table = proto::BucketTable::decode(value).map_err(undecodable)?;
                self.generation = table.generation;
                let total: u64 = table.runs.iter().map(|run| u64::from(run.buckets)).sum();
                if total != u64::from(BUCKETS) || table.runs.iter().any(|run| run.shard >= MAX_SHARDS) {
                    return Err(bad("bucket table"));
                }
                let buckets = table.runs.iter();
                self.buckets =
                    buckets.flat_map(|run| std::iter::repeat_n(run.shard as u16, run.buckets as usize)).collect();
            }
            Some(&NODE) => {
                let node = proto::NodeRecord::decode(value).map_err(undecodable)?;
                let proto::NodeRecord { node_id, address, feature_level, join_nonce } = node;
                self.nodes.insert(node_id, NodeInfo { address, feature_level: feature_level.max(1), join_nonce });
            }
            Some(&REPLICAS) => {
                let replicas = proto::ReplicaRecord::decode(value).map_err(undecodable)?;
                let proto::ReplicaRecord { shard, node_ids: nodes, target_ids: target, membership_index } = replicas;
                if nodes.is_empty() {
                    return Err(bad("a shard without replicas"));
                }
                let target = if target.is_empty() { nodes.clone() } else { target };
                self.replicas.insert(ShardId(shard), Replicas { nodes, target, membership_index });
            }
            Some(&SETTING) => {
                let setting = proto::SettingRecord::decode(value).map_err(undecodable)?;
                self.settings.insert(setting.name, Setting { value: setting.value, revision: setting.revision });
            }
            _ => return Err(bad("record of unknown kind")),
        }
        Ok(())
    }
}

const CLUSTER: u8 = 1;
const BUCKETS_KIND: u8 = 2;
const NODE: u8 = 3;
const REPLICAS: u8 = 4;
const SETTING: u8 = 5;

/// A record's key, in the order of its bytes.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Key {
    Cluster,
    Buckets,
    Node(NodeId),
    Replicas(ShardId),
    Setting(String),
}

impl Key {
    pub(super) fn bytes(&self) -> Vec<u8> {
        match self {
            Self::Cluster => vec![CLUSTER],
            Self::Buckets => vec![BUCKETS_KIND],
            Self::Node(id) => [&[NODE], &id.to_be_bytes()[..]].concat(),
            Self::Replicas(shard) => [&[REPLICAS], &shard.0.to_be_bytes()[..]].concat(),
            Self::Setting(name) => [&[SETTING], name.as_bytes()].concat(),
        }
    }
}
