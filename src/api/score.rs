//! `ScoreService`.

use std::sync::Arc;

use tonic::{Request, Response, Status};

use super::{call::Api, error::ApiError, validate};
use crate::{metrics::Method, v1};

pub(crate) struct ScoreHandler(pub(crate) Arc<Api>);

#[tonic::async_trait]
impl v1::score_service_server::ScoreService for ScoreHandler {
    async fn score(&self, request: Request<v1::ScoreRequest>) -> Result<Response<v1::ScoreResponse>, Status> {
        let api = &*self.0;
        let (metadata, _, request) = request.into_parts();
        let request = &request;
        api.answer(Method::Score, &metadata, &request.request_id, |deadline| async move {
            // Room first: under overload even looking at a request costs too much.
            let _room = api.admit_score()?;
            validate::score(request).map_err(ApiError::Invalid)?;
            Ok(api.node.router().score(request, deadline).await)
        })
        .await
    }
}
