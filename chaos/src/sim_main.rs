//! Prototype.
#![allow(clippy::print_stderr, clippy::print_stdout)]
use andante::v1;
use andante_chaos::{
    dice::Dice,
    trace::Trace,
    world::{network::SimulatedNetwork, node::NodeSlot, traffic::Traffic},
};
use andante_cluster::env::Network as _;
use hyper_util::rt::TokioIo;
use rand::SeedableRng as _;
use std::{sync::Arc, time::Duration};

fn wall() -> std::time::Duration {
    let mut s = String::new();
    use std::io::Read as _;
    std::fs::File::open("/proc/uptime").and_then(|mut f| f.read_to_string(&mut s)).ok();
    Duration::from_secs_f64(s.split(' ').next().and_then(|x| x.parse().ok()).unwrap_or(0.0))
}

fn main() {
    let seed: u64 = std::env::args().nth(1).and_then(|x| x.parse().ok()).unwrap_or(1);
    let nodes: usize = std::env::args().nth(2).and_then(|x| x.parse().ok()).unwrap_or(3);
    let secs: u64 = std::env::args().nth(3).and_then(|x| x.parse().ok()).unwrap_or(60);
    mad_turmoil::rand::set_rng(rand::rngs::StdRng::seed_from_u64(seed));
    let _clocks = mad_turmoil::time::SimClocksGuard::init();
    if std::env::var("RUST_LOG").is_ok() {
        tracing_subscriber::fmt()
            .with_env_filter(tracing_subscriber::EnvFilter::from_default_env())
            .with_writer(std::io::stderr)
            .without_time()
            .init();
    }
    let trace = Arc::new(Trace::default());
    let traffic = Arc::new(Traffic::new(trace.clone()));
    let root = std::path::PathBuf::from(format!("/dev/shm/chaos-{}", std::process::id()));
    let tick: u64 = std::env::var("TICK").ok().and_then(|x| x.parse().ok()).unwrap_or(1);
    let mut sim = turmoil::Builder::new()
        .rng_seed(seed)
        .simulation_duration(Duration::from_secs(3600))
        .tick_duration(Duration::from_millis(tick))
        .min_message_latency(Duration::from_millis(1))
        .max_message_latency(Duration::from_millis(10))
        .tcp_capacity(65536)
        .enable_random_order()
        .build();
    let names: Vec<Arc<str>> = (1..=nodes).map(|i| format!("node-{i}").into()).collect();
    let slots: Vec<Arc<NodeSlot>> = names
        .iter()
        .enumerate()
        .map(|(i, name)| {
            Arc::new(NodeSlot {
                name: name.clone(),
                skew: Arc::default(),
                pace: Arc::default(),
                disks: Arc::default(),
                node: Default::default(),
                ended: Default::default(),
                dir: root.join(&**name),
                settings: andante::settings::Settings { snapshot_every_entries: 200, ..Default::default() },
                shards: 4,
                join: parking_lot::Mutex::new(if i == 0 { vec![] } else { vec![names[0].clone()] }),
                traffic: traffic.clone(),
                dice: Arc::new(Dice::new(seed, name)),
            })
        })
        .collect();
    for slot in &slots {
        let slot = slot.clone();
        sim.host(&*slot.name.clone(), move || slot.clone().live());
    }
    let billed = Arc::new(std::sync::atomic::AtomicU64::new(0));
    for c in 0..2 {
        let traffic = traffic.clone();
        let names = names.clone();
        let billed = billed.clone();
        sim.client(format!("client-{c}"), async move {
            let name: Arc<str> = format!("client-{c}").into();
            let channels: Vec<_> = names
                .iter()
                .map(|node| {
                    let (node, name, traffic) = (node.clone(), name.clone(), traffic.clone());
                    tonic::transport::Endpoint::from_shared(format!("http://{node}:7400"))
                        .unwrap()
                        .connect_with_connector_lazy(tower::service_fn(move |_| {
                            let (node, name, traffic) = (node.clone(), name.clone(), traffic.clone());
                            async move {
                                let io =
                                    SimulatedNetwork { host: name, traffic }.connect(&format!("{node}:7400")).await?;
                                Ok::<_, std::io::Error>(TokioIo::new(io))
                            }
                        }))
                })
                .collect();
            tokio::time::sleep(Duration::from_secs(8)).await;
            let mut campaigns = v1::campaign_service_client::CampaignServiceClient::new(channels[0].clone());
            for i in 0..5 {
                let spec = v1::CampaignSpec {
                    name: format!("c{c}-{i}"),
                    owner: "o".into(),
                    track_ids: vec![format!("t{i}")],
                    end_ms: andante_chaos::world::clock::EPOCH_MS + 600_000,
                    budget_micros: 10_000_000,
                    price_micros: 1000,
                    hold_ms: 10_000,
                    expected_billable_share: 1.0,
                    ..Default::default()
                };
                let r = campaigns
                    .create_campaign(v1::CreateCampaignRequest { request_id: format!("{c}-{i}"), spec: Some(spec) })
                    .await;
                if let Err(e) = r {
                    eprintln!("{e:?}");
                }
            }
            let mut n = 0_usize;
            loop {
                tokio::time::sleep(Duration::from_millis(50)).await;
                n += 1;
                let ch = channels[n % channels.len()].clone();
                let mut score = v1::score_service_client::ScoreServiceClient::new(ch.clone());
                let mut request = tonic::Request::new(v1::ScoreRequest {
                    request_id: "r".into(),
                    listener_id: format!("l{n}"),
                    surface: "radio".into(),
                    market: "DE".into(),
                    candidates: (0..5).map(|i| v1::Candidate { track_id: format!("t{i}"), relevance: 1.0 }).collect(),
                    slots: 2,
                    hold_ms: 0,
                });
                request.set_timeout(Duration::from_millis(500));
                let Ok(reply) = score.score(request).await else { continue };
                let events: Vec<_> = reply
                    .into_inner()
                    .placements
                    .into_iter()
                    .map(|p| v1::OutcomeEvent { token: p.token, kind: 2, stream_ms: 40_000 })
                    .collect();
                if events.is_empty() {
                    continue;
                }
                let mut outcome = v1::outcome_service_client::OutcomeServiceClient::new(ch);
                if let Ok(r) = outcome.report(v1::ReportRequest { events }).await {
                    billed.fetch_add(
                        r.into_inner().results.iter().filter(|r| r.status == 1).count() as u64,
                        std::sync::atomic::Ordering::Relaxed,
                    );
                }
            }
        });
    }
    let started = wall();
    let mut next = 5;
    while sim.elapsed() < Duration::from_secs(secs) {
        if let Err(e) = sim.step() {
            eprintln!("{e}");
            break;
        }
        if sim.elapsed().as_secs() >= next {
            next += 5;
            let (hash, events) = trace.digest();
            eprintln!(
                "{:?} wall {:?} events {events} {hash:016x} billed {} ready {:?}",
                sim.elapsed(),
                wall() - started,
                billed.load(std::sync::atomic::Ordering::Relaxed),
                slots.iter().map(|s| s.node.lock().as_ref().map(|n| n.ready())).collect::<Vec<_>>()
            );
        }
    }
    println!("{:?}", trace.digest());
    let _ = std::fs::remove_dir_all(&root);
}
