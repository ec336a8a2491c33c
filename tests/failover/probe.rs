//! How long each shard was away: a score of one campaign and a report of one event, again and again, for each shard.

use std::{
    collections::VecDeque,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use andante::client::Reported;
use parking_lot::Mutex;
use tokio::{
    task::JoinSet,
    time::{MissedTickBehavior, interval},
};

use crate::{
    asker::Asker,
    slow,
    workload::{request, streamed},
};

const SCORE_EVERY: Duration = Duration::from_millis(10);
const REPORT_EVERY: Duration = Duration::from_millis(50);
/// A slow program is asked so much less often: three nodes, the load and the probes share two cores.
const SLOW: u32 = 8;
/// Tokens kept for reports; older ones are let go.
const TOKENS_KEPT: usize = 100;
/// Probes of one kind on their way per shard.
const IN_FLIGHT: usize = 64;

/// When one kind of probe of one shard succeeded, and when one failed.
#[derive(Debug, Default)]
pub(crate) struct Times {
    succeeded: Vec<Instant>,
    failed: Vec<(Instant, String)>,
}

impl Times {
    /// The longest time without a success from `from` to `to`.
    pub(crate) fn gap(&self, from: Instant, to: Instant) -> Duration {
        let inside = self.succeeded.iter().copied().filter(|at| (from..to).contains(at));
        let mut last = from;
        let mut gap = Duration::ZERO;
        for at in inside.chain([to]) {
            gap = gap.max(at - last);
            last = last.max(at);
        }
        gap
    }

    /// How many succeeded from `from` to `to`.
    pub(crate) fn succeeded(&self, from: Instant, to: Instant) -> usize {
        self.succeeded.iter().filter(|at| (from..to).contains(*at)).count()
    }

    /// What failed from `from` to `to`.
    pub(crate) fn failed(&self, from: Instant, to: Instant) -> Vec<String> {
        let inside = self.failed.iter().filter(|(at, _)| (from..to).contains(at));
        inside.map(|(at, why)| format!("after {:?}: {why}", *at - from)).collect()
    }
}

/// What is known of one shard.
#[derive(Debug, Default)]
pub(crate) struct ShardTimes {
    /// Scores.
    pub(crate) scores: Times,
    /// Reports.
    pub(crate) reports: Times,
    tokens: VecDeque<Vec<u8>>,
}

/// Probes of all shards.
pub(crate) struct Probes {
    /// By shard.
    pub(crate) shards: Vec<Arc<Mutex<ShardTimes>>>,
    stop: Arc<AtomicBool>,
    running: JoinSet<()>,
}

impl Probes {
    /// Probes each shard by one of its campaigns, without retries of the client's.
    pub(crate) fn start(asker: &Asker, campaign_of_shard: &[usize]) -> Self {
        let stop = Arc::<AtomicBool>::default();
        let mut running = JoinSet::new();
        let shards: Vec<_> = campaign_of_shard.iter().map(|_| Arc::<Mutex<ShardTimes>>::default()).collect();
        for (campaign, times) in campaign_of_shard.iter().copied().zip(&shards) {
            running.spawn(score(asker.clone(), campaign, times.clone(), stop.clone()));
            running.spawn(report(asker.clone(), times.clone(), stop.clone()));
        }
        Self { shards, stop, running }
    }

    /// Stops probing.
    pub(crate) async fn stop(mut self) -> Vec<Arc<Mutex<ShardTimes>>> {
        self.stop.store(true, Ordering::Relaxed);
        while let Some(ended) = self.running.join_next().await {
            ended.expect("a probe does not panic");
        }
        self.shards
    }
}

fn pace() -> u32 {
    if slow() { SLOW } else { 1 }
}

async fn score(asker: Asker, campaign: usize, times: Arc<Mutex<ShardTimes>>, stop: Arc<AtomicBool>) {
    let mut every = interval(SCORE_EVERY * pace());
    every.set_missed_tick_behavior(MissedTickBehavior::Skip);
    let mut calls = JoinSet::new();
    let mut turn = 0u64;
    while !stop.load(Ordering::Relaxed) {
        every.tick().await;
        while calls.len() >= IN_FLIGHT || calls.try_join_next().is_some() {
            if calls.len() >= IN_FLIGHT {
                calls.join_next().await;
            }
        }
        turn += 1;
        let (asker, times) = (asker.clone(), times.clone());
        calls.spawn(async move {
            let answer = asker.score(request(format!("probe-{turn}"), [campaign].into_iter(), 1)).await;
            let mut times = times.lock();
            match answer {
                Ok(reply) if reply.coverage.as_ref().is_some_and(|c| c.missing.is_empty()) => {
                    times.scores.succeeded.push(Instant::now());
                    times.tokens.extend(reply.placements.into_iter().map(|placement| placement.token));
                    let extra = times.tokens.len().saturating_sub(TOKENS_KEPT);
                    times.tokens.drain(..extra);
                }
                Ok(reply) => {
                    let why = format!("coverage {:?}", reply.coverage);
                    times.scores.failed.push((Instant::now(), why));
                }
                Err(why) => times.scores.failed.push((Instant::now(), why)),
            }
        });
    }
    while calls.join_next().await.is_some() {}
}

async fn report(asker: Asker, times: Arc<Mutex<ShardTimes>>, stop: Arc<AtomicBool>) {
    let mut every = interval(REPORT_EVERY * pace());
    every.set_missed_tick_behavior(MissedTickBehavior::Skip);
    let mut calls = JoinSet::new();
    while !stop.load(Ordering::Relaxed) {
        every.tick().await;
        while calls.len() >= IN_FLIGHT || calls.try_join_next().is_some() {
            if calls.len() >= IN_FLIGHT {
                calls.join_next().await;
            }
        }
        let Some(token) = times.lock().tokens.pop_back() else { continue };
        let (asker, times) = (asker.clone(), times.clone());
        calls.spawn(async move {
            let fates = asker.report(vec![streamed(token)]).await;
            let mut times = times.lock();
            match fates {
                Ok(fates) if fates.iter().all(Reported::acknowledged) => times.reports.succeeded.push(Instant::now()),
                Ok(fates) => times.reports.failed.push((Instant::now(), format!("{:?}", fates[0].status))),
                Err(why) => times.reports.failed.push((Instant::now(), why)),
            }
        });
    }
    while calls.join_next().await.is_some() {}
}
