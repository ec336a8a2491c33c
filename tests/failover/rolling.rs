//! Graceful restarts of all nodes, one after the other: nobody notices.

use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::{Duration, Instant},
};

use crate::{
    SHARDS, SLOW_PART, alone,
    asker::Asker,
    cluster::{Cluster, Setup},
    program, slow, tell, workers,
    workload::{Workload, audit},
};

/// Rounds over all nodes; `FAILOVER_ROUNDS` says otherwise.
const ROUNDS: usize = 2;
/// How long the load runs undisturbed, for comparison.
const UNDISTURBED: Duration = Duration::from_secs(5);
const CAMPAIGNS: usize = 96;

#[test]
fn a_rolling_restart_fails_no_request() {
    let _alone = alone();
    let rounds = std::env::var("FAILOVER_ROUNDS").ok().map_or(ROUNDS, |rounds| rounds.parse().expect("a number"));
    let mut cluster = Cluster::start(Setup::new(program(), 3, SHARDS));
    cluster.until_healthy();
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let asker = runtime.block_on(async { Asker::new(cluster.addresses()) });
    let load = runtime.block_on(Workload::start(&asker, CAMPAIGNS, workers()));
    let billed = || load.record.billed.load(Ordering::Relaxed);
    let per_second = |before: u64, since: Instant| (billed() - before) as f64 / since.elapsed().as_secs_f64();
    crate::cluster::until("the load to be billed", || (billed() > 0).then_some(()));

    let (before, since) = (billed(), Instant::now());
    std::thread::park_timeout(UNDISTURBED);
    let undisturbed = per_second(before, since);
    let (before, since) = (billed(), Instant::now());
    for _ in 0..rounds {
        for i in 0..cluster.members.len() {
            assert!(cluster.terminate(i).success(), "node {i} ends well");
            cluster.run(i);
            cluster.until_ready(i);
            cluster.until_healthy();
        }
    }
    let restarting = per_second(before, since);
    let record = runtime.block_on(load.stop());
    tell(format!(
        "{rounds} rounds in {:?}: {restarting:.0} billed/s, undisturbed {undisturbed:.0} billed/s",
        since.elapsed()
    ));
    let (failed, told) = record.failures();
    let load = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
    let (scores, incomplete) = (load(&record.scores), load(&record.incomplete));
    // An election of a slow program may take longer than a score has time.
    let excused = if slow() { incomplete.min(scores / SLOW_PART) } else { 0 };
    assert_eq!(failed, excused, "failed requests of {scores} scores; the first: {told:#?}");
    runtime.block_on(audit(&asker, &record, CAMPAIGNS));
}
