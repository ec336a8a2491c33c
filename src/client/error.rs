//! Why a call has no result.

use std::{fmt, time::Duration};

use tonic::Status;

/// The addresses that were tried, each with the last reason why it could not be reached.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Unreached(Vec<(String, String)>);

impl Unreached {
    pub(super) fn note(&mut self, address: &str, cause: String) {
        match self.0.iter_mut().find(|(known, _)| known == address) {
            Some((_, last)) => *last = cause,
            None => self.0.push((address.to_owned(), cause)),
        }
    }
}

impl fmt::Display for Unreached {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let shown: Vec<_> = self.0.iter().map(|(address, cause)| format!("{address} ({cause})")).collect();
        f.write_str(&shown.join(", "))
    }
}

/// Why a call has no result, by what the caller can do about it. What is inside never holds the token.
#[derive(Debug, Clone, thiserror::Error)]
pub enum CallError {
    /// A server said no: nothing was changed, and the same call would be refused again. Change the request.
    #[error("{0}")]
    Refused(Status),
    /// Surely not done, and the time is up. Try again later.
    #[error("not done within {deadline:?}; the last error was: {status}")]
    NotDone {
        /// How long was tried.
        deadline: Duration,
        /// The last try's error.
        status: Status,
    },
    /// No address took the call: nothing was done.
    #[error("no node answers at {0}")]
    Unreachable(Unreached),
    /// It may or may not have been done: no answer came, or none that says. A write can be repeated with the same request
    /// id, an event with its token; a score can't be repeated without handing out new tokens.
    #[error("no answer within {deadline:?}, it may or may not have been done; the last error was: {status}")]
    Unknown {
        /// How long was tried.
        deadline: Duration,
        /// The last try's error.
        status: Status,
    },
}

impl CallError {
    /// Whether the same call may succeed later.
    pub fn transient(&self) -> bool {
        !matches!(self, Self::Refused(_))
    }

    /// Whether it may have been done.
    pub fn maybe_done(&self) -> bool {
        matches!(self, Self::Unknown { .. })
    }

    /// What the last server to answer said, if one did.
    pub fn status(&self) -> Option<&Status> {
        match self {
            Self::Refused(status) | Self::NotDone { status, .. } | Self::Unknown { status, .. } => Some(status),
            Self::Unreachable(_) => None,
        }
    }
}
