//! The state of a stopped node, read in two independent ways: from the logs alone, and as a start recovers it.

use std::{io, path::Path, sync::Arc};

use openraft::EntryPayload;

use super::{
    Fatal, MachineFactory, StartError,
    follow::is_quorum,
    identity::DataDir,
    start::{LOG_DIR, SNAPSHOT_DIR, STATE_DIR},
};
use crate::{
    GroupId, Machine, NodeId, ShardId,
    env::Env,
    proto::NodeIdentity,
    raft::{
        codec::{self, Applied},
        log::GroupLog,
        recovery,
        types::{Entry, StoredMembership},
    },
    storage::{LogStore, RecoveredGroup, SnapshotStore},
};

/// Bytes of entries read in one go.
const READ_BYTES: usize = 4 << 20;

/// The state of a shard of a stopped node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReplayedShard {
    /// The shard.
    pub shard: ShardId,
    /// Last entry applied; `None`: there is none.
    pub applied: Option<u64>,
    /// Digest of a machine that applied everything up to there.
    pub digest: u64,
}

/// Replays the logs of a stopped node on fresh machines, each from its snapshot file or from the start, without
/// looking at the durable records. Blocking. Opening the log cuts a torn tail, as a start would; nothing else is
/// changed.
///
/// Applied is what is known to be committed; where this node is the only voter, that is every entry, sooner or later.
///
/// # Errors
/// As a start.
pub fn replay_logs(env: &Env, data_dir: &Path, factory: &MachineFactory) -> Result<Vec<ReplayedShard>, StartError> {
    let Some(offline) = Offline::open(env, data_dir)? else { return Ok(Vec::new()) };
    offline.each(|shard, log, found| {
        let mut machine = factory(shard);
        let applied = offline.load_snapshot(shard.group(), &mut *machine)?;
        offline.apply(log, found, machine, applied)
    })
}

/// Recovers the shards of a stopped node from their durable records and logs, as a start does, without becoming a node:
/// nothing listens, nothing is elected. Blocking. Where records are damaged, snapshot and log take their place; nothing
/// is put into quarantine.
///
/// # Errors
/// As a start.
pub fn recover_stopped(env: &Env, data_dir: &Path, factory: &MachineFactory) -> Result<Vec<ReplayedShard>, StartError> {
    let Some(offline) = Offline::open(env, data_dir)? else { return Ok(Vec::new()) };
    let failed = |source| StartError::Io { what: "state store", source };
    let state = env.stores.open_state(&offline.data.part(STATE_DIR), &*env.blocking).map_err(failed)?;
    let recovered = offline.each(|shard, log, found| {
        let group = shard.group();
        let mut machine = factory(shard);
        let applied = match recovery::restore_records(group, &mut *machine, &*state) {
            Ok(applied) => {
                let fits = recovery::check(group, &applied, log, &*offline.snapshots)?;
                fits.map_err(|gap| codec::damaged(format_args!("{group}: {gap}")))?;
                applied
            }
            Err(e) if e.kind() == io::ErrorKind::InvalidData => Applied::default(),
            Err(e) => return Err(e),
        };
        let applied = match applied.last {
            Some(_) => applied,
            None => offline.load_snapshot(group, &mut *machine)?,
        };
        offline.apply(log, found, machine, applied)
    })?;
    state.close().map_err(failed)?;
    Ok(recovered)
}

/// The open stores of a node that does not run.
struct Offline {
    identity: NodeIdentity,
    log: Arc<dyn LogStore>,
    snapshots: Arc<dyn SnapshotStore>,
    // Unlocked last.
    data: DataDir,
}

impl Offline {
    fn open(env: &Env, data_dir: &Path) -> Result<Option<Self>, StartError> {
        let failed = |what| move |source| StartError::Io { what, source };
        let data = DataDir::lock(data_dir)?;
        // It tells what is there, whatever the node acts as.
        let Some(identity) = data.read_identity(u32::MAX)? else { return Ok(None) };
        let log = env.stores.open_log(&data.part(LOG_DIR), &*env.blocking).map_err(failed("log"))?;
        let snapshots = env.stores.open_snapshots(&data.part(SNAPSHOT_DIR), &*env.blocking);
        let snapshots = snapshots.map_err(failed("snapshots"))?;
        Ok(Some(Self { identity, log, snapshots, data }))
    }

    /// What `read` makes of each shard that has a log here.
    fn each(
        &self,
        read: impl Fn(ShardId, &GroupLog, &RecoveredGroup) -> io::Result<(Option<u64>, u64)>,
    ) -> Result<Vec<ReplayedShard>, StartError> {
        let failed = |source| StartError::Io { what: "log", source };
        let mut found = self.log.recovered();
        let mut shards = Vec::new();
        for shard in (0..self.identity.shard_count).map(ShardId) {
            let group = shard.group();
            let found = found.remove(&group).unwrap_or_default();
            let log = GroupLog::open(self.log.clone(), group, found.clone(), Fatal::default()).map_err(failed)?;
            if log.is_pristine() {
                continue;
            }
            let (applied, digest) = read(shard, &log, &found).map_err(failed)?;
            shards.push(ReplayedShard { shard, applied, digest });
        }
        self.log.close().map_err(failed)?;
        Ok(shards)
    }

    fn load_snapshot(&self, group: GroupId, machine: &mut dyn Machine) -> io::Result<Applied> {
        let mut records = Vec::new();
        let snapshot = self.snapshots.load(group, &mut |record| records.push(record))?;
        machine.restore(&mut records.into_iter()).map_err(codec::damaged)?;
        snapshot.map_or_else(|| Ok(Applied::default()), |info| codec::decode_applied(info.meta))
    }

    /// Applies what is committed behind `applied`. Returns the index applied last and the digest.
    fn apply(
        &self,
        log: &GroupLog,
        found: &RecoveredGroup,
        mut machine: Box<dyn Machine>,
        applied: Applied,
    ) -> io::Result<(Option<u64>, u64)> {
        let (group, last) = (log.group(), log.last().map(|id| id.index));
        let mut index = applied.last.map(|id| id.index);
        let committed = found.committed.clone().map(codec::decode_log_id).transpose()?.map(|id| id.index);
        let mut membership = applied.membership;
        if committed < last {
            self.entries(group, index, last, |entry| {
                if let EntryPayload::Membership(newer) = entry.payload {
                    membership = StoredMembership::new(Some(entry.log_id), newer);
                }
            })?;
        }
        let end = if is_quorum(&membership, self.node_id()) { last } else { committed.min(last) };
        self.entries(group, index, end, |entry| {
            if let EntryPayload::Normal(command) = entry.payload {
                machine.apply(entry.log_id.index, &command.0);
            }
            index = Some(entry.log_id.index);
        })?;
        Ok((index, machine.digest()))
    }

    fn node_id(&self) -> NodeId {
        self.identity.node_id
    }

    /// The entries behind `after` up to `end`.
    fn entries(
        &self,
        group: GroupId,
        after: Option<u64>,
        end: Option<u64>,
        mut each: impl FnMut(Entry),
    ) -> io::Result<()> {
        let (mut next, end) = (after.map_or(0, |index| index + 1), end.map_or(0, |index| index + 1));
        while next < end {
            let entries = self.log.read(group, next..end, READ_BYTES)?;
            if entries.first().map(|entry| entry.index) != Some(next) {
                return Err(codec::damaged(format_args!("{group}: entry {next} is missing")));
            }
            for entry in entries {
                next = entry.index + 1;
                each(codec::decode_entry(entry.data)?);
            }
        }
        Ok(())
    }
}
