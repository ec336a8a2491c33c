//! A node that was away for long comes back by snapshots, while the others serve on.

use std::time::Duration;

use crate::{
    SHARDS, alone,
    asker::Asker,
    cluster::{Cluster, Setup, until},
    program, slow, tell,
    workload::{Workload, audit},
};

/// Log entries that the node misses: in an optimised program, and in another, which takes long for them.
const MISSED_ENTRIES: [u32; 2] = [50_000, 5_000];
/// A quarter of what a shard misses: it is purged before the node comes back.
const SNAPSHOT_EVERY: [&str; 2] = ["settings.snapshot_every_entries=1000", "settings.snapshot_every_entries=100"];
/// How long the score's times are taken for comparison.
const UNDISTURBED: Duration = Duration::from_secs(5);
const CAMPAIGNS: usize = 96;
const WORKERS: usize = 16;

/// Entries that a replica in step with a busy leader may lack at a moment.
const IN_STEP: u64 = 200;

/// Whether a node's replicas have what their leaders have, by the cluster's own word.
fn in_step(cluster: &Cluster, node: usize) -> bool {
    let status = cluster.try_command(0, &["cluster", "status", "--json"]);
    let status: serde_json::Value = serde_json::from_slice(&status.stdout).expect("JSON");
    let is_it = |other: &&serde_json::Value| other["address"] == cluster.members[node].peer.to_string();
    let id = &status["nodes"].as_array().expect("nodes").iter().find(is_it).expect("a node of the cluster")["node"];
    status["shards"].as_array().expect("shards").iter().all(|shard| {
        let replicas = shard["replicas"].as_array().expect("replicas");
        let here = replicas.iter().find(|replica| replica["node"] == *id);
        here.is_some_and(|here| here["follows"] == true && here["lag_entries"].as_u64().expect("a number") <= IN_STEP)
    })
}

#[test]
fn a_node_that_missed_much_catches_up_by_snapshots_while_the_others_serve() {
    let _alone = alone();
    let mut setup = Setup::new(program(), 3, SHARDS);
    let which = usize::from(slow());
    setup.args = vec!["--set".into(), SNAPSHOT_EVERY[which].into()];
    let mut cluster = Cluster::start(setup);
    cluster.until_healthy();
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let asker = runtime.block_on(async { Asker::new(cluster.addresses()) });
    let load = runtime.block_on(Workload::start(&asker, CAMPAIGNS, WORKERS));
    let away = 2;
    let undisturbed = || {
        load.record.take_score_micros();
        std::thread::park_timeout(UNDISTURBED);
        load.record.take_score_micros().value_at_quantile(0.99)
    };
    let p99_of_three = undisturbed();
    cluster.kill(away);
    let entries = |cluster: &Cluster| cluster.members[0].metric("andante_log_entries_total");
    let before = until("the log's metric", || entries(&cluster));
    until("enough entries to be missed", || {
        (entries(&cluster)? - before >= f64::from(MISSED_ENTRIES[which])).then_some(())
    });

    let p99_of_two = undisturbed();
    let failed_before = load.record.failures().0;
    cluster.run(away);
    cluster.until_ready(away);
    until("the node to be in step with the others", || in_step(&cluster, away).then_some(()));
    let meanwhile = load.record.take_score_micros();
    let failed = load.record.failures().0 - failed_before;
    let record = runtime.block_on(load.stop());
    // Metrics are brought up to date now and then.
    let installed = || cluster.members[away].metric("andante_snapshot_installed_snapshots_total");
    let installed = until("an installed snapshot to be counted", || installed().filter(|installed| *installed >= 1.0));
    let p99 = meanwhile.value_at_quantile(0.99);
    tell(format!(
        "{installed} snapshots installed; score p99 {p99} us while catching up ({} scores), {p99_of_three} us before, \
         {p99_of_two} us while the node was away; {failed} failed",
        meanwhile.len()
    ));
    runtime.block_on(audit(&asker, &record, CAMPAIGNS));
}
