//! `andante-chaos ci`: what must hold before a change lands.

use std::{path::PathBuf, time::Duration};

use super::{
    args,
    failure::Failure,
    git,
    seeds::{self, Seeds},
    sweep::Sweep,
    totals::Needs,
};

/// Of a hundred seeds that were played so many must count: fewer, and faults or load went missing.
const COUNTING_PERCENT_MIN: u64 = 50;

/// Plays the seeds 1, 2, 3 ... for half of the time and seeds made of the source tree's hash for the other half. Fails if
/// a promise is broken, if a marked situation never came up, or if fewer than half of the seeds count.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Start no seed later than so many minutes after the first.
    #[arg(long, value_name = "M", default_value = "12", value_parser = args::minutes)]
    minutes: Duration,
    /// Make the second half's seeds of this hash, instead of the checked out commit's tree.
    #[arg(long, value_name = "HASH")]
    tree: Option<String>,
    /// Where to write broken promises.
    #[arg(long, value_name = "DIR", default_value = args::OUT)]
    out: PathBuf,
    #[command(flatten)]
    pub(super) common: args::Common,
}

pub(super) async fn run(args: Args) -> anyhow::Result<u8> {
    let (player, output) = (args.common.player()?, args.common.output());
    let tree = match args.tree {
        Some(tree) => tree,
        None => git::tree().await.ok_or_else(|| Failure::usage("no commit is checked out here: give --tree HASH"))?,
    };
    output.note(format!("tree {tree}; to play the same seeds elsewhere: andante-chaos ci --tree {tree}"));
    let half = Some(args.minutes / 2);
    let mut sweep = Sweep::new(player, output, args.out, None, true).await;
    let fixed = Seeds { first: 1, end: None };
    let (played_fixed, goes_on) = sweep.play(fixed.iter(), None, half).await?;
    let played_of_tree = if goes_on { sweep.play(seeds::of_tree(&tree), None, half).await?.0 } else { 0 };
    let told = format!("1..{}, and the first {played_of_tree} of tree {tree}", played_fixed + 1);
    let counting = sweep.totals.run * COUNTING_PERCENT_MIN / 100;
    sweep.finish(told, Needs { markers: true, counting })
}
