//! What a leader sees of its group, as values for [`crate::placement`].

use openraft::{Instant as _, async_runtime::watch::WatchReceiver};

use super::{Leadership, group::Group};
use crate::{
    GroupId, NodeId, ShardId,
    directory::Directory,
    placement::{
        Progress, ProgressOf,
        membership::{self, Members},
    },
    raft::types::LogId,
};

/// A group as its leader sees it, and the log entry that its membership is from.
pub(super) struct Seen {
    pub(super) group: membership::Group,
    pub(super) membership_id: Option<LogId>,
}

impl Seen {
    /// Its voters, unless they are changing.
    pub(super) fn voters(&self) -> Option<Vec<NodeId>> {
        match self.group.voter_sets.as_slice() {
            [voters] if self.group.committed => Some(voters.iter().copied().collect()),
            _ => None,
        }
    }
}

/// Whether this node leads the group.
pub(super) fn leads(group: &Group) -> bool {
    matches!(*group.leadership.borrow(), Leadership::Leader { .. })
}

/// Looks at a group; `None`: this node does not lead it.
pub(super) fn observe(group: &Group) -> Option<Seen> {
    let metrics = group.raft.metrics();
    let metrics = metrics.borrow_watched();
    let (matched, heard) = (metrics.replication.as_ref()?, metrics.heartbeat.as_ref()?);
    let progress: ProgressOf = matched
        .iter()
        .map(|(node, matched)| {
            let heard_ago = heard.get(node).and_then(Option::as_ref).map(|at| at.elapsed());
            (*node, Progress { matched: matched.as_ref().map(|id| id.index), heard_ago })
        })
        .collect();
    let members = &metrics.membership_config;
    let group = membership::Group {
        leader: metrics.id,
        voter_sets: members.get_joint_config().clone(),
        learners: members.membership().learner_ids().collect(),
        committed: metrics.membership_config.log_id() == metrics.committed_membership_config.log_id(),
        last_log: metrics.last_log_index.unwrap_or(0),
        progress,
    };
    Some(Seen { group, membership_id: *members.log_id() })
}

/// The members that a group is to have; `None`: the directory does not know the group.
pub(super) fn wanted(directory: &Directory, group: GroupId) -> Option<Members> {
    match shard_of(group) {
        None => directory.cluster.as_ref().map(|_| Members::of_directory(directory.nodes.keys().copied())),
        Some(shard) => directory.replicas.get(&shard).map(|replicas| Members::of_shard(&replicas.target)),
    }
}

/// The shard that a group replicates; `None`: it is the directory's.
pub(super) fn shard_of(group: GroupId) -> Option<ShardId> {
    group.0.checked_sub(1).map(ShardId)
}
