//! What peers may ask of this node.

use std::{
    io,
    panic::AssertUnwindSafe,
    sync::{Arc, Weak},
    time::Duration,
};

use async_trait::async_trait;
use bytes::Bytes;
use futures::{FutureExt, future::BoxFuture};
use tokio::time::{Instant, timeout_at};
use tonic::Status;

use super::{Leadership, ProposeError, call::read_index_here, failover, report, shared::Shared};
use crate::{
    GroupId, NodeId,
    directory::Directory,
    peer::PeerHandler,
    proto::{
        AddNode, AnnounceRequest, AnnounceResponse, JoinRequest, JoinResponse, LeadsNotice, LedGroup, NotLeader,
        PeerAddress, ProposeApplied, ProposeOverloaded, ProposeRequest, ProposeResponse, ReadIndexRequest,
        ReadIndexResponse, ReportResponse, directory_command, directory_reply, propose_response, read_index_response,
    },
    raft::types::{LogId, Raft},
    security::{Authority, JoinRefused, JoinSecrets},
    storage::SnapshotInstall,
};

/// Time to take up a new node; it asks again.
const JOIN_TIMEOUT: Duration = Duration::from_secs(20);

/// The host, as its peers see it. Holds nothing: what is gone answers that it is stopping.
pub(super) struct Handler(pub(super) Weak<Shared>);

impl Handler {
    fn shared(&self) -> Option<Arc<Shared>> {
        self.0.upgrade().filter(|shared| !shared.gate.fatal.is_set())
    }
}

fn stopping() -> Status {
    Status::unavailable("the node is stopping")
}

#[async_trait]
impl PeerHandler for Handler {
    fn raft(&self, group: GroupId) -> Option<Raft> {
        self.shared()?.groups.get(group).map(|group| group.raft.clone())
    }

    async fn covers(&self, group: GroupId, snapshot: LogId) -> io::Result<bool> {
        match self.shared().and_then(|shared| shared.groups.get(group)) {
            Some(group) => group.log.covers(snapshot).await,
            None => Ok(false),
        }
    }

    fn begin_install(&self, group: GroupId) -> io::Result<Box<dyn SnapshotInstall>> {
        let shared = self.shared().ok_or_else(|| io::Error::other("the node is stopping"))?;
        shared.stores.snapshots.begin_install(group)
    }

    async fn join(&self, request: JoinRequest) -> Result<JoinResponse, Status> {
        let shared = self.shared().ok_or_else(stopping)?;
        let deadline = Instant::now() + JOIN_TIMEOUT;
        let joined = timeout_at(deadline, shared.take_up(request, deadline)).await;
        joined.unwrap_or_else(|_| Err(Status::unavailable("the directory did not answer in time")))
    }

    async fn announce(&self, request: AnnounceRequest) -> Result<AnnounceResponse, Status> {
        let shared = self.shared().ok_or_else(stopping)?;
        if request.cluster_id != shared.cluster_id[..] {
            return Err(Status::permission_denied("this is another cluster"));
        }
        let from = request.from.ok_or_else(|| Status::invalid_argument("from: who announces itself?"))?;
        if from.address.is_empty() || from.address.len() > MAX_ADDRESS_BYTES {
            return Err(Status::invalid_argument(format!("from.address: 1 to {MAX_ADDRESS_BYTES} bytes")));
        }
        let directory = shared.directory.borrow().clone();
        // A newer one has joined since: this copy of the directory is behind.
        let newest = directory.cluster.as_ref().map_or(0, |cluster| cluster.last_node_id);
        if from.node_id <= newest && !directory.nodes.contains_key(&from.node_id) {
            return Err(Status::permission_denied("this cluster has no such node"));
        }
        shared.peers.learn_address(from.node_id, from.address);
        Ok(AnnounceResponse { peers: shared.peer_addresses() })
    }

    async fn propose(&self, request: ProposeRequest, deadline: Instant) -> ProposeResponse {
        let result = match self.shared() {
            Some(shared) => shared.propose_for_peer(GroupId(request.group), request.command, deadline).await,
            None => propose_response::Result::Unavailable("the node is stopping".into()),
        };
        ProposeResponse { result: Some(result) }
    }

    async fn read_index(&self, request: ReadIndexRequest, deadline: Instant) -> ReadIndexResponse {
        let result = match self.shared() {
            Some(shared) => shared.read_index_for_peer(GroupId(request.group), deadline).await,
            None => read_index_response::Result::Unavailable("the node is stopping".into()),
        };
        ReadIndexResponse { result: Some(result) }
    }

    async fn report(&self, deadline: Instant) -> ReportResponse {
        match self.shared() {
            Some(shared) => report::report(&shared, deadline).await,
            None => ReportResponse::default(),
        }
    }

    fn answer(&self, from: NodeId, question: Bytes) -> Option<BoxFuture<'static, Bytes>> {
        let answer = self.shared()?.answerer.get()?.answer(from, question);
        // The link's own task carries it out: it must not take the groups' frames with it.
        Some(Box::pin(AssertUnwindSafe(answer).catch_unwind().map(move |answer| {
            answer.unwrap_or_else(|_| {
                tracing::error!(from, "answering a question panicked");
                Bytes::new()
            })
        })))
    }

    fn leads(&self) -> LeadsNotice {
        let Some(shared) = self.shared() else { return LeadsNotice { leaving: true, ..Default::default() } };
        let led = shared.leaders.led().into_iter().map(|(group, term)| LedGroup { group: group.0, term });
        LeadsNotice { groups: led.collect(), leaving: shared.leaders.is_leaving(shared.node_id) }
    }

    fn peer_leads(&self, from: NodeId, notice: LeadsNotice) {
        if let Some(shared) = self.shared() {
            let groups: Vec<_> = notice.groups.iter().map(|led| (GroupId(led.group), led.term)).collect();
            shared.leaders.set_told(from, &groups);
            shared.leaders.set_leaving(from, notice.leaving);
        }
    }

    fn link_changed(&self, node: NodeId, up: bool) {
        let Some(shared) = self.shared() else { return };
        shared.leaders.set_reachable(node, up);
        if !up {
            failover::leader_lost(&shared, node);
        }
    }
}

/// Longest address of a node, as the directory takes it.
const MAX_ADDRESS_BYTES: usize = 255;

impl Shared {
    /// Takes a new node up, if its token is good.
    async fn take_up(&self, request: JoinRequest, deadline: Instant) -> Result<JoinResponse, Status> {
        let directory = self.directory.borrow().clone();
        let cluster = directory.cluster.clone().ok_or_else(|| Status::unavailable("the cluster is not formed yet"))?;
        if self.is_secure {
            self.check_secret(&directory, &request.secret, deadline).await?;
        }
        let add = AddNode { address: request.address, feature_level: request.feature_level, join_nonce: request.nonce };
        let node_id = match self.tell_directory(directory_command::Command::AddNode(add), deadline).await {
            Ok(directory_reply::Reply::Done(done)) => done.node_id,
            Ok(directory_reply::Reply::Refused(why)) => return Err(Status::failed_precondition(why)),
            Ok(directory_reply::Reply::Mismatch(_)) => return Err(Status::internal("an answer to something else")),
            // Also when nobody knows whether it was taken up: it asks again with the same nonce.
            Err(e) => return Err(Status::unavailable(e.to_string())),
        };
        let (mut certificate, mut authority) = Default::default();
        if self.is_secure {
            let signs = Authority::of(&directory).map_err(|e| Status::internal(e.to_string()))?;
            let signs = signs.ok_or_else(|| Status::unavailable("the cluster has no authority yet"))?;
            let signed = signs.sign(&request.signing_request, node_id, self.env.clock.now_ms());
            certificate = signed.map_err(|e| Status::invalid_argument(format!("signing_request: {e}")))?;
            authority = signs.certificate_der().to_vec();
        }
        Ok(JoinResponse {
            node_id,
            cluster_id: cluster.id.to_vec().into(),
            incarnation: cluster.incarnation,
            shard_count: cluster.shards,
            peers: self.peer_addresses(),
            certificate: certificate.into(),
            authority: authority.into(),
        })
    }

    /// A token that this node has not heard of may have been made a moment ago.
    async fn check_secret(&self, directory: &Directory, secret: &[u8], deadline: Instant) -> Result<(), Status> {
        let check = |directory: &Directory| -> Result<Result<(), JoinRefused>, Status> {
            let (secrets, _) = JoinSecrets::of(directory).map_err(|e| Status::internal(e.to_string()))?;
            Ok(secrets.check(secret, self.env.clock.now_ms()))
        };
        let refused = |why: JoinRefused| Status::permission_denied(why.to_string());
        if check(directory)?.is_ok() {
            return Ok(());
        }
        let current = self.read_index(GroupId::DIRECTORY, deadline).await;
        current.map_err(|e| Status::unavailable(e.to_string()))?;
        let directory = self.directory.borrow().clone();
        check(&directory)?.map_err(refused)
    }

    /// Where all nodes are, this one too.
    pub(super) fn peer_addresses(&self) -> Vec<PeerAddress> {
        let mut addresses = self.peers.addresses();
        addresses.insert(self.node_id, self.member.address.clone());
        addresses.into_iter().map(|(node_id, address)| PeerAddress { node_id, address }).collect()
    }

    /// The answer that this node does not lead a group.
    fn not_leader(&self, group: GroupId, leader: Option<NodeId>) -> NotLeader {
        let known = || match *self.leaders.watch(group)?.borrow() {
            Leadership::Follower { leader } => leader,
            Leadership::Leader { .. } => None,
        };
        NotLeader { leader: leader.or_else(known).unwrap_or(0) }
    }

    async fn propose_for_peer(&self, id: GroupId, command: Bytes, deadline: Instant) -> propose_response::Result {
        use propose_response::Result as Answer;
        let Some(group) = self.groups.get(id) else { return Answer::NotLeader(self.not_leader(id, None)) };
        match group.propose(command, deadline).await {
            Ok(applied) => Answer::Applied(ProposeApplied { index: applied.index, reply: applied.reply }),
            Err(ProposeError::NotLeader { leader }) => Answer::NotLeader(self.not_leader(id, leader)),
            Err(ProposeError::Overloaded) => Answer::Overloaded(ProposeOverloaded {}),
            Err(ProposeError::Unknown(why)) => Answer::Unknown(why.into()),
            Err(e @ (ProposeError::Unavailable(_) | ProposeError::TooLarge { .. } | ProposeError::Stopping)) => {
                Answer::Unavailable(e.to_string())
            }
        }
    }

    async fn read_index_for_peer(&self, id: GroupId, deadline: Instant) -> read_index_response::Result {
        use read_index_response::Result as Answer;
        let Some(group) = self.groups.get(id) else { return Answer::NotLeader(self.not_leader(id, None)) };
        match read_index_here(&group, deadline).await {
            Ok(index) => Answer::Index(index.unwrap_or(0)),
            Err(ProposeError::NotLeader { leader }) => Answer::NotLeader(self.not_leader(id, leader)),
            Err(e) => Answer::Unavailable(e.to_string()),
        }
    }
}
