//! A node on in-memory stores behind its real API.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use andante::{
    access::CertificateSource,
    api::{Listeners, ServeConfig, serve},
    node::{Node, NodeConfig},
    settings::Settings,
    v1::{
        self, campaign_service_client::CampaignServiceClient, outcome_service_client::OutcomeServiceClient,
        score_service_client::ScoreServiceClient, server_service_client::ServerServiceClient,
    },
};
use andante_cluster::{
    env::{Clock, Env, OsThreads, SystemClock, SystemRng, TcpNetwork},
    storage::memory::MemoryStores,
};
use tokio::{sync::oneshot, task::JoinHandle};
use tonic::{Code, Status, transport::Channel};
use tonic_types::StatusExt as _;

/// Everything that happens here takes milliseconds.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

/// How it is served.
pub(crate) struct Setup {
    pub(crate) settings: Settings,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) auth: bool,
    pub(crate) certificate: Option<CertificateSource>,
}

impl Default for Setup {
    fn default() -> Self {
        Self { settings: Settings::default(), clock: Arc::new(SystemClock::default()), auth: false, certificate: None }
    }
}

/// A served node; it ends with [`Served::stop`].
pub(crate) struct Served {
    pub(crate) node: Arc<Node>,
    pub(crate) grpc: SocketAddr,
    pub(crate) http: SocketAddr,
    pub(crate) channel: Channel,
    stop: oneshot::Sender<()>,
    serving: JoinHandle<anyhow::Result<()>>,
    pub(crate) dir: tempfile::TempDir,
}

impl Served {
    pub(crate) async fn start() -> Self {
        Self::start_with(Settings::default()).await
    }

    pub(crate) async fn start_with(settings: Settings) -> Self {
        Self::start_as(Setup { settings, ..Setup::default() }).await
    }

    pub(crate) async fn start_as(setup: Setup) -> Self {
        let Setup { settings, clock, auth, certificate } = setup;
        let env = Env {
            clock,
            network: Arc::new(TcpNetwork),
            rng: Arc::new(SystemRng),
            blocking: Arc::new(OsThreads),
            stores: Arc::new(MemoryStores::default()),
        };
        let dir = tempfile::tempdir().expect("a temporary folder");
        let any = SocketAddr::from(([127, 0, 0, 1], 0));
        let listeners = Listeners::bind(&env, any, any).await.expect("listens");
        let (grpc, http) = (listeners.grpc_addr(), listeners.http_addr());
        let config = NodeConfig { shards: Some(2), settings, ..NodeConfig::new(dir.path()) };
        let node = Arc::new(Node::start(env.clone(), config).await.expect("starts"));
        let tls = match certificate {
            Some(source) => Some(node.server_tls(source, &env).await.expect("a certificate")),
            None => None,
        };
        let (stop, stopped) = oneshot::channel();
        let serving = tokio::spawn({
            let node = node.clone();
            async move {
                let config = ServeConfig { tls, auth, ..ServeConfig::plain(16, PATIENCE) };
                let stopped = async { drop(stopped.await) };
                serve(node, &env, listeners, config, stopped).await
            }
        });
        let channel = Channel::from_shared(format!("http://{grpc}")).expect("an address").connect_lazy();
        Self { node, grpc, http, channel, stop, serving, dir }
    }

    /// Drains as SIGTERM does, and waits for the end.
    pub(crate) async fn stop(self) {
        drop(self.channel);
        drop(self.stop);
        let served = tokio::time::timeout(PATIENCE, self.serving).await.expect("drains in time");
        served.expect("does not panic").expect("ends well");
        self.node.shutdown().await.expect("closes well");
        self.dir.close().expect("nothing holds the folder");
    }

    pub(crate) fn score(&self) -> ScoreServiceClient<Channel> {
        ScoreServiceClient::new(self.channel.clone())
    }

    pub(crate) fn outcome(&self) -> OutcomeServiceClient<Channel> {
        OutcomeServiceClient::new(self.channel.clone())
    }

    pub(crate) fn campaign(&self) -> CampaignServiceClient<Channel> {
        CampaignServiceClient::new(self.channel.clone())
    }

    pub(crate) fn server(&self) -> ServerServiceClient<Channel> {
        ServerServiceClient::new(self.channel.clone())
    }

    pub(crate) async fn create(&self, spec: v1::CampaignSpec) -> v1::Campaign {
        let request = v1::CreateCampaignRequest { request_id: format!("create-{}", spec.name), spec: Some(spec) };
        let answer = self.campaign().create_campaign(request).await.expect("creates").into_inner();
        answer.campaign.expect("a campaign")
    }

    /// Asks until there is a placement: the first requests only wake the campaign.
    pub(crate) async fn place(&self, track: &str) -> v1::Placement {
        let placed = async {
            loop {
                let answer = self.score().score(score_request(track, 1)).await.expect("scores").into_inner();
                if let Some(placement) = answer.placements.into_iter().next() {
                    return placement;
                }
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(PATIENCE, placed).await.expect("a placement")
    }
}

/// A sound campaign that promotes the track `track-<name>`.
pub(crate) fn spec(name: &str) -> v1::CampaignSpec {
    let now_ms = SystemClock::default().now_ms();
    v1::CampaignSpec {
        name: name.into(),
        owner: "label".into(),
        track_ids: vec![format!("track-{name}")],
        end_ms: now_ms + 3_600_000,
        budget_micros: 100_000_000,
        price_micros: 1_000,
        ..Default::default()
    }
}

pub(crate) fn score_request(track: &str, slots: u32) -> v1::ScoreRequest {
    v1::ScoreRequest {
        request_id: "r".into(),
        listener_id: "listener".into(),
        surface: "radio".into(),
        market: "SE".into(),
        candidates: vec![v1::Candidate { track_id: track.into(), relevance: 0.5 }],
        slots,
        hold_ms: 0,
    }
}

/// The code and the reason of a refusal.
pub(crate) fn why<T>(result: Result<T, Status>) -> (Code, String) {
    let status = result.err().expect("it is refused");
    let info = status.get_details_error_info().expect("ErrorInfo is always there");
    assert_eq!(info.domain, "andante");
    (status.code(), info.reason)
}

/// The bad fields of a refusal.
pub(crate) fn fields<T>(result: Result<T, Status>) -> Vec<String> {
    let status = result.err().expect("it is refused");
    let bad = status.get_details_bad_request().expect("BadRequest is there");
    bad.field_violations.into_iter().map(|v| v.field).collect()
}
