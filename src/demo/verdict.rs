//! How a demo ends.

use std::fmt;

use serde::Serialize;

use crate::verify::Findings;

/// Delivered within this share of the plan counts as on plan.
pub const ON_PLAN_SHARE: f64 = 0.05;

/// One campaign's end.
#[derive(Debug, Clone, Serialize)]
pub struct Delivery {
    /// Its name.
    pub campaign: String,
    /// Its budget: all of it was to be delivered.
    pub planned_micros: u64,
    /// What was billed.
    pub delivered_micros: u64,
}

impl Delivery {
    /// Delivered over planned.
    pub fn share(&self) -> f64 {
        self.delivered_micros as f64 / self.planned_micros.max(1) as f64
    }
}

/// The figures of a demo.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Verdict {
    /// Whether every promise was kept and no request failed.
    pub ok: bool,
    /// Score requests.
    pub requests: u64,
    /// Requests that never got a good answer.
    pub errors: u64,
    /// Requests that waited until a node was there again.
    pub waited: u64,
    /// Replies from which a shard was missing.
    pub incomplete: u64,
    /// Requests with at least one placement.
    pub requests_placed: u64,
    /// Placements.
    pub placements: u64,
    /// Billed.
    pub billed: u64,
    /// Released, unused.
    pub released: u64,
    /// Events acknowledged.
    pub events: u64,
    /// Events reported again for want of an answer.
    pub event_retries: u64,
    /// Acknowledged billings reported again, while playing and at the end; each must be known.
    pub repeated: u64,
    /// Events that came after their allowance had closed.
    pub too_late: u64,
    /// Latency of Score: median.
    pub score_p50_us: u64,
    /// Latency of Score: 99 of 100 are faster.
    pub score_p99_us: u64,
    /// Campaigns.
    pub campaigns: u64,
    /// Sum of the budgets.
    pub planned_micros: u64,
    /// Sum of what was billed.
    pub delivered_micros: u64,
    /// Delivered over planned.
    pub delivered_share: f64,
    /// What is still set aside at the end: what a crashed node had not handed out comes back later.
    pub stranded_micros: u64,
    /// Whether what was delivered is within 5 % of what could be: the plan less what is stranded.
    pub on_plan: bool,
    /// Delivered over planned of the campaign that delivered least, of the 10th of 100, and of the median.
    pub delivered_share_min: f64,
    /// See `delivered_share_min`.
    pub delivered_share_p10: f64,
    /// See `delivered_share_min`.
    pub delivered_share_p50: f64,
    /// Nodes.
    pub nodes: u64,
    /// Shards whose leader was stopped abruptly.
    pub shards_left: u64,
    /// How long an only node was away when it was restarted, or how long one of several took to be back in step.
    pub restart_ms: u64,
    /// The campaign whose actor was crashed.
    pub crashed_campaign: String,
    /// What that campaign was billed for after the crash.
    pub billed_after_crash: u64,
    /// What is wrong.
    #[serde(flatten)]
    pub findings: Findings,
    /// All campaigns.
    #[serde(skip)]
    pub deliveries: Vec<Delivery>,
}

/// Value at a quantile of sorted shares.
pub(super) fn quantile(sorted: &[f64], at: f64) -> f64 {
    let last = sorted.len().saturating_sub(1);
    sorted.get((last as f64 * at).round() as usize).copied().unwrap_or(0.0)
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let percent = |share: f64| 100.0 * share;
        let placed = percent(self.requests_placed as f64 / self.requests.max(1) as f64);
        writeln!(f, "requests    {} ({} errors); {placed:.0} % got a placement", self.requests, self.errors)?;
        writeln!(f, "score       p50 {} us, p99 {} us", self.score_p50_us, self.score_p99_us)?;
        writeln!(
            f,
            "placements  {}: {} billed, {} released; {} events acknowledged",
            self.placements, self.billed, self.released, self.events
        )?;
        writeln!(
            f,
            "delivered   {:.1} % of plan ({:.2} of {:.2}, {:.2} stranded) by {} campaigns; least {:.0} %, median {:.0} %",
            percent(self.delivered_share),
            self.delivered_micros as f64 / 1e6,
            self.planned_micros as f64 / 1e6,
            self.stranded_micros as f64 / 1e6,
            self.campaigns,
            percent(self.delivered_share_min),
            percent(self.delivered_share_p50),
        )?;
        writeln!(
            f,
            "crash       the actor of {} died; it was billed {} times after that",
            self.crashed_campaign, self.billed_after_crash
        )?;
        let Self { restart_ms, waited, event_retries, shards_left, incomplete, .. } = self;
        if self.nodes == 1 {
            write!(f, "restart     the node was away for {restart_ms} ms")?;
        } else {
            write!(f, "outage      the leader of {shards_left} shards died, and was back in step in {restart_ms} ms")?;
        }
        writeln!(
            f,
            "; {waited} requests waited, {incomplete} lacked shards, {event_retries} events were reported again"
        )?;
        writeln!(f, "audit       {} acknowledged billings reported again", self.repeated)?;
        let findings = &self.findings;
        for note in &findings.notes {
            writeln!(f, "WRONG       {note}")?;
        }
        write!(
            f,
            "verdict     {}: {} lost, {} double billed, {} micros overspent, {} wrong answers",
            if self.ok { "ok" } else { "BROKEN" },
            findings.lost_outcomes,
            findings.double_billed,
            findings.overspend_micros,
            findings.wrong_answers
        )
    }
}
