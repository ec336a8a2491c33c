//! Maps from keys that are hashes already.

use std::hash::{BuildHasherDefault, Hasher};

/// For maps whose keys are 64-bit hashes.
pub type KeyState = BuildHasherDefault<KeyHasher>;

/// Takes a key for its own hash.
#[derive(Debug, Default)]
pub struct KeyHasher(u64);

impl Hasher for KeyHasher {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, _: &[u8]) {
        unreachable!("only u64 keys are hashed");
    }

    fn write_u64(&mut self, key: u64) {
        self.0 = key;
    }
}
