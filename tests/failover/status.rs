//! What `andante cluster status` says while nodes die and come back, to people and to scripts.

use serde_json::Value;

use crate::{
    alone,
    cluster::{Cluster, Setup, until},
    program,
};

/// Few: what is looked at are nodes.
const STATUS_SHARDS: u32 = 4;
/// The node that is asked; it lives on.
const ASKED: usize = 0;

/// What the command says: its exit code and what it writes.
fn status(cluster: &Cluster, more: &[&str]) -> (i32, String) {
    let output = cluster.try_command(ASKED, &[&["cluster", "status"], more].concat());
    (output.status.code().expect("it ends by itself"), String::from_utf8(output.stdout).expect("text"))
}

/// Waits until scripts are told this, and looks whether people are told the same.
fn becomes(cluster: &Cluster, exit: i32, health: &str, verdict: &str) -> Value {
    let seen = until(&format!("{health}: {verdict}"), || {
        let (code, text) = status(cluster, &["--json"]);
        let json: Value = serde_json::from_str(&text).ok()?;
        let says = json["verdict"].as_str().is_some_and(|says| says.starts_with(verdict));
        (code == exit && json["health"] == health && says).then_some(json)
    });
    let (code, text) = status(cluster, &[]);
    let line = text.lines().last().unwrap_or_default();
    assert_eq!(code, exit, "{text}");
    assert!(line.starts_with(&format!("{health}: {verdict}")), "{text}");
    seen
}

#[test]
fn the_status_tells_people_and_scripts_the_same_while_nodes_die_and_come_back() {
    let _alone = alone();
    let mut cluster = Cluster::start(Setup::new(program(), 3, STATUS_SHARDS));
    let healthy = "all 4 shards answer; survives 1 more failure";
    let seen = becomes(&cluster, 0, "healthy", healthy);
    assert_eq!(seen["survives"], 1);
    let id = |i: usize| {
        let address = Value::from(cluster.members[i].peer.to_string());
        let nodes = seen["nodes"].as_array().expect("nodes");
        let node = nodes.iter().find(|node| node["address"] == address).expect("it is listed");
        assert_eq!(node["up"], true);
        node["node"].clone()
    };
    let (second, third) = (id(1), id(2));

    cluster.kill(2);
    // The shards and the directory have two of three replicas each.
    let verdict = format!(
        "every shard answers, but node {third} does not answer, 5 shards are under-replicated; survives no further \
         failure"
    );
    let seen = becomes(&cluster, 10, "degraded", &verdict);
    assert_eq!(seen["survives"], 0);
    for node in seen["nodes"].as_array().expect("nodes") {
        let (is_up, error) = (node["up"] == true, node["error"].as_str().expect("text"));
        assert_eq!((is_up, error.is_empty()), (node["node"] != third, node["node"] != third), "{node}");
    }

    cluster.kill(1);
    let seen = becomes(&cluster, 11, "unavailable", "4 of 4 shards do not answer (shard 0: ");
    assert_eq!(seen["survives"], 0);
    let up = seen["nodes"].as_array().expect("nodes").iter().filter(|node| node["up"] == true).count();
    assert_eq!(up, 1, "neither {second} nor {third}");
    let output = cluster.try_command(1, &["cluster", "status"]);
    assert_eq!(output.status.code(), Some(5), "whoever asks a dead node learns nothing of the others");

    for i in [1, 2] {
        cluster.run(i);
    }
    for i in [1, 2] {
        cluster.until_ready(i);
    }
    becomes(&cluster, 0, "healthy", healthy);
}
