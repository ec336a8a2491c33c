//! One node with all its shards.
//!
//! ```text
//! Host::start(env, config, factory)      locks the data directory, counts the start, restores every group
//!   .leadership(shard)                   tells when this node may act for a shard
//!   .propose(shard, command, deadline)   replicates, applies, replies; says whether a failure may have been applied
//!   .directory() / .put_setting(...)     what all nodes agree on
//!   .fatal()                             a failed disk or a broken machine: end the process
//!   .shutdown()                          drains, flushes, closes
//! ```
//! Dropping a host without [`Host::shutdown`] is a crash as far as the stores are concerned: nothing acknowledged is
//! lost.

mod call;
mod config;
mod disk;
mod error;
mod fatal;
mod follow;
mod form;
mod group;
mod identity;
mod leaders;
mod replay;
mod replicas;
mod shared;
mod start;
mod table;

use std::{collections::BTreeSet, io, net::SocketAddr, sync::Arc, time::Duration};

use bytes::Bytes;
use futures::future::{join_all, try_join_all};
use openraft::async_runtime::watch::WatchReceiver;
use tokio::{
    sync::watch,
    task::AbortHandle,
    time::{Instant, timeout},
};
use tonic::{service::Routes, transport::Channel};

pub use config::{DEFAULT_SHARDS, HostConfig, Identity, Join, ShardStatus};
pub use error::{ProposeError, SettingError, StartError};
pub use fatal::Fatal;
pub use group::{Applied, Leadership, MAX_COMMAND_BYTES, MAX_IN_FLIGHT};
pub use replay::{ReplayedShard, replay_logs};
pub use shared::MAX_IN_FLIGHT_BYTES;

use self::{
    disk::DiskGuard,
    form::form,
    group::{Group, Pristine},
    identity::DataDir,
    leaders::LeaderTable,
    shared::{Gate, Shared},
    start::{OpenStores, boot, open_stores},
    table::GroupTable,
};
use crate::{
    BUCKETS, GroupId, Machine, NodeId, ShardId, bucket_of,
    directory::{Directory, DirectoryMachine},
    env::Env,
    proto::{NodeIdentity, PutSetting, directory_command, directory_reply},
    raft::{
        Flusher,
        network::NoPeers,
        types::{LogId, Member},
    },
    storage::{LogStats, LogStore, StateStore},
};

/// How long a shutdown waits for what is in flight; proposals have deadlines, the disk has none.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(10);

/// Makes the machine of a shard, in its initial state. Called once for each replica that is opened on this node: at the
/// start, in order, or later, when the directory assigns a shard. A replica that is removed leaves its machine in the
/// initial state.
pub type MachineFactory = Arc<dyn Fn(ShardId) -> Box<dyn Machine> + Send + Sync>;

/// One node with all its shards. See the [module](self).
pub struct Host {
    identity: Identity,
    /// The shard of each bucket.
    buckets: Arc<[u16]>,
    shared: Arc<Shared>,
    log: Arc<dyn LogStore>,
    state: Arc<dyn StateStore>,
    disk: Arc<DiskGuard>,
    peer_addr: SocketAddr,
    tasks: Tasks,
    closed: tokio::sync::Mutex<bool>,
    // Unlocked by a shutdown; else last, when everything else is gone.
    data: parking_lot::Mutex<Option<Arc<DataDir>>>,
}

impl Drop for Host {
    fn drop(&mut self) {
        // Snapshot builds that still wait for the disk would keep the stores open.
        self.shared.stores.flusher.stop();
        // Tasks of others may still hold the shared part for a moment.
        self.shared.groups.clear();
    }
}

/// Background tasks, ended with the host.
struct Tasks(Vec<AbortHandle>);

impl Tasks {
    fn spawn(&mut self, task: impl Future<Output = ()> + Send + 'static) {
        self.0.push(tokio::spawn(task).abort_handle());
    }
}

impl Drop for Tasks {
    fn drop(&mut self) {
        self.0.iter().for_each(AbortHandle::abort);
    }
}

impl Host {
    /// Starts a node: locks its data directory, counts the start, restores every group, starts consensus. A new data
    /// directory forms a cluster of one node. Returns when the directory can be read; [`Host::leadership`] tells
    /// when a shard can be written (for a single node: a few fsyncs later). `services` are offered to the peers, on
    /// the same address and under the same protection as the host's own.
    ///
    /// # Errors
    /// See [`StartError`]. Nothing runs then.
    pub async fn start(
        env: Env,
        config: HostConfig,
        factory: MachineFactory,
        services: Routes,
    ) -> Result<Self, StartError> {
        // Offered to peers once they can connect.
        let _ = services;
        let address = config.advertise.clone().unwrap_or_else(|| config.peer_addr.to_string());
        let mut cluster_id = [0; 16];
        env.rng.fill(&mut cluster_id);
        let (data, mut identity) = boot(&config.data_dir, config.shards, DEFAULT_SHARDS, cluster_id)?;
        let fatal = Fatal::default();
        let (directory_machine, directory_state) = DirectoryMachine::new();

        // Everything that opens or reads whole stores is off the async threads.
        let data = Arc::new(data);
        let mut stores = open_stores(&env, &data, identity.boot_id).await?;
        let (stores, restored) = {
            let (env, fatal, data, identity) = (env.clone(), fatal.clone(), data.clone(), identity.clone());
            let (blocking, factory, directory) = (env.blocking.clone(), factory.clone(), directory_state.clone());
            let restored = blocking.call(move || {
                let shards = |stores: &OpenStores| {
                    let here = shards_here(stores, &directory.borrow(), &identity);
                    here.into_iter().map(|shard| (shard.group(), factory(shard))).collect()
                };
                let directory_machine = Box::new(directory_machine);
                let restored = stores.restore(&env, &data, identity.boot_id, directory_machine, shards, &fatal)?;
                Ok((stores, restored))
            });
            let panicked = || StartError::Io { what: "restoring", source: io::Error::other("a machine panicked") };
            restored.await.ok_or_else(panicked)??
        };
        if identity.formed
            && let Some(lost) = restored.iter().find(|restored| restored.log.is_pristine())
        {
            return Err(StartError::LostGroup { group: lost.group });
        }

        let flusher = Flusher::new(stores.state.clone(), env.blocking.clone(), fatal.clone());
        let mut tasks = Tasks(Vec::new());
        tasks.spawn(flusher.clone().run());
        let shared = Arc::new(Shared {
            node_id: identity.node_id,
            member: Member { address: address.clone() },
            snapshot_every: config.snapshot_every,
            factory,
            transport: Arc::new(NoPeers),
            stores: stores.group_stores(&env, flusher),
            log: stores.log.clone(),
            gate: Arc::new(Gate::new(fatal)),
            groups: GroupTable::default(),
            leaders: Arc::new(LeaderTable::new(identity.node_id, identity.shard_count)),
            directory: directory_state,
            env,
        });
        let mut host = Self {
            identity: Identity {
                cluster_id,
                incarnation: 0,
                node_id: identity.node_id,
                boot_id: identity.boot_id,
                shards: identity.shard_count,
            },
            buckets: Arc::default(),
            peer_addr: config.peer_addr,
            log: stores.log,
            state: stores.state,
            disk: DiskGuard::new(config.min_free_bytes),
            tasks,
            closed: tokio::sync::Mutex::new(false),
            data: parking_lot::Mutex::new(Some(data.clone())),
            shared,
        };
        let shared = host.shared.clone();
        let pristine = if identity.formed { Pristine::Wait } else { Pristine::Form };
        let mut restored = restored.into_iter().map(|restored| restored.into_replica(&shared.stores));
        if let Some((replica, log)) = restored.next() {
            let directory = Group::start(&shared, replica, log, pristine).await?;
            shared.groups.insert(directory.clone());
            let cluster = form(&shared, &directory, &identity, config.feature_level).await?;
            if cluster.shards != identity.shard_count {
                return Err(StartError::ShardCountDiffers { stored: cluster.shards, asked: identity.shard_count });
            }
            (host.identity.cluster_id, host.identity.incarnation) = (cluster.id, cluster.incarnation);
        }
        host.buckets = shared.directory.borrow().buckets.clone();
        // All shards at once: their first writes share fsyncs.
        let groups = restored.map(|(replica, log)| Group::start(&shared, replica, log, pristine));
        for group in try_join_all(groups).await? {
            shared.groups.insert(group);
        }
        if !identity.formed {
            identity.formed = true;
            data.write_identity(&identity)?;
        }
        let (stores, blocking) = (shared.env.stores.clone(), shared.env.blocking.clone());
        host.tasks.spawn(host.disk.clone().run(stores, blocking, config.data_dir));
        host.tasks.spawn(replicas::follow_directory(shared.clone()));
        host.tasks.spawn(build_deferred_snapshots(shared));
        Ok(host)
    }

    /// Who this node is.
    pub fn identity(&self) -> &Identity {
        &self.identity
    }

    /// Where it listens for its peers.
    pub fn peer_addr(&self) -> SocketAddr {
        self.peer_addr
    }

    /// The shard of a hashed key. Wait-free.
    pub fn shard_of(&self, key_hash: u64) -> ShardId {
        debug_assert_eq!(self.buckets.len(), usize::from(BUCKETS));
        ShardId(u32::from(self.buckets[usize::from(bucket_of(key_hash))]))
    }

    /// Replicates a command of a shard and returns the machine's reply once it is applied here. Concurrent proposals
    /// share fsyncs; one alone takes about one.
    ///
    /// Dropping the future does not take the command back.
    ///
    /// # Errors
    /// See [`ProposeError`]: all but `Unknown` say that the command was not and will not be applied.
    pub async fn propose(&self, shard: ShardId, command: Bytes, deadline: Instant) -> Result<Applied, ProposeError> {
        if shard.0 >= self.identity.shards {
            return Err(ProposeError::Unavailable("there is no such shard"));
        }
        match self.group(shard) {
            Some(group) => group.propose(command, deadline).await,
            None => Err(ProposeError::NotLeader { leader: None }),
        }
    }

    /// Replicates a command wherever the shard's leader is: here, or by one call there. What is surely not applied (no
    /// leader yet, another leader, no room) is tried again until the deadline; what is unknown is not.
    ///
    /// # Errors
    /// As [`Host::propose`].
    pub async fn submit(&self, shard: ShardId, command: Bytes, deadline: Instant) -> Result<Applied, ProposeError> {
        self.shared.submit(shard.group(), command, deadline).await
    }

    /// Returns once this node's replica has applied everything that was acknowledged anywhere before the call: what
    /// is read from it then is linearizable. By ReadIndex, no clock is involved; the leader may be elsewhere.
    ///
    /// # Errors
    /// As [`Host::propose`], never `Unknown`; `NotLeader` if there is no replica here.
    pub async fn read_index(&self, shard: ShardId, deadline: Instant) -> Result<(), ProposeError> {
        self.shared.read_index(shard.group(), deadline).await
    }

    /// Whether this node has a replica of a shard.
    pub fn has_replica(&self, shard: ShardId) -> bool {
        self.group(shard).is_some()
    }

    /// The way to another node's services (those it was started with). Connects at the first call and whenever the
    /// connection is lost; calls fail at once while the node can't be reached. `None`: there is no such node.
    pub fn peer(&self, node: NodeId) -> Option<Channel> {
        let _ = node;
        None
    }

    /// Who leads a shard, as this node sees it, whether or not it has a replica.
    ///
    /// # Panics
    /// If there is no such shard.
    pub fn leadership(&self, shard: ShardId) -> watch::Receiver<Leadership> {
        let watch = self.shared.leaders.watch(shard.group());
        watch.unwrap_or_else(|| panic!("there is no shard {shard}"))
    }

    /// Where a shard stands on this node; without a replica here, nothing but who leads it.
    ///
    /// # Panics
    /// If there is no such shard.
    pub fn status(&self, shard: ShardId) -> ShardStatus {
        let leadership = *self.leadership(shard).borrow();
        let Some(group) = self.group(shard) else { return ShardStatus { leadership, ..ShardStatus::default() } };
        let index = |id: Option<LogId>| id.map(|id| id.index);
        let metrics = group.raft.metrics();
        let metrics = metrics.borrow_watched();
        ShardStatus {
            term: metrics.vote.leader_id.term,
            last_log: index(group.log.last()),
            flushed: group.log.gate().index(),
            applied: index(group.replica.applied().last),
            durable: group.replica.durable(),
            snapshot: index(metrics.snapshot),
            purged: index(group.log.purged()),
            leadership,
        }
    }

    /// The index applied last (`None`: nothing yet) and the machine's digest, taken together between two applies.
    ///
    /// # Errors
    /// [`ProposeError::Unavailable`] without a replica here, [`ProposeError::Stopping`] if the machine is broken.
    pub async fn digest(&self, shard: ShardId) -> Result<(Option<u64>, u64), ProposeError> {
        let group = self.group(shard).ok_or(NO_REPLICA)?;
        let digest = self.shared.stores.blocking.call(move || group.replica.digest()).await;
        digest.and_then(Result::ok).ok_or(ProposeError::Stopping)
    }

    /// What all nodes agree on, as far as this node has seen it; changes wake the watch.
    pub fn directory(&self) -> watch::Receiver<Arc<Directory>> {
        self.shared.directory.clone()
    }

    /// Who leads the directory, as this node sees it. What one node of the cluster has to do for all is done by this
    /// one.
    pub fn directory_leadership(&self) -> watch::Receiver<Leadership> {
        let watch = self.shared.leaders.watch(GroupId::DIRECTORY);
        watch.unwrap_or_else(|| watch::channel(Leadership::Follower { leader: None }).1)
    }

    /// Writes (`None`: deletes) a setting in the directory and returns its new revision. With an expected revision
    /// only if it has that one now (0: only if there is none).
    ///
    /// # Errors
    /// See [`SettingError`].
    pub async fn put_setting(
        &self,
        name: &str,
        value: Option<Bytes>,
        expected_revision: Option<u64>,
        deadline: Instant,
    ) -> Result<u64, SettingError> {
        let put = PutSetting { name: name.to_owned(), value, expected_revision };
        match self.shared.tell_directory(directory_command::Command::PutSetting(put), deadline).await? {
            directory_reply::Reply::Done(done) => Ok(done.revision),
            directory_reply::Reply::Mismatch(mismatch) => Err(SettingError::Mismatch { revision: mismatch.revision }),
            directory_reply::Reply::Refused(why) => Err(SettingError::Refused(why)),
        }
    }

    /// Becomes `Some` when this node can't go on (a disk error, a broken machine). Proposals fail from then on; the
    /// caller ends the process. What was acknowledged is safe.
    pub fn fatal(&self) -> watch::Receiver<Option<String>> {
        self.shared.gate.fatal.watch()
    }

    /// Whether the disk is nearly full: refuse what needs space, go on with what frees it.
    pub fn disk_low(&self) -> bool {
        self.disk.is_low()
    }

    /// What the log has written since the start.
    pub fn log_stats(&self) -> LogStats {
        self.log.stats()
    }

    /// Bytes on disk of log and records.
    pub fn size_bytes(&self) -> u64 {
        self.log.size_bytes() + self.state.size_bytes()
    }

    /// Builds a shard's snapshot soon (if none is being built), and purges its log behind it.
    ///
    /// # Errors
    /// [`ProposeError::Unavailable`] without a replica here, [`ProposeError::Stopping`].
    pub async fn trigger_snapshot(&self, shard: ShardId) -> Result<(), ProposeError> {
        let group = self.group(shard).ok_or(NO_REPLICA)?;
        group.raft.trigger().snapshot().await.map_err(|_| ProposeError::Stopping)
    }

    /// Takes no more proposals, waits for those in flight (10 s at most), makes all records durable and closes the
    /// stores. The next start has nothing to apply again. A second call does nothing.
    ///
    /// # Errors
    /// The disk's, or why the node had failed before. Nothing acknowledged is lost.
    pub async fn shutdown(&self) -> io::Result<()> {
        let mut closed = self.closed.lock().await;
        if std::mem::replace(&mut *closed, true) {
            return Ok(());
        }
        self.shared.gate.stop();
        let groups = self.shared.groups.all();
        if !self.shared.gate.fatal.is_set() {
            let drained = join_all(groups.iter().map(|group| group.drained()));
            if timeout(DRAIN_TIMEOUT, drained).await.is_err() {
                tracing::warn!("proposals in flight are given up; their outcome is unknown");
            }
        }
        join_all(groups.iter().map(|group| group.stop())).await;
        if let Some(why) = self.shared.gate.fatal.reason() {
            return Err(io::Error::other(why));
        }
        let mut fatal = self.shared.gate.fatal.watch();
        tokio::select! {
            flushed = self.shared.stores.flusher.flush() => flushed?,
            // What waits for a log that has failed would wait for ever.
            failed = fatal.wait_for(Option::is_some) => {
                let why = failed.ok().and_then(|why| why.clone()).unwrap_or_default();
                return Err(io::Error::other(why));
            }
        }
        self.shared.stores.flusher.stop();
        self.shared.stores.permits.close().await;
        self.tasks.0.iter().for_each(AbortHandle::abort);
        let (state, log) = (self.state.clone(), self.log.clone());
        let stores_closed = self.shared.stores.blocking.call(move || state.close().and(log.close()));
        stores_closed.await.unwrap_or_else(|| Err(io::Error::other("closing the stores was given up")))?;
        // Whoever still holds this host can't write any more: the next one may come.
        drop(self.data.lock().take());
        Ok(())
    }

    fn group(&self, shard: ShardId) -> Option<Arc<Group>> {
        self.shared.groups.get(shard.group())
    }
}

const NO_REPLICA: ProposeError = ProposeError::Unavailable("there is no replica of the shard on this node");

/// The shards whose replicas are here: a new cluster has them all, else those with a log, and those that the directory
/// says this node votes in (if one of them has no log, it was lost).
fn shards_here(stores: &OpenStores, directory: &Directory, identity: &NodeIdentity) -> BTreeSet<ShardId> {
    let all = (0..identity.shard_count).map(ShardId);
    if !identity.formed {
        return all.collect();
    }
    let here = |shard: &ShardId| {
        let confirmed = directory.replicas.get(shard).is_some_and(|here| here.nodes.contains(&identity.node_id));
        confirmed || stores.found.contains_key(&shard.group())
    };
    all.filter(here).collect()
}

/// Has deferred snapshots built, one after the other.
async fn build_deferred_snapshots(shared: Arc<Shared>) {
    loop {
        let due = shared.stores.permits.next_deferred().await;
        if let Some(group) = shared.groups.get(due) {
            // One that fails has stopped.
            let _ = group.raft.trigger().snapshot().await;
        }
    }
}

impl Host {
    /// What every node says of its groups.
    pub async fn reports(
        &self,
        _deadline: Instant,
    ) -> std::collections::BTreeMap<NodeId, Result<crate::report::NodeReport, String>> {
        Default::default()
    }
}
