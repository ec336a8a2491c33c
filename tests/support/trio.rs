//! Three nodes in one process: stores in memory that survive crashes, wires that can be cut, no TLS.

use std::{net::SocketAddr, path::Path, sync::Arc, time::Duration};

use andante::{
    actor::Role,
    api::{Listeners, ServeConfig, serve},
    node::{Node, NodeConfig, PeerConfig},
    settings::Settings,
    v1,
};
use andante_cluster::{
    ShardId,
    env::{Clock, Env, OsThreads, SystemClock, SystemRng},
    host::Join,
    storage::{Stores as _, memory::MemoryStores},
};
use tokio::{task::AbortHandle, time::Instant};
use tonic::transport::Channel;

use super::wires::{Position, Wires};

/// Nodes.
pub const NODES: usize = 3;
/// Longest wait for anything.
pub const PATIENCE: Duration = Duration::from_secs(60);
/// Conditions are looked at again this often.
const LOOK_EVERY: Duration = Duration::from_millis(2);

/// The nodes.
pub struct Trio {
    /// The wires between them.
    pub wires: Arc<Wires>,
    members: Vec<Member>,
    /// Of the nodes, by position; further nodes have the last ones.
    settings: Vec<Settings>,
    clock: Arc<dyn Clock>,
    shards: u32,
}

/// A node's API, served while this is there.
pub struct ServedApi {
    /// A way to it.
    pub channel: Channel,
    serving: AbortHandle,
}

impl Drop for ServedApi {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

struct Member {
    stores: Arc<MemoryStores>,
    dir: tempfile::TempDir,
    node: Option<Arc<Node>>,
}

impl Trio {
    /// Forms a cluster of three nodes and waits until each shard has three replicas.
    pub async fn start(shards: u32) -> Self {
        Self::with(shards, Settings { tick_ms: 20, ..Settings::default() }).await
    }

    /// As [`Trio::start`], with settings.
    pub async fn with(shards: u32, settings: Settings) -> Self {
        Self::each(shards, vec![settings]).await
    }

    /// As [`Trio::start`], with settings of each node, by position; further nodes have the last ones.
    pub async fn each(shards: u32, settings: Vec<Settings>) -> Self {
        Self::build(shards, settings, Arc::new(SystemClock::default())).await
    }

    /// As [`Trio::start`], with settings and the one clock of all nodes.
    pub async fn with_clock(shards: u32, settings: Settings, clock: Arc<dyn Clock>) -> Self {
        Self::build(shards, vec![settings], clock).await
    }

    async fn build(shards: u32, settings: Vec<Settings>, clock: Arc<dyn Clock>) -> Self {
        let member =
            |_| Member { stores: Arc::default(), dir: tempfile::tempdir().expect("a temporary folder"), node: None };
        let members = (0..NODES).map(member).collect();
        let mut trio = Self { wires: Arc::default(), members, settings, clock, shards };
        for i in 0..NODES {
            trio.run(i).await;
        }
        trio.until("all shards have three replicas and a leader, and every node is ready", |trio| {
            (0..NODES).all(|i| {
                let node = trio.node(i);
                let directory = node.host().directory().borrow().clone();
                let spread = directory.replicas.values().all(|r| r.settled() && r.nodes.len() == NODES);
                spread && node.ready().is_ok()
            })
        })
        .await;
        trio
    }

    /// A node that runs.
    pub fn node(&self, i: Position) -> &Arc<Node> {
        self.members[i].node.as_ref().expect("it runs")
    }

    /// The positions of the nodes that run.
    pub fn running(&self) -> Vec<Position> {
        (0..self.members.len()).filter(|i| self.members[*i].node.is_some()).collect()
    }

    /// Starts one more node, which joins.
    pub async fn add(&mut self) -> Position {
        let dir = tempfile::tempdir().expect("a temporary folder");
        self.members.push(Member { stores: Arc::default(), dir, node: None });
        self.run(self.members.len() - 1).await;
        self.members.len() - 1
    }

    /// Starts a node that does not run.
    pub async fn run(&mut self, i: Position) {
        let seed = self.members.iter().position(|member| member.node.is_some());
        let join =
            seed.map(|seed| Join { addresses: vec![self.node(seed).peer_addr().to_string()], token: String::new() });
        let env = self.env(i);
        let config = NodeConfig {
            shards: Some(self.shards),
            settings: self.settings[i.min(self.settings.len() - 1)].clone(),
            peers: PeerConfig { join, plaintext: true, ..PeerConfig::default() },
            ..NodeConfig::new(self.members[i].dir.path())
        };
        let node = Node::start(env, config).await.expect("starts");
        self.members[i].node = Some(Arc::new(node));
    }

    fn env(&self, i: Position) -> Env {
        Env {
            clock: self.clock.clone(),
            network: self.wires.network(i),
            rng: Arc::new(SystemRng),
            blocking: Arc::new(OsThreads),
            stores: self.members[i].stores.clone(),
        }
    }

    /// Serves a node's API on a free port.
    pub async fn serve(&self, i: Position) -> ServedApi {
        let (env, any) = (self.env(i), SocketAddr::from(([127, 0, 0, 1], 0)));
        let listeners = Listeners::bind(&env, any, any).await.expect("listens");
        let uri = format!("http://{}", listeners.grpc_addr());
        let channel = Channel::from_shared(uri).expect("an address").connect_lazy();
        let node = self.node(i).clone();
        let serving = tokio::spawn(async move {
            serve(node, &env, listeners, ServeConfig::plain(16, PATIENCE), std::future::pending()).await
        });
        ServedApi { channel, serving: serving.abort_handle() }
    }

    /// Loses a node's process and everything that it had not synced.
    pub async fn crash(&mut self, i: Position) {
        let member = &mut self.members[i];
        // Opening the stores anew cuts off the old ones: what was not synced is lost before anything ends in order.
        for cut_off in [
            member.stores.open_log(Path::new(""), &OsThreads).map(drop),
            member.stores.open_state(Path::new(""), &OsThreads).map(drop),
            member.stores.open_snapshots(Path::new(""), &OsThreads).map(drop),
        ] {
            cut_off.expect("opens");
        }
        // It can't close what it has lost.
        let _ = member.node.take().expect("it runs").halt().await;
        // The lock dies with the process, which lives on here: the survivors move to another folder.
        let dir = tempfile::tempdir().expect("a temporary folder");
        copy_files(member.dir.path(), dir.path());
        member.dir = dir;
    }

    /// Stops a node as an operator would.
    pub async fn stop(&mut self, i: Position) {
        let node = self.members[i].node.take().expect("it runs");
        node.shutdown().await.expect("shuts down");
    }

    /// Waits for a condition.
    pub async fn until(&self, what: &str, condition: impl Fn(&Self) -> bool) {
        let waited = async {
            while !condition(self) {
                tokio::time::sleep(LOOK_EVERY).await;
            }
        };
        tokio::time::timeout(PATIENCE, waited).await.unwrap_or_else(|_| panic!("waited {PATIENCE:?} until {what}"));
    }

    /// Who leads the shard of a campaign, by the word of the node itself.
    pub fn leader(&self, campaign: &str) -> Option<Position> {
        let key = andante::campaign::token::campaign_key(campaign);
        self.running().into_iter().find(|i| {
            let host = self.node(*i).host();
            let leadership = host.leadership(host.shard_of(key));
            matches!(*leadership.borrow(), andante_cluster::host::Leadership::Leader { .. })
        })
    }

    /// The node that leads a shard and is to lead it: it goes on for as long as it runs. `None`: the one that leads hands
    /// over when it has led for a while.
    pub fn lasting_leader(&self, shard: ShardId) -> Option<Position> {
        let directory = self.node(self.running()[0]).host().directory().borrow().clone();
        let preferred = directory.replicas.get(&shard)?.target.first().copied();
        self.running().into_iter().find(|i| {
            let node = self.node(*i);
            node.role(shard) == Some(Role::Leading) && preferred == Some(node.info().node_id)
        })
    }

    /// A deadline that only a bug misses.
    pub fn deadline(&self) -> Instant {
        Instant::now() + Duration::from_secs(20)
    }

    /// Asks a node for a placement until there is one.
    pub async fn place(&self, i: Position, campaign: &str) -> v1::Placement {
        let asked = async {
            loop {
                let reply = self.node(i).router().score(&request(campaign, 1), self.deadline()).await;
                if let Some(placement) = reply.placements.into_iter().next() {
                    return placement;
                }
                tokio::time::sleep(LOOK_EVERY).await;
            }
        };
        tokio::time::timeout(PATIENCE, asked).await.expect("a placement")
    }
}

/// Copies what a node keeps beside its stores.
fn copy_files(from: &Path, to: &Path) {
    for entry in std::fs::read_dir(from).expect("lists") {
        let path = entry.expect("an entry").path();
        let name = path.file_name().expect("a name");
        if path.is_file() {
            std::fs::copy(&path, to.join(name)).expect("copies");
        }
    }
}

/// A request for the track of a campaign.
pub fn request(campaign: &str, slots: u32) -> v1::ScoreRequest {
    v1::ScoreRequest {
        request_id: "r".into(),
        listener_id: "somebody".into(),
        surface: "radio".into(),
        market: "DE".into(),
        candidates: vec![v1::Candidate { track_id: format!("track-{campaign}"), relevance: 1.0 }],
        slots,
        hold_ms: 0,
    }
}

/// The report of a stream that counts.
pub fn streamed(token: &[u8]) -> v1::ReportRequest {
    let event = v1::OutcomeEvent { token: token.to_vec(), kind: v1::OutcomeKind::Stream.into(), stream_ms: 60_000 };
    v1::ReportRequest { events: vec![event] }
}
