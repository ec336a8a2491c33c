//! Plays one plan. The only program that links mad-turmoil, whose clock stands still outside a simulation.

use std::{io::Write as _, path::PathBuf, process::ExitCode};

use andante_chaos::{logs::Logs, mutants, plan::Plan, report::Report, simulation};
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
    #[arg(long, required_unless_present_any = ["plan", "draw", "mutants"], conflicts_with_all = ["plan", "draw"])]
    seed: Option<u64>,
    /// Play the plan in this file.
    #[arg(long)]
    plan: Option<PathBuf>,
    /// Print the plan of a seed instead of playing it.
    #[arg(long, value_name = "SEED")]
    draw: Option<u64>,
    /// Play it with this seeded bug, in a program that has them: built with ANDANTE_MUTANTS=1.
    #[arg(long, value_name = "ID")]
    mutant: Option<String>,
    /// Print the seeded bugs of this program.
    #[arg(long)]
    mutants: bool,
    /// Write what nodes log to standard error, up to this level: error, warn, info, debug or trace.
    #[arg(long, value_name = "LEVEL")]
    logs: Option<tracing::Level>,
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
    if args.mutants {
        writeln!(std::io::stdout(), "{}", serde_json::to_string(&mutants::all())?)?;
        return Ok(true);
    }
    let plan = match (&args.plan, args.seed.or(args.draw)) {
        (Some(path), _) => Plan::read(path)?,
        (None, Some(seed)) => Plan::draw(seed),
        (None, None) => anyhow::bail!("a seed or a plan is needed"),
    };
    if args.draw.is_some() {
        writeln!(std::io::stdout(), "{}", serde_json::to_string_pretty(&plan)?)?;
        return Ok(true);
    }
    if let Some(level) = args.logs {
        tracing::subscriber::set_global_default(Logs::new(level))?;
    }
    let root = std::env::temp_dir().join(format!("andante-chaos-{}", std::process::id()));
    if let Some(mutant) = &args.mutant {
        mutants::choose(mutant)?;
    }
    // From here on the process has no other randomness and no other time.
    mad_turmoil::rand::set_rng(StdRng::seed_from_u64(plan.seed));
    let clocks = mad_turmoil::time::SimClocksGuard::init();
    let mut report = simulation::run(&plan, &root);
    drop(clocks);
    report.mutant_hits = args.mutant.as_ref().map(|_| mutants::hits());
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
