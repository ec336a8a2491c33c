//! Settings of a campaign: bringing them into their one form, and refusing what makes no sense.
//!
//! [`validate_new`] and [`validate_update`] are for the proposer: strict, helpful, free to change. `apply` trusts
//! nobody and checks [`check_safe`] again, whose meaning never changes.

use super::{
    limits::*,
    proto::{Kind, Spec},
};

/// One thing that is wrong with one field.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FieldError {
    /// The field of [`Spec`], e.g. `budget_micros`.
    pub field: &'static str,
    /// What is wrong with it, in words that stand alone.
    pub reason: String,
}

/// Sorts tracks, surfaces and markets and drops what is there twice, so that equal settings are equal messages.
pub fn normalise(spec: &mut Spec) {
    for list in [&mut spec.tracks, &mut spec.surfaces, &mut spec.markets] {
        list.sort_unstable();
        list.dedup();
    }
}

/// Checks the (normalised) settings of a new campaign.
///
/// # Errors
/// Everything that is wrong with them.
pub fn validate_new(spec: &Spec, now_ms: u64) -> Result<(), Vec<FieldError>> {
    let mut errors = Errors::default();
    validate_fields(spec, &mut errors);
    errors.check("end_ms", spec.end_ms > now_ms, || "the flight is over already".into());
    errors.finish()
}

/// Checks the (normalised) new settings of a campaign against its old ones. Whether the ledger allows the new budget
/// is for `apply` to say.
///
/// # Errors
/// Everything that is wrong with them.
pub fn validate_update(old: &Spec, new: &Spec, now_ms: u64) -> Result<(), Vec<FieldError>> {
    let mut errors = Errors::default();
    validate_fields(new, &mut errors);
    errors.check("name", new.name == old.name, || "is fixed at creation".into());
    errors.check("billable", new.billable == old.billable, || "is fixed at creation".into());
    errors.check("end_ms", new.end_ms == old.end_ms || new.end_ms > now_ms, || "lies in the past".into());
    errors.finish()
}

/// What `apply` needs to be safe with any settings. Part of what commands mean: never changes.
///
/// # Errors
/// The first thing that is wrong.
pub fn check_safe(spec: &Spec) -> Result<(), &'static str> {
    let finite = spec.relevance_floor.is_finite()
        && spec.boost_cap.is_finite()
        && spec.expected_billable_share.is_finite()
        && spec.relevance_floor >= 0.0
        && spec.boost_cap >= 0.0
        && spec.expected_billable_share >= 0.0;
    for (holds, reason) in [
        (is_name(&spec.name), "name"),
        (spec.budget_micros <= MICROS_MAX, "budget_micros"),
        ((1..=spec.budget_micros).contains(&spec.price_micros), "price_micros"),
        (spec.start_ms < spec.end_ms && spec.end_ms <= TIME_MAX_MS, "end_ms"),
        ((HOLD_MIN_MS..=HOLD_MAX_MS).contains(&spec.hold_ms), "hold_ms"),
        (is_billable(spec.billable), "billable"),
        ((MIN_STREAM_MIN_MS..=MIN_STREAM_MAX_MS).contains(&spec.min_stream_ms), "min_stream_ms"),
        (finite, "relevance_floor, boost_cap or expected_billable_share"),
    ] {
        if !holds {
            return Err(reason);
        }
    }
    Ok(())
}

/// Whether a market is two capital letters (ISO 3166 alpha-2).
pub fn is_market(market: &str) -> bool {
    market.len() == 2 && market.bytes().all(|b| b.is_ascii_uppercase())
}

/// Whether a surface is 1-32 characters `[a-z0-9_-]`.
pub fn is_surface(surface: &str) -> bool {
    (1..=SURFACE_BYTES_MAX).contains(&surface.len())
        && surface.bytes().all(|b| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'_' | b'-'))
}

/// Whether a name is 1-63 characters `[a-z0-9._-]` that starts and ends with a letter or digit.
pub fn is_name(name: &str) -> bool {
    let alphanumeric = |b: Option<&u8>| b.is_some_and(|b| matches!(b, b'a'..=b'z' | b'0'..=b'9'));
    let bytes = name.as_bytes();
    bytes.len() <= NAME_BYTES_MAX
        && alphanumeric(bytes.first())
        && alphanumeric(bytes.last())
        && bytes.iter().all(|b| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'.' | b'_' | b'-'))
}

fn is_billable(kind: i32) -> bool {
    kind == Kind::Impression as i32 || kind == Kind::Stream as i32
}

/// Text of 1 to `max` bytes without control characters.
fn is_text(text: &str, max: usize) -> bool {
    (1..=max).contains(&text.len()) && !text.chars().any(char::is_control)
}

#[derive(Default)]
struct Errors(Vec<FieldError>);

impl Errors {
    fn check(&mut self, field: &'static str, holds: bool, reason: impl FnOnce() -> String) {
        if !holds {
            self.0.push(FieldError { field, reason: reason() });
        }
    }

    /// A list of at most `max` entries, sorted and unique, each of the right form.
    fn check_list(&mut self, field: &'static str, list: &[String], max: usize, form: &str, is_form: fn(&str) -> bool) {
        self.check(field, list.len() <= max, || format!("has {} entries, at most {max} are allowed", list.len()));
        self.check(field, list.is_sorted_by(|a, b| a < b), || "must be sorted, each entry once".into());
        if let Some(entry) = list.iter().find(|entry| !is_form(entry)) {
            let shown: String = entry.chars().take(80).collect();
            self.check(field, false, || format!("{shown:?} is not {form}"));
        }
    }

    fn finish(self) -> Result<(), Vec<FieldError>> {
        if self.0.is_empty() { Ok(()) } else { Err(self.0) }
    }
}

fn validate_fields(spec: &Spec, errors: &mut Errors) {
    errors.check("name", is_name(&spec.name), || {
        format!("must be 1-{NAME_BYTES_MAX} characters [a-z0-9._-], starting and ending with a letter or digit")
    });
    errors.check("owner", is_text(&spec.owner, OWNER_BYTES_MAX), || {
        format!("must be 1-{OWNER_BYTES_MAX} bytes without control characters")
    });
    errors.check("labels", spec.labels.len() <= LABELS_MAX, || format!("at most {LABELS_MAX} are allowed"));
    let is_label = |(key, value): (&String, &String)| {
        is_text(key, LABEL_BYTES_MAX) && !key.contains('=') && (value.is_empty() || is_text(value, LABEL_BYTES_MAX))
    };
    errors.check("labels", spec.labels.iter().all(is_label), || {
        format!("keys (without '=') and values must have at most {LABEL_BYTES_MAX} bytes, keys at least one")
    });
    errors.check("tracks", !spec.tracks.is_empty(), || "at least one track is needed".into());
    let is_track: fn(&str) -> bool = |track| is_text(track, TRACK_BYTES_MAX);
    errors.check_list("tracks", &spec.tracks, TRACKS_MAX, "a track id of 1-64 bytes", is_track);
    errors.check_list("surfaces", &spec.surfaces, SURFACES_MAX, "a surface of 1-32 characters [a-z0-9_-]", is_surface);
    errors.check_list("markets", &spec.markets, MARKETS_MAX, "a market of two capital letters", is_market);

    errors.check("end_ms", spec.end_ms > spec.start_ms, || "the flight must end after its start".into());
    errors.check("end_ms", spec.end_ms <= TIME_MAX_MS, || "lies beyond the year 9999".into());
    errors.check("end_ms", spec.end_ms.saturating_sub(spec.start_ms) <= FLIGHT_MAX_MS, || {
        "a flight lasts at most 366 days".into()
    });
    errors.check("budget_micros", spec.budget_micros <= MICROS_MAX, || format!("at most {MICROS_MAX} is allowed"));
    errors.check("price_micros", spec.price_micros >= 1, || "must be at least 1".into());
    errors.check("budget_micros", spec.budget_micros >= spec.price_micros, || {
        "must pay for at least one delivery".into()
    });
    errors.check("billable", is_billable(spec.billable), || "must be IMPRESSION or STREAM".into());
    range(errors, "min_stream_ms", spec.min_stream_ms, MIN_STREAM_MIN_MS, MIN_STREAM_MAX_MS);
    range(errors, "hold_ms", spec.hold_ms, HOLD_MIN_MS, HOLD_MAX_MS);

    errors.check("relevance_floor", (0.0..=RELEVANCE_MAX).contains(&spec.relevance_floor), || {
        format!("must be a number from 0 to {RELEVANCE_MAX}")
    });
    errors.check("boost_cap", spec.boost_cap > 0.0 && spec.boost_cap <= BOOST_CAP_MAX, || {
        format!("must be a number above 0 and at most {BOOST_CAP_MAX}")
    });
    let share = spec.expected_billable_share;
    errors.check("expected_billable_share", share > 0.0 && share <= 1.0, || {
        "must be a number above 0 and at most 1".into()
    });
    errors.check("frequency_cap", spec.frequency_cap <= FREQUENCY_CAP_MAX, || {
        format!("at most {FREQUENCY_CAP_MAX} is allowed")
    });
    if spec.frequency_cap > 0 || spec.frequency_window_ms > 0 {
        let window = spec.frequency_window_ms;
        range(errors, "frequency_window_ms", window, FREQUENCY_WINDOW_MIN_MS, FREQUENCY_WINDOW_MAX_MS);
    }
}

fn range(errors: &mut Errors, field: &'static str, value: u64, min: u64, max: u64) {
    errors.check(field, (min..=max).contains(&value), || format!("must be from {min} to {max}"));
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec() -> Spec {
        Spec {
            name: "summer-hit".into(),
            owner: "label".into(),
            tracks: vec!["t1".into(), "t2".into()],
            markets: vec!["DE".into(), "SE".into()],
            surfaces: vec!["radio".into()],
            start_ms: 1_000,
            end_ms: 100_000,
            budget_micros: 1_000_000,
            price_micros: 1_000,
            billable: Kind::Stream as i32,
            min_stream_ms: MIN_STREAM_DEFAULT_MS,
            hold_ms: HOLD_DEFAULT_MS,
            boost_cap: BOOST_CAP_DEFAULT,
            expected_billable_share: BILLABLE_SHARE_DEFAULT,
            ..Spec::default()
        }
    }

    fn fields(result: Result<(), Vec<FieldError>>) -> Vec<&'static str> {
        result.err().into_iter().flatten().map(|e| e.field).collect()
    }

    #[test]
    fn sound_settings_pass() {
        assert_eq!(validate_new(&spec(), 0), Ok(()));
        assert_eq!(check_safe(&spec()), Ok(()));
        assert_eq!(validate_update(&spec(), &spec(), 200_000), Ok(()), "a flight that is over may stay so");
    }

    #[test]
    fn each_bad_field_is_named() {
        type Change = fn(&mut Spec);
        let table: &[(&str, Change)] = &[
            ("name", |s| s.name = String::new()),
            ("name", |s| s.name = "-a".into()),
            ("name", |s| s.name = "a.".into()),
            ("name", |s| s.name = "Ab".into()),
            ("name", |s| s.name = "a".repeat(64)),
            ("owner", |s| s.owner = String::new()),
            ("owner", |s| s.owner = "a\nb".into()),
            ("labels", |s| s.labels = (0..17).map(|i| (i.to_string(), String::new())).collect()),
            ("labels", |s| drop(s.labels.insert("a=b".into(), String::new()))),
            ("labels", |s| drop(s.labels.insert("a".into(), "v".repeat(64)))),
            ("tracks", |s| s.tracks.clear()),
            ("tracks", |s| s.tracks = (0..501).map(|i| format!("{i:04}")).collect()),
            ("tracks", |s| s.tracks = vec!["b".into(), "a".into()]),
            ("tracks", |s| s.tracks = vec!["a".into(), "a".into()]),
            ("tracks", |s| s.tracks = vec!["x".repeat(65)]),
            ("surfaces", |s| s.surfaces = vec!["Radio".into()]),
            ("markets", |s| s.markets = vec!["de".into()]),
            ("markets", |s| s.markets = vec!["DEU".into()]),
            ("end_ms", |s| s.end_ms = s.start_ms),
            ("end_ms", |s| s.end_ms = s.start_ms + FLIGHT_MAX_MS + 1),
            ("end_ms", |s| (s.start_ms, s.end_ms) = (TIME_MAX_MS, TIME_MAX_MS + 1)),
            ("budget_micros", |s| s.budget_micros = MICROS_MAX + 1),
            ("budget_micros", |s| s.budget_micros = s.price_micros - 1),
            ("price_micros", |s| s.price_micros = 0),
            ("billable", |s| s.billable = Kind::Save as i32),
            ("billable", |s| s.billable = 99),
            ("min_stream_ms", |s| s.min_stream_ms = 0),
            ("min_stream_ms", |s| s.min_stream_ms = MIN_STREAM_MAX_MS + 1),
            ("hold_ms", |s| s.hold_ms = HOLD_MIN_MS - 1),
            ("hold_ms", |s| s.hold_ms = HOLD_MAX_MS + 1),
            ("relevance_floor", |s| s.relevance_floor = f64::NAN),
            ("relevance_floor", |s| s.relevance_floor = -0.1),
            ("boost_cap", |s| s.boost_cap = 0.0),
            ("boost_cap", |s| s.boost_cap = f64::INFINITY),
            ("expected_billable_share", |s| s.expected_billable_share = 1.1),
            ("expected_billable_share", |s| s.expected_billable_share = f64::NAN),
            ("frequency_cap", |s| (s.frequency_cap, s.frequency_window_ms) = (1_001, 60_000)),
            ("frequency_window_ms", |s| s.frequency_cap = 1),
        ];
        for (row, (field, change)) in table.iter().enumerate() {
            let mut spec = spec();
            change(&mut spec);
            assert_eq!(fields(validate_new(&spec, 0)), [*field], "row {row}");
        }
    }

    #[test]
    fn all_that_is_wrong_is_named_at_once() {
        let errors = fields(validate_new(&Spec::default(), 0));
        for field in ["name", "owner", "tracks", "end_ms", "price_micros", "billable", "hold_ms", "boost_cap"] {
            assert!(errors.contains(&field), "{field}");
        }
        assert!(check_safe(&Spec::default()).is_err());
    }

    #[test]
    fn a_flight_that_is_over_can_neither_be_created_nor_moved_to() {
        assert_eq!(fields(validate_new(&spec(), 100_000)), ["end_ms"]);
        let moved = Spec { end_ms: 90_000, ..spec() };
        assert_eq!(fields(validate_update(&spec(), &moved, 95_000)), ["end_ms"]);
    }

    #[test]
    fn name_and_billable_kind_are_fixed() {
        let changed = Spec { name: "other".into(), billable: Kind::Impression as i32, ..spec() };
        assert_eq!(fields(validate_update(&spec(), &changed, 0)), ["name", "billable"]);
    }

    #[test]
    fn normalised_settings_are_sorted_and_unique() {
        let mut spec = spec();
        spec.tracks = ["b", "a", "b"].map(String::from).to_vec();
        normalise(&mut spec);
        assert_eq!(spec.tracks, ["a", "b"]);
    }
}
