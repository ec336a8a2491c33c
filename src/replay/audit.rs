//! Holds the record against the node.

use crate::{
    client::{Event, Findings, Link, MIN_STREAM_MS, Tally},
    v1::OutcomeStatus,
};

/// Events per Report; the API's limit.
const BATCH: usize = 1_000;

/// What repeating the acknowledged tokens showed.
pub(super) struct Audit {
    /// Tokens that were repeated.
    pub(super) checked: u64,
    /// Of these, those whose allowance closed so long ago that the node can't say.
    pub(super) forgotten: u64,
    /// What is wrong.
    pub(super) findings: Findings,
}

/// Holds every campaign's ledger against its tally.
pub(super) async fn ledgers(link: &mut Link, tallies: &[Tally]) -> anyhow::Result<Findings> {
    let mut findings = Findings::default();
    for tally in tallies {
        let campaign = link.campaign(&tally.name).await?;
        findings.add(tally.compare(&campaign));
    }
    Ok(findings)
}

/// Reports every token once more whose billable stream was acknowledged: each must be known already.
pub(super) async fn tokens(link: &mut Link, counted: &[Vec<u8>]) -> anyhow::Result<Audit> {
    let mut audit = Audit { checked: 0, forgotten: 0, findings: Findings::default() };
    for batch in counted.chunks(BATCH) {
        for status in link.report_all(batch, Event::stream(MIN_STREAM_MS)).await? {
            audit.checked += 1;
            audit.see(status);
        }
    }
    Ok(audit)
}

impl Audit {
    fn see(&mut self, status: OutcomeStatus) {
        match status {
            OutcomeStatus::Duplicate => {}
            OutcomeStatus::ClosedUnknown => self.forgotten += 1,
            // It bills now or never did, so the acknowledged billing was gone.
            OutcomeStatus::Billed | OutcomeStatus::RefusedClosed => {
                self.findings.lost_outcomes += 1;
                self.findings.note(format!("an acknowledged token, reported again, answered {}", status.as_str_name()));
            }
            other => self
                .findings
                .wrong_answer(format!("an acknowledged token, reported again, answered {}", other.as_str_name())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_duplicate_proves_that_an_acknowledged_billing_is_still_there() {
        let mut audit = Audit { checked: 0, forgotten: 0, findings: Findings::default() };
        audit.see(OutcomeStatus::Duplicate);
        audit.see(OutcomeStatus::ClosedUnknown);
        assert!(audit.findings.clean());
        audit.see(OutcomeStatus::Billed);
        audit.see(OutcomeStatus::RefusedClosed);
        audit.see(OutcomeStatus::InvalidToken);
        assert_eq!((audit.forgotten, audit.findings.lost_outcomes, audit.findings.wrong_answers), (1, 2, 1));
    }
}
