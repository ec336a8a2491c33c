//! `andante-chaos replay`: plays one run and tells all of it.

use std::fmt::Write as _;

use super::{
    args,
    failure::{FAILED, Failure},
    output::table,
};
use crate::report::{FaultCount, Report, Violation};

/// Plays one seed or one plan and tells its timeline, its faults and its verdict. What the simulation logs (RUST_LOG)
/// goes to standard error.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    what: args::What,
    #[command(flatten)]
    pub(super) common: args::Common,
}

pub(super) async fn run(args: Args) -> anyhow::Result<u8> {
    let mut player = args.common.player()?;
    player.talks = true;
    let played = player.play(&args.what.run(true)).await.map_err(Failure::from)?;
    args.common.output().result(&played.report, text)?;
    Ok(if played.report.violation.is_some() { FAILED } else { 0 })
}

fn text(report: &Report) -> String {
    let mut text = format!("{}\n\n", report.timeline.join("\n"));
    let mut faults = table(["fault", "begun", "with effect"]);
    for (fault, FaultCount { begun, seen }) in &report.faults {
        faults.add_row([fault.clone(), begun.to_string(), seen.to_string()]);
    }
    let plan = &report.plan;
    let _ = writeln!(text, "{}\n\nseed       {}", faults.trim_fmt(), report.seed);
    let _ = writeln!(
        text,
        "cluster    {} nodes, {} shards, {} clients, {} campaigns{}",
        plan.nodes,
        plan.shards,
        plan.load.clients,
        plan.load.campaigns,
        if plan.beyond { "; more is destroyed than it can survive" } else { "" }
    );
    let seconds = |ms: u64| ms as f64 / 1e3;
    let (simulated_s, faults_s) = (seconds(report.simulated_ms), seconds(report.faults_ms));
    let _ = writeln!(text, "simulated  {simulated_s:.1} s, of which {faults_s:.1} s under faults");
    let _ = writeln!(text, "settles    {} acknowledged", report.settles);
    let _ = writeln!(text, "trace      {} ({} events)", report.trace, report.events);
    if let Some(hits) = report.mutant_hits {
        let _ = writeln!(text, "mutant     its line ran {hits} times");
    }
    let verdict = match (&report.violation, report.falls_short()) {
        (Some(Violation { oracle, what, at_ms }), _) => {
            format!("broken: {what} ({oracle}, at {:.3} s)", seconds(*at_ms))
        }
        (None, None) => "all held".to_owned(),
        (None, Some(why)) => format!("all held, but the run does not count: {why}"),
    };
    let _ = write!(text, "verdict    {verdict}");
    text
}
