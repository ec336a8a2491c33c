//! Upgrades: what a new feature level brought is used only once every node knows it, nobody notices the way there, and
//! older programs are kept away afterwards.
//!
//! The older program is the same one, told to act as one of level 1 (`--feature-level`): a second build would cost
//! minutes and differ in that number alone. What programs of old really left behind opens in `tests/formats.rs`.

use std::time::Duration;

use andante::{
    campaign::proto::{self, Kind, Refusal, State},
    feature::FEATURE_LEVEL,
    node::{Node, NodeConfig},
    router::WriteError,
};
use andante_cluster::env::{Clock as _, Env, SystemClock};
use tokio::time::Instant;

const DEADLINE: Duration = Duration::from_secs(30);
const HOUR_MS: u64 = 3_600_000;

fn spec(name: &str) -> proto::Spec {
    let now_ms = SystemClock::default().now_ms();
    proto::Spec {
        name: name.into(),
        owner: "label".into(),
        tracks: vec![format!("track-{name}")],
        start_ms: now_ms - HOUR_MS,
        end_ms: now_ms + HOUR_MS,
        budget_micros: 1_000_000_000,
        price_micros: 1_000,
        billable: Kind::Stream.into(),
        min_stream_ms: 30_000,
        hold_ms: 10_000,
        boost_cap: 1.0,
        expected_billable_share: 0.5,
        ..Default::default()
    }
}

/// A node alone, on a disk.
struct Alone {
    dir: tempfile::TempDir,
}

impl Alone {
    async fn start(&self, feature_level: u32) -> anyhow::Result<Node> {
        let config = NodeConfig { shards: Some(1), feature_level, ..NodeConfig::new(self.dir.path()) };
        Node::start(Env::production(), config).await
    }
}

/// Ends a node; what it held open is free for the next one.
async fn stop(node: Node) {
    node.shutdown().await.expect("shuts down");
}

/// Whether the campaign outlives a deletion of the one before it of the same name that is sent again.
async fn survives_a_repeated_deletion(node: &Node, name: &str) -> bool {
    let router = node.router();
    let deadline = Instant::now() + DEADLINE;
    let delete = || router.set_state("delete", name, State::Deleting, 0, deadline);
    router.create("first", spec(name), deadline).await.expect("creates");
    assert!(delete().await.expect("deletes").is_none(), "nothing is open");
    router.create("second", spec(name), deadline).await.expect("creates anew");
    assert!(delete().await.expect("is answered").is_none(), "gone, as far as the sender is concerned");
    match router.set_state("", name, State::Paused, 0, deadline).await {
        Ok(campaign) => campaign.is_some(),
        Err(WriteError::Refused { refusal: Refusal::NotFound, .. }) => false,
        Err(other) => panic!("{other}"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_alone_deletes_with_a_memory_once_its_level_is_raised_and_never_goes_back() {
    let alone = Alone { dir: tempfile::tempdir().expect("a temporary folder") };
    let old = alone.start(1).await.expect("starts");
    assert!(!survives_a_repeated_deletion(&old, "a").await, "programs of level 1 forget deletions");
    stop(old).await;

    let new = alone.start(FEATURE_LEVEL).await.expect("opens what level 1 left");
    let mut directory = new.host().directory();
    let raised = directory.wait_for(|now| now.cluster.as_ref().is_some_and(|c| c.feature_level == FEATURE_LEVEL));
    drop(tokio::time::timeout(DEADLINE, raised).await.expect("is raised in time").expect("the host lives"));
    assert!(survives_a_repeated_deletion(&new, "b").await, "level 2 remembers them");
    stop(new).await;

    let refused = alone.start(1).await.err().expect("level 1 must not read what level 2 wrote").to_string();
    assert!(refused.contains("feature level 2") && refused.contains("level 1 only"), "{refused}");
    let again = alone.start(FEATURE_LEVEL).await.expect("opens its own data");
    stop(again).await;
}
