//! `andante replay`: plays a recorded trace against a running node and verifies what became of it.

use std::{
    io::{IsTerminal, Write, stderr, stdout},
    path::PathBuf,
    process::ExitCode,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use andante_cluster::env::{Rng, SystemRng};
use anyhow::Context;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde_json::json;
use tokio_util::sync::CancellationToken;

use super::{connect::Reach, failure::Failure};
use crate::{
    replay::{self, Options, Progress, Record},
    trace::{self, Format},
    verify::{Link, Patience},
};

/// Time between two updates of the progress bar.
const REDRAW: Duration = Duration::from_millis(100);

/// Drives a running node with a recorded trace, keeps its own record of what was acknowledged, and compares it with
/// the ledgers at the end. Exit code 1 if anything was lost, billed twice or overspent, or if nothing was billed. SIGTERM
/// and Ctrl-C end it early: rows under way are finished, and what was played is verified.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// The recorded trace, plain or gzipped.
    #[arg(long, value_name = "FILE", required_unless_present = "verify")]
    trace: Option<PathBuf>,
    /// How the trace is written.
    #[arg(long, value_enum, default_value = "csv")]
    format: Format,
    #[command(flatten)]
    reach: Reach,
    /// Play only the first rows.
    #[arg(long, value_name = "N")]
    rows: Option<usize>,
    /// Rows in flight over all connections.
    #[arg(long, default_value_t = 128, value_parser = clap::value_parser!(u16).range(1..=4096))]
    in_flight: u16,
    /// Connections, each with a thread of its own.
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u8).range(1..=64))]
    connections: u8,
    /// Campaigns to create.
    #[arg(long, default_value_t = 32, value_parser = clap::value_parser!(u16).range(1..=10_000))]
    campaigns: u16,
    /// Candidates per request, each of another campaign.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=500))]
    candidates: u16,
    /// Price of a delivery, in micros.
    #[arg(long, default_value_t = 1_000, value_parser = clap::value_parser!(u64).range(1..=1_000_000_000))]
    price_micros: u64,
    /// Deliveries that each campaign's budget pays; more than the replay can use if not given.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    deliveries: Option<u64>,
    /// Length of the flights, in seconds from now.
    #[arg(long, default_value_t = 3_600, value_parser = clap::value_parser!(u64).range(10..=86_400))]
    flight_s: u64,
    /// How long to wait for a node that went away, in milliseconds.
    #[arg(long, default_value_t = 30_000)]
    wait_restart_ms: u64,
    /// Write what was sent and acknowledged to this file, line by line.
    #[arg(long, value_name = "FILE")]
    record: Option<PathBuf>,
    /// Play nothing: hold a record written earlier against the node.
    #[arg(long, value_name = "FILE", conflicts_with_all = ["trace", "record"])]
    verify: Option<PathBuf>,
    /// Print the result as JSON.
    #[arg(long)]
    pub(super) json: bool,
}

/// Runs it.
pub(super) async fn run(args: Args) -> anyhow::Result<ExitCode> {
    let patience = Patience { outage: Duration::from_millis(args.wait_restart_ms), ..Patience::default() };
    if let Some(path) = &args.verify {
        return verify(path, &args, patience).await;
    }
    let path = args.trace.context("--trace is missing")?;
    let format = args.format;
    let mut rows = tokio::task::spawn_blocking(move || trace::read_all(&path, format)).await??;
    rows.truncate(args.rows.unwrap_or(usize::MAX));
    let stop = CancellationToken::new();
    let options = Options {
        client: args.reach.config()?,
        prefix: format!("replay-{:08x}", SystemRng.u64() as u32),
        connections: args.connections.into(),
        in_flight: args.in_flight.into(),
        campaigns: args.campaigns.into(),
        candidates: args.candidates.into(),
        price_micros: args.price_micros,
        deliveries: args.deliveries,
        flight: Duration::from_secs(args.flight_s),
        patience,
        record: args.record,
        stop: stop.clone(),
    };
    let progress = Arc::new(Progress::default());
    let bar = bar(rows.len() as u64, args.json);
    let drawing = tokio::spawn(draw(bar.clone(), progress.clone()));
    let stopping = tokio::spawn(async move {
        super::node::signal().await;
        stop.cancel();
        // Whoever asks twice does not want to wait for rows under way.
        super::node::signal().await;
        std::process::exit(1);
    });
    let summary = replay::run(&rows, &options, progress).await;
    stopping.abort();
    drawing.abort();
    bar.finish_and_clear();
    let summary = summary?;
    let text = if args.json { serde_json::to_string(&summary)? } else { summary.to_string() };
    writeln!(stdout(), "{text}")?;
    Ok(if summary.ok { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

async fn verify(path: &std::path::Path, args: &Args, patience: Patience) -> anyhow::Result<ExitCode> {
    let record = Record::read(path)?;
    let config = args.reach.config()?;
    let mut link = Link::new(config, patience).map_err(Failure::from)?;
    let (findings, checked) = replay::verify(&record, &mut link).await?;
    let ok = findings.clean();
    if args.json {
        let mut value = serde_json::to_value(&findings)?;
        value["ok"] = json!(ok);
        value["audited"] = json!(checked);
        writeln!(stdout(), "{value}")?;
    } else {
        for note in &findings.notes {
            writeln!(stdout(), "WRONG      {note}")?;
        }
        writeln!(
            stdout(),
            "verdict    {}: {checked} acknowledged streams reported again; {} lost, {} double billed, {} micros overspent",
            if ok { "ok" } else { "BROKEN" },
            findings.lost_outcomes,
            findings.double_billed,
            findings.overspend_micros
        )?;
    }
    Ok(if ok { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// A bar on a terminal, nothing elsewhere.
fn bar(rows: u64, json: bool) -> ProgressBar {
    let target =
        if json || !stderr().is_terminal() { ProgressDrawTarget::hidden() } else { ProgressDrawTarget::stderr() };
    let style = ProgressStyle::with_template("{bar:40} {pos}/{len} rows {per_sec} {msg} {eta}")
        .unwrap_or_else(|_| ProgressStyle::default_bar());
    ProgressBar::with_draw_target(Some(rows), target).with_style(style)
}

async fn draw(bar: ProgressBar, progress: Arc<Progress>) {
    loop {
        bar.set_position(progress.rows.load(Ordering::Relaxed));
        bar.set_message(format!("{} billed", progress.billed.load(Ordering::Relaxed)));
        tokio::time::sleep(REDRAW).await;
    }
}
