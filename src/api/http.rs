//! HTTP for people and machines that watch a node: `/metrics`, `/livez`, `/readyz`.

use std::{net::SocketAddr, sync::Arc};

use andante_cluster::env::Incoming;
use axum::{
    Router,
    extract::State,
    http::{StatusCode, header::CONTENT_TYPE},
    response::IntoResponse,
    routing::get,
};
use prometheus_client::metrics::gauge::Gauge;
use tokio::sync::{Semaphore, watch};

use super::incoming::{Connection, accept};
use crate::node::Node;

/// Connections at once: scrapers and probes are few.
const CONNECTIONS_MAX: usize = 64;
/// What Prometheus negotiates for OpenMetrics.
const OPENMETRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

#[derive(Clone)]
struct Shared {
    node: Arc<Node>,
    draining: watch::Receiver<bool>,
}

/// Serves until `draining` turns true.
pub(super) async fn serve(incoming: Box<dyn Incoming>, node: Arc<Node>, draining: watch::Receiver<bool>) {
    let mut stop = draining.clone();
    let app = Router::new()
        .route("/metrics", get(metrics))
        .route("/livez", get(livez))
        .route("/readyz", get(readyz))
        .with_state(Shared { node, draining });
    let listener = Listener { incoming, room: Arc::new(Semaphore::new(CONNECTIONS_MAX)), open: Gauge::default() };
    let stopped = async move {
        // An error means that the server is gone altogether.
        let _ = stop.wait_for(|draining| *draining).await;
    };
    if let Err(error) = axum::serve(listener, app).with_graceful_shutdown(stopped).await {
        tracing::error!(%error, "HTTP stopped");
    }
}

async fn metrics(State(shared): State<Shared>) -> impl IntoResponse {
    ([(CONTENT_TYPE, OPENMETRICS)], shared.node.metrics().encode())
}

/// The process answers.
async fn livez() -> &'static str {
    "ok\n"
}

/// The node takes requests; the reason if not.
async fn readyz(State(shared): State<Shared>) -> (StatusCode, String) {
    if *shared.draining.borrow() {
        return (StatusCode::SERVICE_UNAVAILABLE, "draining\n".to_owned());
    }
    match shared.node.ready() {
        Ok(()) => (StatusCode::OK, "ok\n".to_owned()),
        Err(reason) => (StatusCode::SERVICE_UNAVAILABLE, format!("{reason}\n")),
    }
}

struct Listener {
    incoming: Box<dyn Incoming>,
    room: Arc<Semaphore>,
    open: Gauge,
}

impl axum::serve::Listener for Listener {
    type Io = Connection;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Connection, SocketAddr) {
        let local = self.incoming.local_addr();
        match accept(&mut *self.incoming, &self.room, &self.open).await {
            Some(connection) => (connection, local),
            None => std::future::pending().await,
        }
    }

    fn local_addr(&self) -> std::io::Result<SocketAddr> {
        Ok(self.incoming.local_addr())
    }
}
