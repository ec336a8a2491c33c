//! Who leads which group, replica here or not.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use parking_lot::{Mutex, RwLock};
use tokio::{sync::watch, time::Instant};

use super::Leadership;
use crate::{GroupId, NodeId};

/// What is known of one group's leader.
#[derive(Debug, Default)]
struct Known {
    /// What the replica here says, and its term; `None`: no replica.
    local: Option<(u64, Leadership)>,
    /// The node that last said that it leads, and its term.
    told: Option<(u64, NodeId)>,
}

struct Entry {
    known: Mutex<Known>,
    published: watch::Sender<Leadership>,
}

/// Who leads which group: what the replicas here say, and what the peers say of theirs. The higher term wins.
pub(super) struct LeaderTable {
    me: NodeId,
    entries: Vec<Entry>,
    /// Nodes without a connection: they lead nothing that could be reached.
    down: RwLock<BTreeSet<NodeId>>,
    /// Since when it is as it is with nodes, of those that were ever heard of.
    back_since: RwLock<BTreeMap<NodeId, Instant>>,
    /// Nodes that are about to stop.
    leaving: RwLock<BTreeSet<NodeId>>,
    led_changes: watch::Sender<u64>,
}

/// What follows from all that is known.
fn conclude(known: &Known, me: NodeId, down: &BTreeSet<NodeId>) -> Leadership {
    let (term, leader) = match known.local {
        Some((_, leads @ Leadership::Leader { .. })) => return leads,
        Some((term, Leadership::Follower { leader })) => (term, leader),
        None => (0, None),
    };
    let leader = match known.told {
        Some((told_term, node)) if told_term > term || (told_term == term && leader.is_none()) => Some(node),
        _ => leader,
    };
    // That this node leads nobody knows better than itself.
    Leadership::Follower { leader: leader.filter(|node| *node != me && !down.contains(node)) }
}

impl LeaderTable {
    /// A table of the directory and `shards` shards.
    pub(super) fn new(me: NodeId, shards: u32) -> Self {
        let entry =
            || Entry { known: Mutex::default(), published: watch::Sender::new(Leadership::Follower { leader: None }) };
        Self {
            me,
            entries: (0..=shards).map(|_| entry()).collect(),
            down: RwLock::default(),
            back_since: RwLock::default(),
            leaving: RwLock::default(),
            led_changes: watch::Sender::new(0),
        }
    }

    /// Who leads a group; `None`: there is no such group.
    pub(super) fn watch(&self, group: GroupId) -> Option<watch::Receiver<Leadership>> {
        Some(self.entry(group)?.published.subscribe())
    }

    fn entry(&self, group: GroupId) -> Option<&Entry> {
        self.entries.get(group.0 as usize)
    }

    fn update(&self, entry: &Entry, change: impl FnOnce(&mut Known)) {
        let down = self.down.read();
        // Published under the lock, so that the last word known is the last one published.
        let mut known = entry.known.lock();
        change(&mut known);
        let now = conclude(&known, self.me, &down);
        let led = |leadership: &Leadership| matches!(leadership, Leadership::Leader { .. });
        let mut led_changed = false;
        entry.published.send_if_modified(|before| {
            led_changed = before != &now && (led(before) || led(&now));
            std::mem::replace(before, now) != now
        });
        if led_changed {
            self.led_changes.send_modify(|count| *count += 1);
        }
    }

    /// What the replica here says, in this term; `None`: there is none any more.
    pub(super) fn set_local(&self, group: GroupId, local: Option<(u64, Leadership)>) {
        if let Some(entry) = self.entry(group) {
            self.update(entry, |known| known.local = local);
        }
    }

    /// A node says that it leads exactly these groups.
    pub(super) fn set_told(&self, from: NodeId, groups: &[(GroupId, u64)]) {
        let led: BTreeMap<GroupId, u64> = groups.iter().copied().collect();
        for (group, entry) in (0..).map(GroupId).zip(&self.entries) {
            self.update(entry, |known| match (led.get(&group), known.told) {
                (Some(term), told) if told.is_none_or(|(before, _)| before <= *term) => {
                    known.told = Some((*term, from));
                }
                (None, Some((_, node))) if node == from => known.told = None,
                _ => {}
            });
        }
    }

    /// A node can or can't be reached.
    pub(super) fn set_reachable(&self, node: NodeId, reachable: bool) {
        let changed = {
            let mut down = self.down.write();
            if reachable { down.remove(&node) } else { down.insert(node) }
        };
        // The first time there is no change: nobody was known to be away.
        if changed || !self.back_since.read().contains_key(&node) {
            self.back_since.write().insert(node, Instant::now());
        }
        if changed {
            self.entries.iter().for_each(|entry| self.update(entry, |_| {}));
        }
    }

    /// How long a node has been reachable; `None`: it never was, or is this one.
    pub(super) fn reachable_for(&self, node: NodeId) -> Option<Duration> {
        self.back_since.read().get(&node).map(Instant::elapsed)
    }

    /// A node is about to stop: nobody should make it a leader. Or it has come back.
    pub(super) fn set_leaving(&self, node: NodeId, leaving: bool) {
        if self.is_leaving(node) != leaving {
            let mut nodes = self.leaving.write();
            if leaving {
                nodes.insert(node)
            } else {
                nodes.remove(&node)
            };
        }
    }

    /// Whether a node is about to stop.
    pub(super) fn is_leaving(&self, node: NodeId) -> bool {
        self.leaving.read().contains(&node)
    }

    /// The groups that this node leads, and their terms.
    pub(super) fn led(&self) -> Vec<(GroupId, u64)> {
        let led = (0..).map(GroupId).zip(&self.entries).filter_map(|(group, entry)| match *entry.published.borrow() {
            Leadership::Leader { term } => Some((group, term)),
            Leadership::Follower { .. } => None,
        });
        led.collect()
    }

    /// Ticks whenever this node leads other groups than before.
    pub(super) fn led_changes(&self) -> watch::Receiver<u64> {
        self.led_changes.subscribe()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const G: GroupId = GroupId(2);

    fn follows(leader: Option<NodeId>) -> Leadership {
        Leadership::Follower { leader }
    }

    #[test]
    fn the_higher_term_wins_and_a_replica_here_knows_best_whether_it_leads() {
        let table = LeaderTable::new(1, 4);
        let seen = table.watch(G).expect("a group");
        assert!(table.watch(GroupId(5)).is_none());
        table.set_told(2, &[(G, 7)]);
        assert_eq!(*seen.borrow(), follows(Some(2)), "no replica here: hearsay");
        table.set_told(3, &[(G, 6)]);
        assert_eq!(*seen.borrow(), follows(Some(2)), "an older term");
        table.set_local(G, Some((8, follows(None))));
        assert_eq!(*seen.borrow(), follows(None), "a newer term without a leader yet");
        table.set_told(3, &[(G, 8)]);
        assert_eq!(*seen.borrow(), follows(Some(3)));
        table.set_local(G, Some((9, Leadership::Leader { term: 9 })));
        assert_eq!(*seen.borrow(), Leadership::Leader { term: 9 });
        assert_eq!(table.led(), [(G, 9)]);
        table.set_told(2, &[(G, 10)]);
        assert_eq!(*seen.borrow(), Leadership::Leader { term: 9 }, "it will hear of it itself");
        table.set_local(G, Some((9, follows(None))));
        assert_eq!(*seen.borrow(), follows(Some(2)));
    }

    #[test]
    fn a_node_that_leads_no_more_or_is_gone_is_no_leader() {
        let table = LeaderTable::new(1, 4);
        let seen = table.watch(G).expect("a group");
        table.set_told(2, &[(G, 7)]);
        table.set_told(3, &[]);
        assert_eq!(*seen.borrow(), follows(Some(2)), "somebody else's silence means nothing");
        table.set_reachable(2, false);
        assert_eq!(*seen.borrow(), follows(None));
        table.set_reachable(2, true);
        assert_eq!(*seen.borrow(), follows(Some(2)));
        table.set_told(2, &[]);
        assert_eq!(*seen.borrow(), follows(None));
    }
}
