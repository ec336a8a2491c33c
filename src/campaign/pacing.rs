//! Paces a campaign's spend over its flight.
//!
//! An opportunity is worth `v` (relevance x quality) and costs `z` (price), both normalised by running means; it is
//! wanted where `v > mu * z`. After each step the multiplier moves by what was spent against what the plan allows:
//!
//! ```text
//! mu <- mu * exp(eta * clip((x - rho * n) / (rho * n)))
//! ```
//!
//! - `n`: opportunities of the step; `x`: winning takes x their allowance's price x learned billable share;
//! - `rho`: what may be spent per opportunity, planned anew each step: budget less settled less what is expected of
//!   open holds, over the traffic expected until the end. So settles, closings and outages correct the plan.
//! - `eta` is proportional to the takes that the plan expects of the step ([`GAIN_PER_TAKE`] each), so one setting
//!   serves large and small budgets, and is bounded per step ([`MAX_STEP_GAIN`]) so that a busy tick does not swing.
//! - the clip is lopsided: a take may count as far more than the plan of its opportunity, because the mean of the
//!   steps is zero only where mean spend is `rho` (a clip at 1 would cut every take and overspend for ever).
//! - without traffic nothing moves; where something else than `mu` binds (slots, guardrails, escrow), or nothing was
//!   refused by `mu`, the multiplier does not fall.
//!
//! The probability of becoming billable is one per campaign, so it cancels in the normalised price; it counts in `x`,
//! in `rho` and in the size of allowances.

use std::sync::Arc;

use super::{
    allowance::allowance_life_ms,
    explain::{Bound, Obstacle, Obstacles},
    proto::{Control, Counters, Spec},
    quality::{self, BillableShare},
    score::Weights,
    traffic::{Ratio, Shape, Traffic},
};

mod estimates;

/// By how much one take more or less than planned moves the logarithm of `mu`.
const GAIN_PER_TAKE: f64 = 0.01;

/// A campaign without history learns faster: its gain is one over this and the takes it has seen, if that is more.
const START_TAKES: f64 = 5.0;

/// Largest gain of a step on the relative error of its spend: stable with takes four times as elastic as `mu`.
const MAX_STEP_GAIN: f64 = 0.25;

/// Share of the time in which escrow turns the last money over (`horizon_ms`) that the plan leaves free at
/// the end: more spends more of the budget, less spends it on better opportunities.
const TAIL: f64 = 0.5;

/// When `mu` has refused next to nothing of late, a lower one would win nothing, and it does not fall. Memory in
/// opportunities, and how many refusals within it are enough: one in the last 300.
const REFUSED_MEMORY: f64 = 100.0;
const REFUSED_ENOUGH: f64 = 0.05;

/// Memory of the share of opportunities that guardrails and rivals keep, and up to which share others make up for it.
const KEPT_MEMORY: f64 = 1_000.0;
const MAX_KEPT: f64 = 0.5;

/// Largest rise of `mu`'s logarithm in one step.
const MAX_RISE: f64 = 0.5;

/// `mu` of a campaign without history: it takes what is better than average.
const START_MU: f64 = 1.0;

/// Bounds of `mu`: far beyond what real value and price distributions need, near enough to come back from.
const MU_BOUNDS: (f64, f64) = (1e-4, 1e4);

/// Memory of the running means, in opportunities.
const MEANS_MEMORY: f64 = 200_000.0;

/// Memory of the mean price of a take, in takes.
const TAKES_MEMORY: f64 = 500.0;

/// Before the first takes, the mean opportunity's price stands in for theirs with the weight of so many takes.
const TAKES_PRIOR: f64 = 10.0;

/// A campaign that has delivered this share of its plan needs no explanation.
const ON_PLAN_SHARE: f64 = 0.95;

/// What pacing needs of a campaign's settings.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Settings {
    /// Start of the flight, UTC milliseconds.
    pub start_ms: u64,
    /// End of the flight, exclusive.
    pub end_ms: u64,
    /// Budget in micros.
    pub budget_micros: u64,
    /// Price of a delivery in micros.
    pub price_micros: u64,
    /// Hold time of a token.
    pub hold_ms: u64,
    /// Candidates with a lower relevance are not promoted.
    pub relevance_floor: f64,
    /// Highest score.
    pub boost_cap: f64,
    /// Owner's guess of the billable share.
    pub expected_billable_share: f64,
}

impl From<&Spec> for Settings {
    fn from(spec: &Spec) -> Self {
        Settings {
            start_ms: spec.start_ms,
            end_ms: spec.end_ms,
            budget_micros: spec.budget_micros,
            price_micros: spec.price_micros,
            hold_ms: spec.hold_ms,
            relevance_floor: spec.relevance_floor,
            boost_cap: spec.boost_cap,
            expected_billable_share: spec.expected_billable_share,
        }
    }
}

impl Settings {
    fn flight_ms(&self) -> u64 {
        self.end_ms.saturating_sub(self.start_ms).max(1)
    }

    /// How long money of a token is out at most, on average over an allowance's life, but for the skew margin.
    fn escrow_ms(&self, life_ms: u64) -> u64 {
        life_ms / 2 + self.hold_ms
    }
}

/// What happened since the last step, and where the money is. Counts are since the last step, sums of money are totals.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct StepInput {
    /// Now, UTC milliseconds.
    pub now_ms: u64,
    /// Candidates evaluated that the campaign was eligible for: in flight, on target, at or above the floor.
    /// Requests that can't place (`slots` = 0) don't count.
    pub opportunities: u64,
    /// Sum of their relevance.
    pub relevance_sum: f64,
    /// Sum of their prices in micros.
    pub price_sum_micros: f64,
    /// Tokens taken.
    pub takes: u64,
    /// Their price, at their allowances'.
    pub taken_micros: u64,
    /// Opportunities that the multiplier wanted and something else refused; `below_floor` are no opportunities.
    pub bound: Bound,
    /// Tokens that were billed.
    pub billed: u64,
    /// Tokens that will never be: released, or handed out and unsettled when their allowance closed.
    pub unbilled: u64,
    /// Billed so far, in total.
    pub settled_micros: u64,
    /// Set aside in open allowances and neither settled nor released, as in the ledger.
    pub open_micros: u64,
    /// Tokens handed out, of the allowances that are still open.
    pub holds: Holds,
}

/// Money of the tokens that were handed out from allowances that are still open.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Holds {
    /// All of them.
    pub issued_micros: u64,
    /// Of these, settled.
    pub settled_micros: u64,
    /// Of these, released.
    pub released_micros: u64,
}

impl Holds {
    /// What will still be settled, if `share` of the tokens become billable. What has settled early does not settle
    /// again, so this falls to zero although unbilled tokens are open until their allowance closes.
    fn expected_micros(&self, share: f64) -> f64 {
        (self.issued_micros as f64 * share - self.settled_micros as f64).clamp(0.0, self.pending_micros())
    }

    /// Neither settled nor released.
    fn pending_micros(&self) -> f64 {
        (self.issued_micros as f64 - self.settled_micros as f64 - self.released_micros as f64).max(0.0)
    }
}

/// A decayed count of takes and their money.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Takes {
    count: f64,
    micros: f64,
}

/// Running means of the opportunities.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Means {
    count: f64,
    relevance_sum: f64,
    price_sum_micros: f64,
}

impl Means {
    fn observe(&mut self, count: f64, relevance_sum: f64, price_sum_micros: f64) {
        let total = self.count + count;
        let keep = if total > MEANS_MEMORY { MEANS_MEMORY / total } else { 1.0 };
        self.count = total * keep;
        self.relevance_sum = (self.relevance_sum + relevance_sum) * keep;
        self.price_sum_micros = (self.price_sum_micros + price_sum_micros) * keep;
    }
}

/// Paces one campaign. Pure: the caller says what happened and what time it is.
#[derive(Clone, Debug)]
pub struct Pacer {
    settings: Settings,
    mu: f64,
    quality: f64,
    means: Means,
    takes: Takes,
    share: BillableShare,
    traffic: Traffic,
    /// Money of takes over time, remembered for as long as it is out.
    flow: Ratio,
    obstacles: Obstacles,
    /// Opportunities that `mu` refused (decayed).
    refused: f64,
    /// Share of the opportunities that guardrails and rivals kept (decayed).
    kept: f64,
    /// What the last step saw.
    last: StepInput,
}

impl Pacer {
    /// A campaign without history. `shape` is what is known of its markets' week; see [`Shape::flat`].
    pub fn new(settings: Settings, shape: Arc<Shape>) -> Self {
        Pacer {
            mu: START_MU,
            quality: 1.0,
            means: Means::default(),
            takes: Takes::default(),
            share: BillableShare::new(settings.expected_billable_share),
            traffic: Traffic::new(shape, settings.flight_ms(), None),
            flow: Ratio::default(),
            obstacles: Obstacles::default(),
            refused: 0.0,
            kept: 0.0,
            last: StepInput::default(),
            settings,
        }
    }

    /// The same with an expectation of its traffic: opportunities per millisecond of an average hour.
    pub fn with_traffic(settings: Settings, shape: Arc<Shape>, opportunities_per_ms: f64) -> Self {
        let traffic = Traffic::new(shape.clone(), settings.flight_ms(), Some(opportunities_per_ms));
        Pacer { traffic, ..Pacer::new(settings, shape) }
    }

    /// Takes over new settings; what was learned stays.
    pub fn set(&mut self, settings: Settings) {
        if settings.expected_billable_share != self.settings.expected_billable_share {
            let (billed, known) = self.share.counts();
            self.share = BillableShare::restore(settings.expected_billable_share, billed, known);
        }
        self.traffic.set_flight(settings.flight_ms());
        self.settings = settings;
    }

    /// Learns quality from the campaign's outcomes so far.
    pub fn learn_quality(&mut self, counters: &Counters) {
        self.quality = quality::quality(counters);
    }

    /// One step: learns from what happened, moves the multiplier, answers what to score with until the next one.
    pub fn step(&mut self, input: &StepInput) -> Weights {
        self.share.observe(input.billed, input.unbilled);
        self.traffic.observe(input.now_ms, input.opportunities);
        self.obstacles.observe(input);
        if self.last.now_ms > 0 {
            let elapsed_ms = input.now_ms.saturating_sub(self.last.now_ms) as f64;
            let keep = (-elapsed_ms / self.settings.escrow_ms(self.life_ms()).max(1) as f64).exp();
            self.flow.add(keep, input.taken_micros as f64, elapsed_ms);
        }
        self.last = *input;
        if input.takes > 0 {
            let count = input.takes as f64;
            let keep = (-count / TAKES_MEMORY).exp();
            self.takes.count = self.takes.count * keep + count;
            self.takes.micros = self.takes.micros * keep + input.taken_micros as f64;
        }
        if input.opportunities > 0 {
            self.means.observe(input.opportunities as f64, input.relevance_sum, input.price_sum_micros);
            self.move_mu(input);
        }
        self.weights()
    }

    fn move_mu(&mut self, input: &StepInput) {
        let Some(rho) = self.rho_micros(input.now_ms) else { return };
        let share = self.share.mean();
        let take_micros = self.mean_take_micros() * share;
        let n = input.opportunities as f64;
        let bound = input.bound.wanted().min(input.opportunities) as f64;
        let spent = input.taken_micros as f64 * share;
        self.refused = self.refused * (-n / REFUSED_MEMORY).exp() + (n - bound - input.takes as f64).max(0.0);

        // What guardrails and rivals keep is planned for the other opportunities, up to a limit: where they keep nearly
        // all, no multiplier makes up for it, and its fall stays frozen.
        let keep = (-n / KEPT_MEMORY).exp();
        let kept = (bound - (input.bound.nothing_free + input.bound.allowance_cap) as f64).max(0.0) / n;
        self.kept = self.kept * keep + kept * (1.0 - keep);
        let plan = rho * n;
        let least = rho * (n - bound) / (1.0 - self.kept.min(MAX_KEPT));
        let most = plan.max(least);
        // More than planned, less than planned although nothing but mu stood in the way, or as it should be.
        let error_micros = if spent > most {
            spent - most
        } else if spent < least && self.refused > REFUSED_ENOUGH {
            spent - least
        } else {
            0.0
        };
        let planned_takes = plan / take_micros;
        let gain = GAIN_PER_TAKE.max(1.0 / (START_TAKES + self.takes.count)).min(MAX_STEP_GAIN / planned_takes);
        let step = (gain * error_micros / take_micros).clamp(-MAX_STEP_GAIN, MAX_RISE);
        self.mu = (self.mu * step.exp()).clamp(MU_BOUNDS.0, MU_BOUNDS.1);
    }

    /// What to score with now.
    pub fn weights(&self) -> Weights {
        let mean = |sum: f64| {
            let mean = sum / self.means.count;
            if mean > 0.0 && mean.is_finite() { mean } else { 1.0 }
        };
        // Without any history an opportunity of relevance 1 at the campaign's price is taken for average.
        let (relevance, price) = if self.means.count > 0.0 {
            (mean(self.means.relevance_sum), mean(self.means.price_sum_micros))
        } else {
            (1.0, self.settings.price_micros.max(1) as f64)
        };
        Weights {
            mu: self.mu,
            value_scale: self.quality / relevance,
            price_scale: 1.0 / price,
            boost_cap: self.settings.boost_cap,
            relevance_floor: self.settings.relevance_floor,
        }
    }

    /// Budget that is neither billed nor expected to be billed by open holds, micros.
    fn left_micros(&self) -> f64 {
        let expected = self.last.holds.expected_micros(self.share.mean());
        (self.settings.budget_micros as f64 - self.last.settled_micros as f64 - expected).max(0.0)
    }

    /// How long money of a token is out, on average: what is out over what goes out (Little's law), at most until its
    /// allowance closes. Outcomes that come early make it short, whatever the hold time.
    fn turn_ms(&self) -> f64 {
        let longest_ms = self.settings.escrow_ms(self.life_ms()) as f64;
        let out_micros = self.last.holds.pending_micros();
        match self.flow.value() {
            Some(micros_per_ms) => (out_micros / micros_per_ms).min(longest_ms),
            None if out_micros > 0.0 => longest_ms,
            None => 0.0,
        }
    }

    /// When the plan wants to be done. Money of unbilled placements comes back late, so that with a low billable share
    /// the last part of the budget is spent ever more slowly: the plan leaves time for it.
    fn horizon_ms(&self, now_ms: u64) -> u64 {
        let share = self.share.mean();
        let tail_ms = TAIL * self.turn_ms() * (1.0 - share) / share;
        let remaining_ms = self.settings.end_ms.saturating_sub(now_ms) as f64;
        self.settings.end_ms - tail_ms.min(remaining_ms / 2.0) as u64
    }

    /// What may be spent per opportunity from now on, micros; `None` while nothing is known of the traffic.
    fn rho_micros(&self, now_ms: u64) -> Option<f64> {
        let now_ms = now_ms.clamp(self.settings.start_ms, self.settings.end_ms);
        let expected = self.traffic.expected(now_ms, self.horizon_ms(now_ms))?;
        // The last opportunity may have it all.
        let plan = self.left_micros() / expected.max(1.0);
        // All that is not billed turns over once in the time that a token's money is out, and `share` of it is billed.
        // A faster plan would only leave it to chance which opportunities find nothing free.
        let turn = self.traffic.expected(now_ms, now_ms + self.turn_ms() as u64)?;
        let unbilled = self.settings.budget_micros.saturating_sub(self.last.settled_micros) as f64;
        Some(plan.min(self.share.mean() * unbilled / turn.max(1.0)))
    }

    fn mean_take_micros(&self) -> f64 {
        let mean_price = self.means.price_sum_micros / self.means.count;
        let micros = self.takes.micros + TAKES_PRIOR * mean_price;
        (micros / (self.takes.count + TAKES_PRIOR)).max(1.0)
    }

    /// Price of a delivery, micros.
    pub fn price_micros(&self) -> u64 {
        self.settings.price_micros
    }

    /// The multiplier.
    pub fn mu(&self) -> f64 {
        self.mu
    }

    /// Learned probability that a placement becomes billable.
    pub fn billable_share(&self) -> f64 {
        self.share.mean()
    }

    /// Learned quality; 1 is neutral.
    pub fn quality(&self) -> f64 {
        self.quality
    }

    /// What the plan wants billed by `now_ms`: the budget, spread over the flight as its traffic is.
    pub fn planned_micros(&self, now_ms: u64) -> u64 {
        let Settings { start_ms, end_ms, budget_micros, .. } = self.settings;
        if now_ms >= end_ms {
            return budget_micros;
        }
        let shape = self.traffic.shape();
        let whole = shape.mass(start_ms, end_ms);
        if whole <= 0.0 {
            return 0;
        }
        (budget_micros as f64 * (shape.mass(start_ms, now_ms) / whole).min(1.0)) as u64
    }

    /// Tokens that the plan hands out within `life_ms`, at the present price.
    pub fn pace_share_tokens(&self, life_ms: u64) -> u64 {
        let now_ms = self.last.now_ms.clamp(self.settings.start_ms, self.settings.end_ms);
        let shape = self.traffic.shape();
        let rest = shape.mass(now_ms, self.horizon_ms(now_ms));
        let life = shape.mass(now_ms, now_ms.saturating_add(life_ms).min(self.settings.end_ms));
        let part = if rest > 0.0 { (life / rest).min(1.0) } else { 1.0 };
        let token_micros = self.settings.price_micros.max(1) as f64 * self.share.mean();
        (self.left_micros() * part / token_micros).ceil() as u64
    }

    /// Mean time between two takes as planned from now on, milliseconds.
    pub fn mean_ms_between_takes(&self) -> f64 {
        let now_ms = self.last.now_ms.clamp(self.settings.start_ms, self.settings.end_ms);
        let remaining_ms = (self.settings.end_ms - now_ms) as f64;
        let token_micros = self.settings.price_micros.max(1) as f64 * self.share.mean();
        let takes = self.left_micros() / token_micros;
        if takes > 0.0 { (remaining_ms / takes).min(remaining_ms) } else { remaining_ms }
    }

    /// How long the next allowance should hand out tokens.
    pub fn life_ms(&self) -> u64 {
        allowance_life_ms(self.settings.hold_ms, self.mean_ms_between_takes() as u64)
    }

    /// Money set aside in open allowances that is not expected to be billed, micros.
    pub fn stranded_micros(&self) -> u64 {
        let expected = self.last.holds.expected_micros(self.share.mean());
        (self.last.open_micros as f64 - expected).max(0.0) as u64
    }

    /// What binds delivery most now; `None` before any traffic, or if every opportunity is taken.
    pub fn obstacle(&self, now_ms: u64) -> Option<Obstacle> {
        let Settings { start_ms, end_ms, budget_micros, price_micros, .. } = self.settings;
        let left = budget_micros.saturating_sub(self.last.settled_micros);
        if now_ms >= end_ms {
            Some(Obstacle::Ended)
        } else if now_ms < start_ms {
            Some(Obstacle::NotStarted)
        } else if left < price_micros {
            Some(Obstacle::BudgetExhausted)
        } else {
            self.obstacles.main(now_ms)
        }
    }

    /// Why the campaign does not deliver as planned, in words; empty if it does.
    pub fn explanation(&self, now_ms: u64) -> String {
        let expected = self.last.holds.expected_micros(self.share.mean());
        let delivered = self.last.settled_micros as f64 + expected;
        match self.obstacle(now_ms) {
            Some(obstacle @ (Obstacle::NotStarted | Obstacle::Ended | Obstacle::BudgetExhausted)) => {
                obstacle.to_string()
            }
            Some(obstacle) if delivered < ON_PLAN_SHARE * self.planned_micros(now_ms) as f64 => obstacle.to_string(),
            _ => String::new(),
        }
    }

    /// State for a successor.
    pub fn checkpoint(&self) -> Control {
        Control { mu: self.mu, estimates: estimates::encode(self), learned: None }
    }

    /// Goes on where `control` was taken. Estimates that can't be read are learned anew.
    pub fn restore(settings: Settings, shape: Arc<Shape>, control: &Control) -> Self {
        let mut pacer = Pacer::new(settings, shape);
        if control.mu.is_finite() && control.mu > 0.0 {
            pacer.mu = control.mu.clamp(MU_BOUNDS.0, MU_BOUNDS.1);
        }
        estimates::decode(&mut pacer, &control.estimates);
        pacer
    }
}

#[cfg(test)]
mod tests;
