//! Limits that protect listeners: how often one meets a campaign, and how much of a reply is promoted.
//!
//! The relevance floor and the boost cap are part of [`super::score::Weights`].

use std::collections::{BTreeMap, VecDeque};

/// Listeners remembered per campaign at once. Beyond it new listeners are refused until old ones lapse: the cap holds
/// at the price of reach. About 100 bytes each.
pub const MAX_LISTENERS: usize = 1_000_000;

/// At most so many placements of a campaign per listener and sliding window.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FrequencyLimit {
    /// Placements; 0: no limit.
    pub cap: u32,
    /// Length of the window.
    pub window_ms: u64,
}

/// Counts the placements of one campaign per listener. Exact for what it has seen; a new owner starts afresh.
///
/// `now_ms` may step back: nothing is forgotten early by it.
#[derive(Clone, Debug)]
pub struct FrequencyFilter {
    limit: FrequencyLimit,
    /// Times of the placements within the window, oldest first, at most `cap` of them.
    placed: BTreeMap<u64, VecDeque<u64>>,
    max_listeners: usize,
}

impl FrequencyFilter {
    /// Nobody has seen anything yet.
    pub fn new(limit: FrequencyLimit) -> Self {
        FrequencyFilter { limit, placed: BTreeMap::new(), max_listeners: MAX_LISTENERS }
    }

    /// A new limit; what was counted stays, as far as the new window reaches.
    pub fn set_limit(&mut self, limit: FrequencyLimit) {
        self.limit = limit;
        if limit.cap == 0 {
            self.placed.clear();
        }
    }

    /// Whether one more placement for this listener (by its hash) is within the limit. Changes nothing.
    pub fn allows(&self, listener: u64, now_ms: u64) -> bool {
        if self.limit.cap == 0 {
            return true;
        }
        match self.placed.get(&listener) {
            None => self.placed.len() < self.max_listeners,
            Some(times) => self.recent(times, now_ms) < self.limit.cap as usize,
        }
    }

    /// Counts a placement if it is within the limit, and says whether it is.
    pub fn admit(&mut self, listener: u64, now_ms: u64) -> bool {
        if self.limit.cap == 0 {
            return true;
        }
        if self.placed.len() >= self.max_listeners && !self.placed.contains_key(&listener) {
            self.sweep(now_ms);
        }
        if !self.allows(listener, now_ms) {
            return false;
        }
        let FrequencyLimit { cap, window_ms } = self.limit;
        let times = self.placed.entry(listener).or_default();
        while times.front().is_some_and(|t| lapsed(*t, now_ms, window_ms)) || times.len() >= cap as usize {
            times.pop_front();
        }
        // Keeps the order when the clock stepped back.
        times.push_back(times.back().map_or(now_ms, |last| now_ms.max(*last)));
        true
    }

    /// Forgets listeners whose placements have all left the window. To be called now and then; costs one pass.
    pub fn sweep(&mut self, now_ms: u64) {
        let window_ms = self.limit.window_ms;
        self.placed.retain(|_, times| times.back().is_some_and(|t| !lapsed(*t, now_ms, window_ms)));
    }

    /// Listeners remembered.
    pub fn listeners(&self) -> usize {
        self.placed.len()
    }

    fn recent(&self, times: &VecDeque<u64>, now_ms: u64) -> usize {
        times.iter().rev().take_while(|t| !lapsed(**t, now_ms, self.limit.window_ms)).count()
    }
}

fn lapsed(placed_ms: u64, now_ms: u64, window_ms: u64) -> bool {
    now_ms.saturating_sub(placed_ms) >= window_ms
}

/// How many placements a reply may have: the smallest of what the caller uses and the share of its candidates that
/// may be promoted, rounded up so that a share above 0 allows one.
pub fn max_placements(slots: u32, candidates: usize, promoted_share: f64) -> usize {
    let share = (candidates as f64 * promoted_share.clamp(0.0, 1.0)).ceil() as usize;
    (slots as usize).min(share).min(candidates)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_window_slides() {
        let mut filter = FrequencyFilter::new(FrequencyLimit { cap: 2, window_ms: 100 });
        let steps = [(0, true), (60, true), (99, false), (100, true), (159, false), (160, true), (161, false)];
        for (now, admitted) in steps {
            assert_eq!(filter.allows(7, now), admitted, "at {now}");
            assert_eq!(filter.admit(7, now), admitted, "at {now}");
        }
        assert!(filter.admit(8, 161), "another listener has a count of its own");
    }

    #[test]
    fn no_cap_admits_all_and_remembers_nobody() {
        let mut filter = FrequencyFilter::new(FrequencyLimit { cap: 0, window_ms: 100 });
        assert!((0..100).all(|_| filter.admit(1, 0)));
        assert_eq!(filter.listeners(), 0);
    }

    #[test]
    fn a_clock_that_steps_back_forgets_nothing() {
        let mut filter = FrequencyFilter::new(FrequencyLimit { cap: 1, window_ms: 100 });
        assert!(filter.admit(1, 1000));
        assert!(!filter.admit(1, 10));
        filter.sweep(10);
        assert_eq!(filter.listeners(), 1);
    }

    #[test]
    fn when_too_many_listeners_are_remembered_new_ones_wait_until_old_ones_lapse() {
        let mut filter = FrequencyFilter::new(FrequencyLimit { cap: 2, window_ms: 100 });
        filter.max_listeners = 2;
        assert!(filter.admit(1, 0) && filter.admit(2, 50));
        assert!(!filter.admit(3, 60));
        assert!(filter.admit(2, 60), "known listeners go on");
        assert!(filter.admit(3, 100), "listener 1 has lapsed");
        assert_eq!(filter.listeners(), 2);
    }

    #[test]
    fn the_smallest_limit_of_a_reply_wins() {
        let cases = [
            // slots, candidates, share, placements
            (0, 50, 1.0, 0),
            (3, 50, 1.0, 3),
            (3, 2, 1.0, 2),
            (30, 50, 0.1, 5),
            (30, 51, 0.1, 6),
            (1, 1, 0.01, 1),
            (5, 0, 1.0, 0),
            (5, 10, 0.0, 0),
        ];
        for (slots, candidates, share, placements) in cases {
            assert_eq!(max_placements(slots, candidates, share), placements, "{slots} {candidates} {share}");
        }
    }

    proptest! {
        #[test]
        fn no_window_ever_holds_more_than_the_cap(
            cap in 1u32..5, window_ms in 1u64..50, gaps in prop::collection::vec(0u64..20, 1..200),
        ) {
            let mut filter = FrequencyFilter::new(FrequencyLimit { cap, window_ms });
            let (mut now, mut admitted) = (0, Vec::new());
            for gap in gaps {
                now += gap;
                let recent = admitted.iter().filter(|t| now - **t < window_ms).count();
                let may = filter.admit(1, now);
                prop_assert_eq!(may, recent < cap as usize);
                if may {
                    admitted.push(now);
                }
            }
        }
    }
}
