//! TCP whose connections out can be broken off, and refused until mended.

use std::{
    io,
    net::SocketAddr,
    pin::Pin,
    sync::atomic::{AtomicBool, Ordering},
    task::{Context, Poll},
};

use andante_cluster::env::{Incoming, Io, Network, TcpNetwork};
use async_trait::async_trait;
use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};

#[derive(Default)]
pub(crate) struct Breakable {
    connections: Mutex<CancellationToken>,
    refuses: AtomicBool,
}

impl Breakable {
    /// Breaks off all connections that were opened from here.
    pub(crate) fn break_off(&self) {
        std::mem::take(&mut *self.connections.lock()).cancel();
    }

    /// Breaks off all connections and opens none until [`mend`](Self::mend).
    pub(crate) fn cut(&self) {
        self.refuses.store(true, Ordering::SeqCst);
        self.break_off();
    }

    pub(crate) fn mend(&self) {
        self.refuses.store(false, Ordering::SeqCst);
    }
}

#[async_trait]
impl Network for Breakable {
    async fn connect(&self, addr: &str) -> io::Result<Box<dyn Io>> {
        if self.refuses.load(Ordering::SeqCst) {
            return Err(io::ErrorKind::ConnectionRefused.into());
        }
        let broken = Box::pin(self.connections.lock().clone().cancelled_owned());
        Ok(Box::new(Wire { io: TcpNetwork.connect(addr).await?, broken }))
    }

    async fn listen(&self, addr: SocketAddr) -> io::Result<Box<dyn Incoming>> {
        TcpNetwork.listen(addr).await
    }
}

struct Wire {
    io: Box<dyn Io>,
    broken: Pin<Box<WaitForCancellationFutureOwned>>,
}

impl AsyncRead for Wire {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if self.broken.as_mut().poll(cx).is_ready() {
            return Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()));
        }
        Pin::new(&mut self.io).poll_read(cx, buf)
    }
}

impl AsyncWrite for Wire {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}
