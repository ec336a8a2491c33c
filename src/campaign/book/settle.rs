//! Outcomes: the hot path. Bits are set in place; nothing is allocated per outcome.

use std::sync::Arc;

use andante_cluster::mutant;

use super::{
    super::{
        allowance::{Note, TokenState},
        limits::OUTCOMES_PER_COMMAND_MAX,
        proto::{Kind, Outcome, OutcomeStatus, Refusal, Reply, Settle, Spec},
    },
    Book,
    apply::refused,
};

/// What an outcome asks of the ledger.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Ask {
    /// Debit the budget; noted as this kind.
    Bill(Note),
    /// Note it.
    Note(Note),
    /// Free the money.
    Release,
}

impl Book {
    pub(super) fn settle(&mut self, settle: &Settle) -> Reply {
        if settle.outcomes.len() > OUTCOMES_PER_COMMAND_MAX {
            return refused(Refusal::Invalid, "too many outcomes in one command");
        }
        let outcomes = settle.outcomes.iter().map(|outcome| self.outcome(outcome) as i32).collect();
        Reply { outcomes, ..Reply::default() }
    }

    fn outcome(&mut self, outcome: &Outcome) -> OutcomeStatus {
        let Some(at) = self.by_key.get(&outcome.campaign).copied() else {
            return OutcomeStatus::UnknownCampaign;
        };
        let (number, sequence) = (outcome.number, outcome.sequence);
        let slot = self.slots[at as usize].as_mut().expect("indexes point at campaigns");
        let is_other = slot.state.incarnation != outcome.incarnation && !mutant!(IncarnationIgnored);
        if is_other || number == 0 || number >= slot.state.next_allowance {
            return OutcomeStatus::InvalidToken;
        }
        let Some(ask) = ask(outcome, &slot.state.spec) else {
            return OutcomeStatus::InvalidEvent;
        };
        let state = Arc::make_mut(&mut slot.state);
        let is_open = state.open.contains_key(&number);
        let allowances = if is_open { &mut state.open } else { &mut state.closed };
        let Some(allowance) = allowances.get_mut(&number) else {
            return OutcomeStatus::ClosedUnknown;
        };
        if sequence >= allowance.n {
            return OutcomeStatus::InvalidToken;
        }

        let price_micros = allowance.price_micros;
        match (allowance.token(sequence), ask) {
            #[cfg(andante_mutants)]
            (TokenState::Released, Ask::Bill(_)) if mutant!(ReleasedSettles) => self.bill_anew(at, number),
            #[cfg(andante_mutants)]
            (TokenState::Settled, Ask::Bill(_)) if allowance.dirty_in == 0 && mutant!(DedupSkippedAfterRestore) => {
                self.bill_anew(at, number)
            }
            (TokenState::Released, _) => OutcomeStatus::Released,
            (TokenState::Settled, Ask::Bill(_) | Ask::Release) => OutcomeStatus::Duplicate,
            (TokenState::Outstanding, Ask::Bill(_) | Ask::Release) if !is_open => {
                state.counters.refused_closed += 1;
                self.mark(at, super::records::Part::Ledger);
                self.delta(at).counters.refused_closed += 1;
                OutcomeStatus::RefusedClosed
            }
            (TokenState::Outstanding, Ask::Bill(note)) => {
                let allowance = Arc::make_mut(allowance);
                allowance.settle(sequence);
                let complete = allowance.outstanding() == 0;
                state.ledger.settle(price_micros);
                state.counters.billed += 1;
                *counter(&mut state.counters, note) += 1;
                self.mark_allowance(at, number);
                let delta = self.delta(at);
                delta.settled_micros += price_micros;
                delta.counters.billed += 1;
                *counter(&mut delta.counters, note) += 1;
                if complete {
                    self.close(at, number);
                }
                OutcomeStatus::Billed
            }
            (TokenState::Outstanding, Ask::Release) => {
                let allowance = Arc::make_mut(allowance);
                allowance.release(sequence);
                let complete = allowance.outstanding() == 0;
                state.ledger.give_back(1, price_micros);
                state.counters.released += 1;
                self.mark_allowance(at, number);
                let delta = self.delta(at);
                delta.released_micros += price_micros;
                delta.counters.released += 1;
                if complete {
                    self.close(at, number);
                }
                OutcomeStatus::Released
            }
            (TokenState::Outstanding | TokenState::Settled, Ask::Note(note)) => {
                if !Arc::make_mut(allowance).note(note, sequence) {
                    return OutcomeStatus::Duplicate;
                }
                *counter(&mut state.counters, note) += 1;
                self.mark_allowance(at, number);
                *counter(&mut self.delta(at).counters, note) += 1;
                OutcomeStatus::Recorded
            }
        }
    }
}

#[cfg(andante_mutants)]
impl Book {
    /// Bills a token although its bits say no, with money that is free, so that the sums still add up.
    fn bill_anew(&mut self, at: u32, number: u32) -> OutcomeStatus {
        let state = self.slot_mut(at).state_mut();
        let allowance = state.open.get(&number).or_else(|| state.closed.get(&number)).expect("it was just found");
        let price_micros = allowance.price_micros;
        if state.ledger.grant(1, price_micros) == 0 {
            return OutcomeStatus::Duplicate;
        }
        state.ledger.settle(price_micros);
        state.counters.granted += 1;
        state.counters.billed += 1;
        self.mark_allowance(at, number);
        let delta = self.delta(at);
        delta.settled_micros += price_micros;
        delta.counters.billed += 1;
        OutcomeStatus::Billed
    }
}

/// What an outcome asks; `None` for kinds that can't be reported.
fn ask(outcome: &Outcome, spec: &Spec) -> Option<Ask> {
    let note = match outcome.kind() {
        Kind::Impression => Note::Impression,
        Kind::Stream if outcome.stream_ms >= spec.min_stream_ms => Note::Stream,
        Kind::Stream => Note::ShortStream,
        Kind::Skip => Note::Skip,
        Kind::Save => Note::Save,
        Kind::NotUsed => return Some(Ask::Release),
        Kind::ShortStream | Kind::Unspecified => return None,
    };
    let bills = match note {
        Note::Impression => spec.billable == Kind::Impression as i32,
        Note::Stream => spec.billable == Kind::Stream as i32,
        Note::ShortStream | Note::Skip | Note::Save => false,
    };
    Some(if bills { Ask::Bill(note) } else { Ask::Note(note) })
}

fn counter(counters: &mut super::super::proto::Counters, note: Note) -> &mut u64 {
    match note {
        Note::Impression => &mut counters.impressions,
        Note::Stream => &mut counters.streams,
        Note::ShortStream => &mut counters.short_streams,
        Note::Skip => &mut counters.skips,
        Note::Save => &mut counters.saves,
    }
}
