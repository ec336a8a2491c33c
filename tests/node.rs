//! Whole nodes in one process on in-memory stores: requests in, outcomes back, crashes and restarts between.

#[path = "node/fixture.rs"]
mod fixture;

use andante::{
    campaign::{
        proto::{self, State},
        version::Version,
    },
    router::WriteError,
    v1::{self, OutcomeKind, OutcomeStatus},
};
use fixture::{Fixture, events, request, spec};

#[tokio::test]
async fn a_placement_bills_once() {
    let fixture = Fixture::start().await;
    fixture.create(spec("c1")).await;
    let placement = fixture.place(&request("track-c1", 1)).await;
    assert!(placement.token.len() <= 64);

    let reports = [
        (OutcomeKind::Impression, 0, OutcomeStatus::Recorded),
        (OutcomeKind::Stream, 29_999, OutcomeStatus::Recorded),
        (OutcomeKind::Stream, 30_000, OutcomeStatus::Billed),
        (OutcomeKind::Stream, 30_000, OutcomeStatus::Duplicate),
        (OutcomeKind::NotUsed, 0, OutcomeStatus::Duplicate),
        (OutcomeKind::Save, 0, OutcomeStatus::Recorded),
        (OutcomeKind::Unspecified, 0, OutcomeStatus::InvalidEvent),
    ];
    for (kind, stream_ms, expected) in reports {
        assert_eq!(fixture.report(&placement.token, kind, stream_ms).await, expected, "{kind:?} {stream_ms}");
    }
    let campaign = fixture.node.router().campaign_here("c1").expect("it is there").campaign;
    assert_eq!(campaign.settled_micros, 1_000);
    assert_eq!(campaign.counters.map(|c| (c.billed, c.saves, c.short_streams)), Some((1, 1, 1)));
}

#[tokio::test]
async fn every_bit_of_a_token_counts() {
    let fixture = Fixture::start().await;
    fixture.create(spec("c1")).await;
    let mut token = fixture.place(&request("track-c1", 1)).await.token;
    for bit in [0, 100, 8 * token.len() - 1] {
        token[bit / 8] ^= 1 << (bit % 8);
        assert_eq!(fixture.report(&token, OutcomeKind::Stream, 60_000).await, OutcomeStatus::InvalidToken);
        token[bit / 8] ^= 1 << (bit % 8);
    }
    assert_eq!(fixture.report(&token, OutcomeKind::Stream, 60_000).await, OutcomeStatus::Billed);
}

#[tokio::test]
async fn a_paused_campaign_places_nothing_from_the_answer_on() {
    let fixture = Fixture::start().await;
    fixture.create(spec("c1")).await;
    let before = fixture.place(&request("track-c1", 1)).await;
    fixture.set_state("c1", State::Paused).await.expect("pauses");
    let response = fixture.score(&request("track-c1", 1)).await;
    assert!(response.placements.is_empty());
    assert_eq!(response.scores[0].score, 0.0);
    assert_eq!(fixture.report(&before.token, OutcomeKind::Stream, 30_000).await, OutcomeStatus::Billed);
    fixture.set_state("c1", State::Active).await.expect("resumes");
    fixture.place(&request("track-c1", 1)).await;
}

#[tokio::test]
async fn scores_alone_hand_out_nothing_and_wake_nobody() {
    let fixture = Fixture::start().await;
    fixture.create(spec("c1")).await;
    fixture.create(spec("c2")).await;
    fixture.place(&request("track-c1", 1)).await;
    let response = fixture.score(&request("track-c1", 0)).await;
    assert!(response.scores[0].score > 0.0, "{response:?}");
    assert!(response.placements.is_empty());
    let unknown = fixture.score(&request("track-c2", 0)).await;
    assert_eq!(unknown.scores[0].score, 0.0, "a campaign that has met no traffic yet can't tell what is above average");
    assert_eq!(fixture.node.metrics().actors_alive.get(), 1);
}

#[tokio::test]
async fn a_crashed_actor_comes_back_with_a_new_allowance() {
    let fixture = Fixture::start().await;
    fixture.create(spec("c1")).await;
    let before = fixture.place(&request("track-c1", 1)).await;
    assert!(fixture.node.crash_actor("c1").await);
    let after = fixture.place(&request("track-c1", 1)).await;
    assert_ne!(before.token, after.token);
    for placement in [before, after] {
        assert_eq!(fixture.report(&placement.token, OutcomeKind::Stream, 30_000).await, OutcomeStatus::Billed);
    }
    assert_eq!(fixture.node.metrics().actor_restarts.get(), 1);
}

#[tokio::test]
async fn a_campaign_whose_actor_fails_again_and_again_is_quarantined_and_its_sibling_is_not() {
    let fixture = Fixture::start().await;
    fixture.create(spec("c1")).await;
    fixture.create(spec("c2")).await;
    while fixture.node.metrics().actors_quarantined.get() == 0 {
        fixture.score(&request("track-c1", 1)).await;
        fixture.node.crash_actor("c1").await;
        tokio::task::yield_now().await;
    }
    assert!(fixture.score(&request("track-c1", 1)).await.placements.is_empty());
    let explanation = fixture.node.router().campaign_here("c1").expect("it is there").explanation;
    assert!(explanation.contains("quarantined"), "{explanation}");
    fixture.place(&request("track-c2", 1)).await;

    fixture.set_state("c1", State::Paused).await.expect("pauses");
    fixture.set_state("c1", State::Active).await.expect("resumes");
    fixture.place(&request("track-c1", 1)).await;
}

#[tokio::test]
async fn a_graceful_restart_changes_nothing_and_strands_nothing() {
    let fixture = Fixture::start().await;
    fixture.create(spec("c1")).await;
    let placement = fixture.place(&request("track-c1", 1)).await;
    let fixture = fixture.restart().await;
    assert_eq!(fixture.report(&placement.token, OutcomeKind::Stream, 30_000).await, OutcomeStatus::Billed);
    let next = fixture.place(&request("track-c1", 1)).await;
    fixture.set_state("c1", State::Paused).await.expect("pauses");
    fixture.until("only the next token is set aside", |_| fixture.open_micros("c1") == 1_000).await;
    assert_eq!(fixture.report(&next.token, OutcomeKind::Stream, 30_000).await, OutcomeStatus::Billed);
}

#[tokio::test]
async fn a_crash_loses_no_acknowledged_outcome_and_bills_none_twice() {
    let fixture = Fixture::start().await;
    fixture.create(spec("c1")).await;
    let mut tokens = Vec::new();
    for _ in 0..20 {
        let placement = fixture.place(&request("track-c1", 1)).await;
        assert_eq!(fixture.report(&placement.token, OutcomeKind::Stream, 30_000).await, OutcomeStatus::Billed);
        tokens.push(placement.token);
    }
    let fixture = fixture.crash().await;
    let campaign = fixture.node.router().campaign_here("c1").expect("it is there").campaign;
    assert_eq!(campaign.settled_micros, 20_000);
    for token in &tokens {
        assert_eq!(fixture.report(token, OutcomeKind::Stream, 30_000).await, OutcomeStatus::Duplicate);
    }
}

#[tokio::test]
async fn the_budget_is_never_exceeded_however_many_ask() {
    let fixture = Fixture::start().await;
    fixture.create(proto::Spec { budget_micros: 10_000, ..spec("c1") }).await;
    let mut billed = 0;
    for _ in 0..400 {
        for placement in fixture.score(&request("track-c1", 1)).await.placements {
            if fixture.report(&placement.token, OutcomeKind::Stream, 30_000).await == OutcomeStatus::Billed {
                billed += 1;
            }
        }
        fixture.a_tick().await;
        let campaign = fixture.node.router().campaign_here("c1").expect("it is there").campaign;
        assert!(campaign.settled_micros + campaign.open_micros <= 10_000);
    }
    assert!(billed <= 10, "{billed}");
}

#[tokio::test]
async fn a_frequency_cap_holds_per_listener() {
    let fixture = Fixture::start().await;
    fixture.create(proto::Spec { frequency_cap: 2, frequency_window_ms: 3_600_000, ..spec("c1") }).await;
    fixture.place(&request("track-c1", 1)).await;
    fixture.place(&request("track-c1", 1)).await;
    for _ in 0..5 {
        fixture.a_tick().await;
        assert!(fixture.score(&request("track-c1", 1)).await.placements.is_empty());
    }
    let other = v1::ScoreRequest { listener_id: "somebody else".into(), ..request("track-c1", 1) };
    fixture.place(&other).await;
}

#[tokio::test]
async fn targeting_is_respected() {
    let fixture = Fixture::start().await;
    let targeted = proto::Spec { surfaces: vec!["radio".into()], markets: vec!["DE".into()], ..spec("c1") };
    fixture.create(targeted).await;
    fixture.place(&request("track-c1", 1)).await;
    let cases = [("radio", "DE", true), ("radio", "SE", false), ("mix", "DE", false)];
    for (surface, market, offered) in cases {
        let request = v1::ScoreRequest { surface: surface.into(), market: market.into(), ..request("track-c1", 0) };
        let score = fixture.score(&request).await.scores[0].score;
        assert_eq!(score > 0.0, offered, "{surface} {market}");
    }
    assert_eq!(fixture.score(&request("another track", 0)).await.scores[0].score, 0.0);
}

#[tokio::test]
async fn writes_are_idempotent_by_request_id_and_refused_with_reasons() {
    let fixture = Fixture::start().await;
    let router = fixture.node.router().clone();
    let deadline = fixture.deadline();
    let first = router.create("r1", spec("c1"), deadline).await.expect("creates");
    let again = router.create("r1", spec("c1"), deadline).await.expect("a retry answers the same");
    assert_eq!(first.campaign.incarnation, again.campaign.incarnation);
    let other = router.create("r2", spec("c1"), deadline).await;
    assert!(matches!(other, Err(WriteError::Refused { refusal: proto::Refusal::AlreadyExists, .. })), "{other:?}");
    let stale = router.update("r3", spec("c1"), Version { incarnation: 0, revision: 99 }, deadline).await;
    assert!(matches!(stale, Err(WriteError::Refused { refusal: proto::Refusal::StaleRevision, .. })), "{stale:?}");
    let missing = router.set_state("r4", "nobody", State::Paused, Version::ANY, deadline).await;
    assert!(matches!(missing, Err(WriteError::Refused { refusal: proto::Refusal::NotFound, .. })), "{missing:?}");
}

#[tokio::test]
async fn lists_are_in_name_order_filtered_and_paged() {
    let fixture = Fixture::start().await;
    for i in [3, 1, 2, 5, 4] {
        let owner = if i % 2 == 0 { "even" } else { "odd" };
        fixture.create(proto::Spec { owner: owner.into(), ..spec(&format!("c{i}")) }).await;
    }
    let names = |views: &[andante::router::CampaignView]| -> Vec<String> {
        views.iter().map(|view| view.campaign.spec.clone().expect("it has settings").name).collect()
    };
    let router = fixture.node.router();
    let (page, more) = router.list(&Default::default(), "", 2, fixture.deadline()).await.expect("lists");
    assert_eq!((names(&page), more), (vec!["c1".into(), "c2".into()], true));
    let (page, more) = router.list(&Default::default(), "c2", 10, fixture.deadline()).await.expect("lists");
    assert_eq!((names(&page), more), (vec!["c3".into(), "c4".into(), "c5".into()], false));
    let odd = andante::router::ListFilter { owner: Some("odd".into()), ..Default::default() };
    let (page, _) = router.list(&odd, "", 10, fixture.deadline()).await.expect("lists");
    assert_eq!(names(&page), ["c1", "c3", "c5"]);
}

#[tokio::test]
async fn a_deleted_campaign_is_gone_and_its_tokens_bill_nothing() {
    let fixture = Fixture::start().await;
    fixture.create(spec("c1")).await;
    let placement = fixture.place(&request("track-c1", 1)).await;
    fixture.set_state("c1", State::Deleting).await.expect("is being deleted");
    // Its promise is kept: only the last allowance's closing removes it.
    assert_eq!(fixture.report(&placement.token, OutcomeKind::Stream, 30_000).await, OutcomeStatus::Billed);
    assert!(fixture.score(&request("track-c1", 1)).await.placements.is_empty());
}

#[tokio::test]
async fn many_events_are_answered_in_order() {
    let fixture = Fixture::start().await;
    fixture.create(spec("c1")).await;
    let token = fixture.place(&request("track-c1", 1)).await.token;
    let report = events(&[
        (&token, OutcomeKind::Impression, 0),
        (b"rubbish", OutcomeKind::Stream, 30_000),
        (&token, OutcomeKind::Stream, 30_000),
        (&token, OutcomeKind::Stream, 30_000),
    ]);
    let results = fixture.node.router().report(&report, fixture.deadline()).await;
    let statuses: Vec<_> = results.iter().map(v1::OutcomeResult::status).collect();
    use OutcomeStatus::{Billed, Duplicate, InvalidToken, Recorded};
    assert_eq!(statuses, [Recorded, InvalidToken, Billed, Duplicate]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_token_is_handed_out_twice_whatever_happens_to_the_actor() {
    const CALLERS: usize = 4;
    const PLACEMENTS: usize = 150;
    let fixture = std::sync::Arc::new(Fixture::start().await);
    fixture.create(proto::Spec { budget_micros: 1_000_000_000, ..spec("c1") }).await;
    let callers = (0..CALLERS).map(|_| {
        let fixture = fixture.clone();
        tokio::spawn(async move {
            let mut tokens = Vec::new();
            while tokens.len() < PLACEMENTS {
                let placement = fixture.place(&request("track-c1", 1)).await;
                let status = fixture.report(&placement.token, OutcomeKind::Stream, 30_000).await;
                assert_eq!(status, OutcomeStatus::Billed);
                tokens.push(placement.token);
            }
            tokens
        })
    });
    let callers: Vec<_> = callers.collect();
    // Fewer crashes than lead to quarantine, spread over the run.
    for share in 1..4 {
        let billed =
            || fixture.node.router().campaign_here("c1").map_or(0, |view| view.campaign.settled_micros / 1_000);
        while billed() < (CALLERS * PLACEMENTS * share / 5) as u64 {
            tokio::task::yield_now().await;
        }
        fixture.node.crash_actor("c1").await;
    }
    let mut tokens = std::collections::BTreeSet::new();
    for caller in callers {
        for token in caller.await.expect("a caller ends well") {
            assert!(tokens.insert(token), "a token was handed out twice");
        }
    }
    let campaign = fixture.node.router().campaign_here("c1").expect("it is there").campaign;
    assert_eq!(campaign.settled_micros, (CALLERS * PLACEMENTS) as u64 * 1_000);
}

#[tokio::test]
async fn on_real_stores_a_restart_finds_the_state_it_left() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let start = async || {
        let settings = andante::settings::Settings { tick_ms: 10, ..Default::default() };
        let config =
            andante::node::NodeConfig { shards: Some(4), settings, ..andante::node::NodeConfig::new(dir.path()) };
        andante::node::Node::start(andante_cluster::env::Env::production(), config).await.expect("starts")
    };
    let node = start().await;
    for i in 0..20 {
        let deadline = tokio::time::Instant::now() + std::time::Duration::from_secs(10);
        node.router().create(&format!("r{i}"), spec(&format!("c{i}")), deadline).await.expect("creates");
    }
    node.drain().await;
    let before = node.digests().await.expect("digests");
    node.shutdown().await.expect("shuts down");
    drop(node);
    let node = start().await;
    let after = node.digests().await.expect("digests");
    // Leading again writes an entry that changes nothing.
    assert_eq!(
        before.iter().map(|(_, digest)| digest).collect::<Vec<_>>(),
        after.iter().map(|(_, d)| d).collect::<Vec<_>>()
    );
    assert_eq!(node.info().boot_id, 2);
}

#[tokio::test]
async fn an_allowance_past_its_promise_is_closed_and_its_money_comes_back() {
    let fixture = Fixture::start().await;
    fixture.create(spec("c1")).await;
    let token = fixture.place(&request("track-c1", 1)).await.token;
    assert!(fixture.open_micros("c1") > 0);
    // Life, hold and margin are 20 s; a node that has just started closes nothing for 30 s.
    fixture.clock.pass(60_000);
    fixture.until("the allowance closes", |_| fixture.open_micros("c1") == 0).await;
    assert_eq!(fixture.report(&token, OutcomeKind::Stream, 30_000).await, OutcomeStatus::RefusedClosed);
    assert_eq!(fixture.report(&token, OutcomeKind::Impression, 0).await, OutcomeStatus::Recorded);

    // Past the retry window it is forgotten.
    fixture.clock.pass(700_000);
    let forgotten = async {
        while fixture.report(&token, OutcomeKind::Stream, 30_000).await != OutcomeStatus::ClosedUnknown {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(std::time::Duration::from_secs(30), forgotten).await.expect("it is forgotten");
    let campaign = fixture.node.router().campaign_here("c1").expect("it is there").campaign;
    assert_eq!((campaign.settled_micros, campaign.open_micros), (0, 0));
}

#[tokio::test]
async fn a_wall_clock_that_steps_closes_nothing_until_an_operator_confirms_it() {
    let fixture = Fixture::start().await;
    fixture.create(spec("c1")).await;
    let token = fixture.place(&request("track-c1", 1)).await.token;
    fixture.clock.step(1_800_000);
    fixture.until("the clock is not trusted", |node| !node.clock_trusted()).await;
    fixture.clock.pass(60_000);
    for _ in 0..20 {
        fixture.score(&request("track-c1", 1)).await;
        fixture.a_tick().await;
    }
    let closed = || fixture.node.metrics().allowances_closed.get();
    assert_eq!(closed(), 0, "a due allowance stays open while the clock is doubtful");
    assert_eq!(fixture.report(&token, OutcomeKind::Stream, 30_000).await, OutcomeStatus::Billed);

    let wall_ms = andante_cluster::env::Clock::now_ms(&*fixture.clock);
    assert!(fixture.node.confirm_clock(wall_ms - 60_000).await.is_err(), "another time is no confirmation");
    fixture.node.confirm_clock(wall_ms).await.expect("confirms");
    fixture.until("what is due closes", |_| closed() > 0).await;
}

#[tokio::test]
async fn a_deleted_campaign_goes_when_its_last_allowance_closes_and_purges_take_ended_ones() {
    let fixture = Fixture::start().await;
    for name in ["c1", "c2"] {
        fixture.create(spec(name)).await;
        fixture.place(&request(&format!("track-{name}"), 1)).await;
    }
    fixture.set_state("c1", State::Deleting).await.expect("is being deleted");
    fixture.set_state("c2", State::Ended).await.expect("ends");
    fixture.clock.pass(60_000);
    fixture.until("the deleted one goes", |node| node.router().campaign_here("c1").is_none()).await;
    assert!(fixture.node.router().campaign_here("c2").is_some(), "an ended one stays readable");
    fixture.clock.pass(91 * 24 * 3_600_000);
    fixture.until("the ended one is purged", |node| node.router().campaign_here("c2").is_none()).await;
}

#[tokio::test]
async fn a_tight_budget_survives_crashes_without_overspend() {
    const BUDGET: u64 = 12_000;
    let mut fixture = Fixture::start().await;
    fixture.create(proto::Spec { budget_micros: BUDGET, ..spec("c1") }).await;
    let mut billed = std::collections::BTreeSet::new();
    for round in 0..4 {
        for _ in 0..60 {
            for placement in fixture.score(&request("track-c1", 1)).await.placements {
                if fixture.report(&placement.token, OutcomeKind::Stream, 30_000).await == OutcomeStatus::Billed {
                    assert!(billed.insert(placement.token), "billed twice");
                }
            }
            fixture.a_tick().await;
            let campaign = fixture.node.router().campaign_here("c1").expect("it is there").campaign;
            assert!(campaign.settled_micros + campaign.open_micros <= BUDGET, "round {round}");
        }
        fixture = fixture.crash().await;
        // What the lost process held comes back at closing.
        fixture.clock.pass(60_000);
    }
    let campaign = fixture.node.router().campaign_here("c1").expect("it is there").campaign;
    assert_eq!(campaign.settled_micros, billed.len() as u64 * 1_000);
    for token in &billed {
        let again = fixture.report(token, OutcomeKind::Stream, 30_000).await;
        assert!(matches!(again, OutcomeStatus::Duplicate | OutcomeStatus::ClosedUnknown), "{again:?}");
    }
}

#[tokio::test]
async fn a_clock_behind_shard_time_serves_on_closes_nothing_and_says_so() {
    let fixture = Fixture::start().await;
    fixture.create(spec("c1")).await;
    fixture.place(&request("track-c1", 1)).await;
    fixture.clock.pass(1_800_000);
    fixture.until("the allowance closes", |_| fixture.open_micros("c1") == 0).await;

    fixture.clock.correct();
    let fixture = fixture.restart().await;
    let token = fixture.place(&request("track-c1", 1)).await.token;
    fixture.until("the clock is not trusted", |node| !node.clock_trusted()).await;
    assert_eq!(fixture.report(&token, OutcomeKind::Stream, 30_000).await, OutcomeStatus::Billed);

    let now_ms = andante_cluster::env::Clock::now_ms(&*fixture.clock);
    fixture.node.confirm_clock(now_ms).await.expect("confirms");
    let token = fixture.place(&request("track-c1", 1)).await.token;
    fixture.until("the clock is trusted", |node| node.clock_trusted()).await;
    assert_eq!(fixture.report(&token, OutcomeKind::Stream, 30_000).await, OutcomeStatus::Billed);
}

#[tokio::test]
async fn a_campaign_without_traffic_falls_asleep_until_it_is_scored_again() {
    let fixture = Fixture::start().await;
    fixture.create(spec("c1")).await;
    fixture.create(spec("c2")).await;
    fixture.place(&request("track-c1", 1)).await;
    fixture.clock.pass(60_000);
    fixture.until("a tick saw the traffic and gave the rest back", |_| fixture.open_micros("c1") <= 1_000).await;
    fixture.clock.pass(200_000);
    fixture.until("it falls asleep", |node| node.metrics().actors_alive.get() == 0).await;
    for _ in 0..20 {
        fixture.score(&request("track-c2", 1)).await;
        fixture.a_tick().await;
    }
    assert_eq!(fixture.node.metrics().actors_alive.get(), 1, "only the one with traffic is awake");
    fixture.place(&request("track-c1", 1)).await;
}

#[tokio::test]
async fn a_pause_gives_back_what_was_not_handed_out() {
    let fixture = Fixture::start().await;
    fixture.create(spec("c1")).await;
    fixture.place(&request("track-c1", 1)).await;
    fixture.set_state("c1", State::Paused).await.expect("pauses");
    fixture.until("only the token handed out is set aside", |_| fixture.open_micros("c1") == 1_000).await;
}
