//! `OutcomeService`.

use std::sync::Arc;

use tonic::{Request, Response, Status};

use super::{call::Api, error::ApiError, validate};
use crate::{metrics::Method, v1};

pub(crate) struct OutcomeHandler(pub(crate) Arc<Api>);

#[tonic::async_trait]
impl v1::outcome_service_server::OutcomeService for OutcomeHandler {
    async fn report(&self, request: Request<v1::ReportRequest>) -> Result<Response<v1::ReportResponse>, Status> {
        let api = &*self.0;
        let (metadata, _, request) = request.into_parts();
        let request = &request;
        api.answer(Method::Report, &metadata, "", |deadline| async move {
            // The request's own limits first: more events than a request may have never fit.
            validate::report(request).map_err(ApiError::Invalid)?;
            let _room = api.admit_events(request.events.len())?;
            Ok(v1::ReportResponse { results: api.node.router().report(request, deadline).await })
        })
        .await
    }
}
