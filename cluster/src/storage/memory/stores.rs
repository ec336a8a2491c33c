//! The disks of one simulated node.

use std::{
    io,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use super::{MemoryLogDisk, MemorySnapshotDisk, MemoryStateDisk};
use crate::{
    env::Blocking,
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
    /// Sets what [`Stores::free_bytes`] answers; without limit at first.
    pub fn set_free_bytes(&self, free_bytes: u64) {
        self.free_bytes.store(free_bytes, Ordering::SeqCst);
    }
}

impl Stores for MemoryStores {
    fn open_log(&self, _dir: &Path, _blocking: &dyn Blocking) -> io::Result<Arc<dyn LogStore>> {
        Ok(self.log.open())
    }

    fn open_state(&self, _dir: &Path, _blocking: &dyn Blocking) -> io::Result<Arc<dyn StateStore>> {
        Ok(Arc::new(self.state.open()))
    }

    fn open_snapshots(&self, _dir: &Path, _blocking: &dyn Blocking) -> io::Result<Arc<dyn SnapshotStore>> {
        Ok(Arc::new(self.snapshots.open()))
    }

    fn free_bytes(&self, _dir: &Path) -> io::Result<u64> {
        Ok(self.free_bytes.load(Ordering::SeqCst))
    }
}
