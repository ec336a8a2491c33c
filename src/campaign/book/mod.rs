//! The book of a shard: all its campaigns with their ledgers, changed by commands alone.
//!
//! [`Book::apply`] is deterministic: equal commands in equal order give equal books, replies and digests on every
//! replica, for ever. It trusts no proposer: a command that is not allowed changes nothing and says so.
//!
//! - `apply`: create, update, set state. `delete`: delete, and remember it. `tick`: shrinks, grants, checkpoints. `settle`: outcomes.
//!   `close`: closing, forgetting, purging, shard time.
//! - `records`: what is persisted. `check`: the invariants. `effects`: what the latest command changed, for actors.
//!
//! # Duties of the caller
//! 1. Propose only settings that [`normalise`](super::spec::normalise) and [`validate_new`](super::spec::validate_new)
//!    or `validate_update` passed: `apply` checks no more than it needs to be safe.
//! 2. Hand out only tokens of an allowance that was applied with the caller as its holder, each sequence number once,
//!    before `issue_until`, and before the flight's end as it is *now*: an update may have moved it.
//! 3. Seal an allowance for good before proposing its shrink.
//! 4. Propose `CloseExpired` only with a clock that is trusted: it decides when promises end.
//! 5. After [`Effect::TimeSet`] start all holders anew.
//!
//! # Shard time
//! Commands carry their proposer's time. It is used for what it says (when something was created or granted), but
//! never earlier than shard time, which only [`CloseExpired`](super::proto::CloseExpired) advances.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    ops::Bound,
    sync::Arc,
};

mod apply;
mod campaign;
mod check;
mod close;
mod delete;
mod effects;
mod records;
mod settle;
mod tick;

pub use campaign::CampaignState;
pub use effects::{Effect, Effects, OutcomeDelta};
pub use records::RestoreError;

use andante_cluster::mutant;

use super::{allowance::Allowance, key_hash::KeyState, limits::TIME_MAX_MS, proto::Deletion};
use campaign::Slot;

/// All campaigns of a shard.
#[derive(Debug)]
pub struct Book {
    // ---- persisted
    shard_time_ms: u64,
    next_incarnation: u32,
    /// The campaigns, in places that stay theirs; a freed place is reused.
    slots: Vec<Option<Slot>>,
    /// What is remembered of campaigns that were deleted.
    deletions: delete::Deletions,

    // ---- derived from it
    free_slots: Vec<u32>,
    /// Place by key. Only looked up, never walked.
    by_key: HashMap<u64, u32, KeyState>,
    /// Place by name, in the order lists have.
    by_name: BTreeMap<Arc<str>, u32>,
    /// Open allowances by the end of their last promise.
    closings: BTreeSet<Due>,
    /// Closed allowances by the time from which their retry window counts.
    forgettings: BTreeSet<Due>,
    /// Campaigns by the time since which they are over.
    purges: BTreeSet<(u64, u64)>,

    // ---- bookkeeping for the caller
    effects: Effects,
    /// Commands applied by this instance; tells effects of one from those of the next.
    commands: u64,
    changes: records::Changes,
}

/// An allowance and a time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Due {
    at_ms: u64,
    campaign: u64,
    number: u32,
}

impl Default for Book {
    fn default() -> Self {
        Self::new()
    }
}

impl Book {
    /// An empty book.
    pub fn new() -> Self {
        Self {
            shard_time_ms: 0,
            next_incarnation: 1,
            slots: Vec::new(),
            deletions: delete::Deletions::default(),
            free_slots: Vec::new(),
            by_key: HashMap::default(),
            by_name: BTreeMap::new(),
            closings: BTreeSet::new(),
            forgettings: BTreeSet::new(),
            purges: BTreeSet::new(),
            effects: Effects::default(),
            commands: 0,
            changes: records::Changes::new(),
        }
    }

    /// The campaign with this key.
    pub fn campaign(&self, key: u64) -> Option<&CampaignState> {
        let at = *self.by_key.get(&key)?;
        Some(&self.slot(at).state)
    }

    /// The campaign of this name.
    pub fn campaign_by_name(&self, name: &str) -> Option<&CampaignState> {
        let at = *self.by_name.get(name)?;
        Some(&self.slot(at).state)
    }

    /// Campaigns in the order of their names, after `after` (all if `None`).
    pub fn campaigns_after<'a>(&'a self, after: Option<&str>) -> impl Iterator<Item = &'a CampaignState> + use<'a> {
        let from = after.map_or(Bound::Unbounded, Bound::Excluded);
        self.by_name.range::<str, _>((from, Bound::Unbounded)).map(|(_, at)| &*self.slot(*at).state)
    }

    /// All campaigns in the order of their names.
    pub fn campaigns(&self) -> impl Iterator<Item = &CampaignState> {
        self.campaigns_after(None)
    }

    /// What is remembered of campaigns that were deleted, in the order of their keys and incarnations.
    pub fn deletions(&self) -> impl Iterator<Item = &Deletion> {
        self.deletions.iter()
    }

    /// How many campaigns there are.
    pub fn len(&self) -> usize {
        self.by_key.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.by_key.is_empty()
    }

    /// Shard time: the latest that was applied, or what an operator set.
    pub fn shard_time_ms(&self) -> u64 {
        self.shard_time_ms
    }

    /// From which shard time on a `CloseExpired` with this margin closes something; `None` if nothing is open.
    pub fn next_close_due_ms(&self, skew_margin_ms: u64) -> Option<u64> {
        self.closings.first().map(|due| due.closes_ms(skew_margin_ms))
    }

    /// From which shard time on a `CloseExpired` with these settings does anything beside advancing it: closes,
    /// forgets or purges. `None` if there is nothing to do ever.
    pub fn next_maintenance_due_ms(
        &self,
        skew_margin_ms: u64,
        retry_window_ms: u64,
        purge_after_ms: u64,
    ) -> Option<u64> {
        let keep_ms = skew_margin_ms.saturating_add(retry_window_ms);
        let forget = self.forgettings.first().map(|due| due.at_ms.saturating_add(keep_ms));
        let purge = self.purges.first().map(|(since_ms, _)| since_ms.saturating_add(purge_after_ms));
        let deletion = self.deletions.oldest_ms().map(|at_ms| at_ms.saturating_add(keep_ms));
        [self.next_close_due_ms(skew_margin_ms), forget, purge, deletion].into_iter().flatten().min()
    }

    /// What the latest command changed.
    pub fn last_effects(&self) -> &Effects {
        &self.effects
    }

    fn slot(&self, at: u32) -> &Slot {
        self.slots[at as usize].as_ref().expect("indexes point at campaigns")
    }

    fn slot_mut(&mut self, at: u32) -> &mut Slot {
        self.slots[at as usize].as_mut().expect("indexes point at campaigns")
    }

    /// The time a command means: the proposer's, but never earlier than shard time, and none that sums could overflow.
    fn time(&self, proposed_ms: u64) -> u64 {
        proposed_ms.min(TIME_MAX_MS).max(self.shard_time_ms)
    }

    /// Puts a campaign in, with its indexes.
    fn insert(&mut self, state: CampaignState) -> u32 {
        let key = state.key;
        let name: Arc<str> = state.spec.name.as_str().into();
        self.purges.insert((state.over_since_ms(), key));
        for allowance in state.open.values() {
            self.closings.insert(Due::closing(key, allowance));
        }
        for allowance in state.closed.values() {
            self.forgettings.insert(Due::forgetting(key, allowance));
        }
        let slot = Some(Slot::new(state));
        let at = match self.free_slots.pop() {
            Some(at) => {
                self.slots[at as usize] = slot;
                at
            }
            None => {
                self.slots.push(slot);
                (self.slots.len() - 1) as u32
            }
        };
        let fresh = self.by_key.insert(key, at).is_none() && self.by_name.insert(name, at).is_none();
        assert!(fresh, "keys and names are unique");
        at
    }

    /// Takes a campaign without open allowances out, with all that is left of it.
    fn remove(&mut self, at: u32) {
        let slot = self.slots[at as usize].take().expect("indexes point at campaigns");
        let state = &slot.state;
        assert!(state.open.is_empty() && state.ledger.open_micros() == 0, "money that is set aside is not forgotten");
        self.purges.remove(&(state.over_since_ms(), state.key));
        for allowance in state.closed.values() {
            self.forgettings.remove(&Due::forgetting(state.key, allowance));
        }
        self.by_key.remove(&state.key);
        self.by_name.remove(state.spec.name.as_str());
        self.free_slots.push(at);
        self.changes.remove_campaign(state);
        self.deletions.campaign_gone(state, self.shard_time_ms);
        let (key, incarnation, spec) = (state.key, state.incarnation, state.spec.clone());
        self.effects.events.push(Effect::Removed { key, incarnation, spec });
    }
}

impl Due {
    fn closing(campaign: u64, allowance: &Allowance) -> Self {
        let at_ms = if mutant!(CloseIgnoresHold) { allowance.issue_until_ms } else { allowance.promised_until_ms() };
        Self { at_ms, campaign, number: allowance.number }
    }

    /// From which shard time on an open allowance may be closed.
    fn closes_ms(self, skew_margin_ms: u64) -> u64 {
        if mutant!(CloseIgnoresHold) { self.at_ms } else { self.at_ms.saturating_add(skew_margin_ms) }
    }

    fn forgetting(campaign: u64, allowance: &Allowance) -> Self {
        Self { at_ms: allowance.kept_until_ms(), campaign, number: allowance.number }
    }
}
