//! Replays a recorded trace against the pacing code of the cluster, offline.
//!
//! The campaign's budget is a fraction of what the whole trace costs (times the billable share: of what it could be
//! billed). A row's index is the clock: the policy knows when the flight ends and nothing else that lies ahead.
//! Money goes through [`escrow::Escrow`], which keeps the ledger's rules, so nothing can be overspent that the
//! cluster would not overspend.

use std::path::Path;

use serde::Serialize;

use crate::{
    campaign::{explain::Bound, pacing::Settings},
    trace::{Format, Row, TraceError, read_all},
};

mod bidder;
mod chance;
pub mod costs;
pub mod escrow;
mod optimum;
pub mod plot;
pub mod policy;
mod rivals;

use bidder::Bidder;
pub use policy::PolicyName;

/// One row stands for so much time. Coarser than a tick, as the grants of the cluster arrive within one.
pub const ROW_MS: u64 = 1_000;

/// The flight starts here: a Monday, 00:00 UTC. Any moment does; the policies' shape of the week starts flat.
pub const START_MS: u64 = 1_704_067_200_000;

/// Slices of `avg_err_96`: a quarter of an hour each, if the trace were a day.
pub const SLICES: usize = 96;

/// What to replay, and how.
#[derive(Clone, Debug)]
pub struct Options {
    /// Who decides.
    pub policy: PolicyName,
    /// Budget, as a share of what all rows cost together, times the billable share.
    pub budget_fraction: f64,
    /// Outcomes arrive so late, as a share of the flight. It is the hold time, too.
    pub delay: f64,
    /// Share of the placements that become billable.
    pub billable_share: f64,
    /// The owner's guess of it, from which the pacer starts; `None`: the truth.
    pub expected_billable_share: Option<f64>,
    /// Other campaigns, paced by the same code, that together want half of the rows.
    pub rivals: usize,
    /// Drops every second row of the second half; the others keep their index.
    pub drop_half: bool,
    /// The pacer starts with a traffic forecast of so many times the truth; `None`: with none at all.
    pub forecast_factor: Option<f64>,
    /// Seed of what is billable and what rivals value.
    pub seed: u64,
}

impl Default for Options {
    fn default() -> Self {
        Options {
            policy: PolicyName::Andante,
            budget_fraction: 0.125,
            delay: 0.0,
            billable_share: 1.0,
            expected_billable_share: None,
            rivals: 0,
            drop_half: false,
            forecast_factor: None,
            seed: 1,
        }
    }
}

/// An option out of its limits, or a trace that can't be used.
#[derive(Debug, thiserror::Error)]
pub enum BacktestError {
    /// The trace can't be read.
    #[error(transparent)]
    Trace(#[from] TraceError),
    /// An option is out of its limits.
    #[error("the {option} must {limit}")]
    Option {
        /// Which.
        option: &'static str,
        /// Its limit.
        limit: &'static str,
    },
    /// The trace has too little in it.
    #[error(
        "the trace has {rows} rows costing {price_micros} micros; it takes at least {SLICES} rows, a positive \
             price, and a budget of at least one micro"
    )]
    TooSmall {
        /// Its rows.
        rows: usize,
        /// Their price.
        price_micros: u64,
    },
}

impl Options {
    fn validate(&self) -> Result<(), BacktestError> {
        let check = |ok: bool, option, limit| if ok { Ok(()) } else { Err(BacktestError::Option { option, limit }) };
        let share = |v: f64| v > 0.0 && v <= 1.0;
        check(share(self.budget_fraction), "budget fraction", "lie in (0, 1]")?;
        check(self.delay >= 0.0 && self.delay <= 0.5, "delay", "lie in [0, 0.5]")?;
        check(share(self.billable_share), "billable share", "lie in (0, 1]")?;
        check(share(self.expected_billable_share.unwrap_or(1.0)), "expected billable share", "lie in (0, 1]")?;
        check(self.rivals <= 1_000, "number of rivals", "be at most 1,000")?;
        let forecast = self.forecast_factor.unwrap_or(1.0);
        check((0.01..=100.0).contains(&forecast), "forecast factor", "lie in [0.01, 100]")
    }
}

/// What came of it.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// Who decided.
    pub policy: PolicyName,
    /// Rows replayed.
    pub rows: usize,
    /// The budget.
    pub budget_micros: u64,
    /// Billed.
    pub spent_micros: u64,
    /// Billed beyond the budget, or set aside beyond it at any time: must be 0.
    pub overspend_micros: u64,
    /// Billed over budget.
    pub utilisation: f64,
    /// Predicted value of what was billed.
    pub value: f64,
    /// Predicted value of the best choice in hindsight (fractional knapsack, unit price = market price), times the
    /// billable share. It knows no rivals and no escrow.
    pub optimum: f64,
    /// `value / optimum`.
    pub value_ratio: f64,
    /// Mean over 96 equal slices of the rows of |spend - plan| / plan; spend counts where the placement was made.
    pub avg_err_96: f64,
    /// Highest spend of a slice over its plan.
    pub max_slice: f64,
    /// Placements made.
    pub placements: u64,
    /// Of these, billed.
    pub billed: u64,
    /// Clicks on billed placements.
    pub clicks: u64,
    /// Wanted opportunities that something else refused.
    pub refused: Refused,
    /// Multiplier at the end, where the policy has one.
    pub final_mu: Option<f64>,
    /// Billed per slice, micros.
    pub slices_micros: Vec<u64>,
}

/// Wanted opportunities that something else refused.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct Refused {
    /// A rival scored higher.
    pub lost_slot: u64,
    /// All that was not billed was set aside.
    pub nothing_free: u64,
    /// As many allowances were open as may be.
    pub allowance_cap: u64,
}

impl Refused {
    fn add(&mut self, bound: &Bound) {
        self.lost_slot += bound.lost_slot;
        self.nothing_free += bound.nothing_free;
        self.allowance_cap += bound.allowance_cap;
    }
}

/// A placement: the decisions, for tests and plots.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Placement {
    /// Index of the row.
    pub index: u64,
    /// Whether it was billed.
    pub billed: bool,
}

/// Reads the trace and replays it.
pub fn run(trace: &Path, format: Format, options: &Options) -> Result<Report, BacktestError> {
    replay(&read_all(trace, format)?, options).map(|(report, _)| report)
}

/// Replays rows; also tells which rows were placed.
pub fn replay(rows: &[Row], options: &Options) -> Result<(Report, Vec<Placement>), BacktestError> {
    options.validate()?;
    let price_micros: u64 = rows.iter().map(|r| r.price_micros).sum();
    let budget_micros = (price_micros as f64 * options.budget_fraction * options.billable_share).floor() as u64;
    let (Some(last), true) = (rows.last(), rows.len() >= SLICES && budget_micros > 0) else {
        return Err(BacktestError::TooSmall { rows: rows.len(), price_micros });
    };
    let span = last.index + 1;
    let kept: Vec<Row> =
        rows.iter().filter(|r| !(options.drop_half && r.index >= span / 2 && r.index % 2 == 1)).copied().collect();
    Ok(Replay::new(options, rows, kept, span, budget_micros).run())
}

/// A replay under way.
struct Replay<'a> {
    options: &'a Options,
    rows: Vec<Row>,
    span: u64,
    budget_micros: u64,
    own: Bidder,
    rivals: rivals::Rivals,
}

impl<'a> Replay<'a> {
    fn new(options: &'a Options, all: &[Row], rows: Vec<Row>, span: u64, budget_micros: u64) -> Self {
        let end_ms = START_MS + span * ROW_MS;
        let delay_ms = (options.delay * (span * ROW_MS) as f64) as u64;
        // The price at the start stands for the campaign's own: a mean of all rows would know the future.
        let price_micros = all.first().map_or(1, |row| row.price_micros.max(1));
        let settings = Settings {
            start_ms: START_MS,
            end_ms,
            budget_micros,
            price_micros,
            hold_ms: delay_ms,
            relevance_floor: 0.0,
            boost_cap: 1.0,
            expected_billable_share: options.expected_billable_share.unwrap_or(options.billable_share),
        };
        let level = options.forecast_factor.map(|f| f * all.len() as f64 / (span * ROW_MS) as f64);
        let policy = policy::Policy::new(options.policy, settings, level, options.seed);
        let own = Bidder::new(policy, settings, options.billable_share, options.seed);
        let rivals = rivals::Rivals::new(options, &rows, settings);
        Replay { options, rows, span, budget_micros, own, rivals }
    }

    fn run(mut self) -> (Report, Vec<Placement>) {
        for row in std::mem::take(&mut self.rows).iter() {
            self.turn(row);
            self.rows.push(*row);
        }
        // Outcomes of the last placements arrive after the flight.
        self.own.finish();
        self.report()
    }

    /// One opportunity: due outcomes, offers, the winner's take, steps.
    fn turn(&mut self, row: &Row) {
        let now_ms = START_MS + row.index * ROW_MS;
        self.own.advance(now_ms);
        self.rivals.advance(now_ms);
        let offer = self.own.offer(now_ms, row.pctr, row.price_micros);
        // Rivals above the own offer take first; a take that is refused falls to the next best.
        let lost = self.rivals.compete(now_ms, row, offer.unwrap_or(0.0));
        let own = !lost && offer.is_some() && self.own.take(now_ms, row.index, row.price_micros, row.pctr, row.click);
        let used = lost || own || self.rivals.fall_back(now_ms, row);
        self.own.note(row.pctr, row.price_micros, lost && offer.is_some());
        self.rivals.note(used);
        self.own.step(now_ms);
        self.rivals.step(now_ms);
    }

    fn report(self) -> (Report, Vec<Placement>) {
        let Replay { options, rows, span, budget_micros, own, .. } = self;
        let mut slices_micros = vec![0u64; SLICES];
        for (index, price_micros) in &own.billed_rows {
            slices_micros[(*index as u128 * SLICES as u128 / span as u128) as usize] += price_micros;
        }
        let plan = budget_micros as f64 / SLICES as f64;
        let share = options.billable_share;
        let optimum = share * optimum::value(&rows, budget_micros as f64 / share);
        let spent_micros = own.escrow.settled_micros();
        let report = Report {
            policy: options.policy,
            rows: rows.len(),
            budget_micros,
            spent_micros,
            overspend_micros: own.escrow.overspend_micros(),
            utilisation: spent_micros as f64 / budget_micros as f64,
            value: own.value,
            optimum,
            value_ratio: own.value / optimum,
            avg_err_96: slices_micros.iter().map(|s| (*s as f64 - plan).abs() / plan).sum::<f64>() / SLICES as f64,
            max_slice: slices_micros.iter().map(|s| *s as f64 / plan).fold(0.0, f64::max),
            placements: own.placements.len() as u64,
            billed: own.billed_rows.len() as u64,
            clicks: own.clicks,
            refused: own.refused,
            final_mu: own.policy.mu(),
            slices_micros,
        };
        let mut placements = own.placements;
        placements.sort_unstable_by_key(|p| p.index);
        (report, placements)
    }
}
