//! What the latest command changed: how actors and cells learn what was applied.

use std::sync::Arc;

use super::{
    super::proto::{Counters, Spec},
    Book,
};

/// What one command changed.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Effects {
    /// In the order in which it happened.
    pub events: Vec<Effect>,
    /// Outcomes, one entry per campaign, in the order of their first outcome.
    pub outcomes: Vec<OutcomeDelta>,
}

/// One change. `key` is the campaign's.
#[derive(Debug, Clone, PartialEq)]
pub enum Effect {
    /// It is new, or its settings or state changed.
    Changed {
        /// The campaign.
        key: u64,
        /// Its incarnation.
        incarnation: u32,
    },
    /// It is gone.
    Removed {
        /// The campaign.
        key: u64,
        /// Its incarnation.
        incarnation: u32,
        /// Its last settings.
        spec: Arc<Spec>,
    },
    /// An allowance was granted.
    Granted {
        /// The campaign.
        key: u64,
        /// Its incarnation.
        incarnation: u32,
        /// The allowance.
        number: u32,
    },
    /// An allowance gave unissued tokens back.
    Shrunk {
        /// The campaign.
        key: u64,
        /// Its incarnation.
        incarnation: u32,
        /// The allowance.
        number: u32,
        /// Tokens given back.
        tokens: u32,
    },
    /// An allowance closed.
    Closed {
        /// The campaign.
        key: u64,
        /// Its incarnation.
        incarnation: u32,
        /// The allowance.
        number: u32,
        /// Tokens that came back unsettled and unreleased; 0 if it closed early.
        expired: u32,
        /// Their price.
        price_micros: u64,
    },
    /// An operator set shard time: allowances may end earlier than their cells believe; start holders anew.
    TimeSet,
}

/// What outcomes of one command changed for one campaign.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct OutcomeDelta {
    /// The campaign.
    pub key: u64,
    /// Its incarnation.
    pub incarnation: u32,
    /// Billed.
    pub settled_micros: u64,
    /// Freed by NOT_USED.
    pub released_micros: u64,
    /// How far each counter moved (`granted`, `expired` and `shrunk` don't).
    pub counters: Counters,
}

impl Effects {
    pub(super) fn clear(&mut self) {
        self.events.clear();
        self.outcomes.clear();
    }
}

impl Book {
    /// The entry of the latest command's outcomes for the campaign at a place.
    pub(super) fn delta(&mut self, at: u32) -> &mut OutcomeDelta {
        let slot = self.slots[at as usize].as_mut().expect("indexes point at campaigns");
        if slot.delta.0 != self.commands {
            slot.delta = (self.commands, self.effects.outcomes.len() as u32);
            let (key, incarnation) = (slot.state.key, slot.state.incarnation);
            self.effects.outcomes.push(OutcomeDelta { key, incarnation, ..OutcomeDelta::default() });
        }
        &mut self.effects.outcomes[slot.delta.1 as usize]
    }
}
