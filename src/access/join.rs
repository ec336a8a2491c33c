//! What lets nodes join, and what clients may trust: the cluster's authority.

use andante_cluster::security::{Authority, JoinSecrets, JoinToken};
use tokio::time::{Duration, Instant};

use super::{Access, AccessError};
use crate::directory_setting;

/// Shortest life of a join token: somebody has to carry it to the new node.
const TTL_MIN_MS: u64 = 60_000;
/// Longest life of a join token: a forgotten one lets strangers in.
const TTL_MAX_MS: u64 = 7 * 24 * 3_600_000;

impl Access {
    /// Makes a join token, and says when it ends, UTC milliseconds. `ttl_ms` 0: after the usual time.
    ///
    /// # Errors
    /// See [`AccessError`].
    pub async fn create_join_token(
        &self,
        ttl_ms: u64,
        now_ms: u64,
        deadline: Instant,
    ) -> Result<(JoinToken, u64), AccessError> {
        if ttl_ms != 0 && !(TTL_MIN_MS..=TTL_MAX_MS).contains(&ttl_ms) {
            let reason = format!("must be 0 or lie in {TTL_MIN_MS}..={TTL_MAX_MS}, is {ttl_ms}");
            return Err(AccessError::Invalid { field: "ttl_ms", reason });
        }
        let life = if ttl_ms == 0 { JoinSecrets::LIFE } else { Duration::from_millis(ttl_ms) };
        let (token, _) = directory_setting::change(&self.host, JoinSecrets::SETTING, deadline, |directory| {
            let authority = Authority::of(directory)?.ok_or(AccessError::NoAuthority)?;
            let (mut secrets, _) = JoinSecrets::of(directory)?;
            let token = secrets.issue(&authority, &*self.rng, now_ms, life)?;
            Ok::<_, AccessError>((secrets.encode(), token))
        })
        .await?;
        Ok((token, now_ms + life.as_millis() as u64))
    }

    /// The certificate of the cluster's authority, PEM.
    ///
    /// # Errors
    /// See [`AccessError`].
    pub fn authority_pem(&self) -> Result<String, AccessError> {
        let directory = self.host.directory().borrow().clone();
        let authority = Authority::of(&directory)?.ok_or(AccessError::NoAuthority)?;
        Ok(authority.certificate_pem())
    }
}
