//! A node that answers what it is told to, call by call, and has a health service.

use std::{
    collections::VecDeque,
    net::SocketAddr,
    sync::{Arc, Mutex},
    time::Duration,
};

use andante::v1::{
    self, OutcomeStatus, outcome_service_server as outcome, score_service_server as score,
    server_service_server as server,
};
use tokio::{net::TcpListener, sync::watch, task::JoinHandle};
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status, transport::server::TcpIncoming};
use tonic_health::{ServingStatus, server::HealthReporter};

/// One answer.
pub type Answer<T> = Result<T, Status>;

/// What a node was asked.
#[derive(Debug, Default)]
pub struct Seen {
    pub scores: usize,
    pub infos: usize,
    /// The events of each Report.
    pub reports: Vec<Vec<v1::OutcomeEvent>>,
    /// `grpc-timeout` of each call.
    pub timeouts: Vec<String>,
    /// `authorization` of each call.
    pub authorizations: Vec<String>,
}

#[derive(Default)]
struct State {
    seen: Seen,
    scores: VecDeque<Answer<v1::ScoreResponse>>,
    reports: VecDeque<Answer<Vec<v1::OutcomeResult>>>,
    infos: VecDeque<Status>,
}

/// Answers from its script; when that is at its end, everything is fine.
pub struct Scripted {
    state: Arc<Mutex<State>>,
    /// While true, no Report is answered.
    held: watch::Sender<bool>,
    /// While true, no Score is answered.
    silent: Arc<Mutex<bool>>,
    pub health: HealthReporter,
    pub addr: SocketAddr,
    stop: CancellationToken,
    serving: JoinHandle<()>,
}

impl Drop for Scripted {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

impl Scripted {
    /// Listens on a free port.
    pub async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        let health = HealthReporter::new();
        health.set_service_status("", ServingStatus::Serving).await;
        let handlers = Handlers { state: Arc::default(), held: watch::Sender::new(false), silent: Arc::default() };
        let stop = CancellationToken::new();
        let Handlers { state, held, silent } = handlers.clone();
        let serving = tonic::transport::Server::builder()
            .add_service(score::ScoreServiceServer::new(handlers.clone()))
            .add_service(outcome::OutcomeServiceServer::new(handlers.clone()))
            .add_service(server::ServerServiceServer::new(handlers))
            .add_service(tonic_health::pb::health_server::HealthServer::new(
                tonic_health::server::HealthService::from_health_reporter(health.clone()),
            ))
            .serve_with_incoming_shutdown(
                TcpIncoming::from(listener).with_nodelay(Some(true)),
                stop.clone().cancelled_owned(),
            );
        let serving = tokio::spawn(async { serving.await.unwrap() });
        Self { state, held, silent, health, addr, stop, serving }
    }

    pub fn score(&self, answer: Answer<v1::ScoreResponse>) {
        self.state.lock().unwrap().scores.push_back(answer);
    }

    pub fn report(&self, answer: Answer<Vec<v1::OutcomeResult>>) {
        self.state.lock().unwrap().reports.push_back(answer);
    }

    pub fn info(&self, error: Status) {
        self.state.lock().unwrap().infos.push_back(error);
    }

    /// Reports are answered once this is taken back.
    pub fn hold_reports(&self, held: bool) {
        self.held.send_replace(held);
    }

    /// Scores are never answered.
    pub fn ignore_scores(&self) {
        *self.silent.lock().unwrap() = true;
    }

    pub fn seen<T>(&self, look: impl FnOnce(&Seen) -> T) -> T {
        look(&self.state.lock().unwrap().seen)
    }

    /// Stops as a node does: says so, takes no new connection, finishes what is under way.
    pub async fn stop(&mut self) {
        self.health.set_service_status("", ServingStatus::NotServing).await;
        self.stop.cancel();
        (&mut self.serving).await.unwrap();
    }

    /// Waits until the node saw something.
    pub async fn until(&self, what: impl Fn(&Seen) -> bool) {
        let looking = async {
            while !self.seen(&what) {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(Duration::from_secs(60), looking).await.expect("the node sees it");
    }
}

#[derive(Clone)]
struct Handlers {
    state: Arc<Mutex<State>>,
    held: watch::Sender<bool>,
    silent: Arc<Mutex<bool>>,
}

impl Handlers {
    fn note<T>(&self, request: &Request<T>, count: impl FnOnce(&mut Seen)) {
        let text = |key: &str| request.metadata().get(key).map(|v| v.to_str().unwrap().to_owned()).unwrap_or_default();
        let mut state = self.state.lock().unwrap();
        state.seen.timeouts.push(text("grpc-timeout"));
        state.seen.authorizations.push(text("authorization"));
        count(&mut state.seen);
    }
}

/// A result.
pub fn result(status: OutcomeStatus) -> v1::OutcomeResult {
    v1::OutcomeResult { status: status as i32, ..Default::default() }
}

#[tonic::async_trait]
impl score::ScoreService for Handlers {
    async fn score(&self, request: Request<v1::ScoreRequest>) -> Result<Response<v1::ScoreResponse>, Status> {
        self.note(&request, |seen| seen.scores += 1);
        if *self.silent.lock().unwrap() {
            std::future::pending::<()>().await;
        }
        let next = self.state.lock().unwrap().scores.pop_front();
        next.unwrap_or_else(|| Ok(v1::ScoreResponse::default())).map(Response::new)
    }
}

#[tonic::async_trait]
impl outcome::OutcomeService for Handlers {
    async fn report(&self, request: Request<v1::ReportRequest>) -> Result<Response<v1::ReportResponse>, Status> {
        let events = request.get_ref().events.clone();
        self.note(&request, |seen| seen.reports.push(events.clone()));
        let mut held = self.held.subscribe();
        drop(held.wait_for(|held| !held).await);
        let next = self.state.lock().unwrap().reports.pop_front();
        let results = next.unwrap_or_else(|| Ok(vec![result(OutcomeStatus::Billed); events.len()]))?;
        Ok(Response::new(v1::ReportResponse { results }))
    }
}

#[tonic::async_trait]
impl server::ServerService for Handlers {
    async fn get_server_info(
        &self,
        request: Request<v1::GetServerInfoRequest>,
    ) -> Result<Response<v1::GetServerInfoResponse>, Status> {
        self.note(&request, |seen| seen.infos += 1);
        match self.state.lock().unwrap().infos.pop_front() {
            Some(error) => Err(error),
            None => Ok(Response::new(v1::GetServerInfoResponse::default())),
        }
    }

    async fn confirm_clock(
        &self,
        _request: Request<v1::ConfirmClockRequest>,
    ) -> Result<Response<v1::ConfirmClockResponse>, Status> {
        Err(Status::unimplemented("not part of the script"))
    }
}
