//! Which commit is tried.

use std::{process::Stdio, time::Duration};

use serde::Serialize;
use tokio::{process::Command, time::timeout};

/// git answers within this, or there is none.
const ANSWER_WITHIN: Duration = Duration::from_secs(20);

/// What is checked out.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(super) struct Commit {
    /// "unknown" outside a repository.
    pub(super) hash: String,
    /// Something was changed since.
    pub(super) dirty: bool,
}

impl std::fmt::Display for Commit {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}{}", self.hash, if self.dirty { " (dirty)" } else { "" })
    }
}

/// What is checked out in the current folder.
pub(super) async fn commit() -> Commit {
    let hash = git(&["rev-parse", "HEAD"]).await;
    let dirty =
        git(&["status", "--porcelain", "--untracked-files=no"]).await.is_some_and(|changes| !changes.is_empty());
    Commit { hash: hash.unwrap_or_else(|| "unknown".to_owned()), dirty }
}

/// The hash of the committed tree: the same for the same files, whoever commits them, and when.
pub(super) async fn tree() -> Option<String> {
    git(&["rev-parse", "HEAD^{tree}"]).await
}

async fn git(args: &[&str]) -> Option<String> {
    let mut command = Command::new("git");
    command.args(args).stdin(Stdio::null()).stderr(Stdio::null()).kill_on_drop(true);
    let ended = timeout(ANSWER_WITHIN, command.output()).await.ok()?.ok()?;
    ended.status.success().then(|| String::from_utf8_lossy(&ended.stdout).trim().to_owned())
}
