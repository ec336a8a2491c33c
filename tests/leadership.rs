//! Who leads comes and goes: tokens are handed out on, old ones bill, money comes back.

mod support;

use andante::{
    actor::Role,
    campaign::{proto::State, token::campaign_key, version::Version},
    v1::OutcomeStatus,
};
use support::{
    campaign::spec,
    trio::{NODES, Trio, request, streamed},
    wires::Position,
};

const CAMPAIGN: &str = "c1";
const PRICE_MICROS: u64 = 1_000;

/// A cluster with a campaign that has been handing out tokens, and who leads its shard.
async fn started() -> (Trio, Position) {
    let trio = Trio::start(2).await;
    let leader = leader(&trio, |_| true).await;
    trio.node(leader).router().create("r1", spec(CAMPAIGN), trio.deadline()).await.expect("creates");
    (trio, leader)
}

/// Who leads the campaign's shard and is one of these.
async fn leader(trio: &Trio, suits: impl Fn(Position) -> bool) -> Position {
    trio.until("a shard has a leader", |trio| trio.leader(CAMPAIGN).is_some_and(&suits)).await;
    trio.leader(CAMPAIGN).expect("it has just led")
}

/// What a node does for the campaign's shard.
fn role(trio: &Trio, i: Position) -> Role {
    let shard = trio.node(i).host().shard_of(campaign_key(CAMPAIGN));
    trio.node(i).role(shard).expect("there is such a shard")
}

async fn report(trio: &Trio, i: Position, token: &[u8]) -> OutcomeStatus {
    let results = trio.node(i).router().report(&streamed(token), trio.deadline()).await;
    results[0].status()
}

/// Waits until all nodes have the same state.
async fn until_equal(trio: &Trio) {
    let equal = async {
        loop {
            let mut digests = Vec::new();
            for i in trio.running() {
                digests.push(trio.node(i).digests().await.expect("digests"));
            }
            if digests.windows(2).all(|pair| pair[0] == pair[1]) {
                return;
            }
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(support::trio::PATIENCE, equal).await.expect("equal digests");
}

/// Waits until nothing is set aside for the campaign but these tokens.
async fn until_set_aside(trio: &Trio, i: Position, tokens: u64) {
    // Its leader gives back what it holds itself.
    trio.node(i).router().set_state("", CAMPAIGN, State::Paused, Version::ANY, trio.deadline()).await.expect("pauses");
    trio.until("only what was handed out is set aside", |trio| {
        let view = trio.node(i).router().campaign_here(CAMPAIGN).expect("it is there");
        view.campaign.open_micros == tokens * PRICE_MICROS
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn when_a_leader_is_lost_another_hands_out_and_bills_its_tokens() {
    let (mut trio, first) = started().await;
    let old = trio.place(first, CAMPAIGN).await.token;
    trio.crash(first).await;
    let second = leader(&trio, |i| i != first).await;
    let new = trio.place(second, CAMPAIGN).await.token;
    for token in [&old, &new] {
        assert_eq!(report(&trio, second, token).await, OutcomeStatus::Billed);
        assert_eq!(report(&trio, second, token).await, OutcomeStatus::Duplicate);
    }
    trio.run(first).await;
    until_equal(&trio).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_that_is_cut_off_hands_out_until_it_hears_of_another_and_then_gives_its_money_back() {
    let (trio, first) = started().await;
    let mut tokens = vec![trio.place(first, CAMPAIGN).await.token];
    trio.wires.isolate(first, (0..NODES).filter(|i| *i != first));
    trio.until("it knows that it is cut off", |trio| role(trio, first) == Role::CutOff).await;
    tokens.push(trio.place(first, CAMPAIGN).await.token);
    let second = leader(&trio, |i| i != first).await;
    tokens.push(trio.place(second, CAMPAIGN).await.token);
    // Its own, and those of a leader that nobody else hears of.
    assert_eq!(report(&trio, second, &tokens[1]).await, OutcomeStatus::Billed);

    trio.wires.heal();
    trio.until("it follows", |trio| role(trio, first) == Role::Following).await;
    // It may be its preferred leader, and soon lead again.
    let leader = leader(&trio, |_| true).await;
    until_set_aside(&trio, leader, 2).await;
    for token in [&tokens[0], &tokens[2]] {
        assert_eq!(report(&trio, leader, token).await, OutcomeStatus::Billed);
    }
    until_equal(&trio).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_stops_hands_its_shards_over_and_strands_nothing() {
    let (mut trio, first) = started().await;
    let token = trio.place(first, CAMPAIGN).await.token;
    trio.stop(first).await;
    let second = leader(&trio, |i| i != first).await;
    let response = trio.node(second).router().score(&request(CAMPAIGN, 1), trio.deadline()).await;
    assert!(response.coverage.is_some());
    until_set_aside(&trio, second, 1 + response.placements.len() as u64).await;
    assert_eq!(report(&trio, second, &token).await, OutcomeStatus::Billed);
}
