//! `andante demo`: the main job on an embedded default, with crashes and a verdict.

use std::{
    io::{IsTerminal, Write, stderr, stdout},
    path::PathBuf,
    process::ExitCode,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use andante_cluster::env::Env;
use anyhow::Context;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::demo::{self, Options, Progress};

/// Time between two updates of the progress bar.
const REDRAW: Duration = Duration::from_millis(100);

/// Plays a compressed day of listening against an embedded cluster of three nodes through the real gRPC API, crashes a
/// campaign's actor and a node on the way, and ends with a verdict and an HTML report. Exit code 1 if a promise was
/// broken.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Length of the day.
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u64).range(5..=600))]
    seconds: u64,
    /// Requests per second, on the mean of the day.
    #[arg(long, default_value_t = 2_000, value_parser = clap::value_parser!(u64).range(100..=100_000))]
    requests_per_s: u64,
    /// Nodes, all in this process; a single one is restarted instead of crashed.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u8).range(1..=9))]
    nodes: u8,
    /// Makes the day; the same seed makes the same day.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Where to write the HTML report.
    #[arg(long, default_value = "andante-demo.html", value_name = "FILE")]
    report: PathBuf,
    /// Print the verdict as JSON.
    #[arg(long)]
    pub(super) json: bool,
}

/// Runs it.
pub(super) async fn run(args: Args) -> anyhow::Result<ExitCode> {
    let dir = tempfile::tempdir().context("no temporary folder for the node's data")?;
    let progress = Arc::new(Progress::default());
    let bar = bar(args.json);
    let drawing = tokio::spawn(draw(bar.clone(), progress.clone()));
    let Args { seconds, requests_per_s, seed, .. } = args;
    let options = Options { seconds, requests_per_s, nodes: args.nodes.into(), seed };
    let outcome = demo::run(options, Env::production, dir.path(), progress).await;
    drawing.abort();
    bar.finish_and_clear();
    let outcome = outcome?;
    std::fs::write(&args.report, &outcome.html)
        .with_context(|| format!("cannot write the report to {}", args.report.display()))?;
    let verdict = &outcome.verdict;
    if args.json {
        writeln!(stdout(), "{}", serde_json::to_string(verdict)?)?;
    } else {
        writeln!(stdout(), "{verdict}\nreport      {}", args.report.display())?;
    }
    Ok(if verdict.ok { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// A bar on a terminal, nothing elsewhere.
fn bar(json: bool) -> ProgressBar {
    let target =
        if json || !stderr().is_terminal() { ProgressDrawTarget::hidden() } else { ProgressDrawTarget::stderr() };
    let style = ProgressStyle::with_template("{bar:40} {pos}/{len} requests  {msg}")
        .unwrap_or_else(|_| ProgressStyle::default_bar());
    ProgressBar::with_draw_target(Some(1), target).with_style(style)
}

async fn draw(bar: ProgressBar, progress: Arc<Progress>) {
    loop {
        bar.set_length(progress.requests_total.load(Ordering::Relaxed).max(1));
        bar.set_position(progress.requests.load(Ordering::Relaxed));
        let billed = progress.billed_micros.load(Ordering::Relaxed) as f64;
        let planned = progress.planned_micros.load(Ordering::Relaxed).max(1) as f64;
        bar.set_message(format!("{:.0} % of the budgets  {}", 100.0 * billed / planned, progress.phase()));
        tokio::time::sleep(REDRAW).await;
    }
}
