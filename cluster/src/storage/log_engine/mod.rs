//! The log store on raft-engine: one log for all groups of a node.
//!
//! | part | does |
//! |---|---|
//! | `queue`, `view` | takes writes in order, makes them readable at once |
//! | `writer`, `batch` | one thread: all that is queued, one batch, one sync, callbacks in order |
//! | `helpers` | reads from disk; deletes files no longer needed |
//! | `files` | the file system under raft-engine |
//! | `witness` | the second file: what was promised |
//! | `scan`, `format` | tells a torn tail from damage before anything is opened |
//! | `store` | opens it all |
//!
//! On disk: `engine/` (raft-engine's append and rewrite queues), `witness`, `lock`.

mod batch;
mod files;
mod format;
mod helpers;
mod queue;
mod scan;
mod store;
mod view;
mod witness;
mod writer;

use std::{
    collections::BTreeMap,
    fs::File,
    io,
    ops::Range,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
        mpsc::sync_channel,
    },
    thread::{self, ThreadId},
    time::Duration,
};

use bytes::Bytes;
use parking_lot::Mutex;
use raft_engine::env::{DefaultFileSystem, FileSystem};

use self::{
    files::Watch,
    helpers::{HELPERS, Helpers, ReadRequest, ReaderQueue},
    queue::{Queue, append_read},
    view::Found,
    writer::{Writer, Written},
};
use super::{LogEntry, LogStats, LogStore, OnFlush, RecoveredGroup, log_op::LogOp};
use crate::{
    GroupId,
    env::{Blocking, Clock},
};

/// How far the witness may lag behind the log: damage to the last batches within it looks like a torn tail.
const WITNESS_INTERVAL: Duration = Duration::from_secs(1);
/// How often a read starts again because entries were overwritten or moved meanwhile.
const MAX_READ_ATTEMPTS: usize = 8;

/// Sizes of the log's files.
#[derive(Debug, Clone)]
pub struct LogEngineConfig {
    /// A file is closed and the next one begun at this size. Whole files are deleted, so this is also how much garbage
    /// may lie behind one live entry.
    pub target_file_bytes: u64,
    /// Deletion begins when the log is bigger than this. Its price: what is still needed from old files is written
    /// again.
    pub purge_threshold_bytes: u64,
}

impl Default for LogEngineConfig {
    fn default() -> Self {
        Self { target_file_bytes: 32 << 20, purge_threshold_bytes: 128 << 20 }
    }
}

/// [`LogStore`] on raft-engine. Dropping it without [`LogStore::close`] waits for the batch being written and refuses
/// the rest.
pub struct EngineLogStore {
    shared: Arc<Shared>,
    watch: Arc<Watch>,
    recovered: BTreeMap<GroupId, RecoveredGroup>,
    /// Released by closing: whoever still holds a closed store keeps nobody from opening the log again.
    lock: Mutex<Option<File>>,
}

/// What callers, the writer and its helpers share.
struct Shared {
    queue: Queue,
    reader: ReaderQueue,
    written: Written,
    size_bytes: AtomicU64,
    /// Held while old files are cleared, and while history is changed; see [`view::Write::changes_history`].
    history: Mutex<()>,
    writer_thread: Mutex<Option<ThreadId>>,
}

impl EngineLogStore {
    /// Opens or creates the log in `dir`.
    ///
    /// # Errors
    /// `InvalidData`: synced data is damaged or lost; nothing on disk was changed. `ResourceBusy`: it is open already.
    /// Else what the disk says.
    pub fn open(
        dir: &Path,
        config: &LogEngineConfig,
        clock: Arc<dyn Clock>,
        blocking: &dyn Blocking,
    ) -> io::Result<Self> {
        Self::open_on(dir, config, clock, blocking, DefaultFileSystem)
    }

    /// The same on another file system, for tests of failing disks.
    pub fn open_on<F: FileSystem + 'static>(
        dir: &Path,
        config: &LogEngineConfig,
        clock: Arc<dyn Clock>,
        blocking: &dyn Blocking,
        files: F,
    ) -> io::Result<Self> {
        let opened = store::open(dir, config, clock.clone(), files)?;
        let shared = Arc::new(Shared {
            queue: Queue::new(opened.views, HELPERS),
            reader: ReaderQueue::default(),
            written: Written::default(),
            size_bytes: AtomicU64::new(opened.engine.get_used_size() as u64),
            history: Mutex::new(()),
            writer_thread: Mutex::new(None),
        });
        let helpers = Helpers::start(blocking, &opened.engine, &shared, &opened.watch)?;
        helpers.purge();
        let writer = Writer {
            shared: shared.clone(),
            watch: opened.watch.clone(),
            witness_stored_micros: clock.monotonic_micros(),
            clock,
            engine: Some(opened.engine),
            helpers,
            builder: opened.builder,
            last_batch: opened.last_batch,
            purge_interval_bytes: config.target_file_bytes / 4,
            unpurged_bytes: 0,
        };
        blocking.spawn(
            "log-write".to_owned(),
            Box::new(move || {
                *writer.shared.writer_thread.lock() = Some(thread::current().id());
                writer.run();
            }),
        )?;
        Ok(Self { shared, watch: opened.watch, recovered: opened.recovered, lock: Mutex::new(Some(opened.lock)) })
    }

    fn read_disk(&self, group: GroupId, range: Range<u64>, max_bytes: usize) -> io::Result<Vec<LogEntry>> {
        let gone = || io::Error::new(io::ErrorKind::BrokenPipe, "the log store is closed");
        let (reply, answer) = sync_channel(1);
        let request = ReadRequest { region: format::region(group), range, max_bytes, reply };
        let reader = self.shared.reader.lock().clone().ok_or_else(gone)?;
        reader.send(request).map_err(|_| gone())?;
        drop(reader);
        answer.recv().map_err(|_| gone())?
    }
}

impl LogStore for EngineLogStore {
    fn recovered(&self) -> BTreeMap<GroupId, RecoveredGroup> {
        self.recovered.clone()
    }

    fn append(&self, group: GroupId, entries: Vec<LogEntry>, done: OnFlush) {
        self.shared.queue.push(group, LogOp::Append(entries), Some(done));
    }

    fn save_vote(&self, group: GroupId, vote: Bytes, done: OnFlush) {
        self.shared.queue.push(group, LogOp::Vote(vote), Some(done));
    }

    fn save_committed(&self, group: GroupId, committed: Bytes) {
        self.shared.queue.push(group, LogOp::Committed(committed), None);
    }

    fn truncate_after(&self, group: GroupId, last: Option<u64>, done: OnFlush) {
        self.shared.queue.push(group, LogOp::TruncateAfter(last), Some(done));
    }

    fn purge(&self, group: GroupId, index: u64, purged: Bytes, done: OnFlush) {
        self.shared.queue.push(group, LogOp::Purge { index, purged }, Some(done));
    }

    fn read(&self, group: GroupId, range: Range<u64>, max_bytes: usize) -> io::Result<Vec<LogEntry>> {
        let mut entries: Vec<LogEntry> = Vec::new();
        let mut room = max_bytes;
        let mut seen = None;
        let mut attempts = 0;
        loop {
            let next = entries.last().map_or(range.start, |last| last.index + 1);
            if seen.is_some_and(|changes| self.shared.queue.changed(group, changes)) {
                attempts += 1;
                if attempts == MAX_READ_ATTEMPTS {
                    return Err(io::Error::other("the log changes faster than it can be read"));
                }
                (entries, room, seen) = (Vec::new(), max_bytes, None);
                continue;
            }
            if !entries.is_empty() && room == 0 {
                return Ok(entries);
            }
            match self.shared.queue.read(group, next..range.end, room)? {
                Found::Entries(tail) => {
                    if seen.is_some_and(|changes| self.shared.queue.changed(group, changes)) {
                        continue;
                    }
                    append_read(&mut entries, tail, &mut room);
                    return Ok(entries);
                }
                Found::OnDisk { range: on_disk, changes } => {
                    seen.get_or_insert(changes);
                    match self.read_disk(group, on_disk, room) {
                        Ok(read) => append_read(&mut entries, read, &mut room),
                        // It may have been purged or moved under our hands.
                        Err(_) if attempts + 1 < MAX_READ_ATTEMPTS => {
                            attempts += 1;
                            (entries, room, seen) = (Vec::new(), max_bytes, None);
                        }
                        Err(e) => return Err(e),
                    }
                }
            }
        }
    }

    fn remove_group(&self, group: GroupId, done: OnFlush) {
        self.shared.queue.push(group, LogOp::Remove, Some(done));
    }

    fn close(&self) -> io::Result<()> {
        self.shared.queue.close()?;
        drop(self.lock.lock().take());
        Ok(())
    }

    fn size_bytes(&self) -> u64 {
        self.shared.size_bytes.load(Ordering::Relaxed)
    }

    fn stats(&self) -> LogStats {
        let written = &self.shared.written;
        LogStats {
            batches: written.batches.load(Ordering::Relaxed),
            writes: written.writes.load(Ordering::Relaxed),
            entries: written.entries.load(Ordering::Relaxed),
            bytes: written.bytes.load(Ordering::Relaxed),
            syncs: self.watch.syncs.load(Ordering::Relaxed),
            sync_micros: self.watch.sync_micros.load(Ordering::Relaxed),
            sync_micros_max: self.watch.sync_micros_max.load(Ordering::Relaxed),
        }
    }
}

impl Drop for EngineLogStore {
    fn drop(&mut self) {
        // The last owner may be a callback, which runs on the writer's own thread.
        let on_writer = *self.shared.writer_thread.lock() == Some(thread::current().id());
        self.shared.queue.drop_store(!on_writer);
    }
}
