//! When a campaign's actor that failed is started again: a pure policy.

use std::collections::VecDeque;

/// First pause before a restart; doubles with each failure in the window.
const BACKOFF_MIN_MS: u64 = 100;
/// Longest pause.
const BACKOFF_MAX_MS: u64 = 30_000;

/// Failures of one campaign's actor.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Failures {
    recent_ms: VecDeque<u64>,
}

/// What to do after a failure.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// Start it again, not before this moment.
    RestartAt(u64),
    /// It failed too often: no placements until an operator resumes the campaign.
    Quarantine,
}

impl Failures {
    /// Notes a failure and decides; `max` failures within `window_ms` are one too many.
    pub fn record(&mut self, now_ms: u64, max: u32, window_ms: u64) -> Verdict {
        while self.recent_ms.front().is_some_and(|at| at + window_ms <= now_ms) {
            self.recent_ms.pop_front();
        }
        self.recent_ms.push_back(now_ms);
        let count = self.recent_ms.len();
        if count >= max as usize {
            return Verdict::Quarantine;
        }
        let backoff = BACKOFF_MIN_MS.checked_shl(count as u32 - 1).unwrap_or(BACKOFF_MAX_MS).min(BACKOFF_MAX_MS);
        Verdict::RestartAt(now_ms + backoff)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_until_the_campaign_is_quarantined() {
        let mut failures = Failures::default();
        let verdicts: Vec<_> = (0..5).map(|i| failures.record(1_000 + i, 5, 60_000)).collect();
        assert_eq!(
            verdicts,
            [
                Verdict::RestartAt(1_100),
                Verdict::RestartAt(1_201),
                Verdict::RestartAt(1_402),
                Verdict::RestartAt(1_803),
                Verdict::Quarantine,
            ]
        );
    }

    #[test]
    fn old_failures_are_forgotten() {
        let mut failures = Failures::default();
        for i in 0..20 {
            assert_eq!(failures.record(i * 60_000, 2, 60_000), Verdict::RestartAt(i * 60_000 + 100));
        }
    }

    #[test]
    fn pauses_are_bounded() {
        let mut failures = Failures::default();
        for _ in 0..200 {
            let Verdict::RestartAt(at) = failures.record(0, 1_000, 1_000) else { panic!("quarantined too early") };
            assert!(at <= BACKOFF_MAX_MS);
        }
    }
}
