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

use parking_lot::RwLock;

use super::super::{durable_files::sync_dir, invalid_data};

/// Limit of sled's page cache. The state of a shard lives in memory as its book; sled only needs the pages that it is
/// changing, and everything once at start.
const CACHE_BYTES: u64 = 64 << 20;

/// How often, and how far apart, to look whether sled has let go of its file. Its IO threads hold it for the last
/// moments of their work after the database is dropped; a reopen in this process would fail meanwhile.
const RELEASE_CHECKS: u32 = 2_000;
const RELEASE_CHECK_INTERVAL: Duration = Duration::from_millis(1);

/// One sled database.
pub(super) struct Db {
    dir: PathBuf,
    /// `None` once closed.
    sled: RwLock<Option<sled::Db>>,
    /// sled's `flush` starts the writing but doesn't wait for the disk; this handle of the same file does.
    file: File,
    /// After a failed write nobody knows what sled's memory and the file have in common.
    failed: AtomicBool,
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
        Ok(Self { dir: dir.to_owned(), sled: RwLock::new(Some(sled)), file, failed: AtomicBool::new(false) })
    }

    /// Looks something up. Errors concern this call only.
    pub(super) fn read<T>(&self, call: impl FnOnce(&sled::Db) -> sled::Result<T>) -> io::Result<T> {
        self.with(|sled| guarded(|| call(sled)))
    }

    /// Changes something. After an error the database is unusable.
    pub(super) fn write<T>(&self, call: impl FnOnce(&sled::Db) -> sled::Result<T>) -> io::Result<T> {
        self.with(|sled| self.fatal(guarded(|| call(sled))))
    }

    /// Waits until all that was written is on the disk. After an error the database is unusable.
    pub(super) fn sync(&self) -> io::Result<()> {
        self.with(|sled| {
            self.fatal(guarded(|| sled.flush()))?;
            self.fatal(self.file.sync_data())
        })
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
