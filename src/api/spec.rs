//! Campaigns between the wire and the book: defaults in, names as in the .proto files out.

use std::collections::HashSet;

use tonic_types::FieldViolation;

use super::validate::Violations;
use crate::{
    campaign::{
        limits::{
            BILLABLE_SHARE_DEFAULT, BOOST_CAP_DEFAULT, FREQUENCY_WINDOW_DEFAULT_MS, HOLD_DEFAULT_MS, MARKETS_MAX,
            MIN_STREAM_DEFAULT_MS, SURFACES_MAX, TRACKS_MAX,
        },
        proto,
        spec::{FieldError, normalise},
        version::Version,
    },
    router::CampaignView,
    v1,
};

/// The book's settings: zero becomes the default that the .proto file promises, lists become sorted.
///
/// # Errors
/// What only the wire's form can get wrong: an unknown enum, an entry that is there twice.
pub(crate) fn from_wire(spec: &v1::CampaignSpec, now_ms: u64) -> Result<proto::Spec, Vec<FieldViolation>> {
    let mut bad = Violations::default();
    for (field, list, max) in [
        ("spec.track_ids", &spec.track_ids, TRACKS_MAX),
        ("spec.surfaces", &spec.surfaces, SURFACES_MAX),
        ("spec.markets", &spec.markets, MARKETS_MAX),
    ] {
        let count = list.len();
        bad.check(count <= max, || field.into(), || format!("at most {max} entries are allowed, there are {count}"));
        if let Some((position, entry)) = repeated(&list[..count.min(max)]) {
            bad.check(false, || format!("{field}[{position}]"), || format!("{entry:?} is there twice"));
        }
    }
    let billable = match v1::BillableKind::try_from(spec.billable) {
        Ok(v1::BillableKind::Unspecified | v1::BillableKind::Stream) => proto::Kind::Stream,
        Ok(v1::BillableKind::Impression) => proto::Kind::Impression,
        Err(_) => {
            bad.check(false, || "spec.billable".into(), || format!("{} is no kind that can bill", spec.billable));
            proto::Kind::Unspecified
        }
    };
    bad.finish()?;

    fn or<T: PartialEq + Default>(value: T, default: T) -> T {
        if value == T::default() { default } else { value }
    }
    let window_ms = match (spec.frequency_cap, spec.frequency_window_ms) {
        (1.., 0) => FREQUENCY_WINDOW_DEFAULT_MS,
        (_, window_ms) => window_ms,
    };
    let mut spec = proto::Spec {
        name: spec.name.clone(),
        owner: spec.owner.clone(),
        labels: spec.labels.clone(),
        tracks: spec.track_ids.clone(),
        surfaces: spec.surfaces.clone(),
        markets: spec.markets.clone(),
        start_ms: or(spec.start_ms, now_ms),
        end_ms: spec.end_ms,
        budget_micros: spec.budget_micros,
        price_micros: spec.price_micros,
        billable: billable as i32,
        min_stream_ms: or(spec.min_stream_ms, MIN_STREAM_DEFAULT_MS),
        hold_ms: or(spec.hold_ms, HOLD_DEFAULT_MS),
        relevance_floor: spec.relevance_floor,
        boost_cap: or(spec.boost_cap, BOOST_CAP_DEFAULT),
        frequency_cap: spec.frequency_cap,
        frequency_window_ms: window_ms,
        expected_billable_share: or(spec.expected_billable_share, BILLABLE_SHARE_DEFAULT),
    };
    normalise(&mut spec);
    Ok(spec)
}

/// The settings as the wire has them.
pub(crate) fn to_wire(spec: &proto::Spec) -> v1::CampaignSpec {
    let billable = match spec.billable() {
        proto::Kind::Impression => v1::BillableKind::Impression,
        proto::Kind::Stream => v1::BillableKind::Stream,
        _ => v1::BillableKind::Unspecified,
    };
    v1::CampaignSpec {
        name: spec.name.clone(),
        owner: spec.owner.clone(),
        labels: spec.labels.clone(),
        track_ids: spec.tracks.clone(),
        surfaces: spec.surfaces.clone(),
        markets: spec.markets.clone(),
        start_ms: spec.start_ms,
        end_ms: spec.end_ms,
        budget_micros: spec.budget_micros,
        price_micros: spec.price_micros,
        billable: billable as i32,
        min_stream_ms: spec.min_stream_ms,
        hold_ms: spec.hold_ms,
        relevance_floor: spec.relevance_floor,
        boost_cap: spec.boost_cap,
        frequency_cap: spec.frequency_cap,
        frequency_window_ms: spec.frequency_window_ms,
        expected_billable_share: spec.expected_billable_share,
    }
}

/// A campaign as the wire has it.
pub(crate) fn campaign(view: &CampaignView) -> v1::Campaign {
    let proto::Campaign { spec, incarnation, created_ms, updated_ms, settled_micros, open_micros, .. } =
        view.campaign.as_ref();
    let counters = view.campaign.counters.unwrap_or_default();
    v1::Campaign {
        spec: spec.as_ref().map(to_wire),
        etag: Version::of(&view.campaign).to_string(),
        state: state_to_wire(view.campaign.state()) as i32,
        incarnation: *incarnation,
        created_ms: *created_ms,
        updated_ms: *updated_ms,
        ledger: Some(v1::Ledger {
            settled_micros: *settled_micros,
            open_micros: *open_micros,
            billed: counters.billed,
            impressions: counters.impressions,
            streams: counters.streams,
            short_streams: counters.short_streams,
            skips: counters.skips,
            saves: counters.saves,
            released: counters.released,
            expired: counters.expired,
            refused_closed: counters.refused_closed,
            open_allowances: view.open_allowances,
        }),
        explanation: view.explanation.clone(),
    }
}

pub(crate) fn state_to_wire(state: proto::State) -> v1::CampaignState {
    match state {
        proto::State::Unspecified => v1::CampaignState::Unspecified,
        proto::State::Active => v1::CampaignState::Active,
        proto::State::Paused => v1::CampaignState::Paused,
        proto::State::Ended => v1::CampaignState::Ended,
        proto::State::Deleting => v1::CampaignState::Deleting,
    }
}

/// `None`: all states.
pub(crate) fn state_from_wire(state: v1::CampaignState) -> Option<proto::State> {
    match state {
        v1::CampaignState::Unspecified => None,
        v1::CampaignState::Active => Some(proto::State::Active),
        v1::CampaignState::Paused => Some(proto::State::Paused),
        v1::CampaignState::Ended => Some(proto::State::Ended),
        v1::CampaignState::Deleting => Some(proto::State::Deleting),
    }
}

/// What the core found wrong, with the wire's names.
pub(crate) fn violations(errors: Vec<FieldError>) -> Vec<FieldViolation> {
    let wire_name = |field| if field == "tracks" { "track_ids" } else { field };
    errors.into_iter().map(|e| FieldViolation::new(format!("spec.{}", wire_name(e.field)), e.reason)).collect()
}

/// The first entry that was there before, with its position.
fn repeated(list: &[String]) -> Option<(usize, &str)> {
    let mut seen = HashSet::with_capacity(list.len());
    list.iter().enumerate().find(|(_, entry)| !seen.insert(entry.as_str())).map(|(i, entry)| (i, entry.as_str()))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::campaign::spec::validate_new;

    fn wire() -> v1::CampaignSpec {
        v1::CampaignSpec {
            name: "c".into(),
            owner: "o".into(),
            track_ids: vec!["b".into(), "a".into()],
            end_ms: 100_000,
            budget_micros: 1_000,
            price_micros: 10,
            ..Default::default()
        }
    }

    fn fields<T>(result: Result<T, Vec<FieldViolation>>) -> Vec<String> {
        result.err().into_iter().flatten().map(|v| v.field).collect()
    }

    #[test]
    fn zero_becomes_the_default_that_the_contract_promises() {
        let spec = from_wire(&wire(), 5_000).unwrap();
        assert_eq!(spec.start_ms, 5_000);
        assert_eq!(spec.billable(), proto::Kind::Stream);
        assert_eq!((spec.min_stream_ms, spec.hold_ms), (30_000, 300_000));
        assert_eq!((spec.boost_cap, spec.expected_billable_share), (1.0, 0.5));
        assert_eq!((spec.frequency_cap, spec.frequency_window_ms), (0, 0));
        assert_eq!(spec.tracks, ["a", "b"]);
        assert_eq!(validate_new(&spec, 5_000), Ok(()));
        let capped = from_wire(&v1::CampaignSpec { frequency_cap: 3, ..wire() }, 1).unwrap();
        assert_eq!(capped.frequency_window_ms, 86_400_000);
    }

    #[test]
    fn settings_survive_the_way_to_the_wire_and_back() {
        let spec = from_wire(&v1::CampaignSpec { frequency_cap: 3, billable: 1, ..wire() }, 5_000).unwrap();
        assert_eq!(from_wire(&to_wire(&spec), 9_999).unwrap(), spec);
    }

    #[test]
    fn what_only_the_wire_can_get_wrong_is_named() {
        type Change = fn(&mut v1::CampaignSpec);
        let table: &[(&str, Change)] = &[
            ("spec.track_ids[2]", |s| s.track_ids.push("b".into())),
            ("spec.track_ids", |s| s.track_ids = (0..501).map(|i| i.to_string()).collect()),
            ("spec.markets[1]", |s| s.markets = vec!["SE".into(), "SE".into()]),
            ("spec.surfaces[1]", |s| s.surfaces = vec!["mix".into(), "mix".into()]),
            ("spec.billable", |s| s.billable = 3),
        ];
        for (field, change) in table {
            let mut spec = wire();
            change(&mut spec);
            assert_eq!(fields(from_wire(&spec, 1)), [*field]);
        }
    }

    #[test]
    fn what_the_core_finds_wrong_has_the_wires_names() {
        let spec = from_wire(&v1::CampaignSpec { track_ids: vec![], price_micros: 0, ..wire() }, 5_000).unwrap();
        let named: Vec<String> =
            violations(validate_new(&spec, 5_000).unwrap_err()).into_iter().map(|v| v.field).collect();
        assert_eq!(named, ["spec.track_ids", "spec.price_micros"]);
    }

    #[test]
    fn numbers_that_are_none_reach_the_cores_check() {
        let wire = v1::CampaignSpec { boost_cap: f64::NAN, expected_billable_share: f64::NAN, ..wire() };
        let spec = from_wire(&wire, 5_000).unwrap();
        assert_eq!(validate_new(&spec, 5_000).unwrap_err().len(), 2);
    }

    #[test]
    fn a_campaign_shows_its_ledger() {
        let campaign = proto::Campaign {
            spec: Some(from_wire(&wire(), 1).unwrap()),
            incarnation: 2,
            revision: 4,
            state: proto::State::Paused as i32,
            settled_micros: 30,
            open_micros: 20,
            counters: Some(proto::Counters { billed: 3, skips: 1, ..Default::default() }),
            ..Default::default()
        };
        let view = CampaignView { campaign: Arc::new(campaign), open_allowances: 2, explanation: "paused".into() };
        let shown = super::campaign(&view);
        assert_eq!((shown.etag.as_str(), shown.state()), ("2-4", v1::CampaignState::Paused));
        let ledger = shown.ledger.unwrap();
        assert_eq!((ledger.settled_micros, ledger.open_micros, ledger.billed, ledger.skips), (30, 20, 3, 1));
        assert_eq!((ledger.open_allowances, shown.explanation.as_str()), (2, "paused"));
    }
}
