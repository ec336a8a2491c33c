//! The secrets that let nodes join, as hashes with an expiry, in a directory setting.

use std::time::Duration;

use constant_time_eq::constant_time_eq_32;
use prost::Message;
use sha2::{Digest, Sha256};

use super::{Authority, JoinToken, SecurityError};
use crate::{
    directory::Directory,
    env::Rng,
    proto::{JoinSecretRecord, JoinSecretsRecord},
};

/// Most secrets that are kept: tokens are made by hand and live for a day.
const MAX_SECRETS: usize = 64;
/// Longest life of a token: with a longer one, forgotten tokens pile up.
const MAX_LIFE: Duration = Duration::from_secs(30 * 24 * 60 * 60);

/// The join secrets of a cluster.
#[derive(Debug, Clone, Default)]
pub struct JoinSecrets {
    secrets: Vec<Secret>,
}

#[derive(Debug, Clone)]
struct Secret {
    /// Of 32 random bytes: who reads this can't find them.
    sha256: [u8; 32],
    created_ms: u64,
    expires_ms: u64,
}

/// Why a secret does not let its bearer join.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum JoinRefused {
    /// Never made here, or long since pruned.
    #[error("the join token is none of this cluster's, or it expired long ago: make a new one")]
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
        match directory.settings.get(Self::SETTING) {
            Some(setting) => Ok((Self::decode(&setting.value)?, setting.revision)),
            None => Ok((Self::default(), 0)),
        }
    }

    /// As the value of the directory setting.
    pub fn encode(&self) -> Vec<u8> {
        let secrets = self.secrets.iter().map(|secret| JoinSecretRecord {
            sha256: secret.sha256.to_vec().into(),
            created_ms: secret.created_ms,
            expires_ms: secret.expires_ms,
        });
        JoinSecretsRecord { secrets: secrets.collect() }.encode_to_vec()
    }

    fn decode(value: &[u8]) -> Result<Self, SecurityError> {
        let unusable = |why: &dyn ToString| SecurityError::unusable("join secrets", why.to_string());
        let record = JoinSecretsRecord::decode(value).map_err(|e| unusable(&e))?;
        let secrets = record.secrets.into_iter().map(|secret| {
            let sha256 = secret.sha256.as_ref().try_into().map_err(|_| unusable(&"a hash has not 32 bytes"))?;
            Ok(Secret { sha256, created_ms: secret.created_ms, expires_ms: secret.expires_ms })
        });
        Ok(Self { secrets: secrets.collect::<Result<_, _>>()? })
    }

    /// Adds a new secret and returns the token with it; drops those that expired. To be written back before the
    /// token is given away. `Refused`: a life of nothing or too long, or too many are valid.
    pub fn issue(
        &mut self,
        authority: &Authority,
        rng: &dyn Rng,
        now_ms: u64,
        life: Duration,
    ) -> Result<JoinToken, SecurityError> {
        if life.is_zero() || life > MAX_LIFE {
            let days = MAX_LIFE.as_secs() / (24 * 60 * 60);
            return Err(SecurityError::Refused(format!("a join token's life must be above 0 and at most {days} days")));
        }
        self.secrets.retain(|secret| secret.expires_ms > now_ms);
        if self.secrets.len() >= MAX_SECRETS {
            let why =
                format!("{MAX_SECRETS} join tokens are valid already: use one of them, or wait until they expire");
            return Err(SecurityError::Refused(why));
        }
        let mut secret = [0; 32];
        rng.fill(&mut secret);
        let (sha256, expires_ms) = (Sha256::digest(secret).into(), now_ms.saturating_add(life.as_millis() as u64));
        self.secrets.push(Secret { sha256, created_ms: now_ms, expires_ms });
        Ok(JoinToken { authority_fingerprint: authority.fingerprint(), secret })
    }

    /// Whether this secret lets its bearer join now. A token can be used again until it expires.
    pub fn check(&self, secret: &[u8], now_ms: u64) -> Result<(), JoinRefused> {
        let sha256 = Sha256::digest(secret).into();
        // All are compared, whichever fits: the time it takes tells nothing.
        let known = self.secrets.iter().fold(None, |known, secret| {
            if constant_time_eq_32(&secret.sha256, &sha256) { Some(secret.expires_ms) } else { known }
        });
        match known {
            None => Err(JoinRefused::Unknown),
            Some(expires_ms) if now_ms >= expires_ms => Err(JoinRefused::Expired),
            Some(_) => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::env::SystemRng;

    const NOW_MS: u64 = 1_800_000_000_000;
    const DAY_MS: u64 = 24 * 60 * 60 * 1_000;

    fn reread(secrets: &JoinSecrets) -> JoinSecrets {
        JoinSecrets::decode(&secrets.encode()).expect("decodes")
    }

    #[test]
    fn a_secret_is_good_until_it_expires_as_often_as_one_likes() {
        let authority = Authority::generate([5; 16], NOW_MS).expect("authority");
        let mut secrets = JoinSecrets::default();
        let issued = secrets.issue(&authority, &SystemRng, NOW_MS, JoinSecrets::LIFE);
        let token = issued.expect("token");
        assert!(token.pins(authority.certificate_der()) && !token.pins(b"another"));
        let secrets = reread(&secrets);
        for _ in 0..2 {
            assert_eq!(secrets.check(&token.secret, NOW_MS + DAY_MS - 1), Ok(()));
        }
        assert_eq!(secrets.check(&token.secret, NOW_MS + DAY_MS), Err(JoinRefused::Expired));
        let mut wrong = token.secret;
        wrong[31] ^= 1;
        for secret in [&wrong[..], &token.secret[..31], &[]] {
            assert_eq!(secrets.check(secret, NOW_MS), Err(JoinRefused::Unknown));
        }
        let sha256: [u8; 32] = Sha256::digest(token.secret).into();
        assert_eq!(secrets.check(&sha256, NOW_MS), Err(JoinRefused::Unknown), "the kept hash is no secret");
    }

    #[test]
    fn there_are_at_most_so_many_and_expired_ones_make_room() {
        let authority = Authority::generate([5; 16], NOW_MS).expect("authority");
        let mut secrets = JoinSecrets::default();
        let issue = |secrets: &mut JoinSecrets, now_ms| {
            secrets.issue(&authority, &SystemRng, now_ms, JoinSecrets::LIFE).map(|token| token.secret)
        };
        let first = issue(&mut secrets, NOW_MS).expect("token");
        for _ in 1..MAX_SECRETS {
            issue(&mut secrets, NOW_MS).expect("token");
        }
        assert!(matches!(issue(&mut secrets, NOW_MS), Err(SecurityError::Refused(_))));
        issue(&mut secrets, NOW_MS + DAY_MS).expect("token");
        assert_eq!(secrets.secrets.len(), 1);
        assert_eq!(secrets.check(&first, NOW_MS), Err(JoinRefused::Unknown));
        for life in [Duration::ZERO, MAX_LIFE + Duration::from_secs(1)] {
            let refused = secrets.issue(&authority, &SystemRng, NOW_MS, life);
            assert!(matches!(refused, Err(SecurityError::Refused(_))));
        }
    }
}
