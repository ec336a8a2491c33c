//! What is wrong, if anything.

use serde::Serialize;

use crate::v1::OutcomeStatus;

/// Sentences kept about what is wrong; the first ones tell the story.
const MAX_NOTES: usize = 20;

/// Broken promises. All zero and empty: nothing is wrong.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Findings {
    /// Acknowledged events that the ledgers do not have.
    pub lost_outcomes: u64,
    /// Events that were billed or counted more than once, or without having been reported.
    pub double_billed: u64,
    /// Money settled or set aside beyond budgets, in micros.
    pub overspend_micros: u64,
    /// Answers that must not be given.
    pub wrong_answers: u64,
    /// The first of them, in words.
    pub notes: Vec<String>,
}

impl Findings {
    /// Whether every promise was kept.
    pub fn clean(&self) -> bool {
        self.lost_outcomes == 0 && self.double_billed == 0 && self.overspend_micros == 0 && self.wrong_answers == 0
    }

    /// Adds a sentence, within the bound.
    pub fn note(&mut self, note: String) {
        if self.notes.len() < MAX_NOTES {
            self.notes.push(note);
        }
    }

    /// Counts an answer that must not be given.
    pub fn wrong_answer(&mut self, note: String) {
        self.wrong_answers += 1;
        self.note(note);
    }

    /// Judges the answer to an acknowledged billing that was reported again. Only DUPLICATE proves that it is still
    /// there; `false`: the node has forgotten it and can't say.
    pub fn repeated(&mut self, status: OutcomeStatus) -> bool {
        let note = || format!("an acknowledged billing, reported again, answered {}", status.as_str_name());
        match status {
            OutcomeStatus::Duplicate => {}
            OutcomeStatus::ClosedUnknown => return false,
            OutcomeStatus::Billed => {
                self.double_billed += 1;
                self.note(note());
            }
            // It did not bill and never will.
            OutcomeStatus::RefusedClosed | OutcomeStatus::Released => {
                self.lost_outcomes += 1;
                self.note(note());
            }
            _ => self.wrong_answer(note()),
        }
        true
    }

    /// Adds what somebody else found.
    pub fn add(&mut self, other: Findings) {
        self.lost_outcomes += other.lost_outcomes;
        self.double_billed += other.double_billed;
        self.overspend_micros += other.overspend_micros;
        self.wrong_answers += other.wrong_answers;
        for note in other.notes {
            self.note(note);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_duplicate_proves_that_an_acknowledged_billing_is_still_there() {
        let mut findings = Findings::default();
        assert!(findings.repeated(OutcomeStatus::Duplicate));
        assert!(!findings.repeated(OutcomeStatus::ClosedUnknown));
        assert!(findings.clean());
        for status in [OutcomeStatus::Billed, OutcomeStatus::RefusedClosed, OutcomeStatus::InvalidToken] {
            assert!(findings.repeated(status));
        }
        assert_eq!((findings.double_billed, findings.lost_outcomes, findings.wrong_answers), (1, 1, 1));
    }
}
