//! What can go wrong with keys and certificates.

use std::io;

/// Why a key or certificate cannot be made, read or used. Nothing was changed.
#[derive(Debug, thiserror::Error)]
pub enum SecurityError {
    /// It does not decode, or its parts do not belong together. Restore it, or let it be made anew.
    #[error("{what}: {why}")]
    Unusable {
        /// What is unusable.
        what: &'static str,
        /// Why.
        why: String,
    },
    /// What somebody asked for is not granted; the asker's fault.
    #[error("{0}")]
    Refused(String),
    /// A file could not be read or written.
    #[error("{what}: {source}")]
    Io {
        /// Which file.
        what: &'static str,
        /// Why.
        source: io::Error,
    },
}

impl SecurityError {
    pub(super) fn unusable(what: &'static str, why: impl ToString) -> Self {
        Self::Unusable { what, why: why.to_string() }
    }
}
