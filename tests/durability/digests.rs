//! The state of a stopped node, by recovery and by an independent replay of its log.

use std::{collections::BTreeMap, path::Path, process::Command};

use serde_json::Value;

use crate::{
    node::{ANDANTE, Home},
    tools::run,
};

/// What a stopped node's shards hash to. Holds that recovery and replay of each shard agree.
pub(crate) fn stored(home: &Home, scratch: &Path) -> Vec<String> {
    // Looking starts the stores once: the original stays as the crash left it.
    let copy = scratch.join("copy");
    let (from, to) = (home.data_dir.to_str().expect("text"), copy.to_str().expect("text"));
    run("cp", &["-a", "--sparse=always", from, to]).expect("the data can be copied");
    let output = Command::new(ANDANTE).args(["debug", "digest", "--json", "--data-dir", to]).output().expect("runs");
    std::fs::remove_dir_all(&copy).expect("the copy can be removed");
    let said = String::from_utf8_lossy(&output.stdout);
    let shards: Value = serde_json::from_str(&said)
        .unwrap_or_else(|e| panic!("{e}: `{said}` {}", String::from_utf8_lossy(&output.stderr)));
    let digest = |shard: &Value, way: &str| shard[way]["digest"].as_str().expect("a digest").to_owned();
    let shards = shards.as_array().expect("a list of shards");
    for shard in shards {
        assert_eq!(digest(shard, "replayed"), digest(shard, "recovered"), "recovery differs from the log: {said}");
    }
    shards.iter().map(|shard| digest(shard, "recovered")).collect()
}

/// What the node said at its last graceful end.
pub(crate) fn closed(home: &Home) -> Vec<String> {
    let mut digests = BTreeMap::new();
    // What is no JSON is no log line.
    for line in home.logged().lines().filter_map(|line| serde_json::from_str::<Value>(line).ok()) {
        let fields = &line["fields"];
        if fields["message"] == "closed" {
            let shard = fields["shard"].as_u64().expect("a number");
            digests.insert(shard, fields["digest"].as_str().expect("a digest").to_owned());
        }
    }
    digests.into_values().collect()
}
