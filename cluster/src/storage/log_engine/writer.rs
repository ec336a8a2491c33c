//! The one thread that writes: whatever is queued becomes one batch, one sync, then all callbacks in order.

use std::{
    io,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use raft_engine::env::FileSystem;

use super::{
    Shared, WITNESS_INTERVAL,
    batch::{BatchBuilder, Framed, INDEX_BYTES, into_io},
    files::Watch,
    helpers::Helpers,
    queue::{Queued, Work},
    store::Engine,
};
use crate::env::Clock;

/// Counters of the writer.
#[derive(Default)]
pub(super) struct Written {
    pub(super) batches: AtomicU64,
    pub(super) writes: AtomicU64,
    pub(super) entries: AtomicU64,
    pub(super) bytes: AtomicU64,
}

pub(super) struct Writer<F: FileSystem> {
    pub(super) shared: Arc<Shared>,
    pub(super) watch: Arc<Watch>,
    pub(super) clock: Arc<dyn Clock>,
    /// `None` once closed.
    pub(super) engine: Option<Arc<Engine<F>>>,
    pub(super) helpers: Helpers,
    pub(super) builder: BatchBuilder,
    /// Number of the last batch.
    pub(super) last_batch: u64,
    /// Asks for housekeeping, every `purge_interval_bytes` written.
    pub(super) purge_interval_bytes: u64,
    pub(super) unpurged_bytes: u64,
    pub(super) witness_stored_micros: u64,
}

impl<F: FileSystem> Writer<F> {
    /// Runs until the store is dropped.
    pub(super) fn run(mut self) {
        let mut batch = Vec::new();
        loop {
            let lag = self.engine.is_some() && self.watch.witness.stale();
            match self.shared.queue.next(&mut batch, lag) {
                Work::Write => self.write(&mut batch),
                Work::Refuse(error) => call_back(&mut batch, &Err(error)),
                Work::Idle => self.store_witness(),
                Work::Close => {
                    self.close_files(true);
                    self.shared.queue.set_closed();
                }
                Work::End => break,
            }
        }
        self.close_files(false);
        self.shared.queue.set_ended();
    }

    fn write(&mut self, batch: &mut Vec<Queued>) {
        // raft-engine panics where it sees no way on. For the node that is a failed disk like any other.
        let result = catch_unwind(AssertUnwindSafe(|| self.write_batch(batch)))
            .unwrap_or_else(|_| Err(io::Error::other("the log engine panicked")));
        match &result {
            Ok(()) => self.shared.queue.durable(batch),
            Err(error) => self.shared.queue.fail(error),
        }
        call_back(batch, &result);
        if result.is_ok()
            && self.watch.witness.stale()
            && self.clock.monotonic_micros() - self.witness_stored_micros >= WITNESS_INTERVAL.as_micros() as u64
        {
            self.store_witness();
        }
    }

    fn write_batch(&mut self, queued: &[Queued]) -> io::Result<()> {
        let engine = self.engine.as_ref().ok_or_else(|| io::Error::other("the log is closed"))?;
        let number = self.last_batch + 1;
        self.builder.start(number)?;
        for write in queued {
            self.builder.add(write, |index| {
                let entry = engine.get_entry::<Framed>(super::format::region(write.group), index).map_err(into_io)?;
                Ok(entry.ok_or_else(|| io::Error::other("an entry to keep is gone"))?.value.split_off(INDEX_BYTES))
            })?;
        }
        let _no_purge = queued.iter().any(|queued| queued.write.changes_history()).then(|| self.shared.history.lock());
        let bytes = engine.write(&mut self.builder.batch, true).map_err(into_io)? as u64;
        self.watch.check()?;
        self.last_batch = number;
        if self.watch.witness.synced(number, self.watch.append_file(), &self.builder.votes) {
            self.watch.witness.store()?;
        }

        let written = &self.shared.written;
        written.batches.fetch_add(1, Ordering::Relaxed);
        written.writes.fetch_add(queued.len() as u64, Ordering::Relaxed);
        written.entries.fetch_add(self.builder.entries, Ordering::Relaxed);
        written.bytes.fetch_add(bytes, Ordering::Relaxed);
        self.shared.size_bytes.store(engine.get_used_size() as u64, Ordering::Relaxed);
        self.unpurged_bytes += bytes;
        if self.unpurged_bytes >= self.purge_interval_bytes {
            self.unpurged_bytes = 0;
            self.helpers.purge();
        }
        Ok(())
    }

    fn store_witness(&mut self) {
        self.witness_stored_micros = self.clock.monotonic_micros();
        if let Err(error) = self.watch.witness.store() {
            self.shared.queue.fail(&error);
        }
    }

    /// Closes all files, after the helpers did.
    fn close_files(&mut self, graceful: bool) {
        let Some(engine) = self.engine.take() else { return };
        self.helpers.end();
        self.shared.queue.wait_for_helpers();
        if graceful {
            self.store_witness();
        }
        // Cuts what was allocated ahead.
        drop(engine);
        if let Err(error) = self.watch.check() {
            self.shared.queue.fail(&error);
        }
    }
}

fn call_back(batch: &mut Vec<Queued>, result: &io::Result<()>) {
    for done in batch.drain(..).filter_map(|queued| queued.done) {
        done(result.as_ref().copied().map_err(|e| io::Error::new(e.kind(), e.to_string())));
    }
}
