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

mod config;
mod disk;
mod error;
mod fatal;
mod form;
mod group;
mod identity;
mod replay;
mod start;

use std::{
    io,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use futures::future::{join_all, try_join_all};
use openraft::{ReadPolicy, async_runtime::watch::WatchReceiver};
use tokio::{
    sync::watch,
    task::AbortHandle,
    time::{Instant, timeout, timeout_at},
};
use tonic::{service::Routes, transport::Channel};

pub use config::{DEFAULT_SHARDS, HostConfig, Identity, Join, ShardStatus};
pub use error::{ProposeError, SettingError, StartError};
pub use fatal::Fatal;
pub use group::{Applied, Leadership, MAX_COMMAND_BYTES, MAX_IN_FLIGHT, MAX_IN_FLIGHT_BYTES};
pub use replay::{ReplayedShard, replay_logs};

use self::{
    disk::DiskGuard,
    form::{form, tell_directory},
    group::{Group, Shared},
    identity::DataDir,
    start::{boot, open_stores},
};
use crate::{
    BUCKETS, GroupId, Machine, NodeId, ShardId, bucket_of,
    directory::{Directory, DirectoryMachine},
    env::Env,
    proto::{PutSetting, directory_command, directory_reply},
    raft::{
        Flusher,
        network::NoPeers,
        types::{LogId, Member},
    },
    storage::{LogStats, LogStore, StateStore},
};

/// How long a shutdown waits for what is in flight; proposals have deadlines, the disk has none.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(10);

/// Makes the machine of a shard, in its initial state. Called once for each shard, in order.
pub type MachineFactory = Arc<dyn Fn(ShardId) -> Box<dyn Machine> + Send + Sync>;

/// One node with all its shards. See the [module](self).
pub struct Host {
    identity: Identity,
    /// The shard of each bucket.
    buckets: Arc<[u16]>,
    directory: Group,
    directory_state: watch::Receiver<Arc<Directory>>,
    shards: Vec<Group>,
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
            let (env, fatal, data, boot_id) = (env.clone(), fatal.clone(), data.clone(), identity.boot_id);
            let (blocking, shards) = (env.blocking.clone(), identity.shard_count);
            let restored = blocking.call(move || {
                let mut machines: Vec<(GroupId, Box<dyn Machine>)> =
                    vec![(GroupId::DIRECTORY, Box::new(directory_machine))];
                machines.extend((0..shards).map(ShardId).map(|shard| (shard.group(), factory(shard))));
                let restored = stores.restore(&env, &data, boot_id, machines, &fatal)?;
                Ok((stores, restored))
            });
            let panicked = || StartError::Io { what: "restoring", source: io::Error::other("a machine panicked") };
            restored.await.ok_or_else(panicked)??
        };

        let flusher = Flusher::new(stores.state.clone(), env.blocking.clone(), fatal.clone());
        let mut tasks = Tasks(Vec::new());
        tasks.spawn(flusher.clone().run());
        let shared = Arc::new(Shared {
            node_id: identity.node_id,
            member: Member { address: address.clone() },
            snapshot_every: config.snapshot_every,
            transport: Arc::new(NoPeers),
            stores: stores.group_stores(&env, flusher),
            fatal,
            stopping: AtomicBool::new(false),
            bytes: Shared::byte_permits(),
        });
        // All groups at once: their first writes share fsyncs.
        let formed = identity.formed;
        let groups = restored.into_iter().map(|restored| {
            let (replica, log) = restored.into_replica(&shared.stores);
            let shared = shared.clone();
            async move { Group::start(&shared, replica, log, formed).await }
        });
        let mut shards = try_join_all(groups).await?;
        let directory = shards.remove(0);

        let cluster = form(&directory, &directory_state, &identity, &address, config.feature_level).await?;
        if cluster.shards != identity.shard_count {
            return Err(StartError::ShardCountDiffers { stored: cluster.shards, asked: identity.shard_count });
        }
        if !identity.formed {
            identity.formed = true;
            data.write_identity(&identity)?;
        }
        let disk = DiskGuard::new(config.min_free_bytes);
        tasks.spawn(disk.clone().run(env.stores.clone(), env.blocking.clone(), config.data_dir));
        let buckets = directory_state.borrow().buckets.clone();
        let mut host = Self {
            identity: Identity {
                cluster_id: cluster.id,
                incarnation: cluster.incarnation,
                node_id: identity.node_id,
                boot_id: identity.boot_id,
                shards: cluster.shards,
            },
            buckets,
            directory,
            directory_state,
            shards,
            shared,
            log: stores.log,
            state: stores.state,
            disk,
            peer_addr: config.peer_addr,
            tasks,
            closed: tokio::sync::Mutex::new(false),
            data: parking_lot::Mutex::new(Some(data)),
        };
        let deferred = host.build_deferred_snapshots();
        host.tasks.spawn(deferred);
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
        let group = self.shard(shard).ok_or(ProposeError::Unavailable("there is no such shard"))?;
        group.propose(command, deadline).await
    }

    /// Replicates a command wherever the shard's leader is: here, or by one call there. What is surely not applied (no
    /// leader yet, another leader, no room) is tried again until the deadline; what is unknown is not.
    ///
    /// # Errors
    /// As [`Host::propose`].
    pub async fn submit(&self, shard: ShardId, command: Bytes, deadline: Instant) -> Result<Applied, ProposeError> {
        self.propose(shard, command, deadline).await
    }

    /// Returns once this node's replica has applied everything that was acknowledged anywhere before the call: what
    /// is read from it then is linearizable. By ReadIndex, no clock is involved; the leader may be elsewhere.
    ///
    /// # Errors
    /// As [`Host::propose`], never `Unknown`; `NotLeader` if there is no replica here.
    pub async fn read_index(&self, shard: ShardId, deadline: Instant) -> Result<(), ProposeError> {
        let group = self.shard(shard).ok_or(ProposeError::Unavailable("there is no such shard"))?;
        let linearizer = timeout_at(deadline, group.raft.get_read_linearizer(ReadPolicy::ReadIndex)).await;
        let linearizer = linearizer.map_err(|_| ProposeError::Unavailable("no quorum answered before the deadline"))?;
        let linearizer = linearizer.map_err(|_| ProposeError::NotLeader { leader: None })?;
        let applied = timeout_at(deadline, linearizer.await_ready(&group.raft)).await;
        applied
            .map_err(|_| ProposeError::Unavailable("not applied before the deadline"))?
            .map(drop)
            .map_err(|_| ProposeError::Stopping)
    }

    /// Whether this node has a replica of a shard.
    pub fn has_replica(&self, shard: ShardId) -> bool {
        self.shard(shard).is_some()
    }

    /// The way to another node's services (those it was started with). Connects at the first call and whenever the
    /// connection is lost; calls fail at once while the node can't be reached. `None`: there is no such node.
    pub fn peer(&self, node: NodeId) -> Option<Channel> {
        let _ = node;
        None
    }

    /// Who leads a shard, as this node sees it.
    ///
    /// # Panics
    /// If there is no such shard.
    pub fn leadership(&self, shard: ShardId) -> watch::Receiver<Leadership> {
        self.expect_shard(shard).leadership.clone()
    }

    /// Where a shard stands on this node.
    ///
    /// # Panics
    /// If there is no such shard.
    pub fn status(&self, shard: ShardId) -> ShardStatus {
        let group = self.expect_shard(shard);
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
            leadership: *group.leadership.borrow(),
        }
    }

    /// The index applied last (`None`: nothing yet) and the machine's digest, taken together between two applies.
    ///
    /// # Errors
    /// [`ProposeError::Stopping`] if the machine is broken.
    ///
    /// # Panics
    /// If there is no such shard.
    pub async fn digest(&self, shard: ShardId) -> Result<(Option<u64>, u64), ProposeError> {
        let replica = self.expect_shard(shard).replica.clone();
        let digest = self.shared.stores.blocking.call(move || replica.digest()).await;
        digest.and_then(Result::ok).ok_or(ProposeError::Stopping)
    }

    /// What all nodes agree on, as far as this node has seen it; changes wake the watch.
    pub fn directory(&self) -> watch::Receiver<Arc<Directory>> {
        self.directory_state.clone()
    }

    /// Who leads the directory, as this node sees it. What one node of the cluster has to do for all is done by this
    /// one.
    pub fn directory_leadership(&self) -> watch::Receiver<Leadership> {
        self.directory.leadership.clone()
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
        match tell_directory(&self.directory, directory_command::Command::PutSetting(put), deadline).await? {
            directory_reply::Reply::Done(done) => Ok(done.revision),
            directory_reply::Reply::Mismatch(mismatch) => Err(SettingError::Mismatch { revision: mismatch.revision }),
            directory_reply::Reply::Refused(why) => Err(SettingError::Refused(why)),
        }
    }

    /// Becomes `Some` when this node can't go on (a disk error, a broken machine). Proposals fail from then on; the
    /// caller ends the process. What was acknowledged is safe.
    pub fn fatal(&self) -> watch::Receiver<Option<String>> {
        self.shared.fatal.watch()
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
    /// # Panics
    /// If there is no such shard.
    pub async fn trigger_snapshot(&self, shard: ShardId) -> Result<(), ProposeError> {
        self.expect_shard(shard).raft.trigger().snapshot().await.map_err(|_| ProposeError::Stopping)
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
        self.shared.stopping.store(true, Ordering::Release);
        if !self.shared.fatal.is_set() {
            let drained = join_all(self.groups().map(Group::drained));
            if timeout(DRAIN_TIMEOUT, drained).await.is_err() {
                tracing::warn!("proposals in flight are given up; their outcome is unknown");
            }
        }
        join_all(self.groups().map(|group| group.raft.shutdown())).await;
        if let Some(why) = self.shared.fatal.reason() {
            return Err(io::Error::other(why));
        }
        let mut fatal = self.shared.fatal.watch();
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

    /// Has deferred snapshots built, one after the other.
    fn build_deferred_snapshots(&self) -> impl Future<Output = ()> + Send + use<> {
        let permits = self.shared.stores.permits.clone();
        let groups: Vec<_> = self.groups().map(|group| (group.id(), group.raft.clone())).collect();
        async move {
            loop {
                let due = permits.next_deferred().await;
                let raft = groups.iter().find(|(id, _)| *id == due).map(|(_, raft)| raft);
                if let Some(raft) = raft
                    && raft.trigger().snapshot().await.is_err()
                {
                    return;
                }
            }
        }
    }

    fn groups(&self) -> impl Iterator<Item = &Group> {
        std::iter::once(&self.directory).chain(&self.shards)
    }

    fn shard(&self, shard: ShardId) -> Option<&Group> {
        self.shards.get(shard.0 as usize)
    }

    fn expect_shard(&self, shard: ShardId) -> &Group {
        self.shard(shard).unwrap_or_else(|| panic!("there is no shard {shard}, only {}", self.shards.len()))
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
