//! The in-memory twin of the log store.

use std::{
    collections::BTreeMap,
    io, mem,
    ops::Range,
    sync::{Arc, Weak},
    time::Duration,
};

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::{runtime::Handle, sync::watch, time::sleep};

use super::{
    super::{
        LogEntry, LogStats, LogStore, OnFlush, RecoveredGroup,
        log_op::{GroupLog, LogOp},
    },
    faults::{Faults, Unsynced},
};
use crate::{GroupId, env::Rng};

/// What survives a crash: the synced part of a [`MemoryLogStore`], with switches for faults. Cheap to clone.
#[derive(Clone, Default)]
pub struct MemoryLogDisk(Arc<Disk>);

#[derive(Default)]
struct Disk {
    content: Mutex<Content>,
    held: watch::Sender<bool>,
    sync_time: Mutex<Option<SyncTime>>,
}

#[derive(Default)]
struct Content {
    /// What is durable.
    groups: BTreeMap<GroupId, GroupLog>,
    /// The batch that was written but not synced, if there is one.
    unsynced: Vec<(GroupId, LogOp)>,
    /// Part of a batch stands behind what is durable.
    torn: bool,
    torn_tails_cut: u64,
    syncs: u64,
    /// Counts opens and crashes: a store that was opened before the last one no longer writes.
    opened: u64,
    faults: Faults,
}

/// How long syncs take.
#[derive(Clone)]
struct SyncTime {
    min: Duration,
    max: Duration,
    rng: Arc<dyn Rng>,
}

impl SyncTime {
    fn draw(&self) -> Duration {
        let span = (self.max - self.min).as_nanos() as u64;
        self.min + Duration::from_nanos(self.rng.u64() % (span + 1))
    }
}

impl MemoryLogDisk {
    /// An empty disk.
    pub fn new() -> Self {
        Self::default()
    }

    /// Opens what was synced; cuts a torn tail. A store opened earlier is dead from now on, as after a crash: its
    /// unsynced writes are lost and answered with errors.
    ///
    /// # Panics
    /// Outside a tokio runtime: flushes run as tasks of the runtime this is called in.
    pub fn open(&self) -> Arc<MemoryLogStore> {
        let mut content = self.0.content.lock();
        content.cut_off(Unsynced::Lost);
        if mem::take(&mut content.torn) {
            content.torn_tails_cut += 1;
        }
        let groups = content.groups.clone();
        Arc::new_cyclic(|me| MemoryLogStore {
            recovered: groups.iter().filter_map(|(group, log)| Some((*group, log.recovered()?))).collect(),
            disk: self.0.clone(),
            opened: content.opened,
            runtime: Handle::current(),
            queue: Mutex::new(Queue {
                groups,
                pending: Vec::new(),
                unsynced: Vec::new(),
                flushing: false,
                stats: LogStats::default(),
                error: None,
            }),
            me: me.clone(),
        })
    }

    /// From now on nothing becomes durable and no `done` is called, until [`MemoryLogDisk::release_flushes`].
    pub fn hold_flushes(&self) {
        self.0.held.send_replace(true);
    }

    /// Ends [`MemoryLogDisk::hold_flushes`]; what is pending is flushed as one batch.
    pub fn release_flushes(&self) {
        self.0.held.send_replace(false);
    }

    /// The next sync fails, and by the contract every call of that store after it. What it should have written is
    /// lost.
    pub fn fail_next_sync(&self) {
        self.0.content.lock().faults.fail_next_sync = Some(Unsynced::Lost);
    }

    /// Syncs done so far.
    pub fn syncs(&self) -> u64 {
        self.0.content.lock().syncs
    }

    /// The durable entries of a group, as the disk has them now.
    pub fn durable(&self, group: GroupId) -> Vec<LogEntry> {
        let content = self.0.content.lock();
        content.groups.get(&group).map_or_else(Vec::new, |log| log.read(0..u64::MAX, usize::MAX))
    }

    pub(super) fn set_sync_time(&self, min: Duration, max: Duration, rng: Arc<dyn Rng>) {
        assert!(min <= max, "a sync takes {min:?} to {max:?}");
        *self.0.sync_time.lock() = Some(SyncTime { min, max, rng });
    }

    pub(super) fn torn_tails_cut(&self) -> u64 {
        self.0.content.lock().torn_tails_cut
    }

    /// Cuts off open stores. Gives the fate of the batch that was being synced, and the number of its writes.
    pub(super) fn crash(&self, unsynced: Unsynced) -> Option<(Unsynced, usize)> {
        let writes = self.0.content.lock().cut_off(unsynced);
        (writes > 0).then_some((unsynced, writes))
    }

    pub(super) fn wipe(&self) {
        let mut content = self.0.content.lock();
        content.cut_off(Unsynced::Lost);
        content.groups.clear();
        content.torn = false;
    }

    pub(super) fn faults<T>(&self, call: impl FnOnce(&mut Faults) -> T) -> T {
        call(&mut self.0.content.lock().faults)
    }
}

impl Disk {
    /// Waits while flushes are held.
    async fn released(&self) {
        drop(self.held.subscribe().wait_for(|held| !held).await);
    }

    /// Waits as long as a sync takes.
    async fn sync_time(&self) {
        let time = self.sync_time.lock().as_ref().map(SyncTime::draw).unwrap_or_default();
        // Even the shortest sleep would give way to other tasks.
        if !time.is_zero() {
            sleep(time).await;
        }
    }
}

impl Content {
    fn check_open(&self, opened: u64) -> io::Result<()> {
        if self.opened == opened { Ok(()) } else { Err(io::Error::other("the disk was opened again or crashed")) }
    }

    /// Ends the open store, if there is one. Gives the number of writes in its unsynced batch.
    fn cut_off(&mut self, unsynced: Unsynced) -> usize {
        self.opened += 1;
        self.settle(unsynced)
    }

    /// Ends the wait for a sync. Gives the number of writes that waited.
    fn settle(&mut self, unsynced: Unsynced) -> usize {
        let batch = mem::take(&mut self.unsynced);
        let writes = batch.len();
        match unsynced {
            Unsynced::Lost => {}
            Unsynced::Torn => self.torn |= writes > 0,
            Unsynced::Written => {
                for (group, op) in batch {
                    self.faults.observed(|observer| observer.log(group, &op));
                    self.groups.entry(group).or_default().apply(op);
                }
            }
        }
        writes
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
    /// The batch being synced.
    unsynced: Vec<Pending>,
    /// Whether a task is flushing; there is at most one, so that callbacks keep the queue's order.
    flushing: bool,
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
        let flush = {
            let mut queue = self.queue.lock();
            if queue.error.is_none() {
                queue.groups.entry(group).or_default().apply(op.clone());
            }
            let flush = done.is_some() && !queue.flushing;
            queue.flushing |= flush;
            queue.pending.push(Pending { group, op, done });
            flush
        };
        if flush {
            self.runtime.spawn(flush_pending(self.me.clone(), self.disk.clone()));
        }
    }

    /// Writes everything pending as one batch. False when there was nothing to do.
    fn write(&self) -> bool {
        let mut queue = self.queue.lock();
        let batch = mem::take(&mut queue.pending);
        if batch.is_empty() {
            queue.flushing = false;
            return false;
        }
        if queue.error.is_none() {
            let mut content = self.disk.content.lock();
            match content.check_open(self.opened).and_then(|()| content.faults.check_space()) {
                Ok(()) => content.unsynced = batch.iter().map(|pending| (pending.group, pending.op.clone())).collect(),
                Err(error) => queue.fail(&error),
            }
        }
        queue.unsynced = batch;
        true
    }

    /// Makes the written batch durable and calls back.
    fn sync(&self) {
        let (batch, result) = {
            let mut queue = self.queue.lock();
            let batch = mem::take(&mut queue.unsynced);
            if queue.error.is_none() && !batch.is_empty() {
                match self.sync_disk() {
                    Ok(()) => queue.count(&batch),
                    Err(error) => queue.fail(&error),
                }
            }
            (batch, queue.check())
        };
        for done in batch.into_iter().filter_map(|pending| pending.done) {
            done(result.as_ref().copied().map_err(|error| io::Error::new(error.kind(), error.to_string())));
        }
    }

    fn sync_disk(&self) -> io::Result<()> {
        let mut content = self.disk.content.lock();
        content.check_open(self.opened)?;
        let (unsynced, result) = content.faults.sync();
        content.settle(unsynced);
        result.inspect(|()| content.syncs += 1)
    }

    fn check(&self, queue: &Queue) -> io::Result<()> {
        queue.check()?;
        self.disk.content.lock().check_open(self.opened)
    }
}

/// Flushes batch by batch until nothing is pending. A store that was dropped is flushed no more.
async fn flush_pending(store: Weak<MemoryLogStore>, disk: Arc<Disk>) {
    loop {
        disk.released().await;
        let Some(store) = store.upgrade() else { return };
        if !store.write() {
            return;
        }
        disk.sync_time().await;
        disk.released().await;
        store.sync();
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

    fn fail(&mut self, error: &io::Error) {
        self.error = Some((error.kind(), error.to_string()));
    }

    fn check(&self) -> io::Result<()> {
        match &self.error {
            None => Ok(()),
            Some((kind, message)) => Err(io::Error::new(*kind, message.clone())),
        }
    }
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
        self.check(&queue)?;
        Ok(queue.groups.get(&group).map_or_else(Vec::new, |log| log.read(range, max_bytes)))
    }

    fn remove_group(&self, group: GroupId, done: OnFlush) {
        self.queue(group, LogOp::Remove, Some(done));
    }

    /// Flushes what is pending itself, held or not, since there may be no other thread to wait for.
    fn close(&self) -> io::Result<()> {
        self.check(&self.queue.lock())?;
        self.sync();
        if self.write() {
            self.sync();
        }
        let mut queue = self.queue.lock();
        queue.check()?;
        queue.fail(&io::Error::new(io::ErrorKind::BrokenPipe, "the log store is closed"));
        Ok(())
    }

    fn size_bytes(&self) -> u64 {
        self.queue.lock().groups.values().map(GroupLog::size_bytes).sum()
    }

    fn stats(&self) -> LogStats {
        self.queue.lock().stats
    }
}
