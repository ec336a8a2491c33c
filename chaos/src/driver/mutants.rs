//! `andante-chaos mutants`: does the simulation notice bugs?

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

use anyhow::Context as _;
use futures::StreamExt as _;

use super::{
    args,
    failure::{BROKE, FAILED, Failure},
    mutant_table::{Caught, Mutant, updated},
    output::{Progress, table},
    player::{Player, Run, Source},
    queue::in_order,
};

/// The first seed of start 1; start 2 begins so many later.
const START_SEEDS: u64 = 10_000;

/// Seeds bugs into the product, one at a time, and counts the seeds that the simulation needs to notice each: from several
/// starts, until a promise is broken in a run that the bug took part in. Fails if one is not noticed from every start.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Starts, each with seeds of its own: from 10000, from 20000 ...
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = clap::value_parser!(u64).range(1..=100))]
    starts: u64,
    /// Seeds played from each start at most.
    #[arg(long, value_name = "N", default_value_t = 200, value_parser = clap::value_parser!(u64).range(1..=START_SEEDS))]
    seeds_max: u64,
    /// Only these.
    #[arg(long, value_name = "ID,ID", value_delimiter = ',')]
    only: Vec<String>,
    /// Write the table into this file, between its two comment lines; rows of others stay.
    #[arg(long, value_name = "FILE")]
    readme: Option<PathBuf>,
    #[command(flatten)]
    pub(super) common: args::Common,
}

pub(super) async fn run(args: Args) -> anyhow::Result<u8> {
    let (player, output) = (args.common.player()?, args.common.output());
    let all: Vec<Mutant> = player.ask("--mutants").await?;
    let chosen = chosen(&all, &args.only)?;
    // A file without the lines is told now, not after hours.
    write(args.readme.as_deref(), &all, &[])?;
    let mut tried = Vec::new();
    for (position, mutant) in chosen.iter().enumerate() {
        let progress = output.progress(None, "seeds");
        let what = format!("{} ({} of {})", mutant.id, position + 1, chosen.len());
        let caught = hunt(&player, &progress, mutant, &args, &what).await?;
        let [id, _, oracles, needed, _] = caught.cells();
        progress.note(format!("{id}: {needed} seeds ({oracles})"));
        for (seed, why) in &caught.harness_failures {
            progress.note(format!("{id}: seed {seed}: {why}"));
        }
        tried.push(caught);
        write(args.readme.as_deref(), &all, &tried)?;
    }
    output.result(&tried, |tried| text(tried))?;
    let sound = tried.iter().all(|caught| caught.always() && caught.unrelated.is_empty());
    let played = tried.iter().all(|caught| caught.harness_failures.is_empty());
    Ok(if !sound {
        FAILED
    } else if played {
        0
    } else {
        BROKE
    })
}

fn chosen(all: &[Mutant], only: &[String]) -> Result<Vec<Mutant>, Failure> {
    if all.is_empty() {
        return Err(Failure::usage(
            "the simulation was built without mutants; build it with: \
             ANDANTE_MUTANTS=1 cargo build --profile sim -p andante-chaos",
        ));
    }
    if let Some(unknown) = only.iter().find(|id| all.iter().all(|mutant| mutant.id != **id)) {
        let known: Vec<&str> = all.iter().map(|mutant| mutant.id.as_str()).collect();
        return Err(Failure::usage(format!("{unknown} is no mutant; there are {}", known.join(", "))));
    }
    Ok(all.iter().filter(|mutant| only.is_empty() || only.contains(&mutant.id)).cloned().collect())
}

async fn hunt(
    player: &Player,
    progress: &Progress,
    mutant: &Mutant,
    args: &Args,
    what: &str,
) -> anyhow::Result<Caught> {
    let mut caught = Caught {
        mutant: mutant.clone(),
        oracles: BTreeSet::new(),
        seeds_needed: Vec::new(),
        unrelated: Vec::new(),
        harness_failures: Vec::new(),
    };
    for start in 1..=args.starts {
        progress.tell(format!("{what}, start {start} of {}", args.starts));
        let first = start * START_SEEDS;
        let runs = (first..first + args.seeds_max).map(|seed| {
            let run = Run { source: Source::Seed(seed), mutant: Some(mutant.id.clone()), timeline: false };
            (seed, run)
        });
        let mut played = std::pin::pin!(in_order(player, progress, runs, None));
        let mut needed = None;
        while let Some((seed, result)) = played.next().await {
            let report = match result {
                Ok(played) => played.report,
                Err(trouble) if trouble.unusable => return Err(Failure::from(trouble).into()),
                Err(trouble) => {
                    caught.harness_failures.push((seed, trouble.what));
                    continue;
                }
            };
            match report.violation {
                Some(violation) if report.mutant_hits > Some(0) => {
                    caught.oracles.insert(violation.oracle);
                    needed = Some(seed - first + 1);
                    break;
                }
                Some(_) => caught.unrelated.push(seed),
                None => {}
            }
        }
        caught.seeds_needed.push(needed);
    }
    Ok(caught)
}

fn write(readme: Option<&Path>, all: &[Mutant], tried: &[Caught]) -> anyhow::Result<()> {
    let Some(readme) = readme else { return Ok(()) };
    let text = fs::read_to_string(readme).with_context(|| format!("{} can't be read", readme.display()))?;
    let text = updated(&text, all, tried).map_err(|why| Failure::usage(format!("{}: {why}", readme.display())))?;
    fs::write(readme, text).with_context(|| format!("{} can't be written", readme.display()))
}

fn text(tried: &[Caught]) -> String {
    let mut rows = table(["mutant", "what it does", "caught by", "seeds needed", "median"]);
    for caught in tried {
        rows.add_row(caught.cells());
    }
    let not = tried.iter().filter(|caught| !caught.always()).count();
    let mut text = format!("{}\n\n{} of {} caught from every start", rows.trim_fmt(), tried.len() - not, tried.len());
    for caught in tried.iter().filter(|caught| !caught.unrelated.is_empty()) {
        let (id, seeds) = (&caught.mutant.id, &caught.unrelated);
        text += &format!("\n{id} had no part in what these seeds broke: {seeds:?}");
    }
    text
}
