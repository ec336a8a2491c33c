//! A running node: the cluster host, the actors of its shards and the router, put together.

mod cluster_settings;
mod keys;
mod records;
mod sampler;
mod status;
mod stored;

use std::{
    collections::BTreeSet,
    net::{Ipv4Addr, SocketAddr},
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use andante_cluster::{
    ShardId,
    env::{Env, Rng},
    host::{Host, HostConfig, Join, Leadership},
};
use anyhow::Context;
use futures::future::join_all;
use parking_lot::Mutex;
use prost::Message;
use ractor::{Actor, ActorRef};
use tokio::{
    task::{JoinHandle, JoinSet},
    time::{Duration, Instant, timeout_at},
};

pub use cluster_settings::SettingsChangeError;
pub use keys::{KeyRotation, RotateError};
pub use stored::{StateDigest, StoredShard, stored_digests};

use self::{cluster_settings::Configured, keys::KeyLives};
use crate::{
    access::{Access, CertificateSource, ServerTls},
    actor::{
        BookObserver, NodeClock, Role, Shard, ShardTable,
        node::{NodeMessage, NodeSupervisor, start_ticker},
        supervisor::ShardArgs,
    },
    campaign::{proto, token::campaign_key},
    feature::{CLUSTER_SETTINGS, FEATURE_LEVEL},
    metrics::Metrics,
    router::{self, Catalog, Router, RouterParts, RouterSlot},
    settings::{ClusterSettings, Settings, SettingsInForce, VersionedSettings},
};

/// A single node elects itself for all its shards within moments; a loaded disk may take its time.
const START_TIMEOUT: Duration = Duration::from_secs(60);
/// How long giving everything back may take at the end.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(10);

/// What a node is started with.
#[derive(Debug, Clone)]
pub struct NodeConfig {
    /// Everything the node keeps lies here.
    pub data_dir: PathBuf,
    /// Number of shards, chosen at the first start; `None`: 16 at the first start, whatever is stored later.
    pub shards: Option<u32>,
    /// Settings. Those on which all nodes must agree are written if the cluster has none yet; else the cluster's hold.
    pub settings: Settings,
    /// Keys of the configuration that were set, such as `settings.skew_margin_ms`. The node says so where the cluster's
    /// settings overrule one, even if it was set to the default.
    pub set_keys: BTreeSet<String>,
    /// The other nodes.
    pub peers: PeerConfig,
    /// Feature level that it acts on, [`FEATURE_LEVEL`] at most; a lower one makes it behave as an older program would
    /// towards its cluster and its data directory.
    pub feature_level: u32,
    /// Watches what is applied.
    pub observer: Option<Arc<dyn BookObserver>>,
}

impl NodeConfig {
    /// The defaults, with everything in `data_dir`.
    pub fn new(data_dir: impl Into<PathBuf>) -> Self {
        Self {
            data_dir: data_dir.into(),
            shards: None,
            settings: Settings::default(),
            set_keys: BTreeSet::new(),
            peers: PeerConfig::default(),
            feature_level: FEATURE_LEVEL,
            observer: None,
        }
    }
}

/// How a node finds the other nodes of its cluster, and is found by them.
#[derive(Debug, Clone)]
pub struct PeerConfig {
    /// Where it listens for them; port 0 takes a free one.
    pub addr: SocketAddr,
    /// `host:port` where they reach it; `None`: where it listens.
    pub advertise: Option<String>,
    /// With a new data directory: the cluster to join. `None`: form one.
    pub join: Option<Join>,
    /// Without TLS.
    pub plaintext: bool,
}

impl Default for PeerConfig {
    /// On a free port of this machine, in a cluster of its own.
    fn default() -> Self {
        Self { addr: (Ipv4Addr::LOCALHOST, 0).into(), advertise: None, join: None, plaintext: false }
    }
}

/// What a node is.
#[derive(Debug, Clone)]
pub struct NodeInfo {
    /// The cluster's id.
    pub cluster_id: [u8; 16],
    /// Grows with each restore from a backup.
    pub incarnation: u32,
    /// This node.
    pub node_id: u64,
    /// Number of starts of this node.
    pub boot_id: u64,
    /// Number of shards.
    pub shards: u32,
}

/// Why a clock was not confirmed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ConfirmClockError {
    /// The operator's time is not the node's; nothing changed.
    #[error("{0}")]
    Refused(String),
    /// The clock is confirmed, but a shard's time may or may not be set back. Repeat it.
    #[error("the clock is confirmed, but not every shard's time may be set back: {0}")]
    Unknown(String),
}

/// A running node.
pub struct Node {
    info: NodeInfo,
    host: Arc<Host>,
    router: Arc<Router>,
    clock: Arc<NodeClock>,
    metrics: Arc<Metrics>,
    settings: Arc<Settings>,
    cluster_settings: SettingsInForce,
    supervisor: ActorRef<NodeMessage>,
    ticker: JoinHandle<()>,
    sampler: JoinHandle<()>,
    /// Follow the directory: the keys of delivery tokens, and the cluster's settings.
    followers: Vec<JoinHandle<()>>,
    access: Arc<Access>,
    rng: Arc<dyn Rng>,
    /// It hands over what it leads, or has.
    leaving: AtomicBool,
    /// Keep the router's tables in step.
    routes: Mutex<JoinSet<()>>,
}

impl Node {
    /// Recovers or creates the node's state, joining a cluster if it was told to, and starts its shards. A node that is
    /// alone leads all of them when this returns; with others, [`Node::ready`] says what is missing.
    pub async fn start(env: Env, config: NodeConfig) -> anyhow::Result<Node> {
        config.settings.validate()?;
        let settings = Arc::new(config.settings);
        let metrics = Arc::new(Metrics::new());
        let catalog = Arc::new(Catalog::default());
        let table = Arc::new(ShardTable::new(settings.tick_ms, catalog.clone(), config.observer));
        let slot = RouterSlot::default();

        let mut host_config = HostConfig::new(config.data_dir);
        host_config.shards = config.shards;
        host_config.peer_addr = config.peers.addr;
        host_config.advertise = config.peers.advertise;
        host_config.join = config.peers.join;
        host_config.plaintext_peers = config.peers.plaintext;
        host_config.feature_level = config.feature_level;
        host_config.snapshot_every = settings.snapshot_every_entries;
        host_config.min_free_bytes = settings.min_free_bytes;
        let factory = {
            let table = table.clone();
            #[cfg(andante_mutants)]
            let clock = env.clock.clone();
            Arc::new(move |id| {
                #[cfg(andante_mutants)]
                table.get(id).own_clock.get_or_init(|| clock.clone());
                Box::new(table.machine(id)) as Box<dyn andante_cluster::Machine>
            })
        };
        let data_dir = host_config.data_dir.clone();
        let host = Arc::new(Host::start(env.clone(), host_config, factory, router::routes(slot.clone())).await?);
        let shards: Vec<_> = (0..host.identity().shards).map(|id| table.get(ShardId(id))).collect();
        let deadline = Instant::now() + START_TIMEOUT;
        let obeys = config.feature_level >= CLUSTER_SETTINGS;
        let cluster_settings = if obeys {
            let there = cluster_settings::load_or_create(&host, settings.cluster(), deadline).await?;
            SettingsInForce::new(there)
        } else {
            SettingsInForce::fixed(settings.cluster())
        };
        metrics.set_cluster_settings(&cluster_settings.get());
        let keys = keys::load_or_create(&host, &*env.rng, env.clock.now_ms(), deadline).await?;
        let access = Arc::new(Access::start(host.clone(), env.rng.clone()));
        access.ensure_operator(&data_dir, &*env.rng, &env.blocking, env.clock.now_ms(), deadline).await?;

        let clock = Arc::new(NodeClock::new(env.clock.clone(), cluster_settings.clone()));
        let args = shards.iter().map(|shard| ShardArgs {
            shard: shard.clone(),
            host: host.clone(),
            leadership: host.leadership(shard.id),
            clock: clock.clone(),
            settings: settings.clone(),
            cluster_settings: cluster_settings.clone(),
            metrics: metrics.clone(),
        });
        let (supervisor, _) = Actor::spawn(None, NodeSupervisor, args.collect()).await?;
        let ticker = start_ticker(supervisor.clone(), settings.tick_ms, metrics.clone());

        let router = Router::new(RouterParts {
            host: host.clone(),
            shards,
            catalog,
            keys,
            clock: clock.clone(),
            source: env.clock.clone(),
            settings: settings.clone(),
            metrics: metrics.clone(),
        });
        // Other nodes' questions are answered from now on.
        let _first = slot.set(Arc::downgrade(&router));
        let routes = Mutex::new(router::follow(&router));
        let keys = keys::start(host.clone(), router.clone(), env.rng.clone(), cluster_settings.clone());
        let mut followers = vec![keys];
        if obeys {
            let (router, metrics, in_force) = (router.clone(), metrics.clone(), cluster_settings.clone());
            let configured = Configured { settings: settings.cluster(), set_keys: config.set_keys };
            followers.push(cluster_settings::start(host.clone(), router, metrics, in_force, configured));
        }
        let identity = host.identity();
        let info = NodeInfo {
            cluster_id: identity.cluster_id,
            incarnation: identity.incarnation.try_into()?,
            node_id: identity.node_id,
            boot_id: identity.boot_id,
            shards: identity.shards,
        };
        let sampler = sampler::start(host.clone(), router.clone(), metrics.clone());
        let rng = env.rng;
        let node = Node {
            info,
            host,
            router,
            clock,
            metrics,
            settings,
            cluster_settings,
            supervisor,
            ticker,
            sampler,
            followers,
            access,
            rng,
            leaving: AtomicBool::new(false),
            routes,
        };
        if node.host.directory().borrow().nodes.len() <= 1 {
            node.wait_until_leading(deadline).await?;
        }
        Ok(node)
    }

    async fn wait_until_leading(&self, deadline: Instant) -> anyhow::Result<()> {
        for shard in self.router.shards.iter() {
            let mut roles = shard.roles();
            let leads = timeout_at(deadline, roles.wait_for(|role| *role == Role::Leading)).await;
            leads.with_context(|| format!("shard {} found no leader", shard.id))??;
        }
        timeout_at(deadline, self.router.until_ready()).await.context("the catalog did not get in step")?;
        Ok(())
    }

    /// Whether its replies to Score can be whole: it has been in step with every shard once.
    pub(crate) fn has_been_in_step(&self) -> bool {
        self.router.ready().is_ok()
    }

    /// Resolves when it has been in step with every shard once.
    pub(crate) async fn until_in_step(&self) {
        self.router.until_ready().await;
    }

    /// Who it is.
    pub fn info(&self) -> &NodeInfo {
        &self.info
    }

    /// Where it listens for its peers.
    pub fn peer_addr(&self) -> SocketAddr {
        self.host.peer_addr()
    }

    /// Settings of this node. Of those on which all nodes agree, [`Node::cluster_settings`] are in force.
    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    /// The cluster's settings as they are in force on this node.
    pub fn cluster_settings(&self) -> ClusterSettings {
        self.cluster_settings.get()
    }

    /// The same with their version.
    pub fn versioned_cluster_settings(&self) -> VersionedSettings {
        self.cluster_settings.versioned()
    }

    /// Changes the cluster's settings, from `expected_revision` (`None`: whatever they are). They are in force on this
    /// node when this returns, on others as soon as the directory's change reaches them.
    ///
    /// # Errors
    /// See [`SettingsChangeError`].
    pub async fn change_cluster_settings(
        &self,
        change: impl Fn(&mut ClusterSettings),
        expected_revision: Option<u64>,
        deadline: Instant,
    ) -> Result<VersionedSettings, SettingsChangeError> {
        let changed = cluster_settings::change(&self.host, change, expected_revision, deadline).await?;
        let directory = self.host.directory().borrow().clone();
        // Not waiting for the task that follows it.
        cluster_settings::take_over(&self.router, &self.metrics, &self.cluster_settings, &directory);
        Ok(changed)
    }

    /// What replicates its shards.
    pub fn host(&self) -> &Arc<Host> {
        &self.host
    }

    /// Where requests go.
    pub fn router(&self) -> &Arc<Router> {
        &self.router
    }

    /// The node's metrics.
    pub fn metrics(&self) -> &Arc<Metrics> {
        &self.metrics
    }

    /// Clients' access tokens.
    pub fn access(&self) -> &Arc<Access> {
        &self.access
    }

    /// TLS for clients, with a certificate that is kept fresh. `env` is the one the node was started with.
    ///
    /// # Errors
    /// There is no usable certificate.
    pub async fn server_tls(&self, source: CertificateSource, env: &Env) -> anyhow::Result<ServerTls> {
        ServerTls::start(source, &self.host, env).await
    }

    /// Begins a rotation of the keys of delivery tokens, or says what comes if one is under way.
    ///
    /// # Errors
    /// See [`RotateError`].
    pub async fn rotate_token_keys(&self, deadline: Instant) -> Result<KeyRotation, RotateError> {
        let lives = KeyLives::of(&self.settings, &self.cluster_settings);
        keys::rotate(&self.host, &*self.rng, self.now_ms(), lives, deadline).await
    }

    /// Whether it serves everything: it is in the cluster, and every shard has a leader. The reason if not. A clock that
    /// is not trusted is no reason: scores and outcomes don't need it, and it may befall all nodes at once.
    pub fn ready(&self) -> Result<(), String> {
        if let Some(reason) = self.host.fatal().borrow().clone() {
            return Err(reason);
        }
        if self.leaving.load(Ordering::Relaxed) {
            return Err("the node is stopping".into());
        }
        if !self.host.directory().borrow().nodes.contains_key(&self.info.node_id) {
            return Err("the node is joining its cluster".into());
        }
        let led = |shard: &Shard| {
            shard.scores()
                || matches!(*self.host.leadership(shard.id).borrow(), Leadership::Follower { leader: Some(_) })
        };
        match self.router.shards.iter().find(|shard| !led(shard)) {
            Some(shard) => Err(format!("shard {} has no known leader", shard.id)),
            None => self.router.ready(),
        }
    }

    /// What this node does for a shard; `None`: there is no such shard.
    pub fn role(&self, shard: ShardId) -> Option<Role> {
        self.shard(shard).map(|here| here.role())
    }

    /// A shard as it is on this node; `None`: there is no such shard.
    pub fn shard(&self, shard: ShardId) -> Option<&Arc<Shard>> {
        self.router.shards.iter().find(|here| here.id == shard)
    }

    /// Whether the clock is trusted: if not, nothing is closed or purged until an operator confirms it.
    pub fn clock_trusted(&self) -> bool {
        self.clock.trusted() && !self.router.shards.iter().any(|shard| shard.time_ahead())
    }

    /// An id for a write that this node makes for somebody else: nobody has another one like it.
    pub fn new_request_id(&self) -> String {
        let mut bytes = [0; 16];
        self.rng.fill(&mut bytes);
        format!("{:032x}", u128::from_be_bytes(bytes))
    }

    /// Node time, UTC milliseconds.
    pub fn now_ms(&self) -> u64 {
        self.clock.now_ms()
    }

    /// An operator confirms the wall clock; refused when it differs from `expected_now_ms` by more than the margin.
    /// Shards whose time ran ahead of it are set back.
    ///
    /// # Errors
    /// `Refused` when the two differ; otherwise what became of setting a shard back. Safe to repeat.
    pub async fn confirm_clock(&self, expected_now_ms: u64) -> Result<u64, ConfirmClockError> {
        let margin_ms = self.cluster_settings().skew_margin_ms;
        let now_ms = self.clock.confirm(expected_now_ms).map_err(|wall_ms| {
            let detail =
                format!("the node's wall clock says {wall_ms}, more than {margin_ms} ms from {expected_now_ms}");
            ConfirmClockError::Refused(detail)
        })?;
        for shard in self.router.shards.iter() {
            // Their leaders set back the others, once theirs is confirmed.
            if shard.role() != Role::Leading || shard.book().shard_time_ms() <= now_ms + margin_ms {
                continue;
            }
            let set = proto::command::Kind::SetShardTime(proto::SetShardTime { now_ms });
            let command = proto::Command { kind: Some(set) }.encode_to_vec();
            let applied = self.host.propose(shard.id, command.into(), Instant::now() + DRAIN_TIMEOUT).await;
            applied.map_err(|error| ConfirmClockError::Unknown(format!("shard {}: {error}", shard.id)))?;
        }
        tracing::info!(now_ms, "the wall clock was confirmed by an operator");
        Ok(now_ms)
    }

    /// Resolves with the reason when the node must stop (a disk failed): the caller exits the process.
    pub async fn fatal(&self) -> String {
        let mut fatal = self.host.fatal();
        let reason = fatal.wait_for(Option::is_some).await.map(|reason| reason.clone().unwrap_or_default());
        match reason {
            Ok(reason) => reason,
            // The host is gone: an orderly end.
            Err(_) => std::future::pending().await,
        }
    }

    /// Hands what this node leads to others, some seconds at most. Before requests under way are finished: those that
    /// still come find the new leaders, whose tokens take over while this node's actors end and give back what they
    /// hold. A node that is alone keeps everything. [`Node::ready`] says no from now on.
    pub async fn hand_over(&self) {
        self.leaving.store(true, Ordering::Relaxed);
        let kept = self.host.hand_over().await;
        tracing::info!(kept, "what this node led is handed over");
    }

    /// Ends all actors and gives back what they did not hand out. Outcomes still settle; the state changes by them alone.
    pub async fn drain(&self) {
        let deadline = Instant::now() + DRAIN_TIMEOUT;
        self.ticker.abort();
        // All at once: those led elsewhere by now wait for their leaders.
        let drained = (0..self.router.shards.count()).map(|shard| async move {
            let drained = self.supervisor.call(|reply| NodeMessage::Drain { shard, reply }, None);
            if timeout_at(deadline, drained).await.is_err() {
                tracing::warn!(shard, "a shard did not drain in time; what it held comes back when it closes");
            }
        });
        join_all(drained).await;
    }

    /// Hands over, drains, writes everything out and closes. The API must have drained before.
    ///
    /// # Errors
    /// The disk's. Nothing acknowledged is lost.
    pub async fn shutdown(&self) -> anyhow::Result<()> {
        self.hand_over().await;
        self.drain().await;
        self.end_tasks();
        self.supervisor.stop(None);
        self.host.shutdown().await.context("the node's stores did not close well")?;
        // Costs a walk through all campaigns, hence only for those who ask.
        if tracing::enabled!(tracing::Level::DEBUG) {
            for (shard, (applied, digest)) in self.digests().await?.into_iter().enumerate() {
                let StateDigest { applied, digest } = StateDigest::new(applied, digest);
                tracing::debug!(shard, ?applied, %digest, "closed");
            }
        }
        Ok(())
    }

    /// Ends at once, as a crash does for everybody else: nothing is handed over and nothing given back. The data can be
    /// opened again by this process (for `andante demo` and tests).
    ///
    /// # Errors
    /// The disk's. Nothing acknowledged is lost.
    pub async fn halt(&self) -> anyhow::Result<()> {
        self.end_tasks();
        self.supervisor.kill();
        self.host.halt().await.context("the node's stores did not close well")
    }

    /// Ends what runs beside the actors and the host.
    fn end_tasks(&self) {
        self.ticker.abort();
        self.sampler.abort();
        self.followers.iter().for_each(JoinHandle::abort);
        self.routes.lock().abort_all();
        self.router.stop();
    }

    /// Ends the actor of a campaign as a crash would (for `andante demo` and tests); its supervisor restarts it.
    pub async fn crash_actor(&self, campaign: &str) -> bool {
        let key = campaign_key(campaign);
        let shard = self.host.shard_of(key).0 as usize;
        ractor::call!(self.supervisor, |reply| NodeMessage::Crash { shard, key, reply }).unwrap_or(false)
    }

    /// A hash over the state of each shard with a replica here, in order, with the index applied last; equal before a
    /// stop and after the restart.
    pub async fn digests(&self) -> anyhow::Result<Vec<(Option<u64>, u64)>> {
        let mut digests = Vec::new();
        for shard in self.router.shards.iter().filter(|shard| self.host.has_replica(shard.id)) {
            digests.push(self.host.digest(shard.id).await?);
        }
        Ok(digests)
    }
}

/// Without [`Node::shutdown`] a node ends as in a crash: nothing acknowledged is lost.
impl Drop for Node {
    fn drop(&mut self) {
        self.end_tasks();
        self.supervisor.kill();
    }
}
