//! What this node answers to the routers of other nodes (`andante.peer.v1`).

use std::{
    pin::Pin,
    sync::{Arc, OnceLock, Weak},
};

use andante_cluster::ShardId;
use futures::{Stream, stream};
use tokio::{
    sync::{Semaphore, mpsc},
    time::{Duration, Instant, Interval, MissedTickBehavior, interval},
};
use tonic::{Request, Response, Status, metadata::MetadataMap, service::Routes};

use super::{Router, catalog::Entry, reads::Read, shards::ShardSet};
use crate::{
    actor::Lost,
    peer::v1::{
        self,
        router_service_server::{RouterService, RouterServiceServer},
    },
};

/// Candidates of a request, at most: the API's own limit.
const CANDIDATES_MAX: usize = 500;
/// Campaigns that losses are told of, at most.
const LOSSES_MAX: usize = 4_096;
/// Reads in flight; each waits for a round to a quorum.
const READS_IN_FLIGHT: usize = 1_024;
/// A read whose caller sets no deadline.
const READ_TIMEOUT: Duration = Duration::from_secs(5);
/// A watch says that it lives this often.
pub(super) const WATCH_SIGN: Duration = Duration::from_secs(1);

/// Where the handlers find the router, once it is there.
pub type RouterSlot = Arc<OnceLock<Weak<Router>>>;

/// The services for other nodes. They answer UNAVAILABLE until the slot is filled.
pub fn routes(slot: RouterSlot) -> Routes {
    Routes::new(RouterServiceServer::new(Handler { slot, reads: Semaphore::new(READS_IN_FLIGHT) }))
}

/// What the other node gives this call, as gRPC's wire format has it. Other nodes send microseconds or nanoseconds.
fn timeout(metadata: &MetadataMap) -> Option<Duration> {
    let (digits, unit) = {
        let text = metadata.get("grpc-timeout")?.to_str().ok()?;
        text.split_at_checked(text.len().checked_sub(1)?)?
    };
    let number: u64 = digits.parse().ok()?;
    match unit {
        "S" => Some(Duration::from_secs(number)),
        "m" => Some(Duration::from_millis(number)),
        "u" => Some(Duration::from_micros(number)),
        "n" => Some(Duration::from_nanos(number)),
        _ => None,
    }
}

struct Handler {
    slot: RouterSlot,
    reads: Semaphore,
}

impl Handler {
    fn router(&self) -> Result<Arc<Router>, Status> {
        let router = self.slot.get().and_then(Weak::upgrade);
        router.ok_or_else(|| Status::unavailable("the node is starting or stopping"))
    }
}

#[tonic::async_trait]
impl RouterService for Handler {
    type WatchCatalogStream = Pin<Box<dyn Stream<Item = Result<v1::WatchCatalogResponse, Status>> + Send>>;

    async fn score(&self, request: Request<v1::ScoreRequest>) -> Result<Response<v1::ScoreResponse>, Status> {
        Ok(Response::new(self.router()?.offers_for_peer(request.get_ref())?))
    }

    async fn take(&self, request: Request<v1::TakeRequest>) -> Result<Response<v1::TakeResponse>, Status> {
        Ok(Response::new(self.router()?.take_for_peer(request.get_ref())?))
    }

    async fn read_campaigns(
        &self,
        request: Request<v1::ReadCampaignsRequest>,
    ) -> Result<Response<v1::ReadCampaignsResponse>, Status> {
        let _room = self.reads.try_acquire().map_err(|_| Status::resource_exhausted("too many reads in flight"))?;
        let timeout = timeout(request.metadata()).unwrap_or(READ_TIMEOUT);
        let read = Read::from_wire(request.into_inner()).ok_or_else(|| Status::invalid_argument("read: missing"))?;
        Ok(Response::new(self.router()?.read_for_peer(&read, Instant::now() + timeout).await))
    }

    async fn watch_catalog(
        &self,
        request: Request<v1::WatchCatalogRequest>,
    ) -> Result<Response<Self::WatchCatalogStream>, Status> {
        let router = self.router()?;
        let shard = ShardId(request.get_ref().shard);
        if shard.0 >= router.shards.count() as u32
            || !router.host.has_replica(shard)
            || !router.catalog.is_in_step_here(shard)
        {
            return Err(Status::unavailable("there is no replica of the shard here, or it is not in step"));
        }
        let watched = router.catalog.watch(shard);
        let mut ticks = interval(WATCH_SIGN);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let router = Arc::downgrade(&router);
        let watch =
            Watch { router, shard, whole: watched.whole.into_iter(), changes: watched.changes, index: 0, ticks };
        let stream = stream::unfold(watch, |mut watch| async move { Some((Ok(watch.next().await?), watch)) });
        Ok(Response::new(Box::pin(stream)))
    }

    async fn read_vitals(
        &self,
        _request: Request<v1::ReadVitalsRequest>,
    ) -> Result<Response<v1::ReadVitalsResponse>, Status> {
        let router = self.router()?;
        let lag = router.own_lag();
        Ok(Response::new(v1::ReadVitalsResponse {
            wall_ms: router.clock.wall_ms(),
            catalog_shards_behind: lag.shards_behind,
            catalog_lag_entries: lag.entries,
        }))
    }
}

/// A follower's stream.
struct Watch {
    router: Weak<Router>,
    shard: ShardId,
    whole: std::vec::IntoIter<v1::WatchCatalogResponse>,
    changes: mpsc::Receiver<v1::WatchCatalogResponse>,
    index: u64,
    ticks: Interval,
}

impl Watch {
    /// The next message; `None`: the follower must start anew.
    async fn next(&mut self) -> Option<v1::WatchCatalogResponse> {
        let mut message = match self.whole.next() {
            Some(part) => part,
            None => tokio::select! {
                biased;
                change = self.changes.recv() => change?,
                _ = self.ticks.tick() => v1::WatchCatalogResponse::default(),
            },
        };
        let (applied, last) = self.router.upgrade()?.position(self.shard)?;
        if message.listed.is_empty() && message.removed.is_empty() {
            // Nothing has changed until here, or the change is on its way.
            message.index = applied;
        }
        message.index = message.index.max(self.index);
        message.previous_index = std::mem::replace(&mut self.index, message.index);
        message.last_index = last;
        Some(message)
    }
}

impl Router {
    /// Offers for another node's request, as far as this node answers for the shards.
    fn offers_for_peer(&self, request: &v1::ScoreRequest) -> Result<v1::ScoreResponse, Status> {
        let count = request.tracks.len();
        if count > CANDIDATES_MAX || request.relevances.len() != count {
            return Err(Status::invalid_argument(format!(
                "tracks: at most {CANDIDATES_MAX}, with a relevance each; are {count} and {}",
                request.relevances.len()
            )));
        }
        self.note_losses(request)?;
        let mut response = v1::ScoreResponse::default();
        let mut served = ShardSet::default();
        for shard in request.shards.iter().copied().map(ShardId) {
            if self.shards.scores(shard) {
                served.put(shard);
            } else {
                response.silent.push(self.silent(shard, String::new()));
            }
        }
        let ask = self.ask(request.listener, request.surface as u16, &request.market, request.placing);
        let catalog = self.catalog.pin();
        for (i, (track, relevance)) in request.tracks.iter().zip(&request.relevances).enumerate() {
            let entries = catalog.entries(*track).map_or(&[][..], |entries| &entries[..]);
            for entry in entries.iter().filter(|entry| served.has(entry.shard())) {
                let Entry::Here(cell) = entry else { continue };
                let score = cell.offer(&ask, *track, *relevance);
                if score > 0.0 {
                    response.candidates.push(i as u32);
                    response.campaigns.push(cell.key);
                    response.scores.push(score);
                }
            }
        }
        Ok(response)
    }

    fn note_losses(&self, request: &v1::ScoreRequest) -> Result<(), Status> {
        let count = request.lost_campaigns.len();
        if count > LOSSES_MAX || request.lost_slots.len() != count || request.lost_shares.len() != count {
            return Err(Status::invalid_argument("lost_campaigns: too many, or without their counts"));
        }
        let counts = request.lost_slots.iter().zip(&request.lost_shares);
        for (campaign, (slots, shares)) in request.lost_campaigns.iter().zip(counts) {
            if let Some(cell) = self.shards.get(self.host.shard_of(*campaign)).and_then(|shard| shard.cell(*campaign)) {
                cell.traffic.lost_many(Lost::Slot, *slots);
                cell.traffic.lost_many(Lost::PromotedShare, *shares);
            }
        }
        Ok(())
    }

    /// Tokens for another node's winners.
    fn take_for_peer(&self, request: &v1::TakeRequest) -> Result<v1::TakeResponse, Status> {
        let count = request.campaigns.len();
        if count > CANDIDATES_MAX {
            return Err(Status::invalid_argument(format!("campaigns: at most {CANDIDATES_MAX}, are {count}")));
        }
        let ask = self.ask(request.listener, request.surface as u16, &request.market, true);
        let take = |campaign: &u64| {
            let shard = self.host.shard_of(*campaign);
            let shard = self.shards.get(shard).filter(|shard| shard.scores());
            let token = shard
                .and_then(|shard| shard.cell(*campaign))
                .and_then(|cell| self.take_here(&ask, &cell, request.hold_ms));
            match token {
                Some(token) => v1::Taken { token: token.bytes.to_vec(), expires_ms: token.expires_ms },
                None => v1::Taken::default(),
            }
        };
        Ok(v1::TakeResponse { taken: request.campaigns.iter().map(take).collect() })
    }

    /// A shard that this node does not answer for, with who may.
    pub(super) fn silent(&self, shard: ShardId, reason: String) -> v1::SilentShard {
        let leader = self.shards.leader(shard).filter(|leader| *leader != self.me).unwrap_or(0);
        v1::SilentShard { shard: shard.0, leader, reason }
    }
}
