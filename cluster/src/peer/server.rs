//! Serves peers: accepts connections, finds out who is at the other end, and lets strangers do nothing but join.

use std::{
    convert::Infallible,
    future::{Ready, ready},
    io,
    net::SocketAddr,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use futures::future::Either;
use parking_lot::Mutex;
use tokio::{
    sync::{Semaphore, mpsc},
    time::{Instant, sleep, timeout},
};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::{Status, body::Body, codegen::http, service::Routes, transport::Server};
use tower::{Layer, Service};

use super::{
    Inner, PeerHandler,
    connect::{CONNECTION_WINDOW_BYTES, HTTP2_FRAME_BYTES, KEEPALIVE, KEEPALIVE_TIMEOUT, PeerIo, STREAM_WINDOW_BYTES},
    hello::{self, Caller},
    service::PeerCalls,
    stats::add,
};
use crate::{
    env::{Incoming, Io},
    proto::peer_service_server::PeerServiceServer,
    security::PeerSecurity,
};

/// Longest message between nodes: the longest command, with room for what it travels with. A message of frames holds
/// one append at most beside small ones, and that has one command or few bytes.
pub(super) const MAX_MESSAGE_BYTES: usize = 32 << 20;
/// TLS and greeting together: generous, since a busy node takes a while, and bounded, since anybody may connect.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(3);
/// Handshakes at once.
const MAX_HANDSHAKES: usize = 64;
/// Connections of strangers at once, how long one may last and how much it may send: enough to join.
const MAX_STRANGERS: usize = 32;
const STRANGER_TIMEOUT: Duration = Duration::from_secs(30);
const STRANGER_BYTES: u64 = 64 << 10;
/// Pause after a failure to accept, which may be a lack of file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
/// Refused connections are told of at most this often: anybody may connect, and nobody shall fill the log.
const TELL_EVERY: Duration = Duration::from_secs(10);
/// How long what is under way may take when the node stops.
const DRAIN: Duration = Duration::from_secs(2);
/// The only call open to strangers.
const JOIN: &str = "/andante.cluster.v1.PeerService/Join";

/// Serves peers until `stop`, then lets what is under way end.
pub(super) async fn serve(
    inner: Arc<Inner>,
    incoming: Box<dyn Incoming>,
    handler: Arc<dyn PeerHandler>,
    services: Routes,
    stop: CancellationToken,
) {
    let (tx, rx) = mpsc::channel(MAX_HANDSHAKES);
    let accepting = tokio::spawn(accept(inner.clone(), incoming, tx, stop.clone()));
    let calls =
        PeerServiceServer::new(PeerCalls::new(inner.clone(), handler)).max_decoding_message_size(MAX_MESSAGE_BYTES);
    let connections = futures::StreamExt::map(ReceiverStream::new(rx), Ok::<_, io::Error>);
    let server = Server::builder()
        .http2_keepalive_interval(Some(KEEPALIVE))
        .http2_keepalive_timeout(Some(KEEPALIVE_TIMEOUT))
        .initial_stream_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .max_frame_size(HTTP2_FRAME_BYTES)
        .layer(Gate(inner.clone()))
        .add_routes(services)
        .add_service(calls)
        .serve_with_incoming_shutdown(connections, stop.clone().cancelled_owned());
    let drained = async {
        stop.cancelled().await;
        sleep(DRAIN).await;
    };
    tokio::select! {
        served = server => if let Err(e) = served {
            tracing::error!(error = %e, "peers are not served any more");
        },
        () = drained => tracing::debug!("calls of peers were cut off"),
        () = inner.connector.closed.cancelled() => {}
    }
    accepting.abort();
}

async fn accept(inner: Arc<Inner>, mut incoming: Box<dyn Incoming>, tx: mpsc::Sender<PeerIo>, stop: CancellationToken) {
    let handshakes = Arc::new(Semaphore::new(MAX_HANDSHAKES));
    let strangers = Arc::new(Semaphore::new(MAX_STRANGERS));
    let refusals = Arc::<Refusals>::default();
    loop {
        // Never closed.
        let Ok(permit) = handshakes.clone().acquire_owned().await else { return };
        let (io, from) = tokio::select! {
            () = stop.cancelled() => return,
            () = inner.connector.closed.cancelled() => return,
            accepted = incoming.accept() => match accepted {
                Ok(accepted) => accepted,
                Err(e) => {
                    tracing::warn!(error = %e, "a connection was not accepted");
                    sleep(ACCEPT_PAUSE).await;
                    continue;
                }
            },
        };
        let (inner, strangers, tx, refusals) = (inner.clone(), strangers.clone(), tx.clone(), refusals.clone());
        tokio::spawn(async move {
            let _permit = permit;
            let welcomed = timeout(HANDSHAKE_TIMEOUT, welcome(&inner, io, &strangers)).await;
            match welcomed.unwrap_or_else(|_| Err(io::Error::new(io::ErrorKind::TimedOut, "it said too little"))) {
                // The server is gone.
                Ok(io) => drop(tx.send(io).await),
                Err(e) => {
                    add(&inner.stats.connections_refused, 1);
                    refusals.tell(from, &e);
                }
            }
        });
    }
}

/// Tells of refused connections.
#[derive(Default)]
struct Refusals(Mutex<Told>);

#[derive(Default)]
struct Told {
    last: Option<Instant>,
    /// Since then, and not told of.
    untold: u64,
}

impl Refusals {
    /// Whoever claimed to belong here and does not, or speaks another protocol, is an operator's business; those who
    /// hang up or say nothing are not.
    fn tell(&self, from: SocketAddr, error: &io::Error) {
        let matters = matches!(error.kind(), io::ErrorKind::PermissionDenied | io::ErrorKind::InvalidData);
        match matters.then(|| self.0.lock().due(Instant::now())).flatten() {
            Some(untold) => tracing::warn!(%from, %error, untold, "a connection was refused"),
            None => tracing::debug!(%from, %error, "a connection was refused"),
        }
    }
}

impl Told {
    /// Whether to tell of one now, and how many were not told of since the last one that was.
    fn due(&mut self, now: Instant) -> Option<u64> {
        if self.last.is_some_and(|last| now.duration_since(last) < TELL_EVERY) {
            self.untold += 1;
            return None;
        }
        self.last = Some(now);
        Some(std::mem::take(&mut self.untold))
    }
}

async fn welcome(inner: &Inner, io: Box<dyn Io>, strangers: &Arc<Semaphore>) -> io::Result<PeerIo> {
    let connector = &inner.connector;
    let (mut io, certified) = connector.security.accept(io).await?;
    let secured = matches!(connector.security, PeerSecurity::Mutual(_));
    let caller = hello::welcome(&mut io, (connector.cluster_id, connector.node_id), secured, certified).await?;
    let (stats, closed) = (inner.stats.clone(), connector.closed.child_token());
    let Some(node) = caller.node else {
        let permit = strangers.clone().try_acquire_owned().map_err(|_| io::Error::other("too many strangers"))?;
        let expiring = closed.clone();
        tokio::spawn(async move {
            if timeout(STRANGER_TIMEOUT, expiring.cancelled()).await.is_err() {
                expiring.cancel();
            }
        });
        return Ok(PeerIo::of_stranger(io, stats, closed, STRANGER_BYTES, permit));
    };
    Ok(PeerIo::of_node(io, node, stats, closed))
}

/// Refuses calls of strangers, except to join, and of nodes that do not belong to the cluster any more, except to say
/// where they are.
#[derive(Clone)]
struct Gate(Arc<Inner>);

impl<S> Layer<S> for Gate {
    type Service = Gated<S>;

    fn layer(&self, service: S) -> Gated<S> {
        Gated { inner: self.0.clone(), service }
    }
}

#[derive(Clone)]
struct Gated<S> {
    inner: Arc<Inner>,
    service: S,
}

impl<S> Gated<S> {
    fn check<B>(&self, request: &http::Request<B>) -> Result<(), Status> {
        let path = request.uri().path();
        match request.extensions().get::<Caller>().and_then(|caller| caller.node) {
            _ if path == JOIN => Ok(()),
            None => Err(Status::unauthenticated("only a node of the cluster may ask this")),
            Some(_) if path == "/andante.cluster.v1.PeerService/Announce" => Ok(()),
            Some(node) if self.inner.may_call(node) => Ok(()),
            Some(node) => Err(Status::permission_denied(format!(
                "node {node} is no node of the cluster any more, as far as node {} knows",
                self.inner.node_id
            ))),
        }
    }
}

impl<S, B> Service<http::Request<B>> for Gated<S>
where
    S: Service<http::Request<B>, Response = http::Response<Body>, Error = Infallible>,
{
    type Response = S::Response;
    type Error = Infallible;
    type Future = Either<Ready<Result<S::Response, Infallible>>, S::Future>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.service.poll_ready(cx)
    }

    fn call(&mut self, request: http::Request<B>) -> Self::Future {
        match self.check(&request) {
            Ok(()) => Either::Right(self.service.call(request)),
            Err(refused) => Either::Left(ready(Ok(refused.into_http()))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn many_refusals_are_told_of_now_and_then_with_their_number() {
        let (mut told, start) = (Told::default(), Instant::now());
        let after = |seconds| start + Duration::from_secs(seconds);
        let due = [0, 1, 2, 9, 10, 11, 30].map(|seconds| told.due(after(seconds)));
        assert_eq!(due, [Some(0), None, None, None, Some(3), None, Some(1)]);
    }
}
