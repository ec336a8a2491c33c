//! The only place that writes to standard output and standard error.

use std::{
    fmt::Display,
    io::{self, IsTerminal as _, Write as _},
    process::ExitCode,
    time::{Duration, Instant},
};

use comfy_table::{Table, presets};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use parking_lot::Mutex;
use serde::Serialize;

use super::failure::Failure;

/// Time between two lines that tell how far it is, where no terminal shows a bar.
const NOTE_EVERY: Duration = Duration::from_secs(60);

/// Writes for a person or for a script.
#[derive(Debug, Clone, Copy)]
pub(super) struct Output {
    json: bool,
}

impl Output {
    pub(super) fn new(json: bool) -> Self {
        Self { json }
    }

    /// Writes a result: as JSON on one line, or as text.
    pub(super) fn result<T: Serialize>(self, value: &T, text: impl FnOnce(&T) -> String) -> anyhow::Result<()> {
        let line = if self.json { serde_json::to_string(value)? } else { text(value) };
        let mut stdout = io::stdout().lock();
        match writeln!(stdout, "{line}").and_then(|()| stdout.flush()) {
            // A reader that went away (`| head`) is no error.
            Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(error.into()),
            _ => Ok(()),
        }
    }

    /// Tells a person something that is not the result, on standard error. Scripts are spared.
    pub(super) fn note(self, text: impl Display) {
        if !self.json {
            // Nowhere is left to say that it failed.
            let _ = writeln!(io::stderr().lock(), "{text}");
        }
    }

    /// Tells a failure on standard error and gives its exit code.
    pub(super) fn failure(self, failure: &Failure) -> ExitCode {
        let text = if self.json { failure.to_json().to_string() } else { format!("error: {failure}") };
        let _ = writeln!(io::stderr().lock(), "{text}");
        ExitCode::from(failure.exit)
    }

    /// How far it is: a bar on a terminal, a line now and then elsewhere. `None`: nobody knows how many there will be.
    pub(super) fn progress(self, runs: Option<u64>, what: &'static str) -> Progress {
        let bar_shown = !self.json && io::stderr().is_terminal();
        let target = if bar_shown { ProgressDrawTarget::stderr() } else { ProgressDrawTarget::hidden() };
        let template = if runs.is_some() {
            "{elapsed} {bar:40} {pos}/{len} {prefix}  {msg}"
        } else {
            "{elapsed} {spinner} {pos} {prefix}  {msg}"
        };
        let style = ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar());
        let bar = ProgressBar::with_draw_target(runs, target).with_style(style).with_prefix(what);
        if bar_shown {
            bar.enable_steady_tick(Duration::from_millis(200));
        }
        Progress { output: self, bar, bar_shown, started: Instant::now(), noted: Mutex::new(Instant::now()) }
    }
}

/// How far a command is. Gone when dropped.
#[derive(Debug)]
pub(super) struct Progress {
    output: Output,
    bar: ProgressBar,
    bar_shown: bool,
    started: Instant,
    noted: Mutex<Instant>,
}

impl Progress {
    /// One more run has ended.
    pub(super) fn ended(&self) {
        self.bar.inc(1);
        let mut noted = self.noted.lock();
        if !self.bar_shown && noted.elapsed() >= NOTE_EVERY {
            *noted = Instant::now();
            let (runs, seconds) = (self.bar.position(), self.started.elapsed().as_secs());
            self.output.note(format!("{seconds} s: {runs} {}  {}", self.bar.prefix(), self.bar.message()));
        }
    }

    /// What there is to tell beside the number of runs.
    pub(super) fn tell(&self, message: String) {
        self.bar.set_message(message);
    }

    /// Writes beside the bar.
    pub(super) fn note(&self, text: impl Display) {
        self.bar.suspend(|| self.output.note(text));
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}

/// A table without lines, as all of ours.
pub(super) fn table<const N: usize>(header: [&str; N]) -> Table {
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    table.set_header(header);
    table
}
