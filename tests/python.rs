//! The Python example against a real node: generated from the .proto files, with grpcio as pip installs it.
//!
//! Without Python or a package index it is skipped with a note; with `CI=true` that is a failure.

use std::{
    env,
    io::{BufRead as _, BufReader, Write as _},
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    time::{Duration, Instant},
};

use serde_json::Value;

const ANDANTE: &str = env!("CARGO_BIN_EXE_andante");
const ROOT: &str = env!("CARGO_MANIFEST_DIR");
/// For everything that has to happen.
const PATIENCE: Duration = Duration::from_secs(120);

struct Node {
    process: Child,
    addr: String,
    dir: tempfile::TempDir,
}

impl Node {
    fn start() -> Self {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let listen = ["--grpc", "127.0.0.1:0", "--http", "127.0.0.1:0", "--peer", "127.0.0.1:0"];
        let mut process = Command::new(ANDANTE)
            .arg("node")
            .args(listen)
            .args(["--shards", "2", "--auth", "on", "--json", "--data-dir"])
            .arg(dir.path().join("data"))
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .expect("starts");
        let mut line = String::new();
        BufReader::new(process.stdout.take().expect("is piped")).read_line(&mut line).expect("says where it listens");
        let running: Value = serde_json::from_str(&line).expect("a line of JSON");
        let addr = running["grpc"].as_str().expect("an address").trim_start_matches("http://").to_owned();
        Self { process, addr, dir }
    }

    /// The token that the node left for its operator.
    fn token(&self) -> String {
        let path = self.dir.path().join("data/operator.token");
        std::fs::read_to_string(path).expect("the first node leaves one").trim().to_owned()
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// The interpreter of an environment in the target folder, with the packages and the generated code; or why not.
fn python() -> Result<PathBuf, String> {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("python");
    let python = folder.join("bin/python");
    let requirements = Path::new(ROOT).join("tests/python/requirements.txt");
    let done = folder.join("requirements.txt");
    let wanted = std::fs::read(&requirements).expect("readable");
    if std::fs::read(&done).ok().as_ref() != Some(&wanted) {
        run(Command::new("python3").args(["-m", "venv"]).arg(&folder))?;
        let pip = ["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "-r"];
        run(Command::new(&python).args(pip).arg(&requirements))?;
        std::fs::write(&done, wanted).expect("writable");
    }
    let proto = Path::new(ROOT).join("src/api/proto");
    run(Command::new(&python)
        .args(["-m", "grpc_tools.protoc", "-I"])
        .arg(&proto)
        .arg(format!("--python_out={}", folder.display()))
        .arg(format!("--grpc_python_out={}", folder.display()))
        .args(["andante/v1/score.proto", "andante/v1/outcome.proto"]))?;
    Ok(python)
}

fn run(command: &mut Command) -> Result<Output, String> {
    let output = command.output().map_err(|e| format!("{command:?}: {e}"))?;
    if output.status.success() {
        return Ok(output);
    }
    Err(format!("{command:?}: {}", String::from_utf8_lossy(&output.stderr)))
}

#[test]
fn scores_and_outcomes_from_python() {
    let python = match python() {
        Ok(python) => python,
        Err(why) if env::var("CI").as_deref() == Ok("true") => panic!("{why}"),
        Err(why) => {
            // Straight to the terminal: a passing test's output is not shown.
            let _ = writeln!(std::io::stderr(), "SKIPPED scores_and_outcomes_from_python: {why}");
            return;
        }
    };
    let node = Node::start();
    let token = node.token();
    let create = ["campaign", "create", "c", "--owner", "o", "--track", "t", "--end", "+1h", "--price-micros", "1000"];
    run(Command::new(ANDANTE)
        .args(create)
        .args(["--budget-micros", "1000000000", "--addr", &node.addr])
        .env("ANDANTE_TOKEN", &token))
    .expect("a campaign");

    // One address where nobody listens: the channel goes past it.
    let addresses = format!("127.0.0.1:1,{}", node.addr);
    let example = |token: &str| {
        Command::new(&python)
            .arg(Path::new(ROOT).join("tests/python/score_and_report.py"))
            .args(["--addr", &addresses, "--candidate", "t:1.0", "--requests", "10", "--deadline-ms", "5000"])
            .env("PYTHONPATH", Path::new(env!("CARGO_TARGET_TMPDIR")).join("python"))
            .env("ANDANTE_TOKEN", token)
            .output()
            .expect("runs")
    };
    let begun = Instant::now();
    // A campaign's first requests only wake it.
    let answer = loop {
        let output = example(&token);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let answer: Value = serde_json::from_slice(&output.stdout).expect("JSON");
        if answer["placements"] != 0 {
            break answer;
        }
        assert!(begun.elapsed() < PATIENCE, "no placement: {answer}");
    };
    let (first, again) = (answer["first"].as_array().expect("a list"), answer["again"].as_array().expect("a list"));
    assert!(!first.is_empty() && first.len() == again.len());
    for pair in first.chunks(2) {
        assert_eq!(pair, ["RECORDED", "BILLED"], "{answer}");
    }
    assert!(again.iter().all(|status| status == "DUPLICATE"), "{answer}");

    let output = example("no-token-of-this-cluster");
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && error.contains("UNAUTHENTICATED"), "{error}");
}
