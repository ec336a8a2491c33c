//! Every on-disk format that was ever released opens: for each feature level there is a data directory as its program
//! left it, killed in the middle of things (`tests/data/formats/make.sh`), and what must be read from it.

#[path = "support/cluster.rs"]
#[allow(dead_code, unreachable_pub, reason = "shared with other tests, which use more of it")]
mod cluster;

use std::path::PathBuf;

use cluster::{Cluster, Setup, until};
use serde_json::Value;

/// Each level's archive and what is in it.
fn fixtures() -> Vec<(PathBuf, Value)> {
    let dir = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/data/formats");
    let files = std::fs::read_dir(&dir).expect("lists").map(|entry| entry.expect("an entry").path());
    let mut archives: Vec<PathBuf> = files.filter(|path| path.extension().is_some_and(|e| e == "gz")).collect();
    archives.sort();
    let with_contents = archives.into_iter().map(|archive| {
        let described = archive.to_str().expect("text").replace(".tar.gz", ".json");
        let text = std::fs::read_to_string(&described).unwrap_or_else(|e| panic!("{described}: {e}"));
        (archive, serde_json::from_str(&text).expect("JSON"))
    });
    with_contents.collect()
}

/// Checks that everything of `old` is in `new`; what `new` has besides came later.
fn contains(new: &Value, old: &Value, path: &str) {
    match (new, old) {
        (Value::Object(new), Value::Object(old)) => {
            // Words for that moment, and what only the program that gave it reads.
            for (key, old) in old.iter().filter(|(key, _)| !["explanation", "etag"].contains(&key.as_str())) {
                contains(new.get(key).unwrap_or(&Value::Null), old, &format!("{path}.{key}"));
            }
        }
        (Value::Array(new), Value::Array(old)) => {
            assert_eq!(new.len(), old.len(), "{path}");
            new.iter().zip(old).enumerate().for_each(|(i, (new, old))| contains(new, old, &format!("{path}[{i}]")));
        }
        (new, old) => assert_eq!(new, old, "{path}"),
    }
}

#[test]
fn data_of_every_released_level_opens_and_goes_on() {
    let fixtures = fixtures();
    assert!(!fixtures.is_empty(), "level 1 was released");
    for (archive, expected) in fixtures {
        let mut setup = Setup::new(env!("CARGO_BIN_EXE_andante"), 1, 2);
        setup.archive = Some(archive.clone());
        setup.args = ["--set", "settings.skew_margin_ms=6000"].map(String::from).to_vec();
        let mut cluster = Cluster::start(setup);
        let json = |args: &[&str]| -> Value { serde_json::from_slice(&cluster.command(0, args).stdout).expect("JSON") };
        contains(&json(&["campaign", "list", "--json"]), &expected["campaigns"], &archive.display().to_string());

        // A token that was out when the old program died bills, once; one that had billed does not bill again.
        let token = |name: &str| expected[name].as_str().expect("a token").to_owned();
        let stream = |token: &str| {
            let answer = json(&["outcome", token, "--kind", "stream", "--stream-ms", "60000", "--json"]);
            answer["results"][0]["status"].clone()
        };
        let open = token("open_token");
        assert_eq!(stream(&open), "BILLED");
        assert_eq!(stream(&open), "DUPLICATE");
        assert_eq!(stream(&token("settled_token")), "DUPLICATE");

        // Its program knew no settings of the cluster: they are those of the configuration, and are kept from now on.
        let margin = |cluster: &Cluster| -> Value {
            let read = cluster.command(0, &["cluster", "settings", "--json"]);
            serde_json::from_slice::<Value>(&read.stdout).expect("JSON")["skew_margin_ms"].clone()
        };
        assert_eq!(margin(&cluster), 6_000);
        let change = ["cluster", "settings", "--set", "skew_margin_ms=7000"];
        until("the level that allows to change them", || {
            cluster.try_command(0, &change).status.success().then_some(())
        });
        assert_eq!(margin(&cluster), 7_000);
        assert!(cluster.terminate(0).success());
        cluster.run(0);
        cluster.until_ready(0);
        assert_eq!(margin(&cluster), 7_000);
        assert!(cluster.terminate(0).success());
    }
}
