//! The transport between nodes.
//!
//! ```text
//! Peers::new(env, cluster_id, node_id, security)
//!   .transport()                         carries the Raft calls of all groups; usable before start
//!   .start(incoming, handler, services)  serves peers, links to them
//!   .set_addresses(..) .learn_address(..)  where they are
//!   .channel(node)                       for the unary calls and the layer above
//!   .notify_leads()                      tells every peer which groups this node leads
//!   .shutdown()                          drains
//! join(..)                               asks a cluster to take this node up
//! ```

mod handler;

use std::{collections::BTreeMap, sync::Arc};

use thiserror::Error;
use tokio::time::Instant;
use tonic::{Status, service::Routes, transport::Channel};

pub use handler::PeerHandler;

pub use crate::proto::{
    AnnounceRequest, AnnounceResponse, JoinRequest, JoinResponse, LedGroup, ProposeRequest, ProposeResponse,
    ReadIndexRequest, ReadIndexResponse, ReportResponse,
};
use crate::{
    NodeId,
    env::{Env, Incoming},
    host::Join,
    raft::network::{NoPeers, Transport},
    security::{JoinToken, PeerSecurity},
};

/// One node's links to all its peers.
pub struct Peers {}

impl Peers {
    /// Nobody can be reached before [`start`](Self::start).
    pub fn new(_env: &Env, _cluster_id: [u8; 16], _node_id: NodeId, _security: PeerSecurity) -> Arc<Self> {
        Arc::new(Self {})
    }

    /// Carries the Raft calls of all groups. Before the start all calls fail as unreachable.
    pub fn transport(&self) -> Arc<dyn Transport> {
        Arc::new(NoPeers)
    }

    /// Serves peers and links to them. Once.
    pub fn start(self: &Arc<Self>, _incoming: Box<dyn Incoming>, _handler: Arc<dyn PeerHandler>, _services: Routes) {}

    /// Where the directory says that nodes are (`host:port`). There are links to exactly these, minus this node.
    pub fn set_addresses(&self, _from_directory: BTreeMap<NodeId, String>) {}

    /// Where a node says that it is; wins until the directory says something else than before.
    pub fn learn_address(&self, _node: NodeId, _address: String) {}

    /// Where nodes are, as far as is known here.
    pub fn addresses(&self) -> BTreeMap<NodeId, String> {
        BTreeMap::new()
    }

    /// A channel to a node's unary calls and the services of the layer above; it connects when it is used.
    pub fn channel(&self, _node: NodeId) -> Option<Channel> {
        None
    }

    /// The groups that this node leads have changed: tells every peer.
    pub fn notify_leads(&self) {}

    /// Takes in nothing more, waits a little for what runs, closes all links.
    pub async fn shutdown(&self) {}
}

/// Why a node could not join.
#[derive(Debug, Error)]
pub enum JoinError {
    /// A node of the cluster refuses it, for good.
    #[error("the cluster refuses this node: {}", .0.message())]
    Refused(Status),
    /// Nobody has taken it up before the deadline; what each address said last.
    #[error("no node has let this one join before the deadline: {0}")]
    Unavailable(String),
}

/// Asks the addresses in turn, with backoff, until one answers or the deadline passes.
pub async fn join(
    _env: &Env,
    _join: &Join,
    _token: Option<&JoinToken>,
    _request: JoinRequest,
    _deadline: Instant,
) -> Result<JoinResponse, JoinError> {
    Err(JoinError::Unavailable("not yet".to_owned()))
}
