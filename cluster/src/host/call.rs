//! Commands and reads that go wherever their group's leader is.

use std::time::Duration;

use bytes::Bytes;
use openraft::ReadPolicy;
use prost::Message;
use tokio::time::{Instant, sleep, timeout_at};
use tonic::{Code, Request, Status, transport::Channel};

use super::{Applied, Leadership, MAX_COMMAND_BYTES, ProposeError, group::Group, shared::Shared};
use crate::{
    GroupId, NodeId,
    proto::{
        DirectoryCommand, DirectoryReply, NotLeader, ProposeRequest, ReadIndexRequest, directory_command,
        directory_reply, peer_service_client::PeerServiceClient, propose_response, read_index_response,
    },
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
        let mut client = self.client(node).ok_or(UNREACHABLE)?;
        let mut request = Request::new(ProposeRequest { group: group.0, command });
        request.set_timeout(deadline.saturating_duration_since(Instant::now()));
        let answer = match timeout_at(deadline, client.propose(request)).await {
            Err(_) => return Err(ProposeError::Unknown("the leader did not answer before the deadline")),
            Ok(Err(status)) if surely_not_done(&status) => return Err(UNREACHABLE),
            Ok(Err(_)) => return Err(ProposeError::Unknown("the connection to the leader broke")),
            Ok(Ok(answer)) => answer.into_inner().result,
        };
        match answer {
            Some(propose_response::Result::Applied(done)) => Ok(Applied { index: done.index, reply: done.reply }),
            Some(propose_response::Result::NotLeader(other)) => Err(not_leader(&other)),
            Some(propose_response::Result::Unavailable(why)) => {
                tracing::debug!(node, %group, why, "the leader refused a command");
                Err(ProposeError::Unavailable("the leader can't take it now"))
            }
            Some(propose_response::Result::Overloaded(_)) => Err(ProposeError::Overloaded),
            Some(propose_response::Result::Unknown(why)) => {
                tracing::debug!(node, %group, why, "the leader does not know what became of a command");
                Err(ProposeError::Unknown("the leader does not know"))
            }
            None => Err(ProposeError::Unknown("the leader's answer says nothing")),
        }
    }

    /// The way to another node's host.
    pub(super) fn client(&self, node: NodeId) -> Option<PeerServiceClient<Channel>> {
        // A reply may be as long as a command.
        let client = PeerServiceClient::new(self.peers.channel(node)?);
        Some(client.max_decoding_message_size(MAX_MESSAGE_BYTES).max_encoding_message_size(MAX_MESSAGE_BYTES))
    }

    /// Returns once this node's replica has applied everything that was acknowledged anywhere before the call.
    pub(super) async fn read_index(&self, group: GroupId, deadline: Instant) -> Result<(), ProposeError> {
        let here = self.groups.get(group).ok_or(ProposeError::NotLeader { leader: None })?;
        let mut leadership = here.leadership.clone();
        let (mut wait, mut hint) = (FIRST_WAIT, None);
        let index = loop {
            let now = *leadership.borrow_and_update();
            let asked = match now {
                Leadership::Leader { .. } => None,
                Leadership::Follower { leader } => hint.take().or(leader),
            };
            let result = match (now, asked) {
                (Leadership::Leader { .. }, _) => read_index_here(&here, deadline).await,
                (_, Some(node)) => self.read_index_at(node, group, deadline).await.map(Some),
                (_, None) => Err(ProposeError::Unavailable("the shard has no leader yet")),
            };
            match result {
                Ok(index) => break index,
                Err(ProposeError::NotLeader { leader: Some(leader) })
                    if Some(leader) != asked && leader != self.node_id =>
                {
                    hint = Some(leader);
                }
                Err(e) if Instant::now() + wait >= deadline => return Err(e),
                Err(_) if self.gate.is_stopping() => return Err(ProposeError::Stopping),
                Err(_) => {}
            }
            tokio::select! {
                _ = leadership.changed() => {}
                () = sleep(wait) => {}
            }
            wait = (2 * wait).min(LONGEST_WAIT);
        };
        let applied = here.raft.wait(None);
        let applied = timeout_at(deadline, applied.applied_index_at_least(index, "a read")).await;
        applied
            .map_err(|_| ProposeError::Unavailable("not applied before the deadline"))?
            .map(drop)
            .map_err(|_| ProposeError::Stopping)
    }

    async fn read_index_at(&self, node: NodeId, group: GroupId, deadline: Instant) -> Result<u64, ProposeError> {
        let mut client = self.client(node).ok_or(UNREACHABLE)?;
        let mut request = Request::new(ReadIndexRequest { group: group.0 });
        request.set_timeout(deadline.saturating_duration_since(Instant::now()));
        let answer = timeout_at(deadline, client.read_index(request)).await;
        // A read can be repeated whatever became of it.
        let answer = answer.map_err(|_| UNREACHABLE)?.map_err(|_| UNREACHABLE)?;
        match answer.into_inner().result {
            Some(read_index_response::Result::Index(index)) => Ok(index),
            Some(read_index_response::Result::NotLeader(other)) => Err(not_leader(&other)),
            Some(read_index_response::Result::Unavailable(_)) | None => {
                Err(ProposeError::Unavailable("the leader has no read index now"))
            }
        }
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

const UNREACHABLE: ProposeError = ProposeError::Unavailable("the leader can't be reached");

/// Longest message between hosts: a command or reply, and what is around it.
const MAX_MESSAGE_BYTES: usize = MAX_COMMAND_BYTES + (64 << 10);

fn not_leader(answer: &NotLeader) -> ProposeError {
    ProposeError::NotLeader { leader: Some(answer.leader).filter(|leader| *leader != 0) }
}

/// Whether a call has surely not reached the code that carries it out: there was no connection, or the other end
/// refused it before. Any other failure may have come after.
fn surely_not_done(status: &Status) -> bool {
    if matches!(status.code(), Code::Unimplemented | Code::Unauthenticated | Code::PermissionDenied) {
        return true;
    }
    let mut source = std::error::Error::source(status);
    while let Some(error) = source {
        if error.is::<tonic::ConnectError>() {
            return true;
        }
        source = error.source();
    }
    false
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
