//! Connections from the environment's network, as tonic and axum want them: bounded, counted, behind TLS if asked.

use std::{
    io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use andante_cluster::env::{Incoming, Io};
use futures::{Stream, StreamExt as _, stream};
use prometheus_client::metrics::{counter::Counter, gauge::Gauge};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    sync::{OwnedSemaphorePermit, Semaphore},
    time::timeout,
};
use tokio_rustls::TlsAcceptor;
use tonic::transport::server::Connected;

use crate::{access::ServerTls, metrics::Metrics};

/// Pause after a failed accept (out of file descriptors, mostly): an immediate retry would only burn CPU.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// Time for a TLS handshake: two round trips and some arithmetic.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// Handshakes at once; more wait in the listener's queue. Many, since those who never finish theirs hold their place
/// for the whole time.
const HANDSHAKES_MAX: usize = 512;

/// A connection with its place among those allowed.
pub(crate) struct Connection {
    io: Box<dyn Io>,
    place: Place,
}

struct Place {
    open: Gauge,
    _room: OwnedSemaphorePermit,
}

impl Drop for Place {
    fn drop(&mut self) {
        self.open.dec();
    }
}

/// The next connection, once there is room for it; those beyond wait in the listener's queue.
pub(crate) async fn accept(incoming: &mut dyn Incoming, room: &Arc<Semaphore>, open: &Gauge) -> Option<Connection> {
    // The semaphore is never closed.
    let permit = Arc::clone(room).acquire_owned().await.ok()?;
    loop {
        match incoming.accept().await {
            Ok((io, _peer)) => {
                open.inc();
                return Some(Connection { io, place: Place { open: open.clone(), _room: permit } });
            }
            Err(error) => {
                tracing::warn!(%error, "a connection could not be accepted");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

/// All connections, without an end. With TLS, each once its handshake is done.
pub(crate) fn connections(
    incoming: Box<dyn Incoming>,
    max: usize,
    tls: Option<&ServerTls>,
    metrics: &Metrics,
) -> impl Stream<Item = io::Result<Connection>> + use<> {
    let room = Arc::new(Semaphore::new(max));
    let plain =
        stream::unfold((incoming, room, metrics.grpc_connections.clone()), |(mut incoming, room, open)| async {
            let connection = accept(&mut *incoming, &room, &open).await?;
            Some((connection, (incoming, room, open)))
        });
    match tls {
        None => plain.map(Ok).left_stream(),
        Some(tls) => {
            let (acceptor, failed) = (tls.acceptor(), metrics.failed_handshakes.clone());
            let handshakes = plain.map(move |connection| handshake(connection, acceptor.clone(), failed.clone()));
            // Slow or hostile ones delay nobody: there is room for many, and each has its time.
            handshakes.buffer_unordered(HANDSHAKES_MAX).filter_map(|done| async { done.map(Ok) }).right_stream()
        }
    }
}

/// The same connection behind TLS; nothing if the other side fails at that.
async fn handshake(plain: Connection, acceptor: TlsAcceptor, failed: Counter) -> Option<Connection> {
    let Connection { io, place } = plain;
    let why = match timeout(HANDSHAKE_TIMEOUT, acceptor.accept(io)).await {
        Ok(Ok(tls)) => return Some(Connection { io: Box::new(tls), place }),
        Ok(Err(error)) => error.to_string(),
        Err(_) => format!("not done within {HANDSHAKE_TIMEOUT:?}"),
    };
    failed.inc();
    tracing::debug!(why, "a TLS handshake failed");
    None
}

impl Connected for Connection {
    type ConnectInfo = ();

    fn connect_info(&self) {}
}

impl AsyncRead for Connection {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_read(cx, buf)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }
}
