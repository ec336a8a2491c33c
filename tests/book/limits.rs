//! The bounds of the book, each reached and named in its answer.

use andante::campaign::{
    book::Book,
    limits::*,
    proto::{
        Checkpoint, CloseExpired, Command, Control, Create, Delete, Grant, GrantStatus, Holder, Kind, Outcome,
        OutcomeStatus, Refusal, Reply, SetState, Settle, Shrink, Spec, State, Tick, command,
    },
    token::campaign_key,
};

const NOW_MS: u64 = 1_000_000;

fn spec(name: &str, budget_micros: u64, price_micros: u64) -> Spec {
    Spec {
        name: name.into(),
        start_ms: NOW_MS,
        end_ms: NOW_MS + 86_400_000,
        budget_micros,
        price_micros,
        billable: Kind::Stream as i32,
        min_stream_ms: MIN_STREAM_DEFAULT_MS,
        hold_ms: HOLD_DEFAULT_MS,
        ..Spec::default()
    }
}

fn apply(book: &mut Book, kind: command::Kind) -> Reply {
    book.apply(&Command { kind: Some(kind) })
}

fn create(book: &mut Book, request_id: &str, spec: Spec) -> Refusal {
    let create = Create { request_id: request_id.into(), spec: Some(spec), now_ms: NOW_MS };
    apply(book, command::Kind::Create(create)).refusal()
}

fn grant(book: &mut Book, name: &str, number: u32, n: u32) -> (GrantStatus, u32) {
    let grant = Grant {
        campaign: campaign_key(name),
        incarnation: book.campaign_by_name(name).unwrap().incarnation,
        number,
        n,
        holder: Some(Holder::default()),
        issue_until_ms: u64::MAX,
    };
    let tick = Tick { now_ms: NOW_MS, grants: vec![grant], ..Tick::default() };
    let reply = apply(book, command::Kind::Tick(tick)).grants.remove(0);
    (reply.status(), reply.allowance.map_or(0, |allowance| allowance.n))
}

fn stream(name: &str, number: u32, sequence: u32) -> Outcome {
    let campaign = campaign_key(name);
    Outcome { campaign, incarnation: 1, number, sequence, kind: Kind::Stream as i32, stream_ms: u64::MAX }
}

#[test]
fn at_most_64_allowances_are_open() {
    let mut book = Book::new();
    create(&mut book, "", spec("a", 1_000, 1));
    for number in 1..=64 {
        assert_eq!(grant(&mut book, "a", number, 1), (GrantStatus::Granted, 1));
    }
    assert_eq!(grant(&mut book, "a", 65, 1), (GrantStatus::TooManyOpen, 0));
    apply(&mut book, command::Kind::Settle(Settle { outcomes: vec![stream("a", 7, 0)] }));
    assert_eq!(grant(&mut book, "a", 65, 1), (GrantStatus::Granted, 1), "a closing makes room");
    book.check().unwrap();
}

#[test]
fn closed_allowances_are_bounded_until_they_are_forgotten() {
    let mut book = Book::new();
    create(&mut book, "", spec("a", 10, 1));
    let mut number = 1;
    while grant(&mut book, "a", number, 1).0 == GrantStatus::Granted {
        let shrink =
            Shrink { campaign: campaign_key("a"), incarnation: 1, number, issued: 0, holder: Some(Holder::default()) };
        apply(&mut book, command::Kind::Tick(Tick { shrinks: vec![shrink], ..Tick::default() }));
        number += 1;
    }
    assert_eq!(number as usize, CLOSED_ALLOWANCES_MAX + 1);
    assert_eq!(grant(&mut book, "a", number, 1), (GrantStatus::TooManyOpen, 0));
    let forget = CloseExpired { now_ms: NOW_MS + 5_000_000, purge_after_ms: u64::MAX, ..CloseExpired::default() };
    apply(&mut book, command::Kind::CloseExpired(forget));
    assert!(book.campaign_by_name("a").unwrap().closed.is_empty());
    book.check().unwrap();
}

#[test]
fn one_allowance_has_at_most_65536_tokens_and_lives_an_hour_at_most() {
    let mut book = Book::new();
    create(&mut book, "", spec("a", MICROS_MAX, 1));
    assert_eq!(grant(&mut book, "a", 1, u32::MAX), (GrantStatus::Granted, 65_536));
    let allowance = book.campaign_by_name("a").unwrap().open[&1].clone();
    assert_eq!(allowance.issue_until_ms, NOW_MS + 3_600_000);
    let last = Settle { outcomes: vec![stream("a", 1, 65_535), stream("a", 1, 65_536)] };
    let reply = apply(&mut book, command::Kind::Settle(last));
    assert_eq!(reply.outcomes, [OutcomeStatus::Billed as i32, OutcomeStatus::InvalidToken as i32]);
}

#[test]
fn the_whole_budget_can_be_one_delivery() {
    let mut book = Book::new();
    create(&mut book, "", spec("a", MICROS_MAX, MICROS_MAX));
    assert_eq!(grant(&mut book, "a", 1, u32::MAX), (GrantStatus::Granted, 1));
    assert_eq!(grant(&mut book, "a", 2, 1), (GrantStatus::NothingFree, 0));
    apply(&mut book, command::Kind::Settle(Settle { outcomes: vec![stream("a", 1, 0)] }));
    let state = book.campaign_by_name("a").unwrap();
    assert_eq!(state.ledger.settled_micros(), MICROS_MAX);
    assert!(state.is_exhausted());
}

#[test]
fn a_command_with_too_many_outcomes_changes_nothing() {
    let mut book = Book::new();
    create(&mut book, "", spec("a", 10_000, 1));
    grant(&mut book, "a", 1, 5_000);
    let outcomes = (0..=OUTCOMES_PER_COMMAND_MAX as u32).map(|sequence| stream("a", 1, sequence)).collect();
    let reply = apply(&mut book, command::Kind::Settle(Settle { outcomes }));
    assert_eq!((reply.refusal(), reply.outcomes.len()), (Refusal::Invalid, 0));
    assert_eq!(book.campaign_by_name("a").unwrap().ledger.settled_micros(), 0);
}

#[test]
fn the_latest_16_requests_are_remembered() {
    let mut book = Book::new();
    create(&mut book, "first", spec("a", 10, 1));
    let mut toggle = |i: usize| {
        let state = if i.is_multiple_of(2) { State::Paused } else { State::Active };
        let set =
            SetState { request_id: format!("r{i}"), name: "a".into(), state: state as i32, ..SetState::default() };
        apply(&mut book, command::Kind::SetState(set)).campaign.unwrap().revision
    };
    for i in 0..16 {
        assert_eq!(toggle(i), 2 + i as u64);
    }
    assert_eq!(toggle(0), 17, "the oldest of 16 is remembered: nothing happened");
    assert_eq!(create(&mut book, "first", spec("a", 10, 1)), Refusal::AlreadyExists, "the one before is not");
}

#[test]
fn the_latest_4096_deletions_are_remembered() {
    let mut book = Book::new();
    let delete = |book: &mut Book, i: usize| {
        let (request_id, name) = (format!("r{i}"), format!("c{i}"));
        let delete = Delete { request_id, name, now_ms: NOW_MS + i as u64, ..Delete::default() };
        apply(book, command::Kind::Delete(delete))
    };
    for i in 0..=DELETIONS_REMEMBERED {
        create(&mut book, "", spec(&format!("c{i}"), 10, 1));
        assert_eq!(delete(&mut book, i).refusal(), Refusal::Unspecified);
    }
    assert_eq!(book.deletions().count(), DELETIONS_REMEMBERED);
    assert_eq!(delete(&mut book, 0).refusal(), Refusal::NotFound, "the oldest is forgotten");
    assert!((1..=DELETIONS_REMEMBERED).all(|i| delete(&mut book, i).repeated));
    book.check().unwrap();
    assert_eq!(Book::restore(book.snapshot()).unwrap().digest(), book.digest());
}

#[test]
fn request_ids_and_estimates_have_a_longest_length() {
    let mut book = Book::new();
    assert_eq!(create(&mut book, &"r".repeat(65), spec("a", 10, 1)), Refusal::Invalid);
    assert_eq!(create(&mut book, &"r".repeat(64), spec("a", 10, 1)), Refusal::Unspecified);
    for (bytes, stored) in [(ESTIMATES_BYTES_MAX + 1, false), (ESTIMATES_BYTES_MAX, true)] {
        let control = Some(Control { mu: 1.0, estimates: vec![0; bytes], learned: None });
        let checkpoint = Checkpoint { campaign: campaign_key("a"), incarnation: 1, control };
        apply(&mut book, command::Kind::Tick(Tick { checkpoints: vec![checkpoint], ..Tick::default() }));
        assert_eq!(book.campaign_by_name("a").unwrap().control.is_some(), stored);
    }
}

#[test]
fn times_beyond_all_sense_overflow_nothing() {
    let mut book = Book::new();
    create(&mut book, "", spec("a", 10, 1));
    grant(&mut book, "a", 1, 5);
    let never = CloseExpired {
        now_ms: u64::MAX,
        skew_margin_ms: u64::MAX,
        retry_window_ms: u64::MAX,
        purge_after_ms: u64::MAX,
    };
    assert_eq!(apply(&mut book, command::Kind::CloseExpired(never)).closed, 0);
    assert_eq!(book.shard_time_ms(), TIME_MAX_MS);
    assert_eq!(book.next_maintenance_due_ms(u64::MAX, u64::MAX, u64::MAX), Some(u64::MAX));
    let now = CloseExpired { now_ms: 0, purge_after_ms: u64::MAX, ..CloseExpired::default() };
    assert_eq!(apply(&mut book, command::Kind::CloseExpired(now)).closed, 1, "time had come already");
    book.check().unwrap();
}

#[test]
fn a_shard_holds_at_most_100_000_campaigns() {
    let mut book = Book::new();
    for i in 0..CAMPAIGNS_PER_SHARD_MAX {
        assert_eq!(create(&mut book, "", spec(&format!("c{i}"), 10, 1)), Refusal::Unspecified);
    }
    assert_eq!(create(&mut book, "", spec("one-more", 10, 1)), Refusal::ShardFull);
    let delete = SetState { name: "c7".into(), state: State::Deleting as i32, ..SetState::default() };
    apply(&mut book, command::Kind::SetState(delete));
    assert_eq!(create(&mut book, "", spec("one-more", 10, 1)), Refusal::Unspecified);
    let page: Vec<_> = book.campaigns_after(Some("c99989")).map(|state| state.spec.name.as_str()).take(3).collect();
    assert_eq!(page, ["c9999", "c99990", "c99991"], "lists go by name");
}

#[test]
fn after_a_long_outage_each_command_does_a_bounded_part() {
    let mut book = Book::new();
    let campaigns = CLOSINGS_PER_COMMAND_MAX / OPEN_ALLOWANCES_MAX + 1;
    for i in 0..campaigns {
        let name = format!("c{i}");
        create(&mut book, "", spec(&name, 1_000, 1));
        for number in 1..=OPEN_ALLOWANCES_MAX as u32 {
            assert_eq!(grant(&mut book, &name, number, 1).0, GrantStatus::Granted);
        }
    }
    let mut left = campaigns * OPEN_ALLOWANCES_MAX;
    let close = CloseExpired { now_ms: NOW_MS + 86_400_000, purge_after_ms: 1, ..CloseExpired::default() };
    while left > 0 {
        let closed = apply(&mut book, command::Kind::CloseExpired(close)).closed as usize;
        assert_eq!(closed, left.min(CLOSINGS_PER_COMMAND_MAX));
        left -= closed;
    }
    let purge = CloseExpired { now_ms: NOW_MS + 86_400_001, purge_after_ms: 1, ..CloseExpired::default() };
    let mut left = campaigns;
    while left > 0 {
        apply(&mut book, command::Kind::CloseExpired(purge));
        assert_eq!(left - book.len(), left.min(PURGES_PER_COMMAND_MAX));
        left = book.len();
    }
    book.check().unwrap();
}
