//! The command line that plays many runs of the simulation, each in a process of its own, and tells what they say.
//!
//! `player` plays one run; `queue` many of them; each command is a file. What is decided (which plan to try next, what
//! sums say, where two reports differ) is decided by plain functions of values.
//!
//! Exit codes: 0 all held; 1 a promise was broken, a marked situation never came up or too few seeds count; 2 wrong
//! usage; 3 the simulation itself broke, so that nothing is known; 130 stopped by somebody.

mod args;
mod case;
mod ci;
mod cpu;
mod ddmin;
mod failure;
mod gate;
mod git;
mod mutant_table;
mod mutants;
mod output;
mod player;
mod queue;
mod reductions;
mod replay;
mod seeds;
mod shrink;
mod sim;
mod sweep;
mod totals;

use std::{ffi::OsString, process::ExitCode};

use clap::{Parser, Subcommand};
use tokio::signal::unix::{SignalKind, signal};

use self::{failure::Failure, output::Output};

/// Plays the whole cluster in a deterministic simulation, under faults, and holds it to its promises.
#[derive(Debug, Parser)]
#[command(name = "andante-chaos", version, arg_required_else_help = true, after_help = EXIT_CODES)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

const EXIT_CODES: &str = "\
Exit codes: 0 all held, 1 a promise was broken, a marked situation never came up or too few seeds count, \
2 wrong usage, 3 the simulation itself broke, 130 stopped.";

// One value per process: its size does not matter.
#[allow(clippy::large_enum_variant)]
#[derive(Debug, Subcommand)]
enum Command {
    /// Play many seeds.
    Sim(sim::Args),
    /// Play seeds twice: both runs must be the same.
    Gate(gate::Args),
    /// Play one run and tell all of it.
    Replay(replay::Args),
    /// Shrink a plan that breaks a promise.
    Shrink(shrink::Args),
    /// Count the seeds it takes to notice seeded bugs.
    Mutants(mutants::Args),
    /// Play what must hold before a change lands.
    Ci(ci::Args),
}

/// Parses the process's arguments and runs the command.
pub fn main() -> ExitCode {
    run(std::env::args_os())
}

fn run(args: impl IntoIterator<Item = OsString>) -> ExitCode {
    let cli = match Cli::try_parse_from(args) {
        Ok(cli) => cli,
        Err(error) => {
            // Help and version are no errors: clap knows where each goes.
            let _ = error.print();
            return ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(failure::USAGE));
        }
    };
    let output = Output::new(cli.command.json());
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return output.failure(&Failure::broke(format!("the runtime can't be started: {error}"))),
    };
    match runtime.block_on(interruptible(cli.command.run())) {
        Ok(code) => ExitCode::from(code),
        Err(error) => output.failure(&Failure::from(error)),
    }
}

/// Runs a command until it ends or somebody stops it. Dropped, it kills the runs that play.
async fn interruptible(command: impl Future<Output = anyhow::Result<u8>>) -> anyhow::Result<u8> {
    let (mut interrupt, mut terminate) = (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
    tokio::select! {
        result = command => result,
        _ = interrupt.recv() => Err(Failure::interrupted().into()),
        _ = terminate.recv() => Err(Failure::interrupted().into()),
    }
}

impl Command {
    async fn run(self) -> anyhow::Result<u8> {
        // Boxed: the futures of whole commands are large, and there is one.
        match self {
            Command::Sim(args) => Box::pin(sim::run(args)).await,
            Command::Gate(args) => Box::pin(gate::run(args)).await,
            Command::Replay(args) => Box::pin(replay::run(args)).await,
            Command::Shrink(args) => Box::pin(shrink::run(args)).await,
            Command::Mutants(args) => Box::pin(mutants::run(args)).await,
            Command::Ci(args) => Box::pin(ci::run(args)).await,
        }
    }

    /// Whether errors are told as JSON too.
    fn json(&self) -> bool {
        match self {
            Command::Sim(args) => args.common.json,
            Command::Gate(args) => args.common.json,
            Command::Replay(args) => args.common.json,
            Command::Shrink(args) => args.common.json,
            Command::Mutants(args) => args.common.json,
            Command::Ci(args) => args.common.json,
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }
}
