//! What the tests of log stores share: disks to open them on, and short ways to write and wait.
#![allow(dead_code, reason = "each test binary uses its part")]

pub(crate) mod crashes;
pub(crate) mod files;
pub(crate) mod model;
pub(crate) mod side_by_side;

use std::{io, path::Path, sync::Arc};

use andante_cluster::{
    GroupId,
    env::{OsThreads, SystemClock},
    storage::{
        EngineLogStore, LogEngineConfig, LogEntry, LogStore, OnFlush,
        memory::{MemoryLogDisk, MemoryStores},
    },
};
use bytes::Bytes;
use tokio::sync::oneshot;

use crate::sim_disk::{Seeded, slow_stores};

/// Something a log store can be opened on again and again. The store opened before must be gone.
pub(crate) trait Disk {
    fn open(&self) -> io::Result<Arc<dyn LogStore>>;
}

impl Disk for MemoryLogDisk {
    fn open(&self) -> io::Result<Arc<dyn LogStore>> {
        Ok(self.open())
    }
}

/// The twin's with slow syncs, which crashes before each opening, with all kinds of outcomes.
pub(crate) struct CrashingDisk {
    stores: MemoryStores,
    rng: Seeded,
}

impl CrashingDisk {
    pub(crate) fn new() -> Self {
        Self { stores: slow_stores(1), rng: Seeded::new(2) }
    }
}

impl Disk for CrashingDisk {
    fn open(&self) -> io::Result<Arc<dyn LogStore>> {
        self.stores.crash(&self.rng);
        Ok(self.stores.log.open())
    }
}

/// A folder with the real one; files so small that they are closed, rewritten and deleted all the time.
pub(crate) struct EngineDisk(pub(crate) tempfile::TempDir);

impl EngineDisk {
    pub(crate) fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }
}

impl Disk for EngineDisk {
    fn open(&self) -> io::Result<Arc<dyn LogStore>> {
        Ok(Arc::new(open_engine(self.0.path())?))
    }
}

pub(crate) fn small_files() -> LogEngineConfig {
    LogEngineConfig { target_file_bytes: 8 * 1024, purge_threshold_bytes: 16 * 1024 }
}

pub(crate) fn open_engine(dir: &Path) -> io::Result<EngineLogStore> {
    EngineLogStore::open(dir, &small_files(), Arc::new(SystemClock::default()), &OsThreads)
}

/// A callback and what it was told.
pub(crate) type Flushed = oneshot::Receiver<io::Result<()>>;

pub(crate) fn waiter() -> (OnFlush, Flushed) {
    let (tx, rx) = oneshot::channel();
    (Box::new(move |result| drop(tx.send(result))), rx)
}

/// Waits for a callback; an error of the store is an error here.
pub(crate) async fn flushed(wait: Flushed) -> io::Result<()> {
    wait.await.expect("every callback is called")
}

pub(crate) fn entry(index: u64, text: &str) -> LogEntry {
    LogEntry { index, data: Bytes::from(format!("{text} {index}")) }
}

pub(crate) fn entries(range: std::ops::Range<u64>, text: &str) -> Vec<LogEntry> {
    range.map(|index| entry(index, text)).collect()
}

pub(crate) fn all(store: &dyn LogStore, group: GroupId) -> Vec<LogEntry> {
    store.read(group, 0..u64::MAX, usize::MAX).unwrap()
}

pub(crate) async fn append(store: &dyn LogStore, group: GroupId, entries: Vec<LogEntry>) -> io::Result<()> {
    let (done, wait) = waiter();
    store.append(group, entries, done);
    flushed(wait).await
}

pub(crate) async fn save_vote(store: &dyn LogStore, group: GroupId, vote: &'static [u8]) -> io::Result<()> {
    let (done, wait) = waiter();
    store.save_vote(group, Bytes::from_static(vote), done);
    flushed(wait).await
}

pub(crate) async fn truncate_after(store: &dyn LogStore, group: GroupId, last: Option<u64>) -> io::Result<()> {
    let (done, wait) = waiter();
    store.truncate_after(group, last, done);
    flushed(wait).await
}

pub(crate) async fn purge(store: &dyn LogStore, group: GroupId, index: u64) -> io::Result<()> {
    let (done, wait) = waiter();
    store.purge(group, index, Bytes::from(format!("purged {index}")), done);
    flushed(wait).await
}

pub(crate) async fn remove_group(store: &dyn LogStore, group: GroupId) -> io::Result<()> {
    let (done, wait) = waiter();
    store.remove_group(group, done);
    flushed(wait).await
}
