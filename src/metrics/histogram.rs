//! A histogram of durations without a lock.

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use prometheus_client::{
    encoding::{EncodeMetric, MetricEncoder, NoLabelSet},
    metrics::{MetricType, TypedMetric},
};

/// Upper bounds in microseconds: three per decade, from a cell's read to a client that gave up.
const BOUNDS_MICROS: [u64; 17] = [
    50, 100, 200, 500, 1_000, 2_000, 5_000, 10_000, 20_000, 50_000, 100_000, 200_000, 500_000, 1_000_000, 2_000_000,
    5_000_000, 10_000_000,
];

/// Durations, shown in seconds. Cheap to clone; clones share their counts.
///
/// The library's own histogram takes a mutex for every observation; the score path takes none.
#[derive(Debug, Clone, Default)]
pub struct DurationHistogram(Arc<Counts>);

#[derive(Debug, Default)]
struct Counts {
    /// One per bound, and one for what is longer than the last.
    buckets: [AtomicU64; BOUNDS_MICROS.len() + 1],
    sum_micros: AtomicU64,
}

impl DurationHistogram {
    /// Counts one duration.
    pub fn observe_micros(&self, micros: u64) {
        let bucket = BOUNDS_MICROS.partition_point(|bound| *bound < micros);
        self.0.buckets[bucket].fetch_add(1, Ordering::Relaxed);
        self.0.sum_micros.fetch_add(micros, Ordering::Relaxed);
    }

    /// Durations counted so far.
    pub fn count(&self) -> u64 {
        self.0.buckets.iter().map(|bucket| bucket.load(Ordering::Relaxed)).sum()
    }
}

impl TypedMetric for DurationHistogram {
    const TYPE: MetricType = MetricType::Histogram;
}

impl EncodeMetric for DurationHistogram {
    fn encode(&self, mut encoder: MetricEncoder<'_>) -> Result<(), fmt::Error> {
        const MICROS: f64 = 1e6;
        let mut buckets = [(f64::INFINITY, 0); BOUNDS_MICROS.len() + 1];
        for (i, (bound, count)) in buckets.iter_mut().enumerate() {
            if let Some(micros) = BOUNDS_MICROS.get(i) {
                *bound = *micros as f64 / MICROS;
            }
            *count = self.0.buckets[i].load(Ordering::Relaxed);
        }
        // The count is the buckets' sum, so that a scrape between two additions stays consistent with itself.
        let count = buckets.iter().map(|(_, count)| count).sum();
        let sum = self.0.sum_micros.load(Ordering::Relaxed) as f64 / MICROS;
        encoder.encode_histogram::<NoLabelSet>(sum, count, &buckets, None)
    }

    fn metric_type(&self) -> MetricType {
        Self::TYPE
    }
}

#[cfg(test)]
mod tests {
    use prometheus_client::{
        encoding::text,
        registry::{Registry, Unit},
    };

    use super::*;

    #[test]
    fn a_duration_at_a_bound_belongs_to_that_bounds_bucket() {
        let histogram = DurationHistogram::default();
        for micros in [0, 50, 51, 10_000_000, 10_000_001] {
            histogram.observe_micros(micros);
        }
        let mut registry = Registry::default();
        registry.register_with_unit("wait", "A wait", Unit::Seconds, histogram.clone());
        let mut out = String::new();
        text::encode(&mut out, &registry).unwrap();

        assert_eq!(histogram.count(), 5);
        for line in [
            "wait_seconds_bucket{le=\"0.00005\"} 2",
            "wait_seconds_bucket{le=\"0.0001\"} 3",
            "wait_seconds_bucket{le=\"10.0\"} 4",
            "wait_seconds_bucket{le=\"+Inf\"} 5",
            "wait_seconds_count 5",
            "wait_seconds_sum 20.000102",
        ] {
            assert!(out.lines().any(|l| l == line), "{line} is missing in\n{out}");
        }
    }
}
