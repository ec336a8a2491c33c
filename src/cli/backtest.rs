//! `andante backtest`: replays a recorded trace against the pacing code, offline.

use std::{
    io::{IsTerminal, Write, stderr, stdout},
    path::PathBuf,
    process::ExitCode,
};

use comfy_table::{CellAlignment, Table, presets};
use indicatif::{ProgressBar, ProgressDrawTarget};
use serde_json::json;

use crate::{
    backtest::{self, Options, PolicyName, Report, costs},
    trace::{self, Format},
};

/// Replays a recorded trace against the pacing code of the cluster, offline, and tells value against the best choice in
/// hindsight, spend against plan, and overspend (exit code 1 if there is any). A row's index is the clock.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The recorded trace, plain or gzipped.
    #[arg(long, value_name = "FILE")]
    trace: PathBuf,
    /// How the trace is written.
    #[arg(long, value_enum, default_value = "csv")]
    format: Format,
    /// Budget, as a share of what all rows together cost (times the billable share), (0, 1].
    #[arg(long, value_name = "X")]
    budget_fraction: f64,
    /// Who decides.
    #[arg(long, value_enum, default_value = "andante")]
    policy: PolicyName,
    /// Outcomes arrive so late, as a share of the flight, [0, 0.5]. It is the hold time, too.
    #[arg(long, value_name = "X", default_value_t = 0.0)]
    delay: f64,
    /// Share of the placements that become billable, (0, 1]. The others keep their money set aside until it expires.
    #[arg(long, value_name = "X", default_value_t = 1.0)]
    billable_share: f64,
    /// What the pacer is told of the billable share at the start, (0, 1]; the truth if not given.
    #[arg(long, value_name = "X")]
    expected_billable_share: Option<f64>,
    /// Other campaigns that compete for the slot: paced alike, together they want half of the rows.
    #[arg(long, value_name = "N", default_value_t = 0)]
    rivals: usize,
    /// Drop every second row of the second half; the others keep their index.
    #[arg(long)]
    drop_half: bool,
    /// Start with a traffic forecast of so many times the truth, instead of none.
    #[arg(long, value_name = "X")]
    forecast_factor: Option<f64>,
    /// Seed of what is billable and of what rivals value.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Tell what escrow costs for delays of 0.1-5 % and billable shares of 0.05-1, instead of one replay.
    #[arg(long, conflicts_with_all = ["delay", "billable_share", "expected_billable_share", "plot"])]
    escrow_table: bool,
    /// Print the result as JSON.
    #[arg(long)]
    pub(crate) json: bool,
    /// Draw spend against plan into this SVG file.
    #[arg(long, value_name = "FILE")]
    plot: Option<PathBuf>,
}

/// Runs it.
pub(crate) fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let options = Options {
        policy: args.policy,
        budget_fraction: args.budget_fraction,
        delay: args.delay,
        billable_share: args.billable_share,
        expected_billable_share: args.expected_billable_share,
        rivals: args.rivals,
        drop_half: args.drop_half,
        forecast_factor: args.forecast_factor,
        seed: args.seed,
    };
    let overspend_micros = if args.escrow_table { escrow_table(args, &options)? } else { one(args, &options)? };
    Ok(if overspend_micros == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn one(args: &Args, options: &Options) -> anyhow::Result<u64> {
    let report = backtest::run(&args.trace, args.format, options)?;
    if let Some(path) = &args.plot {
        backtest::plot::draw(&report, path)?;
    }
    if args.json {
        writeln!(stdout(), "{}", serde_json::to_string(&report)?)?;
    } else {
        print(&report)?;
        if let Some(path) = &args.plot {
            writeln!(stdout(), "plot          {}", path.display())?;
        }
    }
    Ok(report.overspend_micros)
}

fn print(r: &Report) -> std::io::Result<()> {
    let mut out = stdout().lock();
    writeln!(out, "policy        {} over {} rows", r.policy, r.rows)?;
    writeln!(out, "value ratio   {:.4} of the best choice in hindsight", r.value_ratio)?;
    writeln!(
        out,
        "utilisation   {:.4}: {} of {} micros billed, {} overspent",
        r.utilisation, r.spent_micros, r.budget_micros, r.overspend_micros
    )?;
    writeln!(out, "avg_err_96    {:.4}; busiest slice {:.2} x plan", r.avg_err_96, r.max_slice)?;
    writeln!(out, "placements    {}, of these {} billed, with {} clicks", r.placements, r.billed, r.clicks)?;
    writeln!(
        out,
        "refused       {} lost to rivals, {} nothing free, {} too many open allowances",
        r.refused.lost_slot, r.refused.nothing_free, r.refused.allowance_cap
    )
}

fn escrow_table(args: &Args, options: &Options) -> anyhow::Result<u64> {
    let rows = trace::read_all(&args.trace, args.format)?;
    let bar = ProgressBar::new((costs::DELAYS.len() * costs::SHARES.len()) as u64);
    if args.json || !stderr().is_terminal() {
        bar.set_draw_target(ProgressDrawTarget::hidden());
    }
    let table = costs::table(&rows, options, || bar.inc(1))?;
    bar.finish_and_clear();
    if args.json {
        writeln!(stdout(), "{}", json!({ "budget_fraction": options.budget_fraction, "escrow": table }))?;
    } else {
        let mut shown = Table::new();
        shown.load_style(presets::UTF8_BORDERS_ONLY);
        shown.set_header(["delay", "billable share", "utilisation", "possible", "value ratio"]);
        for cost in &table {
            shown.add_row([
                format!("{} %", cost.delay * 100.0),
                cost.billable_share.to_string(),
                format!("{:.4}", cost.utilisation),
                format!("{:.4}", cost.possible),
                format!("{:.4}", cost.value_ratio),
            ]);
        }
        for column in shown.column_iter_mut() {
            column.set_cell_alignment(CellAlignment::Right);
        }
        writeln!(stdout(), "{shown}")?;
    }
    Ok(table.iter().map(|c| c.overspend_micros).sum())
}
