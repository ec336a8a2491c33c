//! What a group's state is after a start.

use std::io;

use super::{
    codec::{self, Applied},
    log::GroupLog,
};
use crate::{
    GroupId, Machine,
    storage::{SnapshotStore, StateStore},
};

/// Restores a machine from its durable records; blocking. Returns what they stand for.
///
/// Records without a marker (a replacement was interrupted) are removed and the machine stays initial: the
/// snapshot file and the log rebuild it.
///
/// # Errors
/// `InvalidData` if the records are damaged or the machine doesn't understand them.
pub(crate) fn restore_records(
    group: GroupId,
    machine: &mut dyn Machine,
    state: &dyn StateStore,
) -> io::Result<Applied> {
    let Some(marker) = state.applied(group)? else {
        state.remove_group(group)?;
        return Ok(Applied::default());
    };
    let applied = codec::decode_applied(marker)?;
    let mut records = Vec::new();
    state.load(group, &mut |record| records.push(record))?;
    machine.restore(&mut records.into_iter()).map_err(codec::damaged)?;
    // What was restored is what the store holds.
    drop(machine.take_changes());
    Ok(applied)
}

/// Why a group can't go on from what is on disk.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Gap {
    /// Entries are missing between the newest state and the log.
    #[error("entries {from} to {to} are gone: the state is older than the purged log")]
    Hole {
        /// First missing entry.
        from: u64,
        /// Last missing entry.
        to: u64,
    },
    /// The records stand for an entry that the log does not have: the log has lost synced entries.
    #[error("the state stands for entry {state}, but the log ends at {log}: synced entries are lost")]
    LogBehindState {
        /// Index of the durable records.
        state: u64,
        /// Last entry of the log; 0 when it is empty.
        log: u64,
    },
}

/// Checks that state, snapshot and log of a group fit together; blocking. A damaged snapshot file that nothing needs
/// is removed.
pub(crate) fn check(
    group: GroupId,
    records: &Applied,
    log: &GroupLog,
    snapshots: &dyn SnapshotStore,
) -> io::Result<Result<(), Gap>> {
    let snapshot = match snapshots.current(group) {
        Ok(None) => None,
        Ok(Some(info)) => codec::decode_applied(info.meta)?.last.map(|id| id.index),
        Err(e) if e.kind() == io::ErrorKind::InvalidData => {
            tracing::error!(%group, error = %e, "the snapshot file is damaged: removed, a new one is built when due");
            snapshots.remove_group(group)?;
            None
        }
        Err(e) => return Err(e),
    };
    let records = records.last.map(|id| id.index);
    let (purged, last) = (log.purged().map(|id| id.index), log.last().map(|id| id.index));
    let newest = records.max(snapshot);
    if let Some(to) = purged
        && newest < purged
    {
        return Ok(Err(Gap::Hole { from: newest.map_or(0, |index| index + 1), to }));
    }
    // A snapshot past the log's end was installed: the log is purged to it. Records past both are not.
    if let Some(state) = records
        && records > last
        && records > snapshot
    {
        return Ok(Err(Gap::LogBehindState { state, log: last.unwrap_or(0) }));
    }
    Ok(Ok(()))
}
