//! Plays the requests of the day when they are due, and passes the placements on.

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use futures::future::join_all;
use hdrhistogram::Histogram;
use rand::{SeedableRng, rngs::StdRng};
use tokio::{
    sync::mpsc,
    time::{Instant, sleep, sleep_until},
};

use crate::{
    demo::{
        Progress, outcomes,
        reporter::Placed,
        traffic::{Day, Request, SLOTS, track_id},
    },
    v1::{Candidate, ScoreRequest},
    verify::{Findings, Link},
};

/// Requests in flight at most: what is due later waits here instead of overloading a node that has just come back.
const WORKERS: usize = 48;
/// Wait before a request is repeated while the node is away.
const AGAIN: Duration = Duration::from_millis(20);

/// How long one request took, and when.
#[derive(Debug, Clone, Copy)]
pub(super) struct Sample {
    /// Share of the day.
    pub(super) at: f64,
    pub(super) micros: u32,
}

/// What the player saw.
pub(super) struct Played {
    pub(super) requests: u64,
    /// Requests with at least one placement.
    pub(super) requests_placed: u64,
    pub(super) placements: u64,
    /// Requests that never got a good answer.
    pub(super) errors: u64,
    /// Requests that were repeated while the node was away.
    pub(super) waited: u64,
    /// Replies from which a shard was missing.
    pub(super) incomplete: u64,
    pub(super) latency: Histogram<u64>,
    pub(super) samples: Vec<Sample>,
    pub(super) findings: Findings,
}

impl Played {
    fn new() -> Self {
        Played {
            requests: 0,
            requests_placed: 0,
            placements: 0,
            errors: 0,
            waited: 0,
            incomplete: 0,
            latency: Histogram::new_with_bounds(1, 60_000_000, 3).expect("the bounds are valid"),
            samples: Vec::new(),
            findings: Findings::default(),
        }
    }

    fn merge(&mut self, other: Played) {
        self.requests += other.requests;
        self.requests_placed += other.requests_placed;
        self.placements += other.placements;
        self.errors += other.errors;
        self.waited += other.waited;
        self.incomplete += other.incomplete;
        self.latency += other.latency;
        self.samples.extend(other.samples);
        self.findings.add(other.findings);
    }
}

/// What all workers share.
pub(super) struct Player {
    pub(super) day: Arc<Day>,
    /// Position of a campaign by its name.
    pub(super) campaigns: HashMap<String, usize>,
    pub(super) seed: u64,
    pub(super) start: Instant,
    pub(super) length: Duration,
    pub(super) patience: Duration,
    pub(super) placed: mpsc::Sender<Placed>,
    pub(super) progress: Arc<Progress>,
}

impl Player {
    /// Plays the whole day.
    pub(super) async fn play(self, link: &Link) -> Played {
        let next = AtomicUsize::new(0);
        let workers = (0..WORKERS).map(|_| self.worker(&next, link.clone()));
        let mut played = Played::new();
        for part in join_all(workers).await {
            played.merge(part);
        }
        played
    }

    async fn worker(&self, next: &AtomicUsize, mut link: Link) -> Played {
        let mut played = Played::new();
        loop {
            let index = next.fetch_add(1, Ordering::Relaxed);
            let Some(request) = self.day.requests.get(index) else { return played };
            sleep_until(self.start + self.length.mul_f64(request.at)).await;
            self.ask(index, request, &mut link, &mut played).await;
            self.progress.requests.fetch_add(1, Ordering::Relaxed);
        }
    }

    async fn ask(&self, index: usize, request: &Request, link: &mut Link, played: &mut Played) {
        let message = ScoreRequest {
            listener_id: format!("listener-{}", request.listener),
            surface: request.surface.into(),
            market: request.market.into(),
            candidates: request
                .candidates
                .iter()
                .map(|(track, relevance)| Candidate { track_id: track_id(*track), relevance: f64::from(*relevance) })
                .collect(),
            slots: SLOTS,
            ..ScoreRequest::default()
        };
        played.requests += 1;
        let first = Instant::now();
        let mut tries = 0;
        let response = loop {
            let started = Instant::now();
            match link.score(message.clone()).await {
                Ok(response) => {
                    let micros = started.elapsed().as_micros() as u64;
                    played.latency.saturating_record(micros);
                    let at = started.duration_since(self.start).div_duration_f64(self.length);
                    played.samples.push(Sample { at, micros: u32::try_from(micros).unwrap_or(u32::MAX) });
                    break response;
                }
                Err(error) if error.transient() && first.elapsed() < self.patience => {
                    tries += 1;
                    sleep(AGAIN).await;
                }
                Err(error) => {
                    played.errors += 1;
                    played.findings.note(format!("request {index}: {error}"));
                    return;
                }
            }
        };
        played.waited += u64::from(tries > 0);
        played.incomplete += u64::from(response.coverage.is_some_and(|coverage| !coverage.missing.is_empty()));
        if response.placements.len() > SLOTS as usize {
            played.findings.wrong_answer(format!("request {index}: more placements than slots"));
        }
        played.requests_placed += u64::from(!response.placements.is_empty());
        // What becomes of it depends on the seed and the request alone, whatever the node answers elsewhere.
        let mut rng = StdRng::seed_from_u64(self.seed ^ (index as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15));
        for placement in response.placements {
            let Some(campaign) = self.campaigns.get(&placement.campaign).copied() else {
                played.findings.wrong_answer(format!("request {index}: unknown campaign `{}`", placement.campaign));
                continue;
            };
            played.placements += 1;
            let placed = Placed { campaign, token: placement.token, steps: outcomes::of_placement(&mut rng) };
            // Only closed when the reporter is gone, and then the demo fails anyway.
            let _closed = self.placed.send(placed).await;
        }
    }
}
