//! Nodes with nothing but a transport and some groups on memory stores.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use andante_cluster::{
    GroupId, NodeId,
    env::{Env, Incoming, Network, OsThreads, SystemClock, SystemRng},
    peer::{
        AnnounceRequest, AnnounceResponse, JoinRequest, JoinResponse, LeadsNotice, LedGroup, PeerHandler, Peers,
        ProposeRequest, ProposeResponse, ReadIndexRequest, ReadIndexResponse, ReportResponse,
    },
    raft::{
        config,
        network::{GroupNetwork, Peer, Rpc, Transport},
        types::{Command, LogId, Member, Raft, Snapshot, TypeConfig, Vote},
    },
    security::{Authority, MutualTls, NodeCertificate, PeerSecurity},
    storage::{SnapshotInstall, memory::MemoryStores},
};
use async_trait::async_trait;
use bytes::Bytes;
use futures::future::BoxFuture;
use openraft::{
    Config,
    async_runtime::watch::WatchReceiver,
    errors::{ForwardReason, StreamingError},
    network::RPCOption,
    raft::{
        AppendEntriesRequest, AppendEntriesResponse, SnapshotResponse, TransferLeaderRequest, TransferLeaderResponse,
        VoteRequest, VoteResponse,
    },
};
use parking_lot::Mutex;
use tokio::{sync::watch, time::Instant};
use tonic::{Status, service::Routes};

use crate::{
    toy::{add, storage::Storage, until},
    wires::{Position, Wires},
};

pub(crate) const CLUSTER: [u8; 16] = [7; 16];

/// One group's replica.
pub(crate) struct Replica {
    pub(crate) raft: Raft,
    pub(crate) storage: Storage,
    pub(crate) stores: MemoryStores,
}

/// Wraps what takes in a snapshot.
pub(crate) type Wrap = Box<dyn Fn(Box<dyn SnapshotInstall>) -> Box<dyn SnapshotInstall> + Send + Sync>;

/// What the peers may ask.
#[derive(Default)]
pub(crate) struct Handler {
    pub(crate) replicas: Mutex<BTreeMap<GroupId, Arc<Replica>>>,
    pub(crate) installs: AtomicU64,
    /// The log has what comes as a snapshot.
    pub(crate) covers: AtomicBool,
    pub(crate) wrap: Mutex<Option<Wrap>>,
    pub(crate) leads: Mutex<Vec<LedGroup>>,
    pub(crate) heard: Mutex<BTreeMap<NodeId, Vec<LedGroup>>>,
    /// Of the last report asked for.
    pub(crate) deadline: Mutex<Option<Instant>>,
    up: watch::Sender<BTreeSet<NodeId>>,
}

#[async_trait]
impl PeerHandler for Handler {
    fn raft(&self, group: GroupId) -> Option<Raft> {
        self.replicas.lock().get(&group).map(|replica| replica.raft.clone())
    }

    async fn covers(&self, _: GroupId, _: LogId) -> io::Result<bool> {
        Ok(self.covers.load(Ordering::SeqCst))
    }

    fn begin_install(&self, group: GroupId) -> io::Result<Box<dyn SnapshotInstall>> {
        self.installs.fetch_add(1, Ordering::SeqCst);
        let replica = self.replicas.lock().get(&group).cloned().expect("asked for before");
        let install = replica.storage.stores.snapshots.begin_install(group)?;
        Ok(match &*self.wrap.lock() {
            Some(wrap) => wrap(install),
            None => install,
        })
    }

    async fn join(&self, request: JoinRequest) -> Result<JoinResponse, Status> {
        match request.address.as_str() {
            "" => Err(Status::invalid_argument("address: where are you?")),
            _ => Ok(JoinResponse { node_id: 9, ..JoinResponse::default() }),
        }
    }

    async fn announce(&self, _: AnnounceRequest) -> Result<AnnounceResponse, Status> {
        Ok(AnnounceResponse::default())
    }

    async fn propose(&self, _: ProposeRequest, _: Instant) -> ProposeResponse {
        ProposeResponse::default()
    }

    async fn read_index(&self, _: ReadIndexRequest, _: Instant) -> ReadIndexResponse {
        ReadIndexResponse::default()
    }

    async fn report(&self, deadline: Instant) -> ReportResponse {
        *self.deadline.lock() = Some(deadline);
        ReportResponse { node_id: 77, ..ReportResponse::default() }
    }

    /// An echo, but for two words.
    fn answer(&self, from: NodeId, question: Bytes) -> Option<BoxFuture<'static, Bytes>> {
        match &question[..] {
            b"refuse" => None,
            b"never" => Some(Box::pin(std::future::pending())),
            _ => Some(Box::pin(async move { [from.to_string().as_bytes(), &question[..]].concat().into() })),
        }
    }

    fn leads(&self) -> LeadsNotice {
        LeadsNotice { groups: self.leads.lock().clone(), leaving: false }
    }

    fn peer_leads(&self, from: NodeId, notice: LeadsNotice) {
        self.heard.lock().insert(from, notice.groups);
    }

    fn link_changed(&self, node: NodeId, up: bool) {
        self.up.send_if_modified(|nodes| if up { nodes.insert(node) } else { nodes.remove(&node) });
    }
}

/// A node.
pub(crate) struct Node {
    pub(crate) id: NodeId,
    pub(crate) peers: Arc<Peers>,
    pub(crate) handler: Arc<Handler>,
    /// What it is connected by; shared with those it is linked to.
    pub(crate) wires: Arc<Wires>,
    pub(crate) address: String,
}

pub(crate) fn env(network: Arc<dyn Network>) -> Env {
    Env {
        clock: Arc::new(SystemClock::default()),
        network,
        rng: Arc::new(SystemRng),
        blocking: Arc::new(OsThreads),
        stores: Arc::new(MemoryStores::default()),
    }
}

/// Mutual TLS with a certificate for a node.
pub(crate) fn certified(authority: &Authority, node: NodeId) -> PeerSecurity {
    let clock = Arc::new(SystemClock::default());
    let now_ms = andante_cluster::env::Clock::now_ms(&*clock);
    let mutual = MutualTls::new(authority.cluster_id(), clock);
    mutual.install(NodeCertificate::issue(authority, node, now_ms).expect("issued")).expect("usable");
    PeerSecurity::Mutual(mutual)
}

pub(crate) fn new_authority() -> Authority {
    let now_ms = andante_cluster::env::Clock::now_ms(&SystemClock::default());
    Authority::generate(CLUSTER, now_ms).expect("made")
}

/// Where a node is among the wires.
pub(crate) fn position(node: NodeId) -> Position {
    node as Position
}

impl Node {
    pub(crate) async fn start(cluster: [u8; 16], id: NodeId, security: PeerSecurity) -> Self {
        Self::start_on(Arc::default(), cluster, id, security).await
    }

    async fn start_on(wires: Arc<Wires>, cluster: [u8; 16], id: NodeId, security: PeerSecurity) -> Self {
        let env = env(wires.network(position(id)));
        let incoming = listen(&env).await;
        let address = incoming.local_addr().to_string();
        let (peers, handler) = (Peers::new(&env, cluster, id, security), Arc::<Handler>::default());
        peers.start(incoming, handler.clone(), Routes::default());
        Self { id, peers, handler, wires, address }
    }

    /// Adds a replica of a group that is patient: on a busy machine its leader stays.
    pub(crate) async fn add(&self, group: GroupId, transport: Arc<dyn Transport>, snapshot_every: u64) -> Arc<Replica> {
        let config = config::config(group, snapshot_every).expect("valid");
        let patient = Config {
            election_timeout_min: config.election_timeout_min * 10,
            election_timeout_max: config.election_timeout_max * 10,
            quorum_loss_probe_interval: config.quorum_loss_probe_interval.map(|ms| ms * 10),
            ..Config::clone(&config)
        };
        self.add_with(Arc::new(patient), group, transport).await
    }

    /// Adds a replica of a group with a node's own timers.
    pub(crate) async fn add_quick(&self, group: GroupId, transport: Arc<dyn Transport>) -> Arc<Replica> {
        self.add_with(config::config(group, u64::MAX).expect("valid"), group, transport).await
    }

    async fn add_with(&self, config: Arc<Config>, group: GroupId, transport: Arc<dyn Transport>) -> Arc<Replica> {
        let stores = MemoryStores::default();
        let storage = Storage::of_group(group, &stores);
        let network = GroupNetwork::new(group, transport);
        let (log, machine) = (storage.log.clone(), storage.machine());
        let raft = Raft::new(self.id, config, network, log, machine).await.expect("starts");
        let replica = Arc::new(Replica { raft, storage, stores });
        self.handler.replicas.lock().insert(group, replica.clone());
        replica
    }

    pub(crate) fn replica(&self, group: GroupId) -> Arc<Replica> {
        self.handler.replicas.lock()[&group].clone()
    }

    /// Waits until there are links to exactly these.
    pub(crate) async fn linked(&self, nodes: impl IntoIterator<Item = NodeId>) {
        let nodes: BTreeSet<NodeId> = nodes.into_iter().collect();
        let what = format!("node {} is linked to {nodes:?}", self.id);
        until(&what, || *self.handler.up.borrow() == nodes).await;
    }

    /// Stops without a word.
    pub(crate) async fn crash(self) {
        let replicas = std::mem::take(&mut *self.handler.replicas.lock());
        drop(self.peers);
        for replica in replicas.values() {
            replica.raft.shutdown().await.expect("stops");
        }
    }
}

pub(crate) async fn listen(env: &Env) -> Box<dyn Incoming> {
    env.network.listen(SocketAddr::from(([127, 0, 0, 1], 0))).await.expect("listens")
}

/// The highest node id given away in the tests' clusters.
pub(crate) const NEWEST: NodeId = 9;

/// Nodes 1, 2, ... that know each other and are linked.
pub(crate) async fn linked_nodes(count: u64, authority: Option<&Authority>) -> Vec<Node> {
    let (mut nodes, wires) = (Vec::new(), Arc::<Wires>::default());
    for id in 1..=count {
        let security = authority.map_or(PeerSecurity::Plaintext, |authority| certified(authority, id));
        nodes.push(Node::start_on(wires.clone(), CLUSTER, id, security).await);
    }
    let addresses: BTreeMap<NodeId, String> = nodes.iter().map(|node| (node.id, node.address.clone())).collect();
    for node in &nodes {
        node.peers.set_addresses(addresses.clone(), NEWEST);
    }
    for node in &nodes {
        node.linked((1..=count).filter(|id| *id != node.id)).await;
    }
    nodes
}

/// Forms a group of all nodes, led by the first, with a majority behind it.
pub(crate) async fn form(nodes: &[Node], group: GroupId) {
    let members: BTreeMap<NodeId, Member> = nodes.iter().map(|node| (node.id, Member::default())).collect();
    let first = nodes[0].replica(group);
    first.raft.initialize(members).await.expect("formed");
    first.raft.trigger().elect(false).await.expect("runs");
    led(&first.raft, nodes[0].id).await;
}

/// Waits until a node leads a group with a majority behind it.
pub(crate) async fn led(raft: &Raft, by: NodeId) {
    until("it leads", || raft.server_metrics().borrow_watched().current_leader == Some(by)).await;
    let asked = async {
        while raft.client_write(Command(add(0, 0))).await.is_err() {
            pause().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(60), asked).await.expect("a majority is there");
}

/// Lets others run before something is looked at again.
async fn pause() {
    tokio::time::sleep(Duration::from_millis(2)).await;
}

/// Adds 1 to each of these counters, all at once. On a busy machine no quorum may be heard of for a while: then the
/// leader takes nothing, and is asked again.
pub(crate) async fn write(raft: &Raft, names: std::ops::Range<u64>) {
    let writes = names.map(|name| async move {
        loop {
            match raft.client_write(Command(add(name, 1))).await {
                Ok(_) => return,
                Err(e) if e.forward_to_leader().is_some_and(|to| to.reason == ForwardReason::LeaseExpired) => {
                    pause().await
                }
                Err(e) => panic!("not applied: {e}"),
            }
        }
    });
    futures::future::join_all(writes).await;
}

/// Waits until all replicas of a group have the same state.
pub(crate) async fn agree(nodes: &[Node], group: GroupId) {
    until("all replicas have the same state", || {
        let digests = nodes.iter().map(|node| node.replica(group).storage.replica.digest().expect("works"));
        digests.collect::<BTreeSet<_>>().len() == 1
    })
    .await;
}

/// A transport that counts the appends which did not fit.
pub(crate) struct Counting {
    pub(crate) transport: Arc<dyn Transport>,
    pub(crate) conflicts: Arc<AtomicU64>,
    pub(crate) failures: Arc<AtomicU64>,
}

#[async_trait]
impl Transport for Counting {
    fn pipeline(&self) -> usize {
        self.transport.pipeline()
    }

    async fn heartbeat(
        &self,
        peer: &Peer,
        request: AppendEntriesRequest<TypeConfig>,
        option: RPCOption,
    ) -> Rpc<AppendEntriesResponse<TypeConfig>> {
        self.transport.heartbeat(peer, request, option).await
    }

    async fn append(
        &self,
        peer: &Peer,
        request: AppendEntriesRequest<TypeConfig>,
        option: RPCOption,
    ) -> Rpc<AppendEntriesResponse<TypeConfig>> {
        let answer = self.transport.append(peer, request, option).await;
        match &answer {
            Ok(AppendEntriesResponse::Conflict) => drop(self.conflicts.fetch_add(1, Ordering::SeqCst)),
            Err(_) => drop(self.failures.fetch_add(1, Ordering::SeqCst)),
            Ok(_) => {}
        }
        answer
    }

    async fn vote(
        &self,
        peer: &Peer,
        request: VoteRequest<TypeConfig>,
        option: RPCOption,
    ) -> Rpc<VoteResponse<TypeConfig>> {
        self.transport.vote(peer, request, option).await
    }

    async fn pre_vote(
        &self,
        peer: &Peer,
        request: VoteRequest<TypeConfig>,
        option: RPCOption,
    ) -> Rpc<VoteResponse<TypeConfig>> {
        self.transport.pre_vote(peer, request, option).await
    }

    async fn snapshot(
        &self,
        peer: &Peer,
        vote: Vote,
        snapshot: Snapshot,
        option: RPCOption,
    ) -> Result<SnapshotResponse<TypeConfig>, StreamingError<TypeConfig>> {
        self.transport.snapshot(peer, vote, snapshot, option).await
    }

    async fn transfer_leader(
        &self,
        peer: &Peer,
        request: TransferLeaderRequest<TypeConfig>,
        option: RPCOption,
    ) -> Rpc<TransferLeaderResponse<TypeConfig>> {
        self.transport.transfer_leader(peer, request, option).await
    }
}
