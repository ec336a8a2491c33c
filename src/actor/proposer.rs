//! Batches a shard's outcomes into log entries.
//!
//! While one entry is on its way to disk the next gathers whatever arrives: under load one sync carries hundreds of
//! outcomes, without load an outcome waits for nobody.

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
    time::{Duration, Instant},
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
/// Entries on their way at once: enough to fill the log's queue while one syncs.
const ENTRIES_IN_FLIGHT: usize = 3;
/// How long the fate of an entry is waited for.
const FATE_TIMEOUT: Duration = Duration::from_secs(10);

/// What became of a job.
#[derive(Debug, Clone)]
pub enum Fate {
    /// Applied; one status per outcome, in order.
    Applied(Vec<OutcomeStatus>),
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
    while open || !in_flight.is_empty() {
        tokio::select! {
            count = queue.recv_many(&mut jobs, BATCH_JOBS), if open && in_flight.len() < ENTRIES_IN_FLIGHT => {
                open = count > 0;
                let now = Instant::now();
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
            Some(()) = in_flight.next(), if !in_flight.is_empty() => {}
        }
    }
}

async fn propose(host: &Host, shard: ShardId, metrics: &Metrics, mut jobs: Vec<Job>) {
    let outcomes = jobs.iter_mut().flat_map(|job| job.outcomes.iter().cloned()).collect();
    let command = proto::Command { kind: Some(proto::command::Kind::Settle(proto::Settle { outcomes })) };
    let start = Instant::now();
    let result = host.propose(shard, Bytes::from(command.encode_to_vec()), Instant::now() + FATE_TIMEOUT).await;
    metrics.propose.observe_micros(start.elapsed().as_micros() as u64);
    match result {
        Ok(applied) => {
            let reply = proto::Reply::decode(applied.reply).expect("the book's own reply decodes");
            let mut statuses = reply.outcomes.iter().map(|status| {
                OutcomeStatus::try_from(*status).expect("the book answers with statuses of its own version")
            });
            for job in jobs {
                let own: Vec<_> = statuses.by_ref().take(job.outcomes.len()).collect();
                assert_eq!(own.len(), job.outcomes.len(), "the book answers every outcome");
                drop(job.reply.send(Fate::Applied(own)));
            }
        }
        Err(error) => {
            let fate = match error {
                ProposeError::Unknown(_) => Fate::Unknown,
                error => Fate::Unavailable(error.to_string()),
            };
            for job in jobs {
                drop(job.reply.send(fate.clone()));
            }
        }
    }
}
