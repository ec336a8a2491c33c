//! Times as people write them.

use andante_cluster::env::{Clock as _, SystemClock};
use jiff::{SignedDuration, Timestamp};

/// Reads a time: UTC milliseconds, RFC 3339, `now`, or an offset from now like `+2h` or `+1d 30m`.
pub(super) fn parse(text: &str) -> Result<u64, String> {
    parse_at(text, SystemClock::default().now_ms())
}

fn parse_at(text: &str, now_ms: u64) -> Result<u64, String> {
    let text = text.trim();
    if text == "now" {
        return Ok(now_ms);
    }
    if let Some(offset) = text.strip_prefix('+') {
        let bad = |e| format!("{text:?} is no offset like +2h or +90m: {e}");
        let millis = duration(offset).map_err(bad)?;
        return now_ms.checked_add(millis).ok_or_else(|| format!("{text:?} is too far away"));
    }
    if !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit()) {
        return text.parse().map_err(|_| format!("{text:?} is too large"));
    }
    let time: Timestamp = text
        .parse()
        .map_err(|_| format!("{text:?} is no time; write 2026-05-01T08:00:00Z, +2h, now or milliseconds"))?;
    u64::try_from(time.as_millisecond()).map_err(|_| format!("{text:?} lies before 1970"))
}

/// Reads a length of time in milliseconds, like `90s` or `1h 30m`; a day has 24 hours.
pub(super) fn duration(text: &str) -> Result<u64, String> {
    let (days, rest) = match text.split_once('d') {
        Some((days, rest)) if days.bytes().all(|b| b.is_ascii_digit()) => {
            (days.parse::<u64>().map_err(|e| e.to_string())?, rest.trim())
        }
        _ => (0, text),
    };
    let rest_ms = match rest {
        "" if text != rest => 0,
        rest => {
            let length: SignedDuration = rest.parse().map_err(|_| "it is no length of time".to_owned())?;
            u64::try_from(length.as_millis()).map_err(|_| "it is negative".to_owned())?
        }
    };
    days.checked_mul(86_400_000).and_then(|ms| ms.checked_add(rest_ms)).ok_or_else(|| "it is too long".to_owned())
}

/// A time for people.
pub(super) fn show(ms: u64) -> String {
    match i64::try_from(ms).ok().and_then(|ms| Timestamp::from_millisecond(ms).ok()) {
        Some(time) => time.to_string(),
        None => ms.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_read_as_people_write_them() {
        let table = [
            ("1767225600000", 1_767_225_600_000),
            ("2026-01-01T00:00:00Z", 1_767_225_600_000),
            ("2026-01-01T01:00:00+01:00", 1_767_225_600_000),
            ("now", 1_000),
            ("+2h", 7_201_000),
            ("+90m", 5_401_000),
            ("+1d", 86_401_000),
            ("+1d 2h", 93_601_000),
            ("+1500ms", 2_500),
        ];
        for (text, expected) in table {
            assert_eq!(parse_at(text, 1_000), Ok(expected), "{text}");
        }
    }

    #[test]
    fn what_is_no_time_is_told() {
        for text in
            ["", "tomorrow", "+", "+x", "+-2h", "1969-01-01T00:00:00Z", "99999999999999999999", "+999999999999999999d"]
        {
            assert!(parse_at(text, 1_000).is_err(), "{text}");
        }
    }

    #[test]
    fn times_are_shown_in_utc() {
        assert_eq!(show(1_767_225_600_000), "2026-01-01T00:00:00Z");
        assert_eq!(show(u64::MAX), u64::MAX.to_string());
    }
}
