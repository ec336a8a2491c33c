//! What every RPC has in common: a deadline, a span, metrics, and an answer even if its handler panics.

use std::{future::Future, panic::AssertUnwindSafe, sync::Arc, time::Duration};

use andante_cluster::env::Clock;
use futures::FutureExt as _;
use prometheus_client::metrics::gauge::Gauge;
use tokio::{
    sync::{Semaphore, SemaphorePermit, watch},
    time::{Instant, timeout_at},
};
use tonic::{Code, Response, Status, metadata::MetadataMap};
use tracing::{Instrument as _, Span};

use super::{error::ApiError, shed::Shedding};
use crate::{metrics::Method, node::Node, settings::Settings};

/// Longest deadline of Score; a longer one of the caller's is cut to it, so that no request holds its memory for ever.
const SCORE_DEADLINE_MAX: Duration = Duration::from_secs(60);
/// Longest deadline of other calls.
const DEADLINE_MAX: Duration = Duration::from_secs(600);
/// Of the caller's time, this part (and at least a millisecond, a timer's resolution) is kept for the way back: an
/// answer that arrives at the deadline is worth nothing, and tonic's own timer would answer CANCELLED first.
const RESERVE_PART: u32 = 16;
const RESERVE_MIN: Duration = Duration::from_millis(1);
const RESERVE_MAX: Duration = Duration::from_millis(50);

/// What the handlers share.
pub(crate) struct Api {
    pub(crate) node: Arc<Node>,
    /// For durations; times of the domain come from the node.
    clock: Arc<dyn Clock>,
    /// Whether new requests are refused because too many wait.
    pub(crate) shedding: Arc<Shedding>,
    /// Score requests in flight.
    scores: Semaphore,
    /// Outcome events in flight.
    events: Semaphore,
    /// Pacing watches.
    pub(crate) watches: Arc<Semaphore>,
    /// True once the server drains.
    pub(crate) draining: watch::Receiver<bool>,
}

/// Outcome events in flight.
pub(crate) struct Events<'a> {
    shown: &'a Gauge,
    count: i64,
    _permit: SemaphorePermit<'a>,
}

impl Drop for Events<'_> {
    fn drop(&mut self) {
        self.shown.dec_by(self.count);
    }
}

/// Pacing watches at once; each wakes up to ten times a second.
const WATCHES_MAX: usize = 1_000;

impl Api {
    pub(crate) fn new(node: Arc<Node>, clock: Arc<dyn Clock>, draining: watch::Receiver<bool>) -> Self {
        let settings = node.settings();
        let scores = Semaphore::new(settings.max_scores_in_flight as usize);
        let events = Semaphore::new(settings.max_events_in_flight as usize);
        let watches = Arc::new(Semaphore::new(WATCHES_MAX));
        Self { node, clock, shedding: Arc::default(), scores, events, watches, draining }
    }

    /// Room for one score request, at once or not at all.
    pub(crate) fn admit_score(&self) -> Result<SemaphorePermit<'_>, ApiError> {
        if self.shedding.on() {
            return Err(ApiError::Overloaded("score requests"));
        }
        self.scores.try_acquire().map_err(|_| ApiError::Overloaded("score requests"))
    }

    /// Room for so many outcome events, at once or not at all.
    pub(crate) fn admit_events(&self, count: usize) -> Result<Events<'_>, ApiError> {
        if self.shedding.on() {
            return Err(ApiError::Overloaded("outcome events"));
        }
        let permits = u32::try_from(count).unwrap_or(u32::MAX);
        let permit = self.events.try_acquire_many(permits).map_err(|_| ApiError::Overloaded("outcome events"))?;
        let (shown, count) = (&self.node.metrics().outcomes_in_flight, i64::from(permits));
        shown.inc_by(count);
        Ok(Events { shown, count, _permit: permit })
    }

    /// Runs a handler under the caller's deadline (or the server's default) and answers in any case.
    pub(crate) async fn answer<T, W>(
        &self,
        method: Method,
        metadata: &MetadataMap,
        request_id: &str,
        work: impl FnOnce(Instant) -> W,
    ) -> Result<Response<T>, Status>
    where
        W: Future<Output = Result<T, ApiError>>,
    {
        let begun = self.clock.monotonic_micros();
        let rpc = self.node.metrics().rpc.begin(method);
        let result = match Deadline::of(method, metadata, self.node.settings(), Instant::now()) {
            Ok(deadline) => {
                let work = AssertUnwindSafe(work(deadline.work_until)).catch_unwind();
                let work = work.instrument(span(method, request_id));
                match timeout_at(deadline.answer_until, work).await {
                    Ok(Ok(result)) => result,
                    // The panic hook has logged it; the connection and its other requests go on.
                    Ok(Err(_panic)) => Err(ApiError::Internal),
                    Err(_) => Err(ApiError::Deadline { writes: writes(method) }),
                }
            }
            Err(error) => Err(error),
        };
        let micros = self.clock.monotonic_micros().saturating_sub(begun);
        match result {
            Ok(answer) => {
                rpc.finish(Code::Ok, micros);
                Ok(Response::new(answer))
            }
            Err(error) => {
                let status = Status::from(error);
                rpc.finish(status.code(), micros);
                tracing::debug!(method = method.name(), code = ?status.code(), message = status.message(), "refused");
                Err(status)
            }
        }
    }
}

/// Whether a call whose answer is lost may have changed something.
fn writes(method: Method) -> bool {
    match method {
        Method::Score
        | Method::GetCampaign
        | Method::ListCampaigns
        | Method::WatchPacing
        | Method::GetServerInfo
        | Method::GetClusterStatus
        | Method::GetClusterSettings
        | Method::ListTokens
        | Method::GetAuthority => false,
        Method::Report
        | Method::CreateCampaign
        | Method::UpdateCampaign
        | Method::PauseCampaign
        | Method::ResumeCampaign
        | Method::EndCampaign
        | Method::DeleteCampaign
        | Method::ImportCampaigns
        | Method::ConfirmClock
        | Method::UpdateClusterSettings
        | Method::CreateToken
        | Method::RevokeToken
        | Method::CreateJoinToken
        | Method::RotateTokenKeys => true,
    }
}

/// The frequent calls have a span only where somebody looks that closely.
fn span(method: Method, request_id: &str) -> Span {
    let method_name = method.name();
    match method {
        Method::Score | Method::Report => tracing::debug_span!("rpc", method = method_name, request_id),
        _ => tracing::info_span!("rpc", method = method_name, request_id),
    }
}

/// When a call must be done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Deadline {
    /// The router answers until then.
    pub(crate) work_until: Instant,
    /// If it did not, the handler says so then.
    pub(crate) answer_until: Instant,
}

impl Deadline {
    pub(crate) fn of(
        method: Method,
        metadata: &MetadataMap,
        settings: &Settings,
        now: Instant,
    ) -> Result<Self, ApiError> {
        let (default_ms, max) = match method {
            Method::Score => (settings.score_deadline_ms, SCORE_DEADLINE_MAX),
            // Every campaign of an import has the default for itself.
            Method::ImportCampaigns => (DEADLINE_MAX.as_millis() as u64, DEADLINE_MAX),
            _ => (settings.report_deadline_ms, DEADLINE_MAX),
        };
        let timeout = grpc_timeout(metadata)?.unwrap_or(Duration::from_millis(default_ms)).min(max);
        let reserve = (timeout / RESERVE_PART).clamp(RESERVE_MIN, RESERVE_MAX).min(timeout / 2);
        Ok(Self { work_until: now + (timeout - reserve), answer_until: now + (timeout - reserve / 2) })
    }
}

/// The caller's deadline, as gRPC's wire format has it: up to eight digits and a unit.
pub(crate) fn grpc_timeout(metadata: &MetadataMap) -> Result<Option<Duration>, ApiError> {
    let Some(value) = metadata.get("grpc-timeout") else { return Ok(None) };
    let parse = || {
        let (digits, unit) = value.to_str().ok()?.split_at_checked(value.len().checked_sub(1)?)?;
        if !(1..=8).contains(&digits.len()) || !digits.bytes().all(|b| b.is_ascii_digit()) {
            return None;
        }
        let number: u64 = digits.parse().ok()?;
        Some(match unit {
            "H" => Duration::from_secs(number * 3_600),
            "M" => Duration::from_secs(number * 60),
            "S" => Duration::from_secs(number),
            "m" => Duration::from_millis(number),
            "u" => Duration::from_micros(number),
            "n" => Duration::from_nanos(number),
            _ => return None,
        })
    };
    match parse() {
        Some(timeout) => Ok(Some(timeout)),
        None => Err(ApiError::invalid("grpc-timeout", "must be up to eight digits and one of H, M, S, m, u, n")),
    }
}

#[cfg(test)]
mod tests {
    use andante_cluster::{
        env::{Env, OsThreads, SystemClock, SystemRng, TcpNetwork},
        storage::memory::MemoryStores,
    };
    use tonic_types::StatusExt as _;

    use super::*;
    use crate::{api::reason, node::NodeConfig};

    fn metadata(timeout: Option<&str>) -> MetadataMap {
        let mut map = MetadataMap::new();
        if let Some(timeout) = timeout {
            map.insert("grpc-timeout", timeout.parse().unwrap());
        }
        map
    }

    fn total(method: Method, timeout: Option<&str>) -> Duration {
        let now = Instant::now();
        let deadline = Deadline::of(method, &metadata(timeout), &Settings::default(), now).unwrap();
        assert!(now <= deadline.work_until && deadline.work_until <= deadline.answer_until);
        deadline.answer_until - now
    }

    async fn api() -> (Api, tempfile::TempDir) {
        let clock: Arc<dyn Clock> = Arc::new(SystemClock::default());
        let env = Env {
            clock: clock.clone(),
            network: Arc::new(TcpNetwork),
            rng: Arc::new(SystemRng),
            blocking: Arc::new(OsThreads),
            stores: Arc::new(MemoryStores::default()),
        };
        let dir = tempfile::tempdir().unwrap();
        let config = NodeConfig { shards: Some(1), ..NodeConfig::new(dir.path()) };
        let node = Node::start(env, config).await.unwrap();
        (Api::new(Arc::new(node), clock, watch::channel(false).1), dir)
    }

    fn reason_of(answer: Result<Response<()>, Status>) -> (Code, String) {
        let status = answer.unwrap_err();
        (status.code(), status.get_details_error_info().unwrap().reason)
    }

    #[tokio::test]
    async fn a_call_that_takes_too_long_is_answered_with_what_is_known_of_its_fate() {
        let (api, _dir) = api().await;
        let timeout = metadata(Some("20m"));
        let read = api.answer(Method::Score, &timeout, "", |_| std::future::pending()).await;
        assert_eq!(reason_of(read), (Code::DeadlineExceeded, reason::DEADLINE.into()));
        let write = api.answer(Method::Report, &timeout, "", |_| std::future::pending()).await;
        assert_eq!(reason_of(write), (Code::DeadlineExceeded, reason::UNKNOWN_FATE.into()));
    }

    #[tokio::test]
    async fn a_panic_in_a_handler_is_an_internal_error_and_counted() {
        let (api, _dir) = api().await;
        let answer = api.answer(Method::Score, &metadata(None), "", |_| async { panic!("on purpose") }).await;
        assert_eq!(reason_of(answer), (Code::Internal, reason::INTERNAL.into()));
        let counted = "andante_rpc_requests_total{method=\"Score\",code=\"INTERNAL\"} 1";
        assert!(api.node.metrics().encode().contains(counted));
    }

    #[tokio::test]
    async fn room_is_there_at_once_or_not_at_all_and_comes_back() {
        let (api, _dir) = api().await;
        let all = api.node.settings().max_events_in_flight as usize;
        let taken = api.admit_events(all).unwrap();
        assert_eq!(api.node.metrics().outcomes_in_flight.get(), all as i64);
        assert!(matches!(api.admit_events(1), Err(ApiError::Overloaded(_))));
        drop(taken);
        assert_eq!(api.node.metrics().outcomes_in_flight.get(), 0);
        assert!(api.admit_events(1).is_ok());
    }

    #[test]
    fn timeouts_are_read_in_every_unit() {
        let table = [
            ("1H", Duration::from_secs(3_600)),
            ("2M", Duration::from_secs(120)),
            ("3S", Duration::from_secs(3)),
            ("4m", Duration::from_millis(4)),
            ("5u", Duration::from_micros(5)),
            ("99999999n", Duration::from_nanos(99_999_999)),
        ];
        for (text, expected) in table {
            assert_eq!(grpc_timeout(&metadata(Some(text))).unwrap(), Some(expected), "{text}");
        }
        assert_eq!(grpc_timeout(&metadata(None)).unwrap(), None);
    }

    #[test]
    fn a_timeout_that_is_none_is_refused() {
        for text in ["", "m", "1", "1s", "-1m", "+1m", "123456789m", "1.5S", "m1"] {
            assert!(matches!(grpc_timeout(&metadata(Some(text))), Err(ApiError::Invalid(_))), "{text:?}");
        }
    }

    #[test]
    fn without_a_timeout_the_servers_default_holds() {
        let score = total(Method::Score, None);
        assert!(score > Duration::from_millis(235) && score < Duration::from_millis(250), "{score:?}");
        let report = total(Method::Report, None);
        assert!(report > Duration::from_millis(4_900) && report < Duration::from_secs(5), "{report:?}");
    }

    #[test]
    fn the_answer_goes_out_before_the_callers_deadline() {
        for (text, millis) in [("1m", 1), ("10m", 10), ("2S", 2_000)] {
            assert!(total(Method::Score, Some(text)) < Duration::from_millis(millis), "{text}");
        }
        assert_eq!(total(Method::Score, Some("0m")), Duration::ZERO);
    }

    #[test]
    fn a_deadline_far_away_is_cut() {
        assert!(total(Method::Score, Some("5H")) <= SCORE_DEADLINE_MAX);
        assert!(total(Method::Report, Some("5H")) <= DEADLINE_MAX);
    }
}
