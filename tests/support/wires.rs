//! A network whose directions can be cut, between the nodes of one process.

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

/// A node, by its position.
pub type Position = usize;

/// The wires between the nodes. A cut direction delivers nothing, as if every packet were lost: connections stay open
/// and silent, new ones are not answered.
#[derive(Default)]
pub struct Wires(Mutex<State>);

#[derive(Default)]
struct State {
    cut: BTreeSet<(Position, Position)>,
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

    /// Mends everything.
    pub fn heal(&self) {
        let waiting = {
            let mut state = self.0.lock();
            state.cut.clear();
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
        let other = port.and_then(|port: u16| self.wires.0.lock().listeners.get(&port).copied());
        let Some(other) = other else { return TcpNetwork.connect(addr).await };
        for (from, to) in [(self.me, other), (other, self.me)] {
            poll_fn(|cx| self.wires.poll_open(cx, from, to)).await;
        }
        let io = TcpNetwork.connect(addr).await?;
        Ok(Box::new(Wire { io, me: self.me, other, wires: self.wires.clone() }))
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
    other: Position,
    wires: Arc<Wires>,
}

impl AsyncRead for Wire {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        std::task::ready!(self.wires.poll_open(cx, self.other, self.me));
        Pin::new(&mut self.io).poll_read(cx, buf)
    }
}

impl AsyncWrite for Wire {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        std::task::ready!(self.wires.poll_open(cx, self.me, self.other));
        Pin::new(&mut self.io).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}
