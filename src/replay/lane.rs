//! One lane: a thread, a connection, a share of the rows, many of them in flight.

use std::{
    cell::{Cell, RefCell},
    path::PathBuf,
    sync::Arc,
    time::Duration,
};

use andante_cluster::env::{Clock, SystemClock};
use anyhow::ensure;
use futures::future::join_all;
use hdrhistogram::Histogram;
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;

use crate::{
    client::ClientConfig,
    replay::{
        Play, Progress,
        campaigns::{MARKET, Planned, SURFACE},
        record::Writer,
    },
    v1::{Candidate, OutcomeKind, Placement, ScoreRequest},
    verify::{Event, Fate, Findings, Link, MIN_STREAM_MS, Patience, Tally},
};

/// Listeners; each row belongs to one, in turn.
const LISTENERS: usize = 10_000;
/// Every so many placements of a lane, an acknowledged stream is reported again at once.
const REPEAT_EVERY: u64 = 100;
/// Wait before a row is scored again after an error; doubled up to the longest.
const FIRST_BACKOFF: Duration = Duration::from_millis(20);
/// Longest wait between two tries.
const MAX_BACKOFF: Duration = Duration::from_millis(500);
/// Clocks of node and client may differ by this much when a refusal is held against a token's expiry.
const EXPIRY_MARGIN_MS: u64 = 1_000;

/// What a lane needs.
pub(super) struct Lane {
    pub(super) index: usize,
    pub(super) lanes: usize,
    pub(super) in_flight: usize,
    pub(super) candidates: usize,
    pub(super) campaigns: Arc<[Planned]>,
    pub(super) plays: Arc<[Play]>,
    pub(super) progress: Arc<Progress>,
    pub(super) record: Option<PathBuf>,
    pub(super) stop: CancellationToken,
}

/// What a lane saw.
pub(super) struct LaneResult {
    pub(super) tallies: Vec<Tally>,
    /// Tokens whose billable stream was acknowledged.
    pub(super) counted: Vec<Vec<u8>>,
    pub(super) unplaced: u64,
    /// Rows whose score request was refused.
    pub(super) failed: u64,
    pub(super) incomplete: u64,
    pub(super) repeated: u64,
    pub(super) retries: u64,
    pub(super) longest_outage: Duration,
    pub(super) score_micros: Histogram<u64>,
    pub(super) report_micros: Histogram<u64>,
    pub(super) findings: Findings,
}

impl LaneResult {
    pub(super) fn new(planned: &[Planned]) -> Self {
        let histogram = || Histogram::new_with_bounds(1, 60_000_000, 3).expect("the bounds are valid");
        LaneResult {
            tallies: planned.iter().map(|c| Tally::new(&c.name, c.price_micros)).collect(),
            counted: Vec::new(),
            unplaced: 0,
            failed: 0,
            incomplete: 0,
            repeated: 0,
            retries: 0,
            longest_outage: Duration::ZERO,
            score_micros: histogram(),
            report_micros: histogram(),
            findings: Findings::default(),
        }
    }

    pub(super) fn merge(&mut self, other: LaneResult) {
        for (mine, theirs) in self.tallies.iter_mut().zip(&other.tallies) {
            mine.merge(theirs);
        }
        self.counted.extend(other.counted);
        self.unplaced += other.unplaced;
        self.failed += other.failed;
        self.incomplete += other.incomplete;
        self.repeated += other.repeated;
        self.retries += other.retries;
        self.longest_outage = self.longest_outage.max(other.longest_outage);
        self.score_micros += other.score_micros;
        self.report_micros += other.report_micros;
        self.findings.add(other.findings);
    }
}

/// Shared by the rows in flight of one lane; one thread, so no locks.
struct Shared {
    lane: Lane,
    next: Cell<usize>,
    result: RefCell<LaneResult>,
    writer: Option<RefCell<Writer>>,
    clock: SystemClock,
    patience: Patience,
}

impl Lane {
    /// Plays this lane's rows. Blocks.
    pub(super) fn run(self, config: ClientConfig, patience: Patience) -> anyhow::Result<LaneResult> {
        let writer = self.record.as_deref().map(Writer::open).transpose()?.map(RefCell::new);
        let shared = Shared {
            next: Cell::new(self.index),
            result: RefCell::new(LaneResult::new(&self.campaigns)),
            writer,
            clock: SystemClock::default(),
            patience,
            lane: self,
        };
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(async {
            let link = Link::new(config, patience)?;
            let slots = join_all((0..shared.lane.in_flight).map(|_| slot(&shared, link.clone()))).await;
            slots.into_iter().collect::<anyhow::Result<()>>()
        })?;
        Ok(shared.result.into_inner())
    }
}

/// Plays one row after the other until none is left or somebody stops it.
async fn slot(shared: &Shared, mut link: Link) -> anyhow::Result<()> {
    let mut second = link.clone();
    loop {
        let row = shared.next.get();
        if row >= shared.lane.plays.len() || shared.lane.stop.is_cancelled() {
            break;
        }
        shared.next.set(row + shared.lane.lanes);
        let billed = play(shared, &mut link, &mut second, row).await?;
        shared.lane.progress.row_done(billed);
    }
    let mut result = shared.result.borrow_mut();
    result.retries += link.retries + second.retries;
    result.longest_outage = result.longest_outage.max(link.longest_outage).max(second.longest_outage);
    Ok(())
}

/// Scores one row and reports what became of its placement; whether it was billed.
async fn play(shared: &Shared, link: &mut Link, second: &mut Link, row: usize) -> anyhow::Result<bool> {
    let Some(placement) = score(shared, link, row).await? else { return Ok(false) };
    let token = placement.token.as_slice();
    let owner = (0..shared.lane.candidates)
        .map(|i| candidate(&shared.lane, row, i))
        .find(|c| shared.lane.campaigns[*c].name == placement.campaign);
    let Some(campaign) = owner else {
        let note = format!("row {row}: placed for `{}`, which was not asked for", placement.campaign);
        shared.result.borrow_mut().findings.wrong_answer(note);
        return Ok(false);
    };
    shared.result.borrow_mut().tallies[campaign].placed += 1;

    let stream = Event::stream(MIN_STREAM_MS);
    let (impression, billed) = tokio::join!(
        report(shared, link, campaign, &placement, Event::of(OutcomeKind::Impression)),
        report(shared, second, campaign, &placement, stream),
    );
    impression?;
    let billed = billed? == Fate::Counted;
    if shared.lane.plays[row].click {
        report(shared, link, campaign, &placement, Event::of(OutcomeKind::Save)).await?;
    }
    if billed {
        let again = {
            let mut result = shared.result.borrow_mut();
            result.counted.push(token.to_vec());
            (result.counted.len() as u64).is_multiple_of(REPEAT_EVERY)
        };
        if again {
            repeat(shared, link, &placement, stream).await;
        }
    }
    Ok(billed)
}

/// Reports an acknowledged event again: it must be known. Without an answer nothing is learned; the audit at the end
/// asks again.
async fn repeat(shared: &Shared, link: &mut Link, placement: &Placement, event: Event) {
    let Ok(reported) = link.report_all(&[&placement.token], event).await else { return };
    let mut result = shared.result.borrow_mut();
    result.repeated += 1;
    for answer in reported.iter().filter(|answer| !answer.open()) {
        result.findings.repeated(answer.status);
    }
}

fn candidate(lane: &Lane, row: usize, i: usize) -> usize {
    (row + i) % lane.campaigns.len()
}

/// Asks for one placement, again and again while the node is away.
///
/// # Errors
/// It did not come back within the patience: the replay ends.
async fn score(shared: &Shared, link: &mut Link, row: usize) -> anyhow::Result<Option<Placement>> {
    let lane = &shared.lane;
    let relevance = lane.plays[row].relevance;
    let request = ScoreRequest {
        listener_id: format!("listener-{}", row % LISTENERS),
        surface: SURFACE.into(),
        market: MARKET.into(),
        candidates: (0..lane.candidates)
            .map(|i| Candidate { track_id: lane.campaigns[candidate(lane, row, i)].track.clone(), relevance })
            .collect(),
        slots: 1,
        ..ScoreRequest::default()
    };
    let first = Instant::now();
    let mut backoff = FIRST_BACKOFF;
    loop {
        let started = Instant::now();
        match link.score(request.clone()).await {
            Ok(mut response) => {
                let mut result = shared.result.borrow_mut();
                result.score_micros.saturating_record(started.elapsed().as_micros() as u64);
                if response.coverage.is_some_and(|coverage| !coverage.missing.is_empty()) {
                    result.incomplete += 1;
                }
                if response.placements.is_empty() {
                    result.unplaced += 1;
                }
                return Ok(response.placements.pop());
            }
            Err(error) if error.transient() => {
                ensure!(first.elapsed() < shared.patience.outage, "the node did not come back: {error}");
                shared.result.borrow_mut().retries += 1;
                sleep(backoff).await;
                backoff = (backoff * 2).min(MAX_BACKOFF);
            }
            Err(error) => {
                let mut result = shared.result.borrow_mut();
                result.failed += 1;
                result.findings.wrong_answer(format!("row {row}: score failed: {error}"));
                return Ok(None);
            }
        }
    }
}

/// Reports one event until its fate is known, and counts it once the record has it.
async fn report(
    shared: &Shared,
    link: &mut Link,
    campaign: usize,
    placement: &Placement,
    event: Event,
) -> anyhow::Result<Fate> {
    if let Some(writer) = &shared.writer {
        writer.borrow_mut().sent(campaign, event.kind, &placement.token)?;
    }
    let started = Instant::now();
    let retries = link.retries;
    let fate = link.report(&placement.token, event).await;
    if let Some(writer) = &shared.writer {
        writer.borrow_mut().done(campaign, event.kind, fate, &placement.token)?;
    }
    let mut result = shared.result.borrow_mut();
    if link.retries == retries {
        result.report_micros.saturating_record(started.elapsed().as_micros() as u64);
    }
    result.tallies[campaign].add(event, fate);
    match fate {
        Fate::Wrong(status) => {
            result.findings.wrong_answer(format!(
                "{}: {event:?} answered {}",
                placement.campaign,
                status.as_str_name()
            ));
        }
        Fate::TooLate if shared.clock.now_ms() + EXPIRY_MARGIN_MS < placement.expires_ms => {
            result.findings.wrong_answer(format!("{}: {event:?} refused before its token expired", placement.campaign));
        }
        _ => {}
    }
    Ok(fate)
}
