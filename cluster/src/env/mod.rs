//! The seams between a node and the world: clock, network, randomness, storage, threads.
//!
//! A node is built from an [`Env`]. Production versions live beside the traits; the simulation brings its own.
//! Nothing else in the workspace reads a clock, opens a socket, asks for entropy or starts an OS thread
//! (a test greps for it). Waiting is done with `tokio::time`, whose clock the simulation owns.

mod blocking;
mod clock;
mod network;
mod rng;

use std::sync::Arc;

pub use blocking::{Blocking, OsThreads};
pub use clock::{Clock, SystemClock};
pub use network::{Incoming, Io, Network, TcpNetwork};
pub use rng::{Rng, SystemRng};

use crate::storage::{DiskStores, LogEngineConfig, Stores};

/// Everything a node gets from the world. Cheap to clone; one per node.
#[derive(Clone)]
pub struct Env {
    /// Wall and monotonic time.
    pub clock: Arc<dyn Clock>,
    /// Connections out and in.
    pub network: Arc<dyn Network>,
    /// Randomness.
    pub rng: Arc<dyn Rng>,
    /// Threads for work that blocks.
    pub blocking: Arc<dyn Blocking>,
    /// Opens the log store, the state store and the snapshot files of a node.
    pub stores: Arc<dyn Stores>,
}

impl Env {
    /// The machine's clock, network, randomness, threads and disks.
    pub fn production() -> Self {
        let clock: Arc<dyn Clock> = Arc::new(SystemClock::default());
        Self {
            network: Arc::new(TcpNetwork),
            rng: Arc::new(SystemRng),
            blocking: Arc::new(OsThreads),
            stores: Arc::new(DiskStores::new(clock.clone(), LogEngineConfig::default())),
            clock,
        }
    }
}
