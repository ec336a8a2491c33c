//! Connections.

use std::{io, net::SocketAddr};

use async_trait::async_trait;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, TcpStream},
};

/// A connection.
pub trait Io: AsyncRead + AsyncWrite + Send + Unpin + 'static {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin + 'static> Io for T {}

/// A listening socket.
#[async_trait]
pub trait Incoming: Send + 'static {
    /// The address it listens on (with the real port when 0 was asked for).
    fn local_addr(&self) -> SocketAddr;
    /// The next connection and its peer. An error concerns one connection only; go on accepting.
    async fn accept(&mut self) -> io::Result<(Box<dyn Io>, SocketAddr)>;
}

/// The only way to open and accept connections.
#[async_trait]
pub trait Network: Send + Sync + 'static {
    /// Connects to `host:port`.
    async fn connect(&self, addr: &str) -> io::Result<Box<dyn Io>>;
    /// Listens on an address.
    async fn listen(&self, addr: SocketAddr) -> io::Result<Box<dyn Incoming>>;
}

/// TCP, without Nagle's delay.
#[derive(Debug, Default)]
pub struct TcpNetwork;

#[async_trait]
impl Network for TcpNetwork {
    async fn connect(&self, addr: &str) -> io::Result<Box<dyn Io>> {
        let stream = TcpStream::connect(addr).await?;
        stream.set_nodelay(true)?;
        Ok(Box::new(stream))
    }

    async fn listen(&self, addr: SocketAddr) -> io::Result<Box<dyn Incoming>> {
        let listener = TcpListener::bind(addr).await?;
        let local = listener.local_addr()?;
        Ok(Box::new(TcpIncoming { listener, local }))
    }
}

struct TcpIncoming {
    listener: TcpListener,
    local: SocketAddr,
}

#[async_trait]
impl Incoming for TcpIncoming {
    fn local_addr(&self) -> SocketAddr {
        self.local
    }

    async fn accept(&mut self) -> io::Result<(Box<dyn Io>, SocketAddr)> {
        let (stream, peer) = self.listener.accept().await?;
        stream.set_nodelay(true)?;
        Ok((Box::new(stream), peer))
    }
}
