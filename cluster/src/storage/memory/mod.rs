//! In-memory twins of the stores, for tests and simulations.
//!
//! Each twin keeps two pictures: what its open store shows, and what a crash would leave. A "disk" is the second one;
//! it is cheap to clone, outlives its stores and is opened again and again. Dropping a store without closing it is a
//! crash: what was not synced is gone. Opening a disk makes every older store of it useless, as if its process had
//! died: all its calls fail and none reaches the disk.
//!
//! [`MemoryStores`] can make the disks of a node slow, full, failing or lost, and crash them. What happens is drawn
//! from a generator that is given: the same one gives the same history.

mod faults;
mod log;
mod snapshots;
mod state;
mod stores;

pub use super::log_op::LogOp;
pub use faults::{Crash, DiskObserver, Store, Unsynced};
pub use log::{MemoryLogDisk, MemoryLogStore};
pub use snapshots::{MemorySnapshotDisk, MemorySnapshots};
pub use state::{MemoryState, MemoryStateDisk, StateOp};
pub use stores::MemoryStores;
