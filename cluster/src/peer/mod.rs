//! The transport between nodes.
//!
//! ```text
//! Peers::new(env, cluster_id, node_id, security)
//!   .transport()                           carries the Raft calls of all groups; usable before start
//!   .start(incoming, handler, services)    serves peers, links to them
//!   .set_addresses(..) .learn_address(..)  where they are
//!   .channel(node)                         for the unary calls and the layer above
//!   .notify_leads()                        tells every peer which groups this node leads
//!   .shutdown()                            drains
//! join(..)                                 asks a cluster to take this node up
//! ```
//! Each connection begins with a greeting (`hello`) that tells who is at the other end. Between two nodes there is one
//! stream (`link`, opened by the lower id in `dial`) in both directions for the Raft frames of all groups and the
//! questions of the layer above: what waits is sorted by urgency in the `outbox`, what arrives is handed to its group in
//! a `session`. Snapshots and unary calls have connections of their own, so that neither delays a vote.
//!
//! Dropping [`Peers`] breaks off all connections at once.

mod addresses;
mod connect;
mod convert;
mod dial;
mod handler;
mod hello;
mod join;
mod link;
mod outbox;
mod server;
mod service;
mod session;
mod snapshot;
mod stats;
mod transport;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use futures::future::join_all;
use parking_lot::{Mutex, RwLock};
use tokio::{
    sync::Notify,
    time::{sleep, timeout},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tonic::{service::Routes, transport::Channel};

pub use handler::PeerHandler;
pub use hello::Caller;
pub use join::{JoinError, join};
pub use snapshot::{DEFAULT_SNAPSHOT_RATE_BYTES, DEFAULT_SNAPSHOT_STALL};
pub use stats::PeerStats;

use self::{
    addresses::AddressBook,
    connect::Connector,
    link::{CallError, Link},
    snapshot::Rate,
    transport::LinkTransport,
};
pub use crate::proto::{
    AnnounceRequest, AnnounceResponse, JoinRequest, JoinResponse, LeadsNotice, LedGroup, ProposeRequest,
    ProposeResponse, ReadIndexRequest, ReadIndexResponse, ReportRequest, ReportResponse,
    peer_service_client::PeerServiceClient,
};
use crate::{
    GroupId, NodeId,
    env::{Env, Incoming},
    proto::{Frame, frame::Body},
    raft::network::Transport,
    security::PeerSecurity,
};

/// Why a question brought no answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum AskError {
    /// Surely nobody was asked: there is no link, too much waits to be sent, or nobody answers there.
    #[error("the node was not asked")]
    NotAsked,
    /// The link broke or the time was over: it may have been heard, or not.
    #[error("the node did not answer")]
    Unknown,
}

/// How often every peer is told which groups this node leads, whether or not it has changed: a notice may be lost.
const LEADS_EVERY: Duration = Duration::from_secs(1);
/// How long a shutdown waits for frames to go out, and then for calls of peers to end.
const DRAIN_FRAMES: Duration = Duration::from_millis(500);
const DRAIN_CALLS: Duration = Duration::from_secs(3);

/// What all parts of a node's transport share.
struct Inner {
    node_id: NodeId,
    connector: Arc<Connector>,
    links: RwLock<BTreeMap<NodeId, Arc<Link>>>,
    channels: Mutex<BTreeMap<NodeId, Channel>>,
    /// Set at the start.
    handler: Mutex<Option<Arc<dyn PeerHandler>>>,
    leads_changed: Notify,
    rate: Mutex<Rate>,
    /// How long a snapshot on its way, to this node or from it, may not get on.
    stall: Mutex<Duration>,
    stats: Arc<PeerStats>,
    /// The server and the dialers.
    tasks: TaskTracker,
    /// Cancelled at a shutdown: nothing new.
    stop: CancellationToken,
    /// Highest node id that was ever given away, as far as is known here.
    newest: AtomicU64,
}

impl Inner {
    /// Whether there is a link to a node.
    fn is_known(&self, node: NodeId) -> bool {
        self.links.read().contains_key(&node)
    }

    /// Whether a node may talk to this one. One that is newer than the newest known here has joined since: this copy of
    /// the directory is behind, and it may be the very one that brings it up to date.
    fn may_call(&self, node: NodeId) -> bool {
        node > self.newest.load(Ordering::Relaxed) || self.is_known(node)
    }

    /// Makes the links those to the nodes in the address book.
    fn update_links(self: &Arc<Self>) {
        let nodes: BTreeSet<NodeId> = self.connector.addresses.lock().all().into_keys().collect();
        let (mut added, mut removed) = (Vec::new(), Vec::new());
        {
            let mut links = self.links.write();
            links.retain(|node, link| {
                let stays = nodes.contains(node);
                if !stays {
                    removed.push(link.clone());
                }
                stays
            });
            for node in nodes.into_iter().filter(|node| *node != self.node_id) {
                links.entry(node).or_insert_with(|| {
                    let link = Link::new(node, self.stats.clone());
                    added.push(link.clone());
                    link
                });
            }
        }
        for link in removed {
            self.channels.lock().remove(&link.peer);
            link.close();
            link.redial.notify_one();
        }
        for link in added {
            self.dial(link);
        }
    }

    /// Keeps a session with a peer, if it is this node that has to open it.
    fn dial(self: &Arc<Self>, link: Arc<Link>) {
        let handler = self.handler.lock().clone();
        let Some(handler) = handler.filter(|_| self.node_id < link.peer && !self.stop.is_cancelled()) else { return };
        if link.dialed.swap(true, Ordering::AcqRel) {
            return;
        }
        let (inner, closed) = (self.clone(), self.connector.closed.clone());
        self.tasks.spawn(async move {
            // Dropped with everything it has open when the node is gone.
            let _ended = closed.run_until_cancelled(dial::dial(inner, link, handler)).await;
        });
    }

    /// Tells every peer which groups this node leads, now and then.
    async fn tell_leads(self: Arc<Self>, handler: Arc<dyn PeerHandler>) {
        loop {
            tokio::select! {
                () = self.leads_changed.notified() => {}
                () = sleep(LEADS_EVERY) => {}
                () = self.stop.cancelled() => return,
                () = self.connector.closed.cancelled() => return,
            }
            let notice = handler.leads();
            for link in self.links.read().values() {
                link.tell(None, Frame { group: 0, call: 0, body: Some(Body::Leads(notice.clone())) });
            }
        }
    }
}

/// One node's links to all its peers.
pub struct Peers {
    inner: Arc<Inner>,
}

impl Peers {
    /// Nobody can be reached before [`start`](Self::start).
    pub fn new(env: &Env, cluster_id: [u8; 16], node_id: NodeId, security: PeerSecurity) -> Arc<Self> {
        let stats = Arc::<PeerStats>::default();
        let connector = Arc::new(Connector {
            env: env.clone(),
            cluster_id,
            node_id,
            security,
            addresses: Mutex::new(AddressBook::default()),
            stats: stats.clone(),
            closed: CancellationToken::new(),
        });
        let inner = Inner {
            node_id,
            connector,
            links: RwLock::default(),
            channels: Mutex::default(),
            handler: Mutex::default(),
            leads_changed: Notify::new(),
            rate: Mutex::new(Rate::new(DEFAULT_SNAPSHOT_RATE_BYTES)),
            stall: Mutex::new(DEFAULT_SNAPSHOT_STALL),
            stats,
            tasks: TaskTracker::new(),
            stop: CancellationToken::new(),
            newest: AtomicU64::new(0),
        };
        Arc::new(Self { inner: Arc::new(inner) })
    }

    /// Carries the Raft calls of all groups. Before the start all calls fail as unreachable.
    pub fn transport(&self) -> Arc<dyn Transport> {
        Arc::new(LinkTransport(self.inner.clone()))
    }

    /// Bytes of snapshots that this node sends in a second, to all peers together.
    pub fn set_snapshot_rate(&self, bytes_per_second: u64) {
        *self.inner.rate.lock() = Rate::new(bytes_per_second);
    }

    /// How long a snapshot that this node sends or takes in may not get on before the transfer ends; those under way
    /// keep what they began with.
    pub fn set_snapshot_stall(&self, stall: Duration) {
        *self.inner.stall.lock() = stall;
    }

    /// Serves peers and links to them. Once. The handler is held until the shutdown or until this is dropped: one
    /// that holds this keeps both alive.
    pub fn start(self: &Arc<Self>, incoming: Box<dyn Incoming>, handler: Arc<dyn PeerHandler>, services: Routes) {
        let inner = &self.inner;
        *inner.handler.lock() = Some(handler.clone());
        inner.tasks.spawn(server::serve(inner.clone(), incoming, handler.clone(), services, inner.stop.clone()));
        inner.tasks.spawn(inner.clone().tell_leads(handler));
        let links: Vec<_> = inner.links.read().values().cloned().collect();
        for link in links {
            inner.dial(link);
        }
    }

    /// Where the directory says that nodes are (`host:port`). There are links to exactly these, minus this node, and
    /// to those that have announced themselves since. `newest`: the highest node id that the directory has given away;
    /// who is not among the nodes and not newer either has been removed.
    pub fn set_addresses(&self, from_directory: BTreeMap<NodeId, String>, newest: NodeId) {
        self.inner.newest.fetch_max(newest, Ordering::Relaxed);
        self.inner.connector.addresses.lock().set_directory(from_directory);
        self.inner.update_links();
    }

    /// Where a node says that it is; wins until the directory says something else than before.
    pub fn learn_address(&self, node: NodeId, address: String) {
        self.inner.connector.addresses.lock().announce(node, address);
        self.inner.update_links();
        if let Some(link) = self.inner.links.read().get(&node) {
            link.redial.notify_one();
        }
    }

    /// Where nodes are, as far as is known here.
    pub fn addresses(&self) -> BTreeMap<NodeId, String> {
        self.inner.connector.addresses.lock().all()
    }

    /// The nodes to which there is no link now though they should open one: of two nodes the one with the lower id does.
    pub fn waited_for(&self) -> Vec<NodeId> {
        let links = self.inner.links.read();
        let lower = links.values().filter(|link| link.peer < self.inner.node_id);
        lower.filter(|link| !link.is_up()).map(|link| link.peer).collect()
    }

    /// A channel to a node's unary calls and the services of the layer above; it connects when it is used. `None`:
    /// this node itself, or one that is not known here.
    pub fn channel(&self, node: NodeId) -> Option<Channel> {
        if !self.inner.is_known(node) {
            return None;
        }
        let mut channels = self.inner.channels.lock();
        Some(channels.entry(node).or_insert_with(|| self.inner.connector.channel(node)).clone())
    }

    /// Asks the layer above on another node. The link's own messages carry it, many questions in one: cheaper than a
    /// call of its own for what is small and frequent.
    ///
    /// # Errors
    /// See [`AskError`].
    pub async fn ask(&self, node: NodeId, question: Bytes, limit: Duration) -> Result<Bytes, AskError> {
        let link = self.inner.links.read().get(&node).cloned().ok_or(AskError::NotAsked)?;
        match link.call(GroupId::DIRECTORY, Body::Question(question), false, limit).await {
            Ok(Body::Reply(reply)) => Ok(reply),
            // It says so before anybody is asked.
            Err(CallError::NoLink | CallError::Full | CallError::Failed(_)) => Err(AskError::NotAsked),
            Err(CallError::Broken | CallError::Timeout(_) | CallError::Nonsense) | Ok(_) => Err(AskError::Unknown),
        }
    }

    /// The groups that this node leads have changed: tells every peer.
    pub fn notify_leads(&self) {
        self.inner.leads_changed.notify_one();
    }

    /// What the transport counts.
    pub fn stats(&self) -> Arc<PeerStats> {
        self.inner.stats.clone()
    }

    /// Takes in nothing more, waits a little for what runs, closes all links.
    pub async fn shutdown(&self) {
        let inner = &self.inner;
        inner.stop.cancel();
        let links: Vec<_> = inner.links.read().values().cloned().collect();
        // What is late now is late; the peers go on without this node.
        let _ = timeout(DRAIN_FRAMES, join_all(links.iter().map(|link| link.drained()))).await;
        for link in links {
            link.close();
            link.redial.notify_one();
        }
        inner.tasks.close();
        let _ = timeout(DRAIN_CALLS, inner.tasks.wait()).await;
        inner.connector.closed.cancel();
        inner.channels.lock().clear();
        *inner.handler.lock() = None;
    }
}

impl Drop for Peers {
    fn drop(&mut self) {
        self.inner.stop.cancel();
        self.inner.connector.closed.cancel();
        *self.inner.handler.lock() = None;
    }
}
