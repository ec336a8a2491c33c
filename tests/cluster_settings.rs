//! The settings on which all nodes agree: however nodes are configured, they obey the directory.

use andante::settings::Settings;
use cluster::{Cluster, Setup, until};
use serde_json::Value;
use support::trio::{NODES, Trio};

#[allow(dead_code, unreachable_pub, reason = "shared with other tests, which use more of it")]
#[path = "support/cluster.rs"]
mod cluster;
mod support;

fn margins(trio: &Trio) -> Vec<u64> {
    trio.running().into_iter().map(|i| trio.node(i).cluster_settings().skew_margin_ms).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_change_reaches_the_nodes_that_were_away_as_soon_as_they_are_back() {
    let settings =
        [6_000, 7_000, 8_000].map(|skew_margin_ms| Settings { tick_ms: 20, skew_margin_ms, ..Settings::default() });
    let mut trio = Trio::each(2, settings.into()).await;
    assert_eq!(margins(&trio), [6_000; NODES], "the first node wrote its own");

    trio.stop(2).await;
    let changed =
        trio.node(1).change_cluster_settings(|settings| settings.skew_margin_ms = 9_000, None, trio.deadline());
    assert_eq!(changed.await.expect("changes").settings.skew_margin_ms, 9_000);
    assert_eq!(trio.node(1).cluster_settings().skew_margin_ms, 9_000, "callers read their own writes");
    trio.until("the other node follows", |trio| margins(trio) == [9_000; 2]).await;
    trio.wires.isolate(2, [0, 1]);
    trio.run(2).await;
    assert_eq!(margins(&trio), [9_000, 9_000, 6_000], "nobody has told it yet");
    trio.wires.heal();
    trio.until("the one that was away follows", |trio| margins(trio) == [9_000; NODES]).await;

    for i in 0..NODES {
        trio.crash(i).await;
        trio.run(i).await;
    }
    trio.until("they are kept over crashes", |trio| margins(trio) == [9_000; NODES]).await;
}

/// What of a node's log is about settings that are overruled.
fn warnings(cluster: &Cluster, i: usize) -> Vec<String> {
    let log = cluster.members[i].logged();
    log.lines().filter(|line| line.contains("overrule")).map(str::to_owned).collect()
}

fn obey(cluster: &Cluster, margin_ms: f64, window_ms: f64) -> bool {
    cluster.members.iter().all(|member| {
        member.metric("andante_skew_margin_ms") == Some(margin_ms)
            && member.metric("andante_retry_window_ms") == Some(window_ms)
    })
}

#[test]
fn nodes_that_are_configured_differently_obey_the_cluster_say_so_once_and_follow_changes() {
    let mut setup = Setup::new(env!("CARGO_BIN_EXE_andante"), 3, 2);
    let set =
        |settings: &[&str]| settings.iter().flat_map(|set| ["--set".to_owned(), format!("settings.{set}")]).collect();
    setup.args_of = vec![
        set(&["skew_margin_ms=6000"]),
        // The second is the default, but it was asked for.
        set(&["skew_margin_ms=7000", "retry_window_ms=600000"]),
        set(&[]),
    ];
    let mut cluster = Cluster::start(setup);
    cluster.until_healthy();
    assert!(obey(&cluster, 6_000.0, 600_000.0));
    until("the node that was told otherwise to say so", || (!warnings(&cluster, 1).is_empty()).then_some(()));
    let warning = warnings(&cluster, 1).concat();
    assert!(
        warning.contains("WARN") && warning.contains("settings.skew_margin_ms is 7000, but 6000 holds"),
        "{warning}"
    );
    assert!(warning.contains("andante cluster settings --set skew_margin_ms=7000"), "{warning}");
    assert!(!warning.contains("retry_window_ms"), "{warning}");

    let change = ["cluster", "settings", "--json", "--set", "skew_margin_ms=8000", "--set", "retry_window_ms=700000"];
    let changed: Value = serde_json::from_slice(&cluster.command(2, &change).stdout).expect("JSON");
    assert_eq!((&changed["skew_margin_ms"], &changed["close_grace_ms"]), (&Value::from(8_000), &Value::from(30_000)));
    until("every node to obey the change", || obey(&cluster, 8_000.0, 700_000.0).then_some(()));

    let beyond = ["cluster", "settings", "--set", "close_grace_ms=1", "--set", "skew_margin_ms=60001"];
    let refused = cluster.try_command(0, &beyond);
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert_eq!(refused.status.code(), Some(4), "{said}");
    assert!(said.contains("settings.skew_margin_ms: must lie in 100..=60000, is 60001"), "{said}");
    let unknown = cluster.try_command(0, &["cluster", "settings", "--set", "tick_ms=50"]);
    assert_eq!(unknown.status.code(), Some(2));
    let kept: Value =
        serde_json::from_slice(&cluster.command(0, &["cluster", "settings", "--json"]).stdout).expect("JSON");
    assert_eq!(kept, changed, "what is refused changes nothing");

    assert!(cluster.terminate(0).success());
    cluster.kill(1);
    cluster.run(0);
    cluster.run(1);
    (0..2).for_each(|i| cluster.until_ready(i));
    until("all to obey it after a stop and a crash", || obey(&cluster, 8_000.0, 700_000.0).then_some(()));
    until("both to warn", || (warnings(&cluster, 0).len() == 1 && warnings(&cluster, 1).len() == 2).then_some(()));
    assert!(warnings(&cluster, 0)[0].contains("settings.skew_margin_ms is 6000, but 8000 holds"));
    assert!(warnings(&cluster, 2).is_empty(), "nobody told it otherwise");
    let second = warnings(&cluster, 1);
    assert!(second[1].contains("settings.retry_window_ms is 600000, but 700000 holds"), "{second:?}");
}
