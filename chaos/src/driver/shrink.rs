//! `andante-chaos shrink`: the smallest plan that still breaks the same promise.

use std::{collections::HashSet, fs, path::PathBuf};

use anyhow::Context as _;
use futures::StreamExt as _;
use serde::Serialize;

use super::{
    args, case,
    case::Case,
    ddmin::Ddmin,
    failure::Failure,
    git,
    output::{Progress, table},
    player::{Player, Run, Source},
    queue::in_order,
    reductions,
};
use crate::{plan::Plan, report::Report};

/// Shrinks a plan that breaks a promise to the smallest that still breaks it, as told by the same oracle: first by
/// leaving out faults, then by shortening them, then by a smaller cluster and less load.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    what: args::What,
    /// Play no more plans than this.
    #[arg(long, value_name = "T", default_value_t = 300, value_parser = clap::value_parser!(u64).range(1..=100_000))]
    tries: u64,
    /// Where to write the smallest.
    #[arg(long, value_name = "DIR", default_value = args::OUT)]
    out: PathBuf,
    #[command(flatten)]
    pub(super) common: args::Common,
}

#[derive(Debug, Serialize)]
struct Shrunk {
    #[serde(flatten)]
    case: Case,
    /// Plans that were played.
    tries: u64,
    /// Nothing simpler breaks the same promise; false: the tries were used up before that was known.
    smallest: bool,
    before: Size,
    after: Size,
}

/// How large a plan is.
#[derive(Debug, Serialize)]
struct Size {
    faults: usize,
    /// Of all faults together.
    faults_last_ms: u64,
    faults_ms: u64,
    nodes: u32,
    shards: u32,
    clients: u32,
    campaigns: u32,
}

pub(super) async fn run(args: Args) -> anyhow::Result<u8> {
    let (player, output) = (args.common.player()?, args.common.output());
    let first = player.play(&args.what.run(false)).await.map_err(Failure::from)?.report;
    let Some(violation) = &first.violation else {
        return Err(Failure::usage(format!("seed {} breaks no promise: nothing to shrink", first.seed)).into());
    };
    let scratch = tempfile::tempdir().context("no temporary folder for plans")?;
    let progress = output.progress(Some(args.tries), "plans");
    let mut search = Search {
        player: &player,
        progress: &progress,
        mutant: args.what.mutant.clone(),
        oracle: violation.oracle.clone(),
        scratch: scratch.path().to_owned(),
        tries_left: args.tries,
        tried: HashSet::new(),
    };
    // What the seed drew must play the same when it is read.
    let Some((_, again)) = search.first_broken(std::slice::from_ref(&first.plan)).await? else {
        return Err(Failure::broke(format!("the plan of seed {} does not play as the seed does", first.seed)).into());
    };
    let fewest_faults = search.leave_out_faults(again).await?;
    let report = search.simplify(fewest_faults).await?;
    let (tries, smallest) = (args.tries - search.tries_left, search.tries_left > 0);
    drop(progress);
    let (before, after) = (Size::of(&first.plan), Size::of(&report.plan));
    let mutant = args.what.mutant.as_deref();
    let folder = case::folder(&args.out, report.seed, mutant, "-shrunk");
    let Some(case) = case::write(&folder, &report, mutant, git::commit().await)? else {
        return Err(Failure::broke("the smallest plan breaks nothing").into());
    };
    let plan = serde_json::to_string_pretty(&report.plan)?;
    output.result(&Shrunk { case, tries, smallest, before, after }, |shrunk| text(shrunk, &plan))?;
    Ok(0)
}

/// Plays plans and tells which break the promise.
struct Search<'a> {
    player: &'a Player,
    progress: &'a Progress,
    mutant: Option<String>,
    /// Who must find it broken.
    oracle: String,
    scratch: PathBuf,
    tries_left: u64,
    /// Plans that did not break it.
    tried: HashSet<String>,
}

impl Search<'_> {
    /// Leaves out as many faults as can be left out.
    async fn leave_out_faults(&mut self, mut report: Report) -> anyhow::Result<Report> {
        let mut faults = Ddmin::new(report.plan.schedule.clone());
        loop {
            let candidates = faults.candidates();
            if candidates.is_empty() || self.tries_left == 0 {
                return Ok(report);
            }
            self.progress.tell(format!("{} faults left", faults.smallest().len()));
            let plans: Vec<Plan> =
                candidates.into_iter().map(|schedule| Plan { schedule, ..report.plan.clone() }).collect();
            match self.first_broken(&plans).await? {
                Some((position, broken)) => {
                    faults.took(position);
                    report = broken;
                }
                None => faults.none(),
            }
        }
    }

    /// Makes everything else smaller, as long as anything can be.
    async fn simplify(&mut self, mut report: Report) -> anyhow::Result<Report> {
        while self.tries_left > 0 {
            let Size { faults, nodes, shards, clients, campaigns, .. } = Size::of(&report.plan);
            self.progress.tell(format!(
                "{faults} faults, {nodes} nodes, {shards} shards, {clients} clients, {campaigns} campaigns left"
            ));
            match self.first_broken(&reductions::of(&report.plan)).await? {
                Some((_, broken)) => report = broken,
                None => break,
            }
        }
        Ok(report)
    }

    /// The first of these plans that breaks the promise; those that were tried are not played again.
    async fn first_broken(&mut self, plans: &[Plan]) -> anyhow::Result<Option<(usize, Report)>> {
        let mut runs = Vec::new();
        for (position, plan) in plans.iter().enumerate() {
            let text = serde_json::to_string(plan)?;
            if runs.len() as u64 == self.tries_left || self.tried.contains(&text) {
                continue;
            }
            let file = self.scratch.join(format!("{position}.json"));
            fs::write(&file, &text).with_context(|| format!("{} can't be written", file.display()))?;
            let run = Run { source: Source::Plan(file), mutant: self.mutant.clone(), timeline: false };
            runs.push(((position, text), run));
        }
        let mut played = std::pin::pin!(in_order(self.player, self.progress, runs.into_iter(), None));
        while let Some(((position, text), result)) = played.next().await {
            self.tries_left -= 1;
            // A smaller plan may be one that can't be played, or that breaks the simulation: it shows nothing.
            let report = result.ok().map(|played| played.report);
            let broken = report.filter(|report| report.violation.as_ref().is_some_and(|v| v.oracle == self.oracle));
            match broken {
                Some(report) => return Ok(Some((position, report))),
                None => self.tried.insert(text),
            };
        }
        Ok(None)
    }
}

impl Size {
    fn of(plan: &Plan) -> Self {
        Self {
            faults: plan.schedule.len(),
            faults_last_ms: plan.schedule.iter().map(|fault| fault.for_ms).sum(),
            faults_ms: plan.faults_ms,
            nodes: plan.nodes,
            shards: plan.shards,
            clients: plan.load.clients,
            campaigns: plan.load.campaigns,
        }
    }

    fn rows(&self) -> [(&'static str, String); 7] {
        [
            ("faults", self.faults.to_string()),
            ("their time, ms", self.faults_last_ms.to_string()),
            ("faults may come, ms", self.faults_ms.to_string()),
            ("nodes", self.nodes.to_string()),
            ("shards", self.shards.to_string()),
            ("clients", self.clients.to_string()),
            ("campaigns", self.campaigns.to_string()),
        ]
    }
}

fn text(shrunk: &Shrunk, plan: &str) -> String {
    let mut sizes = table(["", "before", "after"]);
    for ((what, before), (_, after)) in shrunk.before.rows().into_iter().zip(shrunk.after.rows()) {
        sizes.add_row([what.to_owned(), before, after]);
    }
    let end = if shrunk.smallest {
        "nothing simpler that was thought of breaks the same promise"
    } else {
        "the tries were used up: more may make it smaller still"
    };
    format!("{plan}\n\n{}\n\n{}\n\n{} plans played; {end}", sizes.trim_fmt(), shrunk.case.text(), shrunk.tries)
}
