//! What peers may ask of this node.

use std::io;

use async_trait::async_trait;
use bytes::Bytes;
use futures::future::BoxFuture;
use tokio::time::Instant;
use tonic::Status;

use crate::{
    GroupId, NodeId,
    proto::{
        AnnounceRequest, AnnounceResponse, JoinRequest, JoinResponse, LeadsNotice, ProposeRequest, ProposeResponse,
        ReadIndexRequest, ReadIndexResponse, ReportResponse,
    },
    raft::types::{LogId, Raft},
    storage::SnapshotInstall,
};

/// What peers may ask of this node; the host implements it. What is not async must not block, except
/// [`begin_install`](Self::begin_install).
#[async_trait]
pub trait PeerHandler: Send + Sync + 'static {
    /// The replica of a group on this node: frames and snapshots go there.
    fn raft(&self, group: GroupId) -> Option<Raft>;

    /// Whether the log of a group has flushed all that a snapshot up to this entry stands for.
    async fn covers(&self, group: GroupId, snapshot: LogId) -> io::Result<bool>;

    /// Begins to take in a snapshot. Blocking.
    fn begin_install(&self, group: GroupId) -> io::Result<Box<dyn SnapshotInstall>>;

    /// A new node wants to join. The only question that is passed on from somebody who has not shown who he is.
    async fn join(&self, request: JoinRequest) -> Result<JoinResponse, Status>;

    /// A node says where it is now. `from` in the request is the node that sent it: already verified.
    async fn announce(&self, request: AnnounceRequest) -> Result<AnnounceResponse, Status>;

    /// Replicates a command of a group that this node leads.
    async fn propose(&self, request: ProposeRequest, deadline: Instant) -> ProposeResponse;

    /// The read index of a group that this node leads.
    async fn read_index(&self, request: ReadIndexRequest, deadline: Instant) -> ReadIndexResponse;

    /// What this node knows of its groups.
    async fn report(&self, deadline: Instant) -> ReportResponse;

    /// What the layer above answers to a question of its counterpart on a node; `None`: nobody answers yet, or any
    /// more.
    fn answer(&self, from: NodeId, question: Bytes) -> Option<BoxFuture<'static, Bytes>> {
        let _ = (from, question);
        None
    }

    /// The groups that this node leads: told to every peer when
    /// [`Peers::notify_leads`](super::Peers::notify_leads) says so, and once a second.
    fn leads(&self) -> LeadsNotice;

    /// A peer leads exactly these groups.
    fn peer_leads(&self, from: NodeId, notice: LeadsNotice);

    /// The link to a peer came up or broke.
    fn link_changed(&self, node: NodeId, up: bool);
}
