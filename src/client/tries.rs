//! The tries of one call: who is asked next, for how long, and when it is over.

use std::{error::Error, time::Duration};

use tokio::time::{Instant, sleep, timeout_at};
use tonic::{Request, Response, Status};

use super::{
    Client, Service,
    error::{CallError, Unreached},
    pool::Tried,
    retry::{self, Failure, Kind},
};

/// A try that may be repeated gets this part of the time that is left, so that a node which answers nothing leaves time
/// for another.
const SHARE_OF_A_TRY: u32 = 2;
/// But never less: a short try fails for no reason.
const TRY_MIN: Duration = Duration::from_millis(100);

/// With less time than this a call is not tried once more: a try that is cut off leaves nothing but doubt. At most a tenth
/// of the deadline.
const LAST_TRY_MIN: Duration = Duration::from_millis(20);

/// One call on its way.
pub(super) struct Tries<'a> {
    client: &'a Client,
    kind: Kind,
    deadline: Duration,
    until: Instant,
    tried: Tried,
    /// Tries so far.
    pub(super) count: u32,
    /// Whether one of them may have been done.
    maybe_done: bool,
    /// Whether any of them reached a server.
    reached: bool,
    /// Those that did not.
    unreached: Unreached,
}

impl<'a> Tries<'a> {
    pub(super) fn new(client: &'a Client, kind: Kind, deadline: Duration) -> Self {
        Self {
            client,
            kind,
            deadline,
            until: Instant::now() + deadline,
            tried: Tried::default(),
            count: 0,
            maybe_done: false,
            reached: false,
            unreached: Unreached::default(),
        }
    }

    /// One try, at the next address.
    pub(super) async fn attempt<Req, Resp, Fut>(
        &mut self,
        request: Req,
        send: impl FnOnce(Service, Request<Req>) -> Fut,
    ) -> Result<Resp, (Failure, Status)>
    where
        Fut: Future<Output = Result<Response<Resp>, Status>>,
    {
        let now = Instant::now();
        let left = self.until.saturating_duration_since(now);
        let limit = match self.kind {
            Kind::Placing | Kind::Scoring | Kind::Once => left,
            Kind::Read | Kind::Write => (left / SHARE_OF_A_TRY).max(TRY_MIN).min(left),
        };
        self.try_for(limit, request, send).await
    }

    /// One try that may take all the time that is left.
    pub(super) async fn long_attempt<Req, Resp, Fut>(
        &mut self,
        request: Req,
        send: impl FnOnce(Service, Request<Req>) -> Fut,
    ) -> Result<Resp, (Failure, Status)>
    where
        Fut: Future<Output = Result<Response<Resp>, Status>>,
    {
        let left = self.until.saturating_duration_since(Instant::now());
        self.try_for(left, request, send).await
    }

    async fn try_for<Req, Resp, Fut>(
        &mut self,
        limit: Duration,
        request: Req,
        send: impl FnOnce(Service, Request<Req>) -> Fut,
    ) -> Result<Resp, (Failure, Status)>
    where
        Fut: Future<Output = Result<Response<Resp>, Status>>,
    {
        let endpoint = self.client.shared.pool.pick(&mut self.tried);
        self.count += 1;
        let mut request = Request::new(request);
        request.set_timeout(limit);
        let call = endpoint.begin();
        let (failure, status, silent) =
            match timeout_at(Instant::now() + limit, send(endpoint.service.clone(), request)).await {
                Ok(Ok(response)) => {
                    call.done(None, false);
                    self.reached = true;
                    return Ok(response.into_inner());
                }
                Ok(Err(status)) => (Failure::of(&status), status, false),
                Err(_) => (Failure::Lost(None), Status::deadline_exceeded(format!("no answer within {limit:?}")), true),
            };
        call.done(Some(failure), silent);
        if failure == Failure::NotSent {
            self.unreached.note(&endpoint.url, innermost(&status));
        } else {
            self.reached = true;
        }
        self.maybe_done |= failure.maybe_done();
        Err((failure, status))
    }

    /// Waits until the next try makes sense.
    ///
    /// # Errors
    /// There must be none, or there is no time for one.
    pub(super) async fn again(&mut self, failure: Failure, status: Status) -> Result<(), CallError> {
        let shared = &self.client.shared;
        if failure == Failure::Final {
            return Err(CallError::Refused(status));
        }
        if !failure.allows(self.kind, shared.score_retries.lost_placements) {
            return Err(self.over(status));
        }
        if self.client.fail_fast && !self.reached && self.tried.count() == shared.pool.endpoints.len() {
            return Err(self.over(status));
        }
        let backoff = || retry::backoff(self.count - 1, shared.pool.rng.u64());
        let wait = match failure {
            Failure::NotSent | Failure::Away if shared.pool.has_another(self.tried) => Duration::ZERO,
            Failure::Busy(Some(after)) | Failure::Lost(Some(after)) => after.max(backoff()),
            _ => backoff(),
        };
        // Who was not even reached did no work.
        let free = failure == Failure::NotSent || !self.is_score();
        if (free || shared.budget.spend()) && self.pause(wait).await { Ok(()) } else { Err(self.over(status)) }
    }

    /// Waits; `false`, at once: the deadline comes first.
    pub(super) async fn pause(&self, wait: Duration) -> bool {
        if Instant::now() + wait + LAST_TRY_MIN.min(self.deadline / 10) >= self.until {
            return false;
        }
        if !wait.is_zero() {
            sleep(wait).await;
        }
        true
    }

    /// Waits as long as another try of part of a call wants.
    pub(super) async fn pause_for_rest(&self) -> bool {
        self.pause(retry::backoff(self.count - 1, self.client.shared.pool.rng.u64())).await
    }

    fn is_score(&self) -> bool {
        matches!(self.kind, Kind::Placing | Kind::Scoring)
    }

    /// The end without a result.
    fn over(&self, status: Status) -> CallError {
        let deadline = self.deadline;
        if !self.reached {
            return CallError::Unreachable(self.unreached.clone());
        }
        if self.maybe_done && self.kind.writes() {
            CallError::Unknown { deadline, status }
        } else {
            CallError::NotDone { deadline, status }
        }
    }
}

/// The last cause of a chain: the one that says something.
fn innermost(status: &Status) -> String {
    let mut cause: &dyn Error = status;
    while let Some(deeper) = cause.source() {
        cause = deeper;
    }
    cause.to_string()
}
