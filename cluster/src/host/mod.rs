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

mod address;
mod ask;
mod balance;
mod call;
mod config;
mod coordinator;
mod disk;
mod error;
mod failover;
mod fatal;
mod follow;
mod form;
mod group;
mod hand_over;
mod handler;
mod identity;
mod join;
mod launch;
mod leaders;
mod observe;
mod reconcile;
mod replay;
mod replicas;
mod report;
mod shared;
mod start;
mod table;

use std::{collections::BTreeMap, io, net::SocketAddr, sync::Arc, time::Duration};

use bytes::Bytes;
use futures::future::join_all;
use openraft::async_runtime::watch::WatchReceiver;
use tokio::{
    sync::watch,
    task::AbortHandle,
    time::{Instant, timeout},
};
use tonic::{service::Routes, transport::Channel};

pub use ask::Answerer;
pub use config::{DEFAULT_SHARDS, HostConfig, Identity, Join, ShardStatus};
pub use error::{ProposeError, SettingError, StartError};
pub use fatal::Fatal;
pub use group::{Applied, Leadership, MAX_COMMAND_BYTES, MAX_IN_FLIGHT};
pub use replay::{ReplayedShard, recover_stopped, replay_logs};
pub use shared::MAX_IN_FLIGHT_BYTES;

use self::{disk::DiskGuard, group::Group, identity::DataDir, shared::Shared};
use crate::{
    BUCKETS, GroupId, Machine, NodeId, ShardId, bucket_of,
    directory::Directory,
    env::Env,
    peer::PeerStats,
    proto::{PutSetting, directory_command, directory_reply},
    raft::types::LogId,
    report::NodeReport,
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
    /// Starts a node: listens for peers, locks its data directory, counts the start, restores every group, starts
    /// consensus. A new data directory forms a cluster of one node, or joins one. Returns when the directory can be
    /// read; [`Host::leadership`] tells when a shard can be written (for a single node: a few fsyncs later). `services`
    /// are offered to the peers, on the same address and under the same protection as the host's own.
    ///
    /// # Errors
    /// See [`StartError`]. Nothing runs then.
    pub async fn start(
        env: Env,
        config: HostConfig,
        factory: MachineFactory,
        services: Routes,
    ) -> Result<Self, StartError> {
        Self::launch(env, config, factory, services).await
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

    /// Returns once [`Host::directory`] shows everything that was acknowledged anywhere before the call.
    ///
    /// # Errors
    /// As [`Host::read_index`].
    pub async fn read_directory(&self, deadline: Instant) -> Result<(), ProposeError> {
        self.shared.read_index(GroupId::DIRECTORY, deadline).await
    }

    /// Whether this node has a replica of a shard.
    pub fn has_replica(&self, shard: ShardId) -> bool {
        self.group(shard).is_some()
    }

    /// The way to another node's services (those it was started with). Connects at the first call and whenever the
    /// connection is lost; calls fail at once while the node can't be reached. `None`: there is no such node.
    pub fn peer(&self, node: NodeId) -> Option<Channel> {
        self.shared.peers.channel(node)
    }

    /// What this node knows of its groups, with a fresh probe (a replicated write, shared by all who ask within a
    /// second) of those it leads.
    pub async fn report(&self, deadline: Instant) -> NodeReport {
        report::report(&self.shared, deadline).await
    }

    /// What every node of the cluster says of its groups, or why it says nothing.
    pub async fn reports(&self, deadline: Instant) -> BTreeMap<NodeId, Result<NodeReport, String>> {
        report::reports(&self.shared, deadline).await
    }

    /// Gives every group that this node leads to another of its voters, as far as one is at hand, in at most a few
    /// seconds: before a shutdown, so that nobody waits for elections. Proposals meanwhile are refused or find the new
    /// leader. Nobody gives this node a group to lead any more until it starts again. Returns how many groups could not
    /// be given away.
    pub async fn hand_over(&self) -> usize {
        hand_over::hand_over(&self.shared).await
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

    /// What the transport to the other nodes counts.
    pub fn peer_stats(&self) -> Arc<PeerStats> {
        self.shared.peers.stats()
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
        self.shared.peers.shutdown().await;
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
        self.close().await
    }

    /// Ends at once: as far as anybody else can see this is a crash. No leader is handed over, no proposal waited for,
    /// no record made durable. Only the stores are closed, so that this process can open them again.
    ///
    /// # Errors
    /// The disk's. Nothing acknowledged is lost.
    pub async fn halt(&self) -> io::Result<()> {
        let mut closed = self.closed.lock().await;
        if std::mem::replace(&mut *closed, true) {
            return Ok(());
        }
        self.shared.gate.stop();
        join_all(self.shared.groups.all().iter().map(|group| group.stop())).await;
        self.shared.peers.shutdown().await;
        self.close().await
    }

    /// Closes the stores. Nothing runs any more that writes to them.
    async fn close(&self) -> io::Result<()> {
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
