//! What a run tells: one line of JSON on standard output.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::plan::Plan;

/// A seed counts with at least so much simulated time under faults.
pub const FAULTS_MS_MIN: u64 = 60_000;
/// A seed counts with at least so many acknowledged settles.
pub const SETTLES_MIN: u64 = 1_000;
/// A seed counts with at least so many kinds of faults that had a visible effect.
pub const KINDS_MIN: usize = 3;

/// One run's result.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// The seed.
    pub seed: u64,
    /// The broken promise; `None`: all held.
    pub violation: Option<Violation>,
    /// Simulated time, milliseconds.
    pub simulated_ms: u64,
    /// Of that, with faults.
    pub faults_ms: u64,
    /// Settles that were acknowledged to clients.
    pub settles: u64,
    /// Faults by name.
    pub faults: BTreeMap<String, FaultCount>,
    /// How often each marked situation came up.
    pub markers: BTreeMap<String, u64>,
    /// The trace's hash, in hexadecimal: equal in each run of the same plan.
    pub trace: String,
    /// Events in the trace.
    pub events: u64,
    /// How often the chosen mutant's line ran; `None`: none was chosen.
    pub mutant_hits: Option<u64>,
    /// What was played.
    pub plan: Plan,
    /// Nodes, faults, leaders and the broken promise in the order they came, as lines of text.
    pub timeline: Vec<String>,
}

/// A broken promise.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Violation {
    /// Who found it; also its class: a shorter schedule must break the same one.
    pub oracle: String,
    /// What is broken.
    pub what: String,
    /// When it was seen, simulated milliseconds.
    pub at_ms: u64,
}

/// How often a fault came.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct FaultCount {
    /// Times it was drawn and began.
    pub begun: u64,
    /// Of these, with a visible effect.
    pub seen: u64,
}

impl Report {
    /// Why the run does not count as one of those that held; `None`: it counts.
    pub fn falls_short(&self) -> Option<String> {
        let kinds = self.faults.values().filter(|count| count.seen > 0).count();
        if self.faults_ms < FAULTS_MS_MIN {
            Some(format!("{} ms under faults, not {FAULTS_MS_MIN}", self.faults_ms))
        } else if self.settles < SETTLES_MIN {
            Some(format!("{} acknowledged settles, not {SETTLES_MIN}", self.settles))
        } else if kinds < KINDS_MIN {
            Some(format!("{kinds} kinds of faults with a visible effect, not {KINDS_MIN}"))
        } else {
            None
        }
    }
}
