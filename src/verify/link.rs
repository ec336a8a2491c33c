//! A connection to a node that may be killed and come back: calls are repeated with backoff within a bounded patience.

use std::time::Duration;

use anyhow::Context;
use tokio::time::{Instant, sleep, timeout};
use tonic::{
    Code, Status,
    transport::{Channel, Endpoint},
};

use crate::{
    v1::{
        self, Campaign, OutcomeStatus, campaign_service_client::CampaignServiceClient,
        outcome_service_client::OutcomeServiceClient, score_service_client::ScoreServiceClient,
        server_service_client::ServerServiceClient,
    },
    verify::{Event, Fate, Judgement, judge},
};

/// Wait before the first repetition; doubled each time.
const FIRST_BACKOFF: Duration = Duration::from_millis(20);
/// Longest wait between two repetitions: a restarted node is found soon, a dead one is not hammered.
const MAX_BACKOFF: Duration = Duration::from_millis(500);
/// HTTP/2 windows. Replies are small; many are in flight.
const WINDOW_BYTES: u32 = 4 << 20;

/// How long to wait for what.
#[derive(Debug, Clone, Copy)]
pub struct Patience {
    /// For one try. A node that is stopped (not dead) answers nothing, so every try needs an end.
    pub call: Duration,
    /// For all tries of one call together: longer than a restart takes.
    pub outage: Duration,
}

impl Default for Patience {
    fn default() -> Self {
        Patience { call: Duration::from_secs(10), outage: Duration::from_secs(30) }
    }
}

/// Why a call failed for good.
#[derive(Debug, Clone, thiserror::Error)]
pub enum LinkError {
    /// The node said no. Change the request.
    #[error("{0}")]
    Refused(Status),
    /// No answer within the patience; it may have been applied.
    #[error("no answer within {0:?}; the last error was: {1}")]
    GaveUp(Duration, Status),
}

/// A connection with its clients. Clones share the connection and count for themselves.
#[derive(Clone)]
pub struct Link {
    score: ScoreServiceClient<Channel>,
    outcome: OutcomeServiceClient<Channel>,
    campaign: CampaignServiceClient<Channel>,
    server: ServerServiceClient<Channel>,
    patience: Patience,
    /// Repetitions so far.
    pub retries: u64,
    /// Longest time from a first failure to the answer.
    pub longest_outage: Duration,
}

impl Link {
    /// Connects at the first call, and again whenever the connection is lost. `addr` is `host:port` or a URL.
    pub fn new(addr: &str, patience: Patience) -> anyhow::Result<Self> {
        let url = if addr.contains("://") { addr.to_owned() } else { format!("http://{addr}") };
        let channel = Endpoint::from_shared(url.clone())
            .with_context(|| format!("`{addr}` is no address; expected host:port"))?
            .connect_timeout(patience.call)
            .tcp_nodelay(true)
            .initial_stream_window_size(WINDOW_BYTES)
            .initial_connection_window_size(WINDOW_BYTES)
            .connect_lazy();
        Ok(Link {
            score: ScoreServiceClient::new(channel.clone()),
            outcome: OutcomeServiceClient::new(channel.clone()),
            campaign: CampaignServiceClient::new(channel.clone()),
            server: ServerServiceClient::new(channel),
            patience,
            retries: 0,
            longest_outage: Duration::ZERO,
        })
    }

    /// One try: scores are not repeated here, since each try hands out tokens of its own.
    pub async fn score(&mut self, request: v1::ScoreRequest) -> Result<v1::ScoreResponse, Status> {
        once(self.patience.call, self.score.score(request)).await
    }

    /// Reports one event until its fate is known or the patience ends.
    pub async fn report(&mut self, token: &[u8], event: Event) -> Fate {
        let mut wait = Wait::new(self.patience.outage);
        let mut maybe_applied = false;
        loop {
            let request = v1::ReportRequest {
                events: vec![v1::OutcomeEvent {
                    token: token.to_vec(),
                    kind: event.kind as i32,
                    stream_ms: event.stream_ms,
                }],
            };
            match once(self.patience.call, self.outcome.report(request)).await {
                Ok(response) => match response.results.as_slice() {
                    [result] => match judge(event, result.status(), maybe_applied) {
                        Judgement::Done(fate) => {
                            self.note(&wait);
                            return fate;
                        }
                        Judgement::Again { maybe_applied: this } => maybe_applied |= this,
                    },
                    _ => return Fate::Wrong(OutcomeStatus::Unspecified),
                },
                Err(status) if transient(&status) => maybe_applied |= !surely_not_applied(&status),
                Err(_) => return Fate::Wrong(OutcomeStatus::Unspecified),
            }
            if !wait.again().await {
                self.note(&wait);
                return if maybe_applied { Fate::Unknown } else { Fate::NotApplied };
            }
        }
    }

    /// Reports some events, one try.
    pub async fn report_once(&mut self, events: Vec<v1::OutcomeEvent>) -> Result<Vec<OutcomeStatus>, Status> {
        let response = once(self.patience.call, self.outcome.report(v1::ReportRequest { events })).await?;
        Ok(response.results.iter().map(v1::OutcomeResult::status).collect())
    }

    /// Reports many events of one kind, each by its token, and answers the statuses as they are. Safe to repeat.
    pub async fn report_all(&mut self, tokens: &[Vec<u8>], event: Event) -> Result<Vec<OutcomeStatus>, LinkError> {
        let events: Vec<v1::OutcomeEvent> = tokens
            .iter()
            .map(|token| v1::OutcomeEvent { token: token.clone(), kind: event.kind as i32, stream_ms: event.stream_ms })
            .collect();
        let mut wait = Wait::new(self.patience.outage);
        loop {
            let error =
                match once(self.patience.call, self.outcome.report(v1::ReportRequest { events: events.clone() })).await
                {
                    Ok(response) => {
                        let statuses: Vec<_> = response.results.iter().map(v1::OutcomeResult::status).collect();
                        let settled =
                            |s: &OutcomeStatus| !matches!(s, OutcomeStatus::Unavailable | OutcomeStatus::Unknown);
                        if statuses.iter().all(settled) {
                            return Ok(statuses);
                        }
                        Status::unavailable("some events were not applied")
                    }
                    Err(status) => status,
                };
            self.go_on(&mut wait, error).await?;
        }
    }

    /// One campaign.
    pub async fn campaign(&mut self, name: &str) -> Result<Campaign, LinkError> {
        let mut wait = Wait::new(self.patience.outage);
        loop {
            let request = v1::GetCampaignRequest { name: name.to_owned() };
            match once(self.patience.call, self.campaign.get_campaign(request)).await {
                Ok(v1::GetCampaignResponse { campaign: Some(campaign) }) => return Ok(campaign),
                Ok(_) => return Err(LinkError::Refused(Status::internal("an answer without a campaign"))),
                Err(status) => self.go_on(&mut wait, status).await?,
            }
        }
    }

    /// Creates campaigns. Safe to repeat, so an interrupted import is simply repeated.
    pub async fn import(&mut self, specs: &[v1::CampaignSpec]) -> Result<v1::ImportCampaignsResponse, LinkError> {
        let mut wait = Wait::new(self.patience.outage);
        loop {
            let requests: Vec<_> =
                specs.iter().map(|spec| v1::ImportCampaignsRequest { spec: Some(spec.clone()) }).collect();
            let call = self.campaign.import_campaigns(tokio_stream::iter(requests));
            match once(self.patience.outage, call).await {
                Ok(response) => return Ok(response),
                Err(status) => self.go_on(&mut wait, status).await?,
            }
        }
    }

    /// Version, limits and the node's wall clock.
    pub async fn server_info(&mut self) -> Result<v1::GetServerInfoResponse, LinkError> {
        let mut wait = Wait::new(self.patience.outage);
        loop {
            match once(self.patience.call, self.server.get_server_info(v1::GetServerInfoRequest {})).await {
                Ok(info) => return Ok(info),
                Err(status) => self.go_on(&mut wait, status).await?,
            }
        }
    }

    async fn go_on(&mut self, wait: &mut Wait, status: Status) -> Result<(), LinkError> {
        if !transient(&status) {
            return Err(LinkError::Refused(status));
        }
        if !wait.again().await {
            return Err(LinkError::GaveUp(self.patience.outage, status));
        }
        self.retries += 1;
        Ok(())
    }

    fn note(&mut self, wait: &Wait) {
        self.retries += u64::from(wait.tries);
        if let Some(since) = wait.since {
            self.longest_outage = self.longest_outage.max(since.elapsed());
        }
    }
}

/// Whether a later try may succeed.
pub(crate) fn transient(status: &Status) -> bool {
    matches!(
        status.code(),
        Code::Unavailable
            | Code::Unknown
            | Code::DeadlineExceeded
            | Code::Cancelled
            | Code::ResourceExhausted
            | Code::Aborted
            | Code::Internal
    )
}

/// Whether the node refused before doing anything. A broken connection says UNAVAILABLE or UNKNOWN too, so only an
/// overload is certain.
fn surely_not_applied(status: &Status) -> bool {
    status.code() == Code::ResourceExhausted
}

async fn once<T>(limit: Duration, call: impl Future<Output = Result<tonic::Response<T>, Status>>) -> Result<T, Status> {
    match timeout(limit, call).await {
        Ok(answer) => answer.map(tonic::Response::into_inner),
        Err(_) => Err(Status::deadline_exceeded(format!("no answer within {limit:?}"))),
    }
}

/// Waits between tries, within a budget that starts with the first failure.
struct Wait {
    budget: Duration,
    since: Option<Instant>,
    tries: u32,
}

impl Wait {
    fn new(budget: Duration) -> Self {
        Wait { budget, since: None, tries: 0 }
    }

    /// Waits before the next try; `false`: the budget is spent.
    async fn again(&mut self) -> bool {
        let since = *self.since.get_or_insert_with(Instant::now);
        if since.elapsed() >= self.budget {
            return false;
        }
        let backoff = FIRST_BACKOFF.saturating_mul(1 << self.tries.min(10)).min(MAX_BACKOFF);
        self.tries += 1;
        sleep(backoff).await;
        true
    }
}
