//! Up to three nodes of the toy machine in one process.

#![allow(dead_code, reason = "each test binary uses a part")]

use std::{path::Path, sync::Arc, time::Duration};

use andante_cluster::{
    Host, HostConfig, NodeId, ShardId,
    env::Env,
    host::{Join, Leadership, StartError},
    security::{Authority, JoinSecrets, JoinToken},
    storage::{
        Stores,
        memory::{MemoryLogDisk, MemoryStores},
    },
};
use tempfile::TempDir;
use tonic::service::Routes;

use crate::{
    toy::{add, env, factory, shards, soon, until, value},
    wires::Wires,
};

const SHARDS: u32 = 4;

/// One node: its disks, and the host while it runs.
struct Node {
    dir: TempDir,
    stores: MemoryStores,
    host: Option<Host>,
}

/// Up to three nodes. Each start takes a new port.
pub(crate) struct Trio {
    /// What connects them.
    pub(crate) wires: Arc<Wires>,
    nodes: Vec<Node>,
    secure: bool,
}

pub(crate) async fn launch(stores: impl Stores, config: HostConfig) -> Result<Host, StartError> {
    Host::start(env(stores), config, factory(), Routes::default()).await
}

/// A token to join a node's cluster.
pub(crate) async fn token(host: &Host) -> JoinToken {
    let directory = host.directory().borrow().clone();
    let authority = Authority::of(&directory).expect("readable").expect("a cluster with TLS");
    let (mut secrets, revision) = JoinSecrets::of(&directory).expect("readable");
    let env = env(MemoryStores::default());
    let token = secrets.issue(&authority, &*env.rng, env.clock.now_ms(), Duration::from_secs(600)).expect("issued");
    let value = Some(secrets.encode().into());
    host.put_setting(JoinSecrets::SETTING, value, Some(revision), soon()).await.expect("written");
    token
}

/// A counter, as this node's replica has it after a linearizable read.
pub(crate) async fn counter(host: &Host, shard: ShardId, name: u64) -> u64 {
    // Adding nothing reads it.
    value(&host.submit(shard, add(name, 0), soon()).await.expect("applied").reply)
}

pub(crate) fn is_led_by(host: &Host, shard: ShardId, node: NodeId) -> bool {
    match *host.leadership(shard).borrow() {
        Leadership::Leader { .. } => host.identity().node_id == node,
        Leadership::Follower { leader } => leader == Some(node),
    }
}

impl Trio {
    /// A cluster of one node.
    pub(crate) async fn start_one(secure: bool) -> Self {
        let mut trio = Self { wires: Arc::default(), nodes: Vec::new(), secure };
        trio.add(None).await;
        trio
    }

    /// A cluster of three, with all replicas where they belong.
    pub(crate) async fn start(secure: bool) -> Self {
        let mut trio = Self::start_one(secure).await;
        trio.join().await;
        trio.join().await;
        trio.settled().await;
        trio
    }

    fn config(&self, dir: &Path) -> HostConfig {
        HostConfig { shards: Some(SHARDS), plaintext_peers: !self.secure, ..HostConfig::new(dir) }
    }

    async fn add(&mut self, join: Option<Join>) {
        let (dir, stores) = (tempfile::tempdir().expect("dir"), MemoryStores::default());
        let config = HostConfig { join, ..self.config(dir.path()) };
        let host = self.launch(self.nodes.len(), stores.clone(), config).await;
        self.nodes.push(Node { dir, stores, host: Some(host) });
    }

    /// One more node joins.
    pub(crate) async fn join(&mut self) {
        let token = if self.secure { token(self.host(0)).await.encode() } else { String::new() };
        let addresses = vec![self.host(0).peer_addr().to_string()];
        self.add(Some(Join { addresses, token })).await;
    }

    pub(crate) fn host(&self, node: usize) -> &Host {
        self.nodes[node].host.as_ref().expect("it runs")
    }

    /// A node's log.
    pub(crate) fn log(&self, node: usize) -> &MemoryLogDisk {
        &self.nodes[node].stores.log
    }

    /// Ends a node without a word.
    pub(crate) fn crash(&mut self, node: usize) {
        self.nodes[node].host = None;
    }

    pub(crate) async fn start_again(&mut self, node: usize) {
        self.start_again_at(node, Vec::new()).await;
    }

    /// Starts a node again, which is told where nodes of its cluster may be.
    pub(crate) async fn start_again_at(&mut self, node: usize, addresses: Vec<String>) {
        let join = Some(Join { addresses, token: String::new() });
        let config = HostConfig { join, ..self.config(self.nodes[node].dir.path()) };
        let host = self.launch(node, self.nodes[node].stores.clone(), config).await;
        self.nodes[node].host = Some(host);
    }

    async fn launch(&self, node: usize, stores: MemoryStores, config: HostConfig) -> Host {
        let env = Env { network: self.wires.network(node), ..env(stores) };
        Host::start(env, config, factory(), Routes::default()).await.expect("starts")
    }

    /// Starts all again, none where it was; the first one's new address is all that the others are told.
    pub(crate) async fn start_all_again(&mut self) {
        let mut addresses = Vec::new();
        for node in 0..self.nodes.len() {
            self.start_again_at(node, std::mem::take(&mut addresses)).await;
            addresses.push(self.host(node).peer_addr().to_string());
        }
    }

    /// Waits until every shard has as many confirmed replicas as there are nodes, and every node knows it.
    pub(crate) async fn settled(&self) {
        for node in &self.nodes {
            let mut directory = node.host.as_ref().expect("it runs").directory();
            let settled = directory.wait_for(|directory| {
                directory.nodes.len() == self.nodes.len()
                    && directory.replicas.values().all(|shard| shard.settled() && shard.nodes.len() == self.nodes.len())
            });
            tokio::time::timeout(Duration::from_secs(60), settled).await.expect("settles").expect("runs");
        }
    }

    /// The node that leads a shard, as itself says.
    pub(crate) async fn leader_of(&self, shard: ShardId) -> usize {
        let mut leader = None;
        until("the shard has a leader", || {
            let leads =
                |node: &usize| matches!(*self.host(*node).leadership(shard).borrow(), Leadership::Leader { .. });
            leader = (0..self.nodes.len()).find(leads);
            leader.is_some()
        })
        .await;
        leader.expect("found")
    }

    /// Waits until all replicas of all shards are in the same state.
    pub(crate) async fn equal_digests(&self) {
        for shard in shards(self.host(0)) {
            let deadline = soon();
            loop {
                let mut seen = Vec::new();
                for node in &self.nodes {
                    node.host.as_ref().expect("it runs").read_index(shard, soon()).await.expect("read");
                    seen.push(node.host.as_ref().expect("it runs").digest(shard).await.expect("runs"));
                }
                if seen.windows(2).all(|pair| pair[0].1 == pair[1].1) {
                    break;
                }
                assert!(tokio::time::Instant::now() < deadline, "{shard}: {seen:?}");
            }
        }
    }
}
