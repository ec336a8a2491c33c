//! What a cluster costs that does nothing.

use std::time::{Duration, Instant};

use crate::{
    alone,
    cluster::{Cluster, Setup},
    program, slow, tell,
};

/// Shards; `IDLE_SHARDS` says otherwise.
const SHARDS: u32 = 64;
/// How long processor time is counted.
const WINDOW: Duration = Duration::from_secs(10);
/// Ticks of `/proc/PID/stat` per second: the same on all Linux systems since 2.6.
const TICKS_PER_S: f64 = 100.0;
/// Share of one core that a node may take.
const SHARE: f64 = 0.05;

#[test]
fn an_idle_cluster_costs_next_to_nothing() {
    let _alone = alone();
    if slow() {
        return tell("SKIPPED what idling costs: an unoptimised program says nothing about it; set FAILOVER_PROGRAM");
    }
    let shards = std::env::var("IDLE_SHARDS").ok().map_or(SHARDS, |shards| shards.parse().expect("a number"));
    let cluster = Cluster::start(Setup::new(program(), 3, shards));
    cluster.until_healthy();
    let ticks = || -> Vec<f64> { cluster.members.iter().map(|member| ticks(member.pid().expect("it runs"))).collect() };
    let (before, since) = (ticks(), Instant::now());
    std::thread::park_timeout(WINDOW);
    let seconds = since.elapsed().as_secs_f64();
    let shares: Vec<f64> = ticks().iter().zip(before).map(|(now, then)| (now - then) / TICKS_PER_S / seconds).collect();
    tell(format!(
        "{shards} idle shards on three nodes: {:.1?} % of a core",
        shares.iter().map(|s| s * 100.0).collect::<Vec<_>>()
    ));
    if shards <= SHARDS {
        assert!(shares.iter().all(|share| *share <= SHARE), "{shares:?} of a core");
    }
}

/// Processor time of a process so far, user and system.
fn ticks(pid: u32) -> f64 {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).expect("it runs");
    // The name, in parentheses, may hold anything.
    let fields: Vec<&str> = stat.rsplit(')').next().expect("fields").split_whitespace().collect();
    fields[11].parse::<f64>().expect("utime") + fields[12].parse::<f64>().expect("stime")
}
