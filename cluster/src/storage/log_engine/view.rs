//! What readers see of one group's log: the range of its entries, and the youngest of them in memory.

use std::{collections::VecDeque, ops::Range};

use bytes::Bytes;

use super::super::{
    LogEntry,
    log_op::{LogOp, check_append},
};

/// Flushed entries of one group kept in memory, for followers and `apply` that read what was just appended. With 257
/// groups at most 64 MiB.
const TAIL_BYTES: usize = 256 * 1024;

/// A queued write, resolved against the state of its group when it was queued.
pub(super) enum Write {
    /// `overwrites`: there are entries at these indexes. `clear_to`: first drop everything below. `unmark`: the group's
    /// log was marked as emptied.
    Append {
        entries: Vec<LogEntry>,
        overwrites: bool,
        clear_to: Option<u64>,
        unmark: bool,
    },
    Vote(Bytes),
    Committed(Bytes),
    /// Drop what follows the entry; its data, unless it is older than the tail.
    KeepTo {
        index: u64,
        data: Option<Bytes>,
    },
    /// Drop all entries, which lie below `end`, and mark the log as emptied.
    Empty {
        end: u64,
    },
    /// `mark`: nothing is left; mark the log as emptied.
    Purge {
        index: u64,
        purged: Bytes,
        mark: bool,
    },
    Remove,
    Nothing,
}

impl Write {
    /// Whether entries written before are replaced or removed from the end: raft-engine can't bear that while it moves
    /// old entries to its rewrite queue.
    pub(super) fn changes_history(&self) -> bool {
        match self {
            Self::Append { overwrites, .. } => *overwrites,
            Self::KeepTo { .. } | Self::Empty { .. } | Self::Remove => true,
            Self::Vote(_) | Self::Committed(_) | Self::Purge { .. } | Self::Nothing => false,
        }
    }

    /// What it takes up in the queue and roughly on disk.
    pub(super) fn size_bytes(&self) -> usize {
        const OVERHEAD: usize = 64;
        OVERHEAD
            + match self {
                Self::Append { entries, .. } => entries.iter().map(|e| e.data.len() + OVERHEAD / 2).sum(),
                Self::Vote(data) | Self::Committed(data) | Self::Purge { purged: data, .. } => data.len(),
                Self::KeepTo { data, .. } => data.as_ref().map_or(0, Bytes::len),
                Self::Empty { .. } | Self::Remove | Self::Nothing => 0,
            }
    }
}

/// One group's log as readers see it. Entries below the tail are on disk and current: an entry leaves the tail only
/// after it was synced, and what overwrites older entries starts the tail anew.
#[derive(Default)]
pub(super) struct GroupView {
    range: Range<u64>,
    purged: Option<u64>,
    emptied: bool,
    /// The last entries of `range`, each with the number of the write that brought it.
    tail: VecDeque<(u64, Bytes)>,
    tail_bytes: usize,
    /// Counts changes to entries that were there before, so that a read from disk notices one.
    changes: u64,
}

/// Where a read has to go on.
pub(super) enum Found {
    /// Everything asked for.
    Entries(Vec<LogEntry>),
    /// These are on disk.
    OnDisk { range: Range<u64>, changes: u64 },
}

impl GroupView {
    /// A group found on disk.
    pub(super) fn recovered(range: Range<u64>, purged: Option<u64>, emptied: bool) -> Self {
        Self { range, purged, emptied, ..Self::default() }
    }

    pub(super) fn range(&self) -> Range<u64> {
        self.range.clone()
    }

    pub(super) fn changes(&self) -> u64 {
        self.changes
    }

    fn tail_start(&self) -> u64 {
        self.range.end - self.tail.len() as u64
    }

    /// Makes a write visible and resolves it for the disk.
    ///
    /// # Panics
    /// If entries are not consecutive or leave a gap, see [`check_append`].
    pub(super) fn apply(&mut self, number: u64, op: LogOp) -> Write {
        match op {
            LogOp::Append(entries) if entries.is_empty() => Write::Nothing,
            LogOp::Append(entries) => self.append(number, entries),
            LogOp::Vote(vote) => Write::Vote(vote),
            LogOp::Committed(committed) => Write::Committed(committed),
            LogOp::TruncateAfter(last) => self.truncate(last),
            LogOp::Purge { index, .. } if self.purged.is_some_and(|purged| purged > index) => Write::Nothing,
            LogOp::Purge { index, purged } => {
                self.changes += 1;
                self.purged = Some(index);
                let mark = !self.range.is_empty() && index + 1 >= self.range.end;
                if self.range.is_empty() {
                    // Nothing to drop.
                } else if mark {
                    self.clear();
                    self.emptied = true;
                } else if index + 1 > self.range.start {
                    self.range.start = index + 1;
                    while self.tail_start() < self.range.start {
                        self.pop_tail();
                    }
                }
                Write::Purge { index, purged, mark }
            }
            LogOp::Remove => {
                *self = Self { changes: self.changes + 1, ..Self::default() };
                Write::Remove
            }
        }
    }

    fn append(&mut self, number: u64, entries: Vec<LogEntry>) -> Write {
        check_append(&entries, self.purged, self.range());
        let first = entries[0].index;
        let mut clear_to = None;
        let overwrites = first < self.range.end;
        if self.range.is_empty() {
            self.range = first..first;
        } else if overwrites {
            self.changes += 1;
            if first <= self.range.start {
                clear_to = Some(self.range.end);
                self.clear();
                self.range = first..first;
            } else {
                self.shorten(first);
            }
        }
        for entry in &entries {
            self.tail_bytes += entry.data.len();
            self.tail.push_back((number, entry.data.clone()));
        }
        self.range.end = first + entries.len() as u64;
        Write::Append { entries, overwrites, clear_to, unmark: std::mem::take(&mut self.emptied) }
    }

    fn truncate(&mut self, last: Option<u64>) -> Write {
        let end = last.map_or(0, |last| last + 1);
        if end >= self.range.end || self.range.is_empty() {
            return Write::Nothing;
        }
        self.changes += 1;
        if end <= self.range.start {
            let end = self.range.end;
            self.clear();
            self.emptied = true;
            return Write::Empty { end };
        }
        self.shorten(end);
        Write::KeepTo { index: end - 1, data: self.tail.back().map(|(_, data)| data.clone()) }
    }

    /// Drops the entries from `end` on.
    fn shorten(&mut self, end: u64) {
        while self.range.end > end {
            self.range.end -= 1;
            if let Some((_, data)) = self.tail.pop_back() {
                self.tail_bytes -= data.len();
            }
        }
    }

    fn clear(&mut self) {
        self.range = 0..0;
        self.tail.clear();
        self.tail_bytes = 0;
    }

    fn pop_tail(&mut self) {
        if let Some((_, data)) = self.tail.pop_front() {
            self.tail_bytes -= data.len();
        }
    }

    /// Drops from memory what is on disk and over the limit, given that all writes up to `durable` are synced.
    pub(super) fn trim(&mut self, durable: u64) {
        while self.tail_bytes > TAIL_BYTES && self.tail.front().is_some_and(|(number, _)| *number <= durable) {
            self.pop_tail();
        }
    }

    /// Looks for the entries of `range` that are present; at least one, then as many as fit into `max_bytes`.
    pub(super) fn read(&self, range: Range<u64>, max_bytes: usize) -> Found {
        let range = range.start.max(self.range.start)..range.end.min(self.range.end);
        if range.is_empty() {
            return Found::Entries(Vec::new());
        }
        let tail_start = self.tail_start();
        if range.start < tail_start {
            return Found::OnDisk { range: range.start..range.end.min(tail_start), changes: self.changes };
        }
        let mut entries = Vec::new();
        let mut bytes = 0usize;
        for index in range {
            let data = &self.tail[(index - tail_start) as usize].1;
            bytes = bytes.saturating_add(data.len());
            if bytes > max_bytes && !entries.is_empty() {
                break;
            }
            entries.push(LogEntry { index, data: data.clone() });
        }
        Found::Entries(entries)
    }
}
