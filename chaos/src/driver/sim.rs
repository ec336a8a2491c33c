//! `andante-chaos sim`: plays many seeds.

use std::{path::PathBuf, time::Duration};

use super::{args, failure::Failure, seeds::Seeds, sweep::Sweep, totals::Needs};

/// Plays seeds, each in a process of its own, and tells what they say together. Stops at the first that breaks a
/// promise, which is written down with its schedule and its timeline.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Seeds: 1..21 is 1 to 20; 1.. has no end and needs --minutes.
    #[arg(long, value_name = "A..B")]
    seeds: Seeds,
    /// Start no seed later than so many minutes after the first.
    #[arg(long, value_name = "M", value_parser = args::minutes)]
    minutes: Option<Duration>,
    /// Play with this seeded bug.
    #[arg(long, value_name = "ID")]
    mutant: Option<String>,
    /// Don't stop at the first that breaks a promise.
    #[arg(long)]
    keep_going: bool,
    /// Fail unless every marked situation came up.
    #[arg(long)]
    need_markers: bool,
    /// Fail unless so many seeds count: long under faults, busy, with several kinds of faults.
    #[arg(long, value_name = "N", default_value_t = 0)]
    need_counting: u64,
    /// Where to write broken promises.
    #[arg(long, value_name = "DIR", default_value = args::OUT)]
    out: PathBuf,
    #[command(flatten)]
    pub(super) common: args::Common,
}

pub(super) async fn run(args: Args) -> anyhow::Result<u8> {
    let seeds = args.seeds;
    if seeds.end.is_none() && args.minutes.is_none() {
        return Err(Failure::usage("seeds without an end need --minutes").into());
    }
    let (player, output) = (args.common.player()?, args.common.output());
    let mut sweep = Sweep::new(player, output, args.out, args.mutant, !args.keep_going).await;
    let (played, _) = sweep.play(seeds.iter(), seeds.count(), args.minutes).await?;
    let told = format!("{seeds}, {played} of them played");
    sweep.finish(told, Needs { markers: args.need_markers, counting: args.need_counting })
}
