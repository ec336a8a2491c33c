//! From a data directory to open stores and restored machines.

use std::{collections::BTreeMap, io, sync::Arc, time::Duration};

use tokio::time::{Instant, sleep};

use super::{
    DEFAULT_SHARDS, Fatal, HostConfig, StartError,
    identity::{DataDir, format_of, joining_identity, new_identity},
};
use crate::{
    GroupId, Machine, NodeId,
    directory::MAX_SHARDS,
    env::Env,
    proto::NodeIdentity,
    raft::{
        Replica, SnapshotPermits,
        codec::{Applied, damaged as damaged_data},
        log::GroupLog,
        machine::GroupStores,
        recovery,
    },
    storage::{LogStore, RecoveredGroup, SnapshotStore, StateStore},
};

/// The node that forms a cluster; later ones get their ids from the directory.
const FIRST_NODE: NodeId = 1;

pub(super) const LOG_DIR: &str = "log";
pub(super) const STATE_DIR: &str = "state";
pub(super) const SNAPSHOT_DIR: &str = "snapshots";

/// Locks the data directory and counts this start, durably, before anything else happens. A new node that is to join a
/// cluster has no id yet.
pub(super) fn boot(config: &HostConfig, random_id: [u8; 16]) -> Result<(DataDir, NodeIdentity), StartError> {
    let shards = config.shards;
    if let Some(asked) = shards.filter(|asked| !(1..=MAX_SHARDS).contains(asked)) {
        return Err(StartError::BadShardCount { asked, max: MAX_SHARDS });
    }
    let data = DataDir::lock(&config.data_dir)?;
    let mut identity = match (data.read_identity(config.feature_level)?, &config.join) {
        (Some(found), _) => found,
        (None, None) => new_identity(FIRST_NODE, random_id, shards.unwrap_or(DEFAULT_SHARDS), config.feature_level),
        (None, Some(_)) => joining_identity(random_id, config.feature_level),
    };
    check_shards(&identity, shards)?;
    if !identity.formed {
        // The cluster will hear of this program's level as soon as it hears of this node.
        identity.format_version = identity.format_version.max(format_of(config.feature_level));
    }
    identity.boot_id += 1;
    data.write_identity(&identity)?;
    Ok((data, identity))
}

/// A cluster keeps its number of shards.
pub(super) fn check_shards(identity: &NodeIdentity, asked: Option<u32>) -> Result<(), StartError> {
    match asked.filter(|asked| identity.shard_count != 0 && *asked != identity.shard_count) {
        Some(asked) => Err(StartError::ShardCountDiffers { stored: identity.shard_count, asked }),
        None => Ok(()),
    }
}

/// How long a start waits for the stores of a host that was dropped in this process just before.
const RELEASE_TIMEOUT: Duration = Duration::from_secs(10);
const RELEASE_CHECK_INTERVAL: Duration = Duration::from_millis(5);

/// The open stores of a node and what the log store found.
pub(super) struct OpenStores {
    pub(super) log: Arc<dyn LogStore>,
    pub(super) state: Arc<dyn StateStore>,
    pub(super) snapshots: Arc<dyn SnapshotStore>,
    pub(super) found: BTreeMap<GroupId, RecoveredGroup>,
}

fn failed(what: &'static str) -> impl Fn(io::Error) -> StartError {
    move |source| StartError::Io { what, source }
}

/// A group's machine, restored from its records, and its log.
pub(super) struct Restored {
    pub(super) group: GroupId,
    pub(super) machine: Box<dyn Machine>,
    pub(super) applied: Applied,
    pub(super) log: GroupLog,
}

impl OpenStores {
    /// Opens the stores; blocking. A state store that is damaged as a whole is put into quarantine.
    fn open(env: &Env, data: &DataDir, boot_id: u64) -> Result<Self, StartError> {
        let (stores, blocking) = (&env.stores, &*env.blocking);
        let log = stores.open_log(&data.part(LOG_DIR), blocking).map_err(failed("log"))?;
        let snapshots = stores.open_snapshots(&data.part(SNAPSHOT_DIR), blocking).map_err(failed("snapshots"))?;
        let state = match stores.open_state(&data.part(STATE_DIR), blocking) {
            Err(e) if e.kind() == io::ErrorKind::InvalidData => {
                tracing::error!(error = %e, "the state store is damaged; it is rebuilt from snapshots and logs");
                data.quarantine(STATE_DIR, boot_id).map_err(failed("quarantine"))?;
                stores.open_state(&data.part(STATE_DIR), blocking)
            }
            opened => opened,
        };
        let found = log.recovered();
        Ok(Self { log, state: state.map_err(failed("state store"))?, snapshots, found })
    }

    /// Restores the directory's machine, then those of the shards that `shards` wants after a look at the directory;
    /// blocking. Damaged records are put into quarantine, and all groups start from their snapshots and logs then.
    pub(super) fn restore(
        &mut self,
        env: &Env,
        data: &DataDir,
        boot_id: u64,
        directory: Box<dyn Machine>,
        shards: impl FnOnce(&Self) -> Vec<(GroupId, Box<dyn Machine>)>,
        fatal: &Fatal,
    ) -> Result<Vec<Restored>, StartError> {
        let restore = |group, mut machine: Box<dyn Machine>, state: &dyn StateStore| {
            let records = recovery::restore_records(group, &mut *machine, state);
            (group, machine, records)
        };
        let mut restored = vec![restore(GroupId::DIRECTORY, directory, &*self.state)];
        restored.extend(shards(self).into_iter().map(|(group, machine)| restore(group, machine, &*self.state)));
        let mut damaged = false;
        for (group, _, records) in &restored {
            if let Err(e) = records
                && e.kind() == io::ErrorKind::InvalidData
            {
                tracing::error!(%group, error = %e, "the records are damaged; all are rebuilt from snapshots and logs");
                damaged = true;
            }
        }
        if damaged {
            self.state.close().map_err(failed("state store"))?;
            data.quarantine(STATE_DIR, boot_id).map_err(failed("quarantine"))?;
            let reopened = env.stores.open_state(&data.part(STATE_DIR), &*env.blocking);
            self.state = reopened.map_err(failed("state store"))?;
            for (group, machine, records) in &mut restored {
                // A store without a directory of its own was not moved away.
                self.state.remove_group(*group).map_err(failed("state store"))?;
                *records = machine.restore(&mut std::iter::empty()).map_err(damaged_data).map(|()| {
                    drop(machine.take_changes());
                    Applied::default()
                });
            }
        }
        restored
            .into_iter()
            .map(|(group, machine, records)| {
                let applied = records.map_err(failed("state store"))?;
                let found = self.found.remove(&group).unwrap_or_default();
                let log = GroupLog::open(self.log.clone(), group, found, fatal.clone()).map_err(failed("log"))?;
                let fits = recovery::check(group, &applied, &log, &*self.snapshots).map_err(failed("snapshots"))?;
                fits.map_err(|gap| StartError::Gap { group, gap })?;
                Ok(Restored { group, machine, applied, log })
            })
            .collect()
    }

    /// What all groups share.
    pub(super) fn group_stores(&self, env: &Env, flusher: Arc<crate::raft::Flusher>) -> Arc<GroupStores> {
        Arc::new(GroupStores {
            state: self.state.clone(),
            snapshots: self.snapshots.clone(),
            blocking: env.blocking.clone(),
            flusher,
            permits: SnapshotPermits::default(),
        })
    }
}

impl Restored {
    /// Hands the machine to the flusher.
    pub(super) fn into_replica(self, stores: &GroupStores) -> (Arc<Replica>, GroupLog) {
        let gate = self.log.gate().clone();
        (stores.flusher.add(self.group, self.machine, self.applied, gate), self.log)
    }
}

/// Opens the stores, waiting for a predecessor in this process (its data directory is unlocked, so it has ended, but
/// its last tasks may not have).
pub(super) async fn open_stores(env: &Env, data: &Arc<DataDir>, boot_id: u64) -> Result<OpenStores, StartError> {
    let deadline = Instant::now() + RELEASE_TIMEOUT;
    loop {
        let (on_thread, data) = (env.clone(), data.clone());
        let opened = env.blocking.call(move || OpenStores::open(&on_thread, &data, boot_id)).await;
        let panicked = || StartError::Io { what: "opening the stores", source: io::Error::other("a thread panicked") };
        match opened.ok_or_else(panicked)? {
            Err(StartError::Io { source, .. })
                if source.kind() == io::ErrorKind::ResourceBusy && Instant::now() < deadline =>
            {
                sleep(RELEASE_CHECK_INTERVAL).await;
            }
            opened => return opened,
        }
    }
}
