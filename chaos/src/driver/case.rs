//! A broken promise, written down so that it can be played again.

use std::{
    fmt::Write as _,
    fs,
    path::{Path, PathBuf},
};

use anyhow::Context as _;
use serde::Serialize;

use super::git::Commit;
use crate::report::{Report, Violation};

/// So much of the timeline's end is told at once; the file has it all.
const LINES_TOLD: usize = 40;

/// What is told of a broken promise.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Case {
    pub(super) seed: u64,
    pub(super) mutant: Option<String>,
    pub(super) commit: Commit,
    pub(super) violation: Violation,
    /// Where report.json, plan.json and timeline.txt are.
    pub(super) folder: PathBuf,
    /// Plays it again.
    pub(super) command: String,
    /// The end of the timeline.
    pub(super) timeline: Vec<String>,
}

/// Writes a report, its plan and its timeline into a folder. `None`: nothing is broken.
///
/// # Errors
/// A file can't be written.
pub(super) fn write(
    folder: &Path,
    report: &Report,
    mutant: Option<&str>,
    commit: Commit,
) -> anyhow::Result<Option<Case>> {
    let Some(violation) = report.violation.clone() else { return Ok(None) };
    let plan = folder.join("plan.json");
    let files = [
        (folder.join("report.json"), serde_json::to_string_pretty(report)?),
        (plan.clone(), serde_json::to_string_pretty(&report.plan)?),
        (folder.join("timeline.txt"), report.timeline.join("\n")),
    ];
    fs::create_dir_all(folder).with_context(|| format!("{} can't be made", folder.display()))?;
    for (file, text) in files {
        fs::write(&file, text + "\n").with_context(|| format!("{} can't be written", file.display()))?;
    }
    let this = std::env::current_exe().context("where is this program")?;
    let here = std::env::current_dir().context("where is this folder")?;
    Ok(Some(Case {
        seed: report.seed,
        mutant: mutant.map(str::to_owned),
        commit,
        violation,
        folder: folder.to_owned(),
        command: replay_command(&this, &here, &plan, mutant),
        timeline: report.timeline[report.timeline.len().saturating_sub(LINES_TOLD)..].to_vec(),
    }))
}

/// Writes what a run said that came to no verdict. Returns the file.
///
/// # Errors
/// The file can't be written.
pub(super) fn write_stderr(folder: &Path, stderr: &str) -> anyhow::Result<PathBuf> {
    fs::create_dir_all(folder).with_context(|| format!("{} can't be made", folder.display()))?;
    let file = folder.join("stderr.txt");
    fs::write(&file, stderr).with_context(|| format!("{} can't be written", file.display()))?;
    Ok(file)
}

/// The folder of a seed's case.
pub(super) fn folder(out: &Path, seed: u64, mutant: Option<&str>, suffix: &str) -> PathBuf {
    let mutant = mutant.map(|mutant| format!("-{mutant}")).unwrap_or_default();
    out.join(format!("seed-{seed}{mutant}{suffix}"))
}

/// Builds both programs as this one was built, and plays the plan. `cargo run` would build only the driver.
fn replay_command(this: &Path, here: &Path, plan: &Path, mutant: Option<&str>) -> String {
    let (flags, mutant) = match mutant {
        Some(mutant) => ("ANDANTE_MUTANTS=1 ", format!(" --mutant {mutant}")),
        None => ("", String::new()),
    };
    // With a folder in it: a shell looks for a bare name elsewhere.
    let program = this.strip_prefix(here).ok().filter(|program| program.components().count() > 1).unwrap_or(this);
    // <target>/sim/andante-chaos: cargo has to be told of a target that is not its own.
    let target = program.parent().and_then(Path::parent).filter(|target| *target != Path::new("target"));
    let target = target.map(|target| format!(" --target-dir {}", quoted(target))).unwrap_or_default();
    format!(
        "{flags}cargo build --profile sim -p andante-chaos{target} && {} replay --plan {}{mutant}",
        quoted(program),
        quoted(plan)
    )
}

/// As one word of a shell.
fn quoted(path: &Path) -> String {
    let text = path.display().to_string();
    if text.chars().all(|c| c.is_ascii_alphanumeric() || "/._-+".contains(c)) {
        text
    } else {
        format!("'{}'", text.replace('\'', r"'\''"))
    }
}

impl Case {
    /// For a person.
    pub(super) fn text(&self) -> String {
        let Violation { oracle, what, at_ms } = &self.violation;
        let mut text = format!("seed      {}\ncommit    {}\n", self.seed, self.commit);
        if let Some(mutant) = &self.mutant {
            let _ = writeln!(text, "mutant    {mutant}");
        }
        let _ = writeln!(text, "broken    {what}\noracle    {oracle}, at {:.3} s", *at_ms as f64 / 1e3);
        let _ = writeln!(text, "written   {}\nreplay    {}\n", self.folder.display(), self.command);
        let _ = write!(text, "The timeline's end:\n  {}", self.timeline.join("\n  "));
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_builds_and_plays_from_where_it_was_printed() {
        let command = |this: &str, plan: &str, mutant| {
            replay_command(Path::new(this), Path::new("/repo"), Path::new(plan), mutant)
        };
        assert_eq!(
            command("/repo/target/sim/andante-chaos", "chaos-failures/seed-7/plan.json", None),
            "cargo build --profile sim -p andante-chaos && \
             target/sim/andante-chaos replay --plan chaos-failures/seed-7/plan.json"
        );
        assert_eq!(
            command("/else/sim/andante-chaos", "my plans/plan.json", Some("early-ack")),
            "ANDANTE_MUTANTS=1 cargo build --profile sim -p andante-chaos --target-dir /else && \
             /else/sim/andante-chaos replay --plan 'my plans/plan.json' --mutant early-ack"
        );
        assert!(
            command("/repo/andante-chaos", "plan.json", None)
                .ends_with("&& /repo/andante-chaos replay --plan plan.json")
        );
    }

    #[test]
    fn a_shell_reads_a_quoted_path_as_one_word() {
        assert_eq!(quoted(Path::new("a/b-1.json")), "a/b-1.json");
        assert_eq!(quoted(Path::new("it's")), r"'it'\''s'");
    }
}
