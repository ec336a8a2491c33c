//! Small histories of a campaign, good and bad, each with its name.

use andante_chaos::linearizability::{
    Action, Operation, Outcome, Refusal, STEPS_MAX_DEFAULT, Seen, State, Verdict, Version, check,
};

/// A version, with what it shows.
pub(crate) fn seen(incarnation: u32, revision: u64, budget_micros: u64, state: State) -> Seen {
    Seen { version: Version { incarnation, revision }, budget_micros, price_micros: 1, state }
}

pub(crate) fn active(incarnation: u32, revision: u64, budget_micros: u64) -> Outcome {
    Outcome::Shown(seen(incarnation, revision, budget_micros, State::Active))
}

pub(crate) fn in_state(incarnation: u32, revision: u64, budget_micros: u64, state: State) -> Outcome {
    Outcome::Shown(seen(incarnation, revision, budget_micros, state))
}

/// An operation in the time from `called` to `returned`. It has no request id, unless it creates.
pub(crate) fn operation(called: u64, returned: impl Into<Option<u64>>, action: Action, outcome: Outcome) -> Operation {
    let has_request_id = matches!(action, Action::Create { .. });
    Operation { client: 1, campaign: "c".into(), called, returned: returned.into(), action, outcome, has_request_id }
}

pub(crate) fn create(budget_micros: u64) -> Action {
    Action::Create { budget_micros, price_micros: 1 }
}

pub(crate) fn update(budget_micros: u64) -> Action {
    Action::Update { budget_micros: Some(budget_micros), price_micros: None, expected: None }
}

pub(crate) fn update_if(incarnation: u32, revision: u64, budget_micros: u64) -> Action {
    let expected = Some(Version { incarnation, revision });
    Action::Update { budget_micros: Some(budget_micros), price_micros: None, expected }
}

pub(crate) const READ: Action = Action::Read;
pub(crate) const PAUSE: Action = Action::Pause { expected: None };
pub(crate) const RESUME: Action = Action::Resume { expected: None };
pub(crate) const END: Action = Action::End { expected: None };
pub(crate) const DELETE: Action = Action::Delete { expected: None };
pub(crate) const NOT_FOUND: Outcome = Outcome::Refused(Refusal::NotFound);
const STALE: Outcome = Outcome::Refused(Refusal::StaleEtag);
const EXISTS: Outcome = Outcome::Refused(Refusal::AlreadyExists);
const WRONG_STATE: Outcome = Outcome::Refused(Refusal::WrongState);
const TOO_LOW: Outcome = Outcome::Refused(Refusal::Other);
const UNKNOWN: Outcome = Outcome::Unknown;

type Row = (u64, Option<u64>, Action, Outcome);

/// The verdict on a campaign that is created with a budget of 10 at times 1 to 2, and then this.
fn verdict(rows: &[Row]) -> Verdict {
    let mut history = vec![operation(1, 2, create(10), active(1, 1, 10))];
    history.extend(
        rows.iter().map(|(called, returned, action, outcome)| operation(*called, *returned, *action, *outcome)),
    );
    check(&history, STEPS_MAX_DEFAULT)
}

fn assert_good(name: &str, rows: &[Row]) {
    assert_eq!(verdict(rows), Verdict::Linearizable, "{name}");
}

fn assert_bad(name: &str, rows: &[Row]) {
    assert!(matches!(verdict(rows), Verdict::Violation(_)), "{name}");
}

/// The time of an operation that is answered.
fn at(called: u64, returned: u64, action: Action, outcome: Outcome) -> Row {
    (called, Some(returned), action, outcome)
}

/// One whose fate is unknown.
fn since(called: u64, action: Action) -> Row {
    (called, None, action, UNKNOWN)
}

#[test]
fn reads() {
    let updated = at(3, 4, update(20), active(1, 2, 20));
    assert_good("fresh read", &[updated, at(5, 6, READ, active(1, 2, 20))]);
    assert_bad("stale read", &[updated, at(5, 6, READ, active(1, 1, 10))]);
    assert_bad("read from the future", &[at(3, 4, READ, active(1, 2, 20)), at(5, 6, update(20), active(1, 2, 20))]);
    assert_bad("value never written", &[updated, at(5, 6, READ, active(1, 2, 30))]);
    assert_bad("value of another version", &[updated, at(5, 6, READ, active(1, 2, 10))]);
    assert_bad("state never set", &[at(3, 4, READ, in_state(1, 1, 10, State::Paused))]);
    assert_bad("campaign lost", &[at(3, 4, READ, NOT_FOUND)]);

    let slow = at(3, 9, update(20), active(1, 2, 20));
    let (old, new) = (active(1, 1, 10), active(1, 2, 20));
    assert_good("before and after, during the update", &[slow, at(4, 5, READ, old), at(6, 7, READ, new)]);
    assert_bad("back in time, during the update", &[slow, at(4, 5, READ, new), at(6, 7, READ, old)]);
    assert_good("overlapping reads in either order", &[slow, at(4, 7, READ, new), at(5, 6, READ, old)]);
}

#[test]
fn updates() {
    assert_good(
        "one after the other",
        &[at(3, 4, update(20), active(1, 2, 20)), at(5, 6, update(30), active(1, 3, 30))],
    );
    assert_bad("lost update", &[at(3, 4, update(20), active(1, 2, 20)), at(5, 6, update(30), active(1, 2, 30))]);
    assert_bad(
        "lost update, at once",
        &[at(3, 9, update(20), active(1, 2, 20)), at(3, 9, update(30), active(1, 2, 30))],
    );
    assert_bad("a change that nobody made", &[at(3, 4, update(20), active(1, 3, 20))]);
    assert_bad("read of a refused update", &[at(3, 4, update(20), TOO_LOW), at(5, 6, READ, active(1, 2, 20))]);
    assert_bad("update of nothing refused", &[at(3, 4, update(20), NOT_FOUND)]);

    let first = at(3, 9, update_if(1, 1, 20), active(1, 2, 20));
    assert_good("one of two with one etag applied", &[first, at(3, 9, update_if(1, 1, 30), STALE)]);
    assert_bad("two with one etag applied", &[first, at(3, 9, update_if(1, 1, 30), active(1, 3, 30))]);
    assert_bad("right etag refused", &[at(3, 4, update_if(1, 1, 20), STALE)]);
    assert_bad(
        "both with one etag refused",
        &[at(3, 9, update_if(1, 1, 20), STALE), at(3, 9, update_if(1, 1, 30), STALE)],
    );
}

#[test]
fn updates_of_unknown_fate() {
    let unknown = since(3, update(20));
    assert_good("never applied", &[unknown, at(5, 6, READ, active(1, 1, 10))]);
    assert_good("applied later", &[unknown, at(5, 6, READ, active(1, 1, 10)), at(7, 8, READ, active(1, 2, 20))]);
    assert_bad("applied and undone", &[unknown, at(5, 6, READ, active(1, 2, 20)), at(7, 8, READ, active(1, 1, 10))]);
    assert_bad("applied twice", &[unknown, at(5, 6, update(30), active(1, 3, 30)), at(7, 8, READ, active(1, 4, 20))]);
    assert_bad("applied before its call", &[at(1, 2, READ, active(1, 2, 20)), unknown]);
    assert_good("as the next one's revision tells", &[unknown, at(5, 6, update(30), active(1, 3, 30))]);
    assert_bad(
        "applied although its etag was stale by then",
        &[since(3, update_if(1, 1, 20)), at(5, 6, update(30), active(1, 2, 30)), at(7, 8, READ, active(1, 3, 20))],
    );
}

#[test]
fn states() {
    assert_good(
        "paused, resumed, ended",
        &[
            at(3, 4, PAUSE, in_state(1, 2, 10, State::Paused)),
            at(5, 6, RESUME, active(1, 3, 10)),
            at(7, 8, END, in_state(1, 4, 10, State::Ended)),
            at(9, 10, update(20), WRONG_STATE),
            at(11, 12, END, in_state(1, 4, 10, State::Ended)),
        ],
    );
    assert_good("resumed what is active", &[at(3, 4, RESUME, active(1, 1, 10))]);
    assert_bad("a change that changed nothing", &[at(3, 4, RESUME, active(1, 2, 10))]);
    assert_bad(
        "pause undone",
        &[at(3, 4, PAUSE, in_state(1, 2, 10, State::Paused)), at(5, 6, update(20), active(1, 3, 20))],
    );
    assert_bad(
        "resumed after the end",
        &[at(3, 4, END, in_state(1, 2, 10, State::Ended)), at(5, 6, RESUME, active(1, 3, 10))],
    );
    assert_bad("refused although it is active", &[at(3, 4, PAUSE, WRONG_STATE)]);
}

#[test]
fn deletes() {
    let deleting = in_state(1, 2, 10, State::Deleting);
    let delete = at(3, 4, DELETE, deleting);
    assert_good("goes some time later", &[delete, at(5, 6, READ, deleting), at(7, 8, READ, NOT_FOUND)]);
    assert_good("gone at once", &[at(3, 4, DELETE, Outcome::Gone), at(5, 6, READ, NOT_FOUND)]);
    assert_good("there as long as allowances are open", &[delete, at(5, 6, create(20), EXISTS)]);
    assert_good("a new one of the name", &[delete, at(5, 6, create(20), active(2, 1, 20))]);
    assert_bad("resurrected", &[delete, at(5, 6, READ, NOT_FOUND), at(7, 8, READ, deleting)]);
    assert_bad("resurrected as it was", &[at(3, 4, DELETE, Outcome::Gone), at(5, 6, READ, active(1, 1, 10))]);
    assert_bad("updated while it goes", &[delete, at(5, 6, update(20), active(1, 3, 20))]);
    assert_bad("gone, though never deleted", &[at(3, 4, READ, NOT_FOUND), at(5, 6, DELETE, Outcome::Gone)]);
    assert_bad("created over it", &[at(3, 4, create(20), active(2, 1, 20))]);
    assert_bad("an old number", &[delete, at(5, 6, create(20), active(1, 1, 20))]);
    assert_bad(
        "an old etag fits its successor",
        &[delete, at(5, 6, create(20), active(2, 1, 20)), at(7, 8, update_if(1, 1, 30), active(2, 2, 30))],
    );
    assert_good(
        "deleted some time by one of unknown fate",
        &[since(3, DELETE), at(5, 6, READ, active(1, 1, 10)), at(7, 8, READ, NOT_FOUND)],
    );
    assert_bad("deleted by one that was refused", &[at(3, 4, DELETE, TOO_LOW), at(5, 6, READ, NOT_FOUND)]);
    assert_bad("no such answer", &[at(3, 4, READ, Outcome::Gone)]);
}

#[test]
fn creates() {
    assert_good("exists", &[at(3, 4, create(10), EXISTS)]);
    let gone = at(3, 4, DELETE, Outcome::Gone);
    assert_bad("exists, though it is gone", &[gone, at(5, 6, create(20), EXISTS)]);
    let unknown = since(5, create(20));
    assert_good("created after all", &[gone, unknown, at(6, 7, READ, NOT_FOUND), at(8, 9, READ, active(4, 1, 20))]);
    assert_bad(
        "created twice",
        &[
            gone,
            unknown,
            at(6, 7, READ, active(2, 1, 20)),
            at(8, 9, DELETE, Outcome::Gone),
            at(10, 11, READ, active(3, 1, 20)),
        ],
    );
    assert_bad(
        "two of different numbers",
        &[gone, unknown, at(6, 7, READ, active(2, 1, 20)), at(8, 9, READ, active(3, 1, 20))],
    );
    assert_good(
        "created, updated and deleted unseen",
        &[gone, unknown, since(6, update(30)), since(7, DELETE), at(8, 9, create(40), active(3, 1, 40))],
    );
}

#[test]
fn repeated_requests() {
    let repeated =
        |returned, action, outcome| Operation { has_request_id: true, ..operation(3, returned, action, outcome) };
    let history = |update: Operation, rows: &[Row]| {
        let mut history = vec![operation(1, 2, create(10), active(1, 1, 10)), update];
        history.extend(rows.iter().map(|row| operation(row.0, row.1, row.2, row.3)));
        check(&history, STEPS_MAX_DEFAULT)
    };
    let paused = in_state(1, 3, 20, State::Paused);
    let pause = at(5, 6, PAUSE, paused);
    let later = history(repeated(9, update(20), paused), &[pause]);
    assert_eq!(later, Verdict::Linearizable, "the answer shows a later version");
    let twice = history(repeated(9, update(20), in_state(1, 4, 20, State::Paused)), &[pause]);
    assert!(matches!(twice, Verdict::Violation(_)), "applied by both tries");
    let other = history(repeated(9, update(20), active(1, 1, 10)), &[]);
    assert!(matches!(other, Verdict::Violation(_)), "the answer shows an earlier version");
    let successor =
        [at(5, 6, READ, NOT_FOUND), at(7, 8, create(20), active(2, 1, 20)), at(10, 11, READ, active(2, 1, 20))];
    let gone = history(repeated(9, DELETE, Outcome::Gone), &successor);
    assert_eq!(gone, Verdict::Linearizable, "a repeated delete spares the successor");
}

#[test]
fn a_violation_is_explained_by_the_shortest_beginning() {
    let history = [
        operation(1, 2, create(10), active(1, 1, 10)),
        operation(3, 9, update(20), active(1, 2, 20)),
        operation(4, 5, READ, active(1, 2, 20)),
        operation(6, 7, READ, active(1, 1, 10)),
        operation(10, 11, READ, active(1, 7, 70)),
    ];
    let Verdict::Violation(violation) = check(&history, STEPS_MAX_DEFAULT) else { panic!("accepted") };
    let expected = "\
campaign c: no order explains what clients saw
  [1..2] client 1: create budget=10 price=1 -> #1.1 active budget=10 price=1
  [3..9] client 1: update budget=20 -> #1.2 active budget=20 price=1 (open)
  [4..5] client 1: read -> #1.2 active budget=20 price=1
  [6..7] client 1: read -> #1.1 active budget=10 price=1
  no place for [6..7] client 1: read -> #1.1 active budget=10 price=1
  after an order of the others that leads to #1.2 active budget=20 price=1";
    assert_eq!(violation.to_string(), expected);
}

#[test]
fn a_search_that_is_cut_short_is_no_success_and_hides_no_violation() {
    let mut history: Vec<Operation> = (0..8).map(|n| operation(3, 99, update(n), active(1, 9 - n, n))).collect();
    history.push(operation(1, 2, create(10), active(1, 1, 10)));
    assert_eq!(check(&history, 20), Verdict::OutOfTime { campaigns: vec!["c".into()] });
    assert_eq!(check(&history, STEPS_MAX_DEFAULT), Verdict::Linearizable);
    history.push(Operation { campaign: "d".into(), ..operation(1, 2, READ, active(1, 1, 10)) });
    assert!(matches!(check(&history, 20), Verdict::Violation(violation) if violation.campaign == "d"));
}
