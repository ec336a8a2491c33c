//! `AccessService`.

use std::sync::Arc;

use andante_cluster::{
    host::{ProposeError, SettingError},
    security::SecurityError,
};
use tonic::{Request, Response, Status};

use super::{call::Api, error::ApiError};
use crate::{
    access::{AccessError, Grant, NewToken, Role, Roles, TokenInfo},
    metrics::Method,
    node::RotateError,
    router::WriteError,
    v1,
};

pub(crate) struct AccessHandler(pub(crate) Arc<Api>);

#[tonic::async_trait]
impl v1::access_service_server::AccessService for AccessHandler {
    async fn create_token(
        &self,
        request: Request<v1::CreateTokenRequest>,
    ) -> Result<Response<v1::CreateTokenResponse>, Status> {
        let api = &*self.0;
        let (metadata, extensions, request) = request.into_parts();
        api.answer(Method::CreateToken, &metadata, "", |deadline| async move {
            let roles = roles(&request.roles)?;
            let new = NewToken { name: request.name, roles, ttl_ms: request.ttl_ms };
            let (token, info) = api.node.access().create(new, api.node.now_ms(), deadline).await?;
            let (id, name) = (id(info.id), &info.name);
            tracing::info!(%id, %name, roles = ?info.roles, by = by(&extensions), "access token made");
            Ok(v1::CreateTokenResponse { token: token.reveal(), access_token: Some(shown(&info)) })
        })
        .await
    }

    async fn list_tokens(
        &self,
        request: Request<v1::ListTokensRequest>,
    ) -> Result<Response<v1::ListTokensResponse>, Status> {
        let api = &*self.0;
        api.answer(Method::ListTokens, request.metadata(), "", |_| async move {
            let access_tokens = api.node.access().list().iter().map(|info| shown(info)).collect();
            Ok(v1::ListTokensResponse { access_tokens })
        })
        .await
    }

    async fn revoke_token(
        &self,
        request: Request<v1::RevokeTokenRequest>,
    ) -> Result<Response<v1::RevokeTokenResponse>, Status> {
        let api = &*self.0;
        let (metadata, extensions, request) = request.into_parts();
        api.answer(Method::RevokeToken, &metadata, "", |deadline| async move {
            let id = crate::access::parse_id(&request.id)
                .ok_or_else(|| ApiError::invalid("id", "must have 16 hexadecimal digits"))?;
            let info = api.node.access().revoke(id, api.node.now_ms(), deadline).await?;
            tracing::info!(id = request.id, name = info.name, by = by(&extensions), "access token revoked");
            Ok(v1::RevokeTokenResponse { access_token: Some(shown(&info)) })
        })
        .await
    }

    async fn create_join_token(
        &self,
        request: Request<v1::CreateJoinTokenRequest>,
    ) -> Result<Response<v1::CreateJoinTokenResponse>, Status> {
        let api = &*self.0;
        let (metadata, extensions, request) = request.into_parts();
        api.answer(Method::CreateJoinToken, &metadata, "", |deadline| async move {
            let made = api.node.access().create_join_token(request.ttl_ms, api.node.now_ms(), deadline).await;
            let (token, expires_ms) = made?;
            tracing::info!(expires_ms, by = by(&extensions), "join token made");
            Ok(v1::CreateJoinTokenResponse { join_token: token.encode(), expires_ms })
        })
        .await
    }

    async fn get_authority(
        &self,
        request: Request<v1::GetAuthorityRequest>,
    ) -> Result<Response<v1::GetAuthorityResponse>, Status> {
        let api = &*self.0;
        api.answer(Method::GetAuthority, request.metadata(), "", |_| async move {
            Ok(v1::GetAuthorityResponse { certificate_pem: api.node.access().authority_pem()? })
        })
        .await
    }

    async fn rotate_token_keys(
        &self,
        request: Request<v1::RotateTokenKeysRequest>,
    ) -> Result<Response<v1::RotateTokenKeysResponse>, Status> {
        let api = &*self.0;
        let (metadata, extensions, _) = request.into_parts();
        api.answer(Method::RotateTokenKeys, &metadata, "", |deadline| async move {
            let rotation = api.node.rotate_token_keys(deadline).await?;
            tracing::info!(next = rotation.next, by = by(&extensions), "a rotation of the token keys was asked for");
            Ok(v1::RotateTokenKeysResponse {
                current: rotation.current.into(),
                next: rotation.next.into(),
                mints_from_ms: rotation.mints_from_ms,
            })
        })
        .await
    }
}

fn roles(asked: &[i32]) -> Result<Roles, ApiError> {
    let role = |(i, role): (usize, &i32)| match v1::Role::try_from(*role) {
        Ok(v1::Role::Score) => Ok(Role::Score),
        Ok(v1::Role::Outcome) => Ok(Role::Outcome),
        Ok(v1::Role::Campaign) => Ok(Role::Campaign),
        Ok(v1::Role::Operator) => Ok(Role::Operator),
        Ok(v1::Role::Unspecified) | Err(_) => Err(ApiError::invalid(format!("roles[{i}]"), "must be a known role")),
    };
    asked.iter().enumerate().map(role).collect()
}

fn shown(info: &TokenInfo) -> v1::AccessToken {
    let role = |role| match role {
        Role::Score => v1::Role::Score,
        Role::Outcome => v1::Role::Outcome,
        Role::Campaign => v1::Role::Campaign,
        Role::Operator => v1::Role::Operator,
    };
    v1::AccessToken {
        id: id(info.id),
        name: info.name.clone(),
        roles: info.roles.iter().map(|each| role(each).into()).collect(),
        created_ms: info.created_ms,
        expires_ms: info.expires_ms,
    }
}

fn id(id: u64) -> String {
    crate::access::show_id(id)
}

/// Who asked, for the log.
pub(super) fn by(extensions: &tonic::Extensions) -> String {
    extensions.get::<Grant>().map_or_else(|| "anybody: authentication is off".to_owned(), Grant::to_string)
}

impl From<SettingError> for ApiError {
    fn from(error: SettingError) -> Self {
        match error {
            SettingError::Propose(error) => error.into(),
            SettingError::Mismatch { .. } => {
                let reason = "others changed the same thing at the same time".to_owned();
                WriteError::Unavailable { reason, retry_after_ms: CONFLICT_RETRY_MS }.into()
            }
            SettingError::Refused(why) => {
                tracing::error!(why, "the directory refused a setting");
                ApiError::Internal
            }
        }
    }
}

/// When a retry makes sense after a conflict or without a leader of the directory: a write takes milliseconds, an
/// election a second.
const CONFLICT_RETRY_MS: u64 = 50;
const LEADER_RETRY_MS: u64 = 200;

impl From<ProposeError> for ApiError {
    fn from(error: ProposeError) -> Self {
        let text = error.to_string();
        match error {
            ProposeError::Unknown(_) => WriteError::Unknown.into(),
            ProposeError::Overloaded => WriteError::Overloaded { retry_after_ms: CONFLICT_RETRY_MS }.into(),
            ProposeError::Stopping => ApiError::Draining,
            ProposeError::NotLeader { .. } | ProposeError::Unavailable(_) => {
                WriteError::Unavailable { reason: text, retry_after_ms: LEADER_RETRY_MS }.into()
            }
            ProposeError::TooLarge { .. } => ApiError::Internal,
        }
    }
}

impl From<AccessError> for ApiError {
    fn from(error: AccessError) -> Self {
        match error {
            AccessError::Invalid { field, reason } => ApiError::invalid(field, reason),
            AccessError::Setting(error) => error.into(),
            AccessError::Undecodable(error) => {
                tracing::error!(%error, "the access tokens in the directory do not decode");
                ApiError::Internal
            }
            AccessError::Security(SecurityError::Refused(why)) => ApiError::TooManyTokens(why),
            AccessError::Security(error) => {
                tracing::error!(%error, "the cluster's authority or its join secrets can't be used");
                ApiError::Internal
            }
            AccessError::NoAuthority => ApiError::NoAuthority,
            AccessError::NotFound => ApiError::NoSuchToken,
            AccessError::Full => ApiError::TooManyTokens(error.to_string()),
            AccessError::LastOperator => ApiError::LastOperator(error.to_string()),
        }
    }
}

impl From<RotateError> for ApiError {
    fn from(error: RotateError) -> Self {
        match error {
            RotateError::TooManyKeys => ApiError::TooManyKeys(error.to_string()),
            RotateError::Setting(error) => error.into(),
            RotateError::Unusable(why) => {
                tracing::error!(why, "the token keys in the directory can't be used");
                ApiError::Internal
            }
        }
    }
}
