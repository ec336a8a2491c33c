//! What outcomes teach about a campaign: how well it is liked, and how often a placement becomes billable.

use super::proto::Counters;

/// The prior of quality weighs as much as so many liked and so many disliked placements.
const QUALITY_PRIOR: f64 = 20.0;

/// Lowest quality: a disliked campaign is held back, not silenced; its relevance still counts.
pub const MIN_QUALITY: f64 = 0.1;

/// A prior of the billable share weighs as much as so many placements.
const SHARE_PRIOR: f64 = 20.0;

/// Older placements fade when more than so many are known, so that the share follows a change.
const SHARE_MEMORY: f64 = 5_000.0;

/// Lowest billable share believed: with a lower one, a few tokens would be planned to hold the whole budget.
pub const MIN_BILLABLE_SHARE: f64 = 0.001;

/// How well listeners like what the campaign promotes: 1 is neutral, between [`MIN_QUALITY`] and 2.
///
/// Streams and saves speak for it, skips and short streams against it (a track that is skipped early is often both:
/// it counts once). Without outcomes it is 1.
pub fn quality(counters: &Counters) -> f64 {
    let liked = counters.streams as f64 + counters.saves as f64;
    let disliked = counters.skips.max(counters.short_streams) as f64;
    let share = (QUALITY_PRIOR + liked) / (2.0 * QUALITY_PRIOR + liked + disliked);
    (2.0 * share).max(MIN_QUALITY)
}

/// Learned probability that a placement becomes billable.
///
/// Counts placements whose fate is known. Settled ones are known sooner than those that never settle, so the share
/// errs upwards until the first allowances have closed: the pace is too slow then, never too fast.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct BillableShare {
    prior: f64,
    billed: f64,
    known: f64,
}

impl BillableShare {
    /// Nothing known but the owner's guess, clamped to what is believable.
    pub fn new(prior: f64) -> Self {
        let prior = if prior.is_finite() { prior.clamp(MIN_BILLABLE_SHARE, 1.0) } else { 1.0 };
        BillableShare { prior, billed: 0.0, known: 0.0 }
    }

    /// Goes on from stored counts.
    pub fn restore(prior: f64, billed: f64, known: f64) -> Self {
        let mut share = BillableShare::new(prior);
        if billed.is_finite() && known.is_finite() && billed >= 0.0 && known >= billed {
            (share.billed, share.known) = (billed, known);
        }
        share
    }

    /// Placements that were billed, and others whose token was released or came back unused.
    pub fn observe(&mut self, billed: u64, unbilled: u64) {
        self.billed += billed as f64;
        self.known += (billed + unbilled) as f64;
        if self.known > SHARE_MEMORY {
            let keep = SHARE_MEMORY / self.known;
            self.billed *= keep;
            self.known *= keep;
        }
    }

    /// The probability, in [`MIN_BILLABLE_SHARE`] to 1.
    pub fn mean(&self) -> f64 {
        ((SHARE_PRIOR * self.prior + self.billed) / (SHARE_PRIOR + self.known)).clamp(MIN_BILLABLE_SHARE, 1.0)
    }

    /// Counts to store: billed, known.
    pub fn counts(&self) -> (f64, f64) {
        (self.billed, self.known)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quality_is_neutral_without_outcomes_and_bounded_with_any() {
        assert_eq!(quality(&Counters::default()), 1.0);
        let huge = u64::MAX / 4;
        let loved = Counters { streams: huge, saves: huge, ..Default::default() };
        let hated = Counters { skips: huge, short_streams: huge, ..Default::default() };
        assert!(quality(&loved) <= 2.0 && quality(&loved) > 1.99);
        assert_eq!(quality(&hated), MIN_QUALITY);
    }

    #[test]
    fn each_kind_of_outcome_moves_quality_its_way() {
        let base = Counters { streams: 50, skips: 50, short_streams: 20, ..Default::default() };
        let q = quality(&base);
        assert!(quality(&Counters { streams: 60, ..base }) > q);
        assert!(quality(&Counters { saves: 10, ..base }) > q);
        assert!(quality(&Counters { skips: 60, ..base }) < q);
        assert!(quality(&Counters { short_streams: 60, ..base }) < q);
        assert_eq!(quality(&Counters { impressions: 1000, ..base }), q);
    }

    #[test]
    fn the_share_moves_from_the_prior_to_what_happens_and_follows_a_change() {
        let mut share = BillableShare::new(0.5);
        assert_eq!(share.mean(), 0.5);
        share.observe(100, 900);
        assert!((share.mean() - 0.1).abs() < 0.01, "{}", share.mean());
        for _ in 0..30 {
            share.observe(800, 200);
        }
        assert!((share.mean() - 0.8).abs() < 0.01, "{}", share.mean());
    }

    #[test]
    fn nonsense_priors_and_counts_are_not_believed() {
        assert_eq!(BillableShare::new(f64::NAN).mean(), 1.0);
        assert_eq!(BillableShare::new(0.0).mean(), MIN_BILLABLE_SHARE);
        assert_eq!(BillableShare::restore(0.5, 5.0, 3.0), BillableShare::new(0.5));
        assert_eq!(BillableShare::restore(0.5, f64::INFINITY, f64::INFINITY), BillableShare::new(0.5));
    }
}
