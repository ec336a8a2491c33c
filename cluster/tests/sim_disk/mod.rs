//! What the tests of simulated disks share: generators to draw from.
#![allow(dead_code, reason = "each test binary uses its part")]

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use andante_cluster::{env::Rng, storage::memory::MemoryStores};

/// SplitMix64: a seed gives always the same numbers.
pub(crate) struct Seeded(AtomicU64);

impl Seeded {
    pub(crate) fn new(seed: u64) -> Self {
        Self(AtomicU64::new(seed))
    }
}

impl Rng for Seeded {
    fn fill(&self, out: &mut [u8]) {
        for chunk in out.chunks_mut(8) {
            let step = 0x9e37_79b9_7f4a_7c15u64;
            let mut z = self.0.fetch_add(step, Ordering::SeqCst).wrapping_add(step);
            z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            chunk.copy_from_slice(&(z ^ (z >> 31)).to_le_bytes()[..chunk.len()]);
        }
    }
}

/// Always the same number.
pub(crate) struct Drawn(pub(crate) u64);

impl Rng for Drawn {
    fn fill(&self, out: &mut [u8]) {
        out.copy_from_slice(&self.0.to_le_bytes()[..out.len()]);
    }
}

/// Disks whose log takes up to 20 ms to sync.
pub(crate) fn slow_stores(seed: u64) -> MemoryStores {
    let stores = MemoryStores::default();
    stores.set_sync_time(Duration::ZERO, Duration::from_millis(20), Arc::new(Seeded::new(seed)));
    stores
}
