//! What a replay ends with.

use std::{fmt, time::Duration};

use hdrhistogram::Histogram;
use serde::Serialize;

use crate::{replay::lane::LaneResult, verify::Findings};

/// The figures of a run.
#[derive(Debug, Clone, Serialize)]
pub struct Summary {
    /// Whether something was billed and nothing is wrong.
    pub ok: bool,
    /// Rows played.
    pub rows: u64,
    /// Of these, rows with a placement.
    pub placed: u64,
    /// Billable streams acknowledged.
    pub billed: u64,
    /// Billable streams whose fate nobody knows.
    pub billed_unknown: u64,
    /// Impressions acknowledged.
    pub impressions: u64,
    /// Saves acknowledged.
    pub saves: u64,
    /// Events that came after their allowance had closed.
    pub too_late: u64,
    /// Score requests that were refused.
    pub failed: u64,
    /// Score replies from which a shard was missing.
    pub incomplete: u64,
    /// Calls that were repeated.
    pub retries: u64,
    /// Acknowledged streams that were reported again while the replay ran.
    pub repeated: u64,
    /// Acknowledged streams that were reported again at the end.
    pub audited: u64,
    /// Of these, those the node has forgotten (closed too long ago).
    pub forgotten: u64,
    /// Longest time without an answer to an event, from its first failure, in milliseconds.
    pub longest_outage_ms: u64,
    /// How long the rows took, in milliseconds.
    pub took_ms: u64,
    /// Rows per second.
    pub rows_per_s: f64,
    /// Billed per second.
    pub billed_per_s: f64,
    /// Latency of Score: median.
    pub score_p50_us: u64,
    /// Latency of Score: 99 of 100 are faster.
    pub score_p99_us: u64,
    /// Latency of Report: median.
    pub report_p50_us: u64,
    /// Latency of Report: 99 of 100 are faster.
    pub report_p99_us: u64,
    /// What is wrong.
    #[serde(flatten)]
    pub findings: Findings,
}

impl Summary {
    pub(super) fn new(
        rows: u64,
        took: Duration,
        result: LaneResult,
        audited: u64,
        forgotten: u64,
        findings: Findings,
    ) -> Self {
        let sum = |f: fn(&crate::verify::Tally) -> u64| result.tallies.iter().map(f).sum::<u64>();
        let at = |h: &Histogram<u64>, quantile| h.value_at_quantile(quantile);
        let billed = sum(|t| t.billed.acked);
        let seconds = took.as_secs_f64().max(1e-6);
        let rounded = |n: u64| (n as f64 / seconds * 10.0).round() / 10.0;
        Summary {
            ok: billed > 0 && findings.clean(),
            rows,
            placed: sum(|t| t.placed),
            billed,
            billed_unknown: sum(|t| t.billed.unknown),
            impressions: sum(|t| t.impressions.acked),
            saves: sum(|t| t.saves.acked),
            too_late: sum(|t| t.too_late),
            failed: result.failed,
            incomplete: result.incomplete,
            retries: result.retries,
            repeated: result.repeated,
            audited,
            forgotten,
            longest_outage_ms: result.longest_outage.as_millis() as u64,
            took_ms: took.as_millis() as u64,
            rows_per_s: rounded(rows),
            billed_per_s: rounded(billed),
            score_p50_us: at(&result.score_micros, 0.5),
            score_p99_us: at(&result.score_micros, 0.99),
            report_p50_us: at(&result.report_micros, 0.5),
            report_p99_us: at(&result.report_micros, 0.99),
            findings,
        }
    }
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let share = 100.0 * self.placed as f64 / self.rows.max(1) as f64;
        writeln!(f, "rows       {} in {:.1} s: {:.0}/s", self.rows, self.took_ms as f64 / 1000.0, self.rows_per_s)?;
        writeln!(f, "placed     {} ({share:.1} % of the rows)", self.placed)?;
        writeln!(f, "billed     {}: {:.0}/s, {} of unknown fate", self.billed, self.billed_per_s, self.billed_unknown)?;
        writeln!(f, "recorded   {} impressions, {} saves; {} too late", self.impressions, self.saves, self.too_late)?;
        writeln!(
            f,
            "repeated   {} calls for want of an answer (longest outage {} ms)",
            self.retries, self.longest_outage_ms
        )?;
        writeln!(f, "score      p50 {} us, p99 {} us", self.score_p50_us, self.score_p99_us)?;
        writeln!(f, "report     p50 {} us, p99 {} us", self.report_p50_us, self.report_p99_us)?;
        writeln!(
            f,
            "audit      {} acknowledged streams reported again, {} of them forgotten by now",
            self.audited + self.repeated,
            self.forgotten
        )?;
        let findings = &self.findings;
        for note in &findings.notes {
            writeln!(f, "WRONG      {note}")?;
        }
        write!(
            f,
            "verdict    {}: {} lost, {} double billed, {} micros overspent, {} wrong answers",
            if self.ok { "ok" } else { "BROKEN" },
            findings.lost_outcomes,
            findings.double_billed,
            findings.overspend_micros,
            findings.wrong_answers
        )
    }
}
