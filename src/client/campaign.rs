//! Campaigns, the server, the cluster, and who may use it.

use std::sync::Arc;

use tokio_stream::StreamExt as _;
use tonic::{Request, Response, Status, Streaming};

use super::{Client, Service, error::CallError, retry::Kind, tries::Tries};
use crate::v1::{
    self, Campaign, CampaignSpec, access_service_client::AccessServiceClient as Access,
    campaign_service_client::CampaignServiceClient as Campaigns,
    cluster_service_client::ClusterServiceClient as Cluster, server_service_client::ServerServiceClient as Server,
};

/// A write that goes by its request id.
macro_rules! writes {
    ($($(#[$doc:meta])* $method:ident($request:ident) -> $response:ident;)*) => {$(
        $(#[$doc])*
        /// An empty `request_id` gets one, the same for all tries.
        ///
        /// # Errors
        /// See [`CallError`].
        pub async fn $method(&self, mut request: v1::$request) -> Result<v1::$response, CallError> {
            if request.request_id.is_empty() {
                request.request_id = self.new_request_id();
            }
            let send = |service, request| async move { Campaigns::new(service).$method(request).await };
            self.unary(Kind::Write, &request, send).await
        }
    )*};
}

/// A call about access, of some kind.
macro_rules! access {
    ($($(#[$doc:meta])* $method:ident($kind:ident, $request:ident) -> $response:ident;)*) => {$(
        $(#[$doc])*
        ///
        /// # Errors
        /// See [`CallError`].
        pub async fn $method(&self, request: v1::$request) -> Result<v1::$response, CallError> {
            let send = |service, request| async move { Access::new(service).$method(request).await };
            self.unary(Kind::$kind, &request, send).await
        }
    )*};
}

impl Client {
    writes! {
        /// Creates a campaign.
        create_campaign(CreateCampaignRequest) -> CreateCampaignResponse;
        /// Changes the settings named in the mask.
        update_campaign(UpdateCampaignRequest) -> UpdateCampaignResponse;
        /// Stops handing out tokens until resumed.
        pause_campaign(PauseCampaignRequest) -> PauseCampaignResponse;
        /// Goes on after a pause.
        resume_campaign(ResumeCampaignRequest) -> ResumeCampaignResponse;
        /// Ends a campaign for good.
        end_campaign(EndCampaignRequest) -> EndCampaignResponse;
        /// Removes a campaign once its last allowance has closed.
        delete_campaign(DeleteCampaignRequest) -> DeleteCampaignResponse;
    }

    /// One campaign with its ledger.
    ///
    /// # Errors
    /// See [`CallError`]; NOT_FOUND where there is none.
    pub async fn get_campaign(&self, name: &str) -> Result<Campaign, CallError> {
        let request = v1::GetCampaignRequest { name: name.to_owned() };
        let send = |service, request| async move { Campaigns::new(service).get_campaign(request).await };
        let answer: v1::GetCampaignResponse = self.unary(Kind::Read, &request, send).await?;
        answer.campaign.ok_or_else(|| CallError::Refused(Status::internal("an answer without a campaign")))
    }

    /// One page of campaigns, in the order of their names.
    ///
    /// # Errors
    /// See [`CallError`].
    pub async fn list_campaigns(
        &self,
        request: v1::ListCampaignsRequest,
    ) -> Result<v1::ListCampaignsResponse, CallError> {
        let send = |service, request| async move { Campaigns::new(service).list_campaigns(request).await };
        self.unary(Kind::Read, &request, send).await
    }

    /// Creates many campaigns. Repeated as a whole if it is interrupted: what is there with the same settings stays as it
    /// is. `sent` is told how many have gone out.
    ///
    /// # Errors
    /// See [`CallError`].
    pub async fn import_campaigns(
        &self,
        specs: Arc<[CampaignSpec]>,
        sent: impl Fn(usize) + Clone + Send + 'static,
    ) -> Result<v1::ImportCampaignsResponse, CallError> {
        let mut tries = Tries::new(self, Kind::Write, self.deadlines.import);
        loop {
            let (specs, sent) = (Arc::clone(&specs), sent.clone());
            let send = |service, _: Request<()>| async move {
                let requests = tokio_stream::iter(0..specs.len()).map(move |i| {
                    sent(i + 1);
                    v1::ImportCampaignsRequest { spec: Some(specs[i].clone()) }
                });
                // No deadline goes along: the server has one for each campaign.
                Campaigns::new(service).import_campaigns(requests).await
            };
            match tries.long_attempt((), send).await {
                Ok(answer) => return Ok(answer),
                Err((failure, status)) => tries.again(failure, status).await?,
            }
        }
    }

    /// Follows spend against plan until the campaign's end or the caller's. The stream ends with its node's; open it
    /// again then.
    ///
    /// # Errors
    /// See [`CallError`].
    pub async fn watch_pacing(
        &self,
        request: v1::WatchPacingRequest,
    ) -> Result<Streaming<v1::WatchPacingResponse>, CallError> {
        // A deadline in the request would end the whole watch.
        let send = |service: Service, request: Request<v1::WatchPacingRequest>| async move {
            Campaigns::new(service).watch_pacing(request.into_inner()).await
        };
        self.unary(Kind::Read, &request, send).await
    }

    /// Version, limits and wall clock of one of the nodes.
    ///
    /// # Errors
    /// See [`CallError`].
    pub async fn server_info(&self) -> Result<v1::GetServerInfoResponse, CallError> {
        let send = |service, request| async move { Server::new(service).get_server_info(request).await };
        self.unary(Kind::Read, &v1::GetServerInfoRequest {}, send).await
    }

    /// Confirms a node's clock. Meant for a client with one address: it is that node's clock which is confirmed.
    ///
    /// # Errors
    /// See [`CallError`].
    pub async fn confirm_clock(&self, expected_now_ms: u64) -> Result<v1::ConfirmClockResponse, CallError> {
        let send = |service, request| async move { Server::new(service).confirm_clock(request).await };
        self.unary(Kind::Write, &v1::ConfirmClockRequest { expected_now_ms }, send).await
    }

    /// The cluster as a whole, by a probe of each shard.
    ///
    /// # Errors
    /// See [`CallError`].
    pub async fn cluster_status(&self) -> Result<v1::GetClusterStatusResponse, CallError> {
        let send = |service, request| async move { Cluster::new(service).get_cluster_status(request).await };
        self.unary(Kind::Read, &v1::GetClusterStatusRequest {}, send).await
    }

    /// The cluster's settings as one of the nodes obeys them.
    ///
    /// # Errors
    /// See [`CallError`].
    pub async fn cluster_settings(&self) -> Result<v1::GetClusterSettingsResponse, CallError> {
        let send = |service, request| async move { Cluster::new(service).get_cluster_settings(request).await };
        self.unary(Kind::Read, &v1::GetClusterSettingsRequest {}, send).await
    }

    /// Changes the settings of the cluster that are named in the mask. Safe to repeat: what holds already is done.
    ///
    /// # Errors
    /// See [`CallError`].
    pub async fn update_cluster_settings(
        &self,
        request: v1::UpdateClusterSettingsRequest,
    ) -> Result<v1::UpdateClusterSettingsResponse, CallError> {
        let send = |service, request| async move { Cluster::new(service).update_cluster_settings(request).await };
        self.unary(Kind::Write, &request, send).await
    }

    access! {
        /// Makes an access token. Its secret is shown this once.
        create_token(Once, CreateTokenRequest) -> CreateTokenResponse;
        /// All access tokens, without their secrets.
        list_tokens(Read, ListTokensRequest) -> ListTokensResponse;
        /// Makes an access token invalid.
        revoke_token(Write, RevokeTokenRequest) -> RevokeTokenResponse;
        /// Makes a token with which a new node may join.
        create_join_token(Once, CreateJoinTokenRequest) -> CreateJoinTokenResponse;
        /// The authority that vouches for the nodes.
        get_authority(Read, GetAuthorityRequest) -> GetAuthorityResponse;
        /// Begins a rotation of the keys of delivery tokens.
        rotate_token_keys(Once, RotateTokenKeysRequest) -> RotateTokenKeysResponse;
    }

    /// Tries until there is an answer, as long as that is safe.
    async fn unary<Req, Resp, Fut>(
        &self,
        kind: Kind,
        request: &Req,
        send: impl Fn(Service, Request<Req>) -> Fut,
    ) -> Result<Resp, CallError>
    where
        Req: Clone,
        Fut: Future<Output = Result<Response<Resp>, Status>>,
    {
        let mut tries = Tries::new(self, kind, self.deadlines.campaigns);
        loop {
            match tries.attempt(request.clone(), &send).await {
                Ok(answer) => return Ok(answer),
                Err((failure, status)) => tries.again(failure, status).await?,
            }
        }
    }
}
