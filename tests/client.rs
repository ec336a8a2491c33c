//! The client library against nodes that do what they are told.

mod support;

use std::{
    collections::HashMap,
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};

use andante::{
    api::{DOMAIN, reason},
    client::{
        BatcherConfig, CallError, Client, ClientConfig, Deadlines, Incomplete, OutcomeBatcher, Reported, ScoreRetries,
        TrySendError,
    },
    v1::{
        Candidate, Coverage, MissingReason, MissingShard, OutcomeEvent, OutcomeKind, OutcomeStatus, Placement,
        ScoreRequest, ScoreResponse,
    },
};
use support::scripted::{Scripted, result};
use tokio::time::Instant;
use tonic::{Code, Status};
use tonic_health::ServingStatus;
use tonic_types::{ErrorDetails, StatusExt as _};

/// Long enough for a machine with much to do.
const AMPLE: Duration = Duration::from_secs(20);

fn config(nodes: &[&Scripted]) -> ClientConfig {
    let addresses = nodes.iter().map(|node| node.addr.to_string());
    ClientConfig { deadlines: Deadlines::each(AMPLE), ..ClientConfig::new(addresses) }
}

fn client(nodes: &[&Scripted]) -> Client {
    Client::production(config(nodes)).unwrap()
}

/// An address where nobody listens.
async fn nobody() -> String {
    tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap().to_string()
}

fn request(slots: u32) -> ScoreRequest {
    let candidates = vec![Candidate { track_id: "t".into(), relevance: 1.0 }];
    ScoreRequest {
        listener_id: "l".into(),
        surface: "radio".into(),
        market: "SE".into(),
        candidates,
        slots,
        ..Default::default()
    }
}

fn told(code: Code, reason: &str) -> Status {
    Status::with_error_details(
        code,
        "in words",
        ErrorDetails::with_error_info(reason, DOMAIN, HashMap::<String, String>::new()),
    )
}

fn event(token: u8) -> OutcomeEvent {
    OutcomeEvent { token: vec![token], kind: OutcomeKind::Stream as i32, stream_ms: 30_000 }
}

/// A reply with so many placements, whose tokens begin with `mark`, and a missing shard if there is a reason.
fn reply(mark: u8, placements: u8, missing: Option<MissingReason>) -> ScoreResponse {
    ScoreResponse {
        placements: (0..placements).map(|i| Placement { token: vec![mark, i], ..Default::default() }).collect(),
        coverage: Some(Coverage {
            missing: missing.iter().map(|reason| MissingShard { shard: 1, reason: *reason as i32 }).collect(),
            ..Default::default()
        }),
        ..Default::default()
    }
}

#[tokio::test]
async fn a_refused_connection_costs_only_the_time_to_try_the_next_address() {
    let node = Scripted::start().await;
    let addresses = [nobody().await, nobody().await, node.addr.to_string()];
    let client = Client::production(ClientConfig { deadlines: Deadlines::each(AMPLE), ..ClientConfig::new(addresses) });
    let client = client.unwrap();
    for _ in 0..20 {
        client.score(request(1)).await.unwrap();
        client.server_info().await.unwrap();
        assert!(client.report(vec![event(1)]).await.unwrap()[0].acknowledged());
    }
    assert_eq!(node.seen(|seen| (seen.scores, seen.infos)), (20, 20));
}

#[tokio::test]
async fn which_answer_is_asked_again_for_which_call() {
    let unavailable = || told(Code::Unavailable, reason::UNAVAILABLE);
    // Answer, whether it is tried again: a score that places, one that does not, a read, a report.
    let table = [
        (unavailable(), [true, true, true, true]),
        (told(Code::Unavailable, reason::DRAINING), [true, true, true, true]),
        (told(Code::ResourceExhausted, reason::OVERLOADED), [true, true, true, true]),
        (told(Code::Unknown, reason::UNKNOWN_FATE), [false, true, true, true]),
        (told(Code::Internal, reason::INTERNAL), [false, true, true, true]),
        (Status::unavailable("no words of ours"), [false, true, true, true]),
        (told(Code::InvalidArgument, reason::INVALID_REQUEST), [false; 4]),
        (Status::unauthenticated("who are you"), [false; 4]),
    ];
    for (status, again) in table {
        let node = Scripted::start().await;
        let client = client(&[&node]);
        node.score(Err(status.clone()));
        assert_eq!(client.score(request(1)).await.is_ok(), again[0], "{status:?}");
        assert_eq!(node.seen(|seen| seen.scores), 1 + usize::from(again[0]), "{status:?}");
        node.score(Err(status.clone()));
        assert_eq!(client.score(request(0)).await.is_ok(), again[1], "{status:?}");
        node.info(status.clone());
        assert_eq!(client.server_info().await.is_ok(), again[2], "{status:?}");
        node.report(Err(status.clone()));
        assert_eq!(client.report(vec![event(1)]).await.is_ok(), again[3], "{status:?}");
    }
}

#[tokio::test]
async fn an_answer_that_is_lost_is_unknown_for_a_score_that_places_unless_the_caller_allows_it() {
    let node = Scripted::start().await;
    node.score(Err(Status::unavailable("the connection broke")));
    let error = client(&[&node]).score(request(1)).await.unwrap_err();
    assert!(matches!(error, CallError::Unknown { .. }) && error.transient() && error.maybe_done(), "{error}");

    node.score(Err(Status::unavailable("the connection broke")));
    let score_retries = ScoreRetries { lost_placements: true, ..ScoreRetries::default() };
    let client = Client::production(ClientConfig { score_retries, ..config(&[&node]) }).unwrap();
    client.score(request(1)).await.unwrap();
}

#[tokio::test]
async fn a_node_that_says_it_stops_gets_no_new_calls() {
    let (staying, leaving) = (Scripted::start().await, Scripted::start().await);
    let client = client(&[&staying, &leaving]);
    let both = async {
        while staying.seen(|seen| seen.infos) == 0 || leaving.seen(|seen| seen.infos) == 0 {
            client.server_info().await.unwrap();
        }
    };
    tokio::time::timeout(AMPLE, both).await.expect("both get calls");
    leaving.health.set_service_status("", ServingStatus::NotServing).await;
    // The news is on its way: once a good many calls in a row went elsewhere, it has come.
    let quiet = async {
        loop {
            let before = leaving.seen(|seen| seen.infos);
            for _ in 0..50 {
                client.server_info().await.unwrap();
            }
            if leaving.seen(|seen| seen.infos) == before {
                break;
            }
        }
    };
    tokio::time::timeout(AMPLE, quiet).await.expect("calls stop");
    leaving.health.set_service_status("", ServingStatus::Serving).await;
    let before = leaving.seen(|seen| seen.infos);
    let back = async {
        while leaving.seen(|seen| seen.infos) == before {
            client.server_info().await.unwrap();
        }
    };
    tokio::time::timeout(AMPLE, back).await.expect("it is asked again once it serves");
}

#[tokio::test]
async fn a_node_that_stops_in_order_fails_no_call_and_is_not_held_up() {
    for _ in 0..5 {
        let (staying, mut leaving) = (Scripted::start().await, Scripted::start().await);
        let client = client(&[&staying, &leaving]);
        let over = AtomicBool::new(false);
        let callers = (0..32).map(|_| async {
            while !over.load(Ordering::Relaxed) {
                client.score(request(1)).await.expect("no call fails");
            }
        });
        let stopping = async {
            leaving.until(|seen| seen.scores > 100).await;
            tokio::time::timeout(AMPLE, leaving.stop()).await.expect("nothing holds it up");
            let before = staying.seen(|seen| seen.scores);
            staying.until(|seen| seen.scores > before + 100).await;
            over.store(true, Ordering::Relaxed);
        };
        tokio::join!(futures::future::join_all(callers), stopping);
    }
}

#[tokio::test]
async fn the_deadline_is_sent_and_kept_by_this_side_too() {
    let node = Scripted::start().await;
    node.ignore_scores();
    let deadlines = Deadlines { score: Duration::from_millis(80), ..Deadlines::default() };
    let client = Client::production(ClientConfig { deadlines, ..config(&[&node]) }).unwrap();
    let begun = Instant::now();
    let error = client.score(request(1)).await.unwrap_err();
    assert!(begun.elapsed() >= Duration::from_millis(80) && begun.elapsed() < AMPLE);
    assert!(matches!(error, CallError::Unknown { .. }), "{error}");
    assert!(error.to_string().contains("80ms"), "{error}");
    let timeout = node.seen(|seen| seen.timeouts[0].clone());
    let nanos: u64 = timeout.strip_suffix('n').expect("nanoseconds").parse().unwrap();
    assert!((1_000_000..=80_000_000).contains(&nanos), "{timeout}");
}

#[tokio::test]
async fn where_nobody_listens_the_addresses_are_named_at_once_or_after_the_deadline() {
    let address = nobody().await;
    let deadlines = Deadlines::each(Duration::from_millis(100));
    let patient = Client::production(ClientConfig { deadlines, ..ClientConfig::new([address.clone()]) }).unwrap();
    let begun = Instant::now();
    let error = patient.server_info().await.unwrap_err();
    assert!(begun.elapsed() >= Duration::from_millis(20), "several tries were made");
    assert!(error.to_string().contains(&format!("http://{address}")), "{error}");
    let deadlines = Deadlines::each(AMPLE);
    let config = ClientConfig { deadlines, fail_fast: true, ..ClientConfig::new([address, nobody().await]) };
    let begun = Instant::now();
    let error = Client::production(config).unwrap().server_info().await.unwrap_err();
    assert!(matches!(error, CallError::Unreachable(_)) && begun.elapsed() < AMPLE / 2, "{error}");
}

#[tokio::test]
async fn an_incomplete_reply_is_completed_and_the_unused_placements_are_released() {
    let node = Scripted::start().await;
    node.score(Ok(reply(1, 2, Some(MissingReason::NoLeader))));
    node.score(Ok(reply(2, 1, None)));
    let answer = client(&[&node]).score(request(2)).await.unwrap();
    assert_eq!(answer.placements[0].token, [2, 0]);
    node.until(|seen| !seen.reports.is_empty()).await;
    let released = node.seen(|seen| seen.reports[0].clone());
    let tokens: Vec<_> = released.iter().map(|event| event.token.clone()).collect();
    assert_eq!(tokens, [vec![1, 0], vec![1, 1]]);
    assert!(released.iter().all(|event| event.kind() == OutcomeKind::NotUsed));
}

#[tokio::test]
async fn an_incomplete_reply_is_better_than_an_error() {
    let node = Scripted::start().await;
    node.score(Ok(reply(1, 1, Some(MissingReason::Catalog))));
    node.score(Err(told(Code::InvalidArgument, reason::INVALID_REQUEST)));
    let answer = client(&[&node]).score(request(1)).await.unwrap();
    assert_eq!(answer.placements[0].token, [1, 0]);
    assert_eq!(node.seen(|seen| (seen.scores, seen.reports.len())), (2, 0), "what is used is not released");
}

#[tokio::test]
async fn a_caller_may_take_incomplete_replies_as_they_are() {
    let table = [
        (Incomplete::Accept, 0, 1),
        (Incomplete::Accept, 1, 1),
        (Incomplete::RetryUnplaced, 0, 2),
        (Incomplete::RetryUnplaced, 1, 1),
        (Incomplete::RetryAndRelease, 1, 2),
    ];
    for (incomplete, placements, calls) in table {
        let node = Scripted::start().await;
        node.score(Ok(reply(1, placements, Some(MissingReason::NoLeader))));
        let score_retries = ScoreRetries { incomplete, ..ScoreRetries::default() };
        let client = Client::production(ClientConfig { score_retries, ..config(&[&node]) }).unwrap();
        client.score(request(1)).await.unwrap();
        assert_eq!(node.seen(|seen| seen.scores), calls, "{incomplete:?} {placements}");
    }
}

#[tokio::test]
async fn only_events_whose_fate_is_open_are_reported_again() {
    use OutcomeStatus as S;
    let node = Scripted::start().await;
    node.report(Ok(vec![result(S::Billed), result(S::Unavailable), result(S::Unknown), result(S::Unknown)]));
    node.report(Ok(vec![result(S::Billed), result(S::Duplicate), result(S::RefusedClosed)]));
    let reported = client(&[&node]).report((1..=4).map(event).collect()).await.unwrap();
    let seen: Vec<_> = reported.iter().map(|r| (r.status, r.maybe_applied, r.tries)).collect();
    let expected = [(S::Billed, false, 1), (S::Billed, false, 2), (S::Duplicate, true, 2), (S::RefusedClosed, true, 2)];
    assert_eq!(seen, expected);
    assert_eq!(node.seen(|seen| seen.reports.iter().map(Vec::len).collect::<Vec<_>>()), [4, 3]);
    assert!(reported.iter().take(3).all(|r| r.acknowledged()) && !reported[3].acknowledged());
}

#[tokio::test]
async fn a_doubt_the_server_had_is_passed_on() {
    let node = Scripted::start().await;
    let mut retried = result(OutcomeStatus::Duplicate);
    retried.retried = true;
    node.report(Ok(vec![retried, result(OutcomeStatus::Duplicate)]));
    let reported = client(&[&node]).report(vec![event(1), event(2)]).await.unwrap();
    assert_eq!(reported.iter().map(|r| r.maybe_applied).collect::<Vec<_>>(), [true, false]);
}

#[tokio::test]
async fn when_the_time_is_up_each_event_says_whether_it_may_count() {
    let node = Scripted::start().await;
    node.report(Err(told(Code::Unavailable, reason::UNAVAILABLE)));
    let mut later = ErrorDetails::with_error_info(reason::UNAVAILABLE, DOMAIN, HashMap::<String, String>::new());
    later.set_retry_info(Some(10 * AMPLE));
    node.report(Err(Status::with_error_details(Code::Unavailable, "later than you can wait", later)));
    let reported = client(&[&node]).report(vec![event(1)]).await.unwrap();
    let Reported { status, maybe_applied, tries, .. } = reported[0];
    assert_eq!((status, maybe_applied, tries), (OutcomeStatus::Unavailable, false, 2));

    let deadlines = Deadlines { report: Duration::from_millis(60), ..Deadlines::each(AMPLE) };
    let node = Scripted::start().await;
    node.hold_reports(true);
    let hasty = Client::production(ClientConfig { deadlines, ..config(&[&node]) }).unwrap();
    let reported = hasty.report(vec![event(1)]).await.unwrap();
    assert_eq!((reported[0].status, reported[0].maybe_applied), (OutcomeStatus::Unknown, true));
}

#[tokio::test]
async fn the_token_goes_along_with_each_call_and_shows_nowhere() {
    let node = Scripted::start().await;
    let client = Client::production(ClientConfig { token: Some("s3cret".into()), ..config(&[&node]) }).unwrap();
    client.score(request(1)).await.unwrap();
    client.report(vec![event(1)]).await.unwrap();
    assert_eq!(node.seen(|seen| seen.authorizations.clone()), ["Bearer s3cret", "Bearer s3cret"]);
    node.score(Err(Status::unauthenticated("no")));
    let error = client.score(request(1)).await.unwrap_err();
    assert!(!format!("{error:?} {error} {client:?}").contains("s3cret"));
}

/// Batches that go only when they are full, or wanted.
fn batches(events: usize) -> BatcherConfig {
    BatcherConfig { batch_events: events, max_age: AMPLE, deadline: AMPLE, ..BatcherConfig::default() }
}

#[tokio::test]
async fn a_full_batch_goes_at_once_and_each_event_learns_its_fate() {
    let node = Scripted::start().await;
    node.report(Ok(vec![result(OutcomeStatus::Billed), result(OutcomeStatus::InvalidToken)]));
    let batcher = OutcomeBatcher::new(client(&[&node]), batches(2));
    let one = batcher.send(event(1)).await.unwrap();
    let two = batcher.send(event(2)).await.unwrap();
    assert_eq!(one.await.unwrap().status, OutcomeStatus::Billed);
    assert_eq!(two.await.unwrap().status, OutcomeStatus::InvalidToken);
    assert_eq!(batcher.pending_events(), 0);
}

#[tokio::test]
async fn a_lonely_event_goes_when_it_is_old_enough() {
    let node = Scripted::start().await;
    let config = BatcherConfig { max_age: Duration::from_millis(5), ..batches(1_000) };
    let batcher = OutcomeBatcher::new(client(&[&node]), config);
    assert!(batcher.send(event(1)).await.unwrap().await.unwrap().acknowledged());
}

#[tokio::test]
async fn the_bounds_hold_and_a_waiting_sender_goes_on_when_there_is_room() {
    let node = Scripted::start().await;
    node.hold_reports(true);
    let bounds = [
        BatcherConfig { pending_events: 3, batches_in_flight: 1, ..batches(1) },
        // Three tokens of a byte with what they cost beside.
        BatcherConfig { pending_bytes: 3 * 257, batches_in_flight: 1, ..batches(1) },
    ];
    for config in bounds {
        node.hold_reports(true);
        let batcher = OutcomeBatcher::new(client(&[&node]), config);
        let mut receipts = Vec::new();
        for i in 0..3 {
            receipts.push(batcher.try_send(event(i)).unwrap());
        }
        assert!(matches!(batcher.try_send(event(9)), Err(TrySendError::Full(event)) if event.token == [9]));
        let mut waiting = Box::pin(batcher.send(event(4)));
        assert!(futures::poll!(&mut waiting).is_pending());
        node.hold_reports(false);
        assert!(waiting.await.unwrap().await.unwrap().acknowledged());
        for receipt in receipts {
            assert!(receipt.await.unwrap().acknowledged());
        }
    }
}

#[tokio::test]
async fn a_flush_sends_what_waits_and_returns_when_it_is_settled() {
    let node = Scripted::start().await;
    let batcher = OutcomeBatcher::new(client(&[&node]), batches(1_000));
    batcher.flush().await;
    let receipt = batcher.send(event(1)).await.unwrap();
    batcher.flush().await;
    assert_eq!(batcher.pending_events(), 0);
    assert!(receipt.await.unwrap().acknowledged());
}

#[tokio::test]
async fn closing_settles_everything_even_where_nobody_keeps_the_receipts() {
    let node = Scripted::start().await;
    let batcher = OutcomeBatcher::new(client(&[&node]), BatcherConfig { batches_in_flight: 2, ..batches(10) });
    for i in 0..95 {
        drop(batcher.send(event(i)).await.unwrap());
    }
    batcher.close().await;
    let events: usize = node.seen(|seen| seen.reports.iter().map(Vec::len).sum());
    assert_eq!(events, 95);
}

#[tokio::test]
async fn a_refused_batch_is_told_to_each_of_its_events() {
    let node = Scripted::start().await;
    node.report(Err(Status::permission_denied("not for you")));
    let batcher = OutcomeBatcher::new(client(&[&node]), batches(2));
    let (one, two) = (batcher.send(event(1)).await.unwrap(), batcher.send(event(2)).await.unwrap());
    for receipt in [one, two] {
        assert!(matches!(receipt.await, Err(CallError::Refused(_))));
    }
}
