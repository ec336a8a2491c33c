//! Who decides: the cluster's pacer, or one of two yardsticks.

use std::{fmt, sync::Arc};

use serde::Serialize;

use super::{chance, escrow::Wish};
use crate::campaign::{
    allowance::allowance_life_ms,
    pacing::{Pacer, Settings, StepInput},
    score::Weights,
    traffic::Shape,
};

/// The policies.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum PolicyName {
    /// The pacing of the cluster.
    Andante,
    /// LinkedIn's throttling (KDD'14): a random share of the opportunities, up or down by a tenth each minute as
    /// spend is behind or ahead of plan. Blind to value and price.
    Linkedin,
    /// Takes everything until the budget is gone.
    Greedy,
}

impl fmt::Display for PolicyName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            PolicyName::Andante => "andante",
            PolicyName::Linkedin => "linkedin",
            PolicyName::Greedy => "greedy",
        })
    }
}

/// Throttling is adjusted so often, in a flight: each minute of a day.
const ADJUSTMENTS: u64 = 1_440;

/// Share of opportunities to start with, and by how much an adjustment changes it.
const THROTTLE: (f64, f64) = (0.1, 0.1);

/// Salt of the throttle's dice.
const DICE: u64 = 0x7b1d;

/// A policy with its state.
pub(super) enum Policy {
    Andante(Box<Pacer>, Weights),
    Linkedin { settings: Settings, rate: f64, next_ms: u64, seed: u64, turn: u64 },
    Greedy(Settings),
}

impl Policy {
    pub(super) fn new(name: PolicyName, settings: Settings, traffic: Option<f64>, seed: u64) -> Self {
        match name {
            PolicyName::Andante => {
                let flat = Arc::new(Shape::flat());
                let mut pacer = match traffic {
                    None => Pacer::new(settings, flat),
                    Some(level) => Pacer::with_traffic(settings, flat, level),
                };
                // The actor steps once when it starts.
                let weights = pacer.step(&StepInput { now_ms: settings.start_ms, ..StepInput::default() });
                Policy::Andante(Box::new(pacer), weights)
            }
            PolicyName::Linkedin => {
                Policy::Linkedin { settings, rate: THROTTLE.0, next_ms: settings.start_ms, seed, turn: 0 }
            }
            PolicyName::Greedy => Policy::Greedy(settings),
        }
    }

    /// The score offered for an opportunity, if any.
    pub(super) fn offer(&mut self, relevance: f64, price_micros: u64) -> Option<f64> {
        match self {
            Policy::Andante(_, weights) => Some(weights.evaluate(relevance, price_micros).score()).filter(|s| *s > 0.0),
            Policy::Linkedin { rate, seed, turn, .. } => {
                *turn += 1;
                (chance::uniform(*seed, *turn, DICE) < *rate).then_some(1.0)
            }
            Policy::Greedy(_) => Some(1.0),
        }
    }

    pub(super) fn step(&mut self, input: &StepInput) {
        match self {
            Policy::Andante(pacer, weights) => *weights = pacer.step(input),
            Policy::Linkedin { settings, rate, next_ms, .. } => {
                if input.now_ms < *next_ms {
                    return;
                }
                let flight_ms = settings.end_ms - settings.start_ms;
                *next_ms += (flight_ms / ADJUSTMENTS).max(1);
                let elapsed = (input.now_ms - settings.start_ms) as f64 / flight_ms as f64;
                let spent = (input.settled_micros + input.holds.issued_micros - input.holds.settled_micros) as f64;
                let factor =
                    if spent > elapsed * settings.budget_micros as f64 { 1.0 - THROTTLE.1 } else { 1.0 + THROTTLE.1 };
                *rate = (*rate * factor).clamp(1e-6, 1.0);
            }
            Policy::Greedy(_) => {}
        }
    }

    /// How its next allowance should be.
    pub(super) fn wish(&self) -> Wish {
        match self {
            Policy::Andante(pacer, _) => {
                let life_ms = pacer.life_ms();
                let tokens = pacer.pace_share_tokens(life_ms);
                Wish { pace_share_micros: tokens.saturating_mul(pacer.price_micros()), life_ms }
            }
            // They have no plan: as much as the ledger gives.
            Policy::Linkedin { settings, .. } | Policy::Greedy(settings) => {
                Wish { pace_share_micros: settings.budget_micros, life_ms: allowance_life_ms(settings.hold_ms, 0) }
            }
        }
    }

    pub(super) fn mu(&self) -> Option<f64> {
        match self {
            Policy::Andante(pacer, _) => Some(pacer.mu()),
            _ => None,
        }
    }
}
