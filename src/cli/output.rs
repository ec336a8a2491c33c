//! The only place that writes to standard output and standard error.

use std::{
    fmt::Display,
    io::{self, Write},
    process::ExitCode,
};

use serde::Serialize;

use super::failure::Failure;

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
        Self::line(&line)
    }

    /// Writes a line to standard output. A reader that went away (`| head`) is no error.
    pub(super) fn line(text: &str) -> anyhow::Result<()> {
        let mut stdout = io::stdout().lock();
        match writeln!(stdout, "{text}").and_then(|()| stdout.flush()) {
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
}
