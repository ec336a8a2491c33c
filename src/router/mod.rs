//! Any node answers any client: the router finds who owns what, asks in parallel under a deadline, and merges.
//!
//! Requests arrive validated (`api` did that); answers are honest: what is missing or unknown is said.
//!
//! - `shards`, `catalog`: who leads what, which tracks are promoted by whom; `follow` keeps them in step.
//! - `score`: what this node can do for a request; `fanout`: what others are asked.
//! - `outcome`, `campaigns`, `reads`: outcomes, writes and reads, wherever a shard's leader is.
//! - `serve`: what this node answers to other nodes' routers.

mod campaigns;
mod catalog;
mod fanout;
mod follow;
mod outcome;
mod reads;
mod score;
mod serve;
mod settle;
mod shards;

use std::{collections::BTreeMap, sync::Arc};

use andante_cluster::{NodeId, ShardId, env::Clock, host::Host};
use arc_swap::ArcSwap;
use futures::future::join_all;
use parking_lot::Mutex;
use tokio::{sync::watch, task::JoinHandle, time::Instant};

pub use self::{
    catalog::Catalog,
    follow::start as follow,
    serve::{RouterSlot, routes},
    shards::Shards,
};
use self::{catalog::Entry, score::Scored};
use crate::{
    actor::{Cell, NodeClock, Proposer, Shard},
    campaign::{proto, token::TokenKeys},
    metrics::Metrics,
    peer::Links,
    settings::Settings,
    status::CatalogLag,
    v1,
};

/// The router of one node.
pub struct Router {
    me: NodeId,
    pub(crate) host: Arc<Host>,
    pub(crate) shards: Shards,
    pub(crate) catalog: Arc<Catalog>,
    pub(crate) links: Links,
    pub(crate) keys: ArcSwap<TokenKeys>,
    pub(crate) clock: Arc<NodeClock>,
    pub(crate) settings: Arc<Settings>,
    pub(crate) metrics: Arc<Metrics>,
    /// It was in step with every shard once.
    ready: watch::Sender<bool>,
    proposers: Mutex<Vec<JoinHandle<()>>>,
}

/// What a router is made of.
pub struct RouterParts {
    /// The node.
    pub host: Arc<Host>,
    /// Its shards, in the order of their ids.
    pub shards: Vec<Arc<Shard>>,
    /// Fed by the replicas.
    pub catalog: Arc<Catalog>,
    /// Keys of delivery tokens.
    pub keys: TokenKeys,
    /// The node's clock.
    pub clock: Arc<NodeClock>,
    /// For durations.
    pub source: Arc<dyn Clock>,
    /// Settings.
    pub settings: Arc<Settings>,
    /// Metrics.
    pub metrics: Arc<Metrics>,
}

/// A campaign as one consistent read gives it.
#[derive(Debug, Clone)]
pub struct CampaignView {
    /// Settings, state, ledger.
    pub campaign: Arc<proto::Campaign>,
    /// Open allowances.
    pub open_allowances: u32,
    /// Why it does not deliver as planned, in words; empty if nothing stands in its way.
    pub explanation: String,
}

/// Pacing of a campaign, now.
#[derive(Debug, Clone)]
pub struct PacingView {
    /// The campaign.
    pub view: CampaignView,
    /// UTC milliseconds.
    pub now_ms: u64,
    /// What the plan wanted billed by now, micros.
    pub planned_micros: u64,
    /// The multiplier.
    pub mu: f64,
    /// Learned probability that a placement becomes billable.
    pub billable_share: f64,
    /// Money in open allowances that is not expected to be billed, micros.
    pub stranded_micros: u64,
}

/// Which campaigns to list.
#[derive(Debug, Clone, Default)]
pub struct ListFilter {
    /// Only this owner's.
    pub owner: Option<String>,
    /// Only those with this label (and value).
    pub label: Option<(String, Option<String>)>,
    /// Only those in this state.
    pub state: Option<proto::State>,
}

/// Why a read has no answer. Nothing was changed.
#[derive(Debug, Clone, thiserror::Error)]
pub enum ReadError {
    /// Nobody could answer with certainty. Retry after a while.
    #[error("not read: {reason}")]
    Unavailable {
        /// In words.
        reason: String,
        /// When a retry makes sense.
        retry_after_ms: u64,
    },
    /// Too much in flight. Retry after a while.
    #[error("too many reads in flight")]
    Overloaded {
        /// When a retry makes sense.
        retry_after_ms: u64,
    },
}

/// Why a write did not succeed.
#[derive(Debug, Clone, thiserror::Error)]
pub enum WriteError {
    /// The book refused it; nothing changed. The caller must change the request.
    #[error("{detail}")]
    Refused {
        /// Why.
        refusal: proto::Refusal,
        /// In words.
        detail: String,
        /// With BUDGET_TOO_LOW: the lowest budget possible now.
        lowest_budget_micros: u64,
        /// The campaign as it is, if it exists.
        campaign: Option<Box<proto::Campaign>>,
    },
    /// This very request was applied before, and its campaign is gone by now.
    #[error("this request was done before, and the campaign is gone by now")]
    Gone,
    /// Surely not applied; nobody's fault. Retry after a while.
    #[error("not applied: {reason}")]
    Unavailable {
        /// In words.
        reason: String,
        /// When a retry makes sense.
        retry_after_ms: u64,
    },
    /// Surely not applied: there is no room, and a retry alone won't make any.
    #[error("not applied: {reason}")]
    Full {
        /// In words, with what helps.
        reason: String,
    },
    /// Too much in flight; surely not applied. Retry after a while.
    #[error("too many writes in flight")]
    Overloaded {
        /// When a retry makes sense.
        retry_after_ms: u64,
    },
    /// May or may not have been applied. Retry with the same id to learn it.
    #[error("the write's fate is unknown; repeat it with the same request id to learn it")]
    Unknown,
}

impl Router {
    /// A router that knows of no leader and no campaign elsewhere yet: [`follow`] tells it.
    pub fn new(parts: RouterParts) -> Arc<Self> {
        let RouterParts { host, shards, catalog, keys, clock, source, settings, metrics } = parts;
        let me = host.identity().node_id;
        let mut proposers = Vec::new();
        let shards = Shards::new(shards.into_iter().map(|shard| {
            let (proposer, task) = Proposer::start(host.clone(), shard.id, metrics.clone());
            proposers.push(task);
            catalog.set_out_of_step(shard.id);
            (shard, proposer)
        }));
        let dial = {
            let host = host.clone();
            Arc::new(move |node| host.peer(node))
        };
        let links = Links::new(dial, source, metrics.clone());
        let router = Arc::new(Self {
            me,
            host,
            shards,
            catalog,
            links,
            keys: ArcSwap::from_pointee(keys),
            clock,
            settings,
            metrics,
            ready: watch::Sender::new(false),
            proposers: Mutex::new(proposers),
        });
        router.host.set_answerer(settle::Counterpart(Arc::downgrade(&router)));
        router
    }

    /// Scores the candidates of a valid request and takes tokens for at most `slots` winners before `deadline`.
    /// Always answers; what is missing is named in the coverage: everything, if the deadline has passed already.
    pub async fn score(&self, request: &v1::ScoreRequest, deadline: Instant) -> v1::ScoreResponse {
        match self.score_here(request, deadline) {
            Scored::Whole(response) => response,
            // Boxed: what is answered here must not pay for the room that the rest takes.
            Scored::Partly(part) => Box::pin(self.score_elsewhere(request, *part, deadline)).await,
        }
    }

    /// Whether requests make sense: it has been in step with every shard once. The reason if not.
    pub(crate) fn ready(&self) -> Result<(), String> {
        if *self.ready.borrow() {
            return Ok(());
        }
        let missing = self.catalog.out_of_step();
        match missing.iter().next() {
            Some(shard) => Err(format!("{} shards are not in step yet, shard {shard} first", missing.len())),
            None => Ok(()),
        }
    }

    /// Resolves when requests make sense.
    pub(crate) async fn until_ready(&self) {
        // The sender lives as long as the router.
        let mut ready = self.ready.subscribe();
        let _ready = ready.wait_for(|ready| *ready).await;
    }

    /// How far the catalogs of all nodes are behind; a node that does not answer is left out.
    pub async fn catalog_lags(&self, deadline: Instant) -> BTreeMap<NodeId, CatalogLag> {
        let nodes: Vec<NodeId> = self.host.directory().borrow().nodes.keys().copied().collect();
        let lag = |node: NodeId| async move {
            if node == self.me {
                return Some((node, self.own_lag()));
            }
            let vitals = self.links.vitals(node, deadline).await.ok()?;
            let (shards_behind, entries) = (vitals.catalog_shards_behind, vitals.catalog_lag_entries);
            Some((node, CatalogLag { shards_behind, entries }))
        };
        join_all(nodes.into_iter().map(lag)).await.into_iter().flatten().collect()
    }

    /// How far the catalog of this node is behind.
    fn own_lag(&self) -> CatalogLag {
        let entries = self.catalog_lag().filter_map(|(_, lag)| lag).max().unwrap_or(0);
        CatalogLag { shards_behind: self.catalog.out_of_step().len(), entries }
    }

    /// How many log entries the catalog is behind each shard; `None`: not in step.
    pub fn catalog_lag(&self) -> impl Iterator<Item = (ShardId, Option<u64>)> + '_ {
        (0..self.shards.count() as u32).map(ShardId).map(|shard| {
            let lag = match self.position(shard) {
                Some((applied, last)) if self.catalog.is_in_step(shard) => Some(last.saturating_sub(applied)),
                _ => self.catalog.lag_entries(shard),
            };
            (shard, lag)
        })
    }

    /// Settles nothing more. What was given to it before may have an unknown fate.
    pub(crate) fn stop(&self) {
        self.proposers.lock().drain(..).for_each(|task| task.abort());
    }

    /// A shard is in step; once all are, the node is ready for good.
    fn first_sync(&self) {
        if self.catalog.out_of_step().is_empty() {
            self.ready.send_replace(true);
        }
    }

    /// Where the replica here is in its shard's log: applied, and seen.
    fn position(&self, shard: ShardId) -> Option<(u64, u64)> {
        if !self.host.has_replica(shard) {
            return None;
        }
        let status = self.host.status(shard);
        let applied = status.applied.unwrap_or(0);
        Some((applied, status.last_log.unwrap_or(0).max(applied)))
    }

    /// A campaign's cell on this node.
    fn cell(&self, entry: &Entry) -> Option<Arc<Cell>> {
        match entry {
            Entry::Here(cell) => Some(cell.clone()),
            Entry::There(elsewhere) => self.shards.get(elsewhere.shard)?.cell(elsewhere.key),
        }
    }
}
