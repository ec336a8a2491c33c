//! The main job on an embedded default: a compressed day of listening against a cluster of three nodes, through the real
//! gRPC API, with a crashed actor and a crashed node on the way, and a verdict. With one node, that one is restarted.
//!
//! [`traffic`] makes the day from a seed, [`player`] plays its requests when they are due, [`reporter`] reports what
//! became of the placements, [`stage`] runs the nodes. Flights last as long as the day, so what is not delivered by
//! its end never will be: money that is set aside for tokens nobody uses must come back in time. It does, since each
//! placement ends settled or released within a second, a crashed actor's and a stopped node's unissued tokens are
//! given back at once, and an allowance closes as soon as its last token has ended. What a crashed node had not handed
//! out comes back later than the day ends: it is told as stranded, and does not count against the plan.

mod outcomes;
mod player;
mod plot;
mod profile;
mod report;
mod reporter;
mod stage;
mod traffic;
mod verdict;

use std::{
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use andante_cluster::env::Env;
use anyhow::{Context, ensure};
use tokio::{
    sync::mpsc,
    time::{Instant, interval, sleep_until},
};

pub use verdict::{Delivery, ON_PLAN_SHARE, Verdict};

use crate::{
    client::ClientConfig,
    demo::{
        player::{Played, Player},
        plot::{Mark, Spend},
        reporter::Reported,
        stage::Stage,
        traffic::Day,
    },
    v1::CampaignSpec,
    verify::{self, Link, Patience, Tally},
};

/// When the actor crashes, as a share of the day.
const CRASH_AT: f64 = 0.35;
/// When a node is stopped.
const STOP_AT: f64 = 0.55;
/// When a node that was stopped abruptly is brought back.
const BACK_AT: f64 = 0.7;
/// From the import to the start of the flights, for each node: enough to import on a slow machine.
const LEAD_MS: u64 = 2_000;
/// Time between two points of the spend curve.
const SPEND_PERIOD: Duration = Duration::from_millis(50);

/// What to play.
#[derive(Debug, Clone, Copy)]
pub struct Options {
    /// Length of the day.
    pub seconds: u64,
    /// Requests per second, on the mean of the day.
    pub requests_per_s: u64,
    /// Nodes.
    pub nodes: usize,
    /// Makes the day.
    pub seed: u64,
}

/// Shown while it runs.
#[derive(Debug, Default)]
pub struct Progress {
    /// Requests answered.
    pub requests: AtomicU64,
    /// Requests of the day.
    pub requests_total: AtomicU64,
    /// Micros billed.
    pub billed_micros: AtomicU64,
    /// Micros planned.
    pub planned_micros: AtomicU64,
    phase: parking_lot::Mutex<String>,
}

impl Progress {
    /// What is going on, in words.
    pub fn phase(&self) -> String {
        self.phase.lock().clone()
    }

    fn enter(&self, what: impl Into<String>) {
        *self.phase.lock() = what.into();
    }
}

/// How it ended.
#[derive(Debug)]
pub struct Outcome {
    /// The figures.
    pub verdict: Verdict,
    /// The report.
    pub html: String,
}

/// Plays the day against nodes whose data lies in `dir`, each with an environment of its own.
pub async fn run(
    options: Options,
    env: impl Fn() -> Env,
    dir: &Path,
    progress: Arc<Progress>,
) -> anyhow::Result<Outcome> {
    progress.enter("making the day");
    let Options { seconds, requests_per_s, nodes, seed } = options;
    let mut day = tokio::task::spawn_blocking(move || Day::new(seed, (seconds * requests_per_s) as usize)).await?;
    let planned_micros = day.campaigns.iter().map(|campaign| campaign.spec.budget_micros).sum();
    progress.requests_total.store(day.requests.len() as u64, Ordering::Relaxed);
    progress.planned_micros.store(planned_micros, Ordering::Relaxed);

    progress.enter(if nodes == 1 { "starting the node" } else { "forming the cluster" });
    let mut stage = Stage::start(env, dir, nodes).await?;
    let patience = Patience::default();
    let mut link = Link::new(ClientConfig::new(stage.addresses()), patience)?;
    progress.enter(format!("importing {} campaigns", day.campaigns.len()));
    let length = Duration::from_secs(seconds);
    let start = import(&mut link, &mut day, length, nodes as u64 * LEAD_MS).await?;

    let day = Arc::new(day);
    let tallies = day.campaigns.iter().map(|c| Tally::new(&c.spec.name, c.spec.price_micros)).collect();
    let (placed, queue) = mpsc::channel(reporter::QUEUE);
    let reporting = tokio::spawn(reporter::run(link.clone(), queue, tallies, progress.clone()));
    let player = Player {
        day: day.clone(),
        campaigns: day.campaigns.iter().enumerate().map(|(i, c)| (c.spec.name.clone(), i)).collect(),
        seed,
        start,
        length,
        patience: patience.outage,
        placed,
        progress: progress.clone(),
    };
    let sampling = tokio::spawn(sample_spend(start, length, progress.clone()));
    progress.enter("playing");
    let mut director_link = link.clone();
    let (played, events) =
        tokio::join!(player.play(&link), direct(&mut stage, &mut director_link, &day, start, length, &progress));
    let events = events?;
    progress.enter("waiting for the last outcomes");
    let reported = reporting.await.context("the reporter panicked")?;
    let spend = sampling.await?;

    progress.enter("comparing with the ledgers");
    let samples = played.samples.clone();
    let verdict = judge(&mut link, &day, played, reported, &events, nodes).await?;
    stage.stop().await?;
    let marks = [
        Mark { at: CRASH_AT, what: format!("actor of {} crashed", events.crashed) },
        Mark { at: STOP_AT, what: events.stopped.clone() },
    ];
    let html = report::render(&report::Material {
        verdict: &verdict,
        seconds,
        spend: &spend,
        samples: &samples,
        marks: &marks,
    })?;
    Ok(Outcome { verdict, html })
}

/// Imports the campaigns with flights that last as long as the day; when it starts.
async fn import(link: &mut Link, day: &mut Day, length: Duration, lead_ms: u64) -> anyhow::Result<Instant> {
    let start_ms = link.server_info().await?.now_ms + lead_ms;
    for campaign in &mut day.campaigns {
        campaign.spec.start_ms = start_ms;
        campaign.spec.end_ms = start_ms + length.as_millis() as u64;
    }
    let specs: Vec<CampaignSpec> = day.campaigns.iter().map(|campaign| campaign.spec.clone()).collect();
    let import = link.import(&specs).await?;
    ensure!(import.failed == 0, "campaigns were refused: {:?}", import.failures.first());
    let now_ms = link.server_info().await?.now_ms;
    ensure!(now_ms <= start_ms, "importing took {} ms longer than the flights allow", now_ms - start_ms);
    Ok(Instant::now() + Duration::from_millis(start_ms - now_ms))
}

/// Money billed, again and again while the day lasts.
async fn sample_spend(start: Instant, length: Duration, progress: Arc<Progress>) -> Vec<Spend> {
    let mut period = interval(SPEND_PERIOD);
    let mut spend = Vec::new();
    sleep_until(start).await;
    while start.elapsed() <= length + SPEND_PERIOD {
        period.tick().await;
        let at = start.elapsed().div_duration_f64(length);
        spend.push(Spend { at, micros: progress.billed_micros.load(Ordering::Relaxed) });
    }
    spend
}

/// What was done to the nodes.
struct Events {
    crashed: String,
    billed_before_crash: u64,
    /// What happened to a node, in words.
    stopped: String,
    /// Shards that lost their leader abruptly.
    shards_left: usize,
    /// How long the node was away, or took to catch up when it was brought back.
    restart: Duration,
}

/// Crashes an actor, then a node that is brought back later; an only node is restarted.
async fn direct(
    stage: &mut Stage,
    link: &mut Link,
    day: &Day,
    start: Instant,
    length: Duration,
    progress: &Progress,
) -> anyhow::Result<Events> {
    sleep_until(start + length.mul_f64(CRASH_AT)).await;
    let busiest = day.campaigns.iter().max_by_key(|c| c.spec.budget_micros / c.spec.price_micros);
    let crashed = busiest.map(|campaign| campaign.spec.name.clone()).context("a day without campaigns")?;
    ensure!(stage.crash_actor(&crashed).await, "{crashed} has no actor to crash");
    let billed_before_crash = link.campaign(&crashed).await?.ledger.map_or(0, |ledger| ledger.billed);
    progress.enter(format!("playing; the actor of {crashed} crashed"));

    sleep_until(start + length.mul_f64(STOP_AT)).await;
    if stage.addresses().len() == 1 {
        progress.enter("restarting the node");
        let restart = stage.restart().await?;
        let stopped = format!("node restarted ({} ms)", restart.as_millis());
        progress.enter(format!("playing; {stopped}"));
        return Ok(Events { crashed, billed_before_crash, stopped, shards_left: 0, restart });
    }
    let (victim, shards_left) = stage.leading_most();
    let stopped = format!("node {} crashed, the leader of {shards_left} shards", victim + 1);
    progress.enter(format!("playing; {stopped}"));
    stage.halt(victim).await?;
    sleep_until(start + length.mul_f64(BACK_AT)).await;
    let restart = stage.bring_back(victim).await?;
    progress.enter(format!("playing; node {} is back", victim + 1));
    Ok(Events { crashed, billed_before_crash, stopped, shards_left, restart })
}

/// Compares what was acknowledged with the ledgers.
async fn judge(
    link: &mut Link,
    day: &Day,
    played: Played,
    reported: Reported,
    events: &Events,
    nodes: usize,
) -> anyhow::Result<Verdict> {
    let mut findings = played.findings;
    findings.add(reported.findings);
    let audit = verify::repeat_tokens(link, &reported.counted).await?;
    findings.add(audit.findings);
    let mut deliveries = Vec::new();
    let (mut billed_after_crash, mut stranded_micros) = (0, 0);
    for (planned, tally) in day.campaigns.iter().zip(&reported.tallies) {
        let campaign = link.campaign(&tally.name).await?;
        findings.add(tally.compare(&campaign));
        let ledger = campaign.ledger.unwrap_or_default();
        if tally.name == events.crashed {
            billed_after_crash = ledger.billed.saturating_sub(events.billed_before_crash);
        }
        stranded_micros += ledger.open_micros;
        deliveries.push(Delivery {
            campaign: tally.name.clone(),
            planned_micros: planned.spec.budget_micros,
            delivered_micros: ledger.settled_micros,
        });
    }
    let planned_micros: u64 = deliveries.iter().map(|d| d.planned_micros).sum();
    let delivered_micros: u64 = deliveries.iter().map(|d| d.delivered_micros).sum();
    let delivered_share = delivered_micros as f64 / planned_micros.max(1) as f64;
    let possible_share = delivered_micros as f64 / planned_micros.saturating_sub(stranded_micros).max(1) as f64;
    let mut shares: Vec<f64> = deliveries.iter().map(Delivery::share).collect();
    shares.sort_by(f64::total_cmp);
    let sum = |f: fn(&Tally) -> u64| reported.tallies.iter().map(f).sum::<u64>();
    Ok(Verdict {
        ok: findings.clean() && played.errors == 0 && sum(|t| t.billed.acked) > 0,
        requests: played.requests,
        errors: played.errors,
        waited: played.waited,
        incomplete: played.incomplete,
        requests_placed: played.requests_placed,
        placements: played.placements,
        billed: sum(|t| t.billed.acked),
        released: sum(|t| t.released.acked),
        events: reported.events,
        event_retries: reported.retries,
        repeated: reported.repeated + audit.checked,
        too_late: sum(|t| t.too_late),
        score_p50_us: played.latency.value_at_quantile(0.5),
        score_p99_us: played.latency.value_at_quantile(0.99),
        campaigns: deliveries.len() as u64,
        planned_micros,
        delivered_micros,
        delivered_share,
        stranded_micros,
        on_plan: (1.0 - possible_share).abs() <= ON_PLAN_SHARE,
        delivered_share_min: verdict::quantile(&shares, 0.0),
        delivered_share_p10: verdict::quantile(&shares, 0.1),
        delivered_share_p50: verdict::quantile(&shares, 0.5),
        nodes: nodes as u64,
        shards_left: events.shards_left as u64,
        restart_ms: events.restart.as_millis() as u64,
        crashed_campaign: events.crashed.clone(),
        billed_after_crash,
        findings,
        deliveries,
    })
}
