//! Reads and writes of campaigns.

use std::sync::Arc;

use andante_cluster::{ShardId, host::ProposeError};
use prost::Message;
use tokio::time::Instant;

use super::{CampaignView, ListFilter, PacingView, Router, WriteError};
use crate::actor::{Life, Shard};
use crate::campaign::{
    book::CampaignState,
    explain::Obstacle,
    proto::{self, Refusal, command::Kind},
    token::campaign_key,
};

/// A pause that lets a leader come back or a queue drain.
const RETRY_AFTER_MS: u64 = 200;

impl Router {
    /// Creates a campaign from normalised, valid settings. Idempotent by `request_id`.
    pub async fn create(
        &self,
        request_id: &str,
        spec: proto::Spec,
        deadline: Instant,
    ) -> Result<CampaignView, WriteError> {
        // A retry of a create that filled the node must learn that it succeeded.
        if self.campaign(&spec.name).is_none() {
            self.admit_new_campaign()?;
        }
        let shard = self.shard_of(&spec.name);
        let create = proto::Create { request_id: request_id.into(), spec: Some(spec), now_ms: self.clock.now_ms() };
        let campaign = self.write(shard, Kind::Create(create), deadline).await?;
        self.existing(campaign)
    }

    /// Replaces a campaign's settings, from `expected_revision` (0: any).
    pub async fn update(
        &self,
        request_id: &str,
        spec: proto::Spec,
        expected_revision: u64,
        deadline: Instant,
    ) -> Result<CampaignView, WriteError> {
        let shard = self.shard_of(&spec.name);
        let update = proto::Update {
            request_id: request_id.into(),
            spec: Some(spec),
            expected_revision,
            now_ms: self.clock.now_ms(),
        };
        let campaign = self.write(shard, Kind::Update(update), deadline).await?;
        self.existing(campaign)
    }

    /// Pauses, resumes, ends or deletes. `None`: it is gone.
    pub async fn set_state(
        &self,
        request_id: &str,
        name: &str,
        state: proto::State,
        expected_revision: u64,
        deadline: Instant,
    ) -> Result<Option<CampaignView>, WriteError> {
        let set = proto::SetState {
            request_id: request_id.into(),
            name: name.into(),
            state: state.into(),
            expected_revision,
            now_ms: self.clock.now_ms(),
        };
        let campaign = self.write(self.shard_of(name), Kind::SetState(set), deadline).await?;
        Ok(campaign.map(|campaign| self.view(campaign)))
    }

    /// One campaign.
    pub fn campaign(&self, name: &str) -> Option<CampaignView> {
        let key = campaign_key(name);
        let shard = &self.shards[self.host.shard_of(key).0 as usize].shard;
        let record = shard.book().campaign(key).filter(|c| c.spec.name == name).map(CampaignState::to_proto)?;
        Some(self.view(record))
    }

    /// Up to `limit` campaigns with names after `after`, in name order, and whether there are more.
    pub fn list(&self, filter: &ListFilter, after: &str, limit: usize) -> (Vec<CampaignView>, bool) {
        // Each shard gives its first `limit + 1`; the first `limit` of all are among them.
        let mut records = Vec::new();
        for shard in &self.shards {
            let book = shard.shard.book();
            let matching = book.campaigns_after(Some(after)).filter(|c| filter.matches(c));
            records.extend(matching.take(limit + 1).map(CampaignState::to_proto));
        }
        let name = |record: &proto::Campaign| record.spec.as_ref().map(|spec| spec.name.clone()).unwrap_or_default();
        records.sort_by_cached_key(name);
        let more = records.len() > limit;
        records.truncate(limit);
        (records.into_iter().map(|record| self.view(record)).collect(), more)
    }

    /// A campaign's pacing.
    pub fn pacing(&self, name: &str) -> Option<PacingView> {
        let view = self.campaign(name)?;
        let shard = self.shard(&view.campaign);
        let now_ms = self.clock.now_ms();
        let cell = shard.cell(view.campaign.key)?;
        let stored = shard.book().campaign(view.campaign.key).map(|campaign| shard.pacer(campaign))?;
        let live = (cell.life() == Life::Live).then(|| cell.status());
        let (mu, billable_share) = match &live {
            Some(status) => (status.mu, status.billable_share),
            None => (stored.mu(), stored.billable_share()),
        };
        Some(PacingView {
            now_ms,
            planned_micros: stored.planned_micros(now_ms),
            mu,
            billable_share,
            stranded_micros: live.map_or(0, |status| status.stranded_micros),
            view,
        })
    }

    fn shard_of(&self, name: &str) -> ShardId {
        self.host.shard_of(campaign_key(name))
    }

    fn shard(&self, campaign: &proto::Campaign) -> &Arc<Shard> {
        &self.shards[self.host.shard_of(campaign.key).0 as usize].shard
    }

    fn existing(&self, campaign: Option<proto::Campaign>) -> Result<CampaignView, WriteError> {
        campaign.map(|campaign| self.view(campaign)).ok_or(WriteError::Unknown)
    }

    fn view(&self, campaign: proto::Campaign) -> CampaignView {
        let shard = self.shard(&campaign);
        let open_allowances = shard.book().campaign(campaign.key).map_or(0, |c| c.open.len() as u32);
        let explanation = self.explain(&campaign);
        CampaignView { campaign: Arc::new(campaign), open_allowances, explanation }
    }

    /// What keeps a campaign from its plan, in words.
    fn explain(&self, campaign: &proto::Campaign) -> String {
        match campaign.state() {
            proto::State::Paused => return "paused".into(),
            proto::State::Ended => return "ended".into(),
            proto::State::Deleting => return "being deleted: waits for its last allowance to close".into(),
            _ => {}
        }
        let Some(cell) = self.shard(campaign).cell(campaign.key) else { return String::new() };
        match cell.life() {
            Life::Quarantined => {
                "quarantined: its actor failed again and again; pause and resume it to try again".into()
            }
            Life::Failed => "its actor failed and is about to be started again".into(),
            Life::Live => cell.status().explanation,
            Life::Dormant => self.explain_dormant(campaign),
        }
    }

    /// Without an actor: what the book alone can tell.
    fn explain_dormant(&self, campaign: &proto::Campaign) -> String {
        let now_ms = self.clock.now_ms();
        let book = self.shard(campaign).book();
        let Some(state) = book.campaign(campaign.key) else { return String::new() };
        let obstacle = if now_ms < state.spec.start_ms {
            Obstacle::NotStarted
        } else if now_ms >= state.spec.end_ms {
            Obstacle::Ended
        } else if state.is_exhausted() {
            Obstacle::BudgetExhausted
        } else {
            Obstacle::NoTraffic
        };
        obstacle.to_string()
    }

    /// New campaigns need room in memory and on disk; what frees either is never refused.
    fn admit_new_campaign(&self) -> Result<(), WriteError> {
        if self.host.disk_low() {
            let reason = "the node's disk is nearly full; end or delete campaigns, or add space".into();
            return Err(WriteError::Unavailable { reason, retry_after_ms: 10_000 });
        }
        let max = self.settings.max_campaigns;
        if self.catalog.campaigns() as u64 >= max {
            let reason = format!("the node has {max} campaigns, as many as settings.max_campaigns allows");
            return Err(WriteError::Unavailable { reason, retry_after_ms: 10_000 });
        }
        Ok(())
    }

    async fn write(
        &self,
        shard: ShardId,
        kind: Kind,
        deadline: Instant,
    ) -> Result<Option<proto::Campaign>, WriteError> {
        let command = proto::Command { kind: Some(kind) }.encode_to_vec();
        let applied = self.host.propose(shard, command.into(), deadline).await.map_err(|error| match error {
            ProposeError::Unknown(_) => WriteError::Unknown,
            ProposeError::Overloaded => WriteError::Overloaded { retry_after_ms: RETRY_AFTER_MS },
            other => WriteError::Unavailable { reason: other.to_string(), retry_after_ms: RETRY_AFTER_MS },
        })?;
        let reply = proto::Reply::decode(applied.reply).expect("the book's own reply decodes");
        match reply.refusal() {
            Refusal::Unspecified => Ok(reply.campaign),
            refusal => Err(WriteError::Refused {
                refusal,
                detail: reply.detail,
                lowest_budget_micros: reply.lowest_budget_micros,
                campaign: reply.campaign.map(Box::new),
            }),
        }
    }
}

impl ListFilter {
    fn matches(&self, campaign: &CampaignState) -> bool {
        let spec = &campaign.spec;
        let owner = self.owner.as_ref().is_none_or(|owner| *owner == spec.owner);
        let state = self.state.is_none_or(|state| state == campaign.state);
        let label = self.label.as_ref().is_none_or(|(key, value)| {
            spec.labels.get(key).is_some_and(|have| value.as_ref().is_none_or(|want| want == have))
        });
        owner && state && label
    }
}
