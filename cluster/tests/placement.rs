//! What plans for replicas and leaders promise, whatever they start from.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::Path,
    time::Duration,
};

use andante_cluster::{
    NodeId, ShardId,
    directory::Replicas,
    placement::{
        Progress,
        membership::{self, Group, Members},
        spread::{self, MOVES_AT_ONCE, REPLICATION},
    },
};
use proptest::prelude::*;

/// Nodes and where shards are; moves arrive one by one.
#[derive(Debug, Clone)]
struct Cluster {
    nodes: BTreeSet<NodeId>,
    replicas: BTreeMap<ShardId, Replicas>,
    /// Replicas copied.
    copied: usize,
    /// Changes of a preferred leader without a move.
    passed_on: usize,
}

impl Cluster {
    fn new(shards: u32) -> Self {
        let here = Replicas { nodes: vec![1], target: vec![1], membership_index: 0 };
        let replicas = (0..shards).map(|shard| (ShardId(shard), here.clone())).collect();
        Self { nodes: BTreeSet::from([1]), replicas, copied: 0, passed_on: 0 }
    }

    fn add_nodes(&mut self, count: u64) {
        let last = self.nodes.last().copied().unwrap_or(0);
        self.nodes.extend(last + 1..=last + count);
    }

    fn plan(&self) -> Vec<spread::Step> {
        spread::plan(&self.nodes, &self.replicas)
    }

    /// Takes the next steps; false: there are none.
    fn step(&mut self) -> bool {
        let plan = self.plan();
        for spread::Step { shard, target, why } in &plan {
            let replicas = self.replicas.get_mut(shard).expect("a known shard");
            assert!(replicas.settled(), "{shard} is on its way: {why}");
            assert!(target.len() >= REPLICATION.min(self.nodes.len()), "{target:?}");
            assert_eq!(target.iter().collect::<BTreeSet<_>>().len(), target.len(), "each once");
            assert!(target.iter().all(|node| self.nodes.contains(node)));
            let added = target.iter().filter(|node| !replicas.target.contains(node)).count();
            self.copied += added;
            self.passed_on += usize::from(added == 0);
            replicas.target.clone_from(target);
        }
        for node in &self.nodes {
            assert!(self.arriving().filter(|(_, new)| new.contains(node)).count() <= MOVES_AT_ONCE);
        }
        !plan.is_empty()
    }

    fn arriving(&self) -> impl Iterator<Item = (ShardId, Vec<NodeId>)> {
        self.replicas.iter().filter(|(_, replicas)| !replicas.settled()).map(|(shard, replicas)| {
            (*shard, replicas.target.iter().filter(|node| !replicas.nodes.contains(node)).copied().collect())
        })
    }

    /// One of the shards that are on their way arrives; which one, somebody else chooses.
    fn arrive(&mut self, choice: usize) {
        let arriving: Vec<ShardId> = self.arriving().map(|(shard, _)| shard).collect();
        if let Some(shard) = arriving.get(choice % arriving.len().max(1)) {
            let replicas = self.replicas.get_mut(shard).expect("a known shard");
            replicas.nodes.clone_from(&replicas.target);
            replicas.nodes.sort_unstable();
        }
    }

    /// Everything arrives, in some order, until there is nothing left to plan.
    fn settle(&mut self, choices: &[usize]) {
        let mut choices = choices.iter().cycle();
        let bound = 10 * (self.replicas.len() + 1) * self.nodes.len();
        for _ in 0..bound {
            let stepped = self.step();
            if !stepped && self.arriving().next().is_none() {
                return;
            }
            self.arrive(*choices.next().expect("cycles"));
        }
        panic!("no end after {bound} steps");
    }

    fn count(&self, nodes_of: impl Fn(&Replicas) -> &[NodeId]) -> BTreeMap<NodeId, usize> {
        let mut count: BTreeMap<NodeId, usize> = self.nodes.iter().map(|node| (*node, 0)).collect();
        for node in self.replicas.values().flat_map(nodes_of) {
            *count.get_mut(node).expect("a known node") += 1;
        }
        count
    }

    fn assert_level(&self) {
        for (what, count) in [
            ("replicas", self.count(|replicas| &replicas.target)),
            ("preferred leaders", self.count(|replicas| &replicas.target[..1])),
        ] {
            let (most, fewest) = (count.values().max(), count.values().min());
            assert!(most <= fewest.map(|fewest| fewest + 1).as_ref(), "{what}: {count:?}");
        }
        let replication = REPLICATION.min(self.nodes.len());
        assert!(self.replicas.values().all(|replicas| replicas.settled() && replicas.target.len() == replication));
        assert!(self.plan().is_empty(), "nothing left to do");
    }

    /// The fewest replicas that have to be copied to give each shard its number and level the nodes.
    fn fewest_copies(&self) -> usize {
        let replication = REPLICATION.min(self.nodes.len());
        let missing: usize = self.replicas.values().map(|replicas| replication - replicas.target.len()).sum();
        let (total, nodes) = (self.replicas.len() * replication, self.nodes.len());
        let mut loads: Vec<usize> = self.count(|replicas| &replicas.target).into_values().collect();
        loads.sort_unstable_by(|a, b| b.cmp(a));
        let shares = (0..nodes).map(|at| total / nodes + usize::from(at < total % nodes));
        let short: usize = loads.iter().zip(shares).map(|(load, share)| share.saturating_sub(*load)).sum();
        missing.max(short)
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 100, ..Default::default() })]

    #[test]
    fn shards_spread_over_nodes_as_they_come(
        shards in 1..=32u32,
        arrivals in prop::collection::vec((1..4u64, 0..200usize), 1..4),
        choices in prop::collection::vec(any::<usize>(), 1..40),
    ) {
        let mut cluster = Cluster::new(shards);
        for (nodes, moves_before_the_next) in arrivals {
            cluster.add_nodes(nodes);
            for at in 0..moves_before_the_next {
                cluster.step();
                cluster.arrive(choices[at % choices.len()]);
            }
        }
        cluster.settle(&choices);
        cluster.assert_level();
    }

    #[test]
    fn no_more_is_copied_than_has_to_be_and_leaders_are_passed_on_once(
        shards in 1..=48u32,
        first in 0..4u64,
        then in 1..5u64,
        choices in prop::collection::vec(any::<usize>(), 1..40),
    ) {
        let mut cluster = Cluster::new(shards);
        for nodes in [first, then] {
            cluster.add_nodes(nodes);
            let fewest = cluster.fewest_copies();
            (cluster.copied, cluster.passed_on) = (0, 0);
            cluster.settle(&choices);
            cluster.assert_level();
            prop_assert_eq!(cluster.copied, fewest);
            prop_assert!(cluster.passed_on <= shards as usize);
        }
    }

    #[test]
    fn the_members_of_a_group_arrive_from_wherever_they_are(
        voters in prop::collection::btree_set(1..7u64, 1..4),
        next_voters in prop::option::of(prop::collection::btree_set(1..7u64, 1..4)),
        learners in prop::collection::btree_set(1..7u64, 0..3),
        target in prop::collection::btree_set(1..7u64, 1..4),
        leader in any::<prop::sample::Index>(),
    ) {
        let voter_sets: Vec<BTreeSet<NodeId>> = std::iter::once(voters.clone()).chain(next_voters).collect();
        let all: BTreeSet<NodeId> = voter_sets.iter().flatten().copied().collect();
        let leader = *leader.get(&all.iter().copied().collect::<Vec<_>>());
        let learners = learners.difference(&all).copied().collect();
        let near = Progress { matched: Some(5), heard_ago: Some(Duration::ZERO) };
        let progress = (1..7).map(|node| (node, near)).collect();
        let mut group = Group { leader, voter_sets, learners, committed: true, last_log: 5, progress };
        let wanted = Members { voters: target, learners: BTreeSet::new() };
        let mut steps = 0;
        loop {
            let step = membership::next(&group, &wanted);
            if step == membership::Step::Done {
                break;
            }
            obey(&mut group, step);
            steps += 1;
            prop_assert!(steps <= 8, "{group:?}");
        }
        prop_assert_eq!(&group.voter_sets, std::slice::from_ref(&wanted.voters));
        prop_assert!(group.learners.is_empty() && wanted.voters.contains(&group.leader));
    }
}

/// Does what consensus does.
fn obey(group: &mut Group, step: membership::Step) {
    use membership::Step::*;
    match step {
        FinishJoint => {
            let gone = group.voter_sets.remove(0);
            assert!(!gone.is_empty());
            // A leader that has changed itself away is followed by one of the voters.
            if !group.voter_sets[0].contains(&group.leader) {
                group.leader = *group.voter_sets[0].first().expect("voters");
            }
        }
        AddLearners(nodes) => group.learners.extend(nodes),
        ChangeVoters(voters) => {
            let members = group.voter_sets[0].union(&group.learners).copied().collect::<BTreeSet<_>>();
            assert!(voters.is_subset(&members), "only members vote");
            assert!(voters.contains(&group.leader), "the leader goes last");
            group.learners.retain(|node| !voters.contains(node));
            group.voter_sets.push(voters);
        }
        HandOver(node) => {
            assert!(group.voter_sets[0].contains(&node));
            group.leader = node;
        }
        RemoveLearners(nodes) => group.learners.retain(|node| !nodes.contains(node)),
        Done | Commit | CatchUp(_) | Successor(_) => panic!("nothing to wait for: {step:?} of {group:?}"),
    }
}

#[test]
fn the_largest_cluster_of_shards_spreads_too() {
    let mut cluster = Cluster::new(256);
    for nodes in [2, 2, 60] {
        cluster.add_nodes(nodes);
        while cluster.step() {
            while cluster.arriving().next().is_some() {
                cluster.arrive(0);
            }
        }
        cluster.assert_level();
    }
}

#[test]
fn a_node_that_is_on_its_way_for_ever_does_not_hold_up_another() {
    let mut cluster = Cluster::new(64);
    cluster.add_nodes(2);
    cluster.settle(&[0]);
    cluster.add_nodes(1);
    assert!(cluster.step());
    let stuck = cluster.arriving().count();
    assert_eq!(stuck, MOVES_AT_ONCE);
    assert!(!cluster.step(), "nothing more for a node that takes nothing up");
    cluster.add_nodes(1);
    assert!(cluster.step());
    assert!(cluster.arriving().any(|(_, new)| new == [5]));
}

#[test]
fn planning_is_pure() {
    const BANS: &[&str] = &[
        "std::time::Instant",
        "Instant::",
        "SystemTime",
        "tokio",
        "async ",
        ".await",
        "rand::",
        "HashMap",
        "HashSet",
        "tracing::",
        "static ",
        "std::io",
        "std::fs",
        "std::net",
        "std::env",
        "crate::host",
        "crate::raft",
    ];
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/placement");
    let mut files = 0;
    for entry in fs::read_dir(folder).expect("a folder of sources") {
        let text = fs::read_to_string(entry.expect("an entry").path()).expect("a source is readable");
        let code = text.lines().take_while(|line| !line.starts_with("#[cfg(test)]"));
        for line in code.filter(|line| !line.trim_start().starts_with("//")) {
            let line = line.replace("&'static ", "&");
            assert_eq!(BANS.iter().find(|ban| line.contains(**ban)), None, "{line}");
        }
        files += 1;
    }
    assert!(files >= 5, "the planner moved: {files} files");
}
