//! The first operator's token: without it nobody could make the others.

use std::{
    fs,
    io::{self, Write as _},
    path::{Path, PathBuf},
    sync::Arc,
};

use andante_cluster::env::{Blocking, Rng};
use anyhow::Context as _;
use tokio::time::Instant;

use super::{Access, AccessToken};

/// Where it lies, below the data directory of the node that formed the cluster. Readable by its owner alone.
pub const OPERATOR_TOKEN_FILE: &str = "operator.token";

impl Access {
    /// Makes the cluster's first token, if there never was one, and leaves it in a file.
    ///
    /// The file comes first: after a crash in between the token in it is not valid, and the next start makes another.
    ///
    /// # Errors
    /// The disk's or the directory's.
    pub async fn ensure_operator(
        &self,
        data_dir: &Path,
        rng: &dyn Rng,
        blocking: &Arc<dyn Blocking>,
        now_ms: u64,
        deadline: Instant,
    ) -> anyhow::Result<()> {
        if self.exists() {
            return Ok(());
        }
        let token = AccessToken::generate(rng);
        let path = data_dir.join(OPERATOR_TOKEN_FILE);
        let (file, text) = (path.clone(), token.reveal());
        let written = blocking.call(move || write_secret(&file, &text)).await;
        written
            .unwrap_or_else(|| Err(io::Error::other("the task was broken off")))
            .with_context(|| format!("the first operator's token can't be written to {}", path.display()))?;
        match self.create_first(&token, now_ms, deadline).await {
            Ok(true) => {
                tracing::info!(path = %path.display(), "the first operator's access token is in a file");
                Ok(())
            }
            // Another node was first: its file has the token.
            Ok(false) => {
                let removed = blocking.call(move || fs::remove_file(path)).await;
                Ok(removed.unwrap_or(Ok(()))?)
            }
            Err(error) => Err(error).context("the first operator's token could not be stored"),
        }
    }
}

/// Writes a file that only its owner can read, durably and in one step.
fn write_secret(path: &PathBuf, text: &str) -> io::Result<()> {
    let temporary = path.with_extension("new");
    let mut options = fs::OpenOptions::new();
    options.write(true).create(true).truncate(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    // One that was left behind might have other permissions.
    match fs::remove_file(&temporary) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut file = options.open(&temporary)?;
    writeln!(file, "{text}")?;
    file.sync_all()?;
    fs::rename(&temporary, path)?;
    match path.parent() {
        Some(parent) => fs::File::open(parent)?.sync_all(),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[cfg(unix)]
    #[test]
    fn the_file_is_its_owners_alone() {
        use std::os::unix::fs::PermissionsExt as _;
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(OPERATOR_TOKEN_FILE);
        for text in ["first", "second"] {
            write_secret(&path, text).unwrap();
            assert_eq!(fs::read_to_string(&path).unwrap(), format!("{text}\n"));
            assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        }
    }
}
