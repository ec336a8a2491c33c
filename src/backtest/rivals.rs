//! Other campaigns that compete for the same slot, paced by the same code.
//!
//! A rival's price is the trace's mean price. What an opportunity is worth to it is the relevance of another row,
//! drawn anew for each pair: rivals like different listeners, with the trace's own spread. Together they want half of
//! the rows.

use std::sync::Arc;

use super::{
    Options,
    bidder::Bidder,
    chance,
    policy::{Policy, PolicyName},
};
use crate::{campaign::pacing::Settings, trace::Row};

/// Share of the rows that all rivals together have money for.
const DEMAND: f64 = 0.5;

/// Rivals step once in so many rows, to save time; the own campaign steps at each row.
const ROWS_PER_STEP: u64 = 16;

/// Salt of what rivals value.
const VALUE: u64 = 0x71a1;

pub(super) struct Rivals {
    bidders: Vec<Bidder>,
    /// Relevance of all rows, to draw from.
    relevance: Arc<[f64]>,
    seed: u64,
    turns: u64,
    price_micros: u64,
    /// Offers for the present row: score, rival, relevance; best first.
    offers: Vec<(f64, usize)>,
    worth: Vec<f64>,
    lost: Vec<bool>,
    next: usize,
}

impl Rivals {
    pub(super) fn new(options: &Options, rows: &[Row], own: Settings) -> Self {
        let n = options.rivals;
        let share = options.billable_share;
        let budget = DEMAND * rows.len() as f64 * own.price_micros as f64 * share / n.max(1) as f64;
        let settings = Settings { budget_micros: (budget as u64).max(own.price_micros), ..own };
        let bidders = (0..n as u64)
            .map(|i| {
                let seed = options.seed.wrapping_add(1 + i);
                let policy = Policy::new(PolicyName::Andante, settings, None, seed);
                Bidder::new(policy, settings, share, seed)
            })
            .collect();
        Rivals {
            bidders,
            relevance: rows.iter().map(|r| r.pctr).collect(),
            seed: options.seed,
            turns: 0,
            price_micros: own.price_micros,
            offers: Vec::new(),
            worth: vec![0.0; n],
            lost: vec![false; n],
            next: 0,
        }
    }

    pub(super) fn advance(&mut self, now_ms: u64) {
        for bidder in &mut self.bidders {
            bidder.advance(now_ms);
        }
    }

    /// Collects the rivals' offers; those above `score` take. Says whether one of them has the slot.
    pub(super) fn compete(&mut self, now_ms: u64, row: &Row, score: f64) -> bool {
        self.offers.clear();
        self.next = 0;
        for (i, bidder) in self.bidders.iter_mut().enumerate() {
            let draw = chance::bits(self.seed, row.index, VALUE + i as u64) as usize % self.relevance.len();
            self.worth[i] = self.relevance[draw];
            self.lost[i] = false;
            if let Some(offer) = bidder.offer(now_ms, self.worth[i], self.price_micros) {
                self.offers.push((offer, i));
            }
        }
        self.offers.sort_unstable_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)));
        self.take_above(now_ms, row, score)
    }

    /// The own campaign's take was refused: the rest of the offers have their turn.
    pub(super) fn fall_back(&mut self, now_ms: u64, row: &Row) -> bool {
        self.take_above(now_ms, row, 0.0)
    }

    fn take_above(&mut self, now_ms: u64, row: &Row, score: f64) -> bool {
        while let Some((offer, i)) = self.offers.get(self.next).copied().filter(|(offer, _)| *offer > score) {
            debug_assert!(offer > 0.0);
            self.next += 1;
            if self.bidders[i].take(now_ms, row.index, self.price_micros, self.worth[i], false) {
                return true;
            }
        }
        false
    }

    /// The row is over: counts it, and who wanted the slot that another used.
    pub(super) fn note(&mut self, slot_used: bool) {
        for (_, i) in &self.offers[self.next..] {
            self.lost[*i] = slot_used;
        }
        for (i, bidder) in self.bidders.iter_mut().enumerate() {
            bidder.note(self.worth[i], self.price_micros, self.lost[i]);
        }
    }

    pub(super) fn step(&mut self, now_ms: u64) {
        self.turns += 1;
        if self.turns.is_multiple_of(ROWS_PER_STEP) {
            for bidder in &mut self.bidders {
                bidder.step(now_ms);
            }
        }
    }
}
