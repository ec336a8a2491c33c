//! Raft's calls over the links.

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use openraft::{
    RPCTypes,
    errors::{RPCError, StreamingError, Timeout, Unreachable},
    network::RPCOption,
    raft::{
        AppendEntriesRequest, AppendEntriesResponse, SnapshotResponse, TransferLeaderRequest, TransferLeaderResponse,
        VoteRequest, VoteResponse,
    },
};

use super::{
    Inner, convert,
    link::{CallError, Link},
};
use crate::{
    NodeId,
    proto::frame::Body,
    raft::{
        network::{Peer, Rpc, Transport},
        types::{Snapshot, TypeConfig, Vote},
    },
};

/// Appends of one group to one peer under way at once. An append holds what was proposed since the last one, so a few
/// hide the way and the peer's disk; more would only pile up there.
const PIPELINE: usize = 16;

/// How much longer than a heartbeat the answer to entries may take. It waits for the peer's disk, and giving up means
/// sending everything again to a disk that is slow; a peer that is gone shows in its link, not here.
const APPEND_PATIENCE: u32 = 4;

pub(super) struct LinkTransport(pub(super) Arc<Inner>);

impl LinkTransport {
    fn link(&self, peer: &Peer) -> Result<Arc<Link>, Unreachable<TypeConfig>> {
        let link = self.0.links.read().get(&peer.node).cloned();
        link.ok_or_else(|| Unreachable::from_string(format!("node {} is not known here ({})", peer.node, peer.group)))
    }

    async fn call(
        &self,
        peer: &Peer,
        action: RPCTypes,
        body: Body,
        urgent: bool,
        limit: Duration,
    ) -> Result<Body, RPCError<TypeConfig>> {
        let answer = self.link(peer)?.call(peer.group, body, urgent, limit).await;
        answer.map_err(|e| rpc_error(self.0.node_id, peer, action, &e))
    }

    async fn append_with(
        &self,
        peer: &Peer,
        request: AppendEntriesRequest<TypeConfig>,
        urgent: bool,
        limit: Duration,
    ) -> Rpc<AppendEntriesResponse<TypeConfig>> {
        let body = Body::Append(convert::append_call(&request));
        match self.call(peer, RPCTypes::AppendEntries, body, urgent, limit).await? {
            Body::AppendAnswer(answer) => convert::append_response(answer).map_err(|_| nonsense(peer)),
            _ => Err(nonsense(peer)),
        }
    }
}

fn rpc_error(me: NodeId, peer: &Peer, action: RPCTypes, error: &CallError) -> RPCError<TypeConfig> {
    let what = || format!("node {} ({}): {error}", peer.node, peer.group);
    match error {
        CallError::Timeout(timeout) => Timeout { action, id: me, target: peer.node, timeout: *timeout }.into(),
        // Also when the queue is full: at once there is no more room than now.
        _ => Unreachable::from_string(what()).into(),
    }
}

fn nonsense(peer: &Peer) -> RPCError<TypeConfig> {
    Unreachable::from_string(format!("node {} ({}): {}", peer.node, peer.group, CallError::Nonsense)).into()
}

#[async_trait]
impl Transport for LinkTransport {
    fn pipeline(&self) -> usize {
        PIPELINE
    }

    async fn heartbeat(
        &self,
        peer: &Peer,
        request: AppendEntriesRequest<TypeConfig>,
        option: RPCOption,
    ) -> Rpc<AppendEntriesResponse<TypeConfig>> {
        // All the time that there is: a late answer is as good as none.
        self.append_with(peer, request, true, option.hard_ttl()).await
    }

    async fn append(
        &self,
        peer: &Peer,
        request: AppendEntriesRequest<TypeConfig>,
        option: RPCOption,
    ) -> Rpc<AppendEntriesResponse<TypeConfig>> {
        self.append_with(peer, request, false, option.hard_ttl() * APPEND_PATIENCE).await
    }

    async fn vote(
        &self,
        peer: &Peer,
        request: VoteRequest<TypeConfig>,
        option: RPCOption,
    ) -> Rpc<VoteResponse<TypeConfig>> {
        let body = Body::Vote(convert::vote_call(&request));
        match self.call(peer, RPCTypes::Vote, body, true, option.soft_ttl()).await? {
            Body::VoteAnswer(answer) => convert::vote_response(&answer).map_err(|_| nonsense(peer)),
            _ => Err(nonsense(peer)),
        }
    }

    async fn pre_vote(
        &self,
        peer: &Peer,
        request: VoteRequest<TypeConfig>,
        option: RPCOption,
    ) -> Rpc<VoteResponse<TypeConfig>> {
        let body = Body::PreVote(convert::vote_call(&request));
        match self.call(peer, RPCTypes::Vote, body, true, option.soft_ttl()).await? {
            Body::PreVoteAnswer(answer) => convert::vote_response(&answer).map_err(|_| nonsense(peer)),
            _ => Err(nonsense(peer)),
        }
    }

    async fn snapshot(
        &self,
        peer: &Peer,
        vote: Vote,
        snapshot: Snapshot,
        option: RPCOption,
    ) -> Result<SnapshotResponse<TypeConfig>, StreamingError<TypeConfig>> {
        // Held until the end: one at a time to each peer.
        let link = self.link(peer)?;
        let _turn = link.snapshots.lock().await;
        self.0.send_snapshot(peer, vote, snapshot, option.soft_ttl()).await
    }

    async fn transfer_leader(
        &self,
        peer: &Peer,
        request: TransferLeaderRequest<TypeConfig>,
        option: RPCOption,
    ) -> Rpc<TransferLeaderResponse<TypeConfig>> {
        let body = Body::TransferLeader(convert::transfer_call(&request));
        match self.call(peer, RPCTypes::TransferLeader, body, true, option.soft_ttl()).await? {
            Body::TransferLeaderAnswer(answer) => Ok(convert::transfer_response(&request, &answer)),
            _ => Err(nonsense(peer)),
        }
    }
}
