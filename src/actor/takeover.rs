//! Cells first, actors behind: how a new leader hands out tokens again within moments.
//!
//! One entry asks for an allowance for every campaign that was active lately, each with a holder of its own. When it
//! is applied, the cells hand out at once, and their actors are started behind them at a bounded rate.
//!
//! No actor, no placement: until a campaign's actor has taken its cell over, the shard's supervisor stands behind it.
//! It refreshes the cell at every tick, so a supervisor that hangs suspends its cells as a hung actor does; its guards
//! seal them when it ends. It hands allowance and holder over to the first actor of that holder, which goes on with
//! the same counter in the same cell: nothing is resumed from elsewhere. It stands behind at most [`GRANTS_MAX`] cells
//! for as many ticks as starting their actors takes.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::Arc,
};

use super::{
    block::Block,
    campaign::{SealGuard, grant, holds, shrinks},
    cell::{Cell, Life},
    shard::Shard,
};
use crate::campaign::{
    book::{Book, CampaignState},
    pacing::StepInput,
    proto::{self, Holder},
};

/// Campaigns granted an allowance by a takeover's entry; others get theirs when they are scored, a tick or two later.
pub(super) const GRANTS_MAX: usize = 4_096;
/// A campaign is active if its latest allowance could be handed out until at most so long ago: as long as an actor
/// without traffic stays.
const ACTIVE_MS: u64 = 120_000;

/// A cell that the supervisor stands behind.
pub(super) struct Stand {
    guard: SealGuard,
    number: u32,
}

impl Stand {
    pub(super) fn epoch(&self) -> u64 {
        self.guard.epoch
    }

    pub(super) fn number(&self) -> u32 {
        self.number
    }

    pub(super) fn is_of(&self, cell: &Arc<Cell>) -> bool {
        Arc::ptr_eq(&self.guard.cell, cell)
    }

    /// The campaign's actor stands behind the cell from now on.
    pub(super) fn hand_over(mut self) {
        self.guard.life = None;
    }
}

/// The cells that the supervisor stands behind, and those it has asked allowances for.
#[derive(Default)]
pub(super) struct Standing {
    /// Asked for, with the holder's epoch.
    pledged: BTreeMap<u64, u64>,
    stands: BTreeMap<u64, Stand>,
    /// Keys of `stands`, most recently active first; some may have their actors already.
    queue: VecDeque<u64>,
}

impl Standing {
    /// Allowances are asked for. Most recently active first.
    pub(super) fn pledge(&mut self, grants: &[proto::Grant]) {
        self.pledged = grants.iter().map(|grant| (grant.campaign, epoch(grant))).collect();
        self.queue.extend(grants.iter().map(|grant| grant.campaign));
    }

    /// Whether an allowance for this campaign is on its way.
    pub(super) fn is_pledged(&self, key: u64) -> bool {
        self.pledged.contains_key(&key)
    }

    /// Whether there is nothing left to do.
    pub(super) fn is_empty(&self) -> bool {
        self.stands.is_empty()
    }

    /// The entry was applied: cells whose allowances were granted hand out from now on. Returns the grants that nobody
    /// has a use for any more.
    pub(super) fn granted(&mut self, shard: &Shard, grants: Vec<proto::Grant>) -> Vec<proto::Grant> {
        let book = shard.book();
        let mut unused = Vec::new();
        for grant in grants {
            let (key, epoch) = (grant.campaign, epoch(&grant));
            if self.pledged.get(&key) != Some(&epoch) {
                unused.push(grant);
                continue;
            }
            self.pledged.remove(&key);
            let campaign = book.campaign(key).filter(|campaign| campaign.incarnation == grant.incarnation);
            let allowance = campaign.and_then(|campaign| campaign.open.get(&grant.number));
            if let Some(allowance) = allowance.filter(|allowance| Some(allowance.holder) == grant.holder)
                && let Some(cell) = shard.cell(key)
            {
                cell.begin(epoch);
                cell.install(Block::new(allowance));
                let guard = SealGuard { cell, epoch, life: Some(Life::Failed) };
                self.stands.insert(key, Stand { guard, number: grant.number });
            }
        }
        unused
    }

    /// The entry was not applied, or nobody knows: nothing is handed out.
    pub(super) fn refused(&mut self, grants: &[proto::Grant]) {
        for grant in grants {
            if self.pledged.get(&grant.campaign) == Some(&epoch(grant)) {
                self.pledged.remove(&grant.campaign);
            }
        }
    }

    /// The supervisor looked after this campaign's cell, if it stands behind it.
    pub(super) fn refresh(&self, key: u64, monotonic_ms: u64) {
        if let Some(stand) = self.stands.get(&key) {
            stand.guard.cell.refresh(monotonic_ms);
        }
    }

    /// The campaign whose actor is to be started next.
    pub(super) fn next(&mut self) -> Option<u64> {
        while let Some(key) = self.queue.pop_front() {
            if self.stands.contains_key(&key) {
                return Some(key);
            }
        }
        None
    }

    /// These have to wait.
    pub(super) fn postpone(&mut self, keys: Vec<u64>) {
        self.queue.extend(keys);
    }

    /// Whether the supervisor stands behind this campaign's cell.
    pub(super) fn has(&self, key: u64) -> bool {
        self.stands.contains_key(&key)
    }

    /// What the supervisor held for the actor that is about to start.
    pub(super) fn take(&mut self, key: u64) -> Option<Stand> {
        self.stands.remove(&key)
    }

    /// Another node leads: nothing is handed out any more, and what was not comes back.
    pub(super) fn give_up(&mut self) -> Vec<proto::Shrink> {
        self.pledged.clear();
        self.queue.clear();
        let mut given_up = Vec::new();
        for mut stand in std::mem::take(&mut self.stands).into_values() {
            stand.guard.life = Some(Life::Dormant);
            let cell = stand.guard.cell.clone();
            drop(stand);
            given_up.extend(shrinks(&cell));
        }
        given_up
    }
}

fn epoch(grant: &proto::Grant) -> u64 {
    grant.holder.map_or(0, |holder| holder.cell_epoch)
}

/// The shrinks that give back allowances of which nothing was and nothing will be handed out.
pub(super) fn give_back(grants: Vec<proto::Grant>) -> Vec<proto::Shrink> {
    let shrink = |grant: proto::Grant| proto::Shrink {
        campaign: grant.campaign,
        incarnation: grant.incarnation,
        number: grant.number,
        issued: 0,
        holder: grant.holder,
    };
    grants.into_iter().map(shrink).collect()
}

/// Whether the actor that asked for this allowance had ended before it came: nothing of it was or will be handed out.
pub(super) fn missed(shard: &Shard, grant: &proto::Grant) -> bool {
    let cell = shard.cell(grant.campaign).filter(|cell| cell.incarnation == grant.incarnation);
    cell.is_some_and(|cell| cell.missed(epoch(grant), grant.number))
}

/// Grants for the campaigns that were active lately, most recent first, with fresh holders; their cells get the
/// weights of their latest checkpoints on the way. `skip`: those that need nothing or may have nothing.
pub(super) fn grants(
    shard: &Shard,
    node: Holder,
    now_ms: u64,
    life_max_ms: u64,
    skip: impl Fn(&CampaignState) -> bool,
) -> Vec<proto::Grant> {
    let book = shard.book();
    // Shard time may be ahead of a clock: the book counts from the later one.
    let now_ms = now_ms.max(book.shard_time_ms());
    let mut grants = Vec::new();
    // No lock but the book's is taken below, and that one not twice.
    for campaign in active(&book, now_ms).into_iter().filter(|campaign| !skip(campaign)).take(GRANTS_MAX) {
        let mut pacer = shard.pacer(campaign);
        let weights = pacer.step(&StepInput {
            now_ms,
            settled_micros: campaign.ledger.settled_micros(),
            open_micros: campaign.ledger.open_micros(),
            holds: holds(campaign, None),
            ..StepInput::default()
        });
        if let Some(cell) = shard.cell(campaign.key) {
            cell.publish_weights(weights);
        }
        let holder = Holder { cell_epoch: shard.next_epoch(), ..node };
        grants.extend(grant(&pacer, holder, campaign, now_ms, life_max_ms));
    }
    grants
}

/// The campaigns whose allowances were handed out lately, most recently granted first.
fn active(book: &Book, now_ms: u64) -> Vec<&CampaignState> {
    let mut active: Vec<(u64, &CampaignState)> = Vec::new();
    for campaign in book.campaigns().filter(|campaign| campaign.is_eligible(now_ms)) {
        let latest = [campaign.open.last_key_value(), campaign.closed.last_key_value()];
        let latest = latest.into_iter().flatten().map(|(_, allowance)| allowance).max_by_key(|a| a.number);
        if let Some(latest) = latest.filter(|allowance| allowance.issue_until_ms + ACTIVE_MS > now_ms) {
            active.push((latest.granted_ms, campaign));
        }
    }
    active.sort_by_key(|(granted_ms, campaign)| (std::cmp::Reverse(*granted_ms), campaign.key));
    active.into_iter().map(|(_, campaign)| campaign).collect()
}

/// Cells follow their campaigns' checkpoints lazily: nobody scores on a follower. A new leader brings up to date those
/// it did not grant anything, some at every tick, so that a large shard does not hold up its book. A campaign that is
/// placed before its turn wakes its actor, which brings weights of its own.
#[derive(Default)]
pub(super) struct StaleWeights(Vec<Arc<Cell>>);

/// Cells per turn: some milliseconds.
const CELLS_PER_TURN: usize = 1_000;

impl StaleWeights {
    /// All cells but those whose weights are right already.
    pub(super) fn of(shard: &Shard, is_served: impl Fn(u64) -> bool) -> Self {
        Self(shard.cells().into_iter().filter(|cell| !is_served(cell.key)).collect())
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Brings some up to date.
    pub(super) fn turn(&mut self, shard: &Shard, is_served: impl Fn(u64) -> bool) {
        if self.is_empty() {
            return;
        }
        let from = self.0.len().saturating_sub(CELLS_PER_TURN);
        let book = shard.book();
        for cell in self.0.drain(from..).filter(|cell| !is_served(cell.key)) {
            if let Some(campaign) = book.campaign(cell.key).filter(|c| c.incarnation == cell.incarnation) {
                cell.publish_weights(shard.pacer(campaign).weights());
            }
        }
    }
}
