//! Batches a shard's outcomes into log entries.
//!
//! While one entry is on its way the next gathers whatever arrives: under load one entry carries hundreds of outcomes,
//! without load an outcome waits for nobody. Batches are made on the node that leads the shard (the router passes
//! outcomes on to it); if another one leads by then, they go to wherever the leader is. Settling is idempotent, so a
//! batch of unknown fate is simply proposed again until the deadlines of its jobs.

use std::sync::Arc;

use andante_cluster::{
    ShardId,
    host::{Host, ProposeError},
};
use bytes::Bytes;
use futures::{StreamExt, stream::FuturesUnordered};
use prost::Message;
use tokio::{
    sync::{mpsc, oneshot},
    time::{Duration, Instant, sleep_until},
};

use crate::{
    campaign::proto::{self, OutcomeStatus},
    metrics::Metrics,
};

/// Jobs waiting per shard; more are refused at once.
const QUEUE_JOBS: usize = 4_096;
/// Jobs taken into one entry.
const BATCH_JOBS: usize = 1_024;
/// Outcomes in one entry; bounds how long one apply takes.
const BATCH_OUTCOMES: usize = 4_096;
/// Entries on their way at once. An entry costs every replica the same whatever it carries, and most of a settle's cost
/// is its share of that: more at once means smaller ones, and measured up to a quarter fewer settles. The log's sync is
/// shared by all shards, so that the disk is not idle meanwhile.
const ENTRIES_IN_FLIGHT: usize = 1;
/// When an entry has been on its way this long, something is wrong with its way, and another one goes: its own may be
/// better by now.
const STUCK_AFTER: Duration = Duration::from_millis(200);
/// Entries on their way at once when some are stuck.
const STUCK_ENTRIES: usize = 4;
/// How long one try waits for its fate: long enough for an election, short enough for a second try.
const TRY_TIMEOUT: Duration = Duration::from_secs(10);
/// Pauses between tries of unknown fate.
const PAUSE_FIRST: Duration = Duration::from_millis(5);
const PAUSE_MAX: Duration = Duration::from_millis(200);
/// Answers go out so long before the deadline of the job: what is known must not arrive too late to be told.
const ANSWER_RESERVE: Duration = Duration::from_millis(1);

/// What became of a job.
#[derive(Debug, Clone)]
pub enum Fate {
    /// Applied; one status per outcome, in order.
    Applied {
        /// The statuses.
        statuses: Vec<OutcomeStatus>,
        /// There was an earlier try whose fate nobody knows: a DUPLICATE may be its doing.
        retried: bool,
    },
    /// Surely not applied, with the reason.
    Unavailable(String),
    /// May or may not have been applied.
    Unknown,
}

struct Job {
    outcomes: Vec<proto::Outcome>,
    deadline: Instant,
    reply: oneshot::Sender<Fate>,
}

/// The entrance to one shard's log for outcomes. Cheap to clone.
#[derive(Clone)]
pub struct Proposer {
    queue: mpsc::Sender<Job>,
}

impl Proposer {
    /// Starts the batching task; it ends, after finishing what it was given, when all handles are gone.
    pub fn start(host: Arc<Host>, shard: ShardId, metrics: Arc<Metrics>) -> (Self, tokio::task::JoinHandle<()>) {
        let (queue, jobs) = mpsc::channel(QUEUE_JOBS);
        let task = tokio::spawn(run(host, shard, metrics, jobs));
        (Self { queue }, task)
    }

    /// Applies outcomes of authenticated tokens, in order. At the deadline the fate of what is on its way is unknown.
    pub async fn settle(&self, outcomes: Vec<proto::Outcome>, deadline: Instant) -> Fate {
        let (reply, fate) = oneshot::channel();
        match self.queue.try_send(Job { outcomes, deadline, reply }) {
            Ok(()) => {}
            Err(mpsc::error::TrySendError::Full(_)) => return Fate::Unavailable("too many outcomes queued".into()),
            Err(mpsc::error::TrySendError::Closed(_)) => return Fate::Unavailable("the node is stopping".into()),
        }
        match tokio::time::timeout_at(deadline, fate).await {
            Ok(Ok(fate)) => fate,
            Ok(Err(_)) | Err(_) => Fate::Unknown,
        }
    }
}

async fn run(host: Arc<Host>, shard: ShardId, metrics: Arc<Metrics>, mut queue: mpsc::Receiver<Job>) {
    let mut in_flight = FuturesUnordered::new();
    let mut jobs = Vec::new();
    let mut open = true;
    // When the entries on their way count as stuck.
    let mut stuck_at = Instant::now();
    let mut room = ENTRIES_IN_FLIGHT;
    while open || !in_flight.is_empty() {
        tokio::select! {
            count = queue.recv_many(&mut jobs, BATCH_JOBS), if open && in_flight.len() < room => {
                open = count > 0;
                let now = Instant::now();
                stuck_at = now + STUCK_AFTER;
                let mut batch = Vec::new();
                let mut size = 0;
                for job in jobs.drain(..) {
                    if job.deadline <= now {
                        drop(job.reply.send(Fate::Unavailable("its deadline passed while it waited".into())));
                        continue;
                    }
                    if size + job.outcomes.len() > BATCH_OUTCOMES && !batch.is_empty() {
                        in_flight.push(propose(&host, shard, &metrics, std::mem::take(&mut batch)));
                        size = 0;
                    }
                    size += job.outcomes.len();
                    batch.push(job);
                }
                if !batch.is_empty() {
                    in_flight.push(propose(&host, shard, &metrics, batch));
                }
            }
            Some(()) = in_flight.next(), if !in_flight.is_empty() => {
                if in_flight.is_empty() {
                    room = ENTRIES_IN_FLIGHT;
                }
            }
            () = sleep_until(stuck_at), if open && in_flight.len() >= room && room < STUCK_ENTRIES => {
                room = in_flight.len() + 1;
            }
        }
    }
}

/// Proposes a batch until its fate is known or nobody waits for it any more.
async fn propose(host: &Host, shard: ShardId, metrics: &Metrics, mut jobs: Vec<Job>) {
    let mut retried = false;
    let mut pause = PAUSE_FIRST;
    loop {
        let now = Instant::now();
        let last = jobs.iter().map(|job| job.deadline).max().unwrap_or(now);
        let until = last.checked_sub(ANSWER_RESERVE).unwrap_or(last).min(now + TRY_TIMEOUT);
        let outcomes = jobs.iter().flat_map(|job| job.outcomes.iter().cloned()).collect();
        let command = proto::Command { kind: Some(proto::command::Kind::Settle(proto::Settle { outcomes })) };
        let result = Box::pin(host.submit(shard, Bytes::from(command.encode_to_vec()), until)).await;
        metrics.propose.observe_micros(now.elapsed().as_micros() as u64);
        match result {
            Ok(applied) => return answer(shard, jobs, &applied.reply, retried),
            Err(ProposeError::Unknown(why)) => {
                tracing::debug!(%shard, why, "a batch of outcomes has an unknown fate; it is tried again");
                retried = true;
            }
            Err(error) => {
                let fate = if retried { Fate::Unknown } else { Fate::Unavailable(error.to_string()) };
                return tell(jobs, &fate);
            }
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(PAUSE_MAX);
        let now = Instant::now() + ANSWER_RESERVE;
        let (open, over) = jobs.into_iter().partition(|job| job.deadline > now);
        tell(over, &Fate::Unknown);
        jobs = open;
        if jobs.is_empty() {
            return;
        }
    }
}

fn tell(jobs: Vec<Job>, fate: &Fate) {
    for job in jobs {
        drop(job.reply.send(fate.clone()));
    }
}

/// A status that this build can tell. One of another build, or none: it was applied, but nobody here knows how.
pub(crate) fn known_status(status: i32) -> Option<OutcomeStatus> {
    OutcomeStatus::try_from(status).ok().filter(|status| *status != OutcomeStatus::Unspecified)
}

/// Gives each job its part of the book's reply.
fn answer(shard: ShardId, jobs: Vec<Job>, reply: &Bytes, retried: bool) {
    let count: usize = jobs.iter().map(|job| job.outcomes.len()).sum();
    let statuses = proto::Reply::decode(&reply[..])
        .ok()
        .and_then(|reply| reply.outcomes.into_iter().map(known_status).collect::<Option<Vec<_>>>());
    let Some(mut statuses) = statuses.filter(|statuses| statuses.len() == count).map(Vec::into_iter) else {
        // From a leader of another build: it was applied, but nobody knows how.
        tracing::error!(%shard, "the reply to a batch of outcomes makes no sense");
        return tell(jobs, &Fate::Unknown);
    };
    for job in jobs {
        let statuses = statuses.by_ref().take(job.outcomes.len()).collect();
        drop(job.reply.send(Fate::Applied { statuses, retried }));
    }
}
