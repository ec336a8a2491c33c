//! The twin of the snapshot files: the same bytes, kept in memory.

use std::{
    collections::BTreeMap,
    io::{self, Cursor},
    sync::Arc,
};

use bytes::Bytes;
use parking_lot::Mutex;

use crate::{
    GroupId, Record,
    storage::{SnapshotInfo, SnapshotInstall, SnapshotReader, SnapshotStore, snapshot_format},
};

#[derive(Debug, Default)]
struct Disk {
    files: BTreeMap<GroupId, Bytes>,
    /// Counts the opens; a store of an older one is dead.
    opened: u64,
}

/// What survives a crash: the published snapshots. (Publishing is durable; there is nothing to lose.)
#[derive(Debug, Clone, Default)]
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
}

/// An open in-memory snapshot store.
#[derive(Debug, Clone)]
pub struct MemorySnapshots {
    disk: MemorySnapshotDisk,
    opened: u64,
}

impl MemorySnapshots {
    fn files<T>(&self, call: impl FnOnce(&mut BTreeMap<GroupId, Bytes>) -> T) -> io::Result<T> {
        let mut disk = self.disk.0.lock();
        if disk.opened != self.opened {
            return Err(io::Error::other("the snapshot store is closed"));
        }
        Ok(call(&mut disk.files))
    }

    fn file(&self, group: GroupId) -> io::Result<Option<Bytes>> {
        self.files(|files| files.get(&group).cloned())
    }

    fn put(&self, group: GroupId, file: Vec<u8>) -> io::Result<()> {
        self.files(|files| drop(files.insert(group, file.into())))
    }
}

impl SnapshotStore for MemorySnapshots {
    fn publish(
        &self,
        group: GroupId,
        meta: &[u8],
        records: &mut dyn Iterator<Item = Record>,
    ) -> io::Result<SnapshotInfo> {
        let mut file = Vec::new();
        let info = snapshot_format::write(&mut file, group, meta, records)?;
        self.put(group, file)?;
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
        Ok(Some(Box::new(Reader { info, file })))
    }

    fn begin_install(&self, group: GroupId) -> io::Result<Box<dyn SnapshotInstall>> {
        Ok(Box::new(Install { store: self.clone(), group, received: Vec::new() }))
    }

    fn remove_group(&self, group: GroupId) -> io::Result<()> {
        self.files(|files| drop(files.remove(&group)))
    }
}

struct Reader {
    info: SnapshotInfo,
    file: Bytes,
}

impl SnapshotReader for Reader {
    fn info(&self) -> &SnapshotInfo {
        &self.info
    }

    fn read_chunk(&self, offset_bytes: u64, max_bytes: usize) -> io::Result<Bytes> {
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
        self.received.extend_from_slice(chunk);
        Ok(())
    }

    fn publish(self: Box<Self>) -> io::Result<SnapshotInfo> {
        let length = self.received.len() as u64;
        let info = snapshot_format::verify(&mut Cursor::new(&self.received), length, self.group)?;
        self.store.put(self.group, self.received)?;
        Ok(info)
    }
}
