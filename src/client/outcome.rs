//! Report.

use super::{Client, error::CallError, retry::Kind, tries::Tries};
use crate::{
    api::EVENTS_MAX,
    v1::{self, OutcomeEvent, OutcomeStatus, outcome_service_client::OutcomeServiceClient},
};

/// What became of one event, after all tries.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reported {
    /// The last answer. UNKNOWN and UNAVAILABLE are left only where the deadline came first.
    pub status: OutcomeStatus,
    /// In words, where it helps.
    pub detail: String,
    /// Whether an earlier try, here or within the server, may have counted the event: then DUPLICATE may be this event,
    /// counted once, and CLOSED_UNKNOWN may be one that was counted.
    pub maybe_applied: bool,
    /// How often it was sent.
    pub tries: u32,
}

impl Reported {
    /// Whether the event is in the books, by this call or an earlier one: nothing is left to do.
    pub fn acknowledged(&self) -> bool {
        use OutcomeStatus::{Billed, Duplicate, Recorded, Released};
        matches!(self.status, Billed | Recorded | Released | Duplicate)
    }

    /// Whether reporting it again later makes sense, and is needed to learn its fate.
    pub fn open(&self) -> bool {
        matches!(self.status, OutcomeStatus::Unknown | OutcomeStatus::Unavailable)
    }
}

impl Client {
    /// Reports events; one result for each, in order. Safe to repeat: an event counts once per token and kind. Events whose
    /// fate is open are sent again, and only those, until the deadline; after that UNKNOWN means that nobody can say, and
    /// UNAVAILABLE that it surely does not count. More than 1,000 events go in several calls, one after the other, each
    /// with the deadline.
    ///
    /// # Errors
    /// Only [`CallError::Refused`]: the server does not accept such a report from this caller. What can't be reached is a
    /// result of each event.
    pub async fn report(&self, events: Vec<OutcomeEvent>) -> Result<Vec<Reported>, CallError> {
        let mut results = Vec::with_capacity(events.len());
        for batch in events.chunks(EVENTS_MAX) {
            results.extend(self.report_batch(batch).await?);
        }
        Ok(results)
    }

    async fn report_batch(&self, events: &[OutcomeEvent]) -> Result<Vec<Reported>, CallError> {
        let nothing =
            Reported { status: OutcomeStatus::Unavailable, detail: String::new(), maybe_applied: false, tries: 0 };
        let mut results = vec![nothing; events.len()];
        let mut open: Vec<usize> = (0..events.len()).collect();
        let mut tries = Tries::new(self, Kind::Write, self.deadlines.report);
        loop {
            let request = v1::ReportRequest { events: open.iter().map(|i| events[*i].clone()).collect() };
            open.iter().for_each(|i| results[*i].tries += 1);
            let send = |service, request| async move { OutcomeServiceClient::new(service).report(request).await };
            match tries.attempt(request, send).await {
                Ok(response) if response.results.len() == open.len() => {
                    open = judge(&mut results, &open, response.results);
                    if open.is_empty() || !tries.pause_for_rest().await {
                        return Ok(results);
                    }
                }
                Ok(response) => {
                    let text = format!("{} results for {} events", response.results.len(), open.len());
                    return Err(CallError::Refused(tonic::Status::internal(text)));
                }
                Err((failure, status)) => {
                    for i in &open {
                        results[*i].maybe_applied |= failure.maybe_done();
                        results[*i].detail = status.message().to_owned();
                    }
                    match tries.again(failure, status).await {
                        Ok(()) => {}
                        Err(error @ CallError::Refused(_)) => return Err(error),
                        Err(_) => {
                            open.iter().for_each(|i| results[*i].status = undecided(results[*i].maybe_applied));
                            return Ok(results);
                        }
                    }
                }
            }
        }
    }
}

/// Takes over the answers to the open events; which are open still.
fn judge(results: &mut [Reported], open: &[usize], answers: Vec<v1::OutcomeResult>) -> Vec<usize> {
    let mut still = Vec::new();
    for (i, answer) in open.iter().zip(answers) {
        let result = &mut results[*i];
        let status = answer.status();
        result.maybe_applied |= answer.retried || status == OutcomeStatus::Unknown;
        result.detail = answer.detail;
        result.status = status;
        if result.open() {
            result.status = undecided(result.maybe_applied);
            still.push(*i);
        }
    }
    still
}

/// The status of an event whose fate is open: UNAVAILABLE promises that no try of it counts.
fn undecided(maybe_applied: bool) -> OutcomeStatus {
    if maybe_applied { OutcomeStatus::Unknown } else { OutcomeStatus::Unavailable }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_open_events_stay_open_and_a_doubt_is_never_forgotten() {
        use OutcomeStatus as S;
        let answer = |status: S, retried| v1::OutcomeResult { status: status as i32, detail: String::new(), retried };
        let blank = Reported { status: S::Unavailable, detail: String::new(), maybe_applied: false, tries: 1 };
        let mut results = vec![blank; 5];
        let answers = vec![
            answer(S::Billed, false),
            answer(S::Unavailable, false),
            answer(S::Unknown, false),
            answer(S::Duplicate, true),
            answer(S::RefusedClosed, false),
        ];
        assert_eq!(judge(&mut results, &[0, 1, 2, 3, 4], answers), [1, 2]);
        let again = vec![answer(S::Billed, false), answer(S::Unavailable, false)];
        assert_eq!(judge(&mut results, &[1, 2], again), [2]);
        assert_eq!(judge(&mut results, &[2], vec![answer(S::Duplicate, false)]), [0; 0]);
        let seen: Vec<_> = results.iter().map(|r| (r.status, r.maybe_applied)).collect();
        let expected = [
            (S::Billed, false),
            (S::Billed, false),
            (S::Duplicate, true),
            (S::Duplicate, true),
            (S::RefusedClosed, false),
        ];
        assert_eq!(seen, expected);
    }

    #[test]
    fn unavailable_after_a_doubt_is_still_a_doubt() {
        let answer = |status: OutcomeStatus| vec![v1::OutcomeResult { status: status as i32, ..Default::default() }];
        let blank =
            Reported { status: OutcomeStatus::Unavailable, detail: String::new(), maybe_applied: false, tries: 1 };
        let mut results = vec![blank];
        judge(&mut results, &[0], answer(OutcomeStatus::Unknown));
        judge(&mut results, &[0], answer(OutcomeStatus::Unavailable));
        assert_eq!(results[0].status, OutcomeStatus::Unknown);
    }
}
