//! A leader that is cut off from the others, with a client on its side: it acknowledges no settle, may still hand out
//! what was set aside for it, and somebody else leads soon; after healing all replicas are equal and no money is gone.

mod support;

use std::{collections::BTreeSet, time::Duration};

use andante::{
    router::CampaignView,
    v1::{OutcomeStatus, Placement},
};
use support::{
    campaign::spec,
    trio::{NODES, Trio, request, streamed},
};
use tokio::time::Instant;

/// Longest time without a leader: a lease runs out, an election takes its course, on a busy machine.
const ELECTION_BOUND: Duration = Duration::from_secs(5);
/// What the cut-off side is given to answer a report.
const SHORT: Duration = Duration::from_millis(1_500);

const CAMPAIGN: &str = "c1";

struct Cut {
    trio: Trio,
    /// The leader of the campaign's shard when the wires were cut.
    old: usize,
    /// Tokens taken before.
    before: Vec<Placement>,
}

/// A cluster with a campaign that is placing, and its leader.
async fn placing() -> Cut {
    let trio = Trio::start(2).await;
    let created = trio.node(0).router().create("create", spec(CAMPAIGN), trio.deadline()).await;
    created.expect("creates");
    let mut before = Vec::new();
    for _ in 0..5 {
        before.push(trio.place(0, CAMPAIGN).await);
    }
    let old = trio.leader(CAMPAIGN).expect("somebody leads");
    Cut { trio, old, before }
}

fn others(old: usize) -> impl Iterator<Item = usize> {
    (0..NODES).filter(move |i| *i != old)
}

async fn report(trio: &Trio, i: usize, token: &[u8], within: Duration) -> OutcomeStatus {
    let results = trio.node(i).router().report(&streamed(token), Instant::now() + within).await;
    results[0].status()
}

/// Waits until one of the others leads, and says how long that took.
async fn another_leads(cut: &Cut) -> (usize, Duration) {
    let begun = Instant::now();
    cut.trio.until("one of the others leads", |trio| others(cut.old).any(|i| leads(trio, i))).await;
    let took = begun.elapsed();
    let new = others(cut.old).find(|i| leads(&cut.trio, *i)).expect("it was seen");
    (new, took)
}

fn leads(trio: &Trio, i: usize) -> bool {
    let host = trio.node(i).host();
    let shard = host.shard_of(andante::campaign::token::campaign_key(CAMPAIGN));
    matches!(*host.leadership(shard).borrow(), andante_cluster::host::Leadership::Leader { .. })
}

/// After healing: equal digests at equal index on all nodes, every acknowledged token known, the budget kept.
async fn whole_again(cut: Cut, settled: &[Placement]) {
    let Cut { trio, .. } = cut;
    trio.wires.heal();
    for placement in settled {
        let again = report(&trio, 0, &placement.token, Duration::from_secs(20)).await;
        assert_eq!(again, OutcomeStatus::Duplicate);
    }
    let equal = async {
        loop {
            let mut digests = BTreeSet::new();
            for i in 0..NODES {
                digests.insert(trio.node(i).digests().await.expect("digests"));
            }
            if digests.len() == 1 {
                return;
            }
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(support::trio::PATIENCE, equal).await.expect("equal digests");
    let view: CampaignView =
        trio.node(0).router().campaign(CAMPAIGN, trio.deadline()).await.expect("answers").expect("is there");
    let campaign = &view.campaign;
    assert_eq!(campaign.settled_micros, settled.len() as u64 * 1_000);
    let budget_micros = campaign.spec.as_ref().expect("it has settings").budget_micros;
    assert!(campaign.settled_micros + campaign.open_micros <= budget_micros);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_cut_off_settles_nothing_and_another_takes_over() {
    let mut cut = placing().await;
    let (first, rest) = cut.before.split_first().expect("some");
    assert_eq!(report(&cut.trio, 0, &first.token, Duration::from_secs(20)).await, OutcomeStatus::Billed);
    let mut settled = vec![first.clone()];
    let rest = rest.to_vec();
    cut.trio.wires.isolate(cut.old, others(cut.old));

    // The client on its side: tokens of open allowances are still handed out, but nothing is acknowledged.
    let reply = cut.trio.node(cut.old).router().score(&request(CAMPAIGN, 1), cut.trio.deadline()).await;
    assert!(!reply.placements.is_empty(), "an open allowance is still handed out: {reply:?}");
    let refused = report(&cut.trio, cut.old, &rest[0].token, SHORT).await;
    assert!(matches!(refused, OutcomeStatus::Unknown | OutcomeStatus::Unavailable), "{refused:?}");

    let (new, took) = another_leads(&cut).await;
    assert!(took <= ELECTION_BOUND, "nobody led for {took:?}");
    for placement in &rest[1..] {
        assert_eq!(report(&cut.trio, new, &placement.token, Duration::from_secs(20)).await, OutcomeStatus::Billed);
        settled.push(placement.clone());
    }
    // What was handed out on the other side is as good as any other token.
    let elsewhere = reply.placements[0].clone();
    assert_eq!(report(&cut.trio, new, &elsewhere.token, Duration::from_secs(20)).await, OutcomeStatus::Billed);
    settled.push(elsewhere);
    cut.trio.wires.heal();
    // Its fate was unknown: now it is learnt.
    let fate = report(&cut.trio, cut.old, &rest[0].token, Duration::from_secs(20)).await;
    assert!(matches!(fate, OutcomeStatus::Billed | OutcomeStatus::Duplicate), "{fate:?}");
    settled.push(rest[0].clone());
    cut.before.clear();
    whole_again(cut, &settled).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_that_is_heard_but_hears_nobody_is_replaced() {
    let cut = placing().await;
    // Its heartbeats arrive, the answers don't.
    others(cut.old).for_each(|other| cut.trio.wires.cut(other, cut.old));
    let refused = report(&cut.trio, cut.old, &cut.before[0].token, SHORT).await;
    assert!(matches!(refused, OutcomeStatus::Unknown | OutcomeStatus::Unavailable), "{refused:?}");
    let (new, took) = another_leads(&cut).await;
    assert!(took <= ELECTION_BOUND, "nobody led for {took:?}");
    let settled = cut.before[1..].to_vec();
    for placement in &settled {
        assert_eq!(report(&cut.trio, new, &placement.token, Duration::from_secs(20)).await, OutcomeStatus::Billed);
    }
    cut.trio.wires.heal();
    let fate = report(&cut.trio, new, &cut.before[0].token, Duration::from_secs(20)).await;
    assert!(matches!(fate, OutcomeStatus::Billed | OutcomeStatus::Duplicate), "{fate:?}");
    let all = cut.before.clone();
    whole_again(cut, &all).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_that_hears_but_is_not_heard_is_replaced() {
    let cut = placing().await;
    others(cut.old).for_each(|other| cut.trio.wires.cut(cut.old, other));
    let (new, took) = another_leads(&cut).await;
    assert!(took <= ELECTION_BOUND, "nobody led for {took:?}");
    let settled = cut.before.clone();
    for placement in &settled {
        assert_eq!(report(&cut.trio, new, &placement.token, Duration::from_secs(20)).await, OutcomeStatus::Billed);
    }
    whole_again(cut, &settled).await;
}
