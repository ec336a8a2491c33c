//! What becomes of a placement, in the compressed time of the demo: everything within a second.

use std::collections::VecDeque;

use rand::{Rng, RngExt};

use crate::{
    demo::{profile, traffic::SHARE_NOT_USED},
    v1::OutcomeKind,
    verify::{Event, MIN_STREAM_MS},
};

/// The longest play, in the day's time and in the demo's.
const LONGEST_MS: (u64, u64) = (360_000, 700);
/// From a placement to its start.
const START_MS: (u64, u64) = (20, 80);
/// Share of billable streams whose track is saved while it plays.
const SHARE_SAVED: f64 = 0.03;

/// An event, and how long after the one before it comes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Step {
    pub(super) after_ms: u64,
    pub(super) event: Event,
}

/// The events of one placement, in order. Each ends settled or released.
pub(super) fn of_placement(rng: &mut impl Rng) -> VecDeque<Step> {
    let step = |after_ms, event| Step { after_ms, event };
    if rng.random::<f64>() < SHARE_NOT_USED {
        return [step(rng.random_range(100..500), Event::of(OutcomeKind::NotUsed))].into();
    }
    let mut steps: VecDeque<Step> =
        [step(rng.random_range(START_MS.0..START_MS.1), Event::of(OutcomeKind::Impression))].into();
    let played_ms = profile::played_ms(rng);
    let (longest, compressed) = LONGEST_MS;
    let play_ms = played_ms.min(longest) * compressed / longest;
    if played_ms < MIN_STREAM_MS {
        steps.push_back(step(play_ms, Event::stream(played_ms)));
        steps.push_back(step(0, Event::of(OutcomeKind::Skip)));
        steps.push_back(step(0, Event::of(OutcomeKind::NotUsed)));
    } else {
        if rng.random::<f64>() < SHARE_SAVED {
            steps.push_back(step(play_ms / 2, Event::of(OutcomeKind::Save)));
        }
        steps.push_back(step(play_ms, Event::stream(played_ms)));
    }
    steps
}

#[cfg(test)]
mod tests {
    use rand::{SeedableRng, rngs::StdRng};

    use super::*;
    use crate::{demo::traffic::billable_share, v1::OutcomeStatus};

    #[test]
    fn each_placement_is_settled_or_released_within_a_second() {
        let mut rng = StdRng::seed_from_u64(3);
        let mut billed = 0;
        for _ in 0..10_000 {
            let steps = of_placement(&mut rng);
            let took: u64 = steps.iter().map(|s| s.after_ms).sum();
            assert!(took < 1_200, "{steps:?}");
            let last = steps.back().unwrap().event;
            let ends = matches!(last.expected(), OutcomeStatus::Billed | OutcomeStatus::Released);
            assert!(ends, "{steps:?}");
            billed += u32::from(last.expected() == OutcomeStatus::Billed);
        }
        assert!((f64::from(billed) / 10_000.0 - billable_share()).abs() < 0.02, "{billed}");
    }
}
