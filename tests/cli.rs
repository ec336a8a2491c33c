//! The command line against a real node: exit codes, JSON, errors in sentences, a graceful end.

use std::{
    io::{BufRead as _, BufReader},
    path::Path,
    process::{Child, Command, Output, Stdio},
};

use serde_json::Value;

const ANDANTE: &str = env!("CARGO_BIN_EXE_andante");

/// A node as a process of its own; it is killed if a test fails.
struct Node {
    process: Child,
    addr: String,
    dir: tempfile::TempDir,
}

impl Node {
    fn start() -> Self {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let data_dir = dir.path().join("data");
        Self::start_with(dir, &data_dir, &[])
    }

    fn start_with(dir: tempfile::TempDir, data_dir: &Path, more: &[&str]) -> Self {
        let mut process = Command::new(ANDANTE)
            .args([
                "node",
                "--grpc",
                "127.0.0.1:0",
                "--http",
                "127.0.0.1:0",
                "--peer",
                "127.0.0.1:0",
                "--shards",
                "2",
                "--json",
                "--data-dir",
            ])
            .arg(data_dir)
            .args(more)
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .expect("starts");
        let mut line = String::new();
        let stdout = process.stdout.take().expect("is piped");
        BufReader::new(stdout).read_line(&mut line).expect("says where it listens");
        let running: Value = serde_json::from_str(&line).expect("a line of JSON");
        let addr = running["grpc"].as_str().expect("an address").to_owned();
        Self { process, addr, dir }
    }

    fn andante(&self, args: &[&str]) -> (i32, Value, String) {
        let output = Command::new(ANDANTE).args(args).env("ANDANTE_ADDR", &self.addr).current_dir(&self.dir).output();
        read(&output.expect("runs"))
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn read(output: &Output) -> (i32, Value, String) {
    let json = serde_json::from_slice(&output.stdout).unwrap_or(Value::Null);
    (output.status.code().expect("a code"), json, String::from_utf8_lossy(&output.stderr).into_owned())
}

#[test]
fn campaigns_are_handled_from_a_shell_and_the_node_ends_well() {
    let mut node = Node::start();
    let flags = ["--owner", "label", "--track", "t1,t2", "--end", "+2h", "--price-micros", "1000", "--json"];
    let create = |name: &'static str, budget: &'static str| {
        [&["campaign", "create", name, "--budget-micros", budget][..], &flags].concat()
    };
    let (code, created, _) = node.andante(&create("c1", "5000000"));
    assert_eq!((code, &created["campaign"]["state"]), (0, &Value::from("ACTIVE")));
    assert_eq!(created["campaign"]["spec"]["track_ids"], serde_json::json!(["t1", "t2"]));

    let (code, _, error) = node.andante(&create("c1", "5000000"));
    let error: Value = serde_json::from_str(&error).expect("errors are JSON too");
    assert_eq!((code, &error["error"]["reason"]), (4, &Value::from("ALREADY_EXISTS")));
    let (code, _, error) = node.andante(&create("C2", "1"));
    let error: Value = serde_json::from_str(&error).expect("errors are JSON too");
    let fields: Vec<&str> =
        error["error"]["violations"].as_array().expect("a list").iter().filter_map(|v| v["field"].as_str()).collect();
    assert_eq!((code, fields), (4, vec!["spec.name", "spec.budget_micros"]));

    let (code, updated, _) = node.andante(&["campaign", "update", "c1", "--budget-micros", "6000000", "--json"]);
    assert_eq!((code, &updated["campaign"]["spec"]["budget_micros"]), (0, &Value::from(6_000_000)));
    let (code, _, error) = node.andante(&["campaign", "update", "c1", "--etag", "1-1", "--hold-ms", "20000"]);
    assert_eq!(code, 4);
    assert!(error.contains("etag is 1-2"), "{error}");
    let (code, paused, _) = node.andante(&["campaign", "pause", "c1", "--json"]);
    assert_eq!((code, &paused["campaign"]["state"]), (0, &Value::from("PAUSED")));

    let import = node.dir.path().join("import.jsonl");
    std::fs::write(
        &import,
        "{\"name\": \"c3\", \"owner\": \"o\", \"track_ids\": [\"t\"], \"end_ms\": \"+1h\", \"budget_micros\": 9, \
         \"price_micros\": 3}\n{\"name\": \"c4\"}\n",
    )
    .expect("writes");
    let (code, imported, _) = node.andante(&["campaign", "import", "import.jsonl", "--json"]);
    assert_eq!((code, &imported["created"], &imported["failed"]), (4, &Value::from(1), &Value::from(1)));

    let (code, listed, _) = node.andante(&["campaign", "list", "--json"]);
    let names: Vec<&str> =
        listed["campaigns"].as_array().expect("a list").iter().filter_map(|c| c["spec"]["name"].as_str()).collect();
    assert_eq!((code, names), (0, vec!["c1", "c3"]));
    let (code, _, error) = node.andante(&["campaign", "get", "nobody"]);
    assert_eq!((code, error.trim()), (3, "error: there is no campaign \"nobody\""));

    let (code, scored, _) = node.andante(&[
        "score",
        "--listener",
        "l",
        "--market",
        "SE",
        "--candidate",
        "t1:0.5",
        "--slots",
        "1",
        "--json",
    ]);
    assert_eq!((code, &scored["scores"][0]["track_id"]), (0, &Value::from("t1")));
    let (code, reported, _) = node.andante(&["outcome", "AAAA", "--kind", "skip", "--json"]);
    assert_eq!((code, &reported["results"][0]["status"]), (4, &Value::from("INVALID_TOKEN")));
    let (code, info, _) = node.andante(&["server", "info", "--json"]);
    assert_eq!((code, &info["shards"]), (0, &Value::from(2)));

    let stop = Command::new("kill").args(["-TERM", &node.process.id().to_string()]).status();
    assert!(stop.expect("kill runs").success());
    assert_eq!(node.process.wait().expect("ends").code(), Some(0));
    let (code, _, error) = node.andante(&["campaign", "list"]);
    assert_eq!(code, 5);
    assert!(error.starts_with("error: no node answers at http://127.0.0.1:"), "{error}");
}

#[test]
fn a_configuration_is_checked_without_starting_anything() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let check = |args: &[&str]| {
        let command = Command::new(ANDANTE).args(["node", "--check", "--json"]).args(args).current_dir(&dir).output();
        read(&command.expect("runs"))
    };
    let (code, checked, _) = check(&["--shards", "3"]);
    assert_eq!((code, &checked["valid"]), (0, &Value::from(true)));
    let (code, checked, _) = check(&["--grpc", "0.0.0.0:7400", "--auth", "off"]);
    assert_eq!((code, &checked["valid"]), (2, &Value::from(false)));
    let (code, _, error) = check(&["--set", "no.such=1"]);
    assert_eq!(code, 2);
    assert!(error.contains("unknown key `no.such`"), "{error}");
    assert_eq!(std::fs::read_dir(&dir).expect("lists").count(), 0, "nothing was written");
}

#[test]
fn wrong_usage_and_help_have_their_own_exit_codes() {
    let code = |args: &[&str]| Command::new(ANDANTE).args(args).output().expect("runs").status.code();
    assert_eq!(code(&["--help"]), Some(0));
    assert_eq!(code(&["campaign", "--help"]), Some(0));
    assert_eq!(code(&["completions", "bash"]), Some(0));
    assert_eq!(code(&["nonsense"]), Some(2));
    assert_eq!(code(&["score"]), Some(2));
}

#[test]
fn a_token_and_the_authority_get_a_caller_through_tls() {
    let folder = || tempfile::tempdir().expect("a temporary folder");
    let kept = folder();
    let file = |name: &str| kept.path().join(name).to_str().expect("text").to_owned();
    let (data_dir, ca, stranger) = (kept.path().join("data"), file("ca.pem"), file("stranger.pem"));
    let token = file("data/operator.token");
    {
        let node = Node::start_with(folder(), &data_dir, &["--auth", "on"]);
        let (code, told, error) = node.andante(&["access", "ca", "--token-file", &token, "--json"]);
        assert_eq!(code, 0, "{error}");
        std::fs::write(&ca, told["certificate_pem"].as_str().expect("a certificate")).expect("writes");
    }
    let node = Node::start_with(folder(), &data_dir, &["--auth", "on", "--tls", "on"]);
    let (_, port) = node.addr.rsplit_once(':').expect("a port");
    // Any of several addresses will do.
    let addresses = format!("127.0.0.1:1,localhost:{port}");
    let list = |more: &[&str]| {
        let fixed = ["campaign", "list", "--json", "--timeout-ms", "5000", "--addr", &addresses];
        node.andante(&[&fixed[..], more].concat())
    };
    let (code, listed, error) = list(&["--ca", &ca, "--token-file", &token]);
    assert_eq!((code, &listed["campaigns"]), (0, &serde_json::json!([])), "{error}");

    let (code, _, error) = list(&["--ca", &ca]);
    assert!(code == 4 && error.contains("UNAUTHENTICATED"), "{code}: {error}");
    let (code, _, error) = list(&["--ca", &ca, "--token", "of-nobody"]);
    assert!(code == 4 && error.contains("UNAUTHENTICATED") && !error.contains("of-nobody"), "{code}: {error}");
    // Another authority vouches for nobody here.
    let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).expect("a certificate");
    std::fs::write(&stranger, made.cert.pem()).expect("writes");
    let (code, _, error) = list(&["--ca", &stranger, "--token-file", &token]);
    assert!(code == 5 && error.contains("certificate"), "{code}: {error}");
}
