//! Any node answers any client: three nodes, each asked for what the others lead.

use std::{collections::BTreeSet, time::Duration};

use andante::{
    campaign::{
        proto::{self, State},
        token::campaign_key,
    },
    peer::v1::{ScoreRequest, router_service_client::RouterServiceClient},
    router::ListFilter,
    v1::{MissingReason, OutcomeStatus},
};
use support::{
    campaign::spec,
    trio::{NODES, Trio, request, streamed},
};
use tokio::time::Instant;

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
        let state = trio.node(n % NODES).router().set_state("pause", name, State::Paused, 0, trio.deadline()).await;
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

#[tokio::test(flavor = "multi_thread")]
async fn a_node_follows_the_shards_that_it_has_no_replica_of() {
    let mut trio = Trio::start(SHARDS).await;
    let names = names(&trio);
    create(&trio, &names).await;
    let fourth = trio.add().await;
    let lacks = |trio: &Trio, i: usize, name: &str| {
        let host = trio.node(i).host();
        !host.has_replica(host.shard_of(campaign_key(name)))
    };
    trio.until("the replicas are spread over four nodes, all ready", |trio| {
        let directory = trio.node(fourth).host().directory().borrow().clone();
        let spread =
            directory.nodes.len() == NODES + 1 && directory.replicas.values().all(|replicas| replicas.settled());
        let moved = trio.running().iter().all(|i| names.iter().any(|name| lacks(trio, *i, name)));
        spread && moved && trio.running().iter().all(|i| trio.node(*i).ready().is_ok())
    })
    .await;
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
    router.update("move", moved, 0, trio.deadline()).await.expect("updates");
    trio.place(fourth, "moved").await;
    let gone =
        (0..).map(|i| format!("gone-{i}")).find(|name| lacks(&trio, fourth, name)).expect("names without an end");
    router.create("gone", spec(&gone), trio.deadline()).await.expect("creates");
    until_listed(&trio, names.len() + 2).await;
    router.set_state("go", &gone, State::Deleting, 0, trio.deadline()).await.expect("deletes");
    until_listed(&trio, names.len() + 1).await;
}
