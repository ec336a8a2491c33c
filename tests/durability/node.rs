//! A node in a process of its own.

use std::{
    fs::{File, OpenOptions},
    io::{Read as _, Write as _},
    net::{Ipv4Addr, SocketAddr, TcpStream},
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    sync::atomic::{AtomicU8, Ordering},
    time::Duration,
};

use crate::tools::{run, until};

/// The binary under test.
pub(crate) const ANDANTE: &str = env!("CARGO_BIN_EXE_andante");
/// What a node exits with that had to stop because its disk failed.
pub(crate) const FATAL: i32 = 70;
/// Shards of the nodes: several, so that their entries share syncs, and few, so that starts are quick.
const SHARDS: &str = "4";
/// What the node logs: at its end also what its shards hash to.
const LOG_FILTER: &str = "warn,andante=info,andante_cluster=info,andante::node=debug";
/// For one look at a probe.
const PROBE_TIMEOUT: Duration = Duration::from_secs(5);
/// Lines of a log shown when something fails.
const TAIL_LINES: usize = 30;

/// Where a node lives, over all its starts.
#[derive(Debug, Clone)]
pub(crate) struct Home {
    pub(crate) binary: PathBuf,
    pub(crate) data_dir: PathBuf,
    pub(crate) grpc: SocketAddr,
    pub(crate) http: SocketAddr,
    pub(crate) peer: SocketAddr,
    pub(crate) log: PathBuf,
}

impl Home {
    /// A home with its data in `data_dir` and its log lines in `scratch`.
    pub(crate) fn new(data_dir: &Path, scratch: &Path) -> Self {
        // All of 127/8 is this machine: with an address of its own a node finds its ports free at every start.
        static COUNT: AtomicU8 = AtomicU8::new(1);
        let [.., high, low] = std::process::id().to_be_bytes();
        let ip = Ipv4Addr::new(127, COUNT.fetch_add(1, Ordering::Relaxed), high, low.max(1));
        Self {
            binary: ANDANTE.into(),
            data_dir: data_dir.into(),
            grpc: (ip, 7400).into(),
            http: (ip, 7401).into(),
            peer: (ip, 7402).into(),
            log: scratch.join("node.log"),
        }
    }

    /// What the node logged, over all its starts.
    pub(crate) fn logged(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }

    fn tail(&self) -> String {
        let text = self.logged();
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(TAIL_LINES)..].join("\n")
    }
}

/// A running node; killed when dropped.
#[derive(Debug)]
pub(crate) struct Node {
    pub(crate) home: Home,
    child: Child,
}

impl Node {
    /// Starts a node and waits until it is ready.
    pub(crate) fn start(home: &Home) -> Self {
        Self::start_under(home, &[])
    }

    /// Starts a node as the last argument of another command, which must leave it the process's id.
    pub(crate) fn start_under(home: &Home, wrapper: &[String]) -> Self {
        Self::try_start(home, wrapper).unwrap_or_else(|why| panic!("{why}"))
    }

    /// Starts a node that may refuse.
    ///
    /// # Errors
    /// It ended instead of becoming ready; with the end of its log.
    pub(crate) fn try_start(home: &Home, wrapper: &[String]) -> Result<Self, String> {
        let log = OpenOptions::new().create(true).append(true).open(&home.log).expect("the log can be written");
        let binary = home.binary.to_str().expect("paths here are text").to_owned();
        let command = [wrapper, &[binary]].concat();
        let child = Command::new(&command[0])
            .args(&command[1..])
            .args(["node", "--shards", SHARDS, "--log-format", "json", "--log-filter", LOG_FILTER, "--data-dir"])
            .arg(&home.data_dir)
            .args([
                "--grpc",
                &home.grpc.to_string(),
                "--http",
                &home.http.to_string(),
                "--peer",
                &home.peer.to_string(),
            ])
            // So few that crashes meet snapshots and cut logs.
            .args(["--set", "settings.snapshot_every_entries=200"])
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("a second handle"))
            .stderr(log)
            .spawn()
            .unwrap_or_else(|e| panic!("{}: {e}", command[0]));
        let mut node = Self { home: home.clone(), child };
        let ended = until("the node to become ready", || match node.child.try_wait().expect("it is our child") {
            Some(status) => Some(Some(status)),
            None => ready(home.http).then_some(None),
        });
        match ended {
            None => Ok(node),
            Some(status) => Err(format!("the node did not start: {status}; its log ends with\n{}", home.tail())),
        }
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Ends it as `kill -9` does.
    pub(crate) fn kill(mut self) {
        self.child.kill().expect("it can be killed");
        self.child.wait().expect("it ends");
    }

    /// Ends it as an operator does, and waits.
    pub(crate) fn terminate(mut self) -> ExitStatus {
        terminate(&self.child);
        self.ended("to end on SIGTERM")
    }

    /// Waits for its own end.
    pub(crate) fn ended(&mut self, why: &str) -> ExitStatus {
        until(&format!("the node {why}"), || self.child.try_wait().expect("it is our child"))
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        // Both fail when it has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            crate::tools::tell(&format!("the node's log ends with\n{}", self.home.tail()));
        }
    }
}

/// Whether `/readyz` says yes.
fn ready(http: SocketAddr) -> bool {
    let ask = || -> std::io::Result<String> {
        let mut stream = TcpStream::connect_timeout(&http, PROBE_TIMEOUT)?;
        stream.set_read_timeout(Some(PROBE_TIMEOUT))?;
        stream.write_all(b"GET /readyz HTTP/1.1\r\nhost: node\r\nconnection: close\r\n\r\n")?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        Ok(answer)
    };
    ask().is_ok_and(|answer| answer.starts_with("HTTP/1.1 200"))
}

/// Asks a process to end, as an operator does.
pub(crate) fn terminate(child: &Child) {
    run("sh", &["-c", "kill -TERM $0", &child.id().to_string()]).expect("it can be told");
}

/// A file for what a child writes.
pub(crate) fn log_file(path: &Path) -> File {
    File::create(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}
