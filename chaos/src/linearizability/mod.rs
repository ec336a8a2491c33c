//! Whether what clients saw of campaigns is linearizable: whether there is one order of all operations, each at a
//! moment between its call and its answer, in which every answer is right.
//!
//! [`check`] looks for that order when a history is complete. [`Online`] looks at each answer as it comes; it finds
//! less, at once and at little cost. [`Attempts`] makes operations of requests that were tried more than once.
//!
//! # What is known of an operation
//!
//! - A write without an answer is applied at any time after its call, or never.
//! - The answer to a write with a request id may be that to its repetition, which shows the campaign as it is by then.
//! - Revisions count: every change adds one, so that the answer to a write tells how many changes went before.
//! - A conditional write names the version it was made for. That of a campaign that is gone fits no later campaign.
//! - A campaign that is being deleted goes by itself at any time. Nothing else changes but by an operation: a history
//!   starts before the first create and is shorter than the time after which ended campaigns are purged.
//! - Of a campaign created without an answer the number is not known until it is seen.
//!
//! Campaigns are independent of each other, so that each is checked alone. What the ledger shows is not checked: it
//! changes without operations.
//!
//! # Why not porcupine-rs
//!
//! porcupine-rs 0.3.0 has the right verdict on all 108 recorded histories, and is fast enough on them. But its only
//! bound is a clock, and it starts a thread for each part of a history whenever it has more than one part, a limit or
//! an explanation to give: neither has a place in a simulation. A check with an explanation that runs out of time
//! answers `Illegal`, because a search that was stopped counts as one that failed. Calls without a return must be given
//! one. And criterion, rand and regex come along as dependencies of the library.
//!
//! So the search in [`wgl`] is ours: one thread, a budget of steps, calls without a return. It holds against the same
//! histories.

mod attempts;
mod explain;
mod model;
mod online;
mod operation;
pub mod wgl;

use std::collections::BTreeMap;

pub use attempts::Attempts;
pub use explain::Violation;
pub use online::Online;
pub use operation::{Action, Operation, Outcome, Refusal, Seen, State, Version};

use model::{CampaignModel, Step};
use wgl::{Call, Finding};

/// A campaign of five hundred operations, six at a time, one in ten of unknown fate, takes some ten thousand steps; many
/// unknown fates at once can take any number. A campaign that needs them all takes about a second in a debug build, and
/// some hundred bytes of memory a step.
pub const STEPS_MAX_DEFAULT: u64 = 200_000;

/// What a check found.
#[derive(Debug, Clone, PartialEq, Eq)]
#[must_use]
pub enum Verdict {
    /// There is an order.
    Linearizable,
    /// There is none for this campaign, the first such in the order of names.
    Violation(Violation),
    /// Not known: no violation was found, but the search ran out of steps. Not a success.
    OutOfTime {
        /// The campaigns for which it did.
        campaigns: Vec<String>,
    },
}

/// Checks a complete history, in any order, campaign by campaign, with at most `steps_max` steps for each: a campaign
/// that is hard to check hides no violation of another. The verdict depends on nothing but the arguments.
///
/// # Panics
/// If an operation returned before it was called, or has an outcome other than unknown without a time of return.
pub fn check(history: &[Operation], steps_max: u64) -> Verdict {
    let mut by_campaign: BTreeMap<&str, Vec<&Operation>> = BTreeMap::new();
    for operation in history {
        let is_sound = operation.returned.map_or(operation.outcome == Outcome::Unknown, |at| at >= operation.called);
        assert!(is_sound, "not a possible operation: {operation}");
        by_campaign.entry(&operation.campaign).or_default().push(operation);
    }
    let mut out_of_time = Vec::new();
    for (campaign, operations) in by_campaign {
        let mut calls: Vec<Call<Step>> = Vec::with_capacity(operations.len());
        let mut sources = Vec::with_capacity(operations.len());
        for (index, operation) in operations.iter().enumerate() {
            calls.extend(Step::calls(operation, calls.len()));
            sources.resize(calls.len(), index);
        }
        match wgl::search(CampaignModel::default(), &calls, steps_max) {
            Finding::Linearizable => {}
            Finding::Blocked { call, state } => {
                return Verdict::Violation(Violation::new(campaign, &operations, sources[call], &state));
            }
            Finding::OutOfSteps => out_of_time.push(campaign.to_owned()),
        }
    }
    if out_of_time.is_empty() { Verdict::Linearizable } else { Verdict::OutOfTime { campaigns: out_of_time } }
}
