//! Connections to peers.

use std::{
    io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    sync::OwnedSemaphorePermit,
    time::timeout,
};
use tokio_util::sync::{CancellationToken, DropGuard, WaitForCancellationFutureOwned};
use tonic::{
    Status,
    transport::{Channel, Endpoint, Uri, server::Connected},
};
use tower::service_fn;

use super::{
    addresses::AddressBook,
    hello::{self, Caller},
    stats::{PeerStats, add},
};
use crate::{
    NodeId,
    env::{Env, Io},
    proto::Hello,
    security::PeerSecurity,
};

/// Resolving, connecting, TLS and greeting together.
pub(super) const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);
/// A peer is asked whether it is there after this long without a word...
pub(super) const KEEPALIVE: Duration = Duration::from_secs(1);
/// ...and given up after this much longer: well within the longest election timeout and a half.
pub(super) const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(1);
/// Bytes of one stream, and of a whole connection, that may be under way unread: a link of 10 Gbit/s with 3 ms.
pub(super) const STREAM_WINDOW_BYTES: u32 = 4 << 20;
pub(super) const CONNECTION_WINDOW_BYTES: u32 = 16 << 20;
/// Bytes of one HTTP/2 frame: bigger ones cost less, and a stream holds up the others for as long as one takes.
pub(super) const HTTP2_FRAME_BYTES: u32 = 128 << 10;

/// A connection whose other end is known. Broken off when the node stops.
pub(super) struct PeerIo {
    io: Box<dyn Io>,
    caller: Caller,
    stats: Arc<PeerStats>,
    closed: CancellationToken,
    closing: Pin<Box<WaitForCancellationFutureOwned>>,
    _guard: DropGuard,
    /// Bytes that may still be read.
    left: u64,
    /// What the connection holds while it is there.
    _permit: Option<OwnedSemaphorePermit>,
}

impl PeerIo {
    /// A node's. `closed` is cancelled when the connection is dropped.
    pub(super) fn of_node(io: Box<dyn Io>, node: NodeId, stats: Arc<PeerStats>, closed: CancellationToken) -> Self {
        Self::new(io, Caller { node: Some(node) }, stats, closed, u64::MAX, None)
    }

    /// A stranger's, who may send `max_bytes`.
    pub(super) fn of_stranger(
        io: Box<dyn Io>,
        stats: Arc<PeerStats>,
        closed: CancellationToken,
        max_bytes: u64,
        permit: OwnedSemaphorePermit,
    ) -> Self {
        Self::new(io, Caller { node: None }, stats, closed, max_bytes, Some(permit))
    }

    fn new(
        io: Box<dyn Io>,
        caller: Caller,
        stats: Arc<PeerStats>,
        closed: CancellationToken,
        left: u64,
        permit: Option<OwnedSemaphorePermit>,
    ) -> Self {
        let closing = Box::pin(closed.clone().cancelled_owned());
        Self { io, caller, stats, closing, _guard: closed.clone().drop_guard(), closed, left, _permit: permit }
    }
}

impl Connected for PeerIo {
    type ConnectInfo = Caller;

    fn connect_info(&self) -> Caller {
        self.caller
    }
}

fn stopped() -> io::Error {
    io::Error::new(io::ErrorKind::ConnectionAborted, "the connection was given up")
}

impl AsyncRead for PeerIo {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if self.closing.as_mut().poll(cx).is_ready() {
            return Poll::Ready(Err(stopped()));
        }
        let before = buf.filled().len();
        let read = Pin::new(&mut self.io).poll_read(cx, buf);
        let bytes = (buf.filled().len() - before) as u64;
        add(&self.stats.bytes_in, bytes);
        let Some(left) = self.left.checked_sub(bytes) else {
            return Poll::Ready(Err(stopped()));
        };
        self.left = left;
        read
    }
}

impl PeerIo {
    fn written(&self, written: Poll<io::Result<usize>>) -> Poll<io::Result<usize>> {
        if let Poll::Ready(Ok(bytes)) = &written {
            add(&self.stats.bytes_out, *bytes as u64);
        }
        written
    }
}

impl AsyncWrite for PeerIo {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        if self.closed.is_cancelled() {
            return Poll::Ready(Err(stopped()));
        }
        let written = Pin::new(&mut self.io).poll_write(cx, buf);
        self.written(written)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        if self.closed.is_cancelled() {
            return Poll::Ready(Err(stopped()));
        }
        let written = Pin::new(&mut self.io).poll_write_vectored(cx, bufs);
        self.written(written)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}

/// Opens connections to peers, wherever they are by then.
pub(super) struct Connector {
    pub(super) env: Env,
    pub(super) cluster_id: [u8; 16],
    pub(super) node_id: NodeId,
    pub(super) security: PeerSecurity,
    pub(super) addresses: Mutex<AddressBook>,
    pub(super) stats: Arc<PeerStats>,
    /// Cancelled when the node stops.
    pub(super) closed: CancellationToken,
}

impl Connector {
    async fn connect(&self, node: NodeId) -> io::Result<PeerIo> {
        let address = self.addresses.lock().get(node).map(str::to_owned);
        let address = address.ok_or_else(|| io::Error::other(format!("the address of node {node} is not known")))?;
        let connected = async {
            let io = self.env.network.connect(&address).await?;
            let mut io = self.security.connect(io, node).await?;
            let cluster_id = Bytes::copy_from_slice(&self.cluster_id);
            hello::greet(&mut io, &Hello { cluster_id, node_id: self.node_id, to_node_id: node }).await?;
            io::Result::Ok(io)
        };
        let io = match timeout(CONNECT_TIMEOUT, connected).await {
            Ok(connected) => {
                connected.map_err(|e| io::Error::new(e.kind(), format!("node {node} at {address}: {e}")))?
            }
            Err(_) => {
                let what = format!("node {node} at {address} did not answer within {} ms", CONNECT_TIMEOUT.as_millis());
                return Err(io::Error::new(io::ErrorKind::TimedOut, what));
            }
        };
        Ok(PeerIo::of_node(io, node, self.stats.clone(), self.closed.child_token()))
    }

    /// A channel to a peer that connects when it is used, and again when the connection broke.
    pub(super) fn channel(self: &Arc<Self>, node: NodeId) -> Channel {
        endpoint().connect_with_connector_lazy(self.service(node))
    }

    /// A channel to a peer that is connected now.
    pub(super) async fn connected(self: &Arc<Self>, node: NodeId) -> Result<Channel, tonic::transport::Error> {
        endpoint().connect_with_connector(self.service(node)).await
    }

    fn service(
        self: &Arc<Self>,
        node: NodeId,
    ) -> impl tower::Service<Uri, Response = TokioIo<PeerIo>, Error = io::Error, Future: Send> + Send + 'static {
        let this = self.clone();
        service_fn(move |_: Uri| {
            let this = this.clone();
            async move { this.connect(node).await.map(TokioIo::new) }
        })
    }
}

/// How connections between nodes are set up.
pub(super) fn endpoint() -> Endpoint {
    // The name is never resolved: the connector knows where to go.
    Endpoint::from_static("http://node.andante")
        .http2_keep_alive_interval(KEEPALIVE)
        .keep_alive_timeout(KEEPALIVE_TIMEOUT)
        .keep_alive_while_idle(true)
        .initial_stream_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .max_frame_size(HTTP2_FRAME_BYTES)
}

/// An error with its causes: tonic's own text says "transport error" only, or everything twice.
pub(super) fn with_causes(error: &(dyn std::error::Error + 'static)) -> String {
    let text = |error: &(dyn std::error::Error + 'static)| match error.downcast_ref::<Status>() {
        Some(status) => status.message().to_owned(),
        None => error.to_string(),
    };
    let mut told = text(error);
    let mut cause = error.source();
    while let Some(error) = cause {
        let why = text(error);
        if !told.ends_with(&why) {
            told = format!("{told}: {why}");
        }
        cause = error.source();
    }
    told
}
