//! Requests that are wrong in themselves, as pure functions: every bad field is named, with its limit.

use tonic_types::FieldViolation;
use xxhash_rust::xxh3::xxh3_64;

use super::{CANDIDATES_MAX, EVENTS_MAX, PAGE_SIZE_MAX};
use crate::{
    campaign::{
        limits::{
            HOLD_MAX_MS, LABEL_BYTES_MAX, NAME_BYTES_MAX, OWNER_BYTES_MAX, RELEVANCE_MAX, REQUEST_ID_BYTES_MAX,
            SURFACE_BYTES_MAX, TRACK_BYTES_MAX,
        },
        spec::{is_market, is_name, is_surface},
        version::Version,
    },
    v1,
};

/// Bytes of a listener's id.
const LISTENER_BYTES_MAX: usize = 128;
/// Shortest hold time a request may ask for; the campaign's own limit is higher.
const REQUEST_HOLD_MIN_MS: u64 = 1_000;
/// Interval of WatchPacing, and its default.
const WATCH_MIN_MS: u64 = 100;
const WATCH_MAX_MS: u64 = 60_000;
const WATCH_DEFAULT_MS: u64 = 1_000;
/// Bad fields named in one answer: enough to see what is wrong.
const VIOLATIONS_MAX: usize = 20;

/// What is wrong with a request, so far.
#[derive(Debug, Default)]
pub(crate) struct Violations(Vec<FieldViolation>);

impl Violations {
    /// Notes a bad field unless it holds. Words are made only for bad ones.
    pub(crate) fn check(&mut self, holds: bool, field: impl FnOnce() -> String, why: impl FnOnce() -> String) {
        if !holds && self.0.len() < VIOLATIONS_MAX {
            self.0.push(FieldViolation::new(field(), why()));
        }
    }

    fn bytes(&mut self, field: &'static str, text: &str, min: usize, max: usize) {
        self.check(
            (min..=max).contains(&text.len()),
            || field.to_owned(),
            || format!("must have {min} to {max} bytes, has {}", text.len()),
        );
    }

    pub(crate) fn finish(self) -> Result<(), Vec<FieldViolation>> {
        if self.0.is_empty() { Ok(()) } else { Err(self.0) }
    }
}

/// A score request. Allocates nothing if all is well.
pub(crate) fn score(request: &v1::ScoreRequest) -> Result<(), Vec<FieldViolation>> {
    let v1::ScoreRequest { request_id, listener_id, surface, market, candidates, slots, hold_ms } = request;
    let mut bad = Violations::default();
    bad.bytes("request_id", request_id, 0, REQUEST_ID_BYTES_MAX);
    bad.bytes("listener_id", listener_id, 1, LISTENER_BYTES_MAX);
    bad.check(
        is_surface(surface),
        || "surface".into(),
        || format!("must be 1 to {SURFACE_BYTES_MAX} characters [a-z0-9_-]"),
    );
    bad.check(
        is_market(market),
        || "market".into(),
        || "must be two capital letters (ISO 3166 alpha-2), like SE".into(),
    );
    bad.check(
        *hold_ms == 0 || (REQUEST_HOLD_MIN_MS..=HOLD_MAX_MS).contains(hold_ms),
        || "hold_ms".into(),
        || format!("must be 0 or {REQUEST_HOLD_MIN_MS} to {HOLD_MAX_MS}, is {hold_ms}"),
    );
    let count = candidates.len();
    bad.check(
        (1..=CANDIDATES_MAX).contains(&count),
        || "candidates".into(),
        || format!("must be 1 to {CANDIDATES_MAX}, are {count}"),
    );
    bad.check(
        *slots as usize <= count,
        || "slots".into(),
        || format!("must be at most the number of candidates ({count}), is {slots}"),
    );
    if count <= CANDIDATES_MAX {
        for (i, v1::Candidate { track_id, relevance }) in candidates.iter().enumerate() {
            let len = track_id.len();
            bad.check(
                (1..=TRACK_BYTES_MAX).contains(&len),
                || format!("candidates[{i}].track_id"),
                || format!("must have 1 to {TRACK_BYTES_MAX} bytes, has {len}"),
            );
            // NaN is in no range.
            bad.check(
                (0.0..=RELEVANCE_MAX).contains(relevance),
                || format!("candidates[{i}].relevance"),
                || format!("must be a number from 0 to {RELEVANCE_MAX}, is {relevance}"),
            );
        }
        if let Some((first, second)) = repeated_track(candidates) {
            bad.check(
                false,
                || format!("candidates[{second}].track_id"),
                || format!("each track may be there once; it is candidates[{first}] already"),
            );
        }
    }
    bad.finish()
}

/// The first track that is there twice, by positions. At most [`CANDIDATES_MAX`] candidates; no allocation: a hash
/// table on the stack, half full at most.
fn repeated_track(candidates: &[v1::Candidate]) -> Option<(usize, usize)> {
    const SLOTS: usize = (CANDIDATES_MAX * 2).next_power_of_two();
    /// Marks a free slot; positions are smaller.
    const FREE: u16 = u16::MAX;
    let mut table = [FREE; SLOTS];
    for (i, candidate) in candidates.iter().enumerate() {
        let mut slot = xxh3_64(candidate.track_id.as_bytes()) as usize % SLOTS;
        while table[slot] != FREE {
            let earlier = usize::from(table[slot]);
            if candidates[earlier].track_id == candidate.track_id {
                return Some((earlier, i));
            }
            slot = (slot + 1) % SLOTS;
        }
        table[slot] = i as u16;
    }
    None
}

/// A report as a whole. What is wrong with single events is answered event by event.
pub(crate) fn report(request: &v1::ReportRequest) -> Result<(), Vec<FieldViolation>> {
    let mut bad = Violations::default();
    let count = request.events.len();
    bad.check(
        (1..=EVENTS_MAX).contains(&count),
        || "events".into(),
        || format!("must be 1 to {EVENTS_MAX}, are {count}"),
    );
    bad.finish()
}

/// A campaign's name, alone.
pub(crate) fn name(name: &str) -> Result<(), Vec<FieldViolation>> {
    let mut bad = Violations::default();
    check_name(&mut bad, name);
    bad.finish()
}

fn check_name(bad: &mut Violations, name: &str) {
    bad.check(
        is_name(name),
        || "name".into(),
        || format!("must be 1 to {NAME_BYTES_MAX} characters [a-z0-9._-], starting and ending with a letter or digit"),
    );
}

/// A change of a campaign's state; answers the version it starts from.
pub(crate) fn state_change(name: &str, etag: &str, request_id: &str) -> Result<Version, Vec<FieldViolation>> {
    let mut bad = Violations::default();
    check_name(&mut bad, name);
    bad.bytes("request_id", request_id, 0, REQUEST_ID_BYTES_MAX);
    let expected = check_campaign_etag(&mut bad, etag);
    bad.finish().map(|()| expected)
}

/// The id of a create request, and that there are settings.
pub(crate) fn create(request: &v1::CreateCampaignRequest) -> Result<&v1::CampaignSpec, Vec<FieldViolation>> {
    let mut bad = Violations::default();
    bad.bytes("request_id", &request.request_id, 1, REQUEST_ID_BYTES_MAX);
    bad.check(request.spec.is_some(), || "spec".into(), || "is missing".into());
    bad.finish()?;
    Ok(request.spec.as_ref().expect("checked above"))
}

/// What is wrong with an update apart from its values; answers the new values and the version it starts from.
pub(crate) fn update(request: &v1::UpdateCampaignRequest) -> Result<(&v1::CampaignSpec, Version), Vec<FieldViolation>> {
    let mut bad = Violations::default();
    bad.bytes("request_id", &request.request_id, 0, REQUEST_ID_BYTES_MAX);
    let expected = check_campaign_etag(&mut bad, &request.etag);
    match &request.spec {
        Some(spec) => {
            bad.check(is_name(&spec.name), || "spec.name".into(), || "must name the campaign to change".into())
        }
        None => bad.check(false, || "spec".into(), || "is missing".into()),
    }
    bad.finish()?;
    Ok((request.spec.as_ref().expect("checked above"), expected))
}

/// An etag of a campaign is its version; it was a bare revision once, which also fits a later campaign of its name.
fn check_campaign_etag(bad: &mut Violations, etag: &str) -> Version {
    let expected = if etag.is_empty() { Some(Version::ANY) } else { Version::parse(etag) };
    let why = || "must be empty or come from a read by this program's version or a later one: read it again".into();
    bad.check(expected.is_some(), || "etag".into(), why);
    expected.unwrap_or_default()
}

/// An etag of the cluster's settings is their revision; 0 stands for none.
pub(crate) fn check_etag(bad: &mut Violations, etag: &str) -> u64 {
    if etag.is_empty() {
        return 0;
    }
    let revision = etag.parse().ok().filter(|revision| *revision > 0);
    bad.check(revision.is_some(), || "etag".into(), || "must be empty or come from a read".into());
    revision.unwrap_or(0)
}

/// The filter of a list; answers the page size. The page token is checked apart.
pub(crate) fn list(request: &v1::ListCampaignsRequest) -> Result<usize, Vec<FieldViolation>> {
    let mut bad = Violations::default();
    let size = request.page_size;
    bad.check(size <= PAGE_SIZE_MAX, || "page_size".into(), || format!("must be at most {PAGE_SIZE_MAX}, is {size}"));
    bad.bytes("owner", &request.owner, 0, OWNER_BYTES_MAX);
    let (key, value) = request.label.split_once('=').unwrap_or((&request.label, ""));
    bad.check(
        key.len() <= LABEL_BYTES_MAX && value.len() <= LABEL_BYTES_MAX && (!key.is_empty() || request.label.is_empty()),
        || "label".into(),
        || format!("must be key or key=value, each of at most {LABEL_BYTES_MAX} bytes"),
    );
    let state = request.state;
    bad.check(v1::CampaignState::try_from(state).is_ok(), || "state".into(), || format!("{state} is no state"));
    bad.finish()?;
    Ok(if size == 0 { super::PAGE_SIZE_DEFAULT } else { size } as usize)
}

/// The interval of a watch.
pub(crate) fn watch(request: &v1::WatchPacingRequest) -> Result<u64, Vec<FieldViolation>> {
    let mut bad = Violations::default();
    check_name(&mut bad, &request.name);
    let interval_ms = if request.interval_ms == 0 { WATCH_DEFAULT_MS } else { request.interval_ms };
    bad.check(
        (WATCH_MIN_MS..=WATCH_MAX_MS).contains(&interval_ms),
        || "interval_ms".into(),
        || format!("must be 0 or {WATCH_MIN_MS} to {WATCH_MAX_MS}, is {interval_ms}"),
    );
    bad.finish().map(|()| interval_ms)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn candidate(track_id: &str, relevance: f64) -> v1::Candidate {
        v1::Candidate { track_id: track_id.into(), relevance }
    }

    fn request() -> v1::ScoreRequest {
        v1::ScoreRequest {
            request_id: "r".into(),
            listener_id: "l".into(),
            surface: "radio".into(),
            market: "SE".into(),
            candidates: vec![candidate("a", 0.0), candidate("b", RELEVANCE_MAX)],
            slots: 2,
            hold_ms: 0,
        }
    }

    fn fields<T>(result: Result<T, Vec<FieldViolation>>) -> Vec<String> {
        result.err().into_iter().flatten().map(|v| v.field).collect()
    }

    #[test]
    fn a_sound_score_request_passes() {
        assert_eq!(fields(score(&request())), [""; 0]);
        let full = (0..CANDIDATES_MAX).map(|i| candidate(&format!("track{i}"), 0.5)).collect();
        assert_eq!(fields(score(&v1::ScoreRequest { candidates: full, hold_ms: 1_000, ..request() })), [""; 0]);
    }

    #[test]
    fn each_bad_field_of_a_score_request_is_named() {
        type Change = fn(&mut v1::ScoreRequest);
        let table: &[(&str, Change)] = &[
            ("request_id", |r| r.request_id = "x".repeat(65)),
            ("listener_id", |r| r.listener_id = String::new()),
            ("listener_id", |r| r.listener_id = "x".repeat(129)),
            ("surface", |r| r.surface = String::new()),
            ("surface", |r| r.surface = "Radio".into()),
            ("market", |r| r.market = "se".into()),
            ("market", |r| r.market = "SWE".into()),
            ("market", |r| r.market = String::new()),
            ("candidates", |r| (r.candidates, r.slots) = (vec![], 0)),
            ("candidates", |r| r.candidates = vec![candidate("a", 1.0); 501]),
            ("candidates[1].track_id", |r| r.candidates[1].track_id = String::new()),
            ("candidates[0].track_id", |r| r.candidates[0].track_id = "x".repeat(65)),
            ("candidates[1].track_id", |r| r.candidates[1].track_id = "a".into()),
            ("candidates[0].relevance", |r| r.candidates[0].relevance = f64::NAN),
            ("candidates[0].relevance", |r| r.candidates[0].relevance = f64::INFINITY),
            ("candidates[0].relevance", |r| r.candidates[0].relevance = -0.1),
            ("candidates[0].relevance", |r| r.candidates[0].relevance = 1_000_000.5),
            ("slots", |r| r.slots = 3),
            ("slots", |r| r.slots = u32::MAX),
            ("hold_ms", |r| r.hold_ms = 999),
            ("hold_ms", |r| r.hold_ms = 3_600_001),
            ("hold_ms", |r| r.hold_ms = u64::MAX),
        ];
        for (row, (field, change)) in table.iter().enumerate() {
            let mut request = request();
            change(&mut request);
            assert_eq!(fields(score(&request)), [*field], "row {row}");
        }
    }

    #[test]
    fn violations_say_the_limit_and_what_was_sent() {
        let error = score(&v1::ScoreRequest { slots: 9, ..request() }).unwrap_err();
        assert_eq!(error[0].description, "must be at most the number of candidates (2), is 9");
    }

    #[test]
    fn the_number_of_violations_in_an_answer_is_bounded() {
        let candidates = (0..500).map(|i| candidate(&format!("t{i}"), f64::NAN)).collect();
        let error = score(&v1::ScoreRequest { candidates, ..request() }).unwrap_err();
        assert_eq!(error.len(), VIOLATIONS_MAX);
    }

    #[test]
    fn a_repeated_track_is_found_wherever_it_stands() {
        let mut candidates: Vec<_> = (0..CANDIDATES_MAX).map(|i| candidate(&format!("track{i}"), 0.5)).collect();
        assert_eq!(repeated_track(&candidates), None);
        candidates[499].track_id = "track0".into();
        assert_eq!(repeated_track(&candidates), Some((0, 499)));
    }

    #[test]
    fn a_report_has_one_to_a_thousand_events() {
        let of = |n| v1::ReportRequest { events: vec![v1::OutcomeEvent::default(); n] };
        assert_eq!(fields(report(&of(0))), ["events"]);
        assert_eq!(fields(report(&of(1))), [""; 0]);
        assert_eq!(fields(report(&of(1_000))), [""; 0]);
        assert_eq!(fields(report(&of(1_001))), ["events"]);
    }

    #[test]
    fn an_etag_of_a_campaign_is_its_version() {
        assert_eq!(state_change("a", "", "").unwrap(), Version::ANY);
        assert_eq!(state_change("a", "3-12", "id").unwrap(), Version { incarnation: 3, revision: 12 });
        for etag in ["0", "-1", "x", "12", "0-12", "3-0", "99999999999999999999"] {
            assert_eq!(fields(state_change("a", etag, "")), ["etag"], "{etag}");
        }
        assert_eq!(fields(state_change("", "x", &"r".repeat(65))), ["name", "request_id", "etag"]);
    }

    #[test]
    fn writes_need_an_id_and_settings() {
        assert_eq!(fields(create(&v1::CreateCampaignRequest::default())), ["request_id", "spec"]);
        assert_eq!(fields(update(&v1::UpdateCampaignRequest::default())), ["spec"]);
        let unnamed = v1::UpdateCampaignRequest { spec: Some(Default::default()), ..Default::default() };
        assert_eq!(fields(update(&unnamed)), ["spec.name"]);
    }

    #[test]
    fn a_list_has_bounded_pages_and_sound_filters() {
        type Request = v1::ListCampaignsRequest;
        assert_eq!(list(&Request::default()).unwrap(), 100);
        assert_eq!(
            list(&Request { page_size: 1_000, label: "a=b".into(), state: 2, ..Default::default() }).unwrap(),
            1_000
        );
        assert_eq!(fields(list(&Request { page_size: 1_001, ..Default::default() })), ["page_size"]);
        assert_eq!(fields(list(&Request { label: "=b".into(), ..Default::default() })), ["label"]);
        assert_eq!(fields(list(&Request { state: 9, ..Default::default() })), ["state"]);
        assert_eq!(fields(list(&Request { owner: "o".repeat(64), ..Default::default() })), ["owner"]);
    }

    #[test]
    fn a_watch_has_a_bounded_interval() {
        let of = |interval_ms| v1::WatchPacingRequest { name: "a".into(), interval_ms };
        assert_eq!(watch(&of(0)).unwrap(), 1_000);
        assert_eq!(watch(&of(100)).unwrap(), 100);
        assert_eq!(fields(watch(&of(99))), ["interval_ms"]);
        assert_eq!(fields(watch(&of(60_001))), ["interval_ms"]);
    }
}
