//! `ServerService`.

use std::{fmt::Write as _, sync::Arc};

use tonic::{Request, Response, Status};

use super::{CANDIDATES_MAX, EVENTS_MAX, MESSAGE_BYTES_MAX, PAGE_SIZE_MAX, call::Api, error::ApiError};
use crate::{
    campaign::limits::{HOLD_MAX_MS, HOLD_MIN_MS, MICROS_MAX, TRACKS_MAX},
    metrics::Method,
    node::ConfirmClockError,
    router::WriteError,
    settings::Settings,
    v1,
};

pub(crate) struct ServerHandler(pub(crate) Arc<Api>);

#[tonic::async_trait]
impl v1::server_service_server::ServerService for ServerHandler {
    async fn get_server_info(
        &self,
        request: Request<v1::GetServerInfoRequest>,
    ) -> Result<Response<v1::GetServerInfoResponse>, Status> {
        let api = &*self.0;
        api.answer(Method::GetServerInfo, request.metadata(), "", |_| async move {
            let info = api.node.info();
            Ok(v1::GetServerInfoResponse {
                version: env!("CARGO_PKG_VERSION").to_owned(),
                cluster_id: hexadecimal(&info.cluster_id),
                incarnation: info.incarnation,
                node_id: info.node_id,
                boot_id: info.boot_id,
                shards: info.shards,
                limits: Some(limits(api.node.settings())),
                clock_trusted: api.node.clock_trusted(),
                now_ms: api.node.now_ms(),
            })
        })
        .await
    }

    async fn confirm_clock(
        &self,
        request: Request<v1::ConfirmClockRequest>,
    ) -> Result<Response<v1::ConfirmClockResponse>, Status> {
        let api = &*self.0;
        let (metadata, _, request) = request.into_parts();
        api.answer(Method::ConfirmClock, &metadata, "", |_| async move {
            let confirmed = api.node.confirm_clock(request.expected_now_ms).await;
            let now_ms = confirmed.map_err(|error| match error {
                ConfirmClockError::Refused(detail) => ApiError::ClockDiffers(detail),
                ConfirmClockError::Unknown(_) => ApiError::Write(WriteError::Unknown),
            })?;
            Ok(v1::ConfirmClockResponse { now_ms })
        })
        .await
    }
}

fn limits(settings: &Settings) -> v1::Limits {
    v1::Limits {
        candidates: CANDIDATES_MAX as u32,
        events: EVENTS_MAX as u32,
        message_bytes: MESSAGE_BYTES_MAX as u64,
        tracks_per_campaign: TRACKS_MAX as u32,
        campaigns: settings.max_campaigns,
        hold_min_ms: HOLD_MIN_MS,
        hold_max_ms: HOLD_MAX_MS,
        budget_max_micros: MICROS_MAX,
        page_size: PAGE_SIZE_MAX,
        score_deadline_ms: settings.score_deadline_ms,
        report_deadline_ms: settings.report_deadline_ms,
    }
}

fn hexadecimal(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        write!(text, "{byte:02x}").expect("writing to a string failed");
        text
    })
}

#[cfg(test)]
mod tests {
    #[test]
    fn an_id_is_shown_as_hexadecimal_digits() {
        assert_eq!(super::hexadecimal(&[0, 0xab, 15]), "00ab0f");
    }
}
