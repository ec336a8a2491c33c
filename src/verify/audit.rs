//! Holds a record against the node.

use crate::{
    client::CallError,
    verify::{Event, Findings, Link, MIN_STREAM_MS, Tally},
};

/// Events per Report; the API's limit.
const BATCH: usize = 1_000;

/// What repeating acknowledged tokens showed.
#[derive(Debug, Default)]
pub struct Audit {
    /// Tokens that were repeated.
    pub checked: u64,
    /// Of these, those whose allowance closed so long ago that the node can't say.
    pub forgotten: u64,
    /// What is wrong.
    pub findings: Findings,
}

/// Holds every campaign's ledger against its tally.
pub async fn compare_ledgers(link: &mut Link, tallies: &[Tally]) -> Result<Findings, CallError> {
    let mut findings = Findings::default();
    for tally in tallies {
        let campaign = link.campaign(&tally.name).await?;
        findings.add(tally.compare(&campaign));
    }
    Ok(findings)
}

/// Reports every token once more whose billable stream was acknowledged: each must be known already.
pub async fn repeat_tokens(link: &mut Link, counted: &[Vec<u8>]) -> Result<Audit, CallError> {
    let mut audit = Audit::default();
    for batch in counted.chunks(BATCH) {
        for reported in link.report_all(batch, Event::stream(MIN_STREAM_MS)).await? {
            audit.checked += 1;
            audit.forgotten += u64::from(!audit.findings.repeated(reported.status));
        }
    }
    Ok(audit)
}
