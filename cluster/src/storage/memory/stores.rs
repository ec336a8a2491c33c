//! The disks of one simulated node.

use std::{
    io,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use super::{Crash, DiskObserver, MemoryLogDisk, MemorySnapshotDisk, MemoryStateDisk, Store, Unsynced, faults::Faults};
use crate::{
    env::{Blocking, Rng},
    storage::{LogStore, SnapshotStore, StateStore, Stores},
};

/// In-memory stores of one node, whatever directories they are opened with. A node started again with a clone of them
/// finds what its predecessor synced.
#[derive(Clone)]
pub struct MemoryStores {
    /// Log and votes.
    pub log: MemoryLogDisk,
    /// Records.
    pub state: MemoryStateDisk,
    /// Snapshots.
    pub snapshots: MemorySnapshotDisk,
    free_bytes: Arc<AtomicU64>,
}

impl Default for MemoryStores {
    fn default() -> Self {
        Self {
            log: MemoryLogDisk::default(),
            state: MemoryStateDisk::default(),
            snapshots: MemorySnapshotDisk::default(),
            free_bytes: Arc::new(AtomicU64::new(u64::MAX)),
        }
    }
}

impl MemoryStores {
    /// Sets what [`Stores::free_bytes`] answers while the disk is not full; without limit at first.
    pub fn set_free_bytes(&self, free_bytes: u64) {
        self.free_bytes.store(free_bytes, Ordering::SeqCst);
    }

    /// While the disk is full, what needs space fails with `io::ErrorKind::StorageFull`: log and state store for good
    /// (also to be opened), snapshots one by one. There are no free bytes.
    pub fn set_full(&self, full: bool) {
        self.each(|faults| faults.full = full);
    }

    /// From now on a sync of the log takes a time drawn from `rng`, between `min` and `max`. What arrives meanwhile is
    /// the next batch. (tokio's timer makes whole milliseconds of it.)
    ///
    /// # Panics
    /// If `max` is smaller than `min`.
    pub fn set_sync_time(&self, min: Duration, max: Duration, rng: Arc<dyn Rng>) {
        self.log.set_sync_time(min, max, rng);
    }

    /// The next sync of a store fails with EIO, for log and state store for good. `unsynced`: what is on the disk
    /// nevertheless.
    pub fn fail_next_sync(&self, store: Store, unsynced: Unsynced) {
        let fail = |faults: &mut Faults| faults.fail_next_sync = Some(unsynced);
        match store {
            Store::Log => self.log.faults(fail),
            Store::State => self.state.faults(fail),
            Store::Snapshots => self.snapshots.faults(fail),
        }
    }

    /// Stops the machine: all calls of open stores fail from now on, and none reaches the disks. What becomes of
    /// unsynced data is drawn from `rng`.
    pub fn crash(&self, rng: &dyn Rng) -> Crash {
        self.snapshots.crash();
        let log_batch = self.log.crash(Unsynced::draw(rng));
        let (state_written, state_lost) = self.state.crash(rng);
        Crash { log_batch, state_written, state_lost }
    }

    /// Loses all data. Open stores are cut off as by a crash; settings stay.
    pub fn wipe(&self) {
        self.log.wipe();
        self.state.wipe();
        self.snapshots.wipe();
    }

    /// How often the log was opened with a torn tail, which was cut off.
    pub fn torn_tails_cut(&self) -> u64 {
        self.log.torn_tails_cut()
    }

    /// How many snapshots began to be written here or taken in.
    pub fn snapshots_begun(&self) -> u64 {
        self.snapshots.begun()
    }

    /// Tells `observer` from now on, instead of any earlier one, what becomes durable.
    pub fn observe(&self, observer: Arc<dyn DiskObserver>) {
        self.each(|faults| faults.observer = Some(observer.clone()));
    }

    fn each(&self, mut call: impl FnMut(&mut Faults)) {
        self.log.faults(&mut call);
        self.state.faults(&mut call);
        self.snapshots.faults(&mut call);
    }
}

impl Stores for MemoryStores {
    fn open_log(&self, _dir: &Path, _blocking: &dyn Blocking) -> io::Result<Arc<dyn LogStore>> {
        self.log.faults(|faults| faults.check_space())?;
        Ok(self.log.open())
    }

    fn open_state(&self, _dir: &Path, _blocking: &dyn Blocking) -> io::Result<Arc<dyn StateStore>> {
        self.state.faults(|faults| faults.check_space())?;
        Ok(Arc::new(self.state.open()))
    }

    fn open_snapshots(&self, _dir: &Path, _blocking: &dyn Blocking) -> io::Result<Arc<dyn SnapshotStore>> {
        Ok(Arc::new(self.snapshots.open()))
    }

    fn free_bytes(&self, _dir: &Path) -> io::Result<u64> {
        let full = self.log.faults(|faults| faults.full);
        Ok(if full { 0 } else { self.free_bytes.load(Ordering::SeqCst) })
    }
}
