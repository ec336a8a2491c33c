//! Says what keeps a campaign from delivering.

use std::fmt;

use super::pacing::StepInput;

/// Counts of what was refused, by the guardrail or limit that refused it; each refusal is counted once.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Bound {
    /// Another campaign's score was higher, or the reply had no slot left.
    pub lost_slot: u64,
    /// The reply had its share of promoted tracks.
    pub promoted_share: u64,
    /// The listener had seen the campaign often enough.
    pub frequency_cap: u64,
    /// No token: the budget that is not billed is all set aside.
    pub nothing_free: u64,
    /// No token: as many allowances are open as may be, or the next one is on its way.
    pub allowance_cap: u64,
    /// Relevance below the campaign's floor. Not wanted at any multiplier, so it is no opportunity.
    pub below_floor: u64,
}

impl Bound {
    /// Opportunities that the multiplier wanted and something else refused.
    pub fn wanted(&self) -> u64 {
        self.lost_slot + self.promoted_share + self.frequency_cap + self.nothing_free + self.allowance_cap
    }
}

/// What binds a campaign's delivery.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Obstacle {
    /// The flight has not begun.
    NotStarted,
    /// The flight is over.
    Ended,
    /// All is billed.
    BudgetExhausted,
    /// No candidate on target came by of late.
    NoTraffic,
    /// All that is not billed is set aside.
    NothingFree,
    /// Waits for an allowance.
    AllowanceCap,
    /// Candidates are below the relevance floor.
    RelevanceFloor,
    /// The multiplier asks for more value per price than candidates have: the campaign paces itself.
    Multiplier,
    /// Listeners have had their share.
    FrequencyCap,
    /// Other campaigns score higher.
    LostSlots,
    /// Replies have their share of promoted tracks.
    PromotedShare,
}

impl fmt::Display for Obstacle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Obstacle::NotStarted => "the flight has not started",
            Obstacle::Ended => "the flight has ended",
            Obstacle::BudgetExhausted => "the budget is exhausted",
            Obstacle::NoTraffic => "no candidates on target came by of late",
            Obstacle::NothingFree => {
                "nothing is free now: what is not billed is set aside for tokens whose outcome is open"
            }
            Obstacle::AllowanceCap => "waiting for an allowance: as many as may be are open, or the next is on its way",
            Obstacle::RelevanceFloor => "most candidates are below the relevance floor",
            Obstacle::Multiplier => "pacing: candidates are worth less than the multiplier asks for",
            Obstacle::FrequencyCap => "listeners have reached the frequency cap",
            Obstacle::LostSlots => "other campaigns win the slots with higher scores",
            Obstacle::PromotedShare => "replies have reached their share of promoted tracks",
        })
    }
}

/// Steps fade from the counts with this factor: about the last 50 steps with traffic (5 s) decide.
const KEEP: f64 = 0.98;

/// Without an opportunity for so long, there is no traffic.
const NO_TRAFFIC_MS: u64 = 60_000;

/// Faded counts of what became of opportunities.
#[derive(Clone, Debug, Default)]
pub(super) struct Obstacles {
    counts: [(f64, Option<Obstacle>); 8],
    last_traffic_ms: u64,
}

impl Obstacles {
    pub(super) fn observe(&mut self, step: &StepInput) {
        let Bound { lost_slot, promoted_share, frequency_cap, nothing_free, allowance_cap, below_floor } = step.bound;
        let refused_by_mu = step.opportunities.saturating_sub(step.bound.wanted() + step.takes);
        let seen = step.opportunities + below_floor;
        if seen == 0 {
            return;
        }
        self.last_traffic_ms = step.now_ms;
        let news = [
            (step.takes, None),
            (lost_slot, Some(Obstacle::LostSlots)),
            (promoted_share, Some(Obstacle::PromotedShare)),
            (frequency_cap, Some(Obstacle::FrequencyCap)),
            (nothing_free, Some(Obstacle::NothingFree)),
            (allowance_cap, Some(Obstacle::AllowanceCap)),
            (below_floor, Some(Obstacle::RelevanceFloor)),
            (refused_by_mu, Some(Obstacle::Multiplier)),
        ];
        for (count, (n, obstacle)) in self.counts.iter_mut().zip(news) {
            *count = (count.0 * KEEP + n as f64, obstacle);
        }
    }

    /// What refuses most. Takes are no obstacle, however many.
    pub(super) fn main(&self, now_ms: u64) -> Option<Obstacle> {
        if now_ms.saturating_sub(self.last_traffic_ms) >= NO_TRAFFIC_MS {
            return Some(Obstacle::NoTraffic);
        }
        self.counts
            .iter()
            .filter(|(count, obstacle)| obstacle.is_some() && *count > 0.0)
            .max_by(|a, b| a.0.total_cmp(&b.0))
            .and_then(|(_, obstacle)| *obstacle)
    }
}
