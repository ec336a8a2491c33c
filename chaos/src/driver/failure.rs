//! Why a command could not say whether the promises hold, with an exit code that scripts can rely on.

use std::fmt;

use serde_json::{Value, json};

/// A promise was broken, a situation never came up, or too few seeds count.
pub(super) const FAILED: u8 = 1;
/// The command line, a plan or a file it names is wrong.
pub(super) const USAGE: u8 = 2;
/// The simulation itself broke: nothing is said about the promises.
pub(super) const BROKE: u8 = 3;
/// Somebody stopped it.
pub(super) const INTERRUPTED: u8 = 130;

/// A command that came to no verdict.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Failure {
    pub(super) exit: u8,
    message: String,
}

impl Failure {
    pub(super) fn usage(message: impl Into<String>) -> Self {
        Self { exit: USAGE, message: message.into() }
    }

    pub(super) fn broke(message: impl Into<String>) -> Self {
        Self { exit: BROKE, message: message.into() }
    }

    pub(super) fn interrupted() -> Self {
        Self { exit: INTERRUPTED, message: "interrupted".to_owned() }
    }

    pub(super) fn to_json(&self) -> Value {
        json!({"error": {"message": self.message, "exit_code": self.exit}})
    }
}

impl std::error::Error for Failure {}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl From<anyhow::Error> for Failure {
    fn from(error: anyhow::Error) -> Self {
        // What is not told apart is about the machine: files that can't be written, processes that can't be started.
        error.downcast_ref().cloned().unwrap_or_else(|| Self::broke(format!("{error:#}")))
    }
}
