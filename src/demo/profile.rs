//! The shape of listening, as figures.
//!
//! Source: `listening_profile.json`, aggregates of 315,510 real plays of 12 listeners in 15,138 sessions (2018-2023), and the countries of 992
//! real listeners; no individual record is behind a figure here.

use rand::{Rng, RngExt};

/// Share of a day's plays per hour (UTC), Friday.
pub(super) const PLAYS_BY_HOUR: [f64; 24] = [
    0.003483, 0.003261, 0.003616, 0.003112, 0.001956, 0.004349, 0.006599, 0.006409, 0.007432, 0.009578, 0.009436,
    0.007163, 0.008333, 0.008367, 0.010814, 0.010542, 0.011119, 0.008326, 0.008513, 0.006535, 0.007071, 0.004659,
    0.004282, 0.003816,
];

/// Share of plays that end before 30 s.
pub(super) const SHARE_UNDER_30_S: f64 = 0.259;

/// Quantiles of how long a track is played, in milliseconds; the ends are ours.
const PLAYED_MS: [(f64, f64); 9] = [
    (0.0, 300.0),
    (0.05, 649.0),
    (0.1, 1_210.0),
    (0.25, 23_754.0),
    (SHARE_UNDER_30_S, 30_000.0),
    (0.5, 171_186.0),
    (0.75, 214_586.0),
    (0.9, 255_579.0),
    (1.0, 360_000.0),
];

/// Quantiles of the plays of a session (sessions are 30 minutes apart); the ends are ours.
const SESSION_PLAYS: [(f64, f64); 9] = [
    (0.0, 1.0),
    (0.1, 1.0),
    (0.25, 4.0),
    (0.5, 12.0),
    (0.75, 26.0),
    (0.9, 50.0),
    (0.95, 73.0),
    (0.99, 136.0),
    (1.0, 200.0),
];

/// Slope of the logarithm of a track's plays over the logarithm of its rank (ranks 10 to 5,000).
pub(super) const POPULARITY_SLOPE: f64 = -0.546;

/// Share of listeners per market, the 25 largest.
pub(super) const MARKETS: [(&str, f64); 25] = [
    ("US", 0.2514),
    ("GB", 0.1389),
    ("PL", 0.0551),
    ("DE", 0.0397),
    ("NO", 0.0386),
    ("FI", 0.0353),
    ("CA", 0.0353),
    ("TR", 0.0309),
    ("IT", 0.0298),
    ("SE", 0.0265),
    ("NL", 0.0254),
    ("RU", 0.0243),
    ("AU", 0.0243),
    ("BR", 0.0221),
    ("ES", 0.0187),
    ("FR", 0.0154),
    ("MX", 0.0132),
    ("BE", 0.0099),
    ("AR", 0.0099),
    ("RO", 0.0088),
    ("CL", 0.0088),
    ("PT", 0.0088),
    ("BG", 0.0077),
    ("HR", 0.0077),
    ("VE", 0.0066),
];

/// How long a track is played, in milliseconds.
pub(super) fn played_ms(rng: &mut impl Rng) -> u64 {
    between(&PLAYED_MS, rng.random()) as u64
}

/// Plays of a session.
pub(super) fn session_plays(rng: &mut impl Rng) -> u32 {
    between(&SESSION_PLAYS, rng.random()).round() as u32
}

/// A market.
pub(super) fn market(rng: &mut impl Rng) -> &'static str {
    let whole: f64 = MARKETS.iter().map(|(_, share)| share).sum();
    let mut left = rng.random::<f64>() * whole;
    for (market, share) in MARKETS {
        left -= share;
        if left <= 0.0 {
            return market;
        }
    }
    MARKETS[0].0
}

/// A track by its rank, from 0, of `tracks`: popular ones more often.
pub(super) fn track(rng: &mut impl Rng, tracks: usize) -> usize {
    // The weight of rank r is r^slope, hence the share up to r is about (r / tracks)^(1 + slope).
    let rank = tracks as f64 * rng.random::<f64>().powf(1.0 / (1.0 + POPULARITY_SLOPE));
    (rank as usize).min(tracks - 1)
}

/// Share of the day's plays before the time of day `at`, both from 0 to 1.
pub(super) fn day_share(at: f64) -> f64 {
    let whole: f64 = PLAYS_BY_HOUR.iter().sum();
    let hours = at.clamp(0.0, 1.0) * 24.0;
    let full = hours as usize;
    let before: f64 = PLAYS_BY_HOUR[..full].iter().sum();
    (before + PLAYS_BY_HOUR.get(full).map_or(0.0, |share| share * hours.fract())) / whole
}

/// Time of day before which `share` of the day's plays come: the inverse of [`day_share`].
pub(super) fn time_of_day(share: f64) -> f64 {
    let whole: f64 = PLAYS_BY_HOUR.iter().sum();
    let mut left = share.clamp(0.0, 1.0) * whole;
    for (hour, plays) in PLAYS_BY_HOUR.iter().enumerate() {
        if left <= *plays {
            return (hour as f64 + left / plays) / 24.0;
        }
        left -= plays;
    }
    1.0
}

/// Interpolates between quantiles.
fn between(quantiles: &[(f64, f64)], at: f64) -> f64 {
    let above = quantiles.iter().position(|(q, _)| *q >= at).unwrap_or(quantiles.len() - 1).max(1);
    let ((q0, v0), (q1, v1)) = (quantiles[above - 1], quantiles[above]);
    v0 + (v1 - v0) * ((at - q0) / (q1 - q0)).clamp(0.0, 1.0)
}

#[cfg(test)]
mod tests {
    use rand::{SeedableRng, rngs::StdRng};

    use super::*;

    #[test]
    fn samples_have_the_shape_of_the_figures() {
        let mut rng = StdRng::seed_from_u64(1);
        let n = 20_000;
        let short = (0..n).filter(|_| played_ms(&mut rng) < 30_000).count() as f64 / f64::from(n);
        assert!((short - SHARE_UNDER_30_S).abs() < 0.01, "{short}");
        let mut sessions: Vec<u32> = (0..n).map(|_| session_plays(&mut rng)).collect();
        sessions.sort_unstable();
        assert!((11..=13).contains(&sessions[sessions.len() / 2]), "{}", sessions[sessions.len() / 2]);
        let us = (0..n).filter(|_| market(&mut rng) == "US").count() as f64 / f64::from(n);
        assert!((us - 0.2514 / 0.8931).abs() < 0.02, "{us}");
    }

    #[test]
    fn popular_tracks_come_more_often_by_the_slope() {
        let mut rng = StdRng::seed_from_u64(1);
        let mut plays = [0u32; 1_000];
        (0..400_000).for_each(|_| plays[track(&mut rng, 1_000)] += 1);
        let mean = |from: usize, to: usize| plays[from..to].iter().sum::<u32>() as f64 / (to - from) as f64;
        let slope = (mean(450, 550) / mean(45, 55)).ln() / 10f64.ln();
        assert!((slope - POPULARITY_SLOPE).abs() < 0.05, "{slope}");
    }

    #[test]
    fn the_day_and_its_inverse_agree() {
        for i in 0..=100 {
            let at = f64::from(i) / 100.0;
            assert!((time_of_day(day_share(at)) - at).abs() < 1e-9, "{at}");
        }
        assert!(day_share(0.25) < 0.15, "nights are quiet");
    }
}
