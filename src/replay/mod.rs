//! Plays a recorded trace against a running node, and proves from the outside that nothing was lost, billed twice or
//! overspent, whatever happened to the node meanwhile.
//!
//! Each row becomes a score request for one slot; a placement is followed by an impression and a billable stream, a
//! click adds a save; one event per Report. The rows are dealt to lanes ([`lane`]): one thread, one connection and
//! many rows in flight each, without anything shared between lanes but a counter for the progress bar.

mod campaigns;
mod lane;
mod record;
mod summary;

use std::{
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use anyhow::{Context, ensure};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

pub use record::Record;
pub use summary::Summary;

use crate::{
    client::ClientConfig,
    trace::Row,
    verify::{self, Findings, Link, Patience},
};

/// What to replay, and how.
#[derive(Debug, Clone)]
pub struct Options {
    /// Where the nodes are, and who is asking. The patience sets the deadlines.
    pub client: ClientConfig,
    /// Begins the names of the replay's campaigns; unique per run.
    pub prefix: String,
    /// Connections, each with a thread of its own.
    pub connections: usize,
    /// Rows in flight over all connections.
    pub in_flight: usize,
    /// Campaigns to create; their names spread over the node's shards.
    pub campaigns: usize,
    /// Candidates per request, each of another campaign.
    pub candidates: usize,
    /// Price of a delivery.
    pub price_micros: u64,
    /// Deliveries each campaign can pay; `None`: more than the replay can use.
    pub deliveries: Option<u64>,
    /// Length of the flights from now on.
    pub flight: Duration,
    /// How long to wait for answers.
    pub patience: Patience,
    /// Where to write the acknowledged record, if anywhere.
    pub record: Option<PathBuf>,
    /// When cancelled, no further row is begun; those under way are finished and judged.
    pub stop: CancellationToken,
}

/// Counts rows done and billed while the replay runs.
#[derive(Debug, Default)]
pub struct Progress {
    /// Rows done.
    pub rows: AtomicU64,
    /// Billed so far.
    pub billed: AtomicU64,
}

/// One row as it is played.
#[derive(Debug, Clone, Copy)]
struct Play {
    relevance: f64,
    click: bool,
}

/// Relevance is the predicted click probability over its mean so far: what a personalization service knows at the time.
fn plays(rows: &[Row]) -> Arc<[Play]> {
    let mut sum = 0.0;
    rows.iter()
        .enumerate()
        .map(|(i, row)| {
            sum += row.pctr;
            let mean = sum / (i + 1) as f64;
            Play { relevance: if mean > 0.0 { row.pctr / mean } else { 1.0 }, click: row.click }
        })
        .collect()
}

/// Plays the rows and verifies the result.
pub async fn run(rows: &[Row], options: &Options, progress: Arc<Progress>) -> anyhow::Result<Summary> {
    ensure!(!rows.is_empty(), "the trace has no rows");
    ensure!(options.candidates >= 1 && options.candidates <= options.campaigns, "1 to `campaigns` candidates per row");
    let mut link = Link::new(options.client.clone(), options.patience)?;
    let planned = campaigns::create(&mut link, options).await?;
    let mut writer = None;
    if let Some(path) = &options.record {
        record::begin(path, &planned)?;
        writer = Some(record::Writer::open(path)?);
    }
    let mut result = lane::LaneResult::new(&planned);
    campaigns::wake(&mut link, &planned, &mut result.tallies, &mut writer).await?;
    let plays = plays(rows);
    let started = Instant::now();
    let lanes = options.connections.clamp(1, options.in_flight.max(1));
    let handles: Vec<_> = (0..lanes)
        .map(|index| {
            let lane = lane::Lane {
                index,
                lanes,
                in_flight: (options.in_flight / lanes).max(1),
                candidates: options.candidates,
                campaigns: planned.clone(),
                plays: plays.clone(),
                progress: progress.clone(),
                record: options.record.clone(),
                stop: options.stop.clone(),
            };
            let (config, patience) = (options.client.clone(), options.patience);
            // A thread and a runtime of its own: no task of a lane ever moves between cores.
            tokio::task::spawn_blocking(move || lane.run(config, patience))
        })
        .collect();
    for handle in handles {
        result.merge(handle.await.context("a lane panicked")??);
    }
    let took = started.elapsed();

    let mut findings = std::mem::take(&mut result.findings);
    findings.add(verify::compare_ledgers(&mut link, &result.tallies).await?);
    let audit = verify::repeat_tokens(&mut link, &result.counted).await?;
    findings.add(audit.findings);
    // Repeating what was acknowledged changed nothing.
    let mut after = verify::compare_ledgers(&mut link, &result.tallies).await?;
    if !after.clean() && findings.clean() {
        after.note("the ledgers changed when acknowledged events were repeated".into());
        findings.add(after);
    }
    let played = progress.rows.load(Ordering::Relaxed);
    Ok(Summary::new(played, took, result, audit.checked, audit.forgotten, findings))
}

/// Holds a record from a file against a running node: ledgers, and every acknowledged token once more.
pub async fn verify(record: &Record, link: &mut Link) -> anyhow::Result<(Findings, u64)> {
    let mut findings = verify::compare_ledgers(link, &record.tallies).await?;
    let audit = verify::repeat_tokens(link, &record.counted).await?;
    findings.add(audit.findings);
    Ok((findings, audit.checked))
}

impl Progress {
    fn row_done(&self, billed: bool) {
        self.rows.fetch_add(1, Ordering::Relaxed);
        self.billed.fetch_add(u64::from(billed), Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn relevance_is_the_click_probability_over_its_mean_so_far() {
        let row = |pctr, click| Row { index: 0, click, price_micros: 1, pctr, hour: None };
        let plays = plays(&[row(0.2, false), row(0.4, true), row(0.0, false)]);
        let relevance: Vec<f64> = plays.iter().map(|p| (p.relevance * 1000.0).round() / 1000.0).collect();
        assert_eq!(relevance, [1.0, 1.333, 0.0]);
        assert!(plays[1].click && !plays[0].click);
        assert_eq!(super::plays(&[row(0.0, false)])[0].relevance, 1.0);
    }
}
