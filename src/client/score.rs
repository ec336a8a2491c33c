//! Score.

use std::{cmp::Reverse, sync::Arc, time::Duration};

use super::{
    Client, Incomplete,
    error::CallError,
    retry::{self, Kind},
    tries::Tries,
};
use crate::v1::{self, OutcomeEvent, OutcomeKind, Placement, score_service_client::ScoreServiceClient};

impl Client {
    /// Asks for promotion scores. What is tried again, and when, is told [above](super).
    ///
    /// # Errors
    /// See [`CallError`]; with `slots`, an [`CallError::Unknown`] means that tokens may have been handed out which expire
    /// by themselves.
    pub async fn score(&self, request: v1::ScoreRequest) -> Result<v1::ScoreResponse, CallError> {
        let kind = if request.slots > 0 { Kind::Placing } else { Kind::Scoring };
        self.shared.budget.earn();
        let mut tries = Tries::new(self, kind, self.deadlines.score);
        let mut best: Option<v1::ScoreResponse> = None;
        loop {
            let send = |service, request| async move { ScoreServiceClient::new(service).score(request).await };
            match tries.attempt(request.clone(), send).await {
                Ok(reply) => {
                    let reply = match best.take() {
                        Some(before) => self.better(before, reply),
                        None => reply,
                    };
                    match self.worth_another(&reply) {
                        Some(wait) if self.shared.budget.spend() && tries.pause(wait).await => best = Some(reply),
                        _ => return Ok(reply),
                    }
                }
                Err((failure, status)) => {
                    if let Err(error) = tries.again(failure, status).await {
                        return best.ok_or(error);
                    }
                }
            }
        }
    }

    /// Whether asking again may complete the reply, and after which wait.
    fn worth_another(&self, reply: &v1::ScoreResponse) -> Option<Duration> {
        let allowed = match self.shared.score_retries.incomplete {
            Incomplete::Accept => false,
            Incomplete::RetryUnplaced => reply.placements.is_empty(),
            Incomplete::RetryAndRelease => true,
        };
        reply.coverage.as_ref().filter(|_| allowed).and_then(retry::incomplete)
    }

    /// The more complete of two replies; of equals the one with more placements, then the first. The other's placements
    /// are released.
    fn better(&self, before: v1::ScoreResponse, after: v1::ScoreResponse) -> v1::ScoreResponse {
        let worth = |reply: &v1::ScoreResponse| {
            let missing = reply.coverage.as_ref().map_or(0, |coverage| coverage.missing.len());
            (Reverse(missing), reply.placements.len())
        };
        let (used, unused) = if worth(&after) > worth(&before) { (after, before) } else { (before, after) };
        self.release(unused.placements);
        used
    }

    /// Says that placements will not be used, behind the caller's back. Best effort: they also expire by themselves.
    fn release(&self, placements: Vec<Placement>) {
        if placements.is_empty() {
            return;
        }
        let Ok(permit) = Arc::clone(&self.shared.releases).try_acquire_owned() else { return };
        let client = self.clone();
        let events = placements
            .into_iter()
            .map(|placement| OutcomeEvent { token: placement.token, kind: OutcomeKind::NotUsed as i32, stream_ms: 0 })
            .collect();
        tokio::spawn(async move {
            let _permit = permit;
            if let Err(error) = client.report(events).await {
                tracing::debug!(%error, "unused placements were not released; they expire by themselves");
            }
        });
    }
}
