//! `CampaignService`, but for the import and the watch.

use std::{pin::Pin, sync::Arc};

use futures::Stream;
use tokio::time::Instant;
use tonic::{Request, Response, Status, Streaming};

use super::{call::Api, error::ApiError, import, mask, page, spec, validate, warnings::warnings, watch};
use crate::{
    campaign::{
        proto,
        spec::{validate_new, validate_update},
        version::Version,
    },
    metrics::Method,
    router::{CampaignView, ListFilter, WriteError},
    v1,
};

/// An update without an etag is made again this often when the campaign changed in between.
const UPDATE_TRIES: u32 = 5;

pub(crate) struct CampaignHandler(pub(crate) Arc<Api>);

#[tonic::async_trait]
impl v1::campaign_service_server::CampaignService for CampaignHandler {
    type WatchPacingStream = Pin<Box<dyn Stream<Item = Result<v1::WatchPacingResponse, Status>> + Send>>;

    async fn create_campaign(
        &self,
        request: Request<v1::CreateCampaignRequest>,
    ) -> Result<Response<v1::CreateCampaignResponse>, Status> {
        let api = &*self.0;
        let (metadata, _, request) = request.into_parts();
        let request = &request;
        api.answer(Method::CreateCampaign, &metadata, &request.request_id, |deadline| async move {
            let wire = validate::create(request).map_err(ApiError::Invalid)?;
            let spec = new_spec(wire, api.node.now_ms())?;
            let warnings = warnings(&spec, api.node.cluster_settings().skew_margin_ms);
            let view = api.node.router().create(&request.request_id, spec, deadline).await?;
            Ok(v1::CreateCampaignResponse { campaign: Some(spec::campaign(&view)), warnings })
        })
        .await
    }

    async fn get_campaign(
        &self,
        request: Request<v1::GetCampaignRequest>,
    ) -> Result<Response<v1::GetCampaignResponse>, Status> {
        let api = &*self.0;
        let (metadata, _, request) = request.into_parts();
        let name = &request.name;
        api.answer(Method::GetCampaign, &metadata, "", |deadline| async move {
            validate::name(name).map_err(ApiError::Invalid)?;
            let view = find(api, name, deadline).await?;
            Ok(v1::GetCampaignResponse { campaign: Some(spec::campaign(&view)) })
        })
        .await
    }

    async fn list_campaigns(
        &self,
        request: Request<v1::ListCampaignsRequest>,
    ) -> Result<Response<v1::ListCampaignsResponse>, Status> {
        let api = &*self.0;
        let (metadata, _, request) = request.into_parts();
        let request = &request;
        api.answer(Method::ListCampaigns, &metadata, "", |deadline| async move {
            let limit = validate::list(request).map_err(ApiError::Invalid)?;
            let after = page::after(request)?;
            let (views, more) = api.node.router().list(&filter(request), &after, limit, deadline).await?;
            let campaigns: Vec<v1::Campaign> = views.iter().map(spec::campaign).collect();
            let last = campaigns.last().and_then(|c| c.spec.as_ref()).filter(|_| more);
            let next_page_token = last.map_or(String::new(), |spec| page::next(request, &spec.name));
            Ok(v1::ListCampaignsResponse { campaigns, next_page_token })
        })
        .await
    }

    async fn update_campaign(
        &self,
        request: Request<v1::UpdateCampaignRequest>,
    ) -> Result<Response<v1::UpdateCampaignResponse>, Status> {
        let api = &*self.0;
        let (metadata, _, request) = request.into_parts();
        let request = &request;
        api.answer(Method::UpdateCampaign, &metadata, &request.request_id, |deadline| async move {
            let (view, warnings) = update(api, request, deadline).await?;
            Ok(v1::UpdateCampaignResponse { campaign: Some(spec::campaign(&view)), warnings })
        })
        .await
    }

    async fn pause_campaign(
        &self,
        request: Request<v1::PauseCampaignRequest>,
    ) -> Result<Response<v1::PauseCampaignResponse>, Status> {
        let (metadata, _, v1::PauseCampaignRequest { name, etag, request_id }) = request.into_parts();
        let change = Change { method: Method::PauseCampaign, state: proto::State::Paused, name, etag, request_id };
        let campaign = change.make(&self.0, &metadata).await?;
        Ok(campaign.map(|campaign| v1::PauseCampaignResponse { campaign }))
    }

    async fn resume_campaign(
        &self,
        request: Request<v1::ResumeCampaignRequest>,
    ) -> Result<Response<v1::ResumeCampaignResponse>, Status> {
        let (metadata, _, v1::ResumeCampaignRequest { name, etag, request_id }) = request.into_parts();
        let change = Change { method: Method::ResumeCampaign, state: proto::State::Active, name, etag, request_id };
        let campaign = change.make(&self.0, &metadata).await?;
        Ok(campaign.map(|campaign| v1::ResumeCampaignResponse { campaign }))
    }

    async fn end_campaign(
        &self,
        request: Request<v1::EndCampaignRequest>,
    ) -> Result<Response<v1::EndCampaignResponse>, Status> {
        let (metadata, _, v1::EndCampaignRequest { name, etag, request_id }) = request.into_parts();
        let change = Change { method: Method::EndCampaign, state: proto::State::Ended, name, etag, request_id };
        let campaign = change.make(&self.0, &metadata).await?;
        Ok(campaign.map(|campaign| v1::EndCampaignResponse { campaign }))
    }

    async fn delete_campaign(
        &self,
        request: Request<v1::DeleteCampaignRequest>,
    ) -> Result<Response<v1::DeleteCampaignResponse>, Status> {
        let (metadata, _, v1::DeleteCampaignRequest { name, etag, request_id }) = request.into_parts();
        let change = Change { method: Method::DeleteCampaign, state: proto::State::Deleting, name, etag, request_id };
        let campaign = change.make(&self.0, &metadata).await?;
        Ok(campaign.map(|campaign| v1::DeleteCampaignResponse { campaign }))
    }

    async fn import_campaigns(
        &self,
        request: Request<Streaming<v1::ImportCampaignsRequest>>,
    ) -> Result<Response<v1::ImportCampaignsResponse>, Status> {
        let api = &*self.0;
        let (metadata, _, requests) = request.into_parts();
        api.answer(Method::ImportCampaigns, &metadata, "", |deadline| import::run(api, requests, deadline)).await
    }

    async fn watch_pacing(
        &self,
        request: Request<v1::WatchPacingRequest>,
    ) -> Result<Response<Self::WatchPacingStream>, Status> {
        let api = &self.0;
        let (metadata, _, request) = request.into_parts();
        let ends = &metadata;
        api.answer(Method::WatchPacing, &metadata, "", |deadline| async move {
            let stream = watch::start(Arc::clone(api), request, ends, deadline).await?;
            Ok(Box::pin(stream) as Self::WatchPacingStream)
        })
        .await
    }
}

/// Complete, valid settings of a new campaign.
pub(super) fn new_spec(wire: &v1::CampaignSpec, now_ms: u64) -> Result<proto::Spec, ApiError> {
    let spec = spec::from_wire(wire, now_ms).map_err(ApiError::Invalid)?;
    validate_new(&spec, now_ms).map_err(|errors| ApiError::Invalid(spec::violations(errors)))?;
    Ok(spec)
}

async fn find(api: &Api, name: &str, deadline: Instant) -> Result<CampaignView, ApiError> {
    let found = api.node.router().campaign(name, deadline).await?;
    found.ok_or_else(|| ApiError::NotFound(name.to_owned()))
}

fn filter(request: &v1::ListCampaignsRequest) -> ListFilter {
    let label = match request.label.split_once('=') {
        Some((key, value)) => Some((key.to_owned(), Some(value.to_owned()))),
        None if request.label.is_empty() => None,
        None => Some((request.label.clone(), None)),
    };
    ListFilter {
        owner: Some(request.owner.clone()).filter(|owner| !owner.is_empty()),
        label,
        state: spec::state_from_wire(request.state()),
    }
}

/// Reads, merges and writes. Without an etag the caller wants the change whatever is there, so a change in between
/// only means another try.
async fn update(
    api: &Api,
    request: &v1::UpdateCampaignRequest,
    deadline: Instant,
) -> Result<(CampaignView, Vec<String>), ApiError> {
    let (new, expected) = validate::update(request).map_err(ApiError::Invalid)?;
    let paths = request.update_mask.as_ref().map_or(&[][..], |mask| &mask.paths);
    mask::check(paths).map_err(ApiError::Invalid)?;
    let mut tries = 0;
    loop {
        tries += 1;
        let view = find(api, &new.name, deadline).await?;
        // Every campaign in the book has settings.
        let old = view.campaign.spec.as_ref().ok_or(ApiError::Internal)?;
        let now_ms = api.node.now_ms();
        let merged = mask::merge(spec::to_wire(old), new, paths);
        let spec = spec::from_wire(&merged, now_ms).map_err(ApiError::Invalid)?;
        validate_update(old, &spec, now_ms).map_err(|errors| ApiError::Invalid(spec::violations(errors)))?;
        let warnings = warnings(&spec, api.node.cluster_settings().skew_margin_ms);
        let from = if expected == Version::ANY { Version::of(&view.campaign) } else { expected };
        match api.node.router().update(&request.request_id, spec, from, deadline).await {
            Ok(view) => return Ok((view, warnings)),
            Err(WriteError::Refused { refusal: proto::Refusal::StaleRevision, .. })
                if expected == Version::ANY && tries < UPDATE_TRIES => {}
            Err(error) => return Err(error.into()),
        }
    }
}

/// Pause, resume, end or delete.
struct Change {
    method: Method,
    state: proto::State,
    name: String,
    etag: String,
    request_id: String,
}

impl Change {
    /// The campaign afterwards; `None`: it is gone.
    async fn make(
        &self,
        api: &Api,
        metadata: &tonic::metadata::MetadataMap,
    ) -> Result<Response<Option<v1::Campaign>>, Status> {
        let Change { method, state, name, etag, request_id } = self;
        api.answer(*method, metadata, request_id, |deadline| async move {
            let expected = validate::state_change(name, etag, request_id).map_err(ApiError::Invalid)?;
            let view = api.node.router().set_state(request_id, name, *state, expected, deadline).await?;
            Ok(view.as_ref().map(spec::campaign))
        })
        .await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_empty_filter_lists_all() {
        let all = filter(&v1::ListCampaignsRequest::default());
        assert!(all.owner.is_none() && all.label.is_none() && all.state.is_none());
    }

    #[test]
    fn filters_are_read() {
        let request = |label: &str| v1::ListCampaignsRequest {
            owner: "o".into(),
            label: label.into(),
            state: v1::CampaignState::Ended as i32,
            ..Default::default()
        };
        let key = filter(&request("genre"));
        assert_eq!((key.owner.as_deref(), key.state), (Some("o"), Some(proto::State::Ended)));
        assert_eq!(key.label, Some(("genre".into(), None)));
        assert_eq!(filter(&request("genre=jazz")).label, Some(("genre".into(), Some("jazz".into()))));
        assert_eq!(filter(&request("genre=")).label, Some(("genre".into(), Some(String::new()))));
    }

    #[test]
    fn new_settings_are_complete_or_every_bad_field_is_named() {
        let wire = v1::CampaignSpec { name: "A".into(), end_ms: 5, budget_micros: 1, ..Default::default() };
        let Err(ApiError::Invalid(bad)) = new_spec(&wire, 10) else { panic!("accepted") };
        let fields: Vec<&str> = bad.iter().map(|v| v.field.as_str()).collect();
        for field in ["spec.name", "spec.owner", "spec.track_ids", "spec.end_ms", "spec.price_micros"] {
            assert!(fields.contains(&field), "{field} in {fields:?}");
        }
    }
}
