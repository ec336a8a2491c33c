//! Live load: scores whose placements are streamed to their end, and a record of what was acknowledged.

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use andante::v1::{self, OutcomeStatus};
use andante_cluster::env::{Clock as _, SystemClock};
use hdrhistogram::Histogram;
use parking_lot::Mutex;
use tokio::task::JoinSet;

use crate::asker::Asker;

const HOUR_MS: u64 = 3_600_000;
/// What one delivery costs.
const PRICE_MICROS: u64 = 1_000;
/// Candidates of one request.
const CANDIDATES: usize = 12;
/// Placements of one request.
const SLOTS: u32 = 3;
/// Failures told in full; more are counted.
const TOLD: usize = 10;

/// The name of a campaign.
pub(crate) fn name(i: usize) -> String {
    format!("load-{i}")
}

/// The one track of a campaign.
pub(crate) fn track(i: usize) -> String {
    format!("track-{i}")
}

/// A campaign with more money than any test can spend.
pub(crate) fn spec(i: usize) -> v1::CampaignSpec {
    let now_ms = SystemClock::default().now_ms();
    v1::CampaignSpec {
        name: name(i),
        owner: "label".into(),
        track_ids: vec![track(i)],
        start_ms: now_ms - HOUR_MS,
        end_ms: now_ms + HOUR_MS,
        budget_micros: 1_000_000_000_000,
        price_micros: PRICE_MICROS,
        hold_ms: 60_000,
        ..Default::default()
    }
}

/// A request for some campaigns' tracks.
pub(crate) fn request(listener: String, campaigns: impl Iterator<Item = usize>, slots: u32) -> v1::ScoreRequest {
    v1::ScoreRequest {
        request_id: "load".into(),
        listener_id: listener,
        surface: "radio".into(),
        market: "DE".into(),
        candidates: campaigns.map(|i| v1::Candidate { track_id: track(i), relevance: 1.0 }).collect(),
        slots,
        hold_ms: 0,
    }
}

/// The end of a stream that counts.
pub(crate) fn streamed(token: Vec<u8>) -> v1::OutcomeEvent {
    v1::OutcomeEvent { token, kind: v1::OutcomeKind::Stream.into(), stream_ms: 60_000 }
}

/// What happened so far.
#[derive(Default)]
pub(crate) struct Record {
    /// Score requests answered.
    pub(crate) scores: AtomicU64,
    /// Events billed.
    pub(crate) billed: AtomicU64,
    /// Replies from which shards were missing.
    pub(crate) incomplete: AtomicU64,
    /// Failed requests, these replies included; the first ones in words.
    failures: Mutex<(u64, Vec<String>)>,
    /// Acknowledged tokens, by campaign.
    acknowledged: Mutex<BTreeMap<String, Vec<Vec<u8>>>>,
    /// Events whose fate stayed unknown, by campaign.
    unknown: Mutex<BTreeMap<String, u64>>,
    score_micros: Mutex<Option<Histogram<u64>>>,
}

impl Record {
    fn failed(&self, what: String) {
        let mut failures = self.failures.lock();
        failures.0 += 1;
        if failures.1.len() < TOLD {
            failures.1.push(what);
        }
    }

    /// How many requests failed so far, and the first ones in words.
    pub(crate) fn failures(&self) -> (u64, Vec<String>) {
        self.failures.lock().clone()
    }

    /// Times of scores since the last call.
    pub(crate) fn take_score_micros(&self) -> Histogram<u64> {
        self.score_micros.lock().take().unwrap_or_else(times)
    }

    fn scored(&self, took: Duration) {
        self.scores.fetch_add(1, Ordering::Relaxed);
        let mut micros = self.score_micros.lock();
        micros.get_or_insert_with(times).saturating_record(took.as_micros() as u64);
    }
}

fn times() -> Histogram<u64> {
    Histogram::new_with_bounds(1, 60_000_000, 3).expect("sane bounds")
}

/// Workers that go on until they are told to stop.
pub(crate) struct Workload {
    /// What happened so far.
    pub(crate) record: Arc<Record>,
    stop: Arc<AtomicBool>,
    workers: JoinSet<()>,
}

impl Workload {
    /// Creates the campaigns and starts so many workers.
    pub(crate) async fn start(asker: &Asker, campaigns: usize, workers: usize) -> Self {
        asker.import((0..campaigns).map(spec).collect()).await;
        let (record, stop) = (Arc::<Record>::default(), Arc::<AtomicBool>::default());
        let mut running = JoinSet::new();
        for worker in 0..workers {
            let (asker, record, stop) = (asker.clone(), record.clone(), stop.clone());
            running.spawn(async move {
                let mut turn = worker;
                while !stop.load(Ordering::Relaxed) {
                    turn += workers;
                    work(&asker, &record, campaigns, turn).await;
                }
            });
        }
        Self { record, stop, workers: running }
    }

    /// Lets the workers finish what they are at.
    pub(crate) async fn stop(mut self) -> Arc<Record> {
        self.stop.store(true, Ordering::Relaxed);
        while let Some(ended) = self.workers.join_next().await {
            ended.expect("a worker does not panic");
        }
        self.record
    }
}

/// One request and the outcomes of its placements.
async fn work(asker: &Asker, record: &Record, campaigns: usize, turn: usize) {
    let wanted = (0..CANDIDATES).map(|i| (turn * 7 + i * campaigns / CANDIDATES) % campaigns);
    let begun = Instant::now();
    let reply = match asker.score(request(format!("listener-{turn}"), wanted, SLOTS)).await {
        Ok(reply) => reply,
        Err(why) => return record.failed(format!("score: {why}")),
    };
    record.scored(begun.elapsed());
    let missing = reply.coverage.unwrap_or_default().missing;
    if !missing.is_empty() {
        record.incomplete.fetch_add(1, Ordering::Relaxed);
        record.failed(format!("score: coverage lacks {missing:?}"));
    }
    if reply.placements.is_empty() {
        return;
    }
    let events = reply.placements.iter().map(|placement| streamed(placement.token.clone())).collect();
    match asker.report(events).await {
        Ok(fates) => {
            for (placement, fate) in reply.placements.into_iter().zip(fates) {
                if fate.acknowledged() {
                    record.billed.fetch_add(1, Ordering::Relaxed);
                    record.acknowledged.lock().entry(placement.campaign).or_default().push(placement.token);
                } else {
                    record.failed(format!("report: {:?}", fate.status));
                    *record.unknown.lock().entry(placement.campaign).or_default() += 1;
                }
            }
        }
        Err(why) => {
            record.failed(format!("report: {why}"));
            for placement in reply.placements {
                *record.unknown.lock().entry(placement.campaign).or_default() += 1;
            }
        }
    }
}

/// Holds the ledgers against the record: everything acknowledged is there, once, and within the budget.
pub(crate) async fn audit(asker: &Asker, record: &Record, campaigns: usize) {
    let acknowledged = record.acknowledged.lock().clone();
    let unknown = record.unknown.lock().clone();
    for i in 0..campaigns {
        let name = name(i);
        let campaign = asker.campaign(&name).await;
        let (ledger, spec) = (campaign.ledger.unwrap_or_default(), campaign.spec.unwrap_or_default());
        let acked = acknowledged.get(&name).map_or(0, |tokens| tokens.len() as u64);
        let possible = acked + unknown.get(&name).copied().unwrap_or(0);
        assert!(ledger.billed >= acked, "{name}: {acked} acknowledged, {} billed", ledger.billed);
        assert!(ledger.billed <= possible, "{name}: {} billed, {possible} possible", ledger.billed);
        assert_eq!(ledger.settled_micros, ledger.billed * PRICE_MICROS, "{name}");
        assert!(ledger.settled_micros + ledger.open_micros <= spec.budget_micros, "{name}: overspent");
    }
    // Each token by itself: known, and not billed a second time.
    for tokens in acknowledged.into_values() {
        for tokens in tokens.chunks(1_000) {
            let events = tokens.iter().map(|token| streamed(token.clone())).collect();
            for status in asker.report_again(events).await {
                assert_eq!(status, OutcomeStatus::Duplicate, "an acknowledged stream reported again");
            }
        }
    }
}
