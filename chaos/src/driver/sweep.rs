//! Plays many seeds and holds them to their promises.

use std::{
    path::PathBuf,
    time::{Duration, Instant},
};

use futures::StreamExt as _;

use super::{
    case,
    cpu::Stopwatch,
    failure::Failure,
    git::{self, Commit},
    output::{Output, Progress},
    player::{Played, Player, Run, Source, Trouble},
    queue::in_order,
    totals::{Needs, Note, Summary, Totals},
};

/// Plays seeds until one breaks a promise, or all of them.
#[derive(Debug)]
pub(super) struct Sweep {
    pub(super) player: Player,
    pub(super) output: Output,
    /// Where broken promises are written down.
    pub(super) out: PathBuf,
    pub(super) mutant: Option<String>,
    /// A broken promise ends it.
    pub(super) stops: bool,
    pub(super) totals: Totals,
    pub(super) stopwatch: Stopwatch,
    pub(super) commit: Commit,
}

impl Sweep {
    pub(super) async fn new(player: Player, output: Output, out: PathBuf, mutant: Option<String>, stops: bool) -> Self {
        let (totals, stopwatch, commit) = (Totals::default(), Stopwatch::start(), git::commit().await);
        Self { player, output, out, mutant, stops, totals, stopwatch, commit }
    }

    /// Plays seeds in their order; none starts after `time`. Says how many came to an end, and whether to go on.
    ///
    /// # Errors
    /// The simulation does not take the mutant, or a file can't be written.
    pub(super) async fn play(
        &mut self,
        seeds: impl Iterator<Item = u64>,
        count: Option<u64>,
        time: Option<Duration>,
    ) -> anyhow::Result<(u64, bool)> {
        let player = self.player.clone();
        let progress = self.output.progress(count, "seeds");
        let mutant = self.mutant.clone();
        let runs = seeds.map(|seed| {
            let run = Run { source: Source::Seed(seed), mutant: mutant.clone(), timeline: false };
            (seed, run)
        });
        let until = time.map(|time| Instant::now() + time);
        let mut played = std::pin::pin!(in_order(&player, &progress, runs, until));
        let mut ended = 0;
        while let Some((seed, result)) = played.next().await {
            ended += 1;
            if !self.take(seed, result, &progress)? {
                return Ok((ended, false));
            }
            let Totals { held, counting, violations, .. } = &self.totals;
            progress.tell(format!("{held} held, {counting} count, {} broke a promise", violations.len()));
        }
        Ok((ended, true))
    }

    /// Whether to go on.
    fn take(&mut self, seed: u64, result: Result<Played, Trouble>, progress: &Progress) -> anyhow::Result<bool> {
        let mutant = self.mutant.as_deref();
        let folder = case::folder(&self.out, seed, mutant, "");
        let report = match result {
            Ok(played) => played.report,
            Err(trouble) if trouble.unusable => return Err(Failure::from(trouble).into()),
            Err(trouble) => {
                let stderr = case::write_stderr(&folder, &trouble.stderr)?;
                let why = format!("{} (see {})", trouble.what, stderr.display());
                progress.note(format!("seed {seed}: {}", Failure::from(trouble)));
                self.totals.harness_failures.push(Note { seed, why });
                return Ok(!self.stops);
            }
        };
        self.totals.add(&report);
        let Some(case) = case::write(&folder, &report, mutant, self.commit.clone())? else { return Ok(true) };
        self.totals.add_case(&case);
        progress.note(format!("{}\n", case.text()));
        Ok(!self.stops)
    }

    /// Tells the totals; `seeds` says what was played. Returns the exit code.
    pub(super) fn finish(self, seeds: String, needs: Needs) -> anyhow::Result<u8> {
        let summary = Summary::new(seeds, &self.totals, self.stopwatch.spent(), self.player.jobs, needs);
        self.output.result(&summary, Summary::text)?;
        Ok(summary.exit_code)
    }
}
