//! `RaftLogStorage` over a [`LogStore`], and the gate that knows what is flushed.

use std::{
    fmt::Debug,
    io,
    ops::{Bound, RangeBounds},
    sync::Arc,
};

use futures::{Stream, stream};
use openraft::{
    OptionalSend,
    entry::RaftEntry,
    storage::{IOFlushed, LogState, RaftLogReader, RaftLogStorage},
};
use parking_lot::Mutex;
use tokio::sync::{oneshot, watch};

use super::{
    codec,
    types::{Entry, LogId, TypeConfig, Vote},
};
use crate::{
    GroupId,
    host::Fatal,
    mutant,
    storage::{LogEntry, LogStore, RecoveredGroup},
};

/// Bytes of entries read in one go: bounds the memory of a replay and of one replication message.
const READ_BYTES: usize = 1 << 20;

/// What of a group's log is flushed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Flushed {
    /// Raised by each truncation: flushes that were queued before it speak of entries that are gone.
    generation: u64,
    /// Everything up to this index is durable; `None`: nothing is.
    index: Option<u64>,
}

/// Lets pass what stands for entries that are flushed in this node's own log. openraft applies entries that were
/// only submitted, so everything written for an applied entry has to wait here first.
#[derive(Debug, Clone)]
pub struct FlushGate(watch::Sender<Flushed>);

impl FlushGate {
    /// A gate for a log whose entries up to `index` are durable.
    pub fn new(index: Option<u64>) -> Self {
        Self(watch::Sender::new(Flushed { generation: 0, index }))
    }

    /// Everything up to this index is durable.
    pub fn index(&self) -> Option<u64> {
        self.0.borrow().index
    }

    /// Waits until everything up to `index` is durable; for ever if the log fails (the node stops then).
    pub async fn wait(&self, index: u64) {
        // The sender lives in `self`.
        let _ = self.0.subscribe().wait_for(|flushed| flushed.index >= Some(index)).await;
    }

    fn generation(&self) -> u64 {
        self.0.borrow().generation
    }

    /// A flush that was queued in `generation` has made everything up to `index` durable.
    fn raise(&self, generation: u64, index: Option<u64>) {
        self.0.send_if_modified(|flushed| {
            let newer = flushed.generation == generation && flushed.index < index;
            if newer {
                flushed.index = index;
            }
            newer
        });
    }

    /// Entries above `index` are about to be dropped. Returns the new generation.
    fn lower(&self, index: Option<u64>) -> u64 {
        self.0.send_modify(|flushed| {
            flushed.generation += 1;
            flushed.index = flushed.index.min(index);
        });
        self.generation()
    }
}

#[derive(Debug, Default)]
struct Ids {
    vote: Option<Vote>,
    committed: Option<LogId>,
    purged: Option<LogId>,
    /// The last entry present.
    last: Option<LogId>,
}

struct Inner {
    group: GroupId,
    store: Arc<dyn LogStore>,
    ids: Mutex<Ids>,
    gate: FlushGate,
    fatal: Fatal,
}

/// One group's log and vote. Clones share it.
#[derive(Clone)]
pub struct GroupLog(Arc<Inner>);

impl GroupLog {
    /// The log of a group as the store recovered it. Reads one entry (the last).
    ///
    /// # Errors
    /// `InvalidData` if something synced does not decode or is missing.
    pub fn open(store: Arc<dyn LogStore>, group: GroupId, found: RecoveredGroup, fatal: Fatal) -> io::Result<Self> {
        let last = match found.entries.end.checked_sub(1) {
            Some(last) if !found.entries.is_empty() => {
                let mut entries = store.read(group, last..last + 1, READ_BYTES)?;
                let entry = entries.pop().ok_or_else(|| codec::damaged(format_args!("{group}: no entry at {last}")))?;
                Some(codec::decode_entry(entry.data)?.log_id)
            }
            _ => None,
        };
        let ids = Ids {
            vote: found.vote.map(codec::decode_vote).transpose()?,
            committed: found.committed.map(codec::decode_log_id).transpose()?,
            purged: found.purged.map(codec::decode_log_id).transpose()?,
            last,
        };
        // Whatever a store recovers it has read back from disk: it is durable.
        let gate = FlushGate::new(last.or(ids.purged).map(|id| id.index));
        Ok(Self(Arc::new(Inner { group, store, ids: Mutex::new(ids), gate, fatal })))
    }

    /// The group.
    pub(crate) fn group(&self) -> GroupId {
        self.0.group
    }

    /// What of this log is flushed.
    pub fn gate(&self) -> &FlushGate {
        &self.0.gate
    }

    /// The last entry, or the last purged one when there is none.
    pub fn last(&self) -> Option<LogId> {
        let ids = self.0.ids.lock();
        ids.last.or(ids.purged)
    }

    /// Whether all that a snapshot up to this entry stands for is here already, and flushed when this returns.
    ///
    /// # Errors
    /// The entry is here but can't be read.
    pub(crate) async fn covers(&self, snapshot: LogId) -> io::Result<bool> {
        let (start, end) = self.bounds(&(snapshot.index..=snapshot.index));
        let here = self.read(start, end)?.first().is_some_and(|entry| entry.log_id == snapshot);
        if here {
            self.0.gate.wait(snapshot.index).await;
        }
        Ok(here)
    }

    /// The last purged entry.
    pub fn purged(&self) -> Option<LogId> {
        self.0.ids.lock().purged
    }

    /// Whether nothing was ever written to this group.
    pub fn is_pristine(&self) -> bool {
        let ids = self.0.ids.lock();
        ids.vote.is_none() && ids.last.is_none() && ids.purged.is_none()
    }

    /// Entries from `start` (included) to `end` (excluded), at least one if there is one, not many more bytes than
    /// [`READ_BYTES`]. Recent entries come from the store's memory; older ones are a short blocking read.
    fn read(&self, start: u64, end: u64) -> io::Result<Vec<Entry>> {
        if start >= end {
            return Ok(Vec::new());
        }
        let entries = self.0.store.read(self.0.group, start..end, READ_BYTES)?;
        entries.into_iter().map(|entry| codec::decode_entry(entry.data)).collect()
    }

    /// The indexes of a range that may be present.
    fn bounds(&self, range: &impl RangeBounds<u64>) -> (u64, u64) {
        let ids = self.0.ids.lock();
        let first = ids.purged.map_or(0, |id| id.index + 1);
        let past_last = ids.last.map_or(0, |id| id.index + 1);
        let start = match range.start_bound() {
            Bound::Included(start) => *start,
            Bound::Excluded(before) => before.saturating_add(1),
            Bound::Unbounded => 0,
        };
        let end = match range.end_bound() {
            Bound::Included(last) => last.saturating_add(1),
            Bound::Excluded(end) => *end,
            Bound::Unbounded => u64::MAX,
        };
        (start.max(first), end.min(past_last))
    }
}

impl RaftLogReader<TypeConfig> for GroupLog {
    async fn entries_stream<RB>(&mut self, range: RB) -> impl Stream<Item = io::Result<Entry>> + OptionalSend
    where
        RB: RangeBounds<u64> + Clone + Debug + OptionalSend,
    {
        // In pieces: after a restart this may be the whole log.
        let (start, end) = self.bounds(&range);
        let pieces = stream::try_unfold((self.clone(), start), move |(log, start)| async move {
            let piece = log.read(start, end)?;
            let next = piece.last().map_or(start, |entry| entry.log_id.index + 1);
            io::Result::Ok((!piece.is_empty()).then(|| (stream::iter(piece.into_iter().map(Ok)), (log, next))))
        });
        Box::pin(futures::TryStreamExt::try_flatten(pieces))
    }

    async fn try_get_log_entries<RB>(&mut self, range: RB) -> io::Result<Vec<Entry>>
    where
        RB: RangeBounds<u64> + Clone + Debug + OptionalSend,
    {
        let (mut start, end) = self.bounds(&range);
        let mut entries = Vec::new();
        while start < end {
            let piece = self.read(start, end)?;
            let Some(last) = piece.last().map(|entry| entry.log_id.index) else {
                return Err(codec::damaged(format_args!("{}: no entry at {start}", self.0.group)));
            };
            start = last + 1;
            entries.extend(piece);
        }
        Ok(entries)
    }

    async fn limited_get_log_entries(&mut self, start: u64, end: u64) -> io::Result<Vec<Entry>> {
        self.read(start, end)
    }

    async fn read_vote(&mut self) -> io::Result<Option<Vote>> {
        Ok(self.0.ids.lock().vote)
    }
}

impl RaftLogStorage<TypeConfig> for GroupLog {
    type LogReader = Self;

    async fn get_log_state(&mut self) -> io::Result<LogState<TypeConfig>> {
        let ids = self.0.ids.lock();
        Ok(LogState { last_purged_log_id: ids.purged, last_log_id: ids.last.or(ids.purged) })
    }

    async fn get_log_reader(&mut self) -> Self {
        self.clone()
    }

    async fn save_vote(&mut self, vote: &Vote) -> io::Result<()> {
        if mutant!(VoteNotPersisted) {
            self.0.ids.lock().vote = Some(*vote);
            return Ok(());
        }
        let (tx, rx) = oneshot::channel();
        let done = Box::new(move |result| drop(tx.send(result)));
        self.0.store.save_vote(self.0.group, codec::encode_vote(vote), done);
        let result = rx.await.unwrap_or_else(|_| Err(io::Error::other("the log store dropped a vote")));
        result.inspect_err(|e| self.0.fatal.fail(format_args!("vote of {} is not durable: {e}", self.0.group)))?;
        self.0.ids.lock().vote = Some(*vote);
        Ok(())
    }

    async fn save_committed(&mut self, committed: Option<LogId>) -> io::Result<()> {
        // openraft only ever raises it.
        if let Some(committed) = committed {
            self.0.store.save_committed(self.0.group, codec::encode_log_id(&committed));
            self.0.ids.lock().committed = Some(committed);
        }
        Ok(())
    }

    async fn read_committed(&mut self) -> io::Result<Option<LogId>> {
        Ok(self.0.ids.lock().committed)
    }

    async fn append<I>(&mut self, entries: I, callback: IOFlushed<TypeConfig>) -> io::Result<()>
    where
        I: IntoIterator<Item = Entry> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        let mut last = None;
        let entries: Vec<LogEntry> = entries
            .into_iter()
            .map(|entry| {
                last = Some(entry.log_id());
                LogEntry { index: entry.log_id.index, data: codec::encode_entry(&entry) }
            })
            .collect();
        let Some(last) = last else {
            callback.io_completed(Ok(()));
            return Ok(());
        };
        let callback = if mutant!(AckBeforeFlush) {
            callback.io_completed(Ok(()));
            IOFlushed::noop()
        } else {
            callback
        };
        let inner = self.0.clone();
        let generation = inner.gate.generation();
        let done = move |result: io::Result<()>| {
            match &result {
                Ok(()) => inner.gate.raise(generation, Some(last.index)),
                Err(e) => inner.fatal.fail(format_args!("log of {} is not durable: {e}", inner.group)),
            }
            callback.io_completed(result);
        };
        self.0.store.append(self.0.group, entries, Box::new(done));
        // Readable from now on.
        self.0.ids.lock().last = Some(last);
        Ok(())
    }

    async fn truncate_after(&mut self, last_log_id: Option<LogId>) -> io::Result<()> {
        {
            let mut ids = self.0.ids.lock();
            if ids.last.map(|id| id.index) <= last_log_id.map(|id| id.index) {
                return Ok(());
            }
            ids.last = last_log_id.filter(|id| ids.purged.is_none_or(|purged| purged.index < id.index));
        }
        let kept = last_log_id.map(|id| id.index);
        let inner = self.0.clone();
        let generation = inner.gate.lower(kept);
        // Not awaited: the store keeps the order, so the flush of any later entry covers the truncation, and until
        // then nothing was promised that depends on it.
        let done = move |result: io::Result<()>| match result {
            Ok(()) => inner.gate.raise(generation, kept),
            Err(e) => inner.fatal.fail(format_args!("truncation of {} is not durable: {e}", inner.group)),
        };
        self.0.store.truncate_after(self.0.group, kept, Box::new(done));
        Ok(())
    }

    async fn purge(&mut self, log_id: LogId) -> io::Result<()> {
        {
            let mut ids = self.0.ids.lock();
            if ids.purged.is_some_and(|purged| purged.index >= log_id.index) {
                return Ok(());
            }
            ids.purged = Some(log_id);
            ids.last = ids.last.filter(|last| last.index > log_id.index);
        }
        let inner = self.0.clone();
        let generation = inner.gate.generation();
        // Not awaited: what is purged is in a durable snapshot; a purge lost in a crash is repeated.
        let done = move |result: io::Result<()>| match result {
            // Reaches past the log when a snapshot was installed.
            Ok(()) => inner.gate.raise(generation, Some(log_id.index)),
            Err(e) => inner.fatal.fail(format_args!("purge of {} failed: {e}", inner.group)),
        };
        self.0.store.purge(self.0.group, log_id.index, codec::encode_log_id(&log_id), Box::new(done));
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flush_queued_before_a_truncation_says_nothing_about_the_entries_after_it() {
        let gate = FlushGate::new(Some(3));
        let before = gate.generation();
        let after = gate.lower(Some(5));
        gate.raise(before, Some(8));
        assert_eq!(gate.index(), Some(3), "entries 6 to 8 are gone");
        gate.raise(after, Some(5));
        assert_eq!(gate.index(), Some(5));
        gate.lower(None);
        assert_eq!(gate.index(), None);
    }

    #[test]
    fn the_gate_never_goes_back_by_itself() {
        let gate = FlushGate::new(None);
        gate.raise(gate.generation(), Some(7));
        gate.raise(gate.generation(), Some(6));
        assert_eq!(gate.index(), Some(7));
    }
}
