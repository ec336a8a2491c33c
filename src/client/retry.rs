//! Which failures allow another try. Pure: statuses in, decisions out.
//!
//! | | never sent | node goes away | refused before work | answer lost | refused for good |
//! |---|---|---|---|---|---|
//! | Score that places | again | again | after its delay | no (option) | no |
//! | Score without slots, reads | again | again | after its delay | again | no |
//! | Report: one count per token and kind | again | again | after its delay | again | no |
//! | campaign writes: one effect per request id | again | again | after its delay | again | no |
//! | writes without such an id | again | again | after its delay | no | no |

use std::{error::Error, time::Duration};

use parking_lot::Mutex;
use tonic::{Code, Status};
use tonic_types::StatusExt as _;

use crate::{
    api::{DOMAIN, reason},
    v1::{Coverage, MissingReason},
};

/// First wait before another try; doubled each time.
pub(super) const FIRST_BACKOFF: Duration = Duration::from_millis(5);
/// Longest wait: a node that is back is found soon, one that is not is not hammered.
pub(super) const MAX_BACKOFF: Duration = Duration::from_millis(500);
/// Wait before a score whose reply lacked a shard is asked for again: a leader that moves takes some milliseconds.
const INCOMPLETE_BACKOFF: Duration = Duration::from_millis(10);

/// What kind of call it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// A score that may hand out tokens.
    Placing,
    /// A score without slots.
    Scoring,
    /// Something that only reads.
    Read,
    /// A write that counts each time it is done.
    Once,
    /// A write that counts once, however often it is sent: by its token and kind, by its request id, or because it sets
    /// what is set already.
    Write,
}

impl Kind {
    /// Whether a try whose answer is lost may have changed something.
    pub(super) fn writes(self) -> bool {
        matches!(self, Self::Placing | Self::Once | Self::Write)
    }
}

/// What a failed try means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Failure {
    /// No server has seen it.
    NotSent,
    /// Surely not done: the node is about to stop.
    Away,
    /// Surely not done; try again after so long.
    Busy(Option<Duration>),
    /// It may have been done. With a time: the server said so, and when to ask again; without: nobody answered.
    Lost(Option<Duration>),
    /// Another try would fail the same way.
    Final,
}

impl Failure {
    /// What a status says.
    pub(super) fn of(status: &Status) -> Self {
        if never_sent(status) {
            return Self::NotSent;
        }
        let details = status.get_error_details();
        let after = details.retry_info().and_then(|retry| retry.retry_delay);
        if let Some(info) = details.error_info().filter(|info| info.domain == DOMAIN) {
            match info.reason.as_str() {
                reason::DRAINING => return Self::Away,
                reason::UNAVAILABLE | reason::OVERLOADED => return Self::Busy(after),
                reason::UNKNOWN_FATE | reason::DEADLINE | reason::INTERNAL => {
                    return Self::Lost(Some(after.unwrap_or_default()));
                }
                // What broke may be the connection: its code decides.
                reason::BROKEN_CALL => {}
                _ => return Self::Final,
            }
        }
        match status.code() {
            Code::Unavailable
            | Code::Unknown
            | Code::Cancelled
            | Code::DeadlineExceeded
            | Code::Internal
            | Code::Aborted
            | Code::ResourceExhausted => Self::Lost(None),
            _ => Self::Final,
        }
    }

    /// Whether another try is safe.
    pub(super) fn allows(self, kind: Kind, lost_placements: bool) -> bool {
        match self {
            Self::NotSent | Self::Away | Self::Busy(_) => true,
            Self::Lost(_) => match kind {
                Kind::Placing => lost_placements,
                Kind::Once => false,
                Kind::Scoring | Kind::Read | Kind::Write => true,
            },
            Self::Final => false,
        }
    }

    /// Whether the try may have been done.
    pub(super) fn maybe_done(self) -> bool {
        matches!(self, Self::Lost(_))
    }
}

/// Whether the request surely never reached a server: the connection could not be made, the request still waited for a
/// place on one that was closed, or the server said that it did not look at it (HTTP/2: GOAWAY before this stream, or
/// REFUSED_STREAM; RFC 9113, sections 6.8 and 8.7).
fn never_sent(status: &Status) -> bool {
    let mut cause: Option<&(dyn Error + 'static)> = status.source();
    while let Some(error) = cause {
        if error.is::<tonic::ConnectError>() {
            return true;
        }
        if error.downcast_ref::<hyper::Error>().is_some_and(hyper::Error::is_canceled) {
            return true;
        }
        if let Some(h2) = error.downcast_ref::<h2::Error>()
            && h2.is_remote()
            && (h2.is_go_away() || (h2.is_reset() && h2.reason() == Some(h2::Reason::REFUSED_STREAM)))
        {
            return true;
        }
        cause = error.source();
    }
    false
}

/// How long to wait before a score is asked for again for the shards that its reply lacks. `None`: asking again can't
/// help in time, or would make things worse.
pub(super) fn incomplete(coverage: &Coverage) -> Option<Duration> {
    let mut wait = Duration::ZERO;
    for missing in &coverage.missing {
        match missing.reason() {
            // Another node may know better at once.
            MissingReason::Catalog | MissingReason::Unreachable => {}
            MissingReason::NoLeader => wait = wait.max(INCOMPLETE_BACKOFF),
            // The time is gone; a node with too much to do gets no more; what is unknown is left alone.
            MissingReason::Deadline | MissingReason::Overloaded | MissingReason::Unspecified => return None,
        }
    }
    (!coverage.missing.is_empty()).then_some(wait)
}

/// The wait before try number `tries + 1`, half of it by chance: many callers must not come back at once.
pub(super) fn backoff(tries: u32, random: u64) -> Duration {
    let whole = FIRST_BACKOFF.saturating_mul(1 << tries.min(10)).min(MAX_BACKOFF);
    let half = whole / 2;
    half + half.mul_f64(random as f64 / u64::MAX as f64)
}

/// Bounds how many tries a client makes beyond the first ones: when a part of the cluster is away for long, its callers
/// must not multiply the load of the rest.
#[derive(Debug)]
pub(super) struct Budget {
    /// In tenths of a try.
    tenths: Mutex<u32>,
}

/// Each first try earns this much of another.
const EARNED_TENTHS: u32 = 2;
/// What one more try costs.
const COST_TENTHS: u32 = 10;
/// Most that can be saved up: enough for all that was under way when a leader moved.
const SAVED_TENTHS_MAX: u32 = 10 * 1_000;

impl Default for Budget {
    fn default() -> Self {
        Self { tenths: Mutex::new(SAVED_TENTHS_MAX) }
    }
}

impl Budget {
    /// A first try.
    pub(super) fn earn(&self) {
        let mut tenths = self.tenths.lock();
        *tenths = (*tenths + EARNED_TENTHS).min(SAVED_TENTHS_MAX);
    }

    /// Another try; `false`: not now.
    pub(super) fn spend(&self) -> bool {
        let mut tenths = self.tenths.lock();
        match tenths.checked_sub(COST_TENTHS) {
            Some(left) => {
                *tenths = left;
                true
            }
            None => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{collections::HashMap, sync::Arc};

    use tonic_types::ErrorDetails;

    use super::*;
    use crate::v1::MissingShard;

    fn told(code: Code, reason: &str, after_ms: Option<u64>) -> Status {
        let mut details = ErrorDetails::with_error_info(reason, DOMAIN, HashMap::new());
        details.set_retry_info(after_ms.map(Duration::from_millis));
        Status::with_error_details(code, "in words", details)
    }

    fn caused(code: Code, cause: impl Error + Send + Sync + 'static) -> Status {
        let mut status = Status::new(code, "in words");
        status.set_source(Arc::new(cause));
        status
    }

    #[test]
    fn which_failure_allows_another_try_of_which_call() {
        let refused = std::io::Error::from(std::io::ErrorKind::ConnectionRefused);
        let delay = Some(Duration::from_millis(20));
        let yes = (true, true);
        let (repeatable, never) = ((false, true), (false, false));
        // Status, what it means, another try of: a score that places, what may be repeated.
        let table = [
            (caused(Code::Unavailable, tonic::ConnectError(refused.into())), Failure::NotSent, yes),
            (told(Code::Unavailable, reason::DRAINING, None), Failure::Away, yes),
            (told(Code::Unavailable, reason::UNAVAILABLE, Some(20)), Failure::Busy(delay), yes),
            (told(Code::ResourceExhausted, reason::OVERLOADED, Some(20)), Failure::Busy(delay), yes),
            (told(Code::Unknown, reason::UNKNOWN_FATE, Some(20)), Failure::Lost(delay), repeatable),
            (told(Code::DeadlineExceeded, reason::UNKNOWN_FATE, None), Failure::Lost(Some(Duration::ZERO)), repeatable),
            (told(Code::DeadlineExceeded, reason::DEADLINE, None), Failure::Lost(Some(Duration::ZERO)), repeatable),
            (told(Code::Internal, reason::INTERNAL, None), Failure::Lost(Some(Duration::ZERO)), repeatable),
            (told(Code::Cancelled, reason::BROKEN_CALL, None), Failure::Lost(None), repeatable),
            (told(Code::ResourceExhausted, reason::MESSAGE_TOO_LARGE, None), Failure::Final, never),
            (told(Code::InvalidArgument, reason::INVALID_REQUEST, None), Failure::Final, never),
            (told(Code::NotFound, reason::NOT_FOUND, None), Failure::Final, never),
            (told(Code::Aborted, reason::STALE_ETAG, None), Failure::Final, never),
            (told(Code::FailedPrecondition, reason::BUDGET_TOO_LOW, None), Failure::Final, never),
            // A broken connection, a proxy: nobody said that it was not done.
            (Status::unavailable("broken pipe"), Failure::Lost(None), repeatable),
            (Status::resource_exhausted("slow down"), Failure::Lost(None), repeatable),
            (Status::deadline_exceeded("too late"), Failure::Lost(None), repeatable),
            (Status::unauthenticated("who are you"), Failure::Final, never),
            (Status::permission_denied("not for you"), Failure::Final, never),
            (Status::unimplemented("what"), Failure::Final, never),
        ];
        for (status, failure, (placing, repeatable)) in table {
            let seen = Failure::of(&status);
            assert_eq!(seen, failure, "{status:?}");
            assert_eq!([Kind::Placing, Kind::Once].map(|kind| seen.allows(kind, false)), [placing; 2], "{status:?}");
            assert_eq!(
                [Kind::Scoring, Kind::Read, Kind::Write].map(|kind| seen.allows(kind, false)),
                [repeatable; 3],
                "{status:?}"
            );
            assert_eq!(seen.allows(Kind::Placing, true), repeatable, "an option allows lost placements: {status:?}");
        }
    }

    #[test]
    fn a_reason_of_somebody_else_means_nothing_here() {
        let mut details = ErrorDetails::new();
        details.set_error_info(reason::DRAINING, "somebody.else", HashMap::new());
        let status = Status::with_error_details(Code::Unavailable, "in words", details);
        assert_eq!(Failure::of(&status), Failure::Lost(None));
    }

    #[test]
    fn an_incomplete_reply_is_asked_for_again_only_where_that_can_help() {
        use MissingReason as R;
        let coverage = |reasons: &[R]| Coverage {
            missing: reasons.iter().map(|r| MissingShard { shard: 1, reason: *r as i32 }).collect(),
            ..Coverage::default()
        };
        let table: [(&[R], Option<Duration>); 7] = [
            (&[], None),
            (&[R::Catalog], Some(Duration::ZERO)),
            (&[R::Unreachable], Some(Duration::ZERO)),
            (&[R::Catalog, R::NoLeader], Some(INCOMPLETE_BACKOFF)),
            (&[R::NoLeader, R::Overloaded], None),
            (&[R::Deadline], None),
            (&[R::Unspecified], None),
        ];
        for (reasons, expected) in table {
            assert_eq!(incomplete(&coverage(reasons)), expected, "{reasons:?}");
        }
    }

    #[test]
    fn waits_grow_to_a_bound_and_differ_by_chance() {
        assert_eq!(backoff(0, 0), FIRST_BACKOFF / 2);
        assert_eq!(backoff(1, u64::MAX), FIRST_BACKOFF * 2);
        assert_eq!(backoff(40, u64::MAX), MAX_BACKOFF);
        assert!(backoff(3, 1 << 60) < backoff(3, 1 << 63));
    }

    #[test]
    fn one_more_try_in_five_is_earned_and_no_more() {
        let budget = Budget::default();
        let saved = (0..).take_while(|_| budget.spend()).count();
        assert_eq!(saved, 1_000);
        (0..50).for_each(|_| budget.earn());
        assert_eq!((0..).take_while(|_| budget.spend()).count(), 10);
    }
}
