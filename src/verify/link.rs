//! A client library's client with patience: the node may be killed and come back, and what that cost is counted.

use std::time::Duration;

use tokio::time::Instant;

use crate::{
    client::{CallError, Client, ClientConfig, ConfigError, Deadlines, Incomplete, Reported, ScoreRetries},
    v1::{self, Campaign, OutcomeStatus},
    verify::{Event, Fate, Judgement, judge},
};

/// How long to wait for what.
#[derive(Debug, Clone, Copy)]
pub struct Patience {
    /// For one score. A node that is stopped (not dead) answers nothing, so every try needs an end.
    pub call: Duration,
    /// For all tries of one call together: longer than a restart takes.
    pub outage: Duration,
}

impl Default for Patience {
    fn default() -> Self {
        Patience { call: Duration::from_secs(10), outage: Duration::from_secs(30) }
    }
}

/// A client that counts. Clones share the connections and count for themselves.
#[derive(Clone)]
pub struct Link {
    client: Client,
    /// Scores are not waited with: how often the nodes were away is counted by those who ask.
    scores: Client,
    /// Repetitions so far.
    pub retries: u64,
    /// Longest time from the first try to the answer of a call that was repeated.
    pub longest_outage: Duration,
}

impl Link {
    /// Connects at the first call, and again whenever the connection is lost. The patience sets the deadlines.
    ///
    /// # Errors
    /// The configuration can't work.
    pub fn new(config: ClientConfig, patience: Patience) -> Result<Self, ConfigError> {
        let Patience { call, outage } = patience;
        let deadlines = Deadlines { score: call, report: outage, campaigns: outage, import: outage };
        // Every placement is to be on the record: none may be released behind it.
        let score_retries = ScoreRetries { incomplete: Incomplete::Accept, ..config.score_retries };
        let client = Client::production(ClientConfig { deadlines, score_retries, ..config })?;
        let (client, scores) = (client.with_fail_fast(false), client.with_fail_fast(true));
        Ok(Link { client, scores, retries: 0, longest_outage: Duration::ZERO })
    }

    /// One score. Fails at once where no node can be reached.
    ///
    /// # Errors
    /// See [`CallError`].
    pub async fn score(&mut self, request: v1::ScoreRequest) -> Result<v1::ScoreResponse, CallError> {
        self.scores.score(request).await
    }

    /// Reports one event until its fate is known or the patience ends.
    pub async fn report(&mut self, token: &[u8], event: Event) -> Fate {
        match self.report_all(&[token], event).await {
            Ok(reported) => fate(event, &reported[0]),
            Err(_) => Fate::Wrong(OutcomeStatus::Unspecified),
        }
    }

    /// Reports many events of one kind, each by its token, until their fates are known or the patience ends.
    ///
    /// # Errors
    /// The server does not take such reports.
    pub async fn report_all<T: AsRef<[u8]>>(&mut self, tokens: &[T], event: Event) -> Result<Vec<Reported>, CallError> {
        let one = |token: &T| v1::OutcomeEvent {
            token: token.as_ref().to_vec(),
            kind: event.kind as i32,
            stream_ms: event.stream_ms,
        };
        self.report_events(tokens.iter().map(one).collect()).await
    }

    /// Reports some events until their fates are known or the patience ends.
    ///
    /// # Errors
    /// The server does not take such reports.
    pub async fn report_events(&mut self, events: Vec<v1::OutcomeEvent>) -> Result<Vec<Reported>, CallError> {
        let started = Instant::now();
        let reported = self.client.report(events).await?;
        let tries = reported.iter().map(|event| event.tries).max().unwrap_or(0);
        if tries > 1 {
            self.retries += u64::from(tries - 1);
            self.longest_outage = self.longest_outage.max(started.elapsed());
        }
        Ok(reported)
    }

    /// One campaign.
    ///
    /// # Errors
    /// See [`CallError`].
    pub async fn campaign(&mut self, name: &str) -> Result<Campaign, CallError> {
        self.client.get_campaign(name).await
    }

    /// Creates campaigns. Safe to repeat, so an interrupted import is simply repeated.
    ///
    /// # Errors
    /// See [`CallError`].
    pub async fn import(&mut self, specs: &[v1::CampaignSpec]) -> Result<v1::ImportCampaignsResponse, CallError> {
        self.client.import_campaigns(specs.into(), |_| {}).await
    }

    /// Version, limits and the node's wall clock.
    ///
    /// # Errors
    /// See [`CallError`].
    pub async fn server_info(&mut self) -> Result<v1::GetServerInfoResponse, CallError> {
        self.client.server_info().await
    }
}

/// What the answers say about an event that nobody else reports.
pub fn fate(event: Event, reported: &Reported) -> Fate {
    match judge(event, reported.status, reported.maybe_applied) {
        Judgement::Done(fate) => fate,
        // The patience is over.
        Judgement::Again { maybe_applied: true } => Fate::Unknown,
        Judgement::Again { maybe_applied: false } => Fate::NotApplied,
    }
}
