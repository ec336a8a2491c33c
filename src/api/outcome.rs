//! `OutcomeService`.

use std::sync::Arc;

use tokio::time::Instant;
use tonic::{Request, Response, Status};

use super::{call::Api, error::ApiError, validate};
use crate::{metrics::Method, v1};

pub(crate) struct OutcomeHandler(pub(crate) Arc<Api>);

#[tonic::async_trait]
impl v1::outcome_service_server::OutcomeService for OutcomeHandler {
    async fn report(&self, request: Request<v1::ReportRequest>) -> Result<Response<v1::ReportResponse>, Status> {
        let api = &*self.0;
        let (metadata, _, request) = request.into_parts();
        api.answer(Method::Report, &metadata, "", |deadline| async move {
            let _room = api.admit_events(request.events.len())?;
            validate::report(&request).map_err(ApiError::Invalid)?;
            let results = report(api, request, deadline).await;
            Ok(v1::ReportResponse { results })
        })
        .await
    }
}

/// Malformed events are answered here; the others go to the router, in one piece.
async fn report(api: &Api, mut request: v1::ReportRequest, deadline: Instant) -> Vec<v1::OutcomeResult> {
    let malformed = take_malformed(&mut request.events);
    let mut results =
        if request.events.is_empty() { Vec::new() } else { api.node.router().report(&request, deadline).await };
    for (position, why) in malformed {
        api.node.metrics().outcome(v1::OutcomeStatus::InvalidEvent);
        let result = v1::OutcomeResult { status: v1::OutcomeStatus::InvalidEvent as i32, detail: why.to_owned() };
        // Positions grow, so each is where it belongs once those before it are there.
        results.insert(position.min(results.len()), result);
    }
    results
}

/// Takes the malformed events out, with their positions, in order.
fn take_malformed(events: &mut Vec<v1::OutcomeEvent>) -> Vec<(usize, &'static str)> {
    let malformed: Vec<(usize, &'static str)> =
        events.iter().enumerate().filter_map(|(i, e)| validate::event(e).err().map(|why| (i, why))).collect();
    if !malformed.is_empty() {
        events.retain(|event| validate::event(event).is_ok());
    }
    malformed
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(kind: i32, token: u8) -> v1::OutcomeEvent {
        v1::OutcomeEvent { token: vec![token], kind, stream_ms: 0 }
    }

    #[test]
    fn malformed_events_are_taken_out_with_their_positions() {
        let mut events = vec![event(0, 0), event(1, 1), event(77, 2), event(5, 3)];
        let malformed = take_malformed(&mut events);
        assert_eq!(malformed, [(0, "the kind is missing"), (2, "the kind is unknown")]);
        assert_eq!(events, [event(1, 1), event(5, 3)]);
    }

    #[test]
    fn sound_events_stay_as_they_are() {
        let mut events = vec![event(1, 1), event(2, 2)];
        assert!(take_malformed(&mut events).is_empty());
        assert_eq!(events.len(), 2);
    }
}
