//! Invariant 1: at every replica and log position `settled + sum of (n - settled - released) * price <= budget`.
//! Reckoned anew from the allowances after each command, not taken from the ledger's own sum.

use andante::campaign::book::{Book, CampaignState, Effect};
use andante_cluster::ShardId;

use super::{Applied, Found, Oracle};
use crate::world::World;

/// Never overspend.
pub(super) struct Overspend;

fn check(node: usize, shard: ShardId, campaign: &CampaignState) -> Found {
    let open: u128 = campaign
        .open
        .values()
        .map(|allowance| {
            let used = u64::from(allowance.settled_count) + u64::from(allowance.released_count);
            u128::from(u64::from(allowance.n).saturating_sub(used)) * u128::from(allowance.price_micros)
        })
        .sum();
    let (settled, budget) = (u128::from(campaign.ledger.settled_micros()), u128::from(campaign.spec.budget_micros));
    if settled + open <= budget {
        return Ok(());
    }
    let name = &campaign.spec.name;
    Err(format!(
        "node-{}, {shard}, {name}: settled {settled} + open {open} micros is more than the budget {budget}",
        node + 1
    ))
}

fn check_all(node: usize, shard: ShardId, book: &Book) -> Found {
    book.campaigns().try_for_each(|campaign| check(node, shard, campaign))
}

impl Oracle for Overspend {
    fn name(&self) -> &'static str {
        "overspend"
    }

    fn applied(&mut self, applied: &Applied<'_>) -> Found {
        let effects = applied.book.last_effects();
        let changed = effects.events.iter().filter_map(|effect| match effect {
            Effect::Changed { key, .. }
            | Effect::Granted { key, .. }
            | Effect::Shrunk { key, .. }
            | Effect::Closed { key, .. } => Some(*key),
            Effect::Removed { .. } | Effect::TimeSet => None,
        });
        changed
            .chain(effects.outcomes.iter().map(|outcome| outcome.key))
            .filter_map(|key| applied.book.campaign(key))
            .try_for_each(|campaign| check(applied.node, applied.shard, campaign))
    }

    fn restored(&mut self, node: usize, shard: ShardId, book: &Book) -> Found {
        check_all(node, shard, book)
    }

    fn audit(&mut self, world: &World) -> Found {
        world.replicas().into_iter().try_for_each(|(position, shard)| check_all(position, shard.id, &shard.book()))
    }
}
