//! A request of 50 candidates inside a running node, without RPC.

use std::{sync::Arc, time::Instant};

use andante::{
    campaign::proto::{self, Kind},
    node::{Node, NodeConfig},
    v1,
};
use andante_cluster::{
    env::{Env, OsThreads, SystemClock, SystemRng, TcpNetwork},
    storage::memory::MemoryStores,
};
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use tokio::{runtime::Runtime, time::Duration};

const CAMPAIGNS: usize = 200;
const CANDIDATES: usize = 50;
const HOUR_MS: u64 = 3_600_000;

fn spec(i: usize, now_ms: u64) -> proto::Spec {
    proto::Spec {
        name: format!("campaign-{i}"),
        owner: "label".into(),
        tracks: (0..10).map(|track| format!("track-{i}-{track}")).collect(),
        surfaces: vec!["mix".into(), "radio".into()],
        markets: vec!["DE".into(), "SE".into(), "US".into()],
        start_ms: now_ms - HOUR_MS,
        end_ms: now_ms + 24 * HOUR_MS,
        budget_micros: (1 << 53) - 1,
        price_micros: 1_000,
        billable: Kind::Stream.into(),
        min_stream_ms: 30_000,
        hold_ms: 10_000,
        boost_cap: 1.0,
        expected_billable_share: 0.5,
        ..Default::default()
    }
}

fn request(slots: u32) -> v1::ScoreRequest {
    let candidate = |i: usize| v1::Candidate {
        track_id: format!("track-{}-{}", i * 3 % CAMPAIGNS, i % 10),
        relevance: 0.5 + (i % 7) as f64 / 4.0,
    };
    v1::ScoreRequest {
        request_id: "bench".into(),
        listener_id: "listener-4711".into(),
        surface: "radio".into(),
        market: "DE".into(),
        candidates: (0..CANDIDATES).map(candidate).collect(),
        slots,
        hold_ms: 1_000,
    }
}

async fn start() -> (Node, tempfile::TempDir) {
    let env = Env {
        clock: Arc::new(SystemClock::default()),
        network: Arc::new(TcpNetwork),
        rng: Arc::new(SystemRng),
        blocking: Arc::new(OsThreads),
        stores: Arc::new(MemoryStores::default()),
    };
    let now_ms = env.clock.now_ms();
    let dir = tempfile::tempdir().expect("a temporary folder");
    let config = NodeConfig::new(dir.path());
    let node = Node::start(env, config).await.expect("starts");
    for i in 0..CAMPAIGNS {
        let deadline = tokio::time::Instant::now() + Duration::from_secs(10);
        node.router().create(&format!("create {i}"), spec(i, now_ms), deadline).await.expect("creates");
    }
    // Campaigns wake when they are first scored.
    let deadline = Instant::now() + Duration::from_secs(30);
    let in_an_hour = tokio::time::Instant::now() + Duration::from_secs(3_600);
    while node.router().score(&request(3), in_an_hour).await.placements.len() < 3 {
        assert!(Instant::now() < deadline, "no placements");
        tokio::task::yield_now().await;
    }
    (node, dir)
}

fn serve(c: &mut Criterion) {
    let runtime = Runtime::new().expect("a runtime");
    let (node, _dir) = runtime.block_on(start());
    let router = node.router().clone();

    let mut group = c.benchmark_group("serve");
    for slots in [0, 1, 3] {
        let request = request(slots);
        let deadline = tokio::time::Instant::now() + Duration::from_secs(3_600);
        group.throughput(Throughput::Elements(CANDIDATES as u64));
        group.bench_function(format!("request of {CANDIDATES} candidates, {slots} slots"), |b| {
            b.iter(|| futures::executor::block_on(router.score(&request, deadline)));
        });
    }

    group.finish();
    runtime.block_on(async { node.shutdown().await.expect("shuts down") });
}

criterion_group!(benches, serve);
criterion_main!(benches);
