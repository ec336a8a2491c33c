//! Where the seed's decisions come from.

use std::ops::RangeInclusive;

use andante_cluster::env::Rng;
use parking_lot::Mutex;
use rand::{Rng as _, RngExt as _, SeedableRng as _, rngs::StdRng};
use xxhash_rust::xxh3::xxh3_64_with_seed;

/// A stream of random decisions. Streams of one seed differ by name: what one part of the simulation draws never moves
/// what another one gets, so a schedule from which a fault was struck meets the same workload.
#[derive(Debug)]
pub struct Dice(Mutex<StdRng>);

impl Dice {
    /// The stream of this name.
    pub fn new(seed: u64, stream: &str) -> Self {
        Self(Mutex::new(StdRng::seed_from_u64(xxh3_64_with_seed(stream.as_bytes(), seed))))
    }

    /// A number of the range, each as likely as the others.
    pub fn within(&self, range: RangeInclusive<u64>) -> u64 {
        self.0.lock().random_range(range)
    }

    /// True once in so many times.
    pub fn one_in(&self, times: u64) -> bool {
        self.within(1..=times) == 1
    }

    /// True with a probability.
    pub fn chance(&self, probability: f64) -> bool {
        self.0.lock().random_bool(probability)
    }

    /// A number in [0, 1).
    pub fn unit(&self) -> f64 {
        self.0.lock().random()
    }

    /// One of a list that is not empty.
    pub fn pick<'a, T>(&self, from: &'a [T]) -> &'a T {
        &from[self.below(from.len())]
    }

    /// A position in a list of this length.
    pub fn below(&self, len: usize) -> usize {
        self.within(0..=len as u64 - 1) as usize
    }

    /// So many different members of a list, in random order; all of them if there are not so many.
    pub fn several<T: Clone>(&self, from: &[T], count: usize) -> Vec<T> {
        let mut rest = from.to_vec();
        let mut chosen = Vec::new();
        while chosen.len() < count && !rest.is_empty() {
            chosen.push(rest.swap_remove(self.below(rest.len())));
        }
        chosen
    }
}

impl Rng for Dice {
    fn fill(&self, out: &mut [u8]) {
        self.0.lock().fill_bytes(out);
    }
}
