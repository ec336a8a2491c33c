//! The node's idea of the time: the wall clock at start, carried on by the monotonic clock.
//!
//! A step of the wall clock must not close allowances early, so it is never followed blindly: what lies within the
//! skew margin is taken over, what lies beyond makes the clock *untrusted*. Then everything goes on by the monotonic
//! clock, but nothing is closed or purged until the wall clock comes back or an operator confirms it.

use std::sync::{
    Arc,
    atomic::{AtomicBool, AtomicI64, Ordering},
};

use andante_cluster::env::Clock;

/// The node's clock. Reading it takes one load and one reading of the monotonic clock.
pub struct NodeClock {
    source: Arc<dyn Clock>,
    /// Wall milliseconds minus monotonic milliseconds.
    offset_ms: AtomicI64,
    margin_ms: u64,
    trusted: AtomicBool,
}

impl NodeClock {
    /// Starts from the wall clock of `source`; `margin_ms` is how far clocks may differ.
    pub fn new(source: Arc<dyn Clock>, margin_ms: u64) -> Self {
        let offset = source.now_ms() as i64 - (source.monotonic_micros() / 1_000) as i64;
        Self { source, offset_ms: AtomicI64::new(offset), margin_ms, trusted: AtomicBool::new(true) }
    }

    /// UTC milliseconds; never steps by more than the margin unless an operator said so.
    pub fn now_ms(&self) -> u64 {
        let mono_ms = (self.source.monotonic_micros() / 1_000) as i64;
        u64::try_from(mono_ms + self.offset_ms.load(Ordering::Relaxed)).unwrap_or(0)
    }

    /// Milliseconds of the monotonic clock.
    pub fn monotonic_ms(&self) -> u64 {
        self.source.monotonic_micros() / 1_000
    }

    /// Microseconds of the monotonic clock.
    pub fn monotonic_micros(&self) -> u64 {
        self.source.monotonic_micros()
    }

    /// Whether closings and purges may go by this clock.
    pub fn trusted(&self) -> bool {
        self.trusted.load(Ordering::Relaxed)
    }

    /// Compares with the wall clock; called every tick. Says whether trust changed.
    pub fn check(&self) -> bool {
        let drift = self.drift_ms();
        let trusted = drift.unsigned_abs() <= self.margin_ms;
        if trusted {
            self.offset_ms.fetch_add(drift, Ordering::Relaxed);
        }
        self.trusted.swap(trusted, Ordering::Relaxed) != trusted
    }

    /// How far the wall clock is ahead of this one.
    pub fn drift_ms(&self) -> i64 {
        self.source.now_ms() as i64 - self.now_ms() as i64
    }

    /// An operator confirms the wall clock, naming the time by their own: it is followed from now on. Refused, with
    /// the wall clock's reading, when the two differ by more than the margin.
    pub fn confirm(&self, expected_now_ms: u64) -> Result<u64, u64> {
        let wall = self.source.now_ms();
        if wall.abs_diff(expected_now_ms) > self.margin_ms {
            return Err(wall);
        }
        self.offset_ms.fetch_add(self.drift_ms(), Ordering::Relaxed);
        self.trusted.store(true, Ordering::Relaxed);
        Ok(wall)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicU64;

    use super::*;

    #[derive(Default)]
    struct Hands {
        wall_ms: AtomicU64,
        mono_micros: AtomicU64,
    }

    impl Hands {
        fn pass(&self, ms: u64) {
            self.wall_ms.fetch_add(ms, Ordering::Relaxed);
            self.mono_micros.fetch_add(ms * 1_000, Ordering::Relaxed);
        }
    }

    impl Clock for Hands {
        fn now_ms(&self) -> u64 {
            self.wall_ms.load(Ordering::Relaxed)
        }
        fn monotonic_micros(&self) -> u64 {
            self.mono_micros.load(Ordering::Relaxed)
        }
    }

    fn clock_at(wall_ms: u64) -> (Arc<Hands>, NodeClock) {
        let hands = Arc::new(Hands::default());
        hands.wall_ms.store(wall_ms, Ordering::Relaxed);
        hands.mono_micros.store(77_000, Ordering::Relaxed);
        (hands.clone(), NodeClock::new(hands, 5_000))
    }

    #[test]
    fn it_follows_small_corrections() {
        let (hands, clock) = clock_at(1_000_000);
        hands.pass(100);
        hands.wall_ms.fetch_sub(40, Ordering::Relaxed);
        assert!(!clock.check());
        assert_eq!(clock.now_ms(), 1_000_060);
        assert!(clock.trusted());
    }

    #[test]
    fn a_step_beyond_the_margin_is_not_followed_until_an_operator_confirms_it() {
        let (hands, clock) = clock_at(1_000_000);
        hands.wall_ms.fetch_add(3_600_000, Ordering::Relaxed);
        assert!(clock.check());
        assert!(!clock.trusted());
        hands.pass(10);
        assert_eq!(clock.now_ms(), 1_000_010, "goes on by the monotonic clock");
        assert_eq!(clock.confirm(1_000_000), Err(4_600_010), "the operator's clock disagrees");
        assert!(!clock.trusted());
        assert_eq!(clock.confirm(4_600_000), Ok(4_600_010));
        assert!(clock.trusted());
        assert_eq!(clock.now_ms(), 4_600_010);
    }

    #[test]
    fn a_wall_clock_that_comes_back_is_trusted_again() {
        let (hands, clock) = clock_at(1_000_000);
        hands.wall_ms.fetch_sub(60_000, Ordering::Relaxed);
        clock.check();
        assert!(!clock.trusted());
        hands.wall_ms.fetch_add(60_000, Ordering::Relaxed);
        assert!(clock.check());
        assert!(clock.trusted());
    }
}
