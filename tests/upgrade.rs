//! Upgrades: what a new feature level brought is used only once every node knows it, nobody notices the way there, and
//! older programs are kept away afterwards.
//!
//! The older program is the same one, told to act as one of level 1 (`--feature-level`): a second build would cost
//! minutes and differ in that number alone. What programs of old really left behind opens in `tests/formats.rs`.

#[path = "support/campaign.rs"]
#[allow(unreachable_pub, reason = "shared with other tests")]
mod campaign;
#[path = "support/cluster.rs"]
#[allow(dead_code, unreachable_pub, reason = "shared with other tests, which use more of it")]
mod cluster;

use std::{
    net::Ipv4Addr,
    path::Path,
    process::{Command, Output},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use andante::{
    campaign::{
        proto::{Refusal, State},
        version::Version,
    },
    client::{Client, ClientConfig},
    feature::FEATURE_LEVEL,
    node::{Node, NodeConfig},
    router::WriteError,
    v1,
};
use andante_cluster::env::{Clock as _, Env, SystemClock};
use campaign::spec;
use cluster::{Cluster, Setup, until};
use serde_json::Value;
use tokio::time::Instant;

const OLD: [&str; 2] = ["--feature-level", "1"];
const DEADLINE: Duration = Duration::from_secs(30);
const HOUR_MS: u64 = 3_600_000;
/// Time between two requests of the load: both cores have other work.
const LOAD_EVERY: Duration = Duration::from_millis(10);

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
    let delete = || router.set_state("delete", name, State::Deleting, Version::ANY, deadline);
    router.create("first", spec(name), deadline).await.expect("creates");
    assert!(delete().await.expect("deletes").is_none(), "nothing is open");
    router.create("second", spec(name), deadline).await.expect("creates anew");
    assert!(delete().await.expect("is answered").is_none(), "gone, as far as the sender is concerned");
    match router.set_state("", name, State::Paused, Version::ANY, deadline).await {
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

/// The cluster's feature level, by the word of a node.
fn level(cluster: &Cluster, node: usize) -> u64 {
    let status = cluster.try_command(node, &["cluster", "status", "--json"]);
    let status: Value = serde_json::from_slice(&status.stdout).unwrap_or_default();
    status["feature_level"].as_u64().unwrap_or_default()
}

/// What becomes of a change of the cluster's settings, by the word of a node.
fn set_margin(cluster: &Cluster, node: usize) -> (bool, String) {
    let output = cluster.try_command(node, &["cluster", "settings", "--set", "skew_margin_ms=8000"]);
    (output.status.success(), String::from_utf8_lossy(&output.stderr).into_owned())
}

/// What the load saw.
#[derive(Debug, Default)]
struct Load {
    placements: u64,
    billed: u64,
    failed: Vec<String>,
}

/// Scores and reports every placement, until told to stop.
async fn load(client: Client, campaigns: Vec<String>, stop: Arc<AtomicBool>) -> Load {
    let mut seen = Load::default();
    let mut every = tokio::time::interval(LOAD_EVERY);
    for i in 0.. {
        every.tick().await;
        if stop.load(Ordering::Relaxed) {
            break;
        }
        let request = v1::ScoreRequest {
            request_id: format!("r{i}"),
            listener_id: format!("listener-{i}"),
            surface: "radio".into(),
            market: "DE".into(),
            candidates: campaigns
                .iter()
                .map(|name| v1::Candidate { track_id: format!("track-{name}"), relevance: 1.0 })
                .collect(),
            slots: 1,
            hold_ms: 0,
        };
        let placements = match client.score(request).await {
            Ok(reply) => reply.placements,
            Err(error) => {
                seen.failed.push(format!("score: {error}"));
                continue;
            }
        };
        for placement in placements {
            seen.placements += 1;
            let kind = v1::OutcomeKind::Stream.into();
            let event = v1::OutcomeEvent { token: placement.token, kind, stream_ms: 60_000 };
            match client.report(vec![event]).await {
                Ok(results) if results.iter().all(|result| result.acknowledged()) => seen.billed += 1,
                Ok(results) => seen.failed.push(format!("report: {results:?}")),
                Err(error) => seen.failed.push(format!("report: {error}")),
            }
        }
    }
    seen
}

/// Creates, deletes, creates anew and deletes again with the same request id; whether the second campaign is there.
async fn survives_in_cluster(client: &Client, name: &str) -> bool {
    let create =
        |request_id: &str| v1::CreateCampaignRequest { spec: Some(wire_spec(name)), request_id: request_id.into() };
    let delete = || v1::DeleteCampaignRequest { name: name.into(), request_id: "delete".into(), ..Default::default() };
    client.create_campaign(create("first")).await.expect("creates");
    client.delete_campaign(delete()).await.expect("deletes");
    client.create_campaign(create("second")).await.expect("creates anew");
    client.delete_campaign(delete()).await.expect("is answered");
    client.get_campaign(name).await.is_ok()
}

fn wire_spec(name: &str) -> v1::CampaignSpec {
    let now_ms = SystemClock::default().now_ms();
    v1::CampaignSpec {
        name: name.into(),
        owner: "label".into(),
        track_ids: vec![format!("track-{name}")],
        end_ms: now_ms + HOUR_MS,
        budget_micros: 1_000_000_000_000,
        price_micros: 1_000,
        start_ms: now_ms - HOUR_MS,
        billable: v1::BillableKind::Stream.into(),
        min_stream_ms: 30_000,
        hold_ms: 10_000,
        boost_cap: 1.0,
        expected_billable_share: 0.5,
        ..Default::default()
    }
}

/// What a program of level 1 says when it is started.
fn start_old(data_dir: &Path, addresses: [String; 3], join: Option<(String, String)>) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_andante"));
    command.arg("node").args(OLD).arg("--data-dir").arg(data_dir);
    for (flag, address) in ["--grpc", "--http", "--peer"].into_iter().zip(addresses) {
        command.args([flag, &address]);
    }
    if let Some((seed, token)) = join {
        command.args(["--join", &seed]).env("ANDANTE_JOIN_TOKEN", token);
    }
    command.output().expect("runs")
}

fn names_both_levels(output: &Output) {
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success(), "an old program must not start: {said}");
    assert!(said.contains("feature level 2") && said.contains("1 only"), "{said}");
}

#[test]
fn a_rolling_upgrade_fails_no_request_and_raises_the_level_with_its_last_node() {
    let mut setup = Setup::new(env!("CARGO_BIN_EXE_andante"), 3, 4);
    setup.args = OLD.map(String::from).to_vec();
    let mut cluster = Cluster::start(setup);
    cluster.until_healthy();
    assert_eq!(level(&cluster, 0), 1);

    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().expect("starts");
    let client = runtime.block_on(async { Client::production(ClientConfig::new(cluster.addresses())).expect("valid") });
    let campaigns: Vec<String> = (0..4).map(|i| format!("c{i}")).collect();
    runtime.block_on(async {
        assert!(!survives_in_cluster(&client, "forgotten").await, "level 1 forgets deletions");
        for name in &campaigns {
            let create = v1::CreateCampaignRequest { spec: Some(wire_spec(name)), ..Default::default() };
            client.create_campaign(create).await.expect("creates");
        }
    });
    let stop = Arc::new(AtomicBool::new(false));
    let load = runtime.spawn(load(client.clone(), campaigns, stop.clone()));

    for i in 0..3 {
        assert_eq!(level(&cluster, (i + 1) % 3), 1, "node {i} is old, so the cluster is");
        // It goes by its own configuration: a change would not hold everywhere.
        for asked in 0..3 {
            let (changed, said) = set_margin(&cluster, asked);
            assert!(!changed && said.contains("feature level is 1"), "node {asked}: {said}");
        }
        assert!(cluster.terminate(i).success());
        cluster.members[i].args.clear();
        cluster.run(i);
        cluster.until_ready(i);
        cluster.until_healthy();
    }
    until("the level to be raised everywhere", || (0..3).all(|i| level(&cluster, i) == 2).then_some(()));
    let (changed, said) = set_margin(&cluster, 1);
    assert!(changed, "{said}");
    let obeys = |i: usize| cluster.members[i].metric("andante_skew_margin_ms") == Some(8_000.0);
    until("every node to obey the change", || (0..3).all(obeys).then_some(()));
    stop.store(true, Ordering::Relaxed);
    let seen = runtime.block_on(load).expect("the load ends well");
    assert!(seen.failed.is_empty(), "{} failed: {:?}", seen.failed.len(), seen.failed.first());
    assert!(seen.placements > 0 && seen.billed == seen.placements, "{seen:?}");
    assert!(runtime.block_on(survives_in_cluster(&client, "remembered")), "level 2 remembers deletions");

    // Neither a node that went back nor a new one gets in with an old program.
    assert!(cluster.terminate(2).success());
    let member = &cluster.members[2];
    let addresses = [member.grpc, member.http, member.peer].map(|address| address.to_string());
    names_both_levels(&start_old(&member.data_dir, addresses, None));
    let token: Value =
        serde_json::from_slice(&cluster.command(0, &["access", "join-token", "--json"]).stdout).expect("JSON");
    let token = token["join_token"].as_str().expect("a token").to_owned();
    let free = [(); 3].map(|()| format!("{}:0", Ipv4Addr::LOCALHOST));
    let seed = cluster.members[0].peer.to_string();
    names_both_levels(&start_old(&cluster.dir().join("newcomer"), free, Some((seed, token))));
    cluster.run(2);
    cluster.until_ready(2);
    cluster.until_healthy();
}
