//! How much traffic a campaign may still expect: a level that adapts, times the shape of a week.
//!
//! The shape has 24 x 7 hours (UTC). It starts from what is known of the campaign's markets and is learned hour by
//! hour; the level (opportunities per millisecond of an average hour) follows within a tenth of the flight, at most
//! a day, so that a forecast wrong by a factor of two corrects itself early.

use std::sync::Arc;

/// Hours of a week.
pub const HOURS: usize = 168;

/// Milliseconds of an hour.
pub const HOUR_MS: u64 = 3_600_000;

/// Monday 00:00 UTC is hour 0; the epoch was a Thursday.
const EPOCH_HOUR: u64 = 72;

/// The level forgets within this share of the flight: short enough to notice a change of traffic while there is
/// time to make up for it, long enough not to follow noise.
const WINDOW_SHARE_OF_FLIGHT: f64 = 0.1;

/// Shortest memory of the level: 20 steps of 100 ms.
const MIN_WINDOW_MS: f64 = 2_000.0;

/// Longest memory of the level: a day, so that nights and days are both in it.
const MAX_WINDOW_MS: f64 = 86_400_000.0;

/// A given level counts as if it had been seen for this share of the flight.
const PRIOR_SHARE_OF_FLIGHT: f64 = 0.01;

/// Silence beyond this (or beyond `OUTAGE_SPACINGS`, if longer) is an outage and teaches nothing about demand.
const OUTAGE_MS: f64 = 60_000.0;

/// Silence of so many mean spacings of opportunities is an outage.
const OUTAGE_SPACINGS: f64 = 50.0;

/// An hour of the day must be seen for so many hours to weigh as much as its prior.
const DAY_PRIOR_HOURS: f64 = 1.0;

/// An hour of the week must be seen for so many hours to weigh as much as the same hour of all days.
const WEEK_PRIOR_HOURS: f64 = 3.0;

/// So many opportunities must be seen in an hour for its noise to be small beside the prior's.
const PRIOR_OPPORTUNITIES: f64 = 30.0;

/// The shape forgets within eight weeks.
const SHAPE_MEMORY_MS: f64 = 8.0 * HOURS as f64 * HOUR_MS as f64;

/// Traffic of each hour of a week relative to the mean hour.
#[derive(Clone, Debug, PartialEq)]
pub struct Shape {
    weights: [f64; HOURS],
    /// Sum of weights before each hour, in milliseconds of an average hour.
    before: [f64; HOURS + 1],
}

impl Shape {
    /// The same traffic at all hours.
    pub fn flat() -> Self {
        Self::from_weights(&[1.0; HOURS])
    }

    /// From any non-negative weights, Monday 00:00 UTC first; they are scaled to a mean of 1. Flat if they can't be.
    pub fn from_weights(weights: &[f64; HOURS]) -> Self {
        let usable = weights.iter().all(|w| w.is_finite() && *w >= 0.0);
        let sum: f64 = weights.iter().sum();
        let mut scaled = [1.0; HOURS];
        if usable && sum.is_finite() && sum > 0.0 {
            for (to, from) in scaled.iter_mut().zip(weights) {
                *to = from * HOURS as f64 / sum;
            }
        }
        let mut before = [0.0; HOURS + 1];
        for hour in 0..HOURS {
            before[hour + 1] = before[hour] + scaled[hour] * HOUR_MS as f64;
        }
        Shape { weights: scaled, before }
    }

    /// Traffic of each hour, mean 1.
    pub fn weights(&self) -> &[f64; HOURS] {
        &self.weights
    }

    /// Traffic between two moments in milliseconds of an average hour; 0 if `until_ms` is not later.
    pub fn mass(&self, from_ms: u64, until_ms: u64) -> f64 {
        if until_ms <= from_ms { 0.0 } else { (self.cumulative(until_ms) - self.cumulative(from_ms)).max(0.0) }
    }

    fn cumulative(&self, at_ms: u64) -> f64 {
        let hours = at_ms / HOUR_MS + EPOCH_HOUR;
        let weeks = hours / HOURS as u64;
        let hour = (hours % HOURS as u64) as usize;
        weeks as f64 * self.before[HOURS] + self.before[hour] + self.weights[hour] * (at_ms % HOUR_MS) as f64
    }
}

/// Hour of the week of a moment, Monday 00:00 UTC = 0.
pub fn hour_of_week(at_ms: u64) -> usize {
    ((at_ms / HOUR_MS + EPOCH_HOUR) % HOURS as u64) as usize
}

/// What is learned about a campaign's traffic.
#[derive(Clone, Debug)]
pub struct Traffic {
    prior: Arc<Shape>,
    shape: Shape,
    window_ms: f64,
    /// Decayed count of opportunities, and the mass of the time in which they came.
    level: Ratio,
    /// Opportunities per hour of the week (decayed).
    seen: [f64; HOURS],
    /// Time observed per hour of the week (decayed alike).
    exposure_ms: [f64; HOURS],
    last_ms: Option<u64>,
}

/// Counts over the mass in which they came.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Ratio {
    /// Opportunities.
    pub count: f64,
    /// Milliseconds of an average hour.
    pub mass: f64,
}

impl Ratio {
    /// Fades what was there by `keep` and adds what is new.
    pub(super) fn add(&mut self, keep: f64, count: f64, mass: f64) {
        self.count = self.count * keep + count;
        self.mass = self.mass * keep + mass;
    }

    /// Counts per mass; `None` while there is neither.
    pub(super) fn value(self) -> Option<f64> {
        (self.mass > 0.0 && self.count > 0.0).then(|| self.count / self.mass)
    }
}

impl Traffic {
    /// Nothing seen yet. `level` is the expected number of opportunities per millisecond of an average hour, if any.
    pub fn new(prior: Arc<Shape>, flight_ms: u64, level: Option<f64>) -> Self {
        let mut traffic = Traffic {
            shape: Shape::clone(&prior),
            prior,
            window_ms: window_ms(flight_ms),
            level: Ratio::default(),
            seen: [0.0; HOURS],
            exposure_ms: [0.0; HOURS],
            last_ms: None,
        };
        if let Some(level) = level.filter(|l| l.is_finite() && *l > 0.0) {
            let mass = flight_ms as f64 * PRIOR_SHARE_OF_FLIGHT;
            traffic.level = Ratio { count: level * mass, mass };
        }
        traffic
    }

    /// Goes on from what `parts` told. The time in between teaches nothing.
    pub fn restore(prior: Arc<Shape>, flight_ms: u64, parts: &Parts) -> Self {
        let mut traffic = Traffic::new(prior, flight_ms, None);
        let Ratio { count, mass } = parts.level;
        if count.is_finite() && mass.is_finite() && count >= 0.0 && mass >= 0.0 {
            traffic.level = parts.level;
        }
        let load = |to: &mut [f64; HOURS], from: &[f32]| {
            if from.len() == HOURS && from.iter().all(|v| v.is_finite() && *v >= 0.0) {
                to.iter_mut().zip(from).for_each(|(to, from)| *to = f64::from(*from));
            }
        };
        load(&mut traffic.seen, &parts.seen);
        load(&mut traffic.exposure_ms, &parts.exposure_ms);
        traffic.learn_shape();
        traffic
    }

    /// All that a successor needs.
    pub fn parts(&self) -> Parts {
        Parts {
            level: self.level,
            seen: self.seen.iter().map(|v| *v as f32).collect(),
            exposure_ms: self.exposure_ms.iter().map(|v| *v as f32).collect(),
        }
    }

    /// The flight's length changed.
    pub fn set_flight(&mut self, flight_ms: u64) {
        self.window_ms = window_ms(flight_ms);
    }

    /// Takes note of `n` opportunities since the last call. Calls with `n = 0` cost nothing: silence is accounted
    /// for when it ends.
    pub fn observe(&mut self, now_ms: u64, n: u64) {
        let Some(last_ms) = self.last_ms else {
            self.last_ms = Some(now_ms);
            return;
        };
        if n == 0 || now_ms < last_ms {
            return;
        }
        let n = n as f64;
        let longest = self.level.value().map_or(OUTAGE_MS, |level| OUTAGE_MS.max(OUTAGE_SPACINGS / level));
        let elapsed_ms = ((now_ms - last_ms) as f64).min(longest).min(HOURS as f64 * HOUR_MS as f64);
        self.last_ms = Some(now_ms);
        if elapsed_ms < 1.0 {
            // More of the same moment.
            self.level.count += n;
            return;
        }
        let from_ms = now_ms - elapsed_ms as u64;
        let mass = self.shape.mass(from_ms, now_ms);
        self.level.add((-elapsed_ms / self.window_ms).exp(), n, mass);
        self.note_hours(from_ms, now_ms, n, mass);
        if hour_of_week(last_ms) != hour_of_week(now_ms) {
            self.learn_shape();
            let keep = (-elapsed_ms.max(HOUR_MS as f64) / SHAPE_MEMORY_MS).exp();
            self.seen.iter_mut().chain(&mut self.exposure_ms).for_each(|v| *v *= keep);
        }
    }

    /// Opportunities expected between two moments; `None` while nothing is known of the traffic.
    pub fn expected(&self, from_ms: u64, until_ms: u64) -> Option<f64> {
        self.level.value().map(|level| level * self.shape.mass(from_ms, until_ms))
    }

    /// The shape it started from.
    pub fn prior(&self) -> &Arc<Shape> {
        &self.prior
    }

    /// The shape as learned so far.
    pub fn shape(&self) -> &Shape {
        &self.shape
    }

    fn note_hours(&mut self, from_ms: u64, until_ms: u64, n: f64, mass: f64) {
        let mut at_ms = from_ms;
        while at_ms < until_ms {
            let next_ms = ((at_ms / HOUR_MS + 1) * HOUR_MS).min(until_ms);
            let hour = hour_of_week(at_ms);
            let share = if mass > 0.0 {
                self.shape.mass(at_ms, next_ms) / mass
            } else {
                (next_ms - at_ms) as f64 / (until_ms - from_ms) as f64
            };
            self.seen[hour] += n * share;
            self.exposure_ms[hour] += (next_ms - at_ms) as f64;
            at_ms = next_ms;
        }
    }

    /// Shrinks each hour of the week towards the same hour of all days, and that towards the prior. Nothing is learned
    /// before a whole day was seen: morning's rise says nothing about the evening.
    fn learn_shape(&mut self) {
        let observed_ms: f64 = self.exposure_ms.iter().sum();
        let as_prior: f64 = self.prior.weights.iter().zip(&self.exposure_ms).map(|(w, ms)| w * ms).sum();
        let seen: f64 = self.seen.iter().sum();
        if observed_ms < 24.0 * HOUR_MS as f64 || as_prior <= 0.0 || seen <= 0.0 {
            return;
        }
        // Opportunities per millisecond of an average hour.
        let long = seen / as_prior;
        let noise_ms = PRIOR_OPPORTUNITIES / long;
        let day_prior_ms = (DAY_PRIOR_HOURS * HOUR_MS as f64).max(noise_ms);
        let week_prior_ms = (WEEK_PRIOR_HOURS * HOUR_MS as f64).max(noise_ms);
        let mut weights = [0.0; HOURS];
        for of_day in 0..24 {
            let days = (of_day..HOURS).step_by(24);
            let (mut seen, mut prior_seen) = (0.0, 0.0);
            for hour in days.clone() {
                seen += self.seen[hour] / long;
                prior_seen += self.prior.weights[hour] * self.exposure_ms[hour];
            }
            // By how much this hour of the day differs from the prior.
            let factor = (day_prior_ms + seen) / (day_prior_ms + prior_seen);
            for hour in days {
                let expected = self.prior.weights[hour] * factor;
                weights[hour] =
                    (week_prior_ms * expected + self.seen[hour] / long) / (week_prior_ms + self.exposure_ms[hour]);
            }
        }
        self.shape = Shape::from_weights(&weights);
    }
}

/// What is learned, to be stored.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Parts {
    /// Recent level.
    pub level: Ratio,
    /// Per hour of the week: opportunities.
    pub seen: Vec<f32>,
    /// Per hour of the week: time observed, milliseconds.
    pub exposure_ms: Vec<f32>,
}

fn window_ms(flight_ms: u64) -> f64 {
    (flight_ms as f64 * WINDOW_SHARE_OF_FLIGHT).clamp(MIN_WINDOW_MS, MAX_WINDOW_MS)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MONDAY_MS: u64 = (HOURS as u64 - EPOCH_HOUR) * HOUR_MS;
    const DAY_MS: u64 = 24 * HOUR_MS;

    fn day_shape() -> [f64; HOURS] {
        std::array::from_fn(|h| 1.0 + 0.8 * ((h % 24) as f64 / 24.0 * std::f64::consts::TAU).sin())
    }

    #[test]
    fn the_epoch_was_a_thursday() {
        assert_eq!(hour_of_week(0), 3 * 24);
        assert_eq!(hour_of_week(MONDAY_MS), 0);
    }

    #[test]
    fn mass_of_a_week_is_its_length_for_every_shape() {
        for shape in [Shape::flat(), Shape::from_weights(&day_shape())] {
            let mass = shape.mass(MONDAY_MS + 12_345, MONDAY_MS + 12_345 + 7 * DAY_MS);
            assert!((mass / (7 * DAY_MS) as f64 - 1.0).abs() < 1e-9, "{mass}");
        }
        assert_eq!(Shape::flat().mass(10, 10), 0.0);
        assert_eq!(Shape::flat().mass(11, 10), 0.0);
    }

    #[test]
    fn unusable_weights_give_the_flat_shape() {
        for bad in [0.0, -1.0, f64::NAN, f64::INFINITY] {
            assert_eq!(Shape::from_weights(&[bad; HOURS]), Shape::flat());
        }
    }

    #[test]
    fn a_forecast_wrong_by_two_is_corrected_within_a_tenth_of_the_flight() {
        for factor in [0.5, 2.0] {
            let mut traffic = Traffic::new(Arc::new(Shape::flat()), 7 * DAY_MS, Some(0.001 * factor));
            for minute in 0..=(7 * 24 * 6) {
                traffic.observe(MONDAY_MS + minute * 60_000, 60);
            }
            let expected = traffic.expected(MONDAY_MS, MONDAY_MS + HOUR_MS).unwrap();
            assert!((expected / 3600.0 - 1.0).abs() < 0.1, "{expected}");
        }
    }

    #[test]
    fn silence_of_an_outage_leaves_the_forecast_as_it_was() {
        let mut traffic = Traffic::new(Arc::new(Shape::flat()), DAY_MS, None);
        for second in 0..7200 {
            traffic.observe(MONDAY_MS + second * 1000, 10);
        }
        let before = traffic.expected(MONDAY_MS, MONDAY_MS + HOUR_MS).unwrap();
        traffic.observe(MONDAY_MS + 4 * HOUR_MS, 10);
        let after = traffic.expected(MONDAY_MS, MONDAY_MS + HOUR_MS).unwrap();
        assert!((after / before - 1.0).abs() < 0.02, "{before} {after}");
    }

    #[test]
    fn the_shape_of_the_day_is_learned_and_survives_a_change_of_owner() {
        let truth = Shape::from_weights(&day_shape());
        let mut traffic = Traffic::new(Arc::new(Shape::flat()), 28 * DAY_MS, None);
        let mut now = MONDAY_MS;
        while now < MONDAY_MS + 7 * DAY_MS {
            now += 60_000;
            traffic.observe(now, (truth.mass(now - 60_000, now) / 10.0).round() as u64);
        }
        let successor = Traffic::restore(Arc::new(Shape::flat()), 28 * DAY_MS, &traffic.parts());
        for known in [&traffic, &successor] {
            for hour in (0..24).step_by(3) {
                let (from, until) = (now + hour * HOUR_MS, now + (hour + 1) * HOUR_MS);
                let expected = known.expected(from, until).unwrap();
                let truly = truth.mass(from, until) / 10.0;
                assert!((expected - truly).abs() < 0.15 * HOUR_MS as f64 / 10.0, "hour {hour}: {expected} {truly}");
            }
        }
    }
}
