//! Randomness.

use rand::{TryRng, rngs::SysRng};

/// The only source of randomness; good enough for keys.
pub trait Rng: Send + Sync + 'static {
    /// Fills `out` with random bytes.
    fn fill(&self, out: &mut [u8]);

    /// A random number.
    fn u64(&self) -> u64 {
        let mut bytes = [0; 8];
        self.fill(&mut bytes);
        u64::from_le_bytes(bytes)
    }
}

/// The operating system's generator.
#[derive(Debug, Default)]
pub struct SystemRng;

impl Rng for SystemRng {
    fn fill(&self, out: &mut [u8]) {
        // Without entropy neither keys nor ids can be made; there is nothing sensible to go on with.
        SysRng.try_fill_bytes(out).expect("the operating system gives no randomness");
    }
}
