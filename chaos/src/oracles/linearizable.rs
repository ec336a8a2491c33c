//! Invariant 4: what owners see of campaigns is linearizable. Each answer is held against what was known before it was
//! asked for; in the end there must be an order of all operations in which every answer is right.

use std::sync::Arc;

use super::{Found, Oracle, Told};
use crate::{
    linearizability::{self, Online, Operation, Outcome, Refusal, STEPS_MAX_DEFAULT, Verdict},
    markers::Markers,
    workloads,
};

/// Linearizable reads and writes of campaigns.
pub(super) struct Linearizable {
    markers: Arc<Markers>,
    online: Online,
    /// The operations on names of which all are told.
    history: Vec<Operation>,
}

impl Linearizable {
    pub(super) fn new(markers: Arc<Markers>) -> Self {
        Self { markers, online: Online::default(), history: Vec::new() }
    }
}

impl Oracle for Linearizable {
    fn name(&self) -> &'static str {
        "linearizable"
    }

    fn told(&mut self, told: &Told<'_>) -> Found {
        let Told::Operation(operation) = told else { return Ok(()) };
        if operation.outcome == Outcome::Refused(Refusal::StaleEtag) && operation.action.expected().is_some() {
            self.markers.hit("stale-update-refused");
        }
        if workloads::are_all_told(&operation.campaign) {
            self.history.push((*operation).clone());
        }
        self.online.observe(operation)
    }

    fn over(&mut self) -> Found {
        match linearizability::check(&self.history, STEPS_MAX_DEFAULT) {
            Verdict::Linearizable => Ok(()),
            Verdict::Violation(violation) => Err(violation.to_string()),
            Verdict::OutOfTime { campaigns } => {
                campaigns.iter().for_each(|_| self.markers.hit("history-not-decided"));
                Ok(())
            }
        }
    }
}
