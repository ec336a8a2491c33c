//! Actors own, cells serve.
//!
//! - [`node`]: the node's supervisor and its one ticker.
//! - [`supervisor`]: one per shard; `children`: starts, restarts and quarantines campaigns; `entries`: makes one log
//!   entry per tick.
//! - [`campaign`]: one per active campaign; hands its allowances to its cell.
//! - [`cell`], [`block`], [`traffic`]: what the score path reads and writes, without messages.
//! - [`role`], `takeover`: what who leads means for all of them.
//! - [`shard`]: the book and the cells of a shard, and the book as the cluster's machine.
//! - [`proposer`]: batches outcomes into log entries. Settling needs no actor.
//! - [`supervision`], [`clock`]: when to restart, what time it is; values in, values out.

pub mod block;
pub mod campaign;
pub mod cell;
mod children;
pub mod clock;
mod entries;
pub mod node;
pub mod proposer;
pub mod role;
pub mod shard;
pub mod supervision;
pub mod supervisor;
mod takeover;
pub mod traffic;

pub use cell::{Ask, Cell, Life, TakeRefused, Taken, track_key};
pub use clock::NodeClock;
pub(crate) use proposer::known_status;
pub use proposer::{Fate, Proposer};
pub use role::Role;
pub use shard::{BookMachine, BookObserver, CellObserver, Shard, ShardTable};
pub use traffic::Lost;
