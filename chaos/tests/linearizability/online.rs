//! The check of answers as they come.

use andante_chaos::linearizability::{Online, Operation, Outcome, State};

use super::anomalies::{DELETE, NOT_FOUND, PAUSE, READ, active, create, in_state, operation, update};

/// What it says to the last of these, after it took the others.
fn last(history: &[Operation]) -> Result<(), String> {
    let mut online = Online::default();
    let (last, others) = history.split_last().expect("an operation");
    for operation in others {
        assert_eq!(online.observe(operation), Ok(()));
    }
    online.observe(last)
}

fn assert_wrong(history: &[Operation], what: &str) {
    let error = last(history).expect_err(what);
    assert!(error.contains(what), "{error}");
}

#[test]
fn nobody_is_shown_less_than_was_known_before_they_asked() {
    let created = operation(1, 2, create(10), active(1, 1, 10));
    let updated = operation(3, 4, update(20), active(1, 2, 20));
    let history = |read: Operation| [created.clone(), updated.clone(), read];
    assert_eq!(last(&history(operation(5, 6, READ, active(1, 2, 20)))), Ok(()));
    assert_eq!(last(&history(operation(4, 6, READ, active(1, 1, 10)))), Ok(()), "it may have been before");
    assert_wrong(&history(operation(5, 6, READ, active(1, 1, 10))), "#1.2 was there before");
    let other = Operation { campaign: "d".into(), ..operation(5, 6, READ, active(1, 1, 10)) };
    assert_eq!(last(&history(other)), Ok(()), "another campaign");
}

#[test]
fn a_write_makes_a_newer_version() {
    let created = operation(1, 2, create(10), active(1, 1, 10));
    let history = |write: Operation| [created.clone(), write];
    assert_wrong(&history(operation(3, 4, update(20), active(1, 1, 10))), "#1.1 was there before");
    assert_wrong(&history(operation(3, 4, create(10), active(1, 2, 10))), "#1.1 was there before");
    assert_eq!(last(&history(operation(3, 4, create(10), active(2, 1, 10)))), Ok(()));
    let paused = operation(3, 4, PAUSE, in_state(1, 2, 10, State::Paused));
    let again = operation(5, 6, PAUSE, in_state(1, 2, 10, State::Paused));
    assert_eq!(last(&[created.clone(), paused, again]), Ok(()), "nothing to change");
}

#[test]
fn what_is_gone_does_not_come_back() {
    let created = operation(1, 2, create(10), active(1, 1, 10));
    let deleted = operation(3, 4, DELETE, Outcome::Gone);
    let absent = operation(5, 6, READ, NOT_FOUND);
    let history = |read: Operation| [created.clone(), deleted.clone(), absent.clone(), read];
    assert_wrong(&history(operation(7, 8, READ, active(1, 1, 10))), "campaign #1 was gone before");
    assert_eq!(last(&history(operation(7, 8, READ, active(2, 1, 10)))), Ok(()));
    let was_earlier = operation(1, 2, READ, NOT_FOUND);
    assert_eq!(last(&[created.clone(), was_earlier, operation(3, 4, READ, active(1, 1, 10))]), Ok(()));
}

#[test]
fn a_version_has_one_content() {
    let shown = |budget| operation(1, 9, READ, active(1, 2, budget));
    assert_wrong(&[shown(20), shown(30)], "this version was #1.2 active budget=20 price=1 before");
}
