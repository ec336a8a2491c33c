//! A node that keeps its ledgers in a map, and breaks its promises when told to: the replay must notice.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
    sync::{Arc, Mutex},
};

use andante::v1::{
    self, Campaign, CampaignSpec, Ledger, OutcomeKind, OutcomeStatus, campaign_service_server as campaign,
    outcome_service_server as outcome, score_service_server as score, server_service_server as server,
};
use tokio::{net::TcpListener, task::JoinHandle};
use tonic::{Request, Response, Status, transport::server::TcpIncoming};

/// How it misbehaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// Not at all.
    None,
    /// Forgets every 50th billing after acknowledging it.
    Loses,
    /// Bills every 50th billing twice.
    BillsTwice,
    /// Bills a repeated token again.
    ForgetsTokens,
    /// Sets aside more than the budget.
    Overspends,
    /// Bills one micro too much now and then.
    WrongPrice,
    /// Applies every 20th event but says that its fate is unknown, and fails every 33rd call before doing anything.
    Flaky,
}

#[derive(Default)]
struct State {
    campaigns: BTreeMap<String, (CampaignSpec, Ledger)>,
    by_track: BTreeMap<String, String>,
    seen: BTreeSet<(Vec<u8>, i32)>,
    tokens: BTreeMap<Vec<u8>, String>,
    calls: u64,
}

#[derive(Clone)]
pub struct FakeNode {
    fault: Fault,
    state: Arc<Mutex<State>>,
}

impl FakeNode {
    /// Listens on a free port.
    pub async fn start(fault: Fault) -> (SocketAddr, JoinHandle<()>) {
        let node = FakeNode { fault, state: Arc::default() };
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        let serving = tonic::transport::Server::builder()
            .add_service(score::ScoreServiceServer::new(node.clone()))
            .add_service(outcome::OutcomeServiceServer::new(node.clone()))
            .add_service(campaign::CampaignServiceServer::new(node.clone()))
            .add_service(server::ServerServiceServer::new(node))
            .serve_with_incoming(TcpIncoming::from(listener).with_nodelay(Some(true)));
        (addr, tokio::spawn(async { serving.await.unwrap() }))
    }

    fn stumble(&self, state: &mut State) -> Result<(), Status> {
        state.calls += 1;
        match self.fault {
            Fault::Flaky if state.calls.is_multiple_of(33) => Err(Status::unavailable("try again")),
            _ => Ok(()),
        }
    }

    fn apply(&self, state: &mut State, event: &v1::OutcomeEvent) -> OutcomeStatus {
        let Some(name) = state.tokens.get(&event.token).cloned() else { return OutcomeStatus::InvalidToken };
        let first = state.seen.insert((event.token.clone(), event.kind));
        let forgets = self.fault == Fault::ForgetsTokens && event.kind() == OutcomeKind::Stream;
        if !first && !forgets {
            return OutcomeStatus::Duplicate;
        }
        let number = state.seen.len() as u64;
        let (spec, ledger) = state.campaigns.get_mut(&name).unwrap();
        match event.kind() {
            OutcomeKind::Impression => ledger.impressions += 1,
            OutcomeKind::Save => ledger.saves += 1,
            OutcomeKind::Stream => {
                let times = match self.fault {
                    Fault::Loses if number.is_multiple_of(50) => 0,
                    Fault::BillsTwice if number.is_multiple_of(50) => 2,
                    _ => 1,
                };
                ledger.streams += 1;
                ledger.billed += times;
                ledger.settled_micros += times * spec.price_micros;
                ledger.settled_micros += u64::from(self.fault == Fault::WrongPrice && number.is_multiple_of(50));
                ledger.open_micros = if self.fault == Fault::Overspends { spec.budget_micros } else { 0 };
                return OutcomeStatus::Billed;
            }
            _ => return OutcomeStatus::InvalidEvent,
        }
        OutcomeStatus::Recorded
    }
}

#[tonic::async_trait]
impl score::ScoreService for FakeNode {
    async fn score(&self, request: Request<v1::ScoreRequest>) -> Result<Response<v1::ScoreResponse>, Status> {
        let request = request.into_inner();
        let mut state = self.state.lock().unwrap();
        self.stumble(&mut state)?;
        let track_id = request.candidates[0].track_id.clone();
        let name = state.by_track[&track_id].clone();
        let token = (state.tokens.len() as u64).to_be_bytes().to_vec();
        let mut placements = Vec::new();
        if request.slots > 0 {
            state.tokens.insert(token.clone(), name.clone());
            placements.push(v1::Placement { track_id, campaign: name, score: 1.0, token, expires_ms: 0 });
        }
        Ok(Response::new(v1::ScoreResponse { placements, ..v1::ScoreResponse::default() }))
    }
}

#[tonic::async_trait]
impl outcome::OutcomeService for FakeNode {
    async fn report(&self, request: Request<v1::ReportRequest>) -> Result<Response<v1::ReportResponse>, Status> {
        let mut state = self.state.lock().unwrap();
        self.stumble(&mut state)?;
        let hide = self.fault == Fault::Flaky && state.calls.is_multiple_of(20);
        let results = request
            .into_inner()
            .events
            .iter()
            .map(|event| {
                let status = self.apply(&mut state, event);
                let status = if hide { OutcomeStatus::Unknown } else { status };
                v1::OutcomeResult { status: status as i32, ..Default::default() }
            })
            .collect();
        Ok(Response::new(v1::ReportResponse { results }))
    }
}

#[tonic::async_trait]
impl server::ServerService for FakeNode {
    async fn get_server_info(
        &self,
        _request: Request<v1::GetServerInfoRequest>,
    ) -> Result<Response<v1::GetServerInfoResponse>, Status> {
        Ok(Response::new(v1::GetServerInfoResponse { now_ms: 1_000, ..v1::GetServerInfoResponse::default() }))
    }

    async fn confirm_clock(
        &self,
        _request: Request<v1::ConfirmClockRequest>,
    ) -> Result<Response<v1::ConfirmClockResponse>, Status> {
        Err(Status::unimplemented("not part of the fake"))
    }
}

#[tonic::async_trait]
impl campaign::CampaignService for FakeNode {
    type WatchPacingStream = tokio_stream::Empty<Result<v1::WatchPacingResponse, Status>>;

    async fn import_campaigns(
        &self,
        request: Request<tonic::Streaming<v1::ImportCampaignsRequest>>,
    ) -> Result<Response<v1::ImportCampaignsResponse>, Status> {
        let mut stream = request.into_inner();
        let mut created = 0;
        while let Some(v1::ImportCampaignsRequest { spec: Some(spec) }) = stream.message().await? {
            let mut state = self.state.lock().unwrap();
            state.by_track.insert(spec.track_ids[0].clone(), spec.name.clone());
            let ledger = Ledger { open_allowances: 1, ..Ledger::default() };
            state.campaigns.insert(spec.name.clone(), (spec, ledger));
            created += 1;
        }
        Ok(Response::new(v1::ImportCampaignsResponse { created, ..v1::ImportCampaignsResponse::default() }))
    }

    async fn get_campaign(
        &self,
        request: Request<v1::GetCampaignRequest>,
    ) -> Result<Response<v1::GetCampaignResponse>, Status> {
        let state = self.state.lock().unwrap();
        let (spec, ledger) =
            state.campaigns.get(&request.into_inner().name).ok_or_else(|| Status::not_found("no such campaign"))?;
        let campaign = Campaign { spec: Some(spec.clone()), ledger: Some(*ledger), ..Campaign::default() };
        Ok(Response::new(v1::GetCampaignResponse { campaign: Some(campaign) }))
    }

    async fn create_campaign(
        &self,
        _request: Request<v1::CreateCampaignRequest>,
    ) -> Result<Response<v1::CreateCampaignResponse>, Status> {
        Err(Status::unimplemented("not part of the fake"))
    }

    async fn list_campaigns(
        &self,
        _request: Request<v1::ListCampaignsRequest>,
    ) -> Result<Response<v1::ListCampaignsResponse>, Status> {
        Err(Status::unimplemented("not part of the fake"))
    }

    async fn update_campaign(
        &self,
        _request: Request<v1::UpdateCampaignRequest>,
    ) -> Result<Response<v1::UpdateCampaignResponse>, Status> {
        Err(Status::unimplemented("not part of the fake"))
    }

    async fn pause_campaign(
        &self,
        _request: Request<v1::PauseCampaignRequest>,
    ) -> Result<Response<v1::PauseCampaignResponse>, Status> {
        Err(Status::unimplemented("not part of the fake"))
    }

    async fn resume_campaign(
        &self,
        _request: Request<v1::ResumeCampaignRequest>,
    ) -> Result<Response<v1::ResumeCampaignResponse>, Status> {
        Err(Status::unimplemented("not part of the fake"))
    }

    async fn end_campaign(
        &self,
        _request: Request<v1::EndCampaignRequest>,
    ) -> Result<Response<v1::EndCampaignResponse>, Status> {
        Err(Status::unimplemented("not part of the fake"))
    }

    async fn delete_campaign(
        &self,
        _request: Request<v1::DeleteCampaignRequest>,
    ) -> Result<Response<v1::DeleteCampaignResponse>, Status> {
        Err(Status::unimplemented("not part of the fake"))
    }

    async fn watch_pacing(
        &self,
        _request: Request<v1::WatchPacingRequest>,
    ) -> Result<Response<Self::WatchPacingStream>, Status> {
        Err(Status::unimplemented("not part of the fake"))
    }
}
