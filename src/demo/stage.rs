//! The node under test: started, crashed in part, restarted as a whole.

use std::{
    net::{Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use andante_cluster::env::Env;
use anyhow::Context;
use tokio::{task::JoinHandle, time::Instant};
use tokio_util::sync::CancellationToken;

use crate::{
    api::{self, Listeners, ServeConfig},
    node::{Node, NodeConfig},
};

/// Connections of the one player.
const MAX_CONNECTIONS: u32 = 16;
/// How long requests under way may take to finish at a stop.
const DRAIN: Duration = Duration::from_secs(5);

/// A running node with its API.
pub(super) struct Stage {
    env: Env,
    data_dir: PathBuf,
    addr: SocketAddr,
    running: Option<Running>,
}

struct Running {
    node: Arc<Node>,
    stop: CancellationToken,
    serving: JoinHandle<anyhow::Result<()>>,
}

impl Stage {
    /// Starts a node whose data lies in `dir`, on a free port of this machine.
    pub(super) async fn start(env: Env, dir: &Path) -> anyhow::Result<Self> {
        let mut stage = Stage { env, data_dir: dir.to_owned(), addr: (Ipv4Addr::LOCALHOST, 0).into(), running: None };
        stage.run().await?;
        Ok(stage)
    }

    /// Where it listens.
    pub(super) fn addr(&self) -> SocketAddr {
        self.addr
    }

    async fn run(&mut self) -> anyhow::Result<()> {
        let config = NodeConfig::new(self.data_dir.clone());
        let node = Arc::new(Node::start(self.env.clone(), config).await.context("the node did not start")?);
        // Only now: a client that finds nobody tries again, one that finds a silent socket waits.
        let http = (Ipv4Addr::LOCALHOST, 0).into();
        let listeners = Listeners::bind(&self.env, self.addr, http).await.context("cannot listen on this machine")?;
        self.addr = listeners.grpc_addr();
        let stop = CancellationToken::new();
        let serving = tokio::spawn({
            let (node, env, stop) = (node.clone(), self.env.clone(), stop.clone());
            let config = ServeConfig::plain(MAX_CONNECTIONS, DRAIN);
            async move { api::serve(node, &env, listeners, config, stop.cancelled_owned()).await }
        });
        self.running = Some(Running { node, stop, serving });
        Ok(())
    }

    /// Stops it in order: requests under way are finished, what was not handed out is given back.
    pub(super) async fn stop(&mut self) -> anyhow::Result<()> {
        let Some(Running { node, stop, serving }) = self.running.take() else { return Ok(()) };
        stop.cancel();
        serving.await.context("the API panicked")??;
        node.shutdown().await
    }

    /// Stops it and starts it again; how long it was away.
    pub(super) async fn restart(&mut self) -> anyhow::Result<Duration> {
        let away = Instant::now();
        self.stop().await?;
        self.run().await?;
        Ok(away.elapsed())
    }

    /// Ends the actor of a campaign as a crash would.
    pub(super) async fn crash_actor(&self, campaign: &str) -> bool {
        match &self.running {
            Some(running) => running.node.crash_actor(campaign).await,
            None => false,
        }
    }
}
