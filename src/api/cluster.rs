//! `ClusterService`.

use std::sync::Arc;

use tonic::{Request, Response, Status};

use super::call::Api;
use crate::{metrics::Method, v1};

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
}
