//! What a node keeps on disk, as seams.
//!
//! | seam | holds | production |
//! |---|---|---|
//! | [`LogStore`] | logs, votes, committed and purged ids of all groups of a node | raft-engine |
//! | [`StateStore`] | records of all shards of a node, with the log index they stand for | sled |
//! | [`SnapshotStore`] | one snapshot per group | plain files |
//!
//! Each has one contract suite (`cluster/tests/`), which every implementation passes, and an in-memory twin
//! ([`memory`]) for tests. Errors are `io::Error`: the disk's. Damage (synced data that reads back wrong) is
//! `io::ErrorKind::InvalidData` and never repaired silently.

mod disk;
mod durable_files;
mod log_engine;
mod log_op;
pub mod memory;
mod snapshot_files;
mod snapshot_format;
mod state_sled;

use std::{collections::BTreeMap, io, ops::Range, path::Path, sync::Arc};

use bytes::Bytes;

pub use disk::DiskStores;
pub use log_engine::{EngineLogStore, LogEngineConfig};
pub use snapshot_files::SnapshotFiles;
pub use state_sled::SledState;

use crate::{GroupId, Record, RecordChange, env::Blocking};

/// Opens the stores of one node. Each gets a directory of its own, which it creates if needed. A store that is still
/// open elsewhere is `io::ErrorKind::ResourceBusy`.
pub trait Stores: Send + Sync + 'static {
    /// Opens or creates the log store; recovers what was synced, cuts a torn tail, refuses damage (`InvalidData`).
    fn open_log(&self, dir: &Path, blocking: &dyn Blocking) -> io::Result<Arc<dyn LogStore>>;
    /// Opens or creates the state store. Damage is `InvalidData`; the caller quarantines the directory and rebuilds.
    fn open_state(&self, dir: &Path, blocking: &dyn Blocking) -> io::Result<Arc<dyn StateStore>>;
    /// Opens or creates the folder of snapshot files.
    fn open_snapshots(&self, dir: &Path, blocking: &dyn Blocking) -> io::Result<Arc<dyn SnapshotStore>>;
    /// Bytes the disk that holds `dir` has left for us. The node refuses new work while there are too few.
    fn free_bytes(&self, dir: &Path) -> io::Result<u64>;
}

/// Called once, off the caller's thread, when what was queued is durable or has failed. Quick and non-blocking.
pub type OnFlush = Box<dyn FnOnce(io::Result<()>) + Send>;

/// One log entry: an index and its encoded term, leader and payload.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogEntry {
    /// Log index; consecutive within a group.
    pub index: u64,
    /// Encoded entry.
    pub data: Bytes,
}

/// What a group's log holds after opening.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RecoveredGroup {
    /// Encoded vote, if one was saved.
    pub vote: Option<Bytes>,
    /// Encoded committed log id, if one was saved (a hint; may be old).
    pub committed: Option<Bytes>,
    /// Encoded id of the last purged entry, if any was.
    pub purged: Option<Bytes>,
    /// Indexes of the entries present; empty when there are none.
    pub entries: Range<u64>,
}

/// What a log store has done since it was opened. All counters only grow.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct LogStats {
    /// Batches made durable; one sync each.
    pub batches: u64,
    /// Queued writes in those batches; divided by `batches` it is the gain of group commit.
    pub writes: u64,
    /// Log entries in those batches.
    pub entries: u64,
    /// Bytes of those batches as written.
    pub bytes: u64,
    /// Syncs of any file, those of housekeeping included.
    pub syncs: u64,
    /// Time spent in those syncs.
    pub sync_micros: u64,
    /// The longest of them.
    pub sync_micros_max: u64,
}

/// The logs and votes of all groups of one node.
///
/// All writes of all groups go through one queue in the order of the calls; one writer takes what is pending, writes
/// it as one batch, syncs once and then calls every `done` in queue order. A failed write or sync is sticky: from
/// then on every call fails, and the host stops the node.
pub trait LogStore: Send + Sync + 'static {
    /// What was found at open.
    fn recovered(&self) -> BTreeMap<GroupId, RecoveredGroup>;

    /// Queues entries. They replace anything at the same and higher indexes. They are readable by
    /// [`LogStore::read`] as soon as this returns, before they are durable.
    fn append(&self, group: GroupId, entries: Vec<LogEntry>, done: OnFlush);

    /// Queues a vote; `done` when it is durable.
    fn save_vote(&self, group: GroupId, vote: Bytes, done: OnFlush);

    /// Queues the committed log id; written with the next batch, no sync of its own.
    fn save_committed(&self, group: GroupId, committed: Bytes);

    /// Drops all entries with an index above `last` (`None`: all entries); `done` when durable.
    fn truncate_after(&self, group: GroupId, last: Option<u64>, done: OnFlush);

    /// Drops all entries up to and with `index` and remembers the encoded id of the last one, in one batch.
    /// `index` may lie past the end of the log (a snapshot was installed). `done` when durable.
    fn purge(&self, group: GroupId, index: u64, purged: Bytes, done: OnFlush);

    /// Entries of `range` that are present, in order, without gaps; stops early after `max_bytes` but returns at
    /// least one entry if the first is present.
    fn read(&self, group: GroupId, range: Range<u64>, max_bytes: usize) -> io::Result<Vec<LogEntry>>;

    /// Removes every trace of a group; `done` when durable.
    fn remove_group(&self, group: GroupId, done: OnFlush);

    /// Waits for the queue to drain, syncs and closes. Later calls fail.
    fn close(&self) -> io::Result<()>;

    /// Bytes on disk.
    fn size_bytes(&self) -> u64;

    /// Figures for metrics.
    fn stats(&self) -> LogStats;
}

/// The records of all shards of one node. Blocking; called on blocking threads only.
///
/// A group without marker has no records, whatever remains of it on disk. Calls for different groups may run at once;
/// those for one group wait for each other.
pub trait StateStore: Send + Sync + 'static {
    /// The marker of the last batch of a group: an encoded log id and membership, opaque here.
    fn applied(&self, group: GroupId) -> io::Result<Option<Bytes>>;

    /// Writes changed records and the marker as one atomic batch. Durable only after [`StateStore::sync`]. If a key
    /// occurs twice, its last change counts.
    fn write(&self, group: GroupId, changes: &[RecordChange], applied: &[u8]) -> io::Result<()>;

    /// Makes everything written so far durable (a real fsync). An error is final: what was written since the last
    /// successful sync may or may not be durable, and the host stops the node.
    fn sync(&self) -> io::Result<()>;

    /// Calls `each` (which must not call back) with all records of a group in key order, checking each one's checksum
    /// and, at the end, that they are exactly those of the marker. After an error, records already given are void.
    fn load(&self, group: GroupId, each: &mut dyn FnMut(Record)) -> io::Result<()>;

    /// Replaces all records of a group by `records`, in ascending key order: first removes the marker durably, then
    /// the records, writes the marker last and syncs. A crash or error on the way leaves a group without marker, which
    /// is rebuilt from its snapshot.
    fn replace(&self, group: GroupId, records: &mut dyn Iterator<Item = Record>, applied: &[u8]) -> io::Result<()>;

    /// Removes every trace of a group, durably.
    fn remove_group(&self, group: GroupId) -> io::Result<()>;

    /// Syncs and closes. Later calls fail.
    fn close(&self) -> io::Result<()>;

    /// Bytes on disk.
    fn size_bytes(&self) -> u64;
}

/// What a snapshot stands for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SnapshotInfo {
    /// Encoded log id, membership and snapshot id, opaque here.
    pub meta: Bytes,
    /// Size of the file.
    pub size_bytes: u64,
}

/// One snapshot per group. Blocking; called on blocking threads only.
///
/// A new snapshot replaces the group's older one in one step, so each call sees one whole snapshot; two calls may see
/// different ones. Whoever needs the records and what they stand for together takes both from one `load` or one
/// reader. Two publications of one group must not run at once (the later to finish wins); different groups may.
pub trait SnapshotStore: Send + Sync + 'static {
    /// Writes, checksums, syncs and publishes a snapshot of `records`, which come in ascending key order. When it returns, the
    /// snapshot is durable. On an error, the group has its older snapshot or the new one, never a part.
    fn publish(
        &self,
        group: GroupId,
        meta: &[u8],
        records: &mut dyn Iterator<Item = Record>,
    ) -> io::Result<SnapshotInfo>;

    /// The group's snapshot, if there is one. Checks its header only.
    fn current(&self, group: GroupId) -> io::Result<Option<SnapshotInfo>>;

    /// Calls `each` with all records in order and says what they stand for (`None`: there is no snapshot). The
    /// checksum of the whole file is verified before the first call; damage is `InvalidData`.
    fn load(&self, group: GroupId, each: &mut dyn FnMut(Record)) -> io::Result<Option<SnapshotInfo>>;

    /// Opens the group's snapshot, if there is one, for sending its raw bytes to a peer.
    fn open_reader(&self, group: GroupId) -> io::Result<Option<Box<dyn SnapshotReader>>>;

    /// Starts receiving the raw bytes of a peer's snapshot. Nothing is visible before
    /// [`SnapshotInstall::publish`].
    fn begin_install(&self, group: GroupId) -> io::Result<Box<dyn SnapshotInstall>>;

    /// Removes a group's snapshot, durably.
    fn remove_group(&self, group: GroupId) -> io::Result<()>;
}

/// One published snapshot, raw. Stays readable, and the same, when a newer one replaces it. Blocking.
pub trait SnapshotReader: Send + Sync + 'static {
    /// What it stands for and its size.
    fn info(&self) -> &SnapshotInfo;

    /// `max_bytes` bytes from an offset, fewer only at the end, none behind it. Not verified: the receiver does that.
    fn read_chunk(&self, offset_bytes: u64, max_bytes: usize) -> io::Result<Bytes>;
}

/// A snapshot on its way from a peer. Dropping it discards what was received. Blocking.
pub trait SnapshotInstall: Send + 'static {
    /// Bytes received so far: the offset of the next chunk.
    fn received_bytes(&self) -> u64;

    /// Appends the next chunk of the peer's file.
    fn write_chunk(&mut self, chunk: &[u8]) -> io::Result<()>;

    /// Verifies the whole file, syncs it and publishes it as [`SnapshotStore::publish`] does. `InvalidData`: what
    /// arrived is damaged, incomplete or another group's; the older snapshot is still there.
    fn publish(self: Box<Self>) -> io::Result<SnapshotInfo>;
}

/// Longest key of a record.
pub const MAX_KEY_BYTES: usize = 128;

/// Refuses what a [`Record`] does not allow: a caller's mistake, found before anything was written.
fn check_key(key: &[u8]) -> io::Result<()> {
    if key.is_empty() || key.len() > MAX_KEY_BYTES {
        let what = format!("a record's key must have 1 to {MAX_KEY_BYTES} bytes, not {}", key.len());
        return Err(io::Error::new(io::ErrorKind::InvalidInput, what));
    }
    Ok(())
}

/// Refuses records that are not in ascending order of their keys (`InvalidInput`).
fn check_ascending(last: &[u8], key: &[u8]) -> io::Result<()> {
    check_key(key)?;
    if last >= key {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "records must come in ascending order of their keys"));
    }
    Ok(())
}

/// Synced data that reads back wrong.
fn invalid_data(what: impl Into<String>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what.into())
}
