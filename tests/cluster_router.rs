//! Any node answers any client: three nodes, each asked for what the others lead.

use std::{collections::BTreeSet, task::Poll, time::Duration};

use andante::{
    actor::Role,
    campaign::{
        proto::{self, State},
        token::campaign_key,
        version::Version,
    },
    peer::v1::{ScoreRequest, router_service_client::RouterServiceClient},
    router::ListFilter,
    settings::Settings,
    v1::{
        ClusterHealth, GetClusterStatusResponse, MissingReason, OutcomeStatus, ScoreResponse,
        score_service_client::ScoreServiceClient,
    },
};
use andante_cluster::{ShardId, host::Leadership};
use futures::{StreamExt as _, stream::FuturesUnordered};
use support::{
    campaign::spec,
    trio::{NODES, PATIENCE, Trio, request, streamed},
    wires::Position,
};
use tokio::time::Instant;
use tonic::{Code, Request};
use tonic_types::StatusExt as _;

mod support;

const SHARDS: u32 = 6;

/// Names of campaigns, at least one per shard.
fn names(trio: &Trio) -> Vec<String> {
    let host = trio.node(0).host();
    let mut shards = BTreeSet::new();
    let names = (0..).map(|i| format!("c{i}"));
    let mut new = names.filter(|name| shards.insert(host.shard_of(campaign_key(name))));
    (0..SHARDS).map(|_| new.next().expect("names without an end")).collect()
}

/// Creates the campaigns, each through another node, and waits until every node lists them all.
async fn create(trio: &Trio, names: &[String]) {
    for (i, name) in names.iter().enumerate() {
        let router = trio.node(i % NODES).router();
        router.create(&format!("create {name}"), spec(name), trio.deadline()).await.expect("creates");
    }
    until_listed(trio, names.len()).await;
}

/// Waits until every node's catalog has so many campaigns.
async fn until_listed(trio: &Trio, campaigns: usize) {
    let listed = format!("andante_catalog_campaigns {campaigns}\n");
    let all = |trio: &Trio| trio.running().iter().all(|i| trio.node(*i).metrics().encode().contains(&listed));
    trio.until("every catalog has them all", all).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn every_node_scores_settles_writes_and_reads_what_the_others_lead() {
    let trio = Trio::start(SHARDS).await;
    let names = names(&trio);
    create(&trio, &names).await;
    for (n, name) in names.iter().enumerate() {
        for i in 0..NODES {
            let placement = trio.place(i, name).await;
            assert_eq!((&placement.campaign, &placement.track_id), (name, &format!("track-{name}")));
            let results =
                trio.node((i + 1) % NODES).router().report(&streamed(&placement.token), trio.deadline()).await;
            assert_eq!(results[0].status(), OutcomeStatus::Billed, "{:?}", results[0]);
            let results =
                trio.node((i + 2) % NODES).router().report(&streamed(&placement.token), trio.deadline()).await;
            assert_eq!(results[0].status(), OutcomeStatus::Duplicate, "{:?}", results[0]);

            let view = trio.node(i).router().campaign(name, trio.deadline()).await.expect("reads").expect("is there");
            assert_eq!(view.campaign.settled_micros, 1_000 * (i as u64 + 1), "a read sees what was acknowledged");
            let pacing = trio.node(i).router().pacing(name, trio.deadline()).await.expect("reads").expect("is there");
            assert_eq!(pacing.view.campaign.settled_micros, view.campaign.settled_micros);
        }
        let state =
            trio.node(n % NODES).router().set_state("pause", name, State::Paused, Version::ANY, trio.deadline()).await;
        assert_eq!(state.expect("pauses").expect("is there").explanation, "paused");
    }
    for i in 0..NODES {
        let router = trio.node(i).router();
        let (views, more) = router.list(&ListFilter::default(), "", 4, trio.deadline()).await.expect("lists");
        let listed: Vec<_> = views.iter().map(|v| v.campaign.spec.as_ref().expect("settings").name.clone()).collect();
        let mut sorted = names.clone();
        sorted.sort();
        assert_eq!((listed, more), (sorted[..4].to_vec(), true));
        assert!(views.iter().all(|view| view.campaign.state() == State::Paused));
        assert!(router.campaign("nobody", trio.deadline()).await.expect("reads").is_none());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_leader_that_is_silent_costs_its_own_shards_only_and_is_named() {
    let trio = Trio::start(SHARDS).await;
    let names = names(&trio);
    create(&trio, &names).await;
    let victim = trio.leader(&names[0]).expect("it has a leader");
    let asked = (victim + 1) % NODES;
    trio.place(asked, &names[0]).await;
    let mut all = request(&names[0], 0);
    for name in &names[1..] {
        all.candidates.extend(request(name, 0).candidates);
    }
    let led: BTreeSet<u32> = names
        .iter()
        .filter(|name| trio.leader(name) == Some(victim))
        .map(|name| trio.node(0).host().shard_of(campaign_key(name)).0)
        .collect();
    trio.wires.isolate(victim, (0..NODES).filter(|i| *i != victim));
    let deadline = Instant::now() + Duration::from_millis(100);
    let reply = trio.node(asked).router().score(&all, deadline).await;
    assert!(Instant::now() < deadline + Duration::from_secs(1), "it does not wait for the silent one");
    let coverage = reply.coverage.expect("coverage");
    assert_eq!(coverage.shards_asked, SHARDS);
    let missing: BTreeSet<u32> = coverage.missing.iter().map(|missing| missing.shard).collect();
    assert_eq!(missing, led);
    assert!(coverage.missing.iter().all(|m| m.reason() == MissingReason::Deadline), "{:?}", coverage.missing);

    // The others elect a leader, and are complete again without the silent one.
    loop {
        let reply = trio.node(asked).router().score(&all, Instant::now() + Duration::from_secs(1)).await;
        if reply.coverage.expect("coverage").missing.is_empty() {
            break;
        }
    }
    trio.place(asked, &names[0]).await;
    trio.wires.heal();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_leader_that_died_is_missed_until_another_one_leads() {
    let mut trio = Trio::start(SHARDS).await;
    let names = names(&trio);
    create(&trio, &names).await;
    let victim = trio.leader(&names[0]).expect("it has a leader");
    let asked = (victim + 1) % NODES;
    let placement = trio.place(asked, &names[0]).await;
    trio.crash(victim).await;
    let reply = trio.node(asked).router().score(&request(&names[0], 1), trio.deadline()).await;
    for missing in reply.coverage.expect("coverage").missing {
        let reasons = [MissingReason::Unreachable, MissingReason::NoLeader, MissingReason::Deadline];
        assert!(reasons.contains(&missing.reason()), "{missing:?}");
    }
    // Neither outcome nor read fails: both wait for the next leader.
    let results = trio.node(asked).router().report(&streamed(&placement.token), trio.deadline()).await;
    let counted = results[0].status() == OutcomeStatus::Billed
        || (results[0].status() == OutcomeStatus::Duplicate && results[0].retried);
    assert!(counted, "{:?}", results[0]);
    let view = trio.node(asked).router().campaign(&names[0], trio.deadline()).await.expect("reads").expect("is there");
    assert_eq!(view.campaign.settled_micros, 1_000);
    trio.place(asked, &names[0]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_asked_for_what_it_does_not_lead_says_who_does() {
    let trio = Trio::start(SHARDS).await;
    let names = names(&trio);
    create(&trio, &names).await;
    let leader = trio.leader(&names[0]).expect("it has a leader");
    let (asking, asked) = ((leader + 1) % NODES, (leader + 2) % NODES);
    let shard = trio.node(0).host().shard_of(campaign_key(&names[0]));
    let channel = trio.node(asking).host().peer(trio.node(asked).info().node_id).expect("a way");
    let request = ScoreRequest { shards: vec![shard.0], ..Default::default() };
    let reply = RouterServiceClient::new(channel).score(request).await.expect("answers").into_inner();
    let silent = &reply.silent[0];
    assert_eq!((silent.shard, silent.leader), (shard.0, trio.node(leader).info().node_id));
}

/// The shard of a campaign.
fn shard_of(trio: &Trio, name: &str) -> ShardId {
    trio.node(0).host().shard_of(campaign_key(name))
}

/// A campaign whose shard has a leader for good, and that leader.
async fn steady(trio: &Trio, names: &[String]) -> (String, Position) {
    let steady = |trio: &Trio| {
        let led = |name: &String| Some((name.clone(), trio.lasting_leader(shard_of(trio, name))?));
        names.iter().find_map(led)
    };
    trio.until("a shard has a leader for good", |trio| steady(trio).is_some()).await;
    steady(trio).expect("it has just led")
}

/// The shards of those campaigns that a node leads.
fn led_by(trio: &Trio, node: Position, names: &[String]) -> BTreeSet<u32> {
    let led = names.iter().filter(|name| trio.leader(name) == Some(node));
    led.map(|name| shard_of(trio, name).0).collect()
}

/// The shards that a reply lacks, all for this reason.
fn missing(reply: &ScoreResponse, reason: MissingReason) -> BTreeSet<u32> {
    let missing = &reply.coverage.as_ref().expect("coverage").missing;
    assert!(missing.iter().all(|missing| missing.reason() == reason), "{missing:?}");
    missing.iter().map(|missing| missing.shard).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_with_too_much_to_answer_costs_its_own_shards_only_and_is_named() {
    let trio = Trio::start(SHARDS).await;
    let names = names(&trio);
    create(&trio, &names).await;
    trio.until("each shard has a leader for good", |trio| {
        names.iter().all(|name| trio.lasting_leader(shard_of(trio, name)).is_some())
    })
    .await;
    let busy = trio.leader(&names[0]).expect("it has a leader");
    let asked = (busy + 1) % NODES;
    for name in &names {
        trio.place(asked, name).await;
    }
    let (router, one) = (trio.node(asked).router(), request(&names[0], 0));
    // A request that nobody polls any more keeps its place among those that the other node is asked at once.
    let mut waiting = Vec::new();
    let mut asks = 0..10_000;
    let refused = loop {
        asks.next().expect("what is asked at once is bounded");
        let mut score = Box::pin(router.score(&one, trio.deadline()));
        match futures::poll!(&mut score) {
            // A thread that rests within this poll gives the other node time to answer it.
            Poll::Ready(reply) if missing(&reply, MissingReason::Overloaded).is_empty() => {}
            Poll::Ready(reply) => break reply,
            Poll::Pending => waiting.push(score),
        }
    };
    let busy_shards = led_by(&trio, busy, &names);
    assert_eq!(missing(&refused, MissingReason::Overloaded), BTreeSet::from([shard_of(&trio, &names[0]).0]));
    let mut all = request(&names[0], 1);
    for name in &names[1..] {
        all.candidates.extend(request(name, 0).candidates);
    }
    let served = async {
        loop {
            let reply = router.score(&all, trio.deadline()).await;
            assert_eq!(missing(&reply, MissingReason::Overloaded), busy_shards);
            if let Some(placement) = reply.placements.into_iter().next() {
                return placement;
            }
        }
    };
    let placement = tokio::time::timeout(PATIENCE, served).await.expect("the others are served");
    assert!(!busy_shards.contains(&shard_of(&trio, &placement.campaign).0));
    drop(waiting);
    let reply = router.score(&all, trio.deadline()).await;
    assert!(missing(&reply, MissingReason::Overloaded).is_empty(), "there is room again");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_has_as_many_scores_as_it_takes_refuses_more_at_once_and_counts_them() {
    // With so much time a busy machine alone refuses nothing.
    let settings = Settings { tick_ms: 20, max_scores_in_flight: 1, score_deadline_ms: 60_000, ..Settings::default() };
    let trio = Trio::with(SHARDS, settings).await;
    let names = names(&trio);
    create(&trio, &names).await;
    let (name, slow) = steady(&trio, &names).await;
    let asked = (slow + 1) % NODES;
    let api = trio.serve(asked).await;
    let score = async || {
        let mut request = Request::new(request(&name, 0));
        request.set_timeout(Duration::from_secs(20));
        ScoreServiceClient::new(api.channel.clone()).score(request).await
    };
    score().await.expect("there is room for one");
    // The one that is let in waits for a node that does not answer.
    trio.wires.isolate(slow, (0..NODES).filter(|i| *i != slow));
    let mut scores: FuturesUnordered<_> = (0..16).map(|_| score()).collect();
    let (mut answered, mut refused) = (0, 0);
    while let Some(answer) = scores.next().await {
        match answer {
            Ok(_) => answered += 1,
            Err(status) => {
                assert_eq!(answered, 0, "they do not wait for the one that was let in");
                assert_eq!(status.code(), Code::ResourceExhausted, "{status}");
                let retry = status.get_details_retry_info().and_then(|retry| retry.retry_delay);
                assert!(retry.is_some_and(|delay| !delay.is_zero()), "{status:?}");
                refused += 1;
            }
        }
    }
    assert_eq!((answered, refused), (1, 15));
    let counted = "andante_rpc_requests_total{method=\"Score\",code=\"RESOURCE_EXHAUSTED\"} 15\n";
    assert!(trio.node(asked).metrics().encode().contains(counted));
    trio.wires.heal();
    score().await.expect("there is room again");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_score_that_takes_a_stale_route_is_complete_nevertheless() {
    let trio = Trio::start(SHARDS).await;
    let names = names(&trio);
    create(&trio, &names).await;
    let (name, from) = steady(&trio, &names).await;
    let shard = shard_of(&trio, &name);
    // A node that stops gives this shard to this one first.
    let mut others: Vec<Position> = (0..NODES).filter(|i| *i != from).collect();
    others.rotate_left(shard.group().0 as usize % 2);
    let (to, asked) = (others[0], others[1]);
    let (from_id, to_id) = (trio.node(from).info().node_id, trio.node(to).info().node_id);
    trio.place(asked, &name).await;

    // The one asked hears nothing of its new leader: for all it knows the old one goes on.
    trio.wires.cut(to, asked);
    let old = trio.node(from).clone();
    let handing_over = tokio::spawn(async move { old.hand_over().await });
    trio.until("the shard has another leader, which serves", |trio| {
        trio.node(to).role(shard) == Some(Role::Leading) && trio.node(from).role(shard) != Some(Role::Leading)
    })
    .await;
    let told = async {
        let channel = trio.node(to).host().peer(from_id).expect("a way");
        let mut client = RouterServiceClient::new(channel);
        loop {
            let asked = ScoreRequest { shards: vec![shard.0], ..Default::default() };
            let reply = client.score(asked).await.expect("answers").into_inner();
            if reply.silent.first().is_some_and(|silent| silent.leader == to_id) {
                return;
            }
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(PATIENCE, told).await.expect("the old leader knows the new one");
    let leadership = *trio.node(asked).host().leadership(shard).borrow();
    assert_eq!(leadership, Leadership::Follower { leader: Some(from_id) }, "the route is stale");
    let stale_routes = |trio: &Trio| {
        let metrics = trio.node(asked).metrics().encode();
        metrics.lines().find(|line| line.starts_with("andante_router_stale_routes_total")).map(str::to_owned)
    };
    let before = stale_routes(&trio).expect("it is counted");
    let (node, deadline, asks) = (trio.node(asked).clone(), trio.deadline(), request(&name, 0));
    let scoring = tokio::spawn(async move { node.router().score(&asks, deadline).await });
    trio.until("it was told that its route is stale", |trio| stale_routes(trio) != Some(before.clone())).await;
    trio.wires.heal();
    let reply = scoring.await.expect("runs");
    let coverage = reply.coverage.expect("coverage");
    assert_eq!((coverage.shards_asked, coverage.shards_answered), (1, 1), "{:?}", coverage.missing);
    handing_over.await.expect("runs");
}

/// Four nodes, each without a replica of some of the campaigns' shards.
struct Spread {
    trio: Trio,
    names: Vec<String>,
    fourth: Position,
}

impl Spread {
    async fn start() -> Self {
        let mut trio = Trio::start(SHARDS).await;
        let names = names(&trio);
        create(&trio, &names).await;
        let fourth = trio.add().await;
        trio.until("the replicas are spread over four nodes, all ready", |trio| {
            let directory = trio.node(fourth).host().directory().borrow().clone();
            let spread =
                directory.nodes.len() == NODES + 1 && directory.replicas.values().all(|replicas| replicas.settled());
            let moved = trio.running().iter().all(|i| names.iter().any(|name| lacks(trio, *i, name)));
            spread && moved && trio.running().iter().all(|i| trio.node(*i).ready().is_ok())
        })
        .await;
        Self { trio, names, fourth }
    }
}

/// Whether a node has no replica of a campaign's shard.
fn lacks(trio: &Trio, i: Position, name: &str) -> bool {
    !trio.node(i).host().has_replica(shard_of(trio, name))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_catalog_that_can_not_follow_its_shards_shows_in_the_status_until_it_can_again() {
    let Spread { trio, fourth, .. } = Spread::start().await;
    let id = trio.node(fourth).info().node_id;
    let becomes = |health: ClusterHealth, verdict: &'static str, behind: fn(u32) -> bool| {
        let (asked, deadline) = (trio.node(0).clone(), Instant::now() + PATIENCE);
        async move {
            loop {
                let status: GetClusterStatusResponse = asked.cluster_status(deadline).await;
                let node = status.nodes.iter().find(|node| node.node_id == id).expect("it is listed");
                if status.health() == health && status.verdict == verdict && behind(node.catalog_shards_behind) {
                    return;
                }
                assert!(Instant::now() < deadline, "{health:?} {verdict:?}: {status:?}");
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
    };
    let healthy = "all 6 shards answer; survives 1 more failure";
    becomes(ClusterHealth::Healthy, healthy, |behind| behind == 0).await;
    // It is reached by the others but reaches nobody: its replicas go on, and what it follows elsewhere it has lost.
    trio.wires.bar(fourth);
    let lagging = "every shard answers, but the catalog of 1 node is behind; survives 1 more failure";
    becomes(ClusterHealth::Degraded, lagging, |behind| behind > 0).await;
    trio.wires.heal();
    becomes(ClusterHealth::Healthy, healthy, |behind| behind == 0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_follows_the_shards_that_it_has_no_replica_of() {
    let Spread { trio, names, fourth } = Spread::start().await;
    // What was there before came as a whole.
    until_listed(&trio, names.len()).await;
    for i in trio.running() {
        let missing = names.iter().find(|name| lacks(&trio, i, name)).expect("it lacks one");
        assert_eq!(trio.place(i, missing).await.campaign, *missing);
        let view = trio.node(i).router().campaign(missing, trio.deadline()).await.expect("reads");
        assert!(view.is_some(), "reads go to the leader");
        let (views, _) =
            trio.node(i).router().list(&ListFilter::default(), "", 100, trio.deadline()).await.expect("lists");
        assert_eq!(views.len(), names.len());
    }
    // What changes comes as it changes: a new one, other tracks, a campaign that goes.
    let new = (0..).map(|i| format!("new-{i}")).find(|name| lacks(&trio, fourth, name)).expect("names without an end");
    let router = trio.node(0).router();
    router.create("new", spec(&new), trio.deadline()).await.expect("creates");
    until_listed(&trio, names.len() + 1).await;
    trio.place(fourth, &new).await;
    let moved = proto::Spec { tracks: vec!["track-moved".into()], ..spec(&new) };
    router.update("move", moved, Version::ANY, trio.deadline()).await.expect("updates");
    trio.place(fourth, "moved").await;
    let gone =
        (0..).map(|i| format!("gone-{i}")).find(|name| lacks(&trio, fourth, name)).expect("names without an end");
    router.create("gone", spec(&gone), trio.deadline()).await.expect("creates");
    until_listed(&trio, names.len() + 2).await;
    router.set_state("go", &gone, State::Deleting, Version::ANY, trio.deadline()).await.expect("deletes");
    until_listed(&trio, names.len() + 1).await;
}
