//! Reports what became of the placements: in batches, each token's events in order, until their fate is known.

use std::{
    cmp::Reverse,
    collections::{BinaryHeap, HashMap, VecDeque},
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use crate::{
    client::{CallError, Reported as Answer},
    demo::{Progress, outcomes::Step},
    v1::{OutcomeEvent, OutcomeStatus},
    verify::{self, Event, Fate, Findings, Link, Tally},
};
use tokio::{
    sync::mpsc,
    task::JoinSet,
    time::{Instant, interval},
};

/// Time between two batches: small beside what a listener does, long enough to fill a batch.
const PERIOD: Duration = Duration::from_millis(10);
/// Events per Report; below the API's limit, so that a batch is answered quickly.
const BATCH: usize = 500;
/// Reports under way.
const REPORTS: usize = 8;
/// Placements that wait to be taken over; beyond it the player waits.
pub(super) const QUEUE: usize = 16_384;
/// A billed token is reported again after this.
const AGAIN_MS: u64 = 100;
/// Every so many billed tokens, one is reported again: it must be known.
const REPEAT_EVERY: u64 = 50;

/// A placement with what becomes of it.
#[derive(Debug)]
pub(super) struct Placed {
    pub(super) campaign: usize,
    pub(super) token: Vec<u8>,
    pub(super) steps: VecDeque<Step>,
}

/// What the reporter saw.
pub(super) struct Reported {
    pub(super) tallies: Vec<Tally>,
    /// Tokens whose billable stream was acknowledged.
    pub(super) counted: Vec<Vec<u8>>,
    /// Events that were acknowledged.
    pub(super) events: u64,
    /// Events that were reported again for want of an answer.
    pub(super) retries: u64,
    /// Acknowledged streams that were reported again on purpose.
    pub(super) repeated: u64,
    pub(super) findings: Findings,
}

/// One token on its way.
struct Item {
    campaign: usize,
    token: Vec<u8>,
    event: Event,
    rest: VecDeque<Step>,
    /// Reported again on purpose after it was acknowledged.
    repeat: bool,
}

type Batch = (Vec<Item>, Result<Vec<Answer>, CallError>);

struct Reporter {
    link: Link,
    progress: Arc<Progress>,
    due: BinaryHeap<Reverse<(Instant, u64)>>,
    items: HashMap<u64, Item>,
    next_id: u64,
    reported: Reported,
}

/// Reports until the queue is closed and every fate is known.
pub(super) async fn run(
    link: Link,
    mut queue: mpsc::Receiver<Placed>,
    tallies: Vec<Tally>,
    progress: Arc<Progress>,
) -> Reported {
    let reported =
        Reported { tallies, counted: Vec::new(), events: 0, retries: 0, repeated: 0, findings: Findings::default() };
    let mut reporter = Reporter { link, progress, due: BinaryHeap::new(), items: HashMap::new(), next_id: 0, reported };
    let mut under_way: JoinSet<Batch> = JoinSet::new();
    let mut period = interval(PERIOD);
    let mut open = true;
    while open || !reporter.items.is_empty() || !under_way.is_empty() {
        period.tick().await;
        loop {
            match queue.try_recv() {
                Ok(placed) => reporter.begin(placed),
                Err(mpsc::error::TryRecvError::Empty) => break,
                Err(mpsc::error::TryRecvError::Disconnected) => {
                    open = false;
                    break;
                }
            }
        }
        while under_way.len() < REPORTS {
            let batch = reporter.take_due(Instant::now());
            if batch.is_empty() {
                break;
            }
            under_way.spawn(report(reporter.link.clone(), batch));
        }
        while let Some(done) = under_way.try_join_next() {
            let (items, answer) = done.expect("a report does not panic");
            reporter.answered(items, answer);
        }
    }
    reporter.reported
}

/// One Report.
async fn report(mut link: Link, items: Vec<Item>) -> Batch {
    let events = items
        .iter()
        .map(|item| OutcomeEvent {
            token: item.token.clone(),
            kind: item.event.kind as i32,
            stream_ms: item.event.stream_ms,
        })
        .collect();
    let answer = link.report_events(events).await;
    (items, answer)
}

impl Reporter {
    fn begin(&mut self, placed: Placed) {
        let Placed { campaign, token, mut steps } = placed;
        self.reported.tallies[campaign].placed += 1;
        let Some(Step { after_ms, event }) = steps.pop_front() else { return };
        let item = Item { campaign, token, event, rest: steps, repeat: false };
        self.schedule(item, after_ms);
    }

    fn schedule(&mut self, item: Item, after_ms: u64) {
        let id = self.next_id;
        self.next_id += 1;
        self.due.push(Reverse((Instant::now() + Duration::from_millis(after_ms), id)));
        self.items.insert(id, item);
    }

    /// Up to a batch of what is due, oldest first.
    fn take_due(&mut self, now: Instant) -> Vec<Item> {
        let mut batch = Vec::new();
        while batch.len() < BATCH
            && let Some(Reverse((at, id))) = self.due.peek().copied()
            && at <= now
        {
            self.due.pop();
            batch.extend(self.items.remove(&id));
        }
        batch
    }

    fn answered(&mut self, items: Vec<Item>, answer: Result<Vec<Answer>, CallError>) {
        match answer {
            Ok(answers) => {
                for (item, answer) in items.into_iter().zip(answers) {
                    self.judge(item, &answer);
                }
            }
            Err(error) => self.reported.findings.wrong_answer(format!("a Report was refused: {error}")),
        }
    }

    fn judge(&mut self, item: Item, answer: &Answer) {
        self.reported.retries += u64::from(answer.tries.saturating_sub(1));
        if !item.repeat {
            let fate = verify::fate(item.event, answer);
            self.done(item, fate);
        } else if !answer.open() {
            // Without an answer nothing is learned; the audit at the end asks again.
            self.reported.repeated += 1;
            self.reported.findings.repeated(answer.status);
        }
    }

    fn done(&mut self, mut item: Item, fate: Fate) {
        let tally = &mut self.reported.tallies[item.campaign];
        tally.add(item.event, fate);
        match fate {
            Fate::Counted => self.reported.events += 1,
            Fate::Wrong(status) => {
                let note = format!("{}: {:?} answered {}", tally.name, item.event, status.as_str_name());
                self.reported.findings.wrong_answer(note);
            }
            Fate::TooLate | Fate::NotApplied | Fate::Unknown => {}
        }
        let billed = fate == Fate::Counted && item.event.expected() == OutcomeStatus::Billed;
        if billed {
            self.progress.billed_micros.fetch_add(tally.price_micros, Ordering::Relaxed);
            self.reported.counted.push(item.token.clone());
        }
        if let Some(Step { after_ms, event }) = item.rest.pop_front() {
            self.schedule(Item { event, ..item }, after_ms);
        } else if billed && (self.reported.counted.len() as u64).is_multiple_of(REPEAT_EVERY) {
            self.schedule(Item { repeat: true, ..item }, AGAIN_MS);
        }
    }
}
