//! The node's idea of the time: the wall clock at start, carried on by the monotonic clock.
//!
//! A step of the wall clock must not close allowances early, so it is never followed blindly: what lies within the
//! skew margin is taken over, what lies beyond makes the clock *untrusted*. Then everything goes on by the monotonic
//! clock, but nothing is closed or purged until the wall clock comes back, a majority of the voters shows the same
//! time, or an operator confirms it. A clock from which a majority differs is not trusted either, even without a step:
//! the node may have started with it.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicI64, Ordering},
    },
};

use andante_cluster::{NodeId, env::Clock};
use parking_lot::Mutex;

use crate::settings::SettingsInForce;

/// Readings of other nodes' clocks count for so long: some rounds of asking.
const READING_MS: u64 = 10_000;

/// What the voters' wall clocks say about this node's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Majority {
    /// More than half of them, this one included, show its time.
    Agrees,
    /// More than half of them show other times.
    Differs,
    /// Too few were heard of, or there is only one.
    Silent,
}

/// Compares this node's wall clock with those of the other voters, all read at one moment in milliseconds; `voters`
/// counts this node too.
pub fn majority(own_ms: i64, others_ms: impl IntoIterator<Item = i64>, voters: usize, margin_ms: u64) -> Majority {
    let (near, far): (Vec<_>, Vec<_>) = others_ms.into_iter().partition(|ms| ms.abs_diff(own_ms) <= margin_ms);
    if voters > 1 && (near.len() + 1) * 2 > voters {
        Majority::Agrees
    } else if far.len() * 2 > voters {
        Majority::Differs
    } else {
        Majority::Silent
    }
}

/// Another node's wall clock.
#[derive(Debug, Clone, Copy)]
struct Reading {
    /// Its wall milliseconds minus this node's monotonic ones: a step of this node's wall clock does not change it.
    offset_ms: i64,
    /// Monotonic time.
    read_ms: u64,
}

/// The node's clock. Reading it takes one load and one reading of the monotonic clock.
pub struct NodeClock {
    source: Arc<dyn Clock>,
    /// Wall milliseconds minus monotonic milliseconds.
    offset_ms: AtomicI64,
    /// The skew margin among them says how far clocks may differ.
    settings: SettingsInForce,
    trusted: AtomicBool,
    readings: Mutex<BTreeMap<NodeId, Reading>>,
}

impl NodeClock {
    /// Starts from the wall clock of `source`; the skew margin in `settings` is how far clocks may differ.
    pub fn new(source: Arc<dyn Clock>, settings: SettingsInForce) -> Self {
        let offset = source.now_ms() as i64 - (source.monotonic_micros() / 1_000) as i64;
        let (offset_ms, trusted, readings) = (AtomicI64::new(offset), AtomicBool::new(true), Mutex::default());
        Self { source, offset_ms, settings, trusted, readings }
    }

    fn margin_ms(&self) -> u64 {
        self.settings.get().skew_margin_ms
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

    /// The wall clock as it is, for other nodes to compare with.
    pub fn wall_ms(&self) -> u64 {
        self.source.now_ms()
    }

    /// Another node's wall clock was read: the question left at `asked_ms` of the monotonic clock, the answer has just
    /// come. One that took longer than the margin says nothing.
    pub fn heard(&self, node: NodeId, wall_ms: u64, asked_ms: u64) {
        let read_ms = self.monotonic_ms();
        let round_trip_ms = read_ms.saturating_sub(asked_ms);
        if round_trip_ms <= self.margin_ms() {
            let offset_ms = wall_ms as i64 - (read_ms - round_trip_ms / 2) as i64;
            self.readings.lock().insert(node, Reading { offset_ms, read_ms });
        }
    }

    /// Only these nodes, this one left out, have a say.
    pub fn set_others(&self, others: &BTreeSet<NodeId>) {
        self.readings.lock().retain(|node, _| others.contains(node));
    }

    /// What the voters' clocks say about this one's.
    fn majority(&self, voters: usize) -> Majority {
        let monotonic_ms = self.monotonic_ms();
        let readings = self.readings.lock();
        let fresh = readings.values().filter(|reading| reading.read_ms + READING_MS >= monotonic_ms);
        let own_ms = self.source.now_ms() as i64 - monotonic_ms as i64;
        majority(own_ms, fresh.map(|reading| reading.offset_ms), voters, self.margin_ms())
    }

    /// Compares with the wall clock and with those of the other voters (`voters` counts this node too); called every
    /// tick. Says whether trust changed.
    pub fn check(&self, voters: usize) -> bool {
        let drift = self.drift_ms();
        let small = drift.unsigned_abs() <= self.margin_ms();
        let trusted = match self.majority(voters) {
            Majority::Agrees => true,
            Majority::Differs => false,
            Majority::Silent => small,
        };
        if trusted || small {
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
        if wall.abs_diff(expected_now_ms) > self.margin_ms() {
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
    use crate::settings::{ClusterSettings, VersionedSettings};

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
        (hands.clone(), NodeClock::new(hands, SettingsInForce::fixed(ClusterSettings::default())))
    }

    #[test]
    fn it_follows_small_corrections() {
        let (hands, clock) = clock_at(1_000_000);
        hands.pass(100);
        hands.wall_ms.fetch_sub(40, Ordering::Relaxed);
        assert!(!clock.check(1));
        assert_eq!(clock.now_ms(), 1_000_060);
        assert!(clock.trusted());
    }

    #[test]
    fn a_step_beyond_the_margin_is_not_followed_until_an_operator_confirms_it() {
        let (hands, clock) = clock_at(1_000_000);
        hands.wall_ms.fetch_add(3_600_000, Ordering::Relaxed);
        assert!(clock.check(1));
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
    fn a_majority_of_the_voters_decides_about_a_clock() {
        use Majority::{Agrees, Differs, Silent};
        for (others, voters, expected) in [
            (&[][..], 1, Silent),
            (&[0], 3, Agrees),
            (&[5_000], 3, Agrees),
            (&[5_001], 3, Silent),
            (&[9_000, -9_000], 3, Differs),
            (&[9_000, 0], 3, Agrees),
            (&[0], 5, Silent),
            (&[0, 0], 5, Agrees),
            (&[9_000, 9_000], 5, Silent),
            (&[9_000, 9_000, 9_000, 0], 5, Differs),
            (&[0], 2, Agrees),
            (&[9_000], 2, Silent),
        ] {
            assert_eq!(majority(0, others.iter().copied(), voters, 5_000), expected, "{others:?} of {voters}");
        }
    }

    #[test]
    fn a_step_is_followed_once_most_voters_show_it_and_a_lonely_one_is_not_trusted() {
        let (hands, clock) = clock_at(1_000_000);
        let hear = |wall_ms| (2..4).for_each(|node| clock.heard(node, wall_ms, clock.monotonic_ms()));
        hear(1_000_000);
        hands.wall_ms.fetch_add(3_600_000, Ordering::Relaxed);
        assert!(clock.check(3), "the others show another time");
        assert_eq!(clock.now_ms(), 1_000_000);
        hear(4_600_000);
        assert!(clock.check(3));
        assert!(clock.trusted());
        assert_eq!(clock.now_ms(), 4_600_000);

        hear(1_000_000);
        assert!(clock.check(3), "without a step of its own");
        hands.pass(READING_MS + 1);
        assert!(clock.check(3), "what was read long ago says nothing");
        assert!(clock.trusted());
        clock.heard(2, 1_000_000, 0);
        clock.heard(3, 1_000_000, 0);
        assert!(!clock.check(3), "answers that took too long say nothing");
    }

    #[test]
    fn a_new_margin_holds_at_once() {
        let (hands, clock) = clock_at(1_000_000);
        hands.wall_ms.fetch_add(6_000, Ordering::Relaxed);
        assert!(clock.check(1), "beyond 5 s");
        for (revision, skew_margin_ms, changes) in [(1, 8_000, true), (2, 8_000, false)] {
            let settings = ClusterSettings { skew_margin_ms, ..ClusterSettings::default() };
            clock.settings.advance(VersionedSettings { settings, revision });
            assert_eq!(clock.check(1), changes, "revision {revision}");
        }
        assert!(clock.trusted());
        assert_eq!(clock.now_ms(), 1_006_000);
    }

    #[test]
    fn a_wall_clock_that_comes_back_is_trusted_again() {
        let (hands, clock) = clock_at(1_000_000);
        hands.wall_ms.fetch_sub(60_000, Ordering::Relaxed);
        clock.check(1);
        assert!(!clock.trusted());
        hands.wall_ms.fetch_add(60_000, Ordering::Relaxed);
        assert!(clock.check(1));
        assert!(clock.trusted());
    }
}
