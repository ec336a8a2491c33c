//! A node as the simulation runs it: the real one, over the simulated environment, through many lives.

use std::{
    net::{Ipv4Addr, SocketAddr},
    path::PathBuf,
    sync::Arc,
    time::Duration,
};

use andante::{
    api::{Listeners, ServeConfig, serve},
    node::{Node, NodeConfig, PeerConfig},
    settings::Settings,
};
use andante_cluster::{env::Env, host::Join, storage::memory::MemoryStores};
use parking_lot::Mutex;

use super::{
    clock::{Skew, SkewedClock},
    network::SimulatedNetwork,
    threads::{Pace, Tasks},
    traffic::Traffic,
};
use crate::dice::Dice;

/// Where nodes serve clients.
pub const API_PORT: u16 = 7400;
const HTTP_PORT: u16 = 7480;
const PEER_PORT: u16 = 7500;
const DRAIN: Duration = Duration::from_secs(5);
const CONNECTIONS_MAX: u32 = 256;

/// What stays of a node when its process ends, and a way into the process that runs.
pub struct NodeSlot {
    /// Its host's name.
    pub name: Arc<str>,
    /// Its clock's error.
    pub skew: Arc<Skew>,
    /// How long its blocking work takes.
    pub pace: Arc<Pace>,
    /// Its disks.
    pub disks: Arc<MemoryStores>,
    /// The running node.
    pub node: Mutex<Option<Arc<Node>>>,
    /// Why the process ended by itself last.
    pub ended: Mutex<Option<String>>,
    pub dir: PathBuf,
    pub settings: Settings,
    pub shards: u32,
    pub join: Mutex<Vec<Arc<str>>>,
    pub traffic: Arc<Traffic>,
    pub dice: Arc<Dice>,
}

impl NodeSlot {
    fn env(&self) -> Env {
        Env {
            clock: Arc::new(SkewedClock::new(self.skew.clone())),
            network: Arc::new(SimulatedNetwork { host: self.name.clone(), traffic: self.traffic.clone() }),
            rng: self.dice.clone(),
            blocking: Arc::new(Tasks { pace: self.pace.clone(), dice: self.dice.clone() }),
            stores: self.disks.clone(),
        }
    }

    /// One life of the process: until it is crashed from outside or has to stop.
    pub async fn live(self: Arc<Self>) -> turmoil::Result {
        if let Err(error) = self.run().await {
            eprintln!("{} ended: {error:#}", self.name);
            *self.ended.lock() = Some(format!("{error:#}"));
        }
        *self.node.lock() = None;
        Ok(())
    }

    async fn run(&self) -> anyhow::Result<()> {
        let env = self.env();
        let any = |port| SocketAddr::from((Ipv4Addr::UNSPECIFIED, port));
        let listeners = Listeners::bind(&env, any(API_PORT), any(HTTP_PORT)).await?;
        let addresses: Vec<_> = self.join.lock().iter().map(|name| format!("{name}:{PEER_PORT}")).collect();
        let join = (!addresses.is_empty()).then(|| Join { addresses, token: String::new() });
        let config = NodeConfig {
            shards: Some(self.shards),
            settings: self.settings.clone(),
            peers: PeerConfig {
                addr: any(PEER_PORT),
                advertise: Some(format!("{}:{PEER_PORT}", self.name)),
                join,
                plaintext: true,
            },
            ..NodeConfig::new(&self.dir)
        };
        let node = Arc::new(Node::start(env.clone(), config).await?);
        *self.node.lock() = Some(node.clone());
        let (tell, told) = tokio::sync::oneshot::channel();
        let stop = async {
            let _ = tell.send(node.fatal().await);
        };
        let served = serve(node.clone(), &env, listeners, ServeConfig::plain(CONNECTIONS_MAX, DRAIN), stop).await;
        if let Ok(reason) = told.await {
            anyhow::bail!("the node had to stop: {reason}");
        }
        served
    }
}
