//! One campaign name as a server has it, written down independently of the checker's model, and histories of it.

use andante_chaos::linearizability::{Action, Operation, Outcome, Refusal, Seen, State, Version};
use proptest::{collection::vec, option, prelude::*};

/// The name and its campaign.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Book {
    pub(crate) last_incarnation: u32,
    pub(crate) campaign: Option<Seen>,
}

impl Book {
    /// Applies an action and answers it. What is created gets this incarnation, above the last one.
    pub(crate) fn apply(&mut self, action: Action, incarnation: u32) -> Outcome {
        let Some(campaign) = &mut self.campaign else {
            let Action::Create { budget_micros, price_micros } = action else {
                return Outcome::Refused(Refusal::NotFound);
            };
            let version = Version { incarnation, revision: 1 };
            let seen = Seen { version, budget_micros, price_micros, state: State::Active };
            (self.last_incarnation, self.campaign) = (incarnation, Some(seen));
            return Outcome::Shown(seen);
        };
        let (expected, to) = match action {
            Action::Create { .. } => return Outcome::Refused(Refusal::AlreadyExists),
            Action::Read => return Outcome::Shown(*campaign),
            Action::Update { expected, .. } => (expected, campaign.state),
            Action::Pause { expected } => (expected, State::Paused),
            Action::Resume { expected } => (expected, State::Active),
            Action::End { expected } => (expected, State::Ended),
            Action::Delete { expected } => (expected, State::Deleting),
        };
        if expected.is_some_and(|expected| expected != campaign.version) {
            return Outcome::Refused(Refusal::StaleEtag);
        }
        let is_update = matches!(action, Action::Update { .. });
        let is_late = match campaign.state {
            State::Active | State::Paused => false,
            State::Ended => is_update || matches!(to, State::Active | State::Paused),
            State::Deleting => is_update || to != State::Deleting,
        };
        if is_late {
            return Outcome::Refused(Refusal::WrongState);
        }
        if let Action::Update { budget_micros, price_micros, .. } = action {
            campaign.budget_micros = budget_micros.unwrap_or(campaign.budget_micros);
            campaign.price_micros = price_micros.unwrap_or(campaign.price_micros);
        }
        if is_update || campaign.state != to {
            campaign.version.revision += 1;
        }
        campaign.state = to;
        Outcome::Shown(*campaign)
    }

    /// What is being deleted goes.
    pub(crate) fn vanish(&mut self) {
        self.campaign.take_if(|campaign| campaign.state == State::Deleting);
    }
}

/// What chance decides of an operation.
#[derive(Debug, Clone)]
pub(crate) struct Draw {
    kind: u8,
    micros: u64,
    /// Which of the versions that were shown before is expected, from the latest.
    expected: Option<usize>,
    /// Time from the call to the effect, and from there to the answer.
    early: u64,
    late: u64,
    fate: Fate,
    has_request_id: bool,
    /// Before it, what is being deleted goes.
    vanish: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fate {
    Answered,
    Overloaded,
    AnswerLost,
    RequestLost,
}

/// Draws for up to `operations_max` operations.
pub(crate) fn draws(operations_max: usize) -> impl Strategy<Value = Vec<Draw>> {
    let fate = prop_oneof![
        7 => Just(Fate::Answered),
        1 => Just(Fate::Overloaded),
        1 => Just(Fate::AnswerLost),
        1 => Just(Fate::RequestLost),
    ];
    let times = (0..60_u64, 0..60_u64);
    let expected = option::weighted(0.4, 0..3_usize);
    let draw = (0..10_u8, 1..4_u64, expected, times, fate, any::<bool>(), any::<bool>());
    let draw = draw.prop_map(|(kind, micros, expected, (early, late), fate, has_request_id, vanish)| Draw {
        kind,
        micros,
        expected,
        early,
        late,
        fate,
        has_request_id,
        vanish,
    });
    vec(draw, 1..=operations_max)
}

/// The effect of each operation comes this long after that of the one before.
const PERIOD: u64 = 10;

/// A history of a name: what the draws come to in a book, one after the other.
pub(crate) fn history(draws: &[Draw]) -> Vec<Operation> {
    let mut book = Book::default();
    let mut operations: Vec<Operation> = Vec::new();
    // After each operation; and what it was answered by the book, if it was.
    let mut campaigns: Vec<Option<Seen>> = Vec::new();
    for (index, draw) in draws.iter().enumerate() {
        let effect = 100 + PERIOD * index as u64;
        let called = effect - draw.early;
        let shown = operations.iter().filter(|operation| operation.returned.is_some_and(|returned| returned < called));
        let shown = shown.filter_map(|operation| match operation.outcome {
            Outcome::Shown(seen) => Some(seen.version),
            _ => None,
        });
        let expected = draw.expected.and_then(|back| shown.rev().nth(back));
        let action = draw.action(expected);
        if draw.vanish {
            book.vanish();
        }
        let is_applied = matches!(draw.fate, Fate::Answered | Fate::AnswerLost);
        let outcome = is_applied.then(|| book.apply(action, book.last_incarnation + 1));
        campaigns.push(book.campaign);
        let returned = effect + draw.late;
        let outcome = match draw.fate {
            Fate::Answered => outcome.expect("applied"),
            Fate::Overloaded => Outcome::Refused(Refusal::Other),
            Fate::AnswerLost | Fate::RequestLost => Outcome::Unknown,
        };
        let returned = (outcome != Outcome::Unknown).then_some(returned);
        let has_request_id = draw.has_request_id && action != Action::Read;
        let campaign = "c".to_owned();
        operations.push(Operation {
            client: index as u32,
            campaign,
            called,
            returned,
            action,
            outcome,
            has_request_id,
        });
        // Answers that repetitions get by now.
        for (operation, made) in operations.iter_mut().zip(&campaigns) {
            let is_open = operation.returned.is_some_and(|returned| returned >= effect) && operation.has_request_id;
            let (Outcome::Shown(_), Some(made), true) = (operation.outcome, made, is_open) else { continue };
            match book.campaign.filter(|there| there.version.incarnation == made.version.incarnation) {
                Some(there) => operation.outcome = Outcome::Shown(there),
                None if matches!(operation.action, Action::Delete { .. }) => operation.outcome = Outcome::Gone,
                None => {}
            }
        }
    }
    operations
}

impl Draw {
    fn action(&self, expected: Option<Version>) -> Action {
        let micros = self.micros;
        match self.kind {
            0 | 1 => Action::Create { budget_micros: micros, price_micros: 1 },
            2 => Action::Update { budget_micros: Some(micros), price_micros: None, expected },
            3 => Action::Update { budget_micros: None, price_micros: Some(micros), expected },
            4 => Action::Pause { expected },
            5 => Action::Resume { expected },
            6 => Action::End { expected },
            7 => Action::Delete { expected },
            _ => Action::Read,
        }
    }
}
