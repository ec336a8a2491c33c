//! The nodes under test: started, crashed in part, stopped and brought back.

use std::{
    net::{Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use andante_cluster::{
    ShardId,
    env::Env,
    host::{Join, Leadership},
};
use anyhow::{Context, ensure};
use tokio::{
    task::JoinHandle,
    time::{Instant, sleep},
};
use tokio_util::sync::CancellationToken;

use crate::{
    api::{self, Listeners, ServeConfig},
    node::{Node, NodeConfig, PeerConfig},
    v1::ClusterHealth,
};

/// Connections of the one player and its reporter.
const MAX_CONNECTIONS: u32 = 16;
/// How long requests under way may take to finish at a stop.
const DRAIN: Duration = Duration::from_secs(5);
/// How long the nodes may take to become a cluster.
const FORMING: Duration = Duration::from_secs(60);
/// Time between two looks at what is waited for.
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// Running nodes with their APIs.
pub(super) struct Stage {
    members: Vec<Member>,
}

struct Member {
    env: Env,
    data_dir: PathBuf,
    grpc: SocketAddr,
    peer: SocketAddr,
    running: Option<Running>,
}

struct Running {
    node: Arc<Node>,
    stop: CancellationToken,
    serving: JoinHandle<anyhow::Result<()>>,
}

impl Stage {
    /// Starts so many nodes whose data lies in `dir`, on free ports of this machine, and waits until they are one
    /// healthy cluster. Between themselves they speak plainly: they are one process.
    pub(super) async fn start(env: impl Fn() -> Env, dir: &Path, nodes: usize) -> anyhow::Result<Self> {
        let free = (Ipv4Addr::LOCALHOST, 0).into();
        let member = |i: usize| {
            let data_dir = dir.join(format!("node-{}", i + 1));
            Member { env: env(), data_dir, grpc: free, peer: free, running: None }
        };
        let mut stage = Self { members: (0..nodes).map(member).collect() };
        for i in 0..nodes {
            stage.run(i).await.with_context(|| format!("node {} did not start", i + 1))?;
        }
        stage.until_healthy().await?;
        Ok(stage)
    }

    /// Where the nodes listen for clients.
    pub(super) fn addresses(&self) -> Vec<String> {
        self.members.iter().map(|member| member.grpc.to_string()).collect()
    }

    async fn run(&mut self, i: usize) -> anyhow::Result<()> {
        let seed = self.members.iter().find(|member| member.running.is_some()).map(|member| member.peer);
        let join = seed.map(|seed| Join { addresses: vec![seed.to_string()], token: String::new() });
        let member = &mut self.members[i];
        let peers = PeerConfig { addr: member.peer, join, plaintext: true, ..PeerConfig::default() };
        let config = NodeConfig { peers, ..NodeConfig::new(member.data_dir.clone()) };
        let node = Arc::new(Node::start(member.env.clone(), config).await?);
        member.peer = node.peer_addr();
        // Only now: a client that finds nobody tries again, one that finds a silent socket waits.
        let http = (Ipv4Addr::LOCALHOST, 0).into();
        let listeners =
            Listeners::bind(&member.env, member.grpc, http).await.context("cannot listen on this machine")?;
        member.grpc = listeners.grpc_addr();
        let stop = CancellationToken::new();
        let serving = tokio::spawn({
            let (node, env, stop) = (node.clone(), member.env.clone(), stop.clone());
            let config = ServeConfig::plain(MAX_CONNECTIONS, DRAIN);
            async move { api::serve(node, &env, listeners, config, stop.cancelled_owned()).await }
        });
        member.running = Some(Running { node, stop, serving });
        Ok(())
    }

    /// Waits until every shard has all its replicas.
    async fn until_healthy(&self) -> anyhow::Result<()> {
        let deadline = Instant::now() + FORMING;
        loop {
            let Some(running) = self.members.iter().find_map(|member| member.running.as_ref()) else { return Ok(()) };
            let status = running.node.cluster_status(deadline).await;
            if status.health() == ClusterHealth::Healthy && status.nodes.len() == self.members.len() {
                return Ok(());
            }
            ensure!(Instant::now() < deadline, "the nodes did not become a cluster: {}", status.verdict);
            sleep(LOOK_EVERY).await;
        }
    }

    /// Stops all nodes in order: requests under way are finished, what was not handed out is given back.
    pub(super) async fn stop(&mut self) -> anyhow::Result<()> {
        for i in 0..self.members.len() {
            self.stop_one(i).await?;
        }
        Ok(())
    }

    async fn stop_one(&mut self, i: usize) -> anyhow::Result<()> {
        let Some(Running { node, stop, serving }) = self.members[i].running.take() else { return Ok(()) };
        stop.cancel();
        serving.await.context("the API panicked")??;
        node.shutdown().await
    }

    /// Stops the only node and starts it again; how long it was away.
    pub(super) async fn restart(&mut self) -> anyhow::Result<Duration> {
        let away = Instant::now();
        self.stop_one(0).await?;
        self.run(0).await?;
        Ok(away.elapsed())
    }

    /// The node that leads most shards, and how many.
    pub(super) fn leading_most(&self) -> (usize, usize) {
        let led = |member: &Member| {
            let Some(Running { node, .. }) = &member.running else { return 0 };
            let leads = |shard: &u32| {
                let leadership = node.host().leadership(ShardId(*shard));
                matches!(*leadership.borrow(), Leadership::Leader { .. })
            };
            (0..node.info().shards).filter(leads).count()
        };
        let most = self.members.iter().map(led).enumerate().max_by_key(|(_, led)| *led);
        most.unwrap_or_default()
    }

    /// Ends a node at once: it tells nobody and gives nothing back.
    pub(super) async fn halt(&mut self, i: usize) -> anyhow::Result<()> {
        let Some(Running { node, serving, .. }) = self.members[i].running.take() else { return Ok(()) };
        serving.abort();
        node.halt().await
    }

    /// Brings a node back and waits until the cluster is whole again; how long that took.
    pub(super) async fn bring_back(&mut self, i: usize) -> anyhow::Result<Duration> {
        let begun = Instant::now();
        self.run(i).await.with_context(|| format!("node {} did not come back", i + 1))?;
        self.until_healthy().await?;
        Ok(begun.elapsed())
    }

    /// Ends the actor of a campaign as a crash would, on the node where it runs.
    pub(super) async fn crash_actor(&self, campaign: &str) -> bool {
        for Running { node, .. } in self.members.iter().filter_map(|member| member.running.as_ref()) {
            if node.crash_actor(campaign).await {
                return true;
            }
        }
        false
    }
}
