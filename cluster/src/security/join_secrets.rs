//! The secrets that let nodes join, as hashes with an expiry, in a directory setting.

use std::time::Duration;

use super::{Authority, JoinToken, SecurityError};
use crate::{directory::Directory, env::Rng};

/// The join secrets of a cluster.
#[derive(Debug, Clone, Default)]
pub struct JoinSecrets {}

/// Why a secret does not let its bearer join.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum JoinRefused {
    /// Never made here, or long since pruned.
    #[error("the join token is not one of this cluster, or it expired long ago: make a new one")]
    Unknown,
    /// Too late.
    #[error("the join token has expired: make a new one")]
    Expired,
}

impl JoinSecrets {
    /// The directory setting they are kept in.
    pub const SETTING: &'static str = "join_secrets";
    /// How long a token is good unless somebody asks for another time.
    pub const LIFE: Duration = Duration::from_secs(24 * 60 * 60);

    /// Those of a directory and the setting's revision, to be expected when they are written back (0: none yet).
    pub fn of(directory: &Directory) -> Result<(Self, u64), SecurityError> {
        let _ = directory;
        unimplemented!()
    }

    /// As the value of the directory setting.
    pub fn encode(&self) -> Vec<u8> {
        unimplemented!()
    }

    /// Adds a new secret and returns the token with it; drops those that expired. To be written back before the
    /// token is given away. `Refused`: too many are valid.
    pub fn issue(
        &mut self,
        authority: &Authority,
        rng: &dyn Rng,
        now_ms: u64,
        life: Duration,
    ) -> Result<JoinToken, SecurityError> {
        let _ = (authority, rng, now_ms, life);
        unimplemented!()
    }

    /// Whether this secret lets its bearer join now. A token can be used again until it expires.
    pub fn check(&self, secret: &[u8], now_ms: u64) -> Result<(), JoinRefused> {
        let _ = (secret, now_ms);
        unimplemented!()
    }
}
