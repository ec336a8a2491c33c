//! The simulated network behind the environment's seam, with an eye on what passes.

use std::{
    io,
    net::{Ipv4Addr, SocketAddr},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use andante_cluster::env::{Incoming, Io, Network};
use async_trait::async_trait;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use turmoil::net::{TcpListener, TcpStream};

use super::traffic::Traffic;

/// A host's way to the others, by their names.
pub struct SimulatedNetwork {
    /// The host.
    pub host: Arc<str>,
    /// Who sends what to whom.
    pub traffic: Arc<Traffic>,
}

#[async_trait]
impl Network for SimulatedNetwork {
    async fn connect(&self, addr: &str) -> io::Result<Box<dyn Io>> {
        let stream = TcpStream::connect(addr).await?;
        let peer = addr.split(':').next().unwrap_or_default().into();
        Ok(Box::new(Wire { stream, host: self.host.clone(), peer, traffic: self.traffic.clone() }))
    }

    async fn listen(&self, addr: SocketAddr) -> io::Result<Box<dyn Incoming>> {
        let listener = TcpListener::bind((Ipv4Addr::UNSPECIFIED, addr.port())).await?;
        let local = listener.local_addr()?;
        Ok(Box::new(Listening { listener, local, host: self.host.clone(), traffic: self.traffic.clone() }))
    }
}

struct Listening {
    listener: TcpListener,
    local: SocketAddr,
    host: Arc<str>,
    traffic: Arc<Traffic>,
}

#[async_trait]
impl Incoming for Listening {
    fn local_addr(&self) -> SocketAddr {
        self.local
    }

    async fn accept(&mut self) -> io::Result<(Box<dyn Io>, SocketAddr)> {
        let (stream, from) = self.listener.accept().await?;
        let peer = turmoil::reverse_lookup(from.ip()).unwrap_or_else(|| from.ip().to_string()).into();
        let wire = Wire { stream, host: self.host.clone(), peer, traffic: self.traffic.clone() };
        Ok((Box::new(wire), from))
    }
}

/// One end of a connection.
struct Wire {
    stream: TcpStream,
    host: Arc<str>,
    peer: Arc<str>,
    traffic: Arc<Traffic>,
}

impl AsyncRead for Wire {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let polled = Pin::new(&mut self.stream).poll_read(cx, buf);
        if let Poll::Ready(Ok(())) = &polled {
            self.traffic.arrived(&self.peer, &self.host, &buf.filled()[before..]);
        }
        polled
    }
}

impl AsyncWrite for Wire {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let polled = Pin::new(&mut self.stream).poll_write(cx, buf);
        if let Poll::Ready(Ok(_)) = &polled {
            self.traffic.sent(&self.host, &self.peer);
        }
        polled
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
