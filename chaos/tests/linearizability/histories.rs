//! The recorded histories have the verdicts that came with them.

use andante_chaos::linearizability::wgl::{Call, Finding, Specification, search};

use super::{archive, key_value, register};

/// Enough for every recorded history, except that some keys' appends by fifty clients need more.
pub(crate) const STEPS_MAX: u64 = 500_000;

/// Whether there is an order; `None`: not known.
pub(crate) fn is_linearizable<S: Specification + Default>(
    calls: &[Call<S::Operation>],
    steps_max: u64,
) -> Option<bool> {
    match search(S::default(), calls, steps_max) {
        Finding::Linearizable => Some(true),
        Finding::Blocked { .. } => Some(false),
        Finding::OutOfSteps => None,
    }
}

#[test]
fn etcd_histories_have_their_verdicts() {
    let Some(files) = archive::files() else { return };
    let expected: Vec<(&str, bool)> = files["jepsen/expected.csv"]
        .lines()
        .skip(1)
        .map(|line| line.split_once(',').expect("two columns"))
        .map(|(log, verdict)| (log, verdict.parse().expect("true or false")))
        .collect();
    assert_eq!(expected.len(), 102);
    for (log, verdict) in expected {
        let calls = register::parse(&files[&format!("jepsen/{log}")]);
        assert!(calls.len() > 50, "{log} has {} calls", calls.len());
        assert_eq!(is_linearizable::<register::Register>(&calls, STEPS_MAX), Some(verdict), "{log}");
    }
}

#[test]
fn key_value_histories_have_their_verdicts() {
    let Some(files) = archive::files() else { return };
    let logs: Vec<_> = files.iter().filter(|(path, _)| path.starts_with("kv/")).collect();
    assert_eq!(logs.len(), 6);
    for (path, log) in logs {
        let keys = key_value::parse(log);
        let calls: usize = keys.values().map(Vec::len).sum();
        assert_eq!(calls * 2, log.lines().count(), "{path}");
        let verdict = |calls: &Vec<_>, steps_max| is_linearizable::<key_value::Value>(calls, steps_max);
        if path.ends_with("-ok.txt") {
            assert!(keys.values().all(|calls| verdict(calls, STEPS_MAX) == Some(true)), "{path}");
        } else {
            // One key without an order is enough; the hard ones can be left out then.
            assert!(keys.values().any(|calls| verdict(calls, STEPS_MAX / 10) == Some(false)), "{path}");
        }
    }
}
