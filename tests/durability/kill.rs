//! `kill -9` in the middle of a replay, again and again.

use andante_cluster::env::{Rng as _, SystemRng};
use rand::{RngExt as _, SeedableRng as _, rngs::StdRng};

use crate::{
    digests::{closed, stored},
    node::{Home, Node},
    replay::{Replay, audit, verify},
    tools::tell,
};

/// Rows; after a restart some pass without a placement, until the campaigns are awake again.
const ROWS: usize = 4_000;
const KILLS: usize = 3;
/// Repeats a run's moments.
const SEED: &str = "ANDANTE_DURABILITY_SEED";

/// When to kill, in thousandths of the replay.
fn moments() -> Vec<usize> {
    let seed = std::env::var(SEED).ok().map_or_else(|| SystemRng.u64(), |seed| seed.parse().expect("a number"));
    let mut rng = StdRng::seed_from_u64(seed);
    let mut moments: Vec<usize> = (0..KILLS).map(|_| rng.random_range(50..500)).collect();
    moments.sort_unstable();
    tell(&format!("kills after {moments:?} thousandths of the replay ({SEED}={seed})"));
    moments
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_node_loses_nothing_acknowledged_bills_nothing_twice_and_overspends_nothing() {
    let scratch = tempfile::tempdir().expect("a temporary folder");
    let home = Home::new(&scratch.path().join("data"), scratch.path());
    let mut node = Node::start(&home);
    let mut replay = Replay::start(&home, scratch.path(), ROWS);
    for moment in moments() {
        replay.wait_until_played(moment);
        node.kill();
        stored(&home, scratch.path());
        node = Node::start(&home);
    }
    let verdict = replay.finish();
    assert_eq!(verdict["ok"], true, "{verdict}");
    assert!(verdict["retries"].as_u64() > Some(0), "the kills were noticed: {verdict}");
    let again = verify(&home, &replay.record);
    assert_eq!(again["ok"], true, "{again}");
    let acknowledged = audit(&home, &replay.record).await;
    assert_eq!(Some(acknowledged), verdict["billed"].as_u64());

    assert!(node.terminate().success());
    let before = closed(&home);
    assert!(!before.is_empty(), "the node says what it closes with");
    assert_eq!(stored(&home, scratch.path()), before, "a graceful stop and a start change nothing");
}
