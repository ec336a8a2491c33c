//! What can go wrong with a simulated disk, and who is told what it holds.

use std::{io, sync::Arc};

use rustix::io::Errno;

use super::StateOp;
use crate::{
    GroupId,
    env::Rng,
    storage::{SnapshotInfo, log_op::LogOp},
};

/// One of the stores of a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Store {
    /// Log and votes.
    Log,
    /// Records.
    State,
    /// Snapshots.
    Snapshots,
}

/// What becomes of data that was written but not synced, when the sync fails or the machine stops.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unsynced {
    /// None of it is on the disk.
    Lost,
    /// A part of it is. The log finds that at the next open and cuts it off; the state store has the first half of its
    /// steps; of a snapshot nothing is seen.
    Torn,
    /// All of it is, though nobody was told so.
    Written,
}

impl Unsynced {
    /// Draws one of the three.
    pub fn draw(rng: &dyn Rng) -> Self {
        match rng.u64() % 3 {
            0 => Self::Lost,
            1 => Self::Torn,
            _ => Self::Written,
        }
    }
}

/// What a crash did to unsynced data. What was only queued for the log never reached the disk, and isn't counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Crash {
    /// What became of the batch that the log was syncing, and how many writes it had; `None`: it was syncing none.
    pub log_batch: Option<(Unsynced, usize)>,
    /// Unsynced steps of the state store that are durable: the first ones.
    pub state_written: usize,
    /// Those that are lost.
    pub state_lost: usize,
}

/// Is told what becomes durable on the disks of one node, in order: acknowledged or not, also by a crash.
///
/// Called with the disk locked: an observer must not call it.
pub trait DiskObserver: Send + Sync + 'static {
    /// A write to a group's log became durable.
    fn log(&self, _group: GroupId, _op: &LogOp) {}
    /// A step of a group's records became durable.
    fn state(&self, _group: GroupId, _op: &StateOp) {}
    /// A group's snapshot was published, or removed (`None`).
    fn snapshot(&self, _group: GroupId, _published: Option<&SnapshotInfo>) {}
}

/// The faults of one disk.
#[derive(Default)]
pub(super) struct Faults {
    /// Nothing can be written.
    pub(super) full: bool,
    /// The next sync fails.
    pub(super) fail_next_sync: Option<Unsynced>,
    pub(super) observer: Option<Arc<dyn DiskObserver>>,
}

impl Faults {
    /// Asked before anything is written.
    pub(super) fn check_space(&self) -> io::Result<()> {
        if self.full { Err(Errno::NOSPC.into()) } else { Ok(()) }
    }

    /// Syncs what was written. Gives its fate, and the outcome that the store sees.
    pub(super) fn sync(&mut self) -> (Unsynced, io::Result<()>) {
        match self.fail_next_sync.take() {
            None => (Unsynced::Written, Ok(())),
            Some(unsynced) => (unsynced, Err(Errno::IO.into())),
        }
    }

    /// Tells the observer, if there is one.
    pub(super) fn observed(&self, tell: impl FnOnce(&dyn DiskObserver)) {
        if let Some(observer) = &self.observer {
            tell(&**observer);
        }
    }
}
