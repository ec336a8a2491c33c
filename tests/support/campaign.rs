//! A campaign that pacing does not slow down.

use andante::campaign::proto::{self, Kind};
use andante_cluster::env::{Clock as _, SystemClock};

const HOUR_MS: u64 = 3_600_000;

/// A campaign with one track, in flight for two hours, with more money than a test can spend.
pub fn spec(name: &str) -> proto::Spec {
    let now_ms = SystemClock::default().now_ms();
    proto::Spec {
        name: name.into(),
        owner: "label".into(),
        tracks: vec![format!("track-{name}")],
        start_ms: now_ms - HOUR_MS,
        end_ms: now_ms + HOUR_MS,
        budget_micros: 1_000_000_000,
        price_micros: 1_000,
        billable: Kind::Stream.into(),
        min_stream_ms: 30_000,
        hold_ms: 10_000,
        boost_cap: 1.0,
        expected_billable_share: 0.5,
        ..Default::default()
    }
}
