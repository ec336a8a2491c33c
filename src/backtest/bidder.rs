//! A campaign in the replay: its policy, its money, its outcomes under way.

use std::collections::VecDeque;

use super::{
    Placement, Refused, chance,
    escrow::{Escrow, Refusal},
    policy::Policy,
};
use crate::campaign::pacing::{Settings, StepInput};

/// Skew margin, as in the cluster.
const MARGIN_MS: u64 = 5_000;

/// Salt of what becomes billable.
const BILLABLE: u64 = 0xb111;

/// A placement whose outcome is under way.
struct Pending {
    due_ms: u64,
    allowance: u64,
    index: u64,
    price_micros: u64,
    value: f64,
    click: bool,
}

pub(super) struct Bidder {
    pub(super) policy: Policy,
    pub(super) escrow: Escrow,
    pub(super) placements: Vec<Placement>,
    /// Index and price of billed rows.
    pub(super) billed_rows: Vec<(u64, u64)>,
    pub(super) value: f64,
    pub(super) clicks: u64,
    pub(super) refused: Refused,
    settings: Settings,
    billable_share: f64,
    seed: u64,
    pending: VecDeque<Pending>,
    /// What happened since the last step.
    news: StepInput,
}

impl Bidder {
    pub(super) fn new(policy: Policy, settings: Settings, billable_share: f64, seed: u64) -> Self {
        Bidder {
            policy,
            escrow: Escrow::new(settings.budget_micros, settings.hold_ms, MARGIN_MS, settings.end_ms),
            placements: Vec::new(),
            billed_rows: Vec::new(),
            value: 0.0,
            clicks: 0,
            refused: Refused::default(),
            settings,
            billable_share,
            seed,
            pending: VecDeque::new(),
            news: StepInput::default(),
        }
    }

    /// Outcomes that have arrived by now, and closings that are due.
    pub(super) fn advance(&mut self, now_ms: u64) {
        while let Some(pending) = self.pending.pop_front_if(|p| p.due_ms <= now_ms) {
            let billed = chance::uniform(self.seed, pending.index, BILLABLE) < self.billable_share
                && self.escrow.settle(pending.allowance, pending.price_micros);
            if billed {
                self.news.billed += 1;
                self.billed_rows.push((pending.index, pending.price_micros));
                self.value += pending.value;
                self.clicks += u64::from(pending.click);
            }
            self.placements.push(Placement { index: pending.index, billed });
        }
        self.news.unbilled += self.escrow.close_due(now_ms);
    }

    pub(super) fn finish(&mut self) {
        self.advance(u64::MAX);
    }

    pub(super) fn offer(&mut self, now_ms: u64, relevance: f64, price_micros: u64) -> Option<f64> {
        if now_ms >= self.settings.end_ms {
            return None;
        }
        self.policy.offer(relevance, price_micros)
    }

    /// Takes a token for a row that it won; `false` if there is none.
    pub(super) fn take(&mut self, now_ms: u64, index: u64, price_micros: u64, value: f64, click: bool) -> bool {
        match self.escrow.take(now_ms, price_micros, self.policy.wish()) {
            Ok(allowance) => {
                let due_ms = now_ms + self.settings.hold_ms;
                self.pending.push_back(Pending { due_ms, allowance, index, price_micros, value, click });
                self.news.takes += 1;
                self.news.taken_micros += price_micros;
                true
            }
            Err(Refusal::NothingFree) => {
                self.news.bound.nothing_free += 1;
                false
            }
            Err(Refusal::TooManyOpen) => {
                self.news.bound.allowance_cap += 1;
                false
            }
        }
    }

    /// Counts an opportunity, and whether a rival had it although it was wanted.
    pub(super) fn note(&mut self, relevance: f64, price_micros: u64, lost: bool) {
        self.news.opportunities += 1;
        self.news.relevance_sum += relevance;
        self.news.price_sum_micros += price_micros as f64;
        self.news.bound.lost_slot += u64::from(lost);
    }

    pub(super) fn step(&mut self, now_ms: u64) {
        self.refused.add(&self.news.bound);
        let input = StepInput {
            now_ms,
            settled_micros: self.escrow.settled_micros(),
            open_micros: self.escrow.open_micros(),
            holds: self.escrow.holds(),
            ..std::mem::take(&mut self.news)
        };
        self.policy.step(&input);
    }
}
