//! Plays one plan. The only program that links mad-turmoil, whose clock stands still outside a simulation.

use std::{io::Write as _, path::PathBuf, process::ExitCode};

use andante_chaos::{plan::Plan, report::Report, simulation};
use anyhow::Context as _;
use clap::Parser;
use rand::{SeedableRng as _, rngs::StdRng};

/// Play one plan of the simulation and print what became of it as one line of JSON.
///
/// Exit codes: 0 all promises held; 1 one is broken; 2 wrong usage.
#[derive(Debug, Parser)]
#[command(name = "andante-chaos-sim")]
struct Args {
    /// Play the plan of this seed.
    #[arg(long, required_unless_present_any = ["plan", "draw"], conflicts_with_all = ["plan", "draw"])]
    seed: Option<u64>,
    /// Play the plan in this file.
    #[arg(long)]
    plan: Option<PathBuf>,
    /// Print the plan of a seed instead of playing it.
    #[arg(long, value_name = "SEED")]
    draw: Option<u64>,
    /// Print the timeline even if all promises held.
    #[arg(long)]
    timeline: bool,
}

fn main() -> ExitCode {
    match play(&Args::parse()) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(1),
        Err(error) => {
            // Nowhere is left to say that it failed.
            let _ = writeln!(std::io::stderr(), "error: {error:#}");
            ExitCode::from(2)
        }
    }
}

fn play(args: &Args) -> anyhow::Result<bool> {
    let plan = match (&args.plan, args.seed.or(args.draw)) {
        (Some(path), _) => Plan::read(path)?,
        (None, Some(seed)) => Plan::draw(seed),
        (None, None) => anyhow::bail!("a seed or a plan is needed"),
    };
    if args.draw.is_some() {
        writeln!(std::io::stdout(), "{}", serde_json::to_string_pretty(&plan)?)?;
        return Ok(true);
    }
    logs();
    let shared_memory = PathBuf::from("/dev/shm");
    let parent = if shared_memory.is_dir() { shared_memory } else { std::env::temp_dir() };
    let root = parent.join(format!("andante-chaos-{}", std::process::id()));
    // From here on the process has no other randomness and no other time.
    mad_turmoil::rand::set_rng(StdRng::seed_from_u64(plan.seed));
    let clocks = mad_turmoil::time::SimClocksGuard::init();
    let mut report = simulation::run(&plan, &root);
    drop(clocks);
    if report.violation.is_none() && !args.timeline {
        report.timeline.clear();
    }
    print(&report).context("the report can't be written")?;
    Ok(report.violation.is_none())
}

fn print(report: &Report) -> anyhow::Result<()> {
    writeln!(std::io::stdout(), "{}", serde_json::to_string(report)?)?;
    Ok(())
}

/// What nodes log, for those who ask for it by `RUST_LOG`.
fn logs() {
    if std::env::var_os("RUST_LOG").is_some() {
        tracing_subscriber::fmt()
            .with_env_filter(tracing_subscriber::EnvFilter::from_default_env())
            .with_writer(std::io::stderr)
            .without_time()
            .init();
    }
}
