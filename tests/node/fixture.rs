//! A node on in-memory stores that survive its crashes.

use std::{
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use andante::{
    campaign::{
        proto::{self, State},
        version::Version,
    },
    node::{Node, NodeConfig},
    router::{CampaignView, WriteError},
    settings::Settings,
    v1::{self, OutcomeKind, OutcomeStatus},
};
use andante_cluster::{
    env::{Clock, Env, OsThreads, SystemClock, SystemRng, TcpNetwork},
    storage::memory::MemoryStores,
};
use tokio::time::Instant;

#[path = "../support/campaign.rs"]
#[allow(unreachable_pub, reason = "shared with other tests")]
mod campaign;

pub(crate) use campaign::spec;

/// Conditions are looked at again this often.
const LOOK_EVERY: Duration = Duration::from_millis(1);

/// Real time, moved by tests.
#[derive(Default)]
pub(crate) struct MovedClock {
    real: SystemClock,
    /// Passed on both clocks.
    passed_ms: AtomicU64,
    /// Stepped on the wall clock only.
    stepped_ms: AtomicU64,
}

impl MovedClock {
    /// Lets time pass.
    pub(crate) fn pass(&self, ms: u64) {
        self.passed_ms.fetch_add(ms, Ordering::SeqCst);
    }

    /// Back to real time, as after a restart of the machine with its clock corrected.
    pub(crate) fn correct(&self) {
        self.passed_ms.store(0, Ordering::SeqCst);
    }

    /// Steps the wall clock forward.
    pub(crate) fn step(&self, ms: u64) {
        self.stepped_ms.fetch_add(ms, Ordering::SeqCst);
    }
}

impl Clock for MovedClock {
    fn now_ms(&self) -> u64 {
        self.real.now_ms() + self.passed_ms.load(Ordering::SeqCst) + self.stepped_ms.load(Ordering::SeqCst)
    }

    fn monotonic_micros(&self) -> u64 {
        self.real.monotonic_micros() + self.passed_ms.load(Ordering::SeqCst) * 1_000
    }
}

/// A node and its disk.
pub(crate) struct Fixture {
    pub(crate) node: Node,
    pub(crate) clock: Arc<MovedClock>,
    stores: Arc<MemoryStores>,
    dir: tempfile::TempDir,
}

impl Fixture {
    pub(crate) async fn start() -> Self {
        let stores = Arc::new(MemoryStores::default());
        let dir = tempfile::tempdir().expect("a temporary folder");
        let clock = Arc::new(MovedClock::default());
        let node = start(stores.clone(), clock.clone(), dir.path().into()).await;
        Self { node, clock, stores, dir }
    }

    /// Stops as an operator would, and starts again.
    pub(crate) async fn restart(self) -> Self {
        let Self { node, clock, stores, dir } = self;
        node.shutdown().await.expect("shuts down");
        drop(node);
        let node = start(stores.clone(), clock.clone(), dir.path().into()).await;
        Self { node, clock, stores, dir }
    }

    /// Loses the process and everything that was not synced, and starts again.
    pub(crate) async fn crash(self) -> Self {
        let Self { node, clock, stores, dir: before } = self;
        // The lock dies with the process, which lives on here: the survivors move to another folder.
        let dir = tempfile::tempdir().expect("a temporary folder");
        for entry in std::fs::read_dir(before.path()).expect("lists") {
            let path = entry.expect("an entry").path();
            if path.is_file() {
                std::fs::copy(&path, dir.path().join(path.file_name().expect("a name"))).expect("copies");
            }
        }
        // Opening the stores anew is what cuts off the old ones.
        let next = start(stores.clone(), clock.clone(), dir.path().into()).await;
        drop(node);
        Self { node: next, clock, stores, dir }
    }

    pub(crate) fn deadline(&self) -> Instant {
        Instant::now() + Duration::from_secs(10)
    }

    pub(crate) async fn create(&self, spec: proto::Spec) -> CampaignView {
        let id = format!("create {}", spec.name);
        self.node.router().create(&id, spec, self.deadline()).await.expect("creates")
    }

    pub(crate) async fn set_state(&self, name: &str, state: State) -> Result<Option<CampaignView>, WriteError> {
        self.node.router().set_state("", name, state, Version::ANY, self.deadline()).await
    }

    pub(crate) async fn score(&self, request: &v1::ScoreRequest) -> v1::ScoreResponse {
        self.node.router().score(request, self.deadline()).await
    }

    /// Asks until there is a placement: the first requests only wake the campaign.
    pub(crate) async fn place(&self, request: &v1::ScoreRequest) -> v1::Placement {
        let placed = async {
            loop {
                if let Some(placement) = self.score(request).await.placements.pop() {
                    return placement;
                }
                self.a_tick().await;
            }
        };
        tokio::time::timeout(Duration::from_secs(30), placed).await.expect("a placement within 30 s")
    }

    /// What is set aside in open allowances.
    pub(crate) fn open_micros(&self, name: &str) -> u64 {
        self.node.router().campaign_here(name).expect("it is there").campaign.open_micros
    }

    /// Waits for a condition on the node.
    pub(crate) async fn until(&self, what: &str, condition: impl Fn(&Node) -> bool) {
        let waited = async {
            while !condition(&self.node) {
                tokio::time::sleep(LOOK_EVERY).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(30), waited).await.expect(what);
    }

    /// Waits until a shard had another tick; something must have been asked of it before.
    pub(crate) async fn a_tick(&self) {
        let ticks = || self.node.metrics().ticks.get();
        let before = ticks();
        let waited = async {
            while ticks() == before {
                tokio::time::sleep(LOOK_EVERY).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(30), waited).await.expect("a tick within 30 s");
    }

    pub(crate) async fn report(&self, token: &[u8], kind: OutcomeKind, stream_ms: u64) -> OutcomeStatus {
        let report = events(&[(token, kind, stream_ms)]);
        let results = self.node.router().report(&report, self.deadline()).await;
        assert_eq!(results.len(), 1);
        results[0].status()
    }
}

async fn start(stores: Arc<MemoryStores>, clock: Arc<MovedClock>, data_dir: PathBuf) -> Node {
    let env =
        Env { clock, network: Arc::new(TcpNetwork), rng: Arc::new(SystemRng), blocking: Arc::new(OsThreads), stores };
    let settings = Settings { tick_ms: 10, ..Settings::default() };
    Node::start(env, NodeConfig { shards: Some(2), settings, ..NodeConfig::new(data_dir) }).await.expect("starts")
}

pub(crate) fn request(track: &str, slots: u32) -> v1::ScoreRequest {
    v1::ScoreRequest {
        request_id: "r".into(),
        listener_id: "somebody".into(),
        surface: "radio".into(),
        market: "DE".into(),
        candidates: vec![v1::Candidate { track_id: track.into(), relevance: 1.0 }],
        slots,
        hold_ms: 0,
    }
}

pub(crate) fn events(events: &[(&[u8], OutcomeKind, u64)]) -> v1::ReportRequest {
    let event = |(token, kind, stream_ms): &(&[u8], OutcomeKind, u64)| v1::OutcomeEvent {
        token: token.to_vec(),
        kind: (*kind).into(),
        stream_ms: *stream_ms,
    };
    v1::ReportRequest { events: events.iter().map(event).collect() }
}
