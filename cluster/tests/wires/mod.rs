//! A network between the nodes of one process whose directions can be cut and whose connections can be broken off.
#![allow(dead_code, unreachable_pub, reason = "each test binary uses its own part of it")]

use std::{
    collections::{BTreeMap, BTreeSet},
    future::poll_fn,
    io,
    net::SocketAddr,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, Waker},
};

use andante_cluster::env::{Incoming, Io, Network, TcpNetwork};
use async_trait::async_trait;
use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};

/// A node, by its position.
pub type Position = usize;

/// The wires between the nodes. A cut direction delivers nothing, as if every packet were lost: connections stay open
/// and silent, new ones are not answered. A node that is barred opens none, and those it had opened are broken off.
#[derive(Default)]
pub struct Wires(Mutex<State>);

#[derive(Default)]
struct State {
    cut: BTreeSet<(Position, Position)>,
    barred: BTreeSet<Position>,
    /// Cancelled when a node's connections are broken off.
    opened: BTreeMap<Position, CancellationToken>,
    listeners: BTreeMap<u16, Position>,
    waiting: Vec<Waker>,
}

impl Wires {
    /// Cuts one direction.
    pub fn cut(&self, from: Position, to: Position) {
        self.0.lock().cut.insert((from, to));
    }

    /// Cuts a node off from all others, in both directions.
    pub fn isolate(&self, node: Position, others: impl IntoIterator<Item = Position>) {
        for other in others {
            self.cut(node, other);
            self.cut(other, node);
        }
    }

    /// Breaks off all connections that a node has opened.
    pub fn break_off(&self, node: Position) {
        let opened = self.0.lock().opened.remove(&node);
        if let Some(opened) = opened {
            opened.cancel();
        }
    }

    /// Breaks off all connections that a node has opened, and refuses it new ones. Others may still reach it.
    pub fn bar(&self, node: Position) {
        self.0.lock().barred.insert(node);
        self.break_off(node);
    }

    /// Mends everything.
    pub fn heal(&self) {
        let waiting = {
            let mut state = self.0.lock();
            state.cut.clear();
            state.barred.clear();
            std::mem::take(&mut state.waiting)
        };
        waiting.into_iter().for_each(Waker::wake);
    }

    /// The network as one node sees it.
    pub fn network(self: &Arc<Self>, me: Position) -> Arc<dyn Network> {
        Arc::new(End { me, wires: self.clone() })
    }

    fn poll_open(&self, cx: &Context<'_>, from: Position, to: Position) -> Poll<()> {
        let mut state = self.0.lock();
        if state.cut.contains(&(from, to)) {
            state.waiting.push(cx.waker().clone());
            return Poll::Pending;
        }
        Poll::Ready(())
    }
}

struct End {
    me: Position,
    wires: Arc<Wires>,
}

#[async_trait]
impl Network for End {
    async fn connect(&self, addr: &str) -> io::Result<Box<dyn Io>> {
        let port = addr.rsplit_once(':').and_then(|(_, port)| port.parse().ok());
        let (other, opened) = {
            let mut state = self.wires.0.lock();
            if state.barred.contains(&self.me) {
                return Err(io::ErrorKind::ConnectionRefused.into());
            }
            let other = port.and_then(|port: u16| state.listeners.get(&port).copied());
            (other, state.opened.entry(self.me).or_default().clone())
        };
        if let Some(other) = other {
            for (from, to) in [(self.me, other), (other, self.me)] {
                poll_fn(|cx| self.wires.poll_open(cx, from, to)).await;
            }
        }
        let io = TcpNetwork.connect(addr).await?;
        let broken = Box::pin(opened.cancelled_owned());
        Ok(Box::new(Wire { io, me: self.me, other, wires: self.wires.clone(), broken }))
    }

    async fn listen(&self, addr: SocketAddr) -> io::Result<Box<dyn Incoming>> {
        let incoming = TcpNetwork.listen(addr).await?;
        self.wires.0.lock().listeners.insert(incoming.local_addr().port(), self.me);
        Ok(incoming)
    }
}

/// A connection, gated where it was opened: so the listening side needs not know who called.
struct Wire {
    io: Box<dyn Io>,
    me: Position,
    /// `None`: nobody of these nodes.
    other: Option<Position>,
    wires: Arc<Wires>,
    broken: Pin<Box<WaitForCancellationFutureOwned>>,
}

impl Wire {
    /// Whether bytes may pass here (`inward`: to this end) or the connection is broken off.
    fn poll_pass(&mut self, cx: &mut Context<'_>, inward: bool) -> Poll<io::Result<()>> {
        if self.broken.as_mut().poll(cx).is_ready() {
            return Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()));
        }
        let Some(other) = self.other else { return Poll::Ready(Ok(())) };
        let (from, to) = if inward { (other, self.me) } else { (self.me, other) };
        self.wires.poll_open(cx, from, to).map(Ok)
    }
}

impl AsyncRead for Wire {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        std::task::ready!(self.poll_pass(cx, true))?;
        Pin::new(&mut self.io).poll_read(cx, buf)
    }
}

impl AsyncWrite for Wire {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        std::task::ready!(self.poll_pass(cx, false))?;
        Pin::new(&mut self.io).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}
