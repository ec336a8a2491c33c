//! What an operator carries from the cluster to a node that is to join it.

use std::fmt;

use base64::{DecodeError, Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use constant_time_eq::constant_time_eq_32;
use sha2::{Digest, Sha256};

use super::authority::fingerprint;

/// Starts every token, so that people and scanners for leaked secrets know one.
const PREFIX: &str = "andante-join-";
const VERSION: &str = "1";
/// Bytes of the checksum.
const CHECK_BYTES: usize = 4;
/// Bytes of fingerprint, secret and checksum.
const TOKEN_BYTES: usize = 32 + 32 + CHECK_BYTES;
/// Characters they are written with.
const TOKEN_CHARACTERS: usize = (TOKEN_BYTES * 8).div_ceil(6);

/// Lets a node join: it trusts the authority with this fingerprint, and the cluster trusts whoever knows the secret.
#[derive(Clone)]
pub struct JoinToken {
    /// SHA-256 of the certificate (DER) of the cluster's authority.
    pub authority_fingerprint: [u8; 32],
    /// Goes into `JoinRequest.secret`.
    pub secret: [u8; 32],
}

/// Why a text is no join token. It never contains the text.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    /// It is something else.
    #[error("this is no join token: those start with {PREFIX}{VERSION}-")]
    NotAToken,
    /// A later version of Andante made it.
    #[error("this join token has another form than this version of Andante knows ({PREFIX}{VERSION}-)")]
    OtherVersion,
    /// Something is missing, or too much.
    #[error("the join token has {found} characters behind {PREFIX}{VERSION}-, not {TOKEN_CHARACTERS}: copy all of it")]
    Length {
        /// Characters behind the prefix.
        found: usize,
    },
    /// Not all characters are those of a token.
    #[error("the join token has characters that do not belong there: copy it again")]
    Characters,
    /// It has the right form, but a character is wrong.
    #[error("the join token has a typing error: its checksum is wrong")]
    Typo,
}

impl JoinToken {
    /// As text: `andante-join-1-<base64url>`. Whoever reads it may join.
    pub fn encode(&self) -> String {
        let bytes = [&self.authority_fingerprint[..], &self.secret, &self.checksum()].concat();
        format!("{PREFIX}{VERSION}-{}", URL_SAFE_NO_PAD.encode(bytes))
    }

    /// Reads what [`Self::encode`] wrote; white space around it is no matter.
    pub fn parse(text: &str) -> Result<Self, TokenError> {
        let (version, rest) =
            text.trim().strip_prefix(PREFIX).and_then(|rest| rest.split_once('-')).ok_or(TokenError::NotAToken)?;
        if version != VERSION {
            let number = !version.is_empty() && version.bytes().all(|c| c.is_ascii_digit());
            return Err(if number { TokenError::OtherVersion } else { TokenError::NotAToken });
        }
        let found = rest.chars().count();
        if found != TOKEN_CHARACTERS {
            return Err(TokenError::Length { found });
        }
        let bytes = URL_SAFE_NO_PAD.decode(rest).map_err(|e| match e {
            DecodeError::InvalidLastSymbol(..) => TokenError::Typo,
            _ => TokenError::Characters,
        })?;
        let parts = bytes.split_first_chunk().and_then(|(fingerprint, rest)| {
            let (secret, check) = rest.split_first_chunk()?;
            Some((Self { authority_fingerprint: *fingerprint, secret: *secret }, check))
        });
        match parts {
            Some((token, check)) if check == token.checksum() => Ok(token),
            _ => Err(TokenError::Typo),
        }
    }

    /// Whether this is the certificate (DER) of the authority that the token pins.
    pub fn pins(&self, authority: &[u8]) -> bool {
        fingerprint(authority) == self.authority_fingerprint
    }

    fn checksum(&self) -> [u8; CHECK_BYTES] {
        let digest = Sha256::new()
            .chain_update(PREFIX)
            .chain_update(VERSION)
            .chain_update(self.authority_fingerprint)
            .chain_update(self.secret)
            .finalize();
        std::array::from_fn(|at| digest[at])
    }
}

impl PartialEq for JoinToken {
    fn eq(&self, other: &Self) -> bool {
        self.authority_fingerprint == other.authority_fingerprint && constant_time_eq_32(&self.secret, &other.secret)
    }
}

impl Eq for JoinToken {}

impl fmt::Debug for JoinToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JoinToken(..)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn token() -> JoinToken {
        JoinToken {
            authority_fingerprint: std::array::from_fn(|at| at as u8),
            secret: std::array::from_fn(|at| 200 - at as u8),
        }
    }

    #[test]
    fn a_token_reads_back_and_its_form_stays() {
        let text = token().encode();
        assert_eq!(
            text,
            "andante-join-1-AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh_Ix8bFxMPCwcC_vr28u7q5uLe2tbSzsrGwr66trKuqqSK1XQE"
        );
        assert_eq!(JoinToken::parse(&text), Ok(token()));
        assert_eq!(JoinToken::parse(&format!("  {text}\n")), Ok(token()));
    }

    #[test]
    fn what_is_wrong_with_a_token_is_told() {
        let good = token().encode();
        let body = good.strip_prefix("andante-join-1-").expect("prefix");
        let typo = |at: usize| {
            let mut text = good.clone().into_bytes();
            text[at] = if text[at] == b'B' { b'A' } else { b'B' };
            String::from_utf8(text).expect("text")
        };
        let table = [
            ("nothing", String::new(), TokenError::NotAToken),
            ("another prefix", good.replacen("join", "key", 1), TokenError::NotAToken),
            ("the body alone", body.to_owned(), TokenError::NotAToken),
            ("no version", format!("andante-join-{body}"), TokenError::NotAToken),
            ("another version", good.replacen("-1-", "-2-", 1), TokenError::OtherVersion),
            ("cut", good[..good.len() - 1].to_owned(), TokenError::Length { found: body.len() - 1 }),
            ("the prefix alone", "andante-join-1-".to_owned(), TokenError::Length { found: 0 }),
            ("twice", format!("{good}{body}"), TokenError::Length { found: 2 * body.len() }),
            (
                "a foreign character",
                good.replacen("AQID", "A!ID", 1).replacen("AAEC", "AA+C", 1),
                TokenError::Characters,
            ),
            ("a typo in the fingerprint", typo(20), TokenError::Typo),
            ("a typo in the secret", typo(70), TokenError::Typo),
            ("a typo in the checksum", typo(good.len() - 3), TokenError::Typo),
            ("a typo at the end", typo(good.len() - 1), TokenError::Typo),
        ];
        for (what, text, expected) in table {
            assert_eq!(JoinToken::parse(&text), Err(expected), "{what}");
        }
    }
}
