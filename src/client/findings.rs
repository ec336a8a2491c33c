//! What is wrong, if anything.

use serde::Serialize;

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
