//! `kill -9` of a node under load, again and again.

use std::time::{Duration, Instant};

use crate::{
    SHARDS, SLOW_PART, alone,
    asker::Asker,
    cluster::{Cluster, Setup},
    probe::Probes,
    program, slow, tell, workers,
    workload::{Workload, audit, spec},
};

/// How often a node is killed; `FAILOVER_KILLS` says otherwise.
const KILLS: usize = 6;
/// How long after a kill its gaps are looked for.
const WINDOW: Duration = Duration::from_secs(5);
/// Bounds of the gap of a shard whose leader died: of 95 in 100, and of all. A slow program may take half as long again.
const GAP_P95: Duration = Duration::from_millis(1_500);
const GAP_MAX: Duration = Duration::from_secs(3);
const SLOW_FACTOR: f64 = 1.5;
const CAMPAIGNS: usize = 96;

fn kills() -> usize {
    std::env::var("FAILOVER_KILLS").ok().map_or(KILLS, |kills| kills.parse().expect("a number"))
}

#[test]
fn a_killed_node_costs_its_shards_a_moment_and_nobody_any_money() {
    let _alone = alone();
    let mut cluster = Cluster::start(Setup::new(program(), 3, SHARDS));
    cluster.until_healthy();
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let asker = runtime.block_on(async { Asker::insisting(cluster.addresses()) });
    let load = runtime.block_on(Workload::start(&asker, CAMPAIGNS, workers()));
    let probed = Asker::campaign_of_each_shard(CAMPAIGNS..2 * CAMPAIGNS);
    runtime.block_on(asker.import(probed.iter().map(|i| spec(*i)).collect()));
    let probes = runtime.block_on(async { Probes::start(&asker, &probed) });
    runtime.block_on(asker.until_placing(&probed));

    let mut moments = Vec::new();
    for round in 0..kills() {
        let victim = round % cluster.members.len();
        let leaders = cluster.leaders();
        let at = Instant::now();
        cluster.kill(victim);
        std::thread::park_timeout(WINDOW);
        moments.push((at, victim, leaders));
        cluster.run(victim);
        cluster.until_ready(victim);
        cluster.until_healthy();
    }
    let shards = runtime.block_on(probes.stop());
    let record = runtime.block_on(load.stop());

    let (mut scores, mut reports) = (Vec::new(), Vec::new());
    let (mut elsewhere, mut failed) = (0, Vec::new());
    for (at, victim, leaders) in moments {
        let to = at + WINDOW;
        for (shard, leader) in leaders.into_iter().enumerate() {
            let times = shards[shard].lock();
            if leader == victim {
                scores.push(times.scores.gap(at, to));
                reports.push(times.reports.gap(at, to));
            } else {
                elsewhere += times.scores.succeeded(at, to);
                failed.extend(times.scores.failed(at, to).into_iter().map(|why| format!("shard {shard}, {why}")));
            }
        }
    }
    let excused = if slow() { elsewhere / SLOW_PART as usize } else { 0 };
    tell(format!("led elsewhere: {elsewhere} scores, {} failed", failed.len()));
    assert!(failed.len() <= excused, "scores of shards led elsewhere failed: {failed:#?}");
    let factor = if slow() { SLOW_FACTOR } else { 1.0 };
    for (what, gaps) in [("scores", &mut scores), ("reports", &mut reports)] {
        gaps.sort();
        let (p95, max) = (gaps[gaps.len() * 95 / 100], gaps[gaps.len() - 1]);
        let median = gaps[gaps.len() / 2];
        tell(format!("{what}: {} gaps, median {median:?}, p95 {p95:?}, max {max:?}", gaps.len()));
        assert!(
            p95 <= GAP_P95.mul_f64(factor) && max <= GAP_MAX.mul_f64(factor),
            "{what} were away for {p95:?} (p95), {max:?} (max)"
        );
    }
    runtime.block_on(audit(&asker, &record, CAMPAIGNS));
}
