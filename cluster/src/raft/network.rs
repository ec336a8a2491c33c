//! The transport seam: how the groups of one node reach their members elsewhere.

use std::{future::Future, sync::Arc};

use async_trait::async_trait;
use futures::{Stream, StreamExt, future::ready};
use openraft::{
    AnyError, OptionalSend, RaftNetworkFactory, RaftNetworkV2,
    base::{BoxFuture, BoxStream},
    errors::{NetworkError, RPCError, ReplicationClosed, StreamingError, Unreachable},
    network::RPCOption,
    raft::{
        AppendEntriesRequest, AppendEntriesResponse, SnapshotResponse, StreamAppendResult, TransferLeaderRequest,
        TransferLeaderResponse, VoteRequest, VoteResponse,
    },
};

use super::{
    SnapshotData,
    types::{Member, Snapshot, TypeConfig, Vote},
};
use crate::{GroupId, NodeId};

/// The result of a call to a peer.
pub type Rpc<T> = Result<T, RPCError<TypeConfig>>;

/// Where a call goes.
#[derive(Debug, Clone)]
pub struct Peer {
    /// The group it is about.
    pub group: GroupId,
    /// The node.
    pub node: NodeId,
    /// Its address.
    pub member: Member,
}

/// Carries the calls of all groups of a node to their members elsewhere. An implementation ends every call by the
/// option's time limit, in the order of the calls of one group to one peer.
#[async_trait]
pub trait Transport: Send + Sync + 'static {
    /// How many appends of one group may be under way to one peer at once. More than one only if appends arrive in
    /// the order in which they were first polled, also when that is before the answer to the one before.
    fn pipeline(&self) -> usize {
        1
    }

    /// Says that the leader is alive: an append without entries, which may overtake others.
    async fn heartbeat(
        &self,
        peer: &Peer,
        request: AppendEntriesRequest<TypeConfig>,
        option: RPCOption,
    ) -> Rpc<AppendEntriesResponse<TypeConfig>> {
        self.append(peer, request, option).await
    }

    /// Replicates entries, and says how far the leader has committed.
    async fn append(
        &self,
        peer: &Peer,
        request: AppendEntriesRequest<TypeConfig>,
        option: RPCOption,
    ) -> Rpc<AppendEntriesResponse<TypeConfig>>;

    /// Asks for a vote.
    async fn vote(
        &self,
        peer: &Peer,
        request: VoteRequest<TypeConfig>,
        option: RPCOption,
    ) -> Rpc<VoteResponse<TypeConfig>>;

    /// Asks whether a vote would be given. The peer must really be asked: a node that grants itself pre-votes in its
    /// peers' names raises the term for ever while it is cut off.
    async fn pre_vote(
        &self,
        peer: &Peer,
        request: VoteRequest<TypeConfig>,
        option: RPCOption,
    ) -> Rpc<VoteResponse<TypeConfig>>;

    /// Sends a snapshot and waits until the peer has installed it.
    async fn snapshot(
        &self,
        peer: &Peer,
        vote: Vote,
        snapshot: Snapshot,
        option: RPCOption,
    ) -> Result<SnapshotResponse<TypeConfig>, StreamingError<TypeConfig>>;

    /// Tells a peer that it is to take over.
    async fn transfer_leader(
        &self,
        peer: &Peer,
        request: TransferLeaderRequest<TypeConfig>,
        option: RPCOption,
    ) -> Rpc<TransferLeaderResponse<TypeConfig>>;
}

/// The transport of a node that has no peers: nobody can be reached, in particular nobody grants a (pre-)vote.
#[derive(Debug, Default)]
pub struct NoPeers;

fn unreachable(peer: &Peer) -> Unreachable<TypeConfig> {
    Unreachable::new(&AnyError::error(format!("no transport to node {} ({})", peer.node, peer.group)))
}

#[async_trait]
impl Transport for NoPeers {
    async fn append(
        &self,
        peer: &Peer,
        _: AppendEntriesRequest<TypeConfig>,
        _: RPCOption,
    ) -> Rpc<AppendEntriesResponse<TypeConfig>> {
        Err(unreachable(peer).into())
    }

    async fn vote(&self, peer: &Peer, _: VoteRequest<TypeConfig>, _: RPCOption) -> Rpc<VoteResponse<TypeConfig>> {
        Err(unreachable(peer).into())
    }

    async fn pre_vote(&self, peer: &Peer, _: VoteRequest<TypeConfig>, _: RPCOption) -> Rpc<VoteResponse<TypeConfig>> {
        Err(unreachable(peer).into())
    }

    async fn snapshot(
        &self,
        peer: &Peer,
        _: Vote,
        _: Snapshot,
        _: RPCOption,
    ) -> Result<SnapshotResponse<TypeConfig>, StreamingError<TypeConfig>> {
        Err(unreachable(peer).into())
    }

    async fn transfer_leader(
        &self,
        peer: &Peer,
        _: TransferLeaderRequest<TypeConfig>,
        _: RPCOption,
    ) -> Rpc<TransferLeaderResponse<TypeConfig>> {
        Err(unreachable(peer).into())
    }
}

/// One group's way to the transport.
#[derive(Clone)]
pub struct GroupNetwork {
    group: GroupId,
    transport: Arc<dyn Transport>,
}

impl GroupNetwork {
    /// The network of a group.
    pub fn new(group: GroupId, transport: Arc<dyn Transport>) -> Self {
        Self { group, transport }
    }
}

impl RaftNetworkFactory<TypeConfig> for GroupNetwork {
    type Network = PeerNetwork;

    async fn new_client(&mut self, target: NodeId, member: &Member) -> PeerNetwork {
        let peer = Arc::new(Peer { group: self.group, node: target, member: member.clone() });
        PeerNetwork { peer, transport: self.transport.clone(), heartbeats: false }
    }

    async fn new_heartbeat_client(&mut self, target: NodeId, member: &Member) -> PeerNetwork {
        PeerNetwork { heartbeats: true, ..self.new_client(target, member).await }
    }
}

/// One group's way to one peer.
pub struct PeerNetwork {
    peer: Arc<Peer>,
    transport: Arc<dyn Transport>,
    heartbeats: bool,
}

type Answers<'s> = BoxStream<'s, Rpc<StreamAppendResult<TypeConfig>>>;

/// One append and what it means for the stream it belongs to: how far the peer matches now, and whether all of the
/// request was taken.
async fn append(
    peer: Arc<Peer>,
    transport: Arc<dyn Transport>,
    heartbeat: bool,
    request: AppendEntriesRequest<TypeConfig>,
    option: RPCOption,
) -> (Rpc<StreamAppendResult<TypeConfig>>, bool) {
    let before = request.prev_log_id;
    let last = request.entries.last().map(|entry| entry.log_id).or(before);
    let answer = match heartbeat {
        true => transport.heartbeat(&peer, request, option).await,
        false => transport.append(&peer, request, option).await,
    };
    match answer {
        Err(e) => (Err(e), false),
        // openraft takes for granted that the beginning of the log never conflicts.
        Ok(AppendEntriesResponse::Conflict) if before.is_none() => {
            let what = format!("node {} found a conflict before the first entry ({})", peer.node, peer.group);
            (Err(NetworkError::from_string(what).into()), false)
        }
        Ok(answer) => {
            let answer = answer.into_stream_result(before, last);
            let all = matches!(&answer, Ok(matched) if *matched == last);
            (Ok(answer), all)
        }
    }
}

impl RaftNetworkV2<TypeConfig> for PeerNetwork {
    type SnapshotData = SnapshotData;

    async fn append_entries(
        &mut self,
        rpc: AppendEntriesRequest<TypeConfig>,
        option: RPCOption,
    ) -> Rpc<AppendEntriesResponse<TypeConfig>> {
        self.transport.append(&self.peer, rpc, option).await
    }

    fn stream_append<'s, S>(&'s mut self, input: S, option: RPCOption) -> BoxFuture<'s, Rpc<Answers<'s>>>
    where
        S: Stream<Item = AppendEntriesRequest<TypeConfig>> + OptionalSend + Unpin + 'static,
    {
        let (peer, transport, heartbeat) = (self.peer.clone(), self.transport.clone(), self.heartbeats);
        let calls =
            input.map(move |request| append(peer.clone(), transport.clone(), heartbeat, request, option.clone()));
        let mut going_on = true;
        let answers = calls
            .buffered(self.transport.pipeline().max(1))
            // Nothing is worth hearing after the first append that failed.
            .take_while(move |(_, all)| ready(std::mem::replace(&mut going_on, *all)))
            .map(|(answer, _)| answer);
        let answers: Answers<'s> = Box::pin(answers);
        Box::pin(ready(Ok(answers)))
    }

    async fn vote(&mut self, rpc: VoteRequest<TypeConfig>, option: RPCOption) -> Rpc<VoteResponse<TypeConfig>> {
        self.transport.vote(&self.peer, rpc, option).await
    }

    async fn pre_vote(&mut self, rpc: VoteRequest<TypeConfig>, option: RPCOption) -> Rpc<VoteResponse<TypeConfig>> {
        self.transport.pre_vote(&self.peer, rpc, option).await
    }

    async fn full_snapshot(
        &mut self,
        vote: Vote,
        snapshot: Snapshot,
        cancel: impl Future<Output = ReplicationClosed> + Send + 'static,
        option: RPCOption,
    ) -> Result<SnapshotResponse<TypeConfig>, StreamingError<TypeConfig>> {
        tokio::select! {
            closed = cancel => Err(closed.into()),
            sent = self.transport.snapshot(&self.peer, vote, snapshot, option) => sent,
        }
    }

    async fn transfer_leader(
        &mut self,
        request: TransferLeaderRequest<TypeConfig>,
        option: RPCOption,
    ) -> Rpc<TransferLeaderResponse<TypeConfig>> {
        self.transport.transfer_leader(&self.peer, request, option).await
    }
}
