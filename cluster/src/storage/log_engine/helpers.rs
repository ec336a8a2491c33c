//! Two threads beside the writer: one reads, one deletes what is no longer needed.
//!
//! Reads have a thread of their own for a reason: raft-engine caches the last block read per *thread*, by file number
//! and offset only. Two logs read on one thread (two nodes in a process, or one log before and after a repair) would
//! be given each other's entries.

use std::{
    io,
    ops::Range,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Arc,
        atomic::Ordering,
        mpsc::{Receiver, Sender, SyncSender, channel, sync_channel},
    },
};

use bytes::Bytes;
use parking_lot::Mutex;
use raft_engine::env::FileSystem;

use super::{
    super::LogEntry,
    Shared,
    batch::{Framed, INDEX_BYTES, into_io},
    files::Watch,
    store::Engine,
};
use crate::env::Blocking;

/// How many helpers there are.
pub(super) const HELPERS: usize = 2;
/// Entries fetched at once: their positions take 64 bytes each.
const MAX_FETCHED_ENTRIES: u64 = 16 * 1024;
/// Bytes fetched at once; the reader goes on after it.
const MAX_FETCHED_BYTES: usize = 16 * 1024 * 1024;

/// A read from disk, and where the answer goes.
pub(super) struct ReadRequest {
    pub(super) region: u64,
    pub(super) range: Range<u64>,
    pub(super) max_bytes: usize,
    pub(super) reply: SyncSender<io::Result<Vec<LogEntry>>>,
}

/// The reader's queue, empty once the log is closed. Callers wait for their answers: it is never longer than there
/// are threads.
pub(super) type ReaderQueue = Arc<Mutex<Option<Sender<ReadRequest>>>>;

/// The writer's handles to the helpers; they end when these are dropped.
pub(super) struct Helpers {
    reader: ReaderQueue,
    purger: Option<SyncSender<()>>,
}

impl Helpers {
    /// Starts both.
    pub(super) fn start<F: FileSystem + 'static>(
        blocking: &dyn Blocking,
        engine: &Arc<Engine<F>>,
        shared: &Arc<Shared>,
        watch: &Arc<Watch>,
    ) -> io::Result<Self> {
        let (sender, requests) = channel();
        let (purger, nudges) = sync_channel(1);
        *shared.reader.lock() = Some(sender);
        // Dropped on an error, it ends what was started.
        let helpers = Self { reader: shared.reader.clone(), purger: Some(purger) };
        let (log, ended) = (engine.clone(), shared.clone());
        blocking.spawn("log-read".to_owned(), Box::new(move || read_loop(log, &requests, &ended)))?;
        let (log, ended, watch) = (engine.clone(), shared.clone(), watch.clone());
        blocking.spawn("log-purge".to_owned(), Box::new(move || purge_loop(log, &nudges, &ended, &watch)))?;
        Ok(helpers)
    }

    /// Asks for deletion of files that are no longer needed.
    pub(super) fn purge(&self) {
        if let Some(purger) = &self.purger {
            // One that is still waiting will do.
            let _full = purger.try_send(());
        }
    }

    /// Ends both as soon as they are through.
    pub(super) fn end(&mut self) {
        *self.reader.lock() = None;
        self.purger = None;
    }
}

impl Drop for Helpers {
    fn drop(&mut self) {
        self.end();
    }
}

fn read_loop<F: FileSystem>(engine: Arc<Engine<F>>, requests: &Receiver<ReadRequest>, shared: &Shared) {
    while let Ok(request) = requests.recv() {
        let result = catch_unwind(AssertUnwindSafe(|| fetch(&engine, &request)))
            .unwrap_or_else(|_| Err(io::Error::new(io::ErrorKind::InvalidData, "an entry reads back wrong")));
        drop(request.reply.send(result));
    }
    drop(engine);
    shared.queue.helper_ended();
}

fn fetch<F: FileSystem>(engine: &Engine<F>, request: &ReadRequest) -> io::Result<Vec<LogEntry>> {
    let Range { start, end } = request.range;
    let end = end.min(start.saturating_add(MAX_FETCHED_ENTRIES));
    let mut entries = Vec::new();
    engine
        .fetch_entries_to::<Framed>(
            request.region,
            start,
            end,
            Some(request.max_bytes.min(MAX_FETCHED_BYTES)),
            &mut entries,
        )
        .map_err(into_io)?;
    Ok((start..)
        .zip(entries)
        .map(|(index, entry)| LogEntry { index, data: Bytes::from(entry.value).slice(INDEX_BYTES..) })
        .collect())
}

fn purge_loop<F: FileSystem>(engine: Arc<Engine<F>>, nudges: &Receiver<()>, shared: &Shared, watch: &Watch) {
    while let Ok(()) = nudges.recv() {
        let history = shared.history.lock();
        let result = catch_unwind(AssertUnwindSafe(|| engine.purge_expired_files().map_err(into_io)))
            .unwrap_or_else(|_| Err(io::Error::other("the log engine panicked while purging")))
            .and_then(|_| watch.check());
        drop(history);
        if let Err(error) = result {
            shared.queue.fail(&error);
        }
        shared.size_bytes.store(engine.get_used_size() as u64, Ordering::Relaxed);
    }
    drop(engine);
    shared.queue.helper_ended();
}
