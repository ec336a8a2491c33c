//! The queue between callers and the writer, with all groups as readers see them.

use std::{
    collections::{BTreeMap, VecDeque},
    io,
    ops::Range,
};

use parking_lot::{Condvar, Mutex, MutexGuard};

use super::{
    super::{LogEntry, OnFlush, log_op::LogOp},
    view::{Found, GroupView, Write},
};
use crate::GroupId;

/// What may wait for the writer. Callers are slowed down behind it; it takes a disk that hangs for seconds to get
/// there, since the layers above admit far less.
const MAX_QUEUED_BYTES: usize = 64 * 1024 * 1024;
/// What one batch takes from the queue; beyond it, larger batches gain nothing and delay their callbacks.
const MAX_BATCH_BYTES: usize = 4 * 1024 * 1024;
/// Writes that wait for no sync start one when there are so many, which bounds them on an idle node.
const MAX_LAZY_WRITES: usize = 1024;

/// A write on its way to the disk.
pub(super) struct Queued {
    pub(super) group: GroupId,
    pub(super) write: Write,
    pub(super) done: Option<OnFlush>,
}

/// How far the store has come to its end.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Phase {
    Open,
    /// Drain, then close.
    Closing,
    /// Files are closed; calls are refused.
    Closed,
}

/// What the writer is to do next.
pub(super) enum Work {
    /// Write these as one batch.
    Write,
    /// Refuse these: the store failed or is closed.
    Refuse(io::Error),
    /// Nothing to write; store what the witness lacks.
    Idle,
    /// Close the files, the queue is drained.
    Close,
    /// The store was dropped.
    End,
}

/// Shared by callers, writer and helpers.
pub(super) struct Queue {
    state: Mutex<State>,
    work: Condvar,
    /// Room in the queue, or progress towards the end.
    progress: Condvar,
}

struct State {
    groups: BTreeMap<GroupId, GroupView>,
    queued: VecDeque<Queued>,
    queued_bytes: usize,
    /// Somebody waits for a sync.
    wanted: bool,
    /// Number of the last write queued, and of the last one taken by the writer.
    last: u64,
    taken: u64,
    phase: Phase,
    dropped: bool,
    /// The writer has ended.
    ended: bool,
    /// Helper threads alive.
    helpers: usize,
    /// Sticky.
    error: Option<(io::ErrorKind, String)>,
}

impl State {
    fn check(&self) -> io::Result<()> {
        match (&self.error, self.phase) {
            (Some((kind, message)), _) => Err(io::Error::new(*kind, message.clone())),
            (None, Phase::Open) => Ok(()),
            (None, _) => Err(closed()),
        }
    }
}

fn closed() -> io::Error {
    io::Error::new(io::ErrorKind::BrokenPipe, "the log store is closed")
}

impl Queue {
    pub(super) fn new(groups: BTreeMap<GroupId, GroupView>, helpers: usize) -> Self {
        Self {
            state: Mutex::new(State {
                groups,
                queued: VecDeque::new(),
                queued_bytes: 0,
                wanted: false,
                last: 0,
                taken: 0,
                phase: Phase::Open,
                dropped: false,
                ended: false,
                helpers,
                error: None,
            }),
            work: Condvar::new(),
            progress: Condvar::new(),
        }
    }

    // For callers.

    /// Queues a write and makes it visible, unless the store failed or is closed. Waits while the queue is full.
    pub(super) fn push(&self, group: GroupId, op: LogOp, done: Option<OnFlush>) {
        let mut state = self.state.lock();
        while state.queued_bytes > MAX_QUEUED_BYTES {
            self.progress.wait(&mut state);
        }
        state.last += 1;
        let number = state.last;
        let write = match state.check() {
            Ok(()) => state.groups.entry(group).or_default().apply(number, op),
            Err(_) => Write::Nothing,
        };
        state.queued_bytes += write.size_bytes();
        state.wanted |= done.is_some() || state.queued.len() >= MAX_LAZY_WRITES;
        state.queued.push_back(Queued { group, write, done });
        if state.wanted {
            self.work.notify_one();
        }
    }

    /// Reads from memory, or says what to read from disk.
    pub(super) fn read(&self, group: GroupId, range: Range<u64>, max_bytes: usize) -> io::Result<Found> {
        let state = self.state.lock();
        state.check()?;
        Ok(state.groups.get(&group).map_or(Found::Entries(Vec::new()), |view| view.read(range, max_bytes)))
    }

    /// Whether entries of a group were changed since [`Queue::read`] said where they are.
    pub(super) fn changed(&self, group: GroupId, changes: u64) -> bool {
        self.state.lock().groups.get(&group).is_none_or(|view| view.changes() != changes)
    }

    /// Drains the queue, and waits until all files are closed.
    pub(super) fn close(&self) -> io::Result<()> {
        let mut state = self.state.lock();
        state.check()?;
        state.phase = Phase::Closing;
        self.work.notify_one();
        while state.phase != Phase::Closed {
            self.progress.wait(&mut state);
        }
        match &state.error {
            None => Ok(()),
            Some((kind, message)) => Err(io::Error::new(*kind, message.clone())),
        }
    }

    /// Ends the writer as soon as it is through with its batch; waits for it if `wait`.
    pub(super) fn drop_store(&self, wait: bool) {
        let mut state = self.state.lock();
        state.dropped = true;
        self.work.notify_one();
        while wait && !state.ended {
            self.progress.wait(&mut state);
        }
    }

    // For the writer and its helpers.

    /// Waits for work; fills `batch` in queue order. Waits for ever if `lag` is false, else a second at most.
    pub(super) fn next(&self, batch: &mut Vec<Queued>, lag: bool) -> Work {
        let mut state = self.state.lock();
        loop {
            let refused = state.error.is_some() || state.phase == Phase::Closed || state.dropped;
            if refused && !state.queued.is_empty() {
                take(&mut state, batch, usize::MAX);
                self.progress.notify_all();
                return Work::Refuse(state.check().err().unwrap_or_else(closed));
            }
            if state.dropped {
                return Work::End;
            }
            if state.phase == Phase::Closing && state.queued.is_empty() {
                return Work::Close;
            }
            if !state.queued.is_empty() && (state.wanted || state.phase == Phase::Closing) {
                take(&mut state, batch, MAX_BATCH_BYTES);
                self.progress.notify_all();
                return Work::Write;
            }
            if !lag || state.error.is_some() {
                self.work.wait(&mut state);
            } else if self.work.wait_for(&mut state, super::WITNESS_INTERVAL).timed_out() {
                return Work::Idle;
            }
        }
    }

    /// What was taken is durable: `batch` may leave memory.
    pub(super) fn durable(&self, batch: &[Queued]) {
        let mut state = self.state.lock();
        let durable = state.taken;
        for queued in batch {
            if let Some(view) = state.groups.get_mut(&queued.group) {
                view.trim(durable);
            }
        }
    }

    /// Fails the store for good. The first error stays.
    pub(super) fn fail(&self, error: &io::Error) {
        let mut state = self.state.lock();
        state.error.get_or_insert_with(|| (error.kind(), error.to_string()));
        self.work.notify_one();
    }

    /// A helper has released its files.
    pub(super) fn helper_ended(&self) {
        self.state.lock().helpers -= 1;
        self.progress.notify_all();
    }

    /// Waits until no helper has files open.
    pub(super) fn wait_for_helpers(&self) {
        let mut state: MutexGuard<'_, State> = self.state.lock();
        while state.helpers > 0 {
            self.progress.wait(&mut state);
        }
    }

    /// The writer has closed the files.
    pub(super) fn set_closed(&self) {
        self.state.lock().phase = Phase::Closed;
        self.progress.notify_all();
    }

    /// The writer ends.
    pub(super) fn set_ended(&self) {
        self.state.lock().ended = true;
        self.progress.notify_all();
    }
}

fn take(state: &mut State, batch: &mut Vec<Queued>, max_bytes: usize) {
    let mut bytes = 0;
    while bytes < max_bytes
        && let Some(queued) = state.queued.pop_front()
    {
        let size = queued.write.size_bytes();
        bytes += size;
        state.queued_bytes -= size;
        state.taken += 1;
        batch.push(queued);
    }
    state.wanted = state.queued.iter().any(|queued| queued.done.is_some());
}

/// Entries in read order with the room they leave.
pub(super) fn append_read(to: &mut Vec<LogEntry>, entries: Vec<LogEntry>, room: &mut usize) {
    for entry in entries {
        if !to.is_empty() && entry.data.len() > *room {
            *room = 0;
            return;
        }
        *room = room.saturating_sub(entry.data.len());
        to.push(entry);
    }
}
