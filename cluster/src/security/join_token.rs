//! What an operator carries from the cluster to a node that is to join it.

use std::fmt;

/// Lets a node join: it trusts the authority with this fingerprint, and the cluster trusts whoever knows the secret.
#[derive(Clone, PartialEq, Eq)]
pub struct JoinToken {
    /// SHA-256 of the certificate (DER) of the cluster's authority.
    pub authority_fingerprint: [u8; 32],
    /// Goes into `JoinRequest.secret`.
    pub secret: [u8; 32],
}

/// Why a text is no join token.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    /// It is something else.
    #[error("this is no join token: one starts with andante-join-")]
    NotAToken,
}

impl JoinToken {
    /// As text: `andante-join-1-<base64url>`. Whoever reads it may join.
    pub fn encode(&self) -> String {
        unimplemented!()
    }

    /// Reads what [`Self::encode`] wrote.
    pub fn parse(text: &str) -> Result<Self, TokenError> {
        let _ = text;
        unimplemented!()
    }

    /// Whether this is the certificate (DER) of the authority that the token pins.
    pub fn pins(&self, authority: &[u8]) -> bool {
        let _ = authority;
        unimplemented!()
    }
}

impl fmt::Debug for JoinToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JoinToken(..)")
    }
}
