//! Numbers that look random and are a function of seed, row and purpose: the same for every policy and every run.

use xxhash_rust::xxh3::xxh3_64_with_seed;

/// Uniform in [0, 1).
pub(super) fn uniform(seed: u64, row: u64, purpose: u64) -> f64 {
    (bits(seed, row, purpose) >> 11) as f64 / (1u64 << 53) as f64
}

/// 64 mixed bits.
pub(super) fn bits(seed: u64, row: u64, purpose: u64) -> u64 {
    let mut key = [0; 16];
    key[..8].copy_from_slice(&row.to_le_bytes());
    key[8..].copy_from_slice(&purpose.to_le_bytes());
    xxh3_64_with_seed(&key, seed)
}
