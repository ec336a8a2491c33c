//! What a node knows of each shard: its own part in it, and who leads. Read without locks.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

use andante_cluster::{NodeId, ShardId, directory::MAX_SHARDS, host::Leadership};

use crate::actor::{Proposer, Shard};

/// Words of a set of shards.
pub(super) const SET_WORDS: usize = MAX_SHARDS as usize / 64;

/// All shards of the cluster, by id.
pub struct Shards(Box<[Slot]>);

struct Slot {
    shard: Arc<Shard>,
    proposer: Proposer,
    /// 0: nobody known.
    leader: AtomicU64,
}

/// Where a shard is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Route {
    /// On this node.
    Here,
    /// On another one.
    There(NodeId),
    /// No leader is known.
    Nowhere,
}

/// A replica here that may still hand out goes before a leader elsewhere: what it has was set aside for it.
fn route(scores_here: bool, leader: Option<NodeId>, me: NodeId) -> Route {
    match leader {
        _ if scores_here => Route::Here,
        Some(node) if node != me => Route::There(node),
        _ => Route::Nowhere,
    }
}

impl Shards {
    /// Of shards in the order of their ids, with the way of outcomes into their logs.
    pub(super) fn new(shards: impl IntoIterator<Item = (Arc<Shard>, Proposer)>) -> Self {
        let slot = |(shard, proposer)| Slot { shard, proposer, leader: AtomicU64::new(0) };
        Self(shards.into_iter().map(slot).collect())
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.0.len()
    }

    /// The shards on this node, empty where it has no replica.
    pub fn iter(&self) -> impl Iterator<Item = &Arc<Shard>> {
        self.0.iter().map(|slot| &slot.shard)
    }

    /// A shard on this node; `None`: there is no such shard.
    pub(super) fn get(&self, shard: ShardId) -> Option<&Arc<Shard>> {
        Some(&self.slot(shard)?.shard)
    }

    /// The way of outcomes into a shard's log.
    pub(super) fn proposer(&self, shard: ShardId) -> Option<&Proposer> {
        Some(&self.slot(shard)?.proposer)
    }

    /// Notes who leads.
    pub(super) fn set_leader(&self, shard: ShardId, me: NodeId, leadership: Leadership) {
        let leader = match leadership {
            Leadership::Leader { .. } => me,
            Leadership::Follower { leader } => leader.unwrap_or(0),
        };
        if let Some(slot) = self.slot(shard) {
            slot.leader.store(leader, Ordering::Release);
        }
    }

    /// Who leads, as far as this node knows.
    pub(super) fn leader(&self, shard: ShardId) -> Option<NodeId> {
        let leader = self.slot(shard)?.leader.load(Ordering::Acquire);
        (leader != 0).then_some(leader)
    }

    /// Where a shard is scored.
    pub(super) fn route(&self, shard: ShardId, me: NodeId) -> Route {
        route(self.scores(shard), self.leader(shard), me)
    }

    /// Whether this node may offer and hand out.
    pub(super) fn scores(&self, shard: ShardId) -> bool {
        self.slot(shard).is_some_and(|slot| slot.shard.scores())
    }

    fn slot(&self, shard: ShardId) -> Option<&Slot> {
        self.0.get(shard.0 as usize)
    }
}

/// A set of shards.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct ShardSet([u64; SET_WORDS]);

impl ShardSet {
    /// From its words.
    pub(super) fn from_words(words: [u64; SET_WORDS]) -> Self {
        Self(words)
    }

    /// Whether a shard is in it.
    pub(super) fn has(&self, shard: ShardId) -> bool {
        self.0.get(shard.0 as usize / 64).is_some_and(|word| word & (1 << (shard.0 % 64)) != 0)
    }

    /// Puts a shard in; ids beyond [`MAX_SHARDS`] are nobody's.
    pub(super) fn put(&mut self, shard: ShardId) {
        if let Some(word) = self.0.get_mut(shard.0 as usize / 64) {
            *word |= 1 << (shard.0 % 64);
        }
    }

    /// How many.
    pub(super) fn len(&self) -> u32 {
        self.0.iter().map(|word| word.count_ones()).sum()
    }

    /// Whether there is none.
    pub(super) fn is_empty(&self) -> bool {
        self.0 == [0; SET_WORDS]
    }

    /// All of them, in order.
    pub(super) fn iter(&self) -> impl Iterator<Item = ShardId> + '_ {
        (0..MAX_SHARDS).map(ShardId).filter(|shard| self.has(*shard))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_set_has_what_was_put_in_and_nothing_else() {
        let mut set = ShardSet::default();
        assert!(set.is_empty());
        [255, 0, 64, 63, 64, 256, 9_999].map(ShardId).into_iter().for_each(|shard| set.put(shard));
        assert_eq!(set.iter().map(|shard| shard.0).collect::<Vec<_>>(), [0, 63, 64, 255]);
        assert_eq!(
            (set.len(), set.has(ShardId(63)), set.has(ShardId(62)), set.has(ShardId(256))),
            (4, true, false, false)
        );
    }

    #[test]
    fn who_may_hand_out_here_does_and_else_the_leader_is_asked() {
        for (scores_here, leader, expected) in [
            (true, Some(1), Route::Here),
            (true, None, Route::Here),
            (true, Some(2), Route::Here),
            (false, Some(2), Route::There(2)),
            (false, None, Route::Nowhere),
            // It leads, but its actors are not there yet.
            (false, Some(1), Route::Nowhere),
        ] {
            assert_eq!(route(scores_here, leader, 1), expected, "{scores_here} {leader:?}");
        }
    }
}
