//! A client's process: its clock, its connections, and calls with deadlines.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU8, AtomicU64, Ordering},
    },
    time::Duration,
};

use andante_cluster::env::Network as _;
use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use tonic::{
    Request, Response, Status,
    transport::{Channel, Endpoint},
};

use super::{
    clock::{EPOCH_MS, Skew, SkewedClock, true_elapsed},
    network::SimulatedNetwork,
    node::API_PORT,
    traffic::Traffic,
};
use crate::{dice::Dice, plan::Plan, witness::Witness};

/// A client that can't connect, or is not told that it waits in vain, gives up so long after the deadline.
const SLACK: Duration = Duration::from_millis(200);
const KEEPALIVE: Duration = Duration::from_secs(2);
/// Longer than any run, and short enough that budgets are spent at a good pace.
const FLIGHT_MS: u64 = 600_000;

/// What a run is at. Clients look at it and do what fits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum Stage {
    /// The cluster forms, campaigns are created.
    Setup = 0,
    /// Faults come.
    Faults = 1,
    /// Faults are over; work goes on.
    Healed = 2,
    /// No new work: what is under way ends.
    Quiet = 3,
}

/// The stage of a run, for all to see.
#[derive(Debug, Default)]
pub struct StageClock(AtomicU8);

impl StageClock {
    /// Now.
    pub fn now(&self) -> Stage {
        match self.0.load(Ordering::Relaxed) {
            0 => Stage::Setup,
            1 => Stage::Faults,
            2 => Stage::Healed,
            _ => Stage::Quiet,
        }
    }

    /// From now on.
    pub fn set(&self, stage: Stage) {
        self.0.store(stage as u8, Ordering::Relaxed);
    }
}

/// A client's process.
pub struct Client {
    /// Position among the clients, from 0.
    pub position: usize,
    /// Its host's name.
    pub name: Arc<str>,
    /// Its clock's error.
    pub skew: Arc<Skew>,
    /// What it draws.
    pub dice: Dice,
    /// What is played.
    pub plan: Arc<Plan>,
    /// Sees what it is told.
    pub witness: Arc<Witness>,
    /// The run's stage.
    pub stage: Arc<StageClock>,
    /// Calls that have made something happen, by workload: whether a run gets on.
    pub done: Mutex<std::collections::BTreeMap<&'static str, u64>>,
    under_way: Arc<()>,
    calls: AtomicU64,
    nodes: Vec<Arc<str>>,
    traffic: Arc<Traffic>,
    channels: Mutex<Vec<Option<Channel>>>,
}

impl Client {
    /// The client at a position.
    pub fn new(
        position: usize,
        plan: Arc<Plan>,
        nodes: Vec<Arc<str>>,
        traffic: Arc<Traffic>,
        witness: Arc<Witness>,
        stage: Arc<StageClock>,
    ) -> Self {
        let name: Arc<str> = format!("client-{}", position + 1).into();
        Self {
            position,
            dice: Dice::new(plan.seed, &name),
            name,
            skew: Arc::default(),
            plan,
            witness,
            stage,
            done: Mutex::default(),
            under_way: Arc::default(),
            calls: AtomicU64::new(0),
            channels: Mutex::new(vec![None; nodes.len()]),
            nodes,
            traffic,
        }
    }

    /// What its own clock shows, UTC milliseconds.
    pub fn now_ms(&self) -> u64 {
        use andante_cluster::env::Clock as _;
        SkewedClock::new(self.skew.clone()).now_ms()
    }

    /// True time, simulated milliseconds.
    pub fn true_ms(&self) -> u64 {
        true_elapsed().as_millis() as u64
    }

    /// When all flights end, UTC milliseconds.
    pub fn flight_end_ms(&self) -> u64 {
        EPOCH_MS + FLIGHT_MS
    }

    /// A node to ask, by position.
    pub fn any_node(&self) -> usize {
        self.dice.below(self.nodes.len())
    }

    /// A number for a call, different for all calls of all clients.
    pub fn next_call(&self) -> u64 {
        self.position as u64 * 1_000_000_000 + self.calls.fetch_add(1, Ordering::Relaxed)
    }

    /// Counts a call of a workload that has made something happen.
    pub fn count(&self, workload: &'static str) {
        *self.done.lock().entry(workload).or_default() += 1;
    }

    /// Something begins that is to end before the run is over; it is under way as long as what is returned is kept.
    pub fn begin(&self) -> Arc<()> {
        self.under_way.clone()
    }

    /// Whether everything that began has ended.
    pub fn is_idle(&self) -> bool {
        Arc::strong_count(&self.under_way) == 1
    }

    /// Waits for a time drawn around a mean.
    pub async fn pause(&self, mean_ms: u64) {
        tokio::time::sleep(Duration::from_millis(self.dice.within(mean_ms / 4..=mean_ms * 7 / 4).max(1))).await;
    }

    /// The connection to a node; made when first used, and again when lost.
    pub fn channel(&self, node: usize) -> Channel {
        let mut channels = self.channels.lock();
        channels[node].get_or_insert_with(|| self.connect(node)).clone()
    }

    fn connect(&self, node: usize) -> Channel {
        let address = format!("{}:{API_PORT}", self.nodes[node]);
        let (host, traffic) = (self.name.clone(), self.traffic.clone());
        Endpoint::from_shared(format!("http://{address}"))
            .expect("a host's name and a port")
            .connect_timeout(Duration::from_secs(1))
            .http2_keep_alive_interval(KEEPALIVE)
            .keep_alive_timeout(KEEPALIVE)
            .keep_alive_while_idle(true)
            .connect_with_connector_lazy(tower::service_fn(move |_| {
                let network = SimulatedNetwork { host: host.clone(), traffic: traffic.clone() };
                let address = address.clone();
                async move { network.connect(&address).await.map(TokioIo::new) }
            }))
    }

    /// Makes a call with a deadline. The answer may be lost; that is an error with the code DEADLINE_EXCEEDED.
    ///
    /// # Errors
    /// The server's, or the deadline's.
    pub async fn call<Q, R>(
        &self,
        within: Duration,
        message: Q,
        call: impl AsyncFnOnce(Request<Q>) -> Result<Response<R>, Status>,
    ) -> Result<R, Status> {
        let mut request = Request::new(message);
        request.set_timeout(within);
        match tokio::time::timeout(within + SLACK, call(request)).await {
            Ok(answer) => answer.map(Response::into_inner),
            Err(_) => Err(Status::deadline_exceeded("no answer came")),
        }
    }
}
