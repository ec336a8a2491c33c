//! A node as the simulation runs it: the real one, over the simulated environment, through many lives.

use std::{
    net::{Ipv4Addr, SocketAddr},
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicU32, AtomicU64, Ordering},
    },
    time::Duration,
};

use andante::{
    api::{Listeners, ServeConfig, serve},
    node::{Node, NodeConfig, PeerConfig},
    settings::Settings,
};
use andante_cluster::{env::Env, host::Join, storage::memory::MemoryStores};
use anyhow::Context as _;
use parking_lot::Mutex;

use super::{
    clock::{Skew, SkewedClock, true_elapsed},
    network::SimulatedNetwork,
    sabotage::Sabotage,
    threads::{Pace, Tasks},
    traffic::Traffic,
};
use crate::{
    dice::Dice,
    oracles::Life,
    plan::Plan,
    witness::{NodeWitness, Witness},
};

/// Where nodes serve clients.
pub const API_PORT: u16 = 7400;
const HTTP_PORT: u16 = 7480;
const PEER_PORT: u16 = 7500;
const DRAIN: Duration = Duration::from_secs(5);
const CONNECTIONS_MAX: u32 = 256;

/// What stays of a node when its process ends, and a way into the process that runs.
pub struct NodeSlot {
    /// Position among the nodes, from 0.
    pub position: usize,
    /// Its host's name.
    pub name: Arc<str>,
    /// Its clock's error.
    pub skew: Arc<Skew>,
    /// How long its blocking work takes.
    pub pace: Arc<Pace>,
    /// Its disks.
    pub disks: Arc<MemoryStores>,
    /// The other nodes; with a new disk it joins one of them. The first node forms the cluster when it starts for the
    /// first time.
    pub others: Vec<Arc<str>>,
    /// Settings of its configuration.
    pub settings: Settings,
    /// Shards of the cluster.
    pub shards: u32,
    /// Draws whatever the node draws.
    pub dice: Arc<Dice>,
    /// Sees what is sent.
    pub traffic: Arc<Traffic>,
    /// Sees what it does.
    pub witness: Arc<Witness>,
    /// Below it lies a directory for each of its disks.
    pub root: PathBuf,
    /// How many disks it has lost.
    pub lost_disks: AtomicU32,
    /// How often its process has ended by itself.
    pub ends: AtomicU64,
    sabotage: Arc<Sabotage>,
    running: Mutex<Option<Arc<Node>>>,
}

impl NodeSlot {
    /// The node at a position, which has never run.
    pub fn new(
        position: usize,
        names: &[Arc<str>],
        plan: &Plan,
        root: &std::path::Path,
        traffic: Arc<Traffic>,
        witness: Arc<Witness>,
        sabotage: Arc<Sabotage>,
    ) -> Self {
        let name = names[position].clone();
        let others = names.iter().filter(|other| **other != name).cloned().collect();
        let disks = Arc::new(MemoryStores::default());
        disks.observe(Arc::new(NodeWitness { node: position, witness: witness.clone() }));
        Self {
            position,
            dice: Arc::new(Dice::new(plan.seed, &name)),
            root: root.join(&*name),
            name,
            skew: Arc::default(),
            pace: Arc::default(),
            disks,
            others,
            settings: plan.settings.clone(),
            shards: plan.shards,
            traffic,
            witness,
            lost_disks: AtomicU32::new(0),
            ends: AtomicU64::new(0),
            sabotage,
            running: Mutex::default(),
        }
    }

    /// The node, if it runs.
    pub fn running(&self) -> Option<Arc<Node>> {
        self.running.lock().clone()
    }

    /// Its process is about to be stopped from outside: nobody holds on to the node.
    pub fn let_go(&self) {
        *self.running.lock() = None;
    }

    fn env(&self) -> Env {
        Env {
            clock: Arc::new(SkewedClock::new(self.skew.clone())),
            network: Arc::new(SimulatedNetwork { host: self.name.clone(), traffic: self.traffic.clone() }),
            rng: self.dice.clone(),
            blocking: Arc::new(Tasks { pace: self.pace.clone(), dice: self.dice.clone() }),
            stores: self.disks.clone(),
        }
    }

    /// One life of the process: until it is stopped from outside or has to end.
    ///
    /// # Errors
    /// None: a process that ends is no error of the simulation.
    pub async fn live(self: Arc<Self>) -> turmoil::Result {
        let ended = match self.run().await {
            Ok(()) => "it stopped serving".to_owned(),
            Err(error) => format!("{error:#}"),
        };
        self.let_go();
        self.ends.fetch_add(1, Ordering::Relaxed);
        self.witness.life(self.position, &Life::Ended(ended), true_elapsed().as_millis() as u64);
        Ok(())
    }

    async fn run(&self) -> anyhow::Result<()> {
        let env = self.env();
        let any = |port| SocketAddr::from((Ipv4Addr::UNSPECIFIED, port));
        let listeners = Listeners::bind(&env, any(API_PORT), any(HTTP_PORT)).await?;
        let lost_disks = self.lost_disks.load(Ordering::Relaxed);
        let forms = self.position == 0 && lost_disks == 0;
        let addresses = self.others.iter().map(|name| format!("{name}:{PEER_PORT}")).collect();
        let config = NodeConfig {
            shards: Some(self.shards),
            settings: self.settings.clone(),
            peers: PeerConfig {
                addr: any(PEER_PORT),
                advertise: Some(format!("{}:{PEER_PORT}", self.name)),
                join: (!forms).then_some(Join { addresses, token: String::new() }),
                plaintext: true,
            },
            observer: Some(Arc::new(NodeWitness { node: self.position, witness: self.witness.clone() })),
            ..NodeConfig::new(self.root.join(format!("disk-{lost_disks}")))
        };
        let node = Arc::new(Node::start(env.clone(), config).await.context("the node can't start")?);
        let (node_id, boot_id) = (node.info().node_id, node.info().boot_id);
        self.witness.life(self.position, &Life::Started { node_id, boot_id }, true_elapsed().as_millis() as u64);
        *self.running.lock() = Some(node.clone());
        let (tell, told) = tokio::sync::oneshot::channel();
        let stop = async {
            let _ = tell.send(node.fatal().await);
        };
        let serving = serve(node.clone(), &env, listeners, ServeConfig::plain(CONNECTIONS_MAX, DRAIN), stop);
        let served = tokio::select! {
            served = serving => served,
            () = self.sabotage.befall(&node) => Ok(()),
        };
        if let Ok(reason) = told.await {
            anyhow::bail!("the node had to stop: {reason}");
        }
        served
    }
}
