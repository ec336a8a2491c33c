//! The ways to other nodes: bounded, timed, counted.

use std::{collections::HashMap, future::Future, sync::Arc};

use andante_cluster::{NodeId, env::Clock, mutant};
use parking_lot::{Mutex, RwLock};
use prometheus_client::metrics::gauge::Gauge;
use tokio::{
    sync::Semaphore,
    time::{Duration, Instant, timeout_at},
};
use tonic::{Code, Request, Response, Status, Streaming, transport::Channel};

use super::v1::{self, router_service_client::RouterServiceClient};
use crate::{
    actor::Lost,
    metrics::{Metrics, PeerCall, PeerOutcome},
};

/// The way to a node's services; `None`: there is no such node. Tests bring their own.
pub type Dial = Arc<dyn Fn(NodeId) -> Option<Channel> + Send + Sync>;

/// Calls of one kind to one node at once; more are refused at once. A node that answers has few: at 0.3 ms for a
/// score, 256 are 800,000 a second. They pile up only where it does not answer, and each holds a request's memory.
const SCORES_IN_FLIGHT: usize = 256;
const TAKES_IN_FLIGHT: usize = 256;
const READS_IN_FLIGHT: usize = 64;
const VITALS_IN_FLIGHT: usize = 4;
/// Shards a node follows at one other node.
const WATCHES_IN_FLIGHT: usize = 256;
/// A list of campaigns with many tracks each: 1,000 with 500 tracks of 64 bytes.
const ANSWER_BYTES_MAX: usize = 64 << 20;
/// Campaigns whose losses wait for the next request; beyond it they are forgotten: they steer, they don't count.
const LOSSES_MAX: usize = 1_024;

fn in_flight_max(call: PeerCall) -> usize {
    match call {
        PeerCall::Score => SCORES_IN_FLIGHT,
        PeerCall::Take => TAKES_IN_FLIGHT,
        PeerCall::Read => READS_IN_FLIGHT,
        PeerCall::Watch => WATCHES_IN_FLIGHT,
        PeerCall::Vitals => VITALS_IN_FLIGHT,
    }
}

/// Why another node gave no answer. Whether it did what was asked is unknown, but for `Overloaded` and `Refused`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum CallError {
    /// Not before the deadline.
    #[error("no answer before the deadline")]
    Deadline,
    /// There is no such node, or no connection to it, or it broke.
    #[error("the node can't be reached")]
    Unreachable,
    /// Too many calls to it are in flight, or it has too much to do: nothing was done.
    #[error("too much in flight")]
    Overloaded,
    /// It can't do that, or not now: nothing was done.
    #[error("the node refused")]
    Refused,
}

impl CallError {
    fn of(status: &Status) -> Self {
        match status.code() {
            // A server's own timer answers CANCELLED.
            Code::DeadlineExceeded | Code::Cancelled => CallError::Deadline,
            Code::ResourceExhausted => CallError::Overloaded,
            Code::FailedPrecondition | Code::Unimplemented | Code::InvalidArgument => CallError::Refused,
            _ => CallError::Unreachable,
        }
    }

    fn outcome(self) -> PeerOutcome {
        match self {
            CallError::Deadline => PeerOutcome::Deadline,
            CallError::Unreachable => PeerOutcome::Unreachable,
            CallError::Overloaded => PeerOutcome::Overloaded,
            CallError::Refused => PeerOutcome::Refused,
        }
    }
}

/// Offers of another node's campaigns that came to nothing; told with the next score request to it.
#[derive(Debug, Default)]
struct Losses(Mutex<HashMap<u64, [u32; 2]>>);

impl Losses {
    fn note(&self, lost: Lost, campaigns: impl IntoIterator<Item = (u64, u32)>) {
        let at = match lost {
            Lost::Slot => 0,
            Lost::PromotedShare => 1,
            // Known where the campaign is.
            Lost::Unserved | Lost::FrequencyCap => return,
        };
        let mut losses = self.0.lock();
        for (campaign, count) in campaigns {
            if losses.len() < LOSSES_MAX || losses.contains_key(&campaign) {
                let counts = losses.entry(campaign).or_default();
                counts[at] = counts[at].saturating_add(count);
            }
        }
    }

    /// Moves them into a request.
    fn tell(&self, request: &mut v1::ScoreRequest) {
        let losses = std::mem::take(&mut *self.0.lock());
        for (campaign, [slots, shares]) in losses {
            request.lost_campaigns.push(campaign);
            request.lost_slots.push(slots);
            request.lost_shares.push(shares);
        }
    }
}

struct Peer {
    room: [Semaphore; PeerCall::ALL.len()],
    in_flight: Gauge,
    losses: Losses,
}

/// The ways from one node to all others.
pub struct Links {
    dial: Dial,
    /// For durations.
    clock: Arc<dyn Clock>,
    metrics: Arc<Metrics>,
    peers: RwLock<HashMap<NodeId, Arc<Peer>>>,
}

impl Links {
    /// `dial` gives the way to a node, at once.
    pub fn new(dial: Dial, clock: Arc<dyn Clock>, metrics: Arc<Metrics>) -> Self {
        Self { dial, clock, metrics, peers: RwLock::default() }
    }

    /// Offers of a node's campaigns. Tells it of earlier losses.
    ///
    /// # Errors
    /// See [`CallError`].
    pub async fn score(
        &self,
        node: NodeId,
        mut request: v1::ScoreRequest,
        deadline: Instant,
    ) -> Result<v1::ScoreResponse, CallError> {
        self.call(node, PeerCall::Score, deadline, async move |peer, mut client, timeout| {
            peer.losses.tell(&mut request);
            client.score(timed(request, timeout)).await
        })
        .await
    }

    /// Notes that offers of a node's campaigns came to nothing, so often each.
    pub fn lost(&self, node: NodeId, lost: Lost, campaigns: impl IntoIterator<Item = (u64, u32)>) {
        self.peer(node).losses.note(lost, campaigns);
    }

    /// Takes tokens. After an error tokens may have been handed out: they stay on hold until they expire.
    ///
    /// # Errors
    /// See [`CallError`].
    pub async fn take(
        &self,
        node: NodeId,
        request: v1::TakeRequest,
        deadline: Instant,
    ) -> Result<v1::TakeResponse, CallError> {
        self.call(node, PeerCall::Take, deadline, async move |_, mut client, timeout| {
            client.take(timed(request, timeout)).await
        })
        .await
    }

    /// Reads campaigns of shards that a node leads.
    ///
    /// # Errors
    /// See [`CallError`].
    pub async fn read(
        &self,
        node: NodeId,
        request: v1::ReadCampaignsRequest,
        deadline: Instant,
    ) -> Result<v1::ReadCampaignsResponse, CallError> {
        self.call(node, PeerCall::Read, deadline, async move |_, mut client, timeout| {
            client.read_campaigns(timed(request, timeout)).await
        })
        .await
    }

    /// Follows the catalog of a shard at one of its replicas; `deadline` is for the first word.
    ///
    /// # Errors
    /// See [`CallError`].
    pub async fn watch(
        &self,
        node: NodeId,
        shard: u32,
        deadline: Instant,
    ) -> Result<Streaming<v1::WatchCatalogResponse>, CallError> {
        self.call(node, PeerCall::Watch, deadline, async move |_, mut client, _| {
            client.watch_catalog(v1::WatchCatalogRequest { shard }).await
        })
        .await
    }

    /// How a node is.
    ///
    /// # Errors
    /// See [`CallError`].
    pub async fn vitals(&self, node: NodeId, deadline: Instant) -> Result<v1::ReadVitalsResponse, CallError> {
        self.call(node, PeerCall::Vitals, deadline, async move |_, mut client, timeout| {
            client.read_vitals(timed(v1::ReadVitalsRequest {}, timeout)).await
        })
        .await
    }

    #[tracing::instrument(level = "debug", skip_all, fields(node, call = call.name()))]
    async fn call<T, W>(
        &self,
        node: NodeId,
        call: PeerCall,
        deadline: Instant,
        work: impl FnOnce(Arc<Peer>, RouterServiceClient<Channel>, Duration) -> W,
    ) -> Result<T, CallError>
    where
        W: Future<Output = Result<Response<T>, Status>>,
    {
        let deadline = if mutant!(RpcWithoutDeadline) { Instant::now() + Duration::from_secs(3_600) } else { deadline };
        let begun = self.clock.monotonic_micros();
        let peer = self.peer(node);
        let guard = self.metrics.peer.begin(&peer.in_flight, call);
        let result = async {
            let _room = peer.room[call as usize].try_acquire().map_err(|_| CallError::Overloaded)?;
            let channel = (self.dial)(node).ok_or(CallError::Unreachable)?;
            let client = RouterServiceClient::new(channel).max_decoding_message_size(ANSWER_BYTES_MAX);
            let left = deadline.saturating_duration_since(Instant::now());
            match timeout_at(deadline, Box::pin(work(peer.clone(), client, left))).await {
                Ok(Ok(answer)) => Ok(answer.into_inner()),
                Ok(Err(status)) => {
                    tracing::debug!(node, call = call.name(), %status, "another node gave no answer");
                    Err(CallError::of(&status))
                }
                Err(_) => Err(CallError::Deadline),
            }
        }
        .await;
        let micros = self.clock.monotonic_micros().saturating_sub(begun);
        guard.finish(result.as_ref().err().map_or(PeerOutcome::Answered, |error| error.outcome()), micros);
        result
    }

    fn peer(&self, node: NodeId) -> Arc<Peer> {
        if let Some(peer) = self.peers.read().get(&node) {
            return peer.clone();
        }
        // As many as there are nodes.
        let new = || Peer {
            room: PeerCall::ALL.map(|call| Semaphore::new(in_flight_max(call))),
            in_flight: self.metrics.peer.in_flight(node),
            losses: Losses::default(),
        };
        self.peers.write().entry(node).or_insert_with(|| Arc::new(new())).clone()
    }
}

fn timed<T>(message: T, timeout: Duration) -> Request<T> {
    let mut request = Request::new(message);
    request.set_timeout(timeout);
    request
}

#[cfg(test)]
mod tests {
    use std::{pin::Pin, sync::atomic::AtomicBool};

    use andante_cluster::env::SystemClock;
    use futures::{Stream, future::join_all};
    use hyper_util::rt::TokioIo;
    use tonic::transport::{Endpoint, Server};

    use super::*;
    use v1::router_service_server::{RouterService, RouterServiceServer};

    /// Never answers a score, refuses tokens, and remembers whether it was told of losses.
    #[derive(Default)]
    struct Stubborn {
        told: Arc<AtomicBool>,
    }

    #[tonic::async_trait]
    impl RouterService for Stubborn {
        type WatchCatalogStream = Pin<Box<dyn Stream<Item = Result<v1::WatchCatalogResponse, Status>> + Send>>;

        async fn score(&self, request: Request<v1::ScoreRequest>) -> Result<Response<v1::ScoreResponse>, Status> {
            if request.get_ref().lost_campaigns == [5] && request.get_ref().lost_slots == [3] {
                self.told.store(true, std::sync::atomic::Ordering::SeqCst);
            }
            std::future::pending().await
        }
        async fn take(&self, _: Request<v1::TakeRequest>) -> Result<Response<v1::TakeResponse>, Status> {
            Err(Status::resource_exhausted("too much"))
        }
        async fn read_campaigns(
            &self,
            _: Request<v1::ReadCampaignsRequest>,
        ) -> Result<Response<v1::ReadCampaignsResponse>, Status> {
            Err(Status::unimplemented("of an older build"))
        }
        async fn watch_catalog(
            &self,
            _: Request<v1::WatchCatalogRequest>,
        ) -> Result<Response<Self::WatchCatalogStream>, Status> {
            Err(Status::unavailable("not here"))
        }
        async fn read_vitals(
            &self,
            _: Request<v1::ReadVitalsRequest>,
        ) -> Result<Response<v1::ReadVitalsResponse>, Status> {
            Ok(Response::new(v1::ReadVitalsResponse { wall_ms: 7, ..Default::default() }))
        }
    }

    /// Links to one node, 2, over a pipe.
    fn links() -> (Links, Arc<AtomicBool>) {
        let (here, there) = tokio::io::duplex(1 << 16);
        let stubborn = Stubborn::default();
        let told = stubborn.told.clone();
        let incoming = futures::stream::once(async { Ok::<_, std::io::Error>(there) });
        tokio::spawn(Server::builder().add_service(RouterServiceServer::new(stubborn)).serve_with_incoming(incoming));
        let mut pipe = Some(here);
        let connector = tower::service_fn(move |_| {
            let pipe = pipe.take();
            async { pipe.map(TokioIo::new).ok_or_else(|| std::io::Error::other("one connection only")) }
        });
        let channel = Endpoint::from_static("http://node").connect_with_connector_lazy(connector);
        let dial: Dial = Arc::new(move |node| (node == 2).then(|| channel.clone()));
        (Links::new(dial, Arc::new(SystemClock::default()), Arc::default()), told)
    }

    fn soon() -> Instant {
        Instant::now() + Duration::from_secs(10)
    }

    #[tokio::test]
    async fn errors_say_what_became_of_a_call() {
        let (links, _) = links();
        assert_eq!(links.vitals(2, soon()).await.map(|vitals| vitals.wall_ms), Ok(7));
        assert_eq!(links.take(2, v1::TakeRequest::default(), soon()).await, Err(CallError::Overloaded));
        assert_eq!(links.read(2, v1::ReadCampaignsRequest::default(), soon()).await, Err(CallError::Refused));
        assert!(matches!(links.watch(2, 0, soon()).await, Err(CallError::Unreachable)));
        assert_eq!(links.vitals(3, soon()).await, Err(CallError::Unreachable), "there is no such node");
        let at_once = Instant::now() + Duration::from_millis(5);
        assert_eq!(links.score(2, v1::ScoreRequest::default(), at_once).await, Err(CallError::Deadline));
    }

    #[tokio::test]
    async fn a_node_that_does_not_answer_holds_so_many_calls_and_no_more() {
        let (links, told) = links();
        links.lost(2, Lost::Slot, [(5, 3)]);
        let in_a_moment = Instant::now() + Duration::from_millis(200);
        let calls = (0..=SCORES_IN_FLIGHT).map(|_| links.score(2, v1::ScoreRequest::default(), in_a_moment));
        let mut results = join_all(calls).await;
        assert_eq!(results.pop(), Some(Err(CallError::Overloaded)), "the last one found no room");
        assert!(results.iter().all(|result| *result == Err(CallError::Deadline)));
        assert!(told.load(std::sync::atomic::Ordering::SeqCst), "the first one told of what was lost before");
        let soon = Instant::now() + Duration::from_millis(5);
        assert_eq!(links.score(2, v1::ScoreRequest::default(), soon).await, Err(CallError::Deadline), "room again");
    }
}
