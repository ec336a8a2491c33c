//! The promotion score of one candidate: whether a campaign wants it, and how much it would lift it.

/// What the score path needs of a campaign, published by its pacer. Immutable and small: copied, never locked.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Weights {
    /// The multiplier: normalised value asked for per normalised price.
    pub mu: f64,
    /// Value of one unit of relevance: learned quality over the running mean of relevance.
    pub value_scale: f64,
    /// Normalised price of one micro: 1 over the running mean of prices.
    pub price_scale: f64,
    /// Highest score.
    pub boost_cap: f64,
    /// Candidates with a lower relevance are not promoted.
    pub relevance_floor: f64,
}

/// What a campaign makes of a candidate.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Verdict {
    /// Wants it, with this score: above 0, at most the boost cap.
    Promote(f64),
    /// Its value does not reach the multiplier times its price.
    NotWorthIt,
    /// Its organic relevance is below the floor. Not traffic: the campaign may not have it at any multiplier.
    BelowFloor,
}

impl Verdict {
    /// The score; 0 if it does not promote.
    pub fn score(self) -> f64 {
        match self {
            Verdict::Promote(score) => score,
            Verdict::NotWorthIt | Verdict::BelowFloor => 0.0,
        }
    }
}

impl Weights {
    /// Judges a candidate of the given organic relevance at the given price. A few nanoseconds, no allocation.
    ///
    /// Promotes where value exceeds `mu` x price, both normalised. The score grows with the surplus, from above 0
    /// towards the boost cap; half of the cap is reached where the surplus is one mean value.
    #[inline]
    pub fn evaluate(&self, relevance: f64, price_micros: u64) -> Verdict {
        if relevance.is_nan() || relevance < self.relevance_floor {
            return Verdict::BelowFloor;
        }
        let surplus = relevance * self.value_scale - self.mu * (price_micros as f64 * self.price_scale);
        if surplus > 0.0 { Verdict::Promote(lift(surplus, self.boost_cap)) } else { Verdict::NotWorthIt }
    }
}

/// Bounded, monotone function of a positive surplus: above 0, at most `cap`.
fn lift(surplus: f64, cap: f64) -> f64 {
    // 1 - 1/(1+s) instead of s/(1+s): no infinity over infinity. The lower bound keeps the sign of tiny surpluses.
    (cap * (1.0 - 1.0 / (1.0 + surplus))).max(f64::MIN_POSITIVE)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn weights(mu: f64) -> Weights {
        Weights { mu, value_scale: 2.0, price_scale: 0.01, boost_cap: 1.5, relevance_floor: 0.1 }
    }

    #[test]
    fn verdicts() {
        let cases = [
            // relevance, price, mu, verdict
            (0.05, 1, 0.1, Verdict::BelowFloor),
            (f64::NAN, 1, 0.1, Verdict::BelowFloor),
            (-1.0, 1, 0.1, Verdict::BelowFloor),
            (0.5, 100, 1.0, Verdict::NotWorthIt),
            (0.5, 100, 2.0, Verdict::NotWorthIt),
            (1.0, 100, 1.0, Verdict::Promote(0.75)),
            (0.5, 0, 1.0, Verdict::Promote(0.75)),
        ];
        for (relevance, price, mu, verdict) in cases {
            assert_eq!(weights(mu).evaluate(relevance, price), verdict, "{relevance} {price} {mu}");
        }
    }

    proptest! {
        #[test]
        fn the_score_is_positive_and_never_above_the_cap(
            relevance in 0.0..1e6f64, price in 0u64..(1 << 53), mu in 1e-4..1e4f64,
            value_scale in 1e-9..1e12f64, boost_cap in 1e-6..10.0f64,
        ) {
            let weights = Weights { mu, value_scale, price_scale: 1e-3, boost_cap, relevance_floor: 0.0 };
            if let Verdict::Promote(score) = weights.evaluate(relevance, price) {
                prop_assert!(score > 0.0 && score <= boost_cap, "{score}");
            }
        }

        #[test]
        fn more_relevance_never_lowers_and_a_higher_price_or_multiplier_never_raises_the_score(
            relevance in 0.0..100.0f64, more in 0.0..100.0f64, price in 0u64..10_000, dearer in 0u64..10_000,
            mu in 0.01..100.0f64, choosier in 0.0..100.0f64,
        ) {
            let score = weights(mu).evaluate(relevance, price).score();
            prop_assert!(weights(mu).evaluate(relevance + more, price).score() >= score);
            prop_assert!(weights(mu).evaluate(relevance, price + dearer).score() <= score);
            prop_assert!(weights(mu + choosier).evaluate(relevance, price).score() <= score);
        }
    }
}
