//! What looks unwise about a campaign's settings, though it is allowed.

use crate::campaign::{limits, proto::Spec};

/// A campaign that cannot deliver at least this share of its budget in its flight is warned about.
const DELIVERABLE: f64 = 0.99;

/// Warnings, in sentences.
pub(crate) fn warnings(spec: &Spec, skew_margin_ms: u64) -> Vec<String> {
    let mut warnings = Vec::new();
    let share = deliverable_share(spec, skew_margin_ms);
    if share < DELIVERABLE {
        warnings.push(format!(
            "about {:.0} % of the budget can be delivered at most: with a hold time of {} s and an expected billable \
             share of {}, the flight of {} s is too short for unused money to come back and be offered again; a \
             shorter hold_ms or a longer flight helps",
            (share * 100.0).floor(),
            spec.hold_ms / 1_000,
            spec.expected_billable_share,
            spec.end_ms.saturating_sub(spec.start_ms) / 1_000,
        ));
    }
    warnings
}

/// Largest share of the budget that can be billed in the flight. Money set aside is billed with the expected share;
/// the rest comes back after life + hold + margin and is offered again, as often as the flight allows.
fn deliverable_share(spec: &Spec, skew_margin_ms: u64) -> f64 {
    let life_ms = (spec.hold_ms / 8).clamp(limits::ALLOWANCE_LIFE_MIN_MS, limits::ALLOWANCE_LIFE_MAX_MS);
    let round_ms = (life_ms + spec.hold_ms + skew_margin_ms) as f64;
    let flight_ms = spec.end_ms.saturating_sub(spec.start_ms) as f64;
    // The first round needs no money back.
    let rounds = (flight_ms / round_ms).floor() + 1.0;
    1.0 - (1.0 - spec.expected_billable_share).powf(rounds)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(flight_ms: u64, hold_ms: u64, expected_billable_share: f64) -> Spec {
        Spec { start_ms: 1_000, end_ms: 1_000 + flight_ms, hold_ms, expected_billable_share, ..Spec::default() }
    }

    #[test]
    fn a_day_with_the_default_hold_time_is_fine() {
        assert!(warnings(&spec(86_400_000, 300_000, 0.5), 5_000).is_empty());
    }

    #[test]
    fn a_flight_too_short_for_its_hold_time_is_warned_about_with_figures() {
        let text = warnings(&spec(3_600_000, 3_600_000, 0.5), 5_000).concat();
        assert!(text.starts_with("about 50 % of the budget") && text.contains("3600 s"), "{text}");
    }

    #[test]
    fn a_billable_share_of_one_needs_no_money_back() {
        assert!(warnings(&spec(1_000, 3_600_000, 1.0), 5_000).is_empty());
    }
}
