//! Clusters of real processes: the built binary, mutual TLS between the nodes, everything on this machine.

use std::{
    fs::OpenOptions,
    io::{Read as _, Write as _},
    net::{Ipv4Addr, SocketAddr, TcpStream},
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Output, Stdio},
    sync::atomic::{AtomicU8, Ordering},
    time::{Duration, Instant},
};

/// Longest wait for anything: builders may share two cores with others.
pub const PATIENCE: Duration = Duration::from_secs(180);
/// Time between two looks.
const LOOK_EVERY: Duration = Duration::from_millis(5);
/// For one look at a probe.
const PROBE_TIMEOUT: Duration = Duration::from_secs(5);
/// Lines of a log shown when something fails.
const TAIL_LINES: usize = 30;

/// Looks until there is something; fails after [`PATIENCE`].
pub fn until<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let started = Instant::now();
    loop {
        if let Some(seen) = look() {
            return seen;
        }
        assert!(started.elapsed() < PATIENCE, "waited {PATIENCE:?} for {what}");
        std::thread::park_timeout(LOOK_EVERY);
    }
}

/// How a cluster is set up.
#[derive(Debug, Clone)]
pub struct Setup {
    /// The program.
    pub binary: PathBuf,
    /// Nodes.
    pub nodes: usize,
    /// Shards.
    pub shards: u32,
    /// More arguments of every node.
    pub args: Vec<String>,
    /// More arguments of single nodes, by position.
    pub args_of: Vec<Vec<String>>,
    /// What the first node finds in its data directory: the `data` in this archive.
    pub archive: Option<PathBuf>,
}

impl Setup {
    /// So many nodes of the program under test.
    pub fn new(binary: impl Into<PathBuf>, nodes: usize, shards: u32) -> Self {
        Self { binary: binary.into(), nodes, shards, args: Vec::new(), args_of: Vec::new(), archive: None }
    }
}

/// One node, over all its starts.
#[derive(Debug)]
pub struct Member {
    /// The program of its next start.
    pub binary: PathBuf,
    /// More arguments of its next start.
    pub args: Vec<String>,
    /// Its data.
    pub data_dir: PathBuf,
    /// Where clients reach it.
    pub grpc: SocketAddr,
    /// Its metrics and probes.
    pub http: SocketAddr,
    /// Where its peers reach it.
    pub peer: SocketAddr,
    log: PathBuf,
    child: Option<Child>,
}

impl Member {
    /// Whether `/readyz` says yes.
    pub fn ready(&self) -> bool {
        self.get("/readyz").is_some_and(|answer| answer.starts_with("HTTP/1.1 200"))
    }

    /// What it answers to a GET, head included.
    pub fn get(&self, path: &str) -> Option<String> {
        let mut stream = TcpStream::connect_timeout(&self.http, PROBE_TIMEOUT).ok()?;
        stream.set_read_timeout(Some(PROBE_TIMEOUT)).ok()?;
        stream.write_all(format!("GET {path} HTTP/1.1\r\nhost: node\r\nconnection: close\r\n\r\n").as_bytes()).ok()?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).ok()?;
        Some(answer)
    }

    /// The value of a metric without labels.
    pub fn metric(&self, name: &str) -> Option<f64> {
        let text = self.get("/metrics")?;
        let line = text.lines().find(|line| line.split(' ').next() == Some(name))?;
        line.rsplit(' ').next()?.parse().ok()
    }

    /// Its process, while it runs.
    pub fn pid(&self) -> Option<u32> {
        self.child.as_ref().map(Child::id)
    }

    /// What it logged, over all its starts.
    pub fn logged(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// The end of what it logged.
    pub fn tail(&self) -> String {
        let text = self.logged();
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(TAIL_LINES)..].join("\n")
    }
}

/// Some nodes on this machine; killed when dropped.
#[derive(Debug)]
pub struct Cluster {
    /// The nodes, by position.
    pub members: Vec<Member>,
    setup: Setup,
    join: Option<(SocketAddr, String)>,
    /// Last: it is removed when everything has ended.
    dir: tempfile::TempDir,
}

impl Cluster {
    /// Starts a node that forms a cluster and others that join it, and waits until all are ready.
    pub fn start(setup: Setup) -> Self {
        // All of 127/8 is this machine: with an address of its own a node finds its ports free at every start.
        static COUNT: AtomicU8 = AtomicU8::new(101);
        let [.., high, low] = std::process::id().to_be_bytes();
        let dir = tempfile::tempdir().expect("a temporary folder");
        let member = |i: usize| {
            let ip = Ipv4Addr::new(127, COUNT.fetch_add(1, Ordering::Relaxed), high, low.max(1));
            Member {
                binary: setup.binary.clone(),
                args: [&setup.args[..], setup.args_of.get(i).map_or(&[], Vec::as_slice)].concat(),
                data_dir: dir.path().join(format!("node-{i}")),
                grpc: (ip, 7400).into(),
                http: (ip, 7401).into(),
                peer: (ip, 7402).into(),
                log: dir.path().join(format!("node-{i}.log")),
                child: None,
            }
        };
        let members: Vec<Member> = (0..setup.nodes).map(member).collect();
        if let Some(archive) = &setup.archive {
            let tar = Command::new("tar").arg("-xzf").arg(archive).arg("-C").arg(dir.path()).status();
            assert!(tar.is_ok_and(|status| status.success()), "{} can't be unpacked", archive.display());
            std::fs::rename(dir.path().join("data"), &members[0].data_dir).expect("renames");
        }
        let mut cluster = Self { members, setup, join: None, dir };
        cluster.run(0);
        cluster.until_ready(0);
        if cluster.members.len() > 1 {
            let token = cluster.command(0, &["access", "join-token", "--json"]);
            let token = String::from_utf8(token.stdout).expect("text");
            let token: serde_json::Value = serde_json::from_str(&token).expect("JSON");
            let token = token["join_token"].as_str().expect("a join token").to_owned();
            cluster.join = Some((cluster.members[0].peer, token));
        }
        for i in 1..cluster.members.len() {
            cluster.run(i);
        }
        (1..cluster.members.len()).for_each(|i| cluster.until_ready(i));
        cluster
    }

    /// A folder that lives as long as the cluster.
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// Where clients reach the nodes.
    pub fn addresses(&self) -> Vec<String> {
        self.members.iter().map(|member| member.grpc.to_string()).collect()
    }

    /// Starts a node that does not run; it is ready later.
    pub fn run(&mut self, i: usize) {
        let member = &mut self.members[i];
        assert!(member.child.is_none(), "node {i} runs already");
        let log = OpenOptions::new().create(true).append(true).open(&member.log).expect("the log can be written");
        let mut command = Command::new(&member.binary);
        command.args(["node", "--shards", &self.setup.shards.to_string(), "--log-format", "json", "--data-dir"]);
        command.arg(&member.data_dir);
        for (flag, addr) in [("--grpc", member.grpc), ("--http", member.http), ("--peer", member.peer)] {
            command.args([flag, &addr.to_string()]);
        }
        if let Some((seed, token)) = &self.join
            && i > 0
        {
            command.args(["--join", &seed.to_string()]).env("ANDANTE_JOIN_TOKEN", token);
        }
        command.args(&member.args).stdin(Stdio::null());
        command.stdout(log.try_clone().expect("a second handle")).stderr(log);
        let child = command.spawn().unwrap_or_else(|e| panic!("{}: {e}", member.binary.display()));
        member.child = Some(child);
    }

    /// Waits until a node is ready.
    pub fn until_ready(&mut self, i: usize) {
        until(&format!("node {i} to become ready"), || {
            let member = &mut self.members[i];
            let status = member.child.as_mut().expect("it was started").try_wait().expect("it is our child");
            assert!(status.is_none(), "node {i} ended: {status:?}; its log ends with\n{}", member.tail());
            member.ready().then_some(())
        });
    }

    /// Ends a node as `kill -9` does.
    pub fn kill(&mut self, i: usize) {
        let mut child = self.members[i].child.take().expect("it runs");
        child.kill().expect("it can be killed");
        child.wait().expect("it ends");
    }

    /// Ends a node as an operator does, and waits.
    pub fn terminate(&mut self, i: usize) -> ExitStatus {
        let mut child = self.members[i].child.take().expect("it runs");
        let told = Command::new("sh").args(["-c", "kill -TERM $0", &child.id().to_string()]).status();
        assert!(told.is_ok_and(|status| status.success()), "node {i} can't be told to end");
        until(&format!("node {i} to end on SIGTERM"), || child.try_wait().expect("it is our child"))
    }

    /// Runs a client command against a node; it must succeed.
    pub fn command(&self, i: usize, args: &[&str]) -> Output {
        let output = self.try_command(i, args);
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{args:?}: {}: {said}", output.status);
        output
    }

    /// Runs a client command against a node.
    pub fn try_command(&self, i: usize, args: &[&str]) -> Output {
        let addr = self.members[i].grpc.to_string();
        let run = Command::new(&self.setup.binary).args(args).env("ANDANTE_ADDR", addr).output();
        run.unwrap_or_else(|e| panic!("{}: {e}", self.setup.binary.display()))
    }

    /// The position of each shard's leader.
    pub fn leaders(&self) -> Vec<usize> {
        let status = self.until_healthy();
        let status: serde_json::Value = serde_json::from_slice(&status.stdout).expect("JSON");
        let position = |leader: &serde_json::Value| {
            let nodes = status["nodes"].as_array().expect("nodes");
            let node = nodes.iter().find(|node| node["node"] == *leader).expect("a known node");
            let peer = node["address"].as_str().expect("an address");
            self.members.iter().position(|member| member.peer.to_string() == peer).expect("one of ours")
        };
        let shards = status["shards"].as_array().expect("shards");
        shards.iter().map(|shard| position(&shard["leader"])).collect()
    }

    /// Waits until every shard has all its replicas, by the cluster's own word.
    pub fn until_healthy(&self) -> Output {
        until("the cluster to be healthy", || {
            let asked = self.members.iter().position(|member| member.child.is_some())?;
            let status = self.try_command(asked, &["cluster", "status", "--json"]);
            status.status.success().then_some(status)
        })
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        for (i, member) in self.members.iter_mut().enumerate() {
            if let Some(mut child) = member.child.take() {
                // Both fail when it has ended already.
                let _ = child.kill();
                let _ = child.wait();
            }
            if std::thread::panicking() {
                let _ = writeln!(std::io::stderr(), "the log of node {i} ends with\n{}", member.tail());
            }
        }
    }
}
