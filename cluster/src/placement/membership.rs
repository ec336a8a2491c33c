//! The next change of a group's members, decided by its leader.
//!
//! Learner, caught up, joint, final: a new member first copies the log without a say, and votes only when it is close;
//! voters change by a joint configuration, where the old and the new ones both have to agree. Whatever a dead leader
//! has left half done is finished first. A leader that is to go hands over before it goes.

use std::collections::BTreeSet;

use super::ProgressOf;
use crate::NodeId;

/// Entries that a member may miss and still become a voter. It gets them within a few messages; until then commits wait
/// for it at worst that long.
pub const VOTER_LAG: u64 = 1_000;
/// Most voters of the directory: more make it slower and not much safer.
pub const DIRECTORY_VOTERS: usize = 5;

/// A group as its leader sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Group {
    /// The leader.
    pub leader: NodeId,
    /// One set of voters, or two while they change (the latter is where they change to).
    pub voter_sets: Vec<BTreeSet<NodeId>>,
    /// Members that have no say.
    pub learners: BTreeSet<NodeId>,
    /// Whether this configuration is committed. Nothing may change before.
    pub committed: bool,
    /// Last log index of the leader.
    pub last_log: u64,
    /// How far the members are.
    pub progress: ProgressOf,
}

/// The members that a group is to have.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Members {
    /// Those with a say; never empty.
    pub voters: BTreeSet<NodeId>,
    /// Those without.
    pub learners: BTreeSet<NodeId>,
}

impl Members {
    /// A shard's: the nodes it is to be on.
    pub fn of_shard(target: &[NodeId]) -> Self {
        Self { voters: target.iter().copied().collect(), learners: BTreeSet::new() }
    }

    /// The directory's: every node; the first five vote, or fewer so that their number is odd.
    pub fn of_directory(nodes: impl IntoIterator<Item = NodeId>) -> Self {
        let mut voters: BTreeSet<NodeId> = nodes.into_iter().collect();
        let odd = voters.len() - usize::from(voters.len().is_multiple_of(2) && !voters.is_empty());
        let first_learner = voters.iter().nth(odd.min(DIRECTORY_VOTERS)).copied();
        let learners = first_learner.map(|first| voters.split_off(&first)).unwrap_or_default();
        Self { voters, learners }
    }

    fn contains(&self, node: NodeId) -> bool {
        self.voters.contains(&node) || self.learners.contains(&node)
    }
}

/// What the leader does next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// Everything is as it is to be.
    Done,
    /// Nothing can be done before the change under way is committed.
    Commit,
    /// These new members are not close enough to vote yet.
    CatchUp(BTreeSet<NodeId>),
    /// The voter that is to take over is not close enough yet, or does not answer.
    Successor(BTreeSet<NodeId>),
    /// Leave the joint configuration for its latter set of voters.
    FinishJoint,
    /// Take these up as learners.
    AddLearners(BTreeSet<NodeId>),
    /// Change to these voters. All of them are members that are close.
    ChangeVoters(BTreeSet<NodeId>),
    /// Hand the leadership over: this node is to go.
    HandOver(NodeId),
    /// Let go of these learners.
    RemoveLearners(BTreeSet<NodeId>),
}

/// The next step towards the wanted members.
pub fn next(group: &Group, wanted: &Members) -> Step {
    let Some(voters) = group.voter_sets.last().filter(|_| group.committed && !wanted.voters.is_empty()) else {
        return Step::Commit;
    };
    if group.voter_sets.len() > 1 {
        return Step::FinishJoint;
    }
    let is_member = |node: &NodeId| voters.contains(node) || group.learners.contains(node);
    let missing: BTreeSet<NodeId> =
        wanted.voters.iter().chain(&wanted.learners).filter(|node| !is_member(node)).copied().collect();
    if !missing.is_empty() {
        return Step::AddLearners(missing);
    }
    if *voters != wanted.voters {
        return change_voters(group, voters, wanted);
    }
    let surplus: BTreeSet<NodeId> = group.learners.iter().filter(|node| !wanted.contains(**node)).copied().collect();
    if surplus.is_empty() { Step::Done } else { Step::RemoveLearners(surplus) }
}

fn is_close(group: &Group, node: NodeId) -> bool {
    node == group.leader
        || group.progress.get(&node).is_some_and(|progress| progress.is_close(group.last_log, VOTER_LAG))
}

fn change_voters(group: &Group, voters: &BTreeSet<NodeId>, wanted: &Members) -> Step {
    let far: BTreeSet<NodeId> =
        wanted.voters.difference(voters).filter(|node| !is_close(group, **node)).copied().collect();
    if !far.is_empty() {
        return Step::CatchUp(far);
    }
    if wanted.voters.contains(&group.leader) {
        return Step::ChangeVoters(wanted.voters.clone());
    }
    // The leader goes last.
    let heirs: BTreeSet<NodeId> = voters.intersection(&wanted.voters).copied().collect();
    if heirs.is_empty() {
        let with_leader = wanted.voters.iter().chain([&group.leader]).copied().collect();
        return Step::ChangeVoters(with_leader);
    }
    let closest = heirs.iter().filter(|heir| is_close(group, **heir));
    let closest = closest.max_by_key(|heir| group.progress.get(heir).and_then(|progress| progress.matched));
    closest.map_or(Step::Successor(heirs.clone()), |heir| Step::HandOver(*heir))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::placement::Progress;

    fn set(nodes: &[NodeId]) -> BTreeSet<NodeId> {
        nodes.iter().copied().collect()
    }

    /// A group led by node 1 with 10,000 entries; members have matched this many.
    fn group(voter_sets: &[&[NodeId]], learners: &[NodeId], matched: &[(NodeId, u64)]) -> Group {
        let heard_ago = Some(Duration::from_millis(20));
        let progress = matched.iter().map(|(node, index)| (*node, Progress { matched: Some(*index), heard_ago }));
        Group {
            leader: 1,
            voter_sets: voter_sets.iter().map(|voters| set(voters)).collect(),
            learners: set(learners),
            committed: true,
            last_log: 10_000,
            progress: progress.collect(),
        }
    }

    fn shard(target: &[NodeId]) -> Members {
        Members::of_shard(target)
    }

    #[test]
    fn members_come_as_learners_vote_when_they_are_close_and_go_when_they_are_not_wanted() {
        let all = &[(1, 10_000), (2, 9_500), (3, 9_000), (4, 10_000)];
        let table: [(&str, Group, Members, Step); 16] = [
            ("alone", group(&[&[1]], &[], all), shard(&[1]), Step::Done),
            ("new nodes", group(&[&[1]], &[], all), shard(&[1, 2, 3]), Step::AddLearners(set(&[2, 3]))),
            ("one was added", group(&[&[1]], &[2], all), shard(&[1, 2, 3]), Step::AddLearners(set(&[3]))),
            ("both are close", group(&[&[1]], &[2, 3], all), shard(&[3, 2, 1]), Step::ChangeVoters(set(&[1, 2, 3]))),
            (
                "one is far",
                group(&[&[1]], &[2, 3], &[(1, 10_000), (2, 10_000), (3, 8_999)]),
                shard(&[1, 2, 3]),
                Step::CatchUp(set(&[3])),
            ),
            ("nothing heard", group(&[&[1]], &[2], &[(1, 10_000)]), shard(&[1, 2]), Step::CatchUp(set(&[2]))),
            ("joint, on the way", group(&[&[1], &[1, 2, 3]], &[], all), shard(&[1, 2, 3]), Step::FinishJoint),
            ("joint, wanted no more", group(&[&[1, 2], &[1, 2, 3]], &[], all), shard(&[1, 2]), Step::FinishJoint),
            ("joint, without the leader", group(&[&[1, 2, 3], &[2, 3, 4]], &[], all), shard(&[2, 3, 4]), {
                Step::FinishJoint
            }),
            ("arrived", group(&[&[1, 2, 3]], &[], all), shard(&[3, 1, 2]), Step::Done),
            (
                "a replaced node",
                group(&[&[1, 2, 3]], &[4], all),
                shard(&[1, 2, 4]),
                Step::ChangeVoters(set(&[1, 2, 4])),
            ),
            ("a learner too many", group(&[&[1, 2]], &[4], all), shard(&[1, 2]), Step::RemoveLearners(set(&[4]))),
            ("the leader goes", group(&[&[1, 2, 3]], &[4], all), shard(&[2, 3, 4]), Step::HandOver(2)),
            (
                "the leader goes, nobody is close",
                group(&[&[1, 2, 3]], &[4], &[(2, 5), (3, 5), (4, 10_000)]),
                shard(&[2, 3, 4]),
                Step::Successor(set(&[2, 3])),
            ),
            ("all go", group(&[&[1]], &[2, 3], all), shard(&[2, 3]), Step::ChangeVoters(set(&[1, 2, 3]))),
            ("all go, second part", group(&[&[1, 2, 3]], &[], all), shard(&[2, 3]), Step::HandOver(2)),
        ];
        for (name, group, wanted, expected) in table {
            assert_eq!(next(&group, &wanted), expected, "{name}");
        }
    }

    #[test]
    fn nothing_changes_before_the_last_change_is_committed() {
        let open = Group { committed: false, ..group(&[&[1], &[1, 2]], &[], &[]) };
        assert_eq!(next(&open, &shard(&[1, 2])), Step::Commit);
    }

    #[test]
    fn a_member_that_has_fallen_silent_gets_no_vote() {
        let mut group = group(&[&[1]], &[2], &[(1, 10_000), (2, 10_000)]);
        let silent = Progress { matched: Some(10_000), heard_ago: Some(Duration::from_secs(2)) };
        group.progress.insert(2, silent);
        assert_eq!(next(&group, &shard(&[1, 2])), Step::CatchUp(set(&[2])));
    }

    #[test]
    fn every_node_is_a_member_of_the_directory_and_an_odd_number_votes() {
        let table: [(&[NodeId], &[NodeId], &[NodeId]); 8] = [
            (&[], &[], &[]),
            (&[1], &[1], &[]),
            (&[1, 2], &[1], &[2]),
            (&[1, 2, 3], &[1, 2, 3], &[]),
            (&[1, 2, 3, 4], &[1, 2, 3], &[4]),
            (&[1, 2, 3, 4, 5], &[1, 2, 3, 4, 5], &[]),
            (&[1, 2, 3, 4, 5, 6], &[1, 2, 3, 4, 5], &[6]),
            (&[1, 2, 4, 5, 7, 8, 9], &[1, 2, 4, 5, 7], &[8, 9]),
        ];
        for (nodes, voters, learners) in table {
            let members = Members::of_directory(nodes.iter().copied());
            assert_eq!(members, Members { voters: set(voters), learners: set(learners) });
        }
    }
}
