//! What happened, as one number: two runs of a seed must give the same.

use parking_lot::Mutex;
use xxhash_rust::xxh3::Xxh3;

/// A running hash over everything that must repeat: delivered messages, store writes, applied commands.
pub struct Trace(Mutex<State>);

struct State {
    hash: Xxh3,
    events: u64,
}

impl Default for Trace {
    fn default() -> Self {
        Self(Mutex::new(State { hash: Xxh3::new(), events: 0 }))
    }
}

impl Trace {
    /// Adds an event: its kind, where and when it happened, and its bytes.
    pub fn add(&self, kind: &str, place: &str, at_micros: u64, bytes: &[u8]) {
        let mut state = self.0.lock();
        state.events += 1;
        for part in [kind.as_bytes(), place.as_bytes(), &at_micros.to_le_bytes(), &bytes.len().to_le_bytes(), bytes] {
            state.hash.update(part);
        }
    }

    /// The hash so far, and of how many events.
    pub fn digest(&self) -> (u64, u64) {
        let state = self.0.lock();
        (state.hash.digest(), state.events)
    }
}
