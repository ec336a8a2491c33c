//! The in-memory twin of the log store.

use std::{
    collections::BTreeMap,
    io,
    ops::Range,
    sync::{
        Arc, Weak,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
};

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::runtime::Handle;

use super::super::{
    LogEntry, LogStats, LogStore, OnFlush, RecoveredGroup,
    log_op::{GroupLog, LogOp},
};
use crate::GroupId;

/// What survives a crash: the synced part of a [`MemoryLogStore`], with switches for faults. Cheap to clone.
#[derive(Clone, Default)]
pub struct MemoryLogDisk(Arc<Disk>);

#[derive(Default)]
struct Disk {
    durable: Mutex<Durable>,
    held: AtomicBool,
    fail_next_sync: AtomicBool,
    syncs: AtomicU64,
    /// The store opened last, to wake it when held flushes are released.
    store: Mutex<Weak<MemoryLogStore>>,
}

#[derive(Default)]
struct Durable {
    groups: BTreeMap<GroupId, GroupLog>,
    /// Counts opens: a store that was replaced by a younger one no longer writes.
    opened: u64,
}

impl MemoryLogDisk {
    /// An empty disk.
    pub fn new() -> Self {
        Self::default()
    }

    /// Opens what was synced. A store opened earlier is dead from now on, as after a crash: its unsynced writes are
    /// lost and answered with errors.
    ///
    /// # Panics
    /// Outside a tokio runtime: flushes run as tasks of the runtime this is called in.
    pub fn open(&self) -> Arc<MemoryLogStore> {
        let (groups, opened) = {
            let mut durable = self.0.durable.lock();
            durable.opened += 1;
            (durable.groups.clone(), durable.opened)
        };
        let store = Arc::new_cyclic(|me| MemoryLogStore {
            recovered: groups.iter().filter_map(|(group, log)| Some((*group, log.recovered()?))).collect(),
            disk: self.0.clone(),
            opened,
            runtime: Handle::current(),
            queue: Mutex::new(Queue {
                groups,
                pending: Vec::new(),
                writing: false,
                stats: LogStats::default(),
                error: None,
            }),
            me: me.clone(),
        });
        *self.0.store.lock() = Arc::downgrade(&store);
        store
    }

    /// From now on nothing becomes durable and no `done` is called, until [`MemoryLogDisk::release_flushes`].
    pub fn hold_flushes(&self) {
        self.0.held.store(true, Ordering::SeqCst);
    }

    /// Ends [`MemoryLogDisk::hold_flushes`]; what is pending is flushed as one batch.
    pub fn release_flushes(&self) {
        self.0.held.store(false, Ordering::SeqCst);
        let store = self.0.store.lock().upgrade();
        if let Some(store) = store {
            store.wake();
        }
    }

    /// The next sync fails, and by the contract every call of that store after it. What it should have written is
    /// lost.
    pub fn fail_next_sync(&self) {
        self.0.fail_next_sync.store(true, Ordering::SeqCst);
    }

    /// Syncs done so far.
    pub fn syncs(&self) -> u64 {
        self.0.syncs.load(Ordering::SeqCst)
    }
}

/// A log store in memory. Flushes run as a task of the runtime it was opened in, so that it behaves the same in the
/// simulation, which has no threads.
pub struct MemoryLogStore {
    recovered: BTreeMap<GroupId, RecoveredGroup>,
    disk: Arc<Disk>,
    opened: u64,
    runtime: Handle,
    queue: Mutex<Queue>,
    me: Weak<MemoryLogStore>,
}

struct Queue {
    /// As seen by readers: durable or not.
    groups: BTreeMap<GroupId, GroupLog>,
    pending: Vec<Pending>,
    /// Whether a task is writing; there is at most one, so that callbacks keep the queue's order.
    writing: bool,
    stats: LogStats,
    /// Sticky.
    error: Option<(io::ErrorKind, String)>,
}

struct Pending {
    group: GroupId,
    op: LogOp,
    done: Option<OnFlush>,
}

impl MemoryLogStore {
    fn queue(&self, group: GroupId, op: LogOp, done: Option<OnFlush>) {
        let flush = done.is_some();
        {
            let mut queue = self.queue.lock();
            if queue.error.is_none() {
                queue.groups.entry(group).or_default().apply(op.clone());
            }
            queue.pending.push(Pending { group, op, done });
        }
        if flush {
            self.wake();
        }
    }

    fn wake(&self) {
        let Some(me) = self.me.upgrade() else { return };
        {
            let mut queue = self.queue.lock();
            if queue.writing || queue.pending.is_empty() {
                return;
            }
            queue.writing = true;
        }
        self.runtime.spawn(async move { while me.flush() {} });
    }

    /// Makes everything pending durable and calls back. False when there was nothing to do.
    fn flush(&self) -> bool {
        let (batch, result) = {
            let mut queue = self.queue.lock();
            if self.disk.held.load(Ordering::SeqCst) || queue.pending.is_empty() {
                queue.writing = false;
                return false;
            }
            let batch = std::mem::take(&mut queue.pending);
            if queue.error.is_none() {
                match self.write(&batch) {
                    Ok(()) => queue.count(&batch),
                    Err(e) => queue.error = Some((e.kind(), e.to_string())),
                }
            }
            (batch, queue.check())
        };
        for done in batch.into_iter().filter_map(|pending| pending.done) {
            done(result.as_ref().copied().map_err(copy));
        }
        true
    }

    fn write(&self, batch: &[Pending]) -> io::Result<()> {
        let mut durable = self.disk.durable.lock();
        if durable.opened != self.opened {
            return Err(io::Error::other("the disk was opened again"));
        }
        if self.disk.fail_next_sync.swap(false, Ordering::SeqCst) {
            return Err(io::Error::other("sync failed on demand"));
        }
        for pending in batch {
            durable.groups.entry(pending.group).or_default().apply(pending.op.clone());
        }
        self.disk.syncs.fetch_add(1, Ordering::SeqCst);
        Ok(())
    }
}

impl Queue {
    fn count(&mut self, batch: &[Pending]) {
        self.stats.batches += 1;
        self.stats.syncs += 1;
        self.stats.writes += batch.len() as u64;
        for pending in batch {
            if let LogOp::Append(entries) = &pending.op {
                self.stats.entries += entries.len() as u64;
                self.stats.bytes += entries.iter().map(|e| e.data.len() as u64).sum::<u64>();
            }
        }
    }

    fn check(&self) -> io::Result<()> {
        match &self.error {
            None => Ok(()),
            Some((kind, message)) => Err(io::Error::new(*kind, message.clone())),
        }
    }
}

fn copy(e: &io::Error) -> io::Error {
    io::Error::new(e.kind(), e.to_string())
}

impl LogStore for MemoryLogStore {
    fn recovered(&self) -> BTreeMap<GroupId, RecoveredGroup> {
        self.recovered.clone()
    }

    fn append(&self, group: GroupId, entries: Vec<LogEntry>, done: OnFlush) {
        self.queue(group, LogOp::Append(entries), Some(done));
    }

    fn save_vote(&self, group: GroupId, vote: Bytes, done: OnFlush) {
        self.queue(group, LogOp::Vote(vote), Some(done));
    }

    fn save_committed(&self, group: GroupId, committed: Bytes) {
        self.queue(group, LogOp::Committed(committed), None);
    }

    fn truncate_after(&self, group: GroupId, last: Option<u64>, done: OnFlush) {
        self.queue(group, LogOp::TruncateAfter(last), Some(done));
    }

    fn purge(&self, group: GroupId, index: u64, purged: Bytes, done: OnFlush) {
        self.queue(group, LogOp::Purge { index, purged }, Some(done));
    }

    fn read(&self, group: GroupId, range: Range<u64>, max_bytes: usize) -> io::Result<Vec<LogEntry>> {
        let queue = self.queue.lock();
        queue.check()?;
        Ok(queue.groups.get(&group).map_or_else(Vec::new, |log| log.read(range, max_bytes)))
    }

    fn remove_group(&self, group: GroupId, done: OnFlush) {
        self.queue(group, LogOp::Remove, Some(done));
    }

    /// Flushes what is pending itself, held or not, since there may be no other thread to wait for.
    fn close(&self) -> io::Result<()> {
        let (batch, result) = {
            let mut queue = self.queue.lock();
            queue.check()?;
            let batch = std::mem::take(&mut queue.pending);
            let result = if batch.is_empty() { Ok(()) } else { self.write(&batch) };
            queue.error = Some(match &result {
                Ok(()) => (io::ErrorKind::BrokenPipe, "the log store is closed".to_owned()),
                Err(e) => (e.kind(), e.to_string()),
            });
            (batch, result)
        };
        for done in batch.into_iter().filter_map(|pending| pending.done) {
            done(result.as_ref().copied().map_err(copy));
        }
        result
    }

    fn size_bytes(&self) -> u64 {
        self.queue.lock().groups.values().map(GroupLog::size_bytes).sum()
    }

    fn stats(&self) -> LogStats {
        self.queue.lock().stats
    }
}
