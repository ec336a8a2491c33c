//! Which nodes each shard is to be on.
//!
//! Three rules, in this order: every shard is on [`REPLICATION`] nodes (fewer while there are fewer); every node has as
//! many replicas as any other, or one more; every node is the preferred leader of as many shards as any other, or one
//! more. Nothing is copied that these do not need. Whether a node is up plays no part: one that is down for a while
//! keeps what it has, and finds it when it comes back.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use crate::{NodeId, ShardId, directory::Replicas};

/// Replicas of a shard: it survives the loss of one of them.
pub const REPLICATION: usize = 3;
/// Most shards on their way to one node: enough to keep it busy, few enough that the first ones arrive soon, and that
/// a node which goes away in the middle holds up only so many.
pub const MOVES_AT_ONCE: usize = 8;

/// Where a shard is to be from now on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Step {
    /// The shard.
    pub shard: ShardId,
    /// Its nodes, the preferred leader first.
    pub target: Vec<NodeId>,
    /// The rule that asks for it.
    pub why: &'static str,
}

/// The next steps; none: every shard is where it should be, or on its way there. Shards that are on their way are left
/// alone. Preferred leaders change without a move only when all moves are done, for a move may change them as well.
pub fn plan(nodes: &BTreeSet<NodeId>, replicas: &BTreeMap<ShardId, Replicas>) -> Vec<Step> {
    if nodes.is_empty() {
        return Vec::new();
    }
    let mut wanted = Wanted::new(nodes, replicas);
    wanted.fill();
    wanted.level_replicas();
    wanted.level_leaders();

    let mut arriving: BTreeMap<NodeId, usize> = BTreeMap::new();
    for node in replicas.values().filter(|replicas| !replicas.settled()).flat_map(new_nodes) {
        *arriving.entry(node).or_default() += 1;
    }
    let (mut moves, mut orders, mut all_settled) = (Vec::new(), Vec::new(), true);
    for (&shard, replicas) in replicas {
        let Some(target) = wanted.targets.remove(&shard) else { continue };
        all_settled &= replicas.settled();
        if target == replicas.target || !replicas.settled() {
            continue;
        }
        let added: Vec<NodeId> = target.iter().filter(|node| !replicas.target.contains(node)).copied().collect();
        let why = match target.len().cmp(&replicas.target.len()) {
            std::cmp::Ordering::Equal if added.is_empty() => {
                orders.push(Step { shard, target, why: "nodes lead equally many shards" });
                continue;
            }
            std::cmp::Ordering::Greater => "a shard has three replicas as soon as there are nodes for them",
            std::cmp::Ordering::Less => "a shard has three replicas",
            std::cmp::Ordering::Equal => "nodes have equally many replicas",
        };
        all_settled = false;
        if added.iter().any(|node| arriving.get(node).is_some_and(|shards| *shards >= MOVES_AT_ONCE)) {
            continue;
        }
        added.iter().for_each(|node| *arriving.entry(*node).or_default() += 1);
        moves.push(Step { shard, target, why });
    }
    if all_settled { orders } else { moves }
}

/// The nodes that a shard is on its way to.
fn new_nodes(replicas: &Replicas) -> impl Iterator<Item = NodeId> {
    replicas.target.iter().filter(|node| !replicas.nodes.contains(node)).copied()
}

/// Where the shards are to be in the end.
struct Wanted {
    targets: BTreeMap<ShardId, Vec<NodeId>>,
    /// Shards that can get a new target now.
    settled: BTreeSet<ShardId>,
    /// Replicas of each node.
    loads: BTreeMap<NodeId, usize>,
    /// Replicas of a shard.
    replication: usize,
}

impl Wanted {
    /// What is wanted already, as far as the nodes exist.
    fn new(nodes: &BTreeSet<NodeId>, replicas: &BTreeMap<ShardId, Replicas>) -> Self {
        let settled = replicas.iter().filter(|(_, replicas)| replicas.settled()).map(|(shard, _)| *shard).collect();
        let mut loads: BTreeMap<NodeId, usize> = nodes.iter().map(|node| (*node, 0)).collect();
        let mut targets = BTreeMap::new();
        for (shard, replicas) in replicas {
            let target: Vec<NodeId> = replicas.target.iter().filter(|node| nodes.contains(node)).copied().collect();
            for node in &target {
                *loads.entry(*node).or_default() += 1;
            }
            targets.insert(*shard, target);
        }
        Self { targets, settled, loads, replication: REPLICATION.min(nodes.len()) }
    }

    /// Gives every shard its number of replicas.
    fn fill(&mut self) {
        for target in self.targets.values_mut() {
            while target.len() > self.replication {
                // The preferred leader stays.
                let most = target[1..].iter().max_by_key(|node| self.loads[*node]).copied();
                target.retain(|node| Some(*node) != most);
                if let Some(load) = most.and_then(|node| self.loads.get_mut(&node)) {
                    *load -= 1;
                }
            }
            while target.len() < self.replication {
                let free = self.loads.iter_mut().filter(|(node, _)| !target.contains(node));
                let Some((node, load)) = free.min_by_key(|(_, load)| **load) else { break };
                target.push(*node);
                *load += 1;
            }
        }
    }

    /// Moves replicas from the node with the most to the one with the fewest until they differ by one at most.
    fn level_replicas(&mut self) {
        loop {
            let most = self.loads.iter().max_by_key(|(_, load)| **load).map(|(node, load)| (*node, *load));
            let fewest = self.loads.iter().min_by_key(|(_, load)| **load).map(|(node, load)| (*node, *load));
            let (Some((from, most)), Some((to, fewest))) = (most, fewest) else { return };
            if most <= fewest + 1 {
                return;
            }
            // There is one: `from` has more shards than `to`. One that can move now comes first, and one whose
            // preferred leader stays.
            let movable = self.targets.iter().filter(|(_, target)| target.contains(&from) && !target.contains(&to));
            let best = movable.min_by_key(|(shard, target)| (!self.settled.contains(shard), target[0] == from));
            let Some(shard) = best.map(|(shard, _)| *shard) else { return };
            if let Some(replica) =
                self.targets.get_mut(&shard).and_then(|target| target.iter_mut().find(|node| **node == from))
            {
                *replica = to;
            }
            *self.loads.entry(from).or_default() -= 1;
            *self.loads.entry(to).or_default() += 1;
        }
    }

    /// Passes the preference on, from replica to replica, until no node is preferred twice more often than another.
    ///
    /// A node that is preferred too often may share no shard with one that is preferred too rarely; then others stand
    /// between them: each gives one and gets one. Since replicas are level, there always is such a chain.
    fn level_leaders(&mut self) {
        let mut led: BTreeMap<NodeId, usize> = self.loads.keys().map(|node| (*node, 0)).collect();
        for first in self.targets.values().filter_map(|target| target.first()) {
            *led.entry(*first).or_default() += 1;
        }
        loop {
            let rarest = led.values().min().copied().unwrap_or(0);
            let mut often: Vec<NodeId> =
                led.iter().filter(|(_, led)| **led >= rarest + 2).map(|(node, _)| *node).collect();
            often.sort_by_key(|node| std::cmp::Reverse(led[node]));
            let Some(chain) = often.into_iter().find_map(|from| self.chain(from, &led)) else { return };
            for (shard, from, to) in chain {
                if let Some(target) = self.targets.get_mut(&shard) {
                    target.retain(|node| *node != to);
                    target.insert(0, to);
                }
                *led.entry(from).or_default() -= 1;
                *led.entry(to).or_default() += 1;
            }
        }
    }

    /// The shortest chain of shards from a node to one that is preferred at least twice less often.
    fn chain(&self, from: NodeId, led: &BTreeMap<NodeId, usize>) -> Option<Vec<(ShardId, NodeId, NodeId)>> {
        let mut reached_by: BTreeMap<NodeId, (ShardId, NodeId)> = BTreeMap::new();
        let mut queue = VecDeque::from([from]);
        while let Some(at) = queue.pop_front() {
            for (shard, target) in self.targets.iter().filter(|(_, target)| target.first() == Some(&at)) {
                for &next in target.iter().skip(1).filter(|next| **next != from) {
                    if reached_by.contains_key(&next) {
                        continue;
                    }
                    reached_by.insert(next, (*shard, at));
                    if led[&next] + 2 <= led[&from] {
                        return Some(links(&reached_by, from, next));
                    }
                    queue.push_back(next);
                }
            }
        }
        None
    }
}

/// The way back from the last node of a chain to the first.
fn links(
    reached_by: &BTreeMap<NodeId, (ShardId, NodeId)>,
    from: NodeId,
    last: NodeId,
) -> Vec<(ShardId, NodeId, NodeId)> {
    let mut chain = Vec::new();
    let mut to = last;
    while let Some((shard, by)) = reached_by.get(&to).filter(|_| to != from) {
        chain.push((*shard, *by, to));
        to = *by;
    }
    chain
}
