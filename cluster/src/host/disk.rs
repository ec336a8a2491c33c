//! Watches the free space of the data directory's disk.

use std::{
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use crate::{env::Blocking, storage::Stores};

/// Time between two looks: a disk fills slowly compared with the reserve, and a look is one system call.
const LOOK_EVERY: Duration = Duration::from_secs(5);

/// Knows whether the disk is nearly full.
#[derive(Debug)]
pub(super) struct DiskGuard {
    min_free_bytes: u64,
    low: AtomicBool,
}

impl DiskGuard {
    pub(super) fn new(min_free_bytes: u64) -> Arc<Self> {
        Arc::new(Self { min_free_bytes, low: AtomicBool::new(false) })
    }

    pub(super) fn is_low(&self) -> bool {
        self.low.load(Ordering::Relaxed)
    }

    /// Looks now and then, for ever.
    pub(super) async fn run(self: Arc<Self>, stores: Arc<dyn Stores>, blocking: Arc<dyn Blocking>, dir: PathBuf) {
        loop {
            let (stores, dir) = (stores.clone(), dir.clone());
            match blocking.call(move || stores.free_bytes(&dir)).await {
                Some(Ok(free_bytes)) => self.look(free_bytes),
                // Not knowing is no reason to refuse work: a full disk will say so itself.
                Some(Err(e)) => tracing::warn!(error = %e, "the free space of the disk is unknown"),
                None => return,
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }

    fn look(&self, free_bytes: u64) {
        // It is low below the limit and no longer low a tenth above it, so that it does not flicker.
        let limit = if self.is_low() { self.min_free_bytes + self.min_free_bytes / 10 } else { self.min_free_bytes };
        let low = free_bytes < limit;
        if self.low.swap(low, Ordering::Relaxed) != low {
            tracing::warn!(low, free_bytes, min_free_bytes = self.min_free_bytes, "free space of the disk");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_disk_is_low_below_the_limit_and_until_a_tenth_above_it() {
        let guard = DiskGuard::new(1_000);
        for (free_bytes, low) in [(1_000, false), (999, true), (1_050, true), (1_100, false), (1_050, false)] {
            guard.look(free_bytes);
            assert_eq!(guard.is_low(), low, "{free_bytes}");
        }
        let never = DiskGuard::new(0);
        never.look(0);
        assert!(!never.is_low());
    }
}
