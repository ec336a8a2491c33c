//! The file system under raft-engine: real files, with every sync counted, failed syncs remembered instead of
//! panicked about, and the witness told before a file is deleted.

use std::{
    io::{self, Seek, SeekFrom, Write},
    path::Path,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicU64, Ordering},
    },
};

use raft_engine::{
    env::{FileSystem, Handle, Permission, WriteExt},
    internals::{EventListener, FileBlockHandle, FileId, FileNameExt, LogQueue},
};

use super::witness::Witness;
use crate::env::Clock;

/// What is watched in all files of one log.
pub(super) struct Watch {
    clock: Arc<dyn Clock>,
    pub(super) witness: Witness,
    failure: OnceLock<(io::ErrorKind, String)>,
    pub(super) syncs: AtomicU64,
    pub(super) sync_micros: AtomicU64,
    pub(super) sync_micros_max: AtomicU64,
    /// The append file written last.
    append_file: AtomicU64,
}

impl Watch {
    pub(super) fn new(clock: Arc<dyn Clock>, witness: Witness) -> Self {
        Self {
            clock,
            witness,
            failure: OnceLock::new(),
            syncs: AtomicU64::new(0),
            sync_micros: AtomicU64::new(0),
            sync_micros_max: AtomicU64::new(0),
            append_file: AtomicU64::new(0),
        }
    }

    /// The first sync that failed. raft-engine would panic on it, hence does not get to see it: whoever wrote asks
    /// here before it believes in its data.
    pub(super) fn check(&self) -> io::Result<()> {
        match self.failure.get() {
            None => Ok(()),
            Some((kind, message)) => Err(io::Error::new(*kind, message.clone())),
        }
    }

    /// The append file written last.
    pub(super) fn append_file(&self) -> u64 {
        self.append_file.load(Ordering::Acquire)
    }

    fn sync(&self, handle: &impl Handle) {
        let start = self.clock.monotonic_micros();
        // Built with `--cfg andante_no_sync` it only pretends: the durability tests prove that they notice.
        let synced = if cfg!(andante_no_sync) { Ok(()) } else { handle.sync() };
        if let Err(e) = synced {
            self.failure.get_or_init(|| (e.kind(), format!("the log can't be synced: {e}")));
        }
        let micros = self.clock.monotonic_micros().saturating_sub(start);
        self.syncs.fetch_add(1, Ordering::Relaxed);
        self.sync_micros.fetch_add(micros, Ordering::Relaxed);
        self.sync_micros_max.fetch_max(micros, Ordering::Relaxed);
    }
}

/// Tells where batches went.
pub(super) struct Positions(pub(super) Arc<Watch>);

impl EventListener for Positions {
    fn on_append_log_file(&self, handle: FileBlockHandle) {
        match handle.id.queue {
            LogQueue::Append => self.0.append_file.store(handle.id.seq, Ordering::Release),
            LogQueue::Rewrite => self.0.witness.rewritten(handle.id.seq, handle.offset + handle.len as u64),
        }
    }
}

/// A watched file system.
pub(super) struct WatchedFiles<F> {
    inner: F,
    watch: Arc<Watch>,
}

impl<F: FileSystem> WatchedFiles<F> {
    pub(super) fn new(inner: F, watch: Arc<Watch>) -> Self {
        Self { inner, watch }
    }

    fn watched(&self, path: &Path, inner: F::Handle) -> WatchedHandle<F> {
        let sync_each_write = log_file(path).is_some_and(|file| file.queue == LogQueue::Rewrite);
        WatchedHandle { inner: Arc::new(inner), watch: self.watch.clone(), sync_each_write }
    }
}

fn log_file(path: &Path) -> Option<FileId> {
    FileId::parse_file_name(path.file_name()?.to_str()?)
}

impl<F: FileSystem> FileSystem for WatchedFiles<F> {
    type Handle = WatchedHandle<F>;
    type Reader = F::Reader;
    type Writer = WatchedWriter<F>;

    fn create<P: AsRef<Path>>(&self, path: P) -> io::Result<Self::Handle> {
        Ok(self.watched(path.as_ref(), self.inner.create(path.as_ref())?))
    }

    fn open<P: AsRef<Path>>(&self, path: P, perm: Permission) -> io::Result<Self::Handle> {
        Ok(self.watched(path.as_ref(), self.inner.open(path.as_ref(), perm)?))
    }

    fn delete<P: AsRef<Path>>(&self, path: P) -> io::Result<()> {
        // What replaces the file's content may be in a sync that failed.
        self.watch.check()?;
        if let Some(file) = log_file(path.as_ref()) {
            self.watch.witness.deleting(file.queue, file.seq)?;
        }
        self.inner.delete(path)
    }

    fn rename<P: AsRef<Path>>(&self, src_path: P, dst_path: P) -> io::Result<()> {
        self.inner.rename(src_path, dst_path)
    }

    fn new_reader(&self, handle: Arc<Self::Handle>) -> io::Result<Self::Reader> {
        self.inner.new_reader(handle.inner.clone())
    }

    fn new_writer(&self, handle: Arc<Self::Handle>) -> io::Result<Self::Writer> {
        Ok(WatchedWriter { inner: self.inner.new_writer(handle.inner.clone())?, handle })
    }
}

/// A watched file.
pub(super) struct WatchedHandle<F: FileSystem> {
    inner: Arc<F::Handle>,
    watch: Arc<Watch>,
    /// The rewrite queue writes many batches before it syncs. Synced one by one there is at most one unsynced batch,
    /// as in the append queue, and anything valid behind a bad one is damage.
    sync_each_write: bool,
}

impl<F: FileSystem> Handle for WatchedHandle<F> {
    fn truncate(&self, offset: usize) -> io::Result<()> {
        self.inner.truncate(offset)
    }

    fn file_size(&self) -> io::Result<usize> {
        self.inner.file_size()
    }

    fn sync(&self) -> io::Result<()> {
        self.watch.sync(&*self.inner);
        Ok(())
    }
}

/// Writes to a watched file.
pub(super) struct WatchedWriter<F: FileSystem> {
    inner: F::Writer,
    handle: Arc<WatchedHandle<F>>,
}

impl<F: FileSystem> Write for WatchedWriter<F> {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        let written = self.inner.write(buf)?;
        if self.handle.sync_each_write {
            self.handle.watch.sync(&*self.handle.inner);
        }
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

impl<F: FileSystem> Seek for WatchedWriter<F> {
    fn seek(&mut self, pos: SeekFrom) -> io::Result<u64> {
        self.inner.seek(pos)
    }
}

impl<F: FileSystem> WriteExt for WatchedWriter<F> {
    fn truncate(&mut self, offset: usize) -> io::Result<()> {
        self.inner.truncate(offset)
    }

    fn allocate(&mut self, offset: usize, size: usize) -> io::Result<()> {
        self.inner.allocate(offset, size)
    }
}
