//! The demo, on stores in memory: a short day with a crash and a restart.

use std::sync::Arc;

use andante::demo::{self, Options, Progress};
use andante_cluster::{
    env::{Env, OsThreads, SystemClock, SystemRng, TcpNetwork},
    storage::memory::MemoryStores,
};

fn env() -> Env {
    Env {
        clock: Arc::new(SystemClock::default()),
        network: Arc::new(TcpNetwork),
        rng: Arc::new(SystemRng),
        blocking: Arc::new(OsThreads),
        stores: Arc::new(MemoryStores::default()),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_short_day_with_a_crash_and_a_restart_keeps_every_promise() {
    let dir = tempfile::tempdir().unwrap();
    // A debug build on a busy machine keeps up with so many.
    let options = Options { seconds: 5, requests_per_s: 200, nodes: 1, seed: 1 };
    let outcome = demo::run(options, env, dir.path(), Arc::new(Progress::default())).await.unwrap();
    let verdict = &outcome.verdict;
    assert!(verdict.ok, "{verdict}");
    assert!(verdict.billed > 0 && verdict.billed_after_crash > 0 && verdict.waited > 0, "{verdict}");
    assert!(outcome.html.contains("every promise kept"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_day_in_which_a_leader_dies_keeps_every_promise() {
    let dir = tempfile::tempdir().unwrap();
    let options = Options { seconds: 10, requests_per_s: 100, nodes: 3, seed: 1 };
    let outcome = demo::run(options, env, dir.path(), Arc::new(Progress::default())).await.unwrap();
    let verdict = &outcome.verdict;
    assert!(verdict.ok, "{verdict}");
    assert!(verdict.billed > 0 && verdict.billed_after_crash > 0 && verdict.shards_left > 0, "{verdict}");
}
