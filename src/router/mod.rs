//! Any node answers any client: the router finds who owns what, asks in parallel under a deadline, and merges.
//!
//! Requests arrive validated (`api` did that); answers are honest: what is missing or unknown is said.

mod campaigns;
mod catalog;
mod outcome;
mod score;

use std::sync::Arc;

use andante_cluster::{ShardId, host::Host};
use arc_swap::ArcSwap;
use tokio::time::Instant;

pub use self::catalog::Catalog;
use crate::{
    actor::{NodeClock, Proposer, Shard},
    campaign::{proto, token::TokenKeys},
    metrics::Metrics,
    settings::Settings,
    v1,
};

/// What the router needs of a shard on this node.
pub struct LocalShard {
    /// Book and cells.
    pub shard: Arc<Shard>,
    /// Outcomes' way into its log.
    pub proposer: Proposer,
}

/// The router of one node.
pub struct Router {
    pub(crate) host: Arc<Host>,
    /// By shard id.
    pub(crate) shards: Vec<LocalShard>,
    pub(crate) catalog: Arc<Catalog>,
    pub(crate) keys: ArcSwap<TokenKeys>,
    pub(crate) clock: Arc<NodeClock>,
    pub(crate) settings: Arc<Settings>,
    pub(crate) metrics: Arc<Metrics>,
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
    /// Surely not applied; nobody's fault. Retry after a while.
    #[error("not applied: {reason}")]
    Unavailable {
        /// In words.
        reason: String,
        /// When a retry makes sense.
        retry_after_ms: u64,
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
    /// Scores the candidates of a valid request and takes tokens for at most `slots` winners before `deadline`.
    /// Always answers; what is missing is named in the coverage: everything, if the deadline has passed already.
    pub async fn score(&self, request: &v1::ScoreRequest, deadline: Instant) -> v1::ScoreResponse {
        self.score_here(request, Instant::now() < deadline)
    }

    /// Whether this node hands out a shard's tokens.
    fn leads(&self, shard: ShardId) -> bool {
        self.shards[shard.0 as usize].shard.scores()
    }
}

impl Router {
    /// How far the catalog of each node is behind.
    pub async fn catalog_lags(
        &self,
        _deadline: Instant,
    ) -> std::collections::BTreeMap<andante_cluster::NodeId, crate::status::CatalogLag> {
        Default::default()
    }
}
