//! What an answer means for the event that was reported.

use crate::v1::{OutcomeKind, OutcomeStatus};

/// Shortest stream that counts where a campaign says nothing else, in milliseconds.
pub const MIN_STREAM_MS: u64 = 30_000;

/// One event to report.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Event {
    /// What happened.
    pub kind: OutcomeKind,
    /// With STREAM: how long it was played, in milliseconds.
    pub stream_ms: u64,
}

impl Event {
    /// An event without a length.
    pub const fn of(kind: OutcomeKind) -> Self {
        Event { kind, stream_ms: 0 }
    }

    /// A stream.
    pub const fn stream(stream_ms: u64) -> Self {
        Event { kind: OutcomeKind::Stream, stream_ms }
    }

    /// The answer to the first report of this event, for a campaign that bills streams of the default length.
    pub fn expected(self) -> OutcomeStatus {
        match self.kind {
            OutcomeKind::Stream if self.stream_ms >= MIN_STREAM_MS => OutcomeStatus::Billed,
            OutcomeKind::NotUsed => OutcomeStatus::Released,
            _ => OutcomeStatus::Recorded,
        }
    }
}

/// What became of one event, after all tries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    /// Acknowledged: it counts, once, for ever.
    Counted,
    /// The node says that it came too late: it does not count and never will.
    TooLate,
    /// The patience ended, and the node said each time that it did not apply it.
    NotApplied,
    /// Nobody can say: it may or may not count.
    Unknown,
    /// The server answered what it must not answer.
    Wrong(OutcomeStatus),
}

/// What to do after an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Judgement {
    /// The fate is known.
    Done(Fate),
    /// Report the same token again. `maybe_applied`: the try that was answered so may have counted.
    Again {
        /// Whether this try may have been applied.
        maybe_applied: bool,
    },
}

/// What `status` means for `event`. `maybe_applied` says whether an earlier try of the same event ended unknown:
/// only then is DUPLICATE an acknowledgement, else somebody else reported an event that is ours alone.
pub fn judge(event: Event, status: OutcomeStatus, maybe_applied: bool) -> Judgement {
    use Judgement::{Again, Done};
    match status {
        s if s == event.expected() => Done(Fate::Counted),
        OutcomeStatus::Duplicate if maybe_applied => Done(Fate::Counted),
        OutcomeStatus::RefusedClosed => Done(Fate::TooLate),
        OutcomeStatus::ClosedUnknown if maybe_applied => Done(Fate::Unknown),
        OutcomeStatus::ClosedUnknown => Done(Fate::TooLate),
        OutcomeStatus::Unavailable => Again { maybe_applied: false },
        OutcomeStatus::Unknown => Again { maybe_applied: true },
        other => Done(Fate::Wrong(other)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_judged_by_what_was_reported_and_what_may_have_been_applied() {
        use Fate::*;
        use OutcomeStatus as S;
        let stream = Event::stream(30_000);
        let short = Event::stream(29_999);
        let unused = Event::of(OutcomeKind::NotUsed);
        let again = |maybe_applied| Judgement::Again { maybe_applied };
        let table = [
            (stream, S::Billed, false, Judgement::Done(Counted)),
            (stream, S::Billed, true, Judgement::Done(Counted)),
            (stream, S::Duplicate, true, Judgement::Done(Counted)),
            (stream, S::Duplicate, false, Judgement::Done(Wrong(S::Duplicate))),
            (stream, S::Recorded, false, Judgement::Done(Wrong(S::Recorded))),
            (short, S::Recorded, false, Judgement::Done(Counted)),
            (short, S::Billed, false, Judgement::Done(Wrong(S::Billed))),
            (unused, S::Released, false, Judgement::Done(Counted)),
            (stream, S::Released, false, Judgement::Done(Wrong(S::Released))),
            (stream, S::RefusedClosed, true, Judgement::Done(TooLate)),
            (stream, S::ClosedUnknown, true, Judgement::Done(Unknown)),
            (stream, S::ClosedUnknown, false, Judgement::Done(TooLate)),
            (stream, S::Unavailable, false, again(false)),
            (stream, S::Unknown, false, again(true)),
            (stream, S::InvalidToken, false, Judgement::Done(Wrong(S::InvalidToken))),
        ];
        for (event, status, maybe_applied, expected) in table {
            assert_eq!(judge(event, status, maybe_applied), expected, "{event:?} {status:?} {maybe_applied}");
        }
    }
}
