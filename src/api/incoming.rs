//! Connections from the environment's network, as tonic and axum want them: bounded, counted.

use std::{
    io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use andante_cluster::env::{Incoming, Io};
use futures::{Stream, stream};
use prometheus_client::metrics::gauge::Gauge;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    sync::{OwnedSemaphorePermit, Semaphore},
};
use tonic::transport::server::Connected;

/// Pause after a failed accept (out of file descriptors, mostly): an immediate retry would only burn CPU.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// A connection with its place among those allowed.
pub(crate) struct Connection {
    io: Box<dyn Io>,
    open: Gauge,
    _room: OwnedSemaphorePermit,
}

impl Drop for Connection {
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
                return Some(Connection { io, open: open.clone(), _room: permit });
            }
            Err(error) => {
                tracing::warn!(%error, "a connection could not be accepted");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

/// All connections, without an end.
pub(crate) fn connections(
    incoming: Box<dyn Incoming>,
    max: usize,
    open: Gauge,
) -> impl Stream<Item = io::Result<Connection>> {
    let room = Arc::new(Semaphore::new(max));
    stream::unfold((incoming, room, open), |(mut incoming, room, open)| async move {
        let connection = accept(&mut *incoming, &room, &open).await?;
        Some((Ok(connection), (incoming, room, open)))
    })
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
