//! The link to one peer: what waits to be sent, which calls wait for an answer, and which session carries them.

use std::{
    collections::HashMap,
    pin::Pin,
    sync::{Arc, atomic::AtomicBool},
    task::{Context, Poll, Waker},
    time::Duration,
};

use futures::Stream;
use parking_lot::Mutex;
use thiserror::Error;
use tokio::{
    sync::{Notify, oneshot, watch},
    time::timeout,
};

use super::{
    PeerHandler,
    outbox::Outbox,
    stats::{PeerStats, add},
};
use crate::{
    GroupId, NodeId, mutant,
    proto::{Frame, frame::Body},
};

/// Why a call brought no answer.
#[derive(Debug, Clone, Error)]
pub(super) enum CallError {
    #[error("there is no link to it")]
    NoLink,
    #[error("the link broke")]
    Broken,
    #[error("too much waits to be sent to it")]
    Full,
    #[error("no answer within {} ms", .0.as_millis())]
    Timeout(Duration),
    #[error("it says: {0}")]
    Failed(String),
    #[error("its answer makes no sense")]
    Nonsense,
}

/// A stream of frames in each direction, from when it is opened until it breaks.
pub(super) type SessionId = u64;

#[derive(Default)]
struct State {
    session: Option<SessionId>,
    sessions: u64,
    outbox: Outbox,
    /// Calls whose answer is waited for.
    pending: HashMap<u64, oneshot::Sender<Result<Body, CallError>>>,
    calls: u64,
    sender: Option<Waker>,
    /// No session begins any more.
    closed: bool,
}

/// The link to one peer.
pub(super) struct Link {
    pub(super) peer: NodeId,
    stats: Arc<PeerStats>,
    state: Mutex<State>,
    session: watch::Sender<Option<SessionId>>,
    /// Nothing waits to be sent.
    emptied: Notify,
    /// The peer may be somewhere else now: dial again at once.
    pub(super) redial: Notify,
    /// Somebody keeps a session with the peer.
    pub(super) dialed: AtomicBool,
    /// Whether it was said last that the link is up.
    said_up: Mutex<bool>,
    /// Snapshots go one after the other.
    pub(super) snapshots: tokio::sync::Mutex<()>,
}

impl Link {
    pub(super) fn new(peer: NodeId, stats: Arc<PeerStats>) -> Arc<Self> {
        Arc::new(Self {
            peer,
            stats,
            state: Mutex::default(),
            session: watch::Sender::new(None),
            emptied: Notify::new(),
            redial: Notify::new(),
            dialed: AtomicBool::new(false),
            said_up: Mutex::default(),
            snapshots: tokio::sync::Mutex::default(),
        })
    }

    /// Begins a session, which takes the place of the one before. `None`: the link is closed.
    pub(super) fn begin(&self) -> Option<SessionId> {
        let mut state = self.state.lock();
        if state.closed {
            return None;
        }
        state.sessions += 1;
        let session = state.sessions;
        let lost = self.replace(&mut state, Some(session));
        drop(state);
        fail(lost);
        Some(session)
    }

    /// Whether there is a session.
    pub(super) fn is_up(&self) -> bool {
        self.session.borrow().is_some()
    }

    /// Ends a session, unless another one has taken its place: all its calls fail.
    pub(super) fn end(&self, session: SessionId) {
        let mut state = self.state.lock();
        if state.session != Some(session) {
            return;
        }
        let lost = self.replace(&mut state, None);
        drop(state);
        fail(lost);
    }

    /// Ends the session there is, for good.
    pub(super) fn close(&self) {
        let mut state = self.state.lock();
        state.closed = true;
        let lost = self.replace(&mut state, None);
        drop(state);
        fail(lost);
    }

    fn replace(
        &self,
        state: &mut State,
        by: Option<SessionId>,
    ) -> HashMap<u64, oneshot::Sender<Result<Body, CallError>>> {
        state.session = by;
        state.outbox.clear();
        if let Some(sender) = state.sender.take() {
            sender.wake();
        }
        self.session.send_replace(by);
        self.emptied.notify_waiters();
        std::mem::take(&mut state.pending)
    }

    /// Waits until a session is no longer the link's.
    pub(super) async fn ended(&self, session: SessionId) {
        // The sender lives in `self`.
        let _ = self.session.subscribe().wait_for(|now| *now != Some(session)).await;
    }

    /// Says whether the link is up, if that has changed. Whoever changes it calls this afterwards: what is said last is
    /// true, in whatever order they come.
    pub(super) fn tell_changed(&self, handler: &dyn PeerHandler) {
        let mut said_up = self.said_up.lock();
        let up = self.state.lock().session.is_some();
        if std::mem::replace(&mut *said_up, up) != up {
            handler.link_changed(self.peer, up);
        }
    }

    pub(super) fn is_closed(&self) -> bool {
        self.state.lock().closed
    }

    /// Waits until everything that was to be sent is on its way.
    pub(super) async fn drained(&self) {
        loop {
            let emptied = self.emptied.notified();
            if self.state.lock().outbox.len() == 0 {
                return;
            }
            emptied.await;
        }
    }

    /// Calls the peer's replica of a group. The call takes its place in the queue when this is first polled.
    pub(super) async fn call(
        &self,
        group: GroupId,
        body: Body,
        urgent: bool,
        limit: Duration,
    ) -> Result<Body, CallError> {
        let limit = if mutant!(RpcWithoutDeadline) { Duration::from_secs(3_600) } else { limit };
        let (call, answer) = self.begin_call(group, body, urgent).inspect_err(|_| add(&self.stats.calls_failed, 1))?;
        // Whatever ends the wait: nobody is left to hear an answer.
        let _forget = Forget { link: self, call };
        let answer = match timeout(limit, answer).await {
            Err(_) => Err(CallError::Timeout(limit)),
            Ok(Err(_)) => Err(CallError::Broken),
            Ok(Ok(Ok(Body::Failed(why)))) => Err(CallError::Failed(why)),
            Ok(Ok(answer)) => answer,
        };
        answer.inspect_err(|_| add(&self.stats.calls_failed, 1))
    }

    fn begin_call(
        &self,
        group: GroupId,
        body: Body,
        urgent: bool,
    ) -> Result<(u64, oneshot::Receiver<Result<Body, CallError>>), CallError> {
        let mut state = self.state.lock();
        if state.session.is_none() {
            return Err(CallError::NoLink);
        }
        state.calls += 1;
        let call = state.calls;
        let frame = Frame { group: group.0, call, body: Some(body) };
        state.outbox.push(frame, urgent).map_err(|_| CallError::Full)?;
        let (tx, rx) = oneshot::channel();
        state.pending.insert(call, tx);
        let sender = state.sender.take();
        drop(state);
        if let Some(sender) = sender {
            sender.wake();
        }
        Ok((call, rx))
    }

    /// An answer has arrived. Too late, nobody waits for it.
    pub(super) fn answered(&self, session: SessionId, call: u64, answer: Body) {
        let mut state = self.state.lock();
        let waiting = state.pending.remove(&call).filter(|_| state.session == Some(session));
        drop(state);
        if let Some(waiting) = waiting {
            // Nobody waits any more.
            let _ = waiting.send(Ok(answer));
        }
    }

    /// Sends something that nobody waits for: an answer, or news. Dropped when there is no session, or another one
    /// than `session`, or too much waits.
    pub(super) fn tell(&self, session: Option<SessionId>, frame: Frame) {
        let mut state = self.state.lock();
        if state.session.is_none() || session.is_some_and(|session| state.session != Some(session)) {
            return;
        }
        if state.outbox.push(frame, true).is_err() {
            add(&self.stats.frames_dropped, 1);
        }
        let sender = state.sender.take();
        drop(state);
        if let Some(sender) = sender {
            sender.wake();
        }
    }

    /// What a session sends, message by message; ends with the session.
    pub(super) fn outgoing(self: &Arc<Self>, session: SessionId) -> Outgoing {
        Outgoing { link: self.clone(), session }
    }
}

fn fail(calls: HashMap<u64, oneshot::Sender<Result<Body, CallError>>>) {
    for waiting in calls.into_values() {
        // Nobody waits any more.
        let _ = waiting.send(Err(CallError::Broken));
    }
}

/// Forgets a call that nobody waits for any more.
struct Forget<'a> {
    link: &'a Link,
    call: u64,
}

impl Drop for Forget<'_> {
    fn drop(&mut self) {
        self.link.state.lock().pending.remove(&self.call);
    }
}

/// What a session sends. Whatever has piled up since the last message goes into the next one: no timer.
pub(super) struct Outgoing {
    link: Arc<Link>,
    session: SessionId,
}

impl Stream for Outgoing {
    type Item = Vec<Frame>;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Vec<Frame>>> {
        let mut state = self.link.state.lock();
        if state.session != Some(self.session) {
            return Poll::Ready(None);
        }
        let State { outbox, pending, .. } = &mut *state;
        let batch = outbox.next_batch(|call| pending.contains_key(&call));
        if outbox.len() == 0 {
            self.link.emptied.notify_waiters();
        }
        if batch.is_empty() {
            state.sender = Some(cx.waker().clone());
            return Poll::Pending;
        }
        add(&self.link.stats.frames_out, batch.len() as u64);
        add(&self.link.stats.batches_out, 1);
        Poll::Ready(Some(batch))
    }
}
