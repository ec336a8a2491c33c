//! Time.

use std::time::{Instant, SystemTime, UNIX_EPOCH};

/// The only source of time. Waiting is done with `tokio::time`.
pub trait Clock: Send + Sync + 'static {
    /// Wall clock, UTC milliseconds. May step in both directions.
    fn now_ms(&self) -> u64;
    /// Microseconds since some fixed point of this process. Never goes back.
    fn monotonic_micros(&self) -> u64;
}

/// The machine's clock.
#[derive(Debug)]
pub struct SystemClock {
    start: Instant,
}

impl Default for SystemClock {
    fn default() -> Self {
        Self { start: Instant::now() }
    }
}

impl Clock for SystemClock {
    fn now_ms(&self) -> u64 {
        // A clock before 1970 reads as 0: far beyond the skew margin, hence reported and not used.
        SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_millis() as u64)
    }

    fn monotonic_micros(&self) -> u64 {
        self.start.elapsed().as_micros() as u64
    }
}
