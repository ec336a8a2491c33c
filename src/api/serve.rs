//! Listens, serves, drains.

use std::{future::Future, io, net::SocketAddr, sync::Arc, time::Duration};

use andante_cluster::env::{Env, Incoming};
use anyhow::Context as _;
use tokio::{
    sync::{oneshot, watch},
    task::JoinSet,
    time::timeout,
};
use tonic::transport::Server;
use tonic_health::{ServingStatus, server::HealthReporter};

use super::{
    MESSAGE_BYTES_MAX, access::AccessHandler, auth::AuthLayer, call::Api, campaign::CampaignHandler,
    cluster::ClusterHandler, details::DetailsLayer, http, incoming, outcome::OutcomeHandler, score::ScoreHandler,
    server::ServerHandler,
};
use crate::{
    access::ServerTls,
    node::Node,
    v1::{
        self, access_service_server::AccessServiceServer, campaign_service_server::CampaignServiceServer,
        cluster_service_server::ClusterServiceServer, outcome_service_server::OutcomeServiceServer,
        score_service_server::ScoreServiceServer, server_service_server::ServerServiceServer,
    },
};

/// Requests at once on one connection: a client's connection can't take more than its share of memory.
const STREAMS_PER_CONNECTION_MAX: u32 = 1_024;
/// HTTP/2 windows: a batch of outcomes fits without waiting for window updates.
const STREAM_WINDOW_BYTES: u32 = 1 << 20;
const CONNECTION_WINDOW_BYTES: u32 = 4 << 20;
/// Silent connections are asked whether somebody is there, and closed if not.
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(30);
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(10);
/// Bytes of a request's headers.
const HEADER_BYTES_MAX: u32 = 16 << 10;

/// A node serves although it is not in step with some shard yet when it has tried for so long.
const WARM_UP_MAX: Duration = Duration::from_secs(10);

/// How to serve.
pub struct ServeConfig {
    /// gRPC connections at once; more wait in the listener's queue.
    pub max_connections: u32,
    /// How long requests under way may take to finish.
    pub drain: Duration,
    /// TLS of the gRPC port; `None`: plain.
    pub tls: Option<ServerTls>,
    /// Whether each call needs an access token.
    pub auth: bool,
}

impl ServeConfig {
    /// Without TLS and authentication: for loopback addresses and trusted networks.
    pub fn plain(max_connections: u32, drain: Duration) -> Self {
        Self { max_connections, drain, tls: None, auth: false }
    }
}

/// Sockets that listen already: their addresses are known before the node starts.
pub struct Listeners {
    grpc: Box<dyn Incoming>,
    http: Box<dyn Incoming>,
}

impl Listeners {
    /// Listens on both addresses; port 0 takes a free one.
    ///
    /// # Errors
    /// An address is taken or not ours.
    pub async fn bind(env: &Env, grpc: SocketAddr, http: SocketAddr) -> io::Result<Self> {
        let listen = async |what: &str, addr: SocketAddr| {
            let named = |e: io::Error| io::Error::new(e.kind(), format!("{what} can't listen on {addr}: {e}"));
            env.network.listen(addr).await.map_err(named)
        };
        Ok(Self { grpc: listen("gRPC", grpc).await?, http: listen("HTTP", http).await? })
    }

    /// Where gRPC listens.
    pub fn grpc_addr(&self) -> SocketAddr {
        self.grpc.local_addr()
    }

    /// Where HTTP listens.
    pub fn http_addr(&self) -> SocketAddr {
        self.http.local_addr()
    }
}

/// Serves `andante.v1`, health, reflection and HTTP until `shutdown` resolves. Health says SERVING once the node has been
/// in step with every shard. Then it drains: health says NOT_SERVING,
/// what the node leads is handed over, no connection is accepted any more, requests under way finish within the time
/// limit.
///
/// Shut the node down afterwards.
///
/// # Errors
/// The server broke; requests were refused from then on.
pub async fn serve(
    node: Arc<Node>,
    env: &Env,
    listeners: Listeners,
    config: ServeConfig,
    shutdown: impl Future<Output = ()> + Send,
) -> anyhow::Result<()> {
    let (drain, draining) = watch::channel(false);
    let (stop, stopped) = oneshot::channel::<()>();
    let api = Arc::new(Api::new(Arc::clone(&node), Arc::clone(&env.clock), draining.clone()));
    let mut tasks = JoinSet::new();
    tasks.spawn(Arc::clone(&api.shedding).probe(node.settings().clone(), Arc::clone(node.metrics())));
    let health = HealthReporter::new();
    set_health(&health, if node.has_been_in_step() { ServingStatus::Serving } else { ServingStatus::NotServing }).await;
    let reflection = tonic_reflection::server::Builder::configure()
        .register_encoded_file_descriptor_set(v1::FILE_DESCRIPTOR_SET)
        .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
        .build_v1()
        .context("the reflection service can't be built")?;

    let connections =
        incoming::connections(listeners.grpc, config.max_connections as usize, config.tls.as_ref(), node.metrics());
    let grpc = Server::builder()
        .max_concurrent_streams(STREAMS_PER_CONNECTION_MAX)
        .initial_stream_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .http2_keepalive_interval(Some(KEEPALIVE_INTERVAL))
        .http2_keepalive_timeout(Some(KEEPALIVE_TIMEOUT))
        .http2_max_header_list_size(HEADER_BYTES_MAX)
        .layer(DetailsLayer)
        .layer(AuthLayer::new(Arc::clone(&node), config.auth))
        .add_service(
            ScoreServiceServer::new(ScoreHandler(Arc::clone(&api))).max_decoding_message_size(MESSAGE_BYTES_MAX),
        )
        .add_service(
            OutcomeServiceServer::new(OutcomeHandler(Arc::clone(&api))).max_decoding_message_size(MESSAGE_BYTES_MAX),
        )
        .add_service(
            CampaignServiceServer::new(CampaignHandler(Arc::clone(&api))).max_decoding_message_size(MESSAGE_BYTES_MAX),
        )
        .add_service(
            ClusterServiceServer::new(ClusterHandler(Arc::clone(&api))).max_decoding_message_size(MESSAGE_BYTES_MAX),
        )
        .add_service(
            AccessServiceServer::new(AccessHandler(Arc::clone(&api))).max_decoding_message_size(MESSAGE_BYTES_MAX),
        )
        .add_service(ServerServiceServer::new(ServerHandler(api)).max_decoding_message_size(MESSAGE_BYTES_MAX))
        .add_service(tonic_health::pb::health_server::HealthServer::new(
            tonic_health::server::HealthService::from_health_reporter(health.clone()),
        ))
        .add_service(reflection)
        .serve_with_incoming_shutdown(connections, async {
            // A dropped sender stops it too.
            let _ = stopped.await;
        });
    let http = http::serve(listeners.http, Arc::clone(&node), draining);

    let mut grpc = std::pin::pin!(grpc);
    let mut http = std::pin::pin!(http);
    let until_shutdown = async {
        let mut shutdown = std::pin::pin!(shutdown);
        tokio::select! {
            () = warm_up(&node, &health) => shutdown.await,
            () = &mut shutdown => {}
        }
    };
    tokio::select! {
        broken = &mut grpc => return broken.context("gRPC stopped by itself"),
        () = &mut http => anyhow::bail!("HTTP stopped by itself"),
        () = until_shutdown => {}
    }

    set_health(&health, ServingStatus::NotServing).await;
    // Others lead before requests are no longer taken: connections are served meanwhile.
    tokio::select! {
        broken = &mut grpc => return broken.context("gRPC stopped by itself"),
        () = &mut http => anyhow::bail!("HTTP stopped by itself"),
        () = node.hand_over() => {}
    }
    // The receivers live as long as the servers; nobody left to tell is fine.
    let _ = drain.send(true);
    let _ = stop.send(());
    match timeout(config.drain, futures::future::join(&mut grpc, &mut http)).await {
        Ok((result, ())) => result.context("gRPC failed while draining"),
        Err(_) => {
            tracing::warn!(limit = ?config.drain, "requests were still under way when the time to drain was over");
            Ok(())
        }
    }
}

/// Sends clients here once the node has been in step with every shard: until then its replies to Score would lack shards
/// that others can answer for. Not for ever: a shard may have no leader for long, and the others are worth serving.
async fn warm_up(node: &Node, health: &HealthReporter) {
    if timeout(WARM_UP_MAX, node.until_in_step()).await.is_err() {
        tracing::warn!(limit = ?WARM_UP_MAX, "not in step with every shard yet; serves what it has");
    }
    set_health(health, ServingStatus::Serving).await;
}

/// The server as a whole and each of its services.
async fn set_health(health: &HealthReporter, status: ServingStatus) {
    for service in [
        "",
        v1::score_service_server::SERVICE_NAME,
        v1::outcome_service_server::SERVICE_NAME,
        v1::campaign_service_server::SERVICE_NAME,
        v1::cluster_service_server::SERVICE_NAME,
        v1::server_service_server::SERVICE_NAME,
        v1::access_service_server::SERVICE_NAME,
    ] {
        health.set_service_status(service, status).await;
    }
}
