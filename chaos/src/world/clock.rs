//! Clocks that lie.

use std::sync::{
    Arc,
    atomic::{AtomicI64, Ordering},
};

use andante_cluster::env::Clock;
use tokio::time::{Duration, Instant};

/// What the simulation's first moment is called by a clock that tells the truth, UTC milliseconds.
pub const EPOCH_MS: u64 = 1_800_000_000_000;

/// How a host's clock differs from the truth; the same through all lives of the host. Faults turn it.
#[derive(Debug, Default)]
pub struct Skew {
    offset_micros: AtomicI64,
    /// Parts per million by which it runs too fast.
    drift_ppm: AtomicI64,
    /// The true time since when it drifts like that; what it had drifted before is in the offset.
    since_micros: AtomicI64,
}

impl Skew {
    /// The true time, as this clock shows it.
    fn shown_micros(&self, true_micros: i64) -> i64 {
        true_micros + self.offset_micros.load(Ordering::Relaxed) + self.drifted_micros(true_micros)
    }

    fn drifted_micros(&self, true_micros: i64) -> i64 {
        let since = true_micros - self.since_micros.load(Ordering::Relaxed);
        since * self.drift_ppm.load(Ordering::Relaxed) / 1_000_000
    }

    /// By how much it is ahead now, milliseconds; negative: behind.
    pub fn ahead_ms(&self, true_elapsed: Duration) -> i64 {
        let true_micros = true_elapsed.as_micros() as i64;
        (self.shown_micros(true_micros) - true_micros) / 1_000
    }

    /// Steps it.
    pub fn step_ms(&self, by_ms: i64) {
        self.offset_micros.fetch_add(by_ms * 1_000, Ordering::Relaxed);
    }

    /// From now on it runs too fast by so many parts per million, or too slow.
    pub fn drift(&self, true_elapsed: Duration, ppm: i64) {
        let true_micros = true_elapsed.as_micros() as i64;
        self.offset_micros.fetch_add(self.drifted_micros(true_micros), Ordering::Relaxed);
        self.since_micros.store(true_micros, Ordering::Relaxed);
        self.drift_ppm.store(ppm, Ordering::Relaxed);
    }

    /// From now on it tells the truth.
    pub fn heal(&self) {
        self.drift_ppm.store(0, Ordering::Relaxed);
        self.offset_micros.store(0, Ordering::Relaxed);
    }
}

/// The true time of the simulation: since its first moment, as it is on the host that asks.
pub fn true_elapsed() -> Duration {
    turmoil::sim_elapsed().unwrap_or_default()
}

/// The true time, UTC milliseconds.
pub fn true_now_ms() -> u64 {
    EPOCH_MS + true_elapsed().as_millis() as u64
}

/// The clock of one life of a host. Its monotonic time starts anew with each life and is true.
#[derive(Debug)]
pub struct SkewedClock {
    start: Instant,
    skew: Arc<Skew>,
}

impl SkewedClock {
    /// A clock for a host that starts now.
    pub fn new(skew: Arc<Skew>) -> Self {
        Self { start: Instant::now(), skew }
    }
}

impl Clock for SkewedClock {
    fn now_ms(&self) -> u64 {
        let shown_ms = self.skew.shown_micros(true_elapsed().as_micros() as i64) / 1_000;
        EPOCH_MS.saturating_add_signed(shown_ms)
    }

    fn monotonic_micros(&self) -> u64 {
        self.start.elapsed().as_micros() as u64
    }
}
