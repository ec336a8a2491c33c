//! The command line.
//!
//! Exit codes: 0 done; 1 failed (or an invariant was found broken); 2 wrong usage; 3 not found; 4 refused or invalid;
//! 5 unavailable, overloaded or too late: nothing was done; 6 fate unknown: repeat it with the same request id;
//! 70 the node had to stop (a disk failed).

mod access;
mod backtest;
mod campaign;
mod cluster;
mod cluster_settings;
mod completions;
mod connect;
mod debug;
mod demo;
mod failure;
mod import;
mod json;
mod node;
mod outcome;
mod output;
mod replay;
mod score;
mod server;
mod spec_args;
mod time;

use std::{ffi::OsString, process::ExitCode};

use clap::{Parser, Subcommand};

use self::{failure::Failure, output::Output};

/// Promotion scores for music personalization, with budgets paced by a replicated actor cluster.
#[derive(Debug, Parser)]
#[command(name = "andante", version = VERSION, propagate_version = true, arg_required_else_help = true, after_help = EXIT_CODES)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

const VERSION: &str = if cfg!(andante_mutants) {
    concat!(env!("CARGO_PKG_VERSION"), " WITH SEEDED BUGS, for tests of tests")
} else {
    env!("CARGO_PKG_VERSION")
};

const EXIT_CODES: &str = "\
Exit codes: 0 done, 1 failed, 2 wrong usage, 3 not found, 4 refused or invalid, 5 unavailable (nothing was done), \
6 fate unknown (repeat with the same request id), 70 the node had to stop.";

// One value per process: its size does not matter.
#[allow(clippy::large_enum_variant)]
#[derive(Debug, Subcommand)]
enum Command {
    /// Run a node.
    Node(node::Args),
    /// Create, change and watch campaigns.
    Campaign(campaign::Args),
    /// Ask for promotion scores.
    Score(score::Args),
    /// Report what became of placements.
    Outcome(outcome::Args),
    /// Look at the cluster as a whole, and at the settings on which its nodes agree.
    Cluster(cluster::Args),
    /// Ask a node about itself, or confirm its clock.
    Server(server::Args),
    /// Say who may use the cluster: access tokens, join tokens, its authority and keys.
    Access(access::Args),
    /// Show the main job on an embedded node, with a verdict and a report.
    Demo(demo::Args),
    /// Play a recorded trace against a running node and verify what became of it.
    Replay(replay::Args),
    /// Replay a recorded trace against the pacing code, offline.
    Backtest(backtest::Args),
    /// Print a completion script for a shell.
    Completions(completions::Args),
    /// Look into a stopped node.
    #[command(hide = true)]
    Debug(debug::Args),
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
            return ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(1));
        }
    };
    let output = Output::new(cli.command.json());
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return output.failure(&Failure::other(format!("the runtime can't be started: {error}"))),
    };
    let result = runtime.block_on(cli.command.run());
    // What still runs (a blocked reader of standard input, say) must not hold the process up.
    runtime.shutdown_background();
    match result {
        Ok(code) => code,
        Err(error) => output.failure(&Failure::from(error)),
    }
}

impl Command {
    async fn run(self) -> anyhow::Result<ExitCode> {
        // Boxed: the futures of whole commands are large, and there is one.
        match self {
            Command::Node(args) => Box::pin(node::run(args)).await,
            Command::Campaign(args) => Box::pin(campaign::run(args)).await,
            Command::Score(args) => Box::pin(score::run(args)).await,
            Command::Outcome(args) => Box::pin(outcome::run(args)).await,
            Command::Cluster(args) => Box::pin(cluster::run(args)).await,
            Command::Server(args) => Box::pin(server::run(args)).await,
            Command::Access(args) => Box::pin(access::run(args)).await,
            Command::Demo(args) => Box::pin(demo::run(args)).await,
            Command::Replay(args) => Box::pin(replay::run(args)).await,
            Command::Backtest(args) => tokio::task::spawn_blocking(move || backtest::run(&args)).await?,
            Command::Completions(args) => completions::run::<Cli>(&args),
            Command::Debug(args) => Box::pin(debug::run(args)).await,
        }
    }

    /// Whether errors are told as JSON too.
    fn json(&self) -> bool {
        match self {
            Command::Node(args) => args.json,
            Command::Campaign(args) => args.json(),
            Command::Score(args) => args.common.json,
            Command::Outcome(args) => args.common.json,
            Command::Cluster(args) => args.json(),
            Command::Server(args) => args.json(),
            Command::Backtest(args) => args.json,
            Command::Access(args) => args.json(),
            Command::Demo(args) => args.json,
            Command::Replay(args) => args.json,
            Command::Completions(_) => false,
            Command::Debug(args) => args.json(),
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

    #[test]
    fn every_command_and_option_is_explained() {
        fn check(command: &clap::Command) {
            assert!(command.get_about().is_some(), "{} has no explanation", command.get_name());
            for arg in command.get_arguments() {
                assert!(arg.get_help().is_some(), "{} {} has no explanation", command.get_name(), arg.get_id());
            }
            command.get_subcommands().for_each(check);
        }
        check(&Cli::command());
    }
}
