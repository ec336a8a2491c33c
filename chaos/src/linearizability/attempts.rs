//! From the tries of a request to operations.

use super::{Action, Operation, Outcome};

/// The tries of one request, all with one request id, as its client makes them: [`Attempts::called`] before each,
/// [`Attempts::answered`] after it unless it got no answer, [`Attempts::into_operations`] in the end.
///
/// ```
/// use andante_chaos::linearizability::{Action, Attempts, Outcome, Refusal};
///
/// let mut pause = Attempts::new(1, "spring", Action::Pause { expected: None });
/// pause.called(10); // and no answer
/// pause.called(20);
/// pause.answered(25, Outcome::Refused(Refusal::NotFound));
/// let operations = pause.into_operations();
/// // The first try may still have been applied, before or after the second one found no campaign.
/// assert_eq!((operations[0].called, operations[0].outcome), (10, Outcome::Unknown));
/// assert_eq!((operations[1].called, operations[1].returned), (20, Some(25)));
/// ```
#[derive(Debug, Clone)]
pub struct Attempts {
    client: u32,
    campaign: String,
    action: Action,
    has_request_id: bool,
    /// When the first try was called that may have been applied.
    doubtful_since: Option<u64>,
    latest: Option<Attempt>,
}

#[derive(Debug, Clone, Copy)]
struct Attempt {
    called: u64,
    answer: Option<(u64, Outcome)>,
}

impl Attempts {
    /// A request with an id: it is applied at most once.
    pub fn new(client: u32, campaign: impl Into<String>, action: Action) -> Self {
        let campaign = campaign.into();
        Self { client, campaign, action, has_request_id: true, doubtful_since: None, latest: None }
    }

    /// A request without an id: a read, or a write that is tried once.
    pub fn without_request_id(client: u32, campaign: impl Into<String>, action: Action) -> Self {
        Self { has_request_id: false, ..Self::new(client, campaign, action) }
    }

    /// A try begins.
    ///
    /// # Panics
    /// If it repeats a write without a request id of which it is not known that it was refused: that would be another
    /// write.
    pub fn called(&mut self, called: u64) {
        self.conclude();
        let is_safe = self.has_request_id || self.doubtful_since.is_none() || self.action == Action::Read;
        assert!(is_safe, "only a request id makes a write safe to repeat");
        self.latest = Some(Attempt { called, answer: None });
    }

    /// The latest try is answered.
    ///
    /// # Panics
    /// If there is none.
    pub fn answered(&mut self, returned: u64, outcome: Outcome) {
        let latest = self.latest.as_mut().expect("an answer follows a call");
        latest.answer = Some((returned, outcome));
    }

    /// What it comes to: nothing if it was never called, else one operation, or two if an earlier try may have been
    /// applied although the last one was refused.
    pub fn into_operations(mut self) -> Vec<Operation> {
        let latest = self.latest;
        self.conclude();
        let unknown = self.doubtful_since.map(|called| self.operation(called, None, Outcome::Unknown));
        let Some(Attempt { called, answer: Some((returned, outcome)) }) = latest else {
            return unknown.into_iter().collect();
        };
        let answered = |called| self.operation(called, Some(returned), outcome);
        match outcome {
            Outcome::Unknown => unknown.into_iter().collect(),
            Outcome::Refused(_) => unknown.into_iter().chain([answered(called)]).collect(),
            Outcome::Shown(_) | Outcome::Gone if self.action == Action::Read => vec![answered(called)],
            Outcome::Shown(_) | Outcome::Gone => vec![answered(self.doubtful_since.unwrap_or(called))],
        }
    }

    /// Remembers that the latest try may have been applied.
    fn conclude(&mut self) {
        if let Some(Attempt { called, answer: None | Some((_, Outcome::Unknown)) }) = self.latest.take() {
            self.doubtful_since.get_or_insert(called);
        }
    }

    fn operation(&self, called: u64, returned: Option<u64>, outcome: Outcome) -> Operation {
        let Self { client, campaign, action, has_request_id, .. } = self;
        let (campaign, action) = (campaign.clone(), *action);
        Operation { client: *client, campaign, called, returned, action, outcome, has_request_id: *has_request_id }
    }
}

#[cfg(test)]
mod tests {
    use super::{
        super::{Refusal, Seen, State, Version},
        *,
    };

    const PAUSE: Action = Action::Pause { expected: None };
    const SHOWN: Outcome = Outcome::Shown(Seen {
        version: Version { incarnation: 1, revision: 2 },
        budget_micros: 10,
        price_micros: 1,
        state: State::Paused,
    });
    const OVERLOADED: Outcome = Outcome::Refused(Refusal::Other);

    /// (called, returned, outcome) of the operations that tries (called, answer) come to.
    fn come_to(action: Action, tries: &[(u64, Option<(u64, Outcome)>)]) -> Vec<(u64, Option<u64>, Outcome)> {
        let mut attempts = Attempts::new(1, "a", action);
        for (called, answer) in tries {
            attempts.called(*called);
            answer.map(|(returned, outcome)| attempts.answered(returned, outcome));
        }
        let operations = attempts.into_operations();
        assert!(operations.iter().all(|operation| operation.has_request_id && operation.action == action));
        operations.into_iter().map(|operation| (operation.called, operation.returned, operation.outcome)).collect()
    }

    #[test]
    fn an_applied_write_may_have_been_applied_since_the_first_try_that_may_have_reached_a_server() {
        let shown = Some((9, SHOWN));
        assert_eq!(come_to(PAUSE, &[(1, shown)]), [(1, Some(9), SHOWN)]);
        assert_eq!(come_to(PAUSE, &[(1, None), (5, shown)]), [(1, Some(9), SHOWN)]);
        assert_eq!(come_to(PAUSE, &[(1, Some((2, Outcome::Unknown))), (5, shown)]), [(1, Some(9), SHOWN)]);
        assert_eq!(come_to(PAUSE, &[(1, Some((2, OVERLOADED))), (5, shown)]), [(5, Some(9), SHOWN)]);
    }

    #[test]
    fn a_refusal_leaves_earlier_tries_in_doubt() {
        let refused = Some((9, OVERLOADED));
        assert_eq!(come_to(PAUSE, &[(5, refused)]), [(5, Some(9), OVERLOADED)]);
        let both = [(1, None, Outcome::Unknown), (5, Some(9), OVERLOADED)];
        assert_eq!(come_to(PAUSE, &[(1, None), (5, refused)]), both);
    }

    #[test]
    fn without_an_answer_the_fate_is_unknown() {
        let unknown = [(1, None, Outcome::Unknown)];
        assert_eq!(come_to(PAUSE, &[(1, None)]), unknown);
        assert_eq!(come_to(PAUSE, &[(1, None), (5, Some((9, Outcome::Unknown)))]), unknown);
        assert_eq!(come_to(PAUSE, &[]), []);
    }

    #[test]
    fn a_read_is_as_of_its_last_try() {
        assert_eq!(come_to(Action::Read, &[(1, None), (5, Some((9, SHOWN)))]), [(5, Some(9), SHOWN)]);
    }

    #[test]
    #[should_panic(expected = "only a request id")]
    fn a_write_without_an_id_is_not_repeated_in_doubt() {
        let mut attempts = Attempts::without_request_id(1, "a", PAUSE);
        attempts.called(1);
        attempts.called(2);
    }
}
