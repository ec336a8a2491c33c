//! Settles against etcd's puts, in one run: three nodes each, every write on disk of a majority before it is answered,
//! the same number of clients spread over all nodes, the same gRPC stack on the clients' side. One event per RPC
//! against one put, and 100 events per RPC against transactions of 100 puts, in interleaved rounds.
//!
//! Run it by `tests/bench/etcd.sh`, which installs etcd.
#![allow(clippy::print_stdout, missing_docs, reason = "a benchmark tells its figures")]

#[path = "../support/cluster.rs"]
#[allow(dead_code, unreachable_pub, reason = "shared with the tests, which use more of it")]
mod cluster;

use std::{
    net::{Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use andante::v1::{
    self, campaign_service_client::CampaignServiceClient, outcome_service_client::OutcomeServiceClient,
    score_service_client::ScoreServiceClient,
};
use andante_cluster::env::{Clock as _, SystemClock};
use anyhow::{Context as _, ensure};
use clap::Parser as _;
use tokio::task::JoinSet;
use tonic::{
    Request,
    client::Grpc,
    codegen::http::uri::PathAndQuery,
    transport::{Channel, Endpoint},
};
use tonic_prost::ProstCodec;

use cluster::{Cluster, Setup, until};

/// Events or puts in one RPC of the second comparison.
const BATCH: usize = 100;
/// Campaigns; each gives one token per score request.
const CAMPAIGNS: usize = 480;
/// Bytes of a value put: about what one settled outcome takes in a log.
const VALUE_BYTES: usize = 128;
const HOUR_MS: u64 = 3_600_000;
const DEADLINE: Duration = Duration::from_secs(30);

/// Compares settles with etcd's puts.
#[derive(Debug, clap::Parser)]
struct Args {
    /// The etcd program; without it only Andante's figures are told.
    #[arg(long)]
    etcd: Option<PathBuf>,
    /// Clients, spread over the nodes.
    #[arg(long, default_value_t = 64)]
    clients: usize,
    /// Interleaved rounds of each measurement.
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// Seconds of each measurement.
    #[arg(long, default_value_t = 5.0)]
    seconds: f64,
    /// Tokens fetched before each measurement of batches.
    #[arg(long, default_value_t = 2_000_000)]
    tokens: usize,
    /// Cargo says this to benchmarks.
    #[arg(long, hide = true)]
    bench: bool,
}

fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    let andante = Cluster::start(Setup::new(env!("CARGO_BIN_EXE_andante"), 3, 12));
    andante.until_healthy();
    let etcd = args.etcd.as_deref().map(Etcd::start).transpose()?;
    let runtime = tokio::runtime::Runtime::new()?;
    runtime.block_on(run(&args, &andante, etcd.as_ref()))
}

async fn run(args: &Args, andante: &Cluster, etcd: Option<&Etcd>) -> anyhow::Result<()> {
    let channels = |addresses: &[String]| -> anyhow::Result<Vec<Channel>> {
        // A connection per client.
        (0..args.clients)
            .map(|i| Ok(Endpoint::from_shared(format!("http://{}", addresses[i % addresses.len()]))?.connect_lazy()))
            .collect()
    };
    let here = channels(&andante.addresses())?;
    let there = etcd.map(|etcd| channels(&etcd.addresses)).transpose()?;
    create(&here[0]).await?;
    let (mut single, mut batched) = (Vec::new(), Vec::new());
    for round in 0..args.rounds {
        let mut measured = Vec::new();
        for batch in [1, BATCH] {
            let tokens = fetch(&here, if batch == 1 { args.tokens / 10 } else { args.tokens }).await?;
            let ours = settles(&here, tokens, batch, args.seconds).await?;
            let theirs = match &there {
                Some(there) => puts(there, batch, args.seconds, round).await?,
                None => 0.0,
            };
            measured.push((ours, theirs));
        }
        println!(
            "round {}: one per RPC: {:.0} settles/s, {:.0} puts/s; {BATCH} per RPC: {:.0} settles/s, {:.0} puts/s",
            round + 1,
            measured[0].0,
            measured[0].1,
            measured[1].0,
            measured[1].1
        );
        single.push(measured[0]);
        batched.push(measured[1]);
    }
    println!("\n{:<14} {:>12} {:>12} {:>8}", "median of", "settles/s", "puts/s", "ratio");
    for (what, mut figures) in [("one per RPC", single), ("100 per RPC", batched)] {
        figures.sort_by(|a, b| (a.0 / a.1).total_cmp(&(b.0 / b.1)));
        let (ours, theirs) = figures[figures.len() / 2];
        let ratio = if theirs > 0.0 { format!("{:.2} x", ours / theirs) } else { "-".to_owned() };
        println!("{what:<14} {ours:>12.0} {theirs:>12.0} {ratio:>8}");
    }
    Ok(())
}

/// Campaigns whose pacing never binds.
async fn create(channel: &Channel) -> anyhow::Result<()> {
    let now_ms = SystemClock::default().now_ms();
    let campaigns = (0..CAMPAIGNS).map(move |i| v1::ImportCampaignsRequest {
        spec: Some(v1::CampaignSpec {
            name: format!("bench-{i}"),
            owner: "bench".into(),
            track_ids: vec![track(i)],
            start_ms: now_ms - HOUR_MS,
            end_ms: now_ms + 24 * HOUR_MS,
            budget_micros: (1 << 53) - 1,
            price_micros: 1,
            hold_ms: 600_000,
            ..Default::default()
        }),
    });
    let mut client = CampaignServiceClient::new(channel.clone());
    let mut request = Request::new(tokio_stream::iter(campaigns));
    request.set_timeout(DEADLINE);
    let imported = client.import_campaigns(request).await?.into_inner();
    ensure!(imported.failed == 0, "{:?}", imported.failures.first());
    Ok(())
}

fn track(i: usize) -> String {
    format!("track-{i}")
}

/// Tokens of placements, by many requests at once.
async fn fetch(channels: &[Channel], count: usize) -> anyhow::Result<Vec<Vec<u8>>> {
    let mut tasks = JoinSet::new();
    let started = Instant::now();
    let fetched = Arc::new(AtomicUsize::new(0));
    for (i, channel) in channels.iter().enumerate() {
        let mut client = ScoreServiceClient::new(channel.clone());
        let fetched = fetched.clone();
        tasks.spawn(async move {
            let mut tokens = Vec::new();
            while fetched.load(Ordering::Relaxed) < count {
                let request = v1::ScoreRequest {
                    request_id: "bench".into(),
                    listener_id: format!("listener-{i}-{}", tokens.len()),
                    surface: "radio".into(),
                    market: "DE".into(),
                    candidates: (0..CAMPAIGNS).map(|i| v1::Candidate { track_id: track(i), relevance: 1.0 }).collect(),
                    slots: CAMPAIGNS as u32,
                    hold_ms: 0,
                };
                let mut request = Request::new(request);
                request.set_timeout(DEADLINE);
                let placements = client.score(request).await?.into_inner().placements;
                fetched.fetch_add(placements.len(), Ordering::Relaxed);
                tokens.extend(placements.into_iter().map(|placement| placement.token));
                ensure!(started.elapsed() < 10 * DEADLINE, "only {} tokens", fetched.load(Ordering::Relaxed));
            }
            anyhow::Ok(tokens)
        });
    }
    let mut tokens = Vec::new();
    while let Some(fetched) = tasks.join_next().await {
        tokens.extend(fetched??);
    }
    Ok(tokens)
}

/// Settles per second; every one must be billed.
async fn settles(channels: &[Channel], tokens: Vec<Vec<u8>>, batch: usize, seconds: f64) -> anyhow::Result<f64> {
    let share = tokens.len() / channels.len();
    let mut tokens = tokens.into_iter();
    let end = Instant::now() + Duration::from_secs_f64(seconds);
    let started = Instant::now();
    let mut tasks = JoinSet::new();
    for channel in channels {
        let mut own: Vec<Vec<u8>> = tokens.by_ref().take(share).collect();
        let mut client = OutcomeServiceClient::new(channel.clone());
        tasks.spawn(async move {
            let mut billed = 0;
            while Instant::now() < end && own.len() >= batch {
                let events = own.split_off(own.len() - batch).into_iter().map(|token| v1::OutcomeEvent {
                    token,
                    kind: v1::OutcomeKind::Stream.into(),
                    stream_ms: 60_000,
                });
                let mut request = Request::new(v1::ReportRequest { events: events.collect() });
                request.set_timeout(DEADLINE);
                let results = client.report(request).await?.into_inner().results;
                let bad = results.iter().find(|result| result.status() != v1::OutcomeStatus::Billed);
                ensure!(bad.is_none(), "not billed: {bad:?}");
                billed += results.len();
            }
            anyhow::Ok((billed, Instant::now()))
        });
    }
    let (mut billed, mut last) = (0, started);
    while let Some(done) = tasks.join_next().await {
        let (own, at) = done??;
        billed += own;
        last = last.max(at);
    }
    Ok(billed as f64 / (last - started).as_secs_f64())
}

/// Puts per second.
async fn puts(channels: &[Channel], batch: usize, seconds: f64, round: usize) -> anyhow::Result<f64> {
    let end = Instant::now() + Duration::from_secs_f64(seconds);
    let started = Instant::now();
    let mut tasks = JoinSet::new();
    for (i, channel) in channels.iter().enumerate() {
        let mut client = Grpc::new(channel.clone());
        tasks.spawn(async move {
            let put = |n: usize| etcd::Put { key: format!("{round}-{i}-{n}").into(), value: vec![7; VALUE_BYTES] };
            let mut done = 0;
            while Instant::now() < end {
                client.ready().await?;
                if batch == 1 {
                    let path = PathAndQuery::from_static("/etcdserverpb.KV/Put");
                    let codec = ProstCodec::<etcd::Put, etcd::Answer>::default();
                    client.unary(Request::new(put(done)), path, codec).await?;
                } else {
                    let path = PathAndQuery::from_static("/etcdserverpb.KV/Txn");
                    let codec = ProstCodec::<etcd::Transaction, etcd::Answer>::default();
                    let success = (done..done + batch).map(|n| etcd::Operation { put: Some(put(n)) }).collect();
                    client.unary(Request::new(etcd::Transaction { success }), path, codec).await?;
                }
                done += batch;
            }
            anyhow::Ok(done)
        });
    }
    let mut done = 0;
    while let Some(own) = tasks.join_next().await {
        done += own??;
    }
    Ok(done as f64 / started.elapsed().as_secs_f64())
}

/// The few messages of etcd's API that are needed, by their field numbers.
mod etcd {
    #[derive(Clone, PartialEq, prost::Message)]
    pub(super) struct Put {
        #[prost(bytes = "vec", tag = "1")]
        pub(super) key: Vec<u8>,
        #[prost(bytes = "vec", tag = "2")]
        pub(super) value: Vec<u8>,
    }

    #[derive(Clone, PartialEq, prost::Message)]
    pub(super) struct Operation {
        #[prost(message, optional, tag = "2")]
        pub(super) put: Option<Put>,
    }

    #[derive(Clone, PartialEq, prost::Message)]
    pub(super) struct Transaction {
        #[prost(message, repeated, tag = "2")]
        pub(super) success: Vec<Operation>,
    }

    /// Nothing of it is looked at.
    #[derive(Clone, PartialEq, prost::Message)]
    pub(super) struct Answer {}
}

/// Three processes of etcd; killed when dropped.
struct Etcd {
    addresses: Vec<String>,
    children: Vec<Child>,
    _dir: tempfile::TempDir,
}

impl Etcd {
    fn start(program: &Path) -> anyhow::Result<Self> {
        let dir = tempfile::tempdir()?;
        let ip = |i: usize| Ipv4Addr::new(127, 0, 1, 1 + i as u8);
        let url = |addr: SocketAddr| format!("http://{addr}");
        let members: Vec<String> = (0..3).map(|i| format!("n{i}={}", url((ip(i), 2380).into()))).collect();
        let mut etcd = Self { addresses: Vec::new(), children: Vec::new(), _dir: dir };
        for i in 0..3 {
            let (client, peer) = (url((ip(i), 2379).into()), url((ip(i), 2380).into()));
            let child = Command::new(program)
                .args(["--name", &format!("n{i}"), "--initial-cluster", &members.join(",")])
                .args(["--listen-client-urls", &client, "--advertise-client-urls", &client])
                .args(["--listen-peer-urls", &peer, "--initial-advertise-peer-urls", &peer])
                .arg("--data-dir")
                .arg(etcd._dir.path().join(format!("n{i}")))
                .stdin(Stdio::null())
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .spawn()
                .with_context(|| program.display().to_string())?;
            etcd.children.push(child);
            etcd.addresses.push(format!("{}:2379", ip(i)));
        }
        for address in &etcd.addresses {
            let addr: SocketAddr = address.parse()?;
            until("etcd to listen", || std::net::TcpStream::connect(addr).ok());
        }
        Ok(etcd)
    }
}

impl Drop for Etcd {
    fn drop(&mut self) {
        for child in &mut self.children {
            // Both fail when it has ended already.
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}
