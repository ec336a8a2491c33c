//! A violation in words.

use std::fmt;

use super::{Operation, model::CampaignModel};

/// An explanation has at most this many operations, the latest: a reader follows no more.
const OPERATIONS_SHOWN_MAX: usize = 40;

/// Why no order explains what clients saw of a campaign.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Violation {
    /// The campaign's name.
    pub campaign: String,
    /// The shortest beginning of the history that has no order, in the order of the calls, one operation a line; then
    /// the answer that does not fit, and where an order of the others leads, one of possibly several.
    pub lines: Vec<String>,
}

impl Violation {
    /// `operations` are the campaign's. There is no order once that of index `culprit` is answered; before that there
    /// is one that leads to `state`.
    pub(super) fn new(campaign: &str, operations: &[&Operation], culprit: usize, state: &CampaignModel) -> Self {
        let culprit = operations[culprit];
        let mut prefix: Vec<&Operation> =
            operations.iter().copied().filter(|operation| Some(operation.called) <= culprit.returned).collect();
        prefix.sort_by_key(|operation| operation.called);
        let hidden = prefix.len().saturating_sub(OPERATIONS_SHOWN_MAX);
        let mut lines = Vec::new();
        if hidden > 0 {
            lines.push(format!("... {hidden} earlier operations"));
        }
        lines.extend(prefix[hidden..].iter().map(|operation| {
            // What was answered later plays no part yet.
            let is_open = operation.returned.is_none_or(|returned| Some(returned) > culprit.returned);
            format!("{operation}{}", if is_open { " (open)" } else { "" })
        }));
        lines.push(format!("no place for {culprit}"));
        lines.push(format!("after an order of the others that leads to {}", state.describe()));
        Self { campaign: campaign.to_owned(), lines }
    }
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "campaign {}: no order explains what clients saw", self.campaign)?;
        self.lines.iter().try_for_each(|line| write!(f, "\n  {line}"))
    }
}
