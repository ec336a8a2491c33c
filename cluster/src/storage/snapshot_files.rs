//! Snapshots as plain files, one per group (bytes in `snapshot_format.rs`).
//!
//! `g<group>.snapshot` is complete and synced, always: it is written under a random name ending in `.new`, verified if
//! it came from a peer, synced, renamed, and the directory synced. What a crash leaves of the former is removed at
//! open.

use std::{
    fs::{self, File},
    io::{self, BufReader, BufWriter, Read, Seek, SeekFrom, Write},
    path::{Path, PathBuf},
};

use bytes::Bytes;
use parking_lot::Mutex;
use tempfile::NamedTempFile;

use super::{
    SnapshotInfo, SnapshotInstall, SnapshotReader, SnapshotStore,
    durable_files::{publish, sync_dir},
    snapshot_format,
};
use crate::{GroupId, Record};

/// Buffer between records and file.
const BUFFER_BYTES: usize = 256 << 10;

/// Ending of files that are being written.
const NEW_SUFFIX: &str = ".new";

/// A folder of snapshot files.
#[derive(Debug)]
pub struct SnapshotFiles {
    dir: PathBuf,
}

impl SnapshotFiles {
    /// Opens or creates the folder, which belongs to this store alone, and removes unfinished files.
    pub fn open(dir: &Path) -> io::Result<Self> {
        fs::create_dir_all(dir)?;
        for file in fs::read_dir(dir)? {
            let file = file?;
            if file.file_name().as_encoded_bytes().ends_with(NEW_SUFFIX.as_bytes()) {
                fs::remove_file(file.path())?;
            }
        }
        sync_dir(dir)?;
        if let Some(parent) = dir.parent() {
            sync_dir(parent)?;
        }
        Ok(Self { dir: dir.to_owned() })
    }

    fn path(&self, group: GroupId) -> PathBuf {
        self.dir.join(format!("{group}.snapshot"))
    }

    /// A file to write; removed when dropped unpublished.
    fn create(&self) -> io::Result<NamedTempFile> {
        tempfile::Builder::new().suffix(NEW_SUFFIX).tempfile_in(&self.dir)
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
        let new = self.create()?;
        let mut out = BufWriter::with_capacity(BUFFER_BYTES, new.as_file());
        let info = snapshot_format::write(&mut out, group, meta, records)?;
        out.flush()?;
        drop(out);
        publish(new, &self.path(group))?;
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
        Ok(Box::new(Install { new: self.create()?, name: self.path(group), group, received_bytes: 0 }))
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
        if left == 0 {
            return Ok(Bytes::new());
        }
        let mut chunk = vec![0; usize::try_from(left).unwrap_or(usize::MAX).min(max_bytes)];
        let mut file = self.file.lock();
        file.seek(SeekFrom::Start(offset_bytes))?;
        file.read_exact(&mut chunk)?;
        Ok(chunk.into())
    }
}

struct Install {
    new: NamedTempFile,
    name: PathBuf,
    group: GroupId,
    received_bytes: u64,
}

impl SnapshotInstall for Install {
    fn received_bytes(&self) -> u64 {
        self.received_bytes
    }

    fn write_chunk(&mut self, chunk: &[u8]) -> io::Result<()> {
        self.new.as_file_mut().write_all(chunk)?;
        self.received_bytes += chunk.len() as u64;
        Ok(())
    }

    fn publish(mut self: Box<Self>) -> io::Result<SnapshotInfo> {
        let info = snapshot_format::verify(self.new.as_file_mut(), self.received_bytes, self.group)?;
        publish(self.new, &self.name)?;
        Ok(info)
    }
}
