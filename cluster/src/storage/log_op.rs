//! The writes of a log store as values, and what they mean.

use std::{collections::BTreeMap, ops::Range};

use bytes::Bytes;

use super::{LogEntry, RecoveredGroup};

/// One write to one group's log. See [`LogStore`](super::LogStore) for what each means.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LogOp {
    /// Entries, which replace anything at the same and higher indexes.
    Append(Vec<LogEntry>),
    /// The vote.
    Vote(Bytes),
    /// The committed log id.
    Committed(Bytes),
    /// Entries above this index are dropped; `None`: all.
    TruncateAfter(Option<u64>),
    /// Entries up to an index are dropped.
    Purge {
        /// The last of them, which need not be there.
        index: u64,
        /// Its encoded id.
        purged: Bytes,
    },
    /// Every trace of the group is removed.
    Remove,
}

/// One group's log as plain values: the meaning of each write.
#[derive(Debug, Clone, Default)]
pub(crate) struct GroupLog {
    vote: Option<Bytes>,
    committed: Option<Bytes>,
    purged: Option<(u64, Bytes)>,
    entries: BTreeMap<u64, Bytes>,
}

impl GroupLog {
    /// Applies one write.
    ///
    /// # Panics
    /// If entries are not consecutive, leave a gap behind the log or lie at or below the purged index: the caller's
    /// bug, which would lose entries if it went unnoticed.
    pub(crate) fn apply(&mut self, op: LogOp) {
        match op {
            LogOp::Append(entries) => self.append(entries),
            LogOp::Vote(vote) => self.vote = Some(vote),
            LogOp::Committed(committed) => self.committed = Some(committed),
            LogOp::TruncateAfter(last) => {
                let first_dropped = last.map_or(0, |last| last + 1);
                self.entries.split_off(&first_dropped);
            }
            LogOp::Purge { index, purged } => {
                // Purging never goes back: what is gone is gone.
                if self.purged.as_ref().is_none_or(|(old, _)| *old <= index) {
                    self.entries = self.entries.split_off(&(index + 1));
                    self.purged = Some((index, purged));
                }
            }
            LogOp::Remove => *self = Self::default(),
        }
    }

    fn append(&mut self, entries: Vec<LogEntry>) {
        let Some(first) = entries.first().map(|e| e.index) else { return };
        let purged = self.purged.as_ref().map(|(index, _)| *index);
        check_append(&entries, purged, self.range());
        self.entries.split_off(&first);
        self.entries.extend(entries.into_iter().map(|e| (e.index, e.data)));
    }

    /// Indexes of the entries present.
    pub(crate) fn range(&self) -> Range<u64> {
        match (self.entries.first_key_value(), self.entries.last_key_value()) {
            (Some((first, _)), Some((last, _))) => *first..*last + 1,
            _ => 0..0,
        }
    }

    /// Entries of `range` that are present, at least one, then as many as fit into `max_bytes`.
    pub(crate) fn read(&self, range: Range<u64>, max_bytes: usize) -> Vec<LogEntry> {
        if range.is_empty() {
            return Vec::new();
        }
        let mut bytes = 0usize;
        self.entries
            .range(range)
            .enumerate()
            .take_while(|(place, (_, data))| {
                bytes = bytes.saturating_add(data.len());
                *place == 0 || bytes <= max_bytes
            })
            .map(|(_, (index, data))| LogEntry { index: *index, data: data.clone() })
            .collect()
    }

    /// What a store reports about this group after opening; `None` if there is no trace of it.
    pub(crate) fn recovered(&self) -> Option<RecoveredGroup> {
        let found = RecoveredGroup {
            vote: self.vote.clone(),
            committed: self.committed.clone(),
            purged: self.purged.as_ref().map(|(_, id)| id.clone()),
            entries: self.range(),
        };
        (found != RecoveredGroup::default()).then_some(found)
    }

    /// Bytes of the entries.
    pub(crate) fn size_bytes(&self) -> u64 {
        self.entries.values().map(|data| data.len() as u64).sum()
    }
}

/// Checks that entries may be appended to a log that holds `present`.
///
/// # Panics
/// See [`GroupLog::apply`].
pub(crate) fn check_append(entries: &[LogEntry], purged: Option<u64>, present: Range<u64>) {
    let first = entries[0].index;
    assert!(entries.iter().zip(first..).all(|(e, index)| e.index == index), "entries to append are not consecutive");
    assert!(purged.is_none_or(|purged| first > purged), "append at {first}, but the log is purged to {purged:?}");
    assert!(present.is_empty() || first <= present.end, "append at {first} leaves a gap behind {present:?}");
}
