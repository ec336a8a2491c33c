//! `andante debug`, for those who look for bugs.

use std::{path::PathBuf, process::ExitCode};

use andante_cluster::env::Env;
use clap::Subcommand;

use super::output::Output;
use crate::node::{StoredShard, stored_digests};

/// Look into a stopped node.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Compare what recovery makes of each shard with an independent replay of its log; exit code 1 if they differ. It
    /// starts the node's stores once: run it on a copy of the data directory to leave the original untouched.
    Digest(Digest),
}

#[derive(Debug, clap::Args)]
struct Digest {
    /// The stopped node's data directory.
    #[arg(long, value_name = "DIR", default_value = "./andante-data")]
    data_dir: PathBuf,
    /// Write JSON, for scripts.
    #[arg(long)]
    json: bool,
}

impl Args {
    pub(super) fn json(&self) -> bool {
        let Command::Digest(args) = &self.command;
        args.json
    }
}

pub(super) async fn run(args: Args) -> anyhow::Result<ExitCode> {
    let output = Output::new(args.json());
    let Command::Digest(Digest { data_dir, .. }) = args.command;
    let shards = stored_digests(Env::production(), &data_dir).await?;
    output.result(&shards, |shards| shards.iter().map(describe).collect::<Vec<_>>().join("\n"))?;
    Ok(if shards.iter().all(same) { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn same(shard: &StoredShard) -> bool {
    shard.replayed.digest == shard.recovered.digest
}

fn describe(shard: &StoredShard) -> String {
    let index = |applied: Option<u64>| applied.map_or("none".to_owned(), |index| index.to_string());
    let StoredShard { shard: number, replayed, recovered } = shard;
    format!(
        "shard {number:<4} replayed {} at {}, recovered {} at {}{}",
        replayed.digest,
        index(replayed.applied),
        recovered.digest,
        index(recovered.applied),
        if same(shard) { "" } else { "  DIFFERENT" }
    )
}
