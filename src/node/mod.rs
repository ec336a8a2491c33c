//! A running node: the cluster host, the actors of its shards and the router, put together.

use std::{path::PathBuf, sync::Arc};

use andante_cluster::env::Env;

use crate::{metrics::Metrics, router::Router, settings::Settings};

/// What a node is started with.
#[derive(Debug, Clone)]
pub struct NodeConfig {
    /// Everything the node keeps lies here.
    pub data_dir: PathBuf,
    /// Number of shards, chosen at the first start; `None`: 16 at the first start, whatever is stored later.
    pub shards: Option<u32>,
    /// Settings.
    pub settings: Settings,
}

/// What a node is.
#[derive(Debug, Clone)]
pub struct NodeInfo {
    /// The cluster's id.
    pub cluster_id: [u8; 16],
    /// Grows with each restore from a backup.
    pub incarnation: u32,
    /// This node.
    pub node_id: u64,
    /// Number of starts of this node.
    pub boot_id: u64,
    /// Number of shards.
    pub shards: u32,
}

/// A running node.
pub struct Node {}

impl Node {
    /// Recovers or creates the node's state and starts its shards; returns when all of them lead and can score.
    pub async fn start(_env: Env, _config: NodeConfig) -> anyhow::Result<Node> {
        unimplemented!()
    }

    /// Who it is.
    pub fn info(&self) -> &NodeInfo {
        unimplemented!()
    }

    /// Where requests go.
    pub fn router(&self) -> &Arc<Router> {
        unimplemented!()
    }

    /// What it counts. Made in [`Node::start`].
    pub fn metrics(&self) -> &Arc<Metrics> {
        unimplemented!()
    }

    /// Whether it serves: every shard leads and the catalog is in step. The reason if not.
    pub fn ready(&self) -> Result<(), String> {
        unimplemented!()
    }

    /// Whether the wall clock is trusted (see ConfirmClock).
    pub fn clock_trusted(&self) -> bool {
        unimplemented!()
    }

    /// An operator confirms the wall clock; refused when it differs from `expected_now_ms` by more than the margin.
    pub fn confirm_clock(&self, _expected_now_ms: u64) -> Result<u64, String> {
        unimplemented!()
    }

    /// Resolves with the reason when the node must stop (a disk failed): the caller exits the process.
    pub async fn fatal(&self) -> String {
        unimplemented!()
    }

    /// Refuses new work, finishes what is under way, writes everything out, closes. The API must have drained before.
    /// By reference: a connection that did not drain in time may still hold the node.
    pub async fn shutdown(&self) {
        unimplemented!()
    }

    /// Stops the actor of a campaign as a crash would (for `andante demo` and tests); its supervisor restarts it.
    pub fn crash_actor(&self, _campaign: &str) -> bool {
        unimplemented!()
    }
}
