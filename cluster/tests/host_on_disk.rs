//! A node on the production stores: raft-engine, sled, snapshot files.

mod toy;

use std::path::Path;
use tonic::service::Routes;

use andante_cluster::{
    Host, HostConfig, ShardId,
    env::Env,
    host::{StartError, replay_logs},
};

use toy::{add, add_ones, all_lead, config, digests, factory, propose, shards, until, value};

const S0: ShardId = ShardId(0);

async fn start(config: HostConfig) -> Result<Host, StartError> {
    let host = Host::start(Env::production(), config, factory(), Routes::default()).await?;
    all_lead(&host).await;
    Ok(host)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn restarts_and_crashes_give_exactly_what_was_acknowledged() {
    let dir = tempfile::tempdir().expect("dir");
    for round in 1..=4 {
        let host = start(config(dir.path())).await.expect("starts");
        assert_eq!(host.identity().boot_id, round);
        add_ones(&host, 30).await;
        let before = digests(&host).await;
        if round % 2 == 0 {
            host.shutdown().await.expect("stops");
            for shard in shards(&host) {
                assert_eq!(host.status(shard).durable, host.status(shard).applied);
            }
        }
        drop(host);
        let replayed = replay_when_free(dir.path()).await;
        assert_eq!(replayed, before, "round {round}");
    }
    let host = start(config(dir.path())).await.expect("starts");
    assert_eq!(value(&propose(&host, S0, add(0, 0)).await.expect("applied").reply), 4);
}

/// Replays the logs when the dropped host's last task has let go of them.
async fn replay_when_free(dir: &Path) -> Vec<u64> {
    let mut replayed = None;
    until("the log is free", || {
        replayed = replay_logs(&Env::production(), dir, &factory()).ok();
        replayed.is_some()
    })
    .await;
    replayed.expect("free").into_iter().map(|shard| shard.digest).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn damaged_records_are_put_into_quarantine_and_rebuilt() {
    let dir = tempfile::tempdir().expect("dir");
    let small = || HostConfig { snapshot_every: 20, ..config(dir.path()) };
    let host = start(small()).await.expect("starts");
    for _ in 0..10 {
        add_ones(&host, 10).await;
    }
    until("the log is purged", || host.status(S0).purged.is_some()).await;
    let before = digests(&host).await;
    host.shutdown().await.expect("stops");
    drop(host);
    std::fs::write(dir.path().join("state").join("conf"), b"not what sled wrote").expect("writable");
    let host = start(small()).await.expect("rebuilds");
    assert_eq!(digests(&host).await, before);
    let kept = dir.path().join(format!("state.damaged-{}", host.identity().boot_id));
    assert!(kept.is_dir(), "kept for somebody to look at");
    drop(host);
    let host = start(small()).await.expect("starts");
    assert_eq!(digests(&host).await, before);
}
