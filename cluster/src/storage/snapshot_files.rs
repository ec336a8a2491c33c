//! Snapshots as plain files, one per group (bytes in `snapshot_format.rs`).
//!
//! `g<group>.snapshot` is complete and synced, always: it is written as `g<group>.<number>.new`, verified if it came
//! from a peer, synced, renamed, and the directory synced. What a crash leaves of the former is removed at open.

use std::{
    ffi::OsStr,
    fs::{self, File},
    io::{self, BufReader, BufWriter, Read, Seek, SeekFrom, Write},
    path::{Path, PathBuf},
    sync::atomic::{AtomicU64, Ordering},
};

use bytes::Bytes;
use parking_lot::Mutex;

use super::{
    SnapshotInfo, SnapshotInstall, SnapshotReader, SnapshotStore,
    durable_files::{NewFile, sync_dir},
    snapshot_format,
};
use crate::{GroupId, Record};

/// Buffer between records and file.
const BUFFER_BYTES: usize = 256 << 10;

/// Ending of files that are being written.
const NEW: &str = "new";

/// A folder of snapshot files.
#[derive(Debug)]
pub struct SnapshotFiles {
    dir: PathBuf,
    next_new: AtomicU64,
}

impl SnapshotFiles {
    /// Opens or creates the folder, which belongs to this store alone, and removes unfinished files.
    pub fn open(dir: &Path) -> io::Result<Self> {
        fs::create_dir_all(dir)?;
        for file in fs::read_dir(dir)? {
            let path = file?.path();
            if path.extension() == Some(OsStr::new(NEW)) {
                fs::remove_file(path)?;
            }
        }
        sync_dir(dir)?;
        if let Some(parent) = dir.parent() {
            sync_dir(parent)?;
        }
        Ok(Self { dir: dir.to_owned(), next_new: AtomicU64::new(0) })
    }

    fn path(&self, group: GroupId) -> PathBuf {
        self.dir.join(format!("{group}.snapshot"))
    }

    fn create(&self, group: GroupId) -> io::Result<NewFile> {
        let number = self.next_new.fetch_add(1, Ordering::Relaxed);
        NewFile::create(self.dir.join(format!("{group}.{number}.{NEW}")))
    }

    /// The group's snapshot and its length.
    fn open_current(&self, group: GroupId) -> io::Result<Option<(File, u64)>> {
        match File::open(self.path(group)) {
            Ok(file) => {
                let size_bytes = file.metadata()?.len();
                Ok(Some((file, size_bytes)))
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }
}

impl SnapshotStore for SnapshotFiles {
    fn publish(
        &self,
        group: GroupId,
        meta: &[u8],
        records: &mut dyn Iterator<Item = Record>,
    ) -> io::Result<SnapshotInfo> {
        let mut new = self.create(group)?;
        let mut out = BufWriter::with_capacity(BUFFER_BYTES, new.file());
        let info = snapshot_format::write(&mut out, group, meta, records)?;
        out.flush()?;
        drop(out);
        new.publish(&self.path(group))?;
        Ok(info)
    }

    fn current(&self, group: GroupId) -> io::Result<Option<SnapshotInfo>> {
        let Some((mut file, size_bytes)) = self.open_current(group)? else { return Ok(None) };
        snapshot_format::read_info(&mut file, size_bytes, group).map(Some)
    }

    fn load(&self, group: GroupId, each: &mut dyn FnMut(Record)) -> io::Result<Option<SnapshotInfo>> {
        let Some((file, size_bytes)) = self.open_current(group)? else { return Ok(None) };
        let mut file = BufReader::with_capacity(BUFFER_BYTES, file);
        snapshot_format::load(&mut file, size_bytes, group, each).map(Some)
    }

    fn open_reader(&self, group: GroupId) -> io::Result<Option<Box<dyn SnapshotReader>>> {
        let Some((mut file, size_bytes)) = self.open_current(group)? else { return Ok(None) };
        let info = snapshot_format::read_info(&mut file, size_bytes, group)?;
        Ok(Some(Box::new(Reader { info, file: Mutex::new(file) })))
    }

    fn begin_install(&self, group: GroupId) -> io::Result<Box<dyn SnapshotInstall>> {
        Ok(Box::new(Install { new: self.create(group)?, name: self.path(group), group, received_bytes: 0 }))
    }

    fn remove_group(&self, group: GroupId) -> io::Result<()> {
        match fs::remove_file(self.path(group)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => sync_dir(&self.dir),
        }
    }
}

/// An open file stays what it is when another takes its name.
struct Reader {
    info: SnapshotInfo,
    file: Mutex<File>,
}

impl SnapshotReader for Reader {
    fn info(&self) -> &SnapshotInfo {
        &self.info
    }

    fn read_chunk(&self, offset_bytes: u64, max_bytes: usize) -> io::Result<Bytes> {
        let left = self.info.size_bytes.saturating_sub(offset_bytes);
        let mut chunk = vec![0; usize::try_from(left).unwrap_or(usize::MAX).min(max_bytes)];
        let mut file = self.file.lock();
        file.seek(SeekFrom::Start(offset_bytes))?;
        file.read_exact(&mut chunk)?;
        Ok(chunk.into())
    }
}

struct Install {
    new: NewFile,
    name: PathBuf,
    group: GroupId,
    received_bytes: u64,
}

impl SnapshotInstall for Install {
    fn received_bytes(&self) -> u64 {
        self.received_bytes
    }

    fn write_chunk(&mut self, chunk: &[u8]) -> io::Result<()> {
        self.new.file().write_all(chunk)?;
        self.received_bytes += chunk.len() as u64;
        Ok(())
    }

    fn publish(mut self: Box<Self>) -> io::Result<SnapshotInfo> {
        let info = snapshot_format::verify(self.new.file(), self.received_bytes, self.group)?;
        self.new.publish(&self.name)?;
        Ok(info)
    }
}
