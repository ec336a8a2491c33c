//! `ClusterService`.

use std::sync::Arc;

use tonic::{Request, Response, Status};
use tonic_types::FieldViolation;

use super::{
    access::by,
    call::Api,
    error::ApiError,
    validate::{self, Violations},
};
use crate::{
    metrics::Method,
    node::SettingsChangeError,
    settings::{ClusterSettings, VersionedSettings},
    v1,
};

pub(crate) struct ClusterHandler(pub(crate) Arc<Api>);

#[tonic::async_trait]
impl v1::cluster_service_server::ClusterService for ClusterHandler {
    async fn get_cluster_status(
        &self,
        request: Request<v1::GetClusterStatusRequest>,
    ) -> Result<Response<v1::GetClusterStatusResponse>, Status> {
        let api = &*self.0;
        api.answer(Method::GetClusterStatus, request.metadata(), "", |deadline| async move {
            Ok(api.node.cluster_status(deadline).await)
        })
        .await
    }

    async fn get_cluster_settings(
        &self,
        request: Request<v1::GetClusterSettingsRequest>,
    ) -> Result<Response<v1::GetClusterSettingsResponse>, Status> {
        let api = &*self.0;
        api.answer(Method::GetClusterSettings, request.metadata(), "", |_| async move {
            let (settings, etag) = shown(api.node.versioned_cluster_settings());
            Ok(v1::GetClusterSettingsResponse { settings: Some(settings), etag })
        })
        .await
    }

    async fn update_cluster_settings(
        &self,
        request: Request<v1::UpdateClusterSettingsRequest>,
    ) -> Result<Response<v1::UpdateClusterSettingsResponse>, Status> {
        let api = &*self.0;
        let (metadata, extensions, request) = request.into_parts();
        let (request, extensions) = (&request, &extensions);
        api.answer(Method::UpdateClusterSettings, &metadata, "", |deadline| async move {
            let (changes, revision) = changes(request).map_err(ApiError::Invalid)?;
            let change = |settings: &mut ClusterSettings| {
                for (field, value) in &changes {
                    settings.set(field, *value);
                }
            };
            let changed = api.node.change_cluster_settings(change, revision, deadline).await?;
            tracing::info!(settings = ?changed.settings, by = by(extensions), "the cluster's settings were set");
            let (settings, etag) = shown(changed);
            Ok(v1::UpdateClusterSettingsResponse { settings: Some(settings), etag })
        })
        .await
    }
}

fn shown(versioned: VersionedSettings) -> (v1::ClusterSettings, String) {
    let VersionedSettings { settings, revision } = versioned;
    let ClusterSettings { skew_margin_ms, close_grace_ms, retry_window_ms } = settings;
    (v1::ClusterSettings { skew_margin_ms, close_grace_ms, retry_window_ms }, revision.to_string())
}

/// The fields that a request changes, with their new values, and the revision that it starts from, if it says one. The
/// values' limits are checked together with the values that stay.
type Changes = (Vec<(&'static str, u64)>, Option<u64>);

fn changes(request: &v1::UpdateClusterSettingsRequest) -> Result<Changes, Vec<FieldViolation>> {
    let mut bad = Violations::default();
    let revision = validate::check_etag(&mut bad, &request.etag);
    let settings = request.settings.unwrap_or_default();
    bad.check(request.settings.is_some(), || "settings".into(), || "is missing".into());
    let v1::ClusterSettings { skew_margin_ms, close_grace_ms, retry_window_ms } = settings;
    let asked = ClusterSettings { skew_margin_ms, close_grace_ms, retry_window_ms }.fields();
    let paths = request.update_mask.as_ref().map_or(&[][..], |mask| &mask.paths);
    bad.check(!paths.is_empty(), || "update_mask".into(), || "must name at least one field to change".into());
    for (i, path) in paths.iter().enumerate() {
        bad.check(
            asked.iter().any(|(field, _)| field == path),
            || format!("update_mask.paths[{i}]"),
            || {
                let shown: String = path.chars().take(80).collect();
                format!("{shown:?} can't be changed; there are {}", asked.map(|(field, _)| field).join(", "))
            },
        );
    }
    bad.finish()?;
    let changes = asked.into_iter().filter(|(field, _)| paths.iter().any(|path| path == field)).collect();
    Ok((changes, Some(revision).filter(|revision| *revision != 0)))
}

impl From<SettingsChangeError> for ApiError {
    fn from(error: SettingsChangeError) -> Self {
        match error {
            SettingsChangeError::Invalid(problems) => {
                let violation = |problem: crate::settings::SettingsError| {
                    FieldViolation::new(format!("settings.{}", problem.field), problem.reason)
                };
                ApiError::Invalid(problems.into_iter().map(violation).collect())
            }
            SettingsChangeError::FeatureLevel { level } => ApiError::FeatureLevel { level, text: error.to_string() },
            SettingsChangeError::Stale { revision } => ApiError::StaleSettings { revision, text: error.to_string() },
            SettingsChangeError::Setting(error) => error.into(),
            SettingsChangeError::Unusable(why) => {
                tracing::error!(why, "the cluster's settings in the directory can't be used");
                ApiError::Internal
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use prost::Message as _;

    use super::*;

    fn asked(paths: &[&str], etag: &str) -> v1::UpdateClusterSettingsRequest {
        v1::UpdateClusterSettingsRequest {
            settings: Some(v1::ClusterSettings { skew_margin_ms: 8_000, ..Default::default() }),
            update_mask: Some(prost_types::FieldMask { paths: paths.iter().map(|path| (*path).to_owned()).collect() }),
            etag: etag.into(),
        }
    }

    #[test]
    fn only_fields_in_the_mask_change_and_zero_is_a_value() {
        let one = changes(&asked(&["skew_margin_ms"], "")).expect("is right");
        assert_eq!(one, (vec![("skew_margin_ms", 8_000)], None));
        let both = changes(&asked(&["close_grace_ms", "skew_margin_ms"], "7")).expect("is right");
        assert_eq!(both, (vec![("skew_margin_ms", 8_000), ("close_grace_ms", 0)], Some(7)));
    }

    #[test]
    fn what_is_wrong_with_a_change_is_named_by_field() {
        let fields = |request| changes(&request).unwrap_err().into_iter().map(|bad| bad.field).collect::<Vec<_>>();
        let nothing = v1::UpdateClusterSettingsRequest { etag: "x".into(), ..Default::default() };
        assert_eq!(fields(nothing), ["etag", "settings", "update_mask"]);
        assert_eq!(
            fields(asked(&["skew_margin_ms", "tick_ms", ""], "")),
            ["update_mask.paths[1]", "update_mask.paths[2]"]
        );
    }

    #[test]
    fn every_field_of_the_contract_can_be_changed() {
        let files = prost_types::FileDescriptorSet::decode(v1::FILE_DESCRIPTOR_SET).expect("decodes");
        let mut messages = files.file.iter().flat_map(|file| &file.message_type);
        let message = messages.find(|message| message.name() == "ClusterSettings").expect("is in the contract");
        let fields: Vec<&str> = message.field.iter().map(|field| field.name()).collect();
        assert_eq!(fields, ClusterSettings::default().fields().map(|(field, _)| field));
    }
}
