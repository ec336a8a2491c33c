//! No promise, but what came up on the way: the situations that take a look at several things at once.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use andante::{
    actor::{Life as CellLife, Role},
    campaign::{
        book::Book,
        proto::{self, command::Kind as Command},
    },
};
use andante_cluster::{NodeId, ShardId};

use super::{Applied, Found, Life, Oracle};
use crate::{markers::Markers, world::World};

/// Walking all cells costs something.
const LOOK_EVERY_MS: u64 = 50;

/// Marks situations.
pub(super) struct Situations {
    markers: Arc<Markers>,
    /// Who leads.
    leaders: BTreeMap<ShardId, NodeId>,
    /// Positions of nodes that run.
    running: BTreeSet<usize>,
    /// Positions of nodes that have lost their disks and are not back yet.
    lost: BTreeSet<usize>,
}

impl Situations {
    pub(super) fn new(markers: Arc<Markers>) -> Self {
        Self { markers, leaders: BTreeMap::new(), running: BTreeSet::new(), lost: BTreeSet::new() }
    }
}

impl Oracle for Situations {
    fn name(&self) -> &'static str {
        "situations"
    }

    fn applied(&mut self, applied: &Applied<'_>) -> Found {
        let (Some(Command::Settle(settle)), Some(leader)) = (&applied.command.kind, self.leaders.get(&applied.shard))
        else {
            return Ok(());
        };
        for (outcome, status) in settle.outcomes.iter().zip(&applied.reply.outcomes) {
            let campaign = applied.book.campaign(outcome.campaign);
            let allowance = campaign.and_then(|campaign| campaign.open.get(&outcome.number));
            let later = allowance.is_some_and(|allowance| allowance.holder.node_id != *leader);
            if later && *status == proto::OutcomeStatus::Billed as i32 {
                self.markers.hit("settled-on-later-leader");
            }
        }
        Ok(())
    }

    /// A node that runs gets a book as a whole only from another one, which has purged the log in between.
    fn restored(&mut self, node: usize, _shard: ShardId, book: &Book) -> Found {
        if self.running.contains(&node) && !book.is_empty() {
            self.markers.hit("snapshot-installed-after-purge");
        }
        Ok(())
    }

    fn life(&mut self, node: usize, life: &Life) -> Found {
        match life {
            Life::Started { .. } => {
                self.running.insert(node);
                if self.lost.remove(&node) {
                    self.markers.hit("disk-lost-and-rejoined");
                }
            }
            Life::Ended(_) | Life::Crashed(_) => drop(self.running.remove(&node)),
            Life::DiskLost => drop(self.lost.insert(node)),
        }
        Ok(())
    }

    fn look(&mut self, world: &World) -> Found {
        if !world.now_ms().is_multiple_of(LOOK_EVERY_MS) {
            return Ok(());
        }
        for (_, node) in world.running() {
            for shard in world.replicas_on(&node) {
                if shard.role() != Role::Leading {
                    continue;
                }
                let me = node.info().node_id;
                let before = self.leaders.insert(shard.id, me);
                if before.is_some_and(|before| before != me)
                    && shard.book().campaigns().any(|campaign| !campaign.open.is_empty())
                {
                    self.markers.hit("leader-changed-with-open-allowances");
                }
                if shard.cells().iter().any(|cell| cell.life() == CellLife::Quarantined) {
                    self.markers.hit("actor-quarantined");
                }
            }
        }
        Ok(())
    }
}
