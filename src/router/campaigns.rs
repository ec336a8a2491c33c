//! Writes of campaigns, wherever their shard's leader is.

use std::sync::Arc;

use andante_cluster::{ShardId, host::ProposeError, mutant};
use bytes::Bytes;
use prost::Message;
use tokio::time::Instant;

use super::{CampaignView, Router, WriteError, reads::Pauses};
use crate::campaign::{
    proto::{self, Refusal, command::Kind},
    version::Version,
};
use crate::feature;

/// A pause that lets a leader come back or a queue drain.
const RETRY_AFTER_MS: u64 = 200;

impl Router {
    /// Creates a campaign from normalised, valid settings. Idempotent by `request_id`.
    ///
    /// # Errors
    /// See [`WriteError`].
    pub async fn create(
        &self,
        request_id: &str,
        spec: proto::Spec,
        deadline: Instant,
    ) -> Result<CampaignView, WriteError> {
        if let Err(full) = self.admit_new_campaign() {
            // A retry of a create that filled the node must learn that it succeeded.
            match self.campaign(&spec.name, deadline).await {
                Ok(Some(_)) => {}
                Ok(None) | Err(_) => return Err(full),
            }
        }
        let shard = self.shard_of(&spec.name);
        let create = proto::Create { request_id: request_id.into(), spec: Some(spec), now_ms: self.clock.now_ms() };
        let campaign = self.write(shard, Kind::Create(create), request_id, deadline).await?;
        campaign.map(|campaign| self.view(campaign)).ok_or(WriteError::Gone)
    }

    /// Replaces a campaign's settings, from the version that is `expected`.
    ///
    /// # Errors
    /// See [`WriteError`].
    pub async fn update(
        &self,
        request_id: &str,
        spec: proto::Spec,
        expected: Version,
        deadline: Instant,
    ) -> Result<CampaignView, WriteError> {
        let shard = self.shard_of(&spec.name);
        let update = proto::Update {
            request_id: request_id.into(),
            spec: Some(spec),
            expected_revision: expected.revision,
            now_ms: self.clock.now_ms(),
            expected_incarnation: expected.incarnation,
        };
        let change = feature::settings_change(self.feature_level(), update);
        let campaign = self.write(shard, change, request_id, deadline).await?;
        Ok(self.view_after(campaign.ok_or(WriteError::Gone)?, deadline).await)
    }

    /// Pauses, resumes, ends or deletes what is `expected`. `None`: it was deleted and is gone.
    ///
    /// # Errors
    /// See [`WriteError`].
    pub async fn set_state(
        &self,
        request_id: &str,
        name: &str,
        state: proto::State,
        expected: Version,
        deadline: Instant,
    ) -> Result<Option<CampaignView>, WriteError> {
        let set = proto::SetState {
            request_id: request_id.into(),
            name: name.into(),
            state: state.into(),
            expected_revision: expected.revision,
            now_ms: self.clock.now_ms(),
            expected_incarnation: expected.incarnation,
            remember_unchanged: false,
        };
        let change = feature::state_change(self.feature_level(), set);
        match self.write(self.shard_of(name), change, request_id, deadline).await? {
            Some(campaign) => Ok(Some(self.view_after(campaign, deadline).await)),
            None if state == proto::State::Deleting => Ok(None),
            None => Err(WriteError::Gone),
        }
    }

    /// Commands of this feature level and below may be proposed.
    fn feature_level(&self) -> u32 {
        self.host.directory().borrow().cluster.as_ref().map_or(1, |cluster| cluster.feature_level)
    }

    /// What is known of a campaign that was just written. Its leader knows more than the reply to the write; if it
    /// does not say in time, the reply is enough.
    async fn view_after(&self, campaign: proto::Campaign, deadline: Instant) -> CampaignView {
        let shard = self.host.shard_of(campaign.key);
        if self.shards.leader(shard) != Some(self.me) {
            let name = campaign.spec.as_ref().map(|spec| spec.name.as_str()).unwrap_or_default();
            if let Ok(Some(view)) = self.campaign(name, deadline).await
                && view.campaign.incarnation == campaign.incarnation
                && view.campaign.revision == campaign.revision
            {
                return CampaignView { campaign: Arc::new(campaign), ..view };
            }
        }
        self.view(campaign)
    }

    /// New campaigns need room in memory and on disk; what frees either is never refused.
    fn admit_new_campaign(&self) -> Result<(), WriteError> {
        if self.host.disk_low() {
            let reason = "the node's disk is nearly full; end or delete campaigns, or add space".into();
            return Err(WriteError::Full { reason });
        }
        let max = self.settings.max_campaigns;
        if self.catalog.campaigns() as u64 >= max {
            let reason = format!("the node has {max} campaigns, as many as settings.max_campaigns allows");
            return Err(WriteError::Full { reason });
        }
        Ok(())
    }

    /// A write with an id is made again until its fate is known: the book applies it once.
    async fn write(
        &self,
        shard: ShardId,
        kind: Kind,
        request_id: &str,
        deadline: Instant,
    ) -> Result<Option<proto::Campaign>, WriteError> {
        let command = Bytes::from(proto::Command { kind: Some(kind) }.encode_to_vec());
        let mut pauses = Pauses::default();
        let mut maybe_applied = false;
        let applied = loop {
            match Box::pin(self.host.submit(shard, command.clone(), deadline)).await {
                Ok(applied) => break applied,
                Err(ProposeError::Unknown(_)) if !request_id.is_empty() && pauses.pause(deadline).await => {
                    maybe_applied = true;
                }
                Err(ProposeError::Unknown(_)) if mutant!(UnknownSaidFailed) => {
                    return Err(WriteError::Unavailable { reason: "not done".into(), retry_after_ms: RETRY_AFTER_MS });
                }
                Err(ProposeError::Unknown(_)) => return Err(WriteError::Unknown),
                Err(_) if maybe_applied => return Err(WriteError::Unknown),
                Err(ProposeError::Overloaded) => {
                    return Err(WriteError::Overloaded { retry_after_ms: RETRY_AFTER_MS });
                }
                Err(other) => {
                    return Err(WriteError::Unavailable { reason: other.to_string(), retry_after_ms: RETRY_AFTER_MS });
                }
            }
        };
        let reply = proto::Reply::decode(applied.reply).map_err(|error| {
            // Of another build, and nonsense: what it did is not known.
            tracing::error!(%shard, %error, "a reply can't be decoded");
            WriteError::Unknown
        })?;
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
