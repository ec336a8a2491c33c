//! Plays one run of the simulation in a process of its own.

use std::{
    ffi::OsString,
    path::{Path, PathBuf},
    process::{ExitStatus, Stdio},
    time::Duration,
};

use anyhow::Context as _;
use tempfile::TempDir;
use tokio::{
    io::{AsyncRead, AsyncReadExt as _},
    process::Command,
    time::timeout,
};

use super::failure::Failure;
use crate::report::Report;

/// The simulation's program, beside this one.
const PROGRAM: &str = "andante-chaos-sim";
/// A report has some tens of kilobytes; one that has so much is none.
const REPORT_BYTES_MAX: u64 = 256 << 20;
/// So much is kept of the end of what a run says on standard error: a panic, its backtrace and what led there.
const STDERR_BYTES_KEPT: usize = 64 << 10;
/// Here files are in memory: the simulation's are small and many.
const MEMORY: &str = "/dev/shm";

/// How the simulation is started.
#[derive(Debug, Clone)]
pub(super) struct Player {
    pub(super) program: PathBuf,
    /// Runs at the same time.
    pub(super) jobs: usize,
    /// A run that takes longer hangs.
    pub(super) wall_max: Duration,
    /// What it says on standard error is passed on, instead of kept for when it breaks.
    pub(super) talks: bool,
}

/// What a run plays.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Source {
    /// What the seed draws.
    Seed(u64),
    /// A plan that was written down.
    Plan(PathBuf),
}

/// One run.
#[derive(Debug, Clone)]
pub(super) struct Run {
    pub(super) source: Source,
    pub(super) mutant: Option<String>,
    /// The timeline is told of runs that hold, too.
    pub(super) timeline: bool,
}

/// A run that came to its verdict.
#[derive(Debug, Clone)]
pub(super) struct Played {
    pub(super) report: Report,
    /// The report as it was printed.
    pub(super) line: String,
}

/// A run without a verdict.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Trouble {
    /// The plan, the mutant or the command line is not for this simulation: nothing was played.
    pub(super) unusable: bool,
    /// What happened.
    pub(super) what: String,
    /// The end of what it said.
    pub(super) stderr: String,
}

impl From<Trouble> for Failure {
    fn from(trouble: Trouble) -> Self {
        let Trouble { unusable, what, stderr } = trouble;
        let message = if stderr.is_empty() { what } else { format!("{what}\n{}", stderr.trim_end()) };
        if unusable { Self::usage(message) } else { Self::broke(message) }
    }
}

/// How a process ended.
struct Ended {
    status: ExitStatus,
    stdout: String,
    stderr: String,
}

/// Where the simulation's program is, if nobody says.
pub(super) fn program_beside_this_one() -> Result<PathBuf, Failure> {
    let this = std::env::current_exe().map_err(|error| Failure::broke(format!("where is this program: {error}")))?;
    let program = this.with_file_name(PROGRAM);
    if program.is_file() {
        return Ok(program);
    }
    let missing = program.display();
    Err(Failure::usage(format!("{missing} is missing; build it with: cargo build --profile sim -p andante-chaos")))
}

impl Player {
    /// Plays it to its end.
    ///
    /// # Errors
    /// It came to no verdict.
    pub(super) async fn play(&self, run: &Run) -> Result<Played, Trouble> {
        let mut args: Vec<OsString> = match &run.source {
            Source::Seed(seed) => vec!["--seed".into(), seed.to_string().into()],
            Source::Plan(plan) => vec!["--plan".into(), plan.into()],
        };
        if let Some(mutant) = &run.mutant {
            args.extend(["--mutant".into(), mutant.into()]);
        }
        if run.timeline {
            args.push("--timeline".into());
        }
        let Ended { status, stdout, stderr } = self.start(&args).await?;
        let trouble = |unusable, what: String| Trouble { unusable, what, stderr: stderr.clone() };
        match status.code() {
            Some(0 | 1) => {}
            Some(2) => return Err(trouble(true, "the simulation refused what it was to play".to_owned())),
            _ => return Err(trouble(false, format!("the simulation broke ({status})"))),
        }
        let line = stdout.trim_end();
        let report: Report = serde_json::from_str(line).map_err(|error| {
            trouble(false, format!("the simulation printed no report that this build of the driver reads: {error}"))
        })?;
        if report.violation.is_some() != (status.code() == Some(1)) {
            return Err(trouble(false, format!("the simulation's report contradicts its exit ({status})")));
        }
        Ok(Played { report, line: line.to_owned() })
    }

    /// Asks the simulation for something that is not a run.
    ///
    /// # Errors
    /// It does not answer.
    pub(super) async fn ask<T: serde::de::DeserializeOwned>(&self, question: &str) -> anyhow::Result<T> {
        let Ended { status, stdout, stderr } = self.start(&[question.into()]).await.map_err(Failure::from)?;
        if !status.success() {
            return Err(Failure::broke(format!("{PROGRAM} {question}: {status}\n{stderr}")).into());
        }
        serde_json::from_str(&stdout).with_context(|| format!("{PROGRAM} {question} answers with something else"))
    }

    /// Runs the program to its end or to its limit. Dropped before, it is killed.
    async fn start(&self, args: &[OsString]) -> Result<Ended, Trouble> {
        let broke = |what: String| Trouble { unusable: false, what, stderr: String::new() };
        // Before the child, so that it goes after it.
        let scratch = scratch().map_err(|error| broke(format!("no temporary folder for the simulation: {error}")))?;
        let mut child = Command::new(&self.program)
            .args(args)
            .env("TMPDIR", scratch.path())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(if self.talks { Stdio::inherit() } else { Stdio::piped() })
            // A key that interrupts goes to this program, which ends its children.
            .process_group(0)
            .kill_on_drop(true)
            .spawn()
            .map_err(|error| broke(format!("{} can't be started: {error}", self.program.display())))?;
        let (mut stdout, mut stderr) = (Vec::new(), Vec::new());
        let (said, told) = (child.stdout.take(), child.stderr.take());
        let end = async {
            let (status, (), ()) = tokio::try_join!(child.wait(), all(said, &mut stdout), tail(told, &mut stderr))?;
            Ok::<_, std::io::Error>(status)
        };
        let ended = timeout(self.wall_max, end).await;
        let stderr = String::from_utf8_lossy(&stderr).into_owned();
        match ended {
            Ok(Ok(status)) => Ok(Ended { status, stdout: String::from_utf8_lossy(&stdout).into_owned(), stderr }),
            Ok(Err(error)) => Err(Trouble { stderr, ..broke(format!("the simulation can't be followed: {error}")) }),
            Err(_) => {
                // If it can't be killed it is gone.
                let _ = child.kill().await;
                Err(Trouble { stderr, ..broke(format!("hang: no end after {} s", self.wall_max.as_secs())) })
            }
        }
    }
}

fn scratch() -> std::io::Result<TempDir> {
    let builder = || {
        let mut builder = tempfile::Builder::new();
        builder.prefix("andante-chaos-");
        builder
    };
    if Path::new(MEMORY).is_dir() {
        builder().tempdir_in(MEMORY).or_else(|_| builder().tempdir())
    } else {
        builder().tempdir()
    }
}

/// Reads to the end; too much is an error.
async fn all(source: Option<impl AsyncRead + Unpin>, into: &mut Vec<u8>) -> std::io::Result<()> {
    let Some(source) = source else { return Ok(()) };
    let mut source = source.take(REPORT_BYTES_MAX);
    source.read_to_end(into).await?;
    if source.limit() == 0 { Err(std::io::Error::other("its report has no end")) } else { Ok(()) }
}

/// Reads to the end and keeps the last of it.
async fn tail(source: Option<impl AsyncRead + Unpin>, kept: &mut Vec<u8>) -> std::io::Result<()> {
    let Some(mut source) = source else { return Ok(()) };
    let mut chunk = [0; 4 << 10];
    loop {
        let read = source.read(&mut chunk).await?;
        if read == 0 {
            return Ok(());
        }
        kept.extend_from_slice(&chunk[..read]);
        kept.drain(..kept.len().saturating_sub(STDERR_BYTES_KEPT));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn only_the_end_of_much_talk_is_kept() {
        let mut talk = vec![b'a'; 3 * STDERR_BYTES_KEPT];
        talk.extend_from_slice(b"panicked");
        let mut kept = Vec::new();
        tail(Some(&talk[..]), &mut kept).await.unwrap();
        assert_eq!(kept.len(), STDERR_BYTES_KEPT);
        assert!(kept.ends_with(b"aapanicked"));
    }
}
