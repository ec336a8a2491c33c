//! Calls to other nodes' routers.

use prometheus_client::{
    metrics::{counter::Counter, family::Family, gauge::Gauge},
    registry::Unit,
};

use super::{DurationHistogram, Label, Registrar};

/// What is asked of another node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PeerCall {
    /// Offers.
    Score,
    /// Tokens.
    Take,
    /// Campaigns.
    Read,
    /// The catalog of a shard.
    Watch,
    /// How it is.
    Vitals,
}

impl PeerCall {
    /// All of them, in the order of their numbers.
    pub const ALL: [PeerCall; 5] = [PeerCall::Score, PeerCall::Take, PeerCall::Read, PeerCall::Watch, PeerCall::Vitals];

    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            PeerCall::Score => "score",
            PeerCall::Take => "take",
            PeerCall::Read => "read",
            PeerCall::Watch => "watch",
            PeerCall::Vitals => "vitals",
        }
    }
}

/// How a call ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PeerOutcome {
    /// Answered.
    Answered,
    /// Not before the deadline.
    Deadline,
    /// No such node, no connection, or it broke.
    Unreachable,
    /// Too much in flight.
    Overloaded,
    /// The other node can't do that, or not now.
    Refused,
    /// Nobody waits for it any more.
    Cancelled,
}

const OUTCOMES: [PeerOutcome; 6] = [
    PeerOutcome::Answered,
    PeerOutcome::Deadline,
    PeerOutcome::Unreachable,
    PeerOutcome::Overloaded,
    PeerOutcome::Refused,
    PeerOutcome::Cancelled,
];

impl PeerOutcome {
    fn name(self) -> &'static str {
        match self {
            PeerOutcome::Answered => "answered",
            PeerOutcome::Deadline => "deadline",
            PeerOutcome::Unreachable => "unreachable",
            PeerOutcome::Overloaded => "overloaded",
            PeerOutcome::Refused => "refused",
            PeerOutcome::Cancelled => "cancelled",
        }
    }
}

/// Counts calls to other nodes.
#[derive(Debug)]
pub struct PeerMetrics {
    calls: [PerCall; PeerCall::ALL.len()],
    in_flight: Family<Label<u64>, Gauge>,
}

#[derive(Debug)]
struct PerCall {
    duration: DurationHistogram,
    outcomes: [Counter; OUTCOMES.len()],
}

impl PeerMetrics {
    pub(super) fn register(book: &mut Registrar) -> Self {
        let calls = Family::<[(&'static str, &'static str); 2], Counter>::default();
        let duration = Family::<Label<&'static str>, DurationHistogram>::default();
        let unit = Unit::Other("calls".to_owned());
        book.add("peer", unit, "Calls to other nodes' routers, by kind and outcome", calls.clone());
        book.add("peer_duration", Unit::Seconds, "Time of calls to other nodes' routers, by kind", duration.clone());
        let in_flight =
            book.family("peer_in_flight", "calls", "Calls to other nodes' routers not answered yet, by node");
        let calls = PeerCall::ALL.map(|call| PerCall {
            duration: duration.get_or_create(&[("call", call.name())]).clone(),
            outcomes: OUTCOMES
                .map(|outcome| calls.get_or_create(&[("call", call.name()), ("outcome", outcome.name())]).clone()),
        });
        Self { calls, in_flight }
    }

    /// Calls to a node that are not answered yet.
    pub fn in_flight(&self, node: u64) -> Gauge {
        self.in_flight.get_or_create(&[("node", node)]).clone()
    }

    /// A call begins. It ends with [`PeerGuard::finish`]; a guard that is dropped counts as cancelled.
    pub fn begin<'a>(&'a self, in_flight: &'a Gauge, call: PeerCall) -> PeerGuard<'a> {
        in_flight.inc();
        PeerGuard { call: &self.calls[call as usize], in_flight, outcome: PeerOutcome::Cancelled }
    }
}

/// A call under way.
#[derive(Debug)]
#[must_use = "dropping it counts the call as cancelled"]
pub struct PeerGuard<'a> {
    call: &'a PerCall,
    in_flight: &'a Gauge,
    outcome: PeerOutcome,
}

impl PeerGuard<'_> {
    /// It ended, after so many microseconds.
    pub fn finish(mut self, outcome: PeerOutcome, micros: u64) {
        self.outcome = outcome;
        self.call.duration.observe_micros(micros);
    }
}

impl Drop for PeerGuard<'_> {
    fn drop(&mut self) {
        self.in_flight.dec();
        self.call.outcomes[self.outcome as usize].inc();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn calls_and_outcomes_are_listed_by_number() {
        assert!(PeerCall::ALL.iter().enumerate().all(|(i, call)| *call as usize == i));
        assert!(OUTCOMES.iter().enumerate().all(|(i, outcome)| *outcome as usize == i));
    }
}
