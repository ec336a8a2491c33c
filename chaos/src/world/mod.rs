//! The simulated world: hosts, their clocks and disks, and the network between them.

pub mod client;
pub mod clock;
pub mod network;
pub mod node;
pub mod sabotage;
pub mod threads;
pub mod traffic;

use std::{
    path::PathBuf,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use andante::{actor::Shard, node::Node};
use andante_cluster::ShardId;
use turmoil::Sim;

use self::{
    client::{Client, Stage, StageClock},
    clock::Skew,
    node::NodeSlot,
    sabotage::Sabotage,
    traffic::Traffic,
};
use crate::{dice::Dice, faults::End, oracles::Life, plan::Plan, witness::Witness, workloads};

/// A run ends long before.
const SIMULATED_MAX: Duration = Duration::from_secs(3_600);
/// How long it takes until a process that ended by itself is started again.
const RESTART_MS: std::ops::RangeInclusive<u64> = 500..=5_000;
/// Bytes of a TCP connection under way.
const TCP_CAPACITY: usize = 65_536;

/// Everything there is in a run.
pub struct World {
    /// What is played.
    pub plan: Arc<Plan>,
    /// Sees everything.
    pub witness: Arc<Witness>,
    /// Who sends what to whom.
    pub traffic: Arc<Traffic>,
    /// The nodes.
    pub nodes: Vec<Arc<NodeSlot>>,
    /// The clients.
    pub clients: Vec<Arc<Client>>,
    /// What the run is at.
    pub stage: Arc<StageClock>,
    /// What is done to nodes from within.
    pub sabotage: Arc<Sabotage>,
    /// What faults draw while they last.
    pub dice: Dice,
    /// The network and the hosts' runtimes.
    pub sim: Sim<'static>,
    /// When a node's process starts again; `None`: it runs, or a fault keeps it down.
    restart_ms: Vec<Option<u64>>,
    /// Kept down by a fault.
    down: Vec<bool>,
    /// A node's machine stops a moment after it begins one more snapshot than so many.
    snapshot_traps: Vec<Option<u64>>,
    /// How often that has happened to each node.
    snapshot_crashes: Vec<u64>,
    /// Faults that disturb the network now.
    disturbances: u32,
    /// When the last of them ended, simulated milliseconds.
    disturbed_ms: u64,
    root: PathBuf,
}

impl World {
    /// The world of a plan, at its first moment.
    pub fn new(plan: &Plan, root: PathBuf) -> Self {
        let plan = Arc::new(plan.clone());
        let witness = Witness::new(&plan);
        let traffic = Arc::new(Traffic::new(witness.trace.clone()));
        let (latency_min, latency_max) = plan.latency_ms;
        let mut sim = turmoil::Builder::new()
            .rng_seed(plan.seed)
            .simulation_duration(SIMULATED_MAX)
            .tick_duration(Duration::from_millis(1))
            .min_message_latency(Duration::from_millis(latency_min))
            .max_message_latency(Duration::from_millis(latency_max))
            .tcp_capacity(TCP_CAPACITY)
            // Of messages that find a broken link: so many mend it.
            .repair_rate(0.05)
            .enable_random_order()
            .build();
        let names: Vec<Arc<str>> = (1..=plan.nodes).map(|number| format!("node-{number}").into()).collect();
        let sabotage = Arc::new(Sabotage::default());
        let nodes: Vec<_> = (0..names.len())
            .map(|position| {
                let (traffic, witness, sabotage) = (traffic.clone(), witness.clone(), sabotage.clone());
                Arc::new(NodeSlot::new(position, &names, &plan, &root, traffic, witness, sabotage))
            })
            .collect();
        let stage = Arc::new(StageClock::default());
        let clients: Vec<_> = (0..plan.load.clients as usize)
            .map(|position| {
                let (traffic, witness) = (traffic.clone(), witness.clone());
                Arc::new(Client::new(position, plan.clone(), names.clone(), traffic, witness, stage.clone()))
            })
            .collect();
        let skews = nodes.iter().map(|node| &node.skew).chain(clients.iter().map(|client| &client.skew));
        for (skew, by_ms) in skews.zip(&plan.skews_ms) {
            skew.step_ms(*by_ms);
        }
        for node in &nodes {
            let node = node.clone();
            sim.host(&*node.name.clone(), move || node.clone().live());
        }
        for client in &clients {
            sim.client(&*client.name, workloads::run(client.clone()));
        }
        let world = Self {
            dice: Dice::new(plan.seed, "faults at work"),
            restart_ms: vec![None; nodes.len()],
            down: vec![false; nodes.len()],
            snapshot_traps: vec![None; nodes.len()],
            snapshot_crashes: vec![0; nodes.len()],
            plan,
            witness,
            traffic,
            nodes,
            clients,
            stage,
            sabotage,
            sim,
            disturbances: 0,
            disturbed_ms: 0,
            root,
        };
        (0..world.nodes.len()).for_each(|node| world.disk_as_planned(node));
        world
    }

    /// Simulated milliseconds.
    pub fn now_ms(&self) -> u64 {
        self.sim.elapsed().as_millis() as u64
    }

    /// A fault has begun that disturbs the network, until its end.
    pub fn disturb_network(&mut self, end: End) -> End {
        self.disturbances += 1;
        Box::new(move |world| {
            let seen = end(world);
            world.disturbances -= 1;
            world.disturbed_ms = world.now_ms();
            seen
        })
    }

    /// Since when no message has been late or lost, but for those to and from machines that don't run; simulated
    /// milliseconds.
    pub fn network_sound_since_ms(&self) -> u64 {
        if self.disturbances > 0 { self.now_ms() } else { self.disturbed_ms }
    }

    /// Lets a moment pass.
    pub fn step(&mut self) {
        if let Err(error) = self.sim.step() {
            // Clients never end and nodes never fail: a task has panicked.
            self.witness.broken("panics", format!("a task panicked: {error}"), self.now_ms());
            return;
        }
        let now_ms = self.now_ms();
        for node in 0..self.nodes.len() {
            self.spring_trap(node);
            let runs = self.sim.is_host_running(&*self.nodes[node].name);
            match self.restart_ms[node] {
                None if !runs && !self.down[node] => {
                    self.restart_ms[node] = Some(now_ms + self.dice.within(RESTART_MS));
                }
                Some(at_ms) if at_ms <= now_ms => {
                    self.restart_ms[node] = None;
                    if !runs {
                        self.sim.bounce(&*self.nodes[node].name);
                    }
                }
                _ => {}
            }
        }
    }

    /// The names of hosts, nodes first.
    pub fn hosts(&self) -> Vec<Arc<str>> {
        let clients = self.clients.iter().map(|client| client.name.clone());
        self.nodes.iter().map(|node| node.name.clone()).chain(clients).collect()
    }

    /// Nodes whose processes have started, with their positions.
    pub fn running(&self) -> impl Iterator<Item = (usize, Arc<Node>)> {
        self.nodes.iter().filter_map(|slot| Some((slot.position, slot.running()?)))
    }

    /// The replicas of all shards on running nodes, with the nodes' positions.
    pub fn replicas(&self) -> Vec<(usize, Arc<Shard>)> {
        let on = |(position, node): (usize, Arc<Node>)| {
            self.replicas_on(&node).into_iter().map(move |shard| (position, shard))
        };
        self.running().flat_map(on).collect()
    }

    /// The replicas on one node.
    pub fn replicas_on(&self, node: &Node) -> Vec<Arc<Shard>> {
        let here = (0..self.plan.shards).map(ShardId).filter(|shard| node.host().has_replica(*shard));
        here.filter_map(|shard| node.shard(shard).cloned()).collect()
    }

    /// By how much the clocks of any two hosts differ, milliseconds.
    pub fn clocks_differ_ms(&self) -> u64 {
        let elapsed = self.sim.elapsed();
        let skews = self.nodes.iter().map(|node| &node.skew).chain(self.clients.iter().map(|client| &client.skew));
        let (mut min, mut max) = (0, 0);
        for skew in skews {
            let ahead = skew.ahead_ms(elapsed);
            (min, max) = (ahead.min(min), ahead.max(max));
        }
        max.abs_diff(min)
    }

    /// The clock's error of a host; nodes first.
    pub fn skew(&self, host: usize) -> &Arc<Skew> {
        match self.nodes.get(host) {
            Some(node) => &node.skew,
            None => &self.clients[host - self.nodes.len()].skew,
        }
    }

    /// How often a node's process has ended by itself.
    pub fn ends(&self, node: usize) -> u64 {
        self.nodes[node].ends.load(Ordering::Relaxed)
    }

    /// Whether every shard survives that one more disk is lost.
    pub fn may_lose_disk(&self) -> bool {
        self.nodes.len() >= 3 && self.nodes.iter().all(|node| node.lost_disks.load(Ordering::Relaxed) == 0)
    }

    /// Whether a node is kept down by a fault.
    pub fn is_down(&self, node: usize) -> bool {
        self.down[node]
    }

    /// Stops a node's machine at once and keeps it down.
    pub fn crash(&mut self, node: usize) {
        self.down[node] = true;
        self.restart_ms[node] = None;
        let slot = self.nodes[node].clone();
        slot.let_go();
        let crash = slot.disks.crash(&self.dice);
        self.sim.crash(&*slot.name);
        let now_ms = self.now_ms();
        self.witness.life(node, &Life::Crashed(crash), now_ms);
    }

    /// Stops a node's machine, once, shortly after it has next written a snapshot or begun to take one in, and keeps it down.
    pub fn set_snapshot_trap(&mut self, node: usize) {
        self.snapshot_traps[node] = Some(self.nodes[node].disks.snapshots_begun());
    }

    /// Stops it no more.
    pub fn clear_snapshot_trap(&mut self, node: usize) {
        self.snapshot_traps[node] = None;
    }

    /// How often it was stopped like that.
    pub fn snapshot_crashes(&self, node: usize) -> u64 {
        self.snapshot_crashes[node]
    }

    fn spring_trap(&mut self, node: usize) {
        let begun = self.snapshot_traps[node].is_some_and(|before| self.nodes[node].disks.snapshots_begun() > before);
        // One that is written here is published by then, one that is taken in is under way or being installed.
        if begun && !self.down[node] && self.dice.one_in(4) {
            self.snapshot_traps[node] = None;
            self.snapshot_crashes[node] += 1;
            self.crash(node);
        }
    }

    /// Loses the disks of a node that is down.
    pub fn lose_disk(&mut self, node: usize) {
        let slot = self.nodes[node].clone();
        slot.disks.wipe();
        slot.lost_disks.fetch_add(1, Ordering::Relaxed);
        self.witness.life(node, &Life::DiskLost, self.now_ms());
    }

    /// Starts a node that was kept down.
    pub fn start(&mut self, node: usize) {
        if self.down[node] {
            self.down[node] = false;
            self.sim.bounce(&*self.nodes[node].name);
        }
    }

    /// A node's disks are as quick as planned.
    pub fn disk_as_planned(&self, node: usize) {
        let slot = &self.nodes[node];
        let micros = |(min, max): (u64, u64)| (Duration::from_micros(min), Duration::from_micros(max));
        let (min, max) = micros(self.plan.sync_micros);
        slot.disks.set_sync_time(min, max, slot.dice.clone());
        let (min, max) = micros(self.plan.blocking_micros);
        slot.pace.set(min, max);
    }

    /// Ends whatever faults are left: links, clocks, disks and nodes are as they should be.
    pub fn heal(&mut self) {
        let hosts = self.hosts();
        for (at, one) in hosts.iter().enumerate() {
            for other in &hosts[at + 1..] {
                self.sim.set_link_fail_rate(&**one, &**other, 0.0);
                self.sim.release(&**one, &**other);
                self.sim.repair(&**one, &**other);
                self.sim.set_link_max_message_latency(&**one, &**other, Duration::from_millis(self.plan.latency_ms.1));
            }
        }
        for node in 0..self.nodes.len() {
            self.nodes[node].skew.heal();
            self.nodes[node].disks.set_full(false);
            self.disk_as_planned(node);
            self.start(node);
        }
        for client in &self.clients {
            client.skew.heal();
        }
    }

    /// What the run is at from now on.
    pub fn enter(&self, stage: Stage) {
        self.witness.line(self.now_ms(), &format!("--- {stage:?}"));
        self.stage.set(stage);
    }
}

impl Drop for World {
    fn drop(&mut self) {
        // Only the nodes' identities lie there; a leftover harms nobody.
        let _ = std::fs::remove_dir_all(&self.root);
    }
}
