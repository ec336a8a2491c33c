//! What many runs say together.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::PathBuf,
};

use serde::Serialize;

use super::{
    case::Case,
    cpu::Spent,
    failure::{BROKE, FAILED},
    output::table,
};
use crate::{
    markers,
    report::{FaultCount, Report},
};

/// Runs told one by one; more are only counted. Scripts get all.
const LINES_MAX: usize = 20;

/// Sums over runs.
#[derive(Debug, Clone, Default, Serialize)]
pub(super) struct Totals {
    /// Runs that came to a verdict.
    pub(super) run: u64,
    pub(super) held: u64,
    /// Held, and long and rough enough to say something.
    pub(super) counting: u64,
    /// Why the others that held don't count.
    pub(super) not_counting: Vec<Note>,
    pub(super) violations: Vec<Broken>,
    /// Runs without a verdict.
    pub(super) harness_failures: Vec<Note>,
    pub(super) simulated_ms: u64,
    pub(super) faults_ms: u64,
    pub(super) settles: u64,
    pub(super) faults: BTreeMap<String, FaultCount>,
    pub(super) markers: BTreeMap<String, u64>,
    /// How often the chosen mutant's line ran.
    pub(super) mutant_hits: Option<u64>,
}

/// Something about one seed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(super) struct Note {
    pub(super) seed: u64,
    pub(super) why: String,
}

/// A seed that broke a promise.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(super) struct Broken {
    pub(super) seed: u64,
    pub(super) oracle: String,
    pub(super) what: String,
    pub(super) at_ms: u64,
    pub(super) folder: PathBuf,
    /// Plays it again.
    pub(super) command: String,
}

/// What is asked of a sweep beside that all promises hold.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Needs {
    /// Every marked situation came up.
    pub(super) markers: bool,
    /// So many seeds count.
    pub(super) counting: u64,
}

impl Totals {
    pub(super) fn add(&mut self, report: &Report) {
        self.run += 1;
        self.simulated_ms += report.simulated_ms;
        self.faults_ms += report.faults_ms;
        self.settles += report.settles;
        for (fault, count) in &report.faults {
            let sum = self.faults.entry(fault.clone()).or_default();
            sum.begun += count.begun;
            sum.seen += count.seen;
        }
        for (marker, count) in &report.markers {
            *self.markers.entry(marker.clone()).or_default() += count;
        }
        if let Some(hits) = report.mutant_hits {
            *self.mutant_hits.get_or_insert(0) += hits;
        }
        if report.violation.is_some() {
            return;
        }
        self.held += 1;
        match report.falls_short() {
            None => self.counting += 1,
            Some(why) => self.not_counting.push(Note { seed: report.seed, why }),
        }
    }

    pub(super) fn add_case(&mut self, case: &Case) {
        let violation = case.violation.clone();
        self.violations.push(Broken {
            seed: case.seed,
            oracle: violation.oracle,
            what: violation.what,
            at_ms: violation.at_ms,
            folder: case.folder.clone(),
            command: case.command.clone(),
        });
    }

    /// Situations that never came up.
    pub(super) fn never_seen(&self) -> BTreeSet<&'static str> {
        let seen = |name: &str| self.markers.get(name).is_some_and(|count| *count > 0);
        markers::ALL.iter().map(|(name, _)| *name).filter(|name| !seen(name)).collect()
    }

    /// What is wrong with it, in a sentence each, and the exit code; none and 0: nothing.
    pub(super) fn verdict(&self, needs: Needs) -> (Vec<String>, u8) {
        let mut wrong = Vec::new();
        if !self.violations.is_empty() {
            let seeds: Vec<_> = self.violations.iter().map(|broken| broken.seed.to_string()).collect();
            wrong.push(format!("a promise was broken by seed {}", seeds.join(", ")));
        }
        let never = self.never_seen();
        if needs.markers && !never.is_empty() {
            wrong.push(format!("never seen: {}", never.into_iter().collect::<Vec<_>>().join(", ")));
        }
        if self.counting < needs.counting {
            wrong.push(format!("{} seeds count, {} are needed", self.counting, needs.counting));
        }
        // A broken promise is one, whatever else broke; for everything else the broken runs may be the reason.
        let mut exit = if wrong.is_empty() { 0 } else { FAILED };
        if !self.harness_failures.is_empty() {
            wrong.push(format!("{} runs came to no verdict", self.harness_failures.len()));
            if self.violations.is_empty() {
                exit = BROKE;
            }
        }
        (wrong, exit)
    }
}

/// A sweep's result, for scripts.
#[derive(Debug, Serialize)]
pub(super) struct Summary<'a> {
    /// What was played, in words that play it again.
    pub(super) seeds: String,
    #[serde(flatten)]
    pub(super) totals: &'a Totals,
    pub(super) never_seen: BTreeSet<&'static str>,
    pub(super) wall_s: f64,
    /// Processor time of the runs.
    pub(super) core_s: f64,
    /// How that is known.
    pub(super) core_s_from: &'static str,
    pub(super) simulated_s_per_core_s: f64,
    pub(super) wrong: Vec<String>,
    pub(super) exit_code: u8,
}

impl<'a> Summary<'a> {
    pub(super) fn new(seeds: String, totals: &'a Totals, spent: Spent, jobs: usize, needs: Needs) -> Self {
        let wall_s = spent.wall.as_secs_f64();
        let (core_s, core_s_from) = match spent.children_s {
            Some(seconds) => (seconds, "processor time"),
            None => (wall_s * jobs as f64, "time times jobs"),
        };
        let simulated_s = totals.simulated_ms as f64 / 1e3;
        let simulated_s_per_core_s = if core_s > 0.0 { simulated_s / core_s } else { 0.0 };
        let (wrong, exit_code) = totals.verdict(needs);
        let never_seen = totals.never_seen();
        Self { seeds, totals, never_seen, wall_s, core_s, core_s_from, simulated_s_per_core_s, wrong, exit_code }
    }

    /// For a person.
    pub(super) fn text(&self) -> String {
        let totals = self.totals;
        let mut faults = table(["fault", "begun", "with effect"]);
        for (fault, FaultCount { begun, seen }) in &totals.faults {
            faults.add_row([fault.clone(), begun.to_string(), seen.to_string()]);
        }
        let mut seen = table(["situation", "times", ""]);
        for (name, means) in markers::ALL {
            let count = totals.markers.get(*name).copied().unwrap_or_default();
            let count = if count == 0 { "never".to_owned() } else { count.to_string() };
            seen.add_row([*name, &count, means]);
        }
        let mut lines = vec![faults.trim_fmt(), String::new(), seen.trim_fmt(), String::new()];
        lines.extend(listed("does not count", &totals.not_counting));
        lines.extend(listed("no verdict", &totals.harness_failures));
        lines.extend(totals.violations.iter().map(|broken| {
            let Broken { seed, oracle, what, folder, .. } = broken;
            format!("seed {seed} broke {oracle}: {what} (see {})", folder.display())
        }));
        lines.push(format!("seeds      {}", self.seeds));
        let Totals { run, held, counting, .. } = totals;
        lines.push(format!("runs       {run}, of which {held} held, of which {counting} count"));
        lines.push(format!(
            "simulated  {:.0} s, of which {:.0} s under faults; {:.1} s per core-second ({} of {:.0} s)",
            totals.simulated_ms as f64 / 1e3,
            totals.faults_ms as f64 / 1e3,
            self.simulated_s_per_core_s,
            self.core_s_from,
            self.core_s,
        ));
        lines.push(format!("settles    {} acknowledged", totals.settles));
        if let Some(hits) = totals.mutant_hits {
            lines.push(format!("mutant     its line ran {hits} times"));
        }
        let verdict = if self.wrong.is_empty() { "all held".to_owned() } else { self.wrong.join("; ") };
        lines.push(format!("verdict    {verdict}"));
        lines.join("\n")
    }
}

fn listed(what: &str, notes: &[Note]) -> Vec<String> {
    let line = |note: &Note| format!("seed {} {what}: {}", note.seed, note.why);
    let mut lines: Vec<_> = notes.iter().take(LINES_MAX).map(line).collect();
    if notes.len() > LINES_MAX {
        lines.push(format!("and {} more", notes.len() - LINES_MAX));
    }
    lines
}
