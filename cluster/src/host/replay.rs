//! An independent replay of a stopped node's logs, to compare with what recovery gives.

use std::{io, path::Path};

use openraft::EntryPayload;

use super::{
    Fatal, MachineFactory, StartError,
    identity::DataDir,
    start::{LOG_DIR, SNAPSHOT_DIR},
};
use crate::{
    GroupId, Machine, ShardId,
    env::Env,
    raft::{codec, log::GroupLog},
    storage::{LogStore, SnapshotStore},
};

/// Bytes of entries read in one go.
const READ_BYTES: usize = 4 << 20;

/// What a shard's snapshot and log give.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReplayedShard {
    /// The shard.
    pub shard: ShardId,
    /// Last entry of its log; `None`: it has none.
    pub applied: Option<u64>,
    /// Digest of a fresh machine that applied the log up to there.
    pub digest: u64,
}

/// Replays the logs of a stopped node of a one-node cluster on fresh machines, each from its snapshot file or from
/// the start, without looking at the durable records. Blocking. Opening the log cuts a torn tail, as a start would;
/// nothing else is changed.
///
/// In a cluster of one node every entry of a log is committed sooner or later, so all are applied.
///
/// # Errors
/// As a start.
pub fn replay_logs(env: &Env, data_dir: &Path, factory: &MachineFactory) -> Result<Vec<ReplayedShard>, StartError> {
    let failed = |what| move |source| StartError::Io { what, source };
    let data = DataDir::lock(data_dir)?;
    let Some(identity) = data.read_identity()? else { return Ok(Vec::new()) };
    let log = env.stores.open_log(&data.part(LOG_DIR), &*env.blocking).map_err(failed("log"))?;
    let snapshots = env.stores.open_snapshots(&data.part(SNAPSHOT_DIR), &*env.blocking).map_err(failed("snapshots"))?;
    let mut found = log.recovered();
    let mut replayed = Vec::new();
    for shard in (0..identity.shard_count).map(ShardId) {
        let group = shard.group();
        let group_found = found.remove(&group).unwrap_or_default();
        let group_log = GroupLog::open(log.clone(), group, group_found, Fatal::default()).map_err(failed("log"))?;
        let mut machine = factory(shard);
        replay(group, &*log, &group_log, &*snapshots, &mut *machine).map_err(failed("replay"))?;
        replayed.push(ReplayedShard { shard, applied: group_log.last().map(|id| id.index), digest: machine.digest() });
    }
    log.close().map_err(failed("log"))?;
    Ok(replayed)
}

fn replay(
    group: GroupId,
    store: &dyn LogStore,
    log: &GroupLog,
    snapshots: &dyn SnapshotStore,
    machine: &mut dyn Machine,
) -> io::Result<()> {
    let mut records = Vec::new();
    let snapshot = snapshots.load(group, &mut |record| records.push(record))?;
    let mut next = 0;
    if let Some(info) = snapshot {
        machine.restore(&mut records.into_iter()).map_err(codec::damaged)?;
        next = codec::decode_applied(info.meta)?.last.map_or(0, |id| id.index + 1);
    }
    let end = log.last().map_or(0, |id| id.index + 1);
    while next < end {
        let entries = store.read(group, next..end, READ_BYTES)?;
        if entries.first().map(|entry| entry.index) != Some(next) {
            return Err(codec::damaged(format_args!("{group}: entry {next} is missing")));
        }
        for entry in entries {
            if let EntryPayload::Normal(command) = codec::decode_entry(entry.data)?.payload {
                machine.apply(entry.index, &command.0);
            }
            next = entry.index + 1;
        }
    }
    Ok(())
}
