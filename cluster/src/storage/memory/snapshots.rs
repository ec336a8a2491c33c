//! The twin of the snapshot files: the same bytes, kept in memory.

use std::{
    collections::BTreeMap,
    io::{self, Cursor},
    sync::Arc,
};

use bytes::Bytes;
use parking_lot::Mutex;

use super::faults::{Faults, Unsynced};
use crate::{
    GroupId, Record,
    storage::{SnapshotInfo, SnapshotInstall, SnapshotReader, SnapshotStore, snapshot_format},
};

#[derive(Default)]
struct Disk {
    files: BTreeMap<GroupId, Bytes>,
    /// Counts opens and crashes: a store that was opened before the last one is dead.
    opened: u64,
    /// Counts snapshots that began to be written or taken in.
    begun: u64,
    faults: Faults,
}

/// What survives a crash: the published snapshots. (Publishing is durable; there is nothing to lose.)
#[derive(Clone, Default)]
pub struct MemorySnapshotDisk(Arc<Mutex<Disk>>);

impl MemorySnapshotDisk {
    /// An empty disk.
    pub fn new() -> Self {
        Self::default()
    }

    /// Opens a store over it.
    pub fn open(&self) -> MemorySnapshots {
        let mut disk = self.0.lock();
        disk.opened += 1;
        MemorySnapshots { disk: self.clone(), opened: disk.opened }
    }

    /// Flips a bit of a group's published snapshot; `false` if there is no such byte.
    pub fn flip_bit(&self, group: GroupId, offset_bytes: usize) -> bool {
        let mut disk = self.0.lock();
        let Some(file) = disk.files.get_mut(&group).filter(|file| offset_bytes < file.len()) else { return false };
        let mut bytes = file.to_vec();
        bytes[offset_bytes] ^= 1;
        *file = bytes.into();
        true
    }

    pub(super) fn begun(&self) -> u64 {
        self.0.lock().begun
    }

    /// Cuts off open stores.
    pub(super) fn crash(&self) {
        self.0.lock().opened += 1;
    }

    pub(super) fn wipe(&self) {
        self.crash();
        self.0.lock().files.clear();
    }

    pub(super) fn faults<T>(&self, call: impl FnOnce(&mut Faults) -> T) -> T {
        call(&mut self.0.lock().faults)
    }
}

/// An open in-memory snapshot store.
#[derive(Clone)]
pub struct MemorySnapshots {
    disk: MemorySnapshotDisk,
    opened: u64,
}

impl MemorySnapshots {
    fn disk<T>(&self, call: impl FnOnce(&mut Disk) -> io::Result<T>) -> io::Result<T> {
        let mut disk = self.disk.0.lock();
        if disk.opened != self.opened {
            return Err(io::Error::other("the disk was opened again or crashed"));
        }
        call(&mut disk)
    }

    fn file(&self, group: GroupId) -> io::Result<Option<Bytes>> {
        self.disk(|disk| Ok(disk.files.get(&group).cloned()))
    }

    fn begin(&self) -> io::Result<()> {
        self.disk(|disk| {
            disk.begun += 1;
            Ok(())
        })
    }

    /// Asked before anything is written.
    fn check_space(&self) -> io::Result<()> {
        self.disk(|disk| disk.faults.check_space())
    }

    /// Gives a group another snapshot, or takes it away (`None`), in one step.
    fn put(&self, group: GroupId, new: Option<(&SnapshotInfo, Vec<u8>)>) -> io::Result<()> {
        self.disk(|disk| {
            let (unsynced, result) = disk.faults.sync();
            if unsynced == Unsynced::Written {
                disk.faults.observed(|observer| observer.snapshot(group, new.as_ref().map(|(info, _)| *info)));
                match new {
                    Some((_, file)) => drop(disk.files.insert(group, file.into())),
                    None => drop(disk.files.remove(&group)),
                }
            }
            result
        })
    }
}

impl SnapshotStore for MemorySnapshots {
    fn publish(
        &self,
        group: GroupId,
        meta: &[u8],
        records: &mut dyn Iterator<Item = Record>,
    ) -> io::Result<SnapshotInfo> {
        self.begin()?;
        self.check_space()?;
        let mut file = Vec::new();
        let info = snapshot_format::write(&mut file, group, meta, records)?;
        self.put(group, Some((&info, file)))?;
        Ok(info)
    }

    fn current(&self, group: GroupId) -> io::Result<Option<SnapshotInfo>> {
        let Some(file) = self.file(group)? else { return Ok(None) };
        snapshot_format::read_info(&mut Cursor::new(&file), file.len() as u64, group).map(Some)
    }

    fn load(&self, group: GroupId, each: &mut dyn FnMut(Record)) -> io::Result<Option<SnapshotInfo>> {
        let Some(file) = self.file(group)? else { return Ok(None) };
        snapshot_format::load(&mut Cursor::new(&file), file.len() as u64, group, each).map(Some)
    }

    fn open_reader(&self, group: GroupId) -> io::Result<Option<Box<dyn SnapshotReader>>> {
        let Some(file) = self.file(group)? else { return Ok(None) };
        let info = snapshot_format::read_info(&mut Cursor::new(&file), file.len() as u64, group)?;
        Ok(Some(Box::new(Reader { store: self.clone(), info, file })))
    }

    fn begin_install(&self, group: GroupId) -> io::Result<Box<dyn SnapshotInstall>> {
        self.begin()?;
        Ok(Box::new(Install { store: self.clone(), group, received: Vec::new() }))
    }

    fn remove_group(&self, group: GroupId) -> io::Result<()> {
        self.put(group, None)
    }
}

struct Reader {
    store: MemorySnapshots,
    info: SnapshotInfo,
    file: Bytes,
}

impl SnapshotReader for Reader {
    fn info(&self) -> &SnapshotInfo {
        &self.info
    }

    fn read_chunk(&self, offset_bytes: u64, max_bytes: usize) -> io::Result<Bytes> {
        self.store.disk(|_| Ok(()))?;
        let start = offset_bytes.min(self.file.len() as u64) as usize;
        let end = start.saturating_add(max_bytes).min(self.file.len());
        Ok(self.file.slice(start..end))
    }
}

struct Install {
    store: MemorySnapshots,
    group: GroupId,
    received: Vec<u8>,
}

impl SnapshotInstall for Install {
    fn received_bytes(&self) -> u64 {
        self.received.len() as u64
    }

    fn write_chunk(&mut self, chunk: &[u8]) -> io::Result<()> {
        self.store.check_space()?;
        self.received.extend_from_slice(chunk);
        Ok(())
    }

    fn publish(self: Box<Self>) -> io::Result<SnapshotInfo> {
        let length = self.received.len() as u64;
        let info = snapshot_format::verify(&mut Cursor::new(&self.received), length, self.group)?;
        self.store.put(self.group, Some((&info, self.received)))?;
        Ok(info)
    }
}
