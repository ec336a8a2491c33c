//! sled, held the way we need it: real syncs, errors and panics as `io::Error`, fail-stop after the first one.

use std::{
    fs::{self, File, OpenOptions, TryLockError},
    io,
    panic::{AssertUnwindSafe, catch_unwind},
    path::{Path, PathBuf},
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::Duration,
};

use parking_lot::{Mutex, RwLock};

use super::super::{durable_files::sync_dir, invalid_data};

/// Limit of sled's page cache. The state of a shard lives in memory as its book; sled only needs the pages that it is
/// changing, and everything once at start.
const CACHE_BYTES: u64 = 64 << 20;

/// How often, and how far apart, to look whether sled has let go of its file. Its IO threads hold it for the last
/// moments of their work after the database is dropped; a reopen in this process would fail meanwhile.
const RELEASE_CHECKS: u32 = 2_000;
const RELEASE_CHECK_INTERVAL: Duration = Duration::from_millis(1);

/// Most bytes written between two syncs, unless a single batch has more. sled moves pages about in its file: a segment
/// whose pages were all written again elsewhere is used for something new as soon as those writes were *handed to the
/// kernel*, which may put the new content on the disk first. After a power loss then both are gone: synced records
/// with them. A segment is reused at the earliest one whole segment (512 KiB of sled's log) after it became free, and
/// not before a batch that freed it is complete. So what is written between two syncs stays well below a segment, and
/// a batch of any size begins with everything before it synced.
const UNSYNCED_BYTES: usize = 64 << 10;

/// What a changed key costs in sled's log beyond its own bytes: headers, and its share of leaves written again.
const PER_KEY_BYTES: usize = 256;

/// One sled database.
pub(super) struct Db {
    dir: PathBuf,
    /// `None` once closed.
    sled: RwLock<Option<sled::Db>>,
    /// sled's `flush` starts the writing but doesn't wait for the disk; this handle of the same file does.
    file: File,
    /// After a failed write nobody knows what sled's memory and the file have in common.
    failed: AtomicBool,
    /// Bytes written since the last sync. Held while writing or syncing.
    unsynced_bytes: Mutex<usize>,
}

/// Changes that become visible together.
#[derive(Default)]
pub(super) struct Batch {
    sled: sled::Batch,
    bytes: usize,
    keys: usize,
}

impl Batch {
    pub(super) fn insert(&mut self, key: &[u8], value: &[u8]) {
        self.bytes += key.len() + value.len();
        self.keys += 1;
        self.sled.insert(key, value);
    }

    pub(super) fn remove(&mut self, key: &[u8]) {
        self.bytes += key.len();
        self.keys += 1;
        self.sled.remove(key);
    }

    /// What it adds to sled's log, roughly.
    pub(super) fn cost_bytes(&self) -> usize {
        self.bytes + self.keys * PER_KEY_BYTES
    }
}

impl Db {
    /// Opens or creates the database in `dir`. Anything in it that can't be understood is `InvalidData`.
    pub(super) fn open(dir: &Path) -> io::Result<Self> {
        fs::create_dir_all(dir)?;
        // sled's own background flusher would only log that a sync failed; all syncing is done by `sync`.
        let config = sled::Config::new().path(dir).cache_capacity(CACHE_BYTES).flush_every_ms(None);
        let sled = guarded(|| config.open()).map_err(|error| match error.kind() {
            // What sled calls unsupported or ends early at open is damage: we never change its parameters.
            io::ErrorKind::InvalidInput | io::ErrorKind::UnexpectedEof => invalid_data(error.to_string()),
            // All it says about this one is its text.
            _ if error.to_string().contains("could not acquire lock") => {
                io::Error::new(io::ErrorKind::ResourceBusy, error)
            }
            _ => error,
        })?;
        let file = OpenOptions::new().read(true).write(true).open(dir.join("db"))?;
        // Done at each open: the first one may have been cut short before it got here.
        file.sync_all()?;
        File::open(dir.join("conf"))?.sync_all()?;
        sync_dir(dir)?;
        if let Some(parent) = dir.parent() {
            sync_dir(parent)?;
        }
        Ok(Self {
            dir: dir.to_owned(),
            sled: RwLock::new(Some(sled)),
            file,
            failed: AtomicBool::new(false),
            unsynced_bytes: Mutex::new(0),
        })
    }

    /// Looks something up. Errors concern this call only.
    pub(super) fn read<T>(&self, call: impl FnOnce(&sled::Db) -> sled::Result<T>) -> io::Result<T> {
        self.with(|sled| guarded(|| call(sled)))
    }

    /// Applies a batch. After an error the database is unusable.
    pub(super) fn write(&self, batch: Batch) -> io::Result<()> {
        self.with(|sled| {
            let mut unsynced_bytes = self.unsynced_bytes.lock();
            let cost_bytes = batch.cost_bytes();
            if *unsynced_bytes > 0 && *unsynced_bytes + cost_bytes > UNSYNCED_BYTES {
                self.sync_locked(sled, &mut unsynced_bytes)?;
            }
            *unsynced_bytes += cost_bytes;
            self.fatal(guarded(|| sled.apply_batch(batch.sled)))
        })
    }

    /// Waits until all that was written is on the disk. After an error the database is unusable.
    pub(super) fn sync(&self) -> io::Result<()> {
        self.with(|sled| self.sync_locked(sled, &mut self.unsynced_bytes.lock()))
    }

    fn sync_locked(&self, sled: &sled::Db, unsynced_bytes: &mut usize) -> io::Result<()> {
        self.fatal(guarded(|| sled.flush()))?;
        self.fatal(self.file.sync_data())?;
        *unsynced_bytes = 0;
        Ok(())
    }

    /// Syncs and closes; waits until the files can be opened again. Later calls fail.
    pub(super) fn close(&self) -> io::Result<()> {
        let synced = self.sync();
        self.release()?;
        synced
    }

    /// Bytes of all files; 0 when the directory can't be read.
    pub(super) fn size_bytes(&self) -> u64 {
        let Ok(files) = fs::read_dir(&self.dir) else { return 0 };
        files.flatten().filter_map(|file| file.metadata().ok()).filter(|m| m.is_file()).map(|m| m.len()).sum()
    }

    fn with<T>(&self, call: impl FnOnce(&sled::Db) -> io::Result<T>) -> io::Result<T> {
        if self.failed.load(Ordering::Acquire) {
            return Err(io::Error::other("the state store failed before; it has to be opened again"));
        }
        match &*self.sled.read() {
            Some(sled) => call(sled),
            None => Err(io::Error::other("the state store is closed")),
        }
    }

    fn fatal<T>(&self, result: io::Result<T>) -> io::Result<T> {
        if result.is_err() {
            self.failed.store(true, Ordering::Release);
        }
        result
    }

    fn release(&self) -> io::Result<()> {
        let Some(sled) = self.sled.write().take() else { return Ok(()) };
        guarded(|| {
            drop(sled);
            Ok(())
        })?;
        for _ in 0..RELEASE_CHECKS {
            match self.file.try_lock() {
                Ok(()) => return self.file.unlock(),
                Err(TryLockError::WouldBlock) => thread::sleep(RELEASE_CHECK_INTERVAL),
                Err(TryLockError::Error(error)) => return Err(error),
            }
        }
        Err(io::Error::new(io::ErrorKind::TimedOut, "sled keeps its files open after it was closed"))
    }
}

impl Drop for Db {
    fn drop(&mut self) {
        if let Err(error) = self.release() {
            tracing::warn!(%error, dir = %self.dir.display(), "closing the state store");
        }
    }
}

/// Calls sled. It panics on some kinds of damage; that is an error of the data, not of this program.
fn guarded<T>(call: impl FnOnce() -> sled::Result<T>) -> io::Result<T> {
    match catch_unwind(AssertUnwindSafe(call)) {
        Ok(result) => result.map_err(io::Error::from),
        Err(panic) => {
            let text = panic.downcast_ref::<String>().map(String::as_str);
            let text = text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("no message");
            Err(invalid_data(format!("sled panicked: {text}")))
        }
    }
}
