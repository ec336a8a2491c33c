//! The text of an access token.

use std::fmt;

use andante_cluster::env::Rng;
use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use sha2::{Digest as _, Sha256};

/// Every token begins with it, so that scanners for leaked secrets can be told what to look for.
const PREFIX: &str = "andante_";
const ID_DIGITS: usize = 16;
const SECRET_BYTES: usize = 32;
/// Characters of the secret: 32 bytes in base64 without padding.
const SECRET_CHARS: usize = 43;
/// Characters of a token.
pub(crate) const TOKEN_CHARS: usize = PREFIX.len() + ID_DIGITS + 1 + SECRET_CHARS;

/// A token with its secret: 256 random bits, so that a plain hash of it is safe to keep.
#[derive(Clone, PartialEq, Eq)]
pub struct AccessToken {
    id: u64,
    secret: [u8; SECRET_BYTES],
}

/// Why a text is no access token. It never quotes the text.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not an access token: these look like andante_<16 hexadecimal digits>_<43 characters>")]
pub struct TokenParseError;

impl AccessToken {
    /// A new one.
    pub fn generate(rng: &dyn Rng) -> Self {
        let mut secret = [0; SECRET_BYTES];
        rng.fill(&mut secret);
        Self { id: rng.u64(), secret }
    }

    /// Its id, which may be shown.
    pub fn id(&self) -> u64 {
        self.id
    }

    /// SHA-256 of its secret.
    pub fn secret_sha256(&self) -> [u8; 32] {
        Sha256::digest(self.secret).into()
    }

    /// Its text: whoever has it may use it.
    pub fn reveal(&self) -> String {
        format!("{PREFIX}{}_{}", show_id(self.id), URL_SAFE_NO_PAD.encode(self.secret))
    }

    /// Reads a text.
    ///
    /// # Errors
    /// It is not of that form.
    pub fn parse(text: &str) -> Result<Self, TokenParseError> {
        if text.len() != TOKEN_CHARS {
            return Err(TokenParseError);
        }
        // Ids have no underscore, secrets may have some.
        let rest = text.strip_prefix(PREFIX).ok_or(TokenParseError)?;
        let (id, secret) = rest.split_once('_').ok_or(TokenParseError)?;
        let id = parse_id(id).ok_or(TokenParseError)?;
        let secret = URL_SAFE_NO_PAD.decode(secret).ok().and_then(|secret| secret.try_into().ok());
        Ok(Self { id, secret: secret.ok_or(TokenParseError)? })
    }
}

/// Never shows the secret.
impl fmt::Debug for AccessToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "AccessToken({})", show_id(self.id))
    }
}

/// An id as people see it.
pub(crate) fn show_id(id: u64) -> String {
    format!("{id:016x}")
}

/// An id as people write it.
pub(crate) fn parse_id(text: &str) -> Option<u64> {
    let digits = |c: u8| c.is_ascii_digit() || (b'a'..=b'f').contains(&c);
    (text.len() == ID_DIGITS && text.bytes().all(digits)).then(|| u64::from_str_radix(text, 16).ok())?
}

#[cfg(test)]
mod tests {
    use andante_cluster::env::SystemRng;

    use super::*;

    #[test]
    fn a_token_survives_its_text() {
        for _ in 0..100 {
            let token = AccessToken::generate(&SystemRng);
            let text = token.reveal();
            assert_eq!(text.len(), TOKEN_CHARS);
            assert_eq!(AccessToken::parse(&text), Ok(token));
        }
    }

    #[test]
    fn other_texts_are_no_tokens_and_are_not_quoted() {
        let text = AccessToken::generate(&SystemRng).reveal();
        let upper = text.to_uppercase();
        let wrong = ["", "andante_", &text[1..], &text[..text.len() - 1], &format!("{text}A"), &upper, &"é".repeat(34)];
        for wrong in wrong {
            let error = AccessToken::parse(wrong).expect_err("is refused").to_string();
            assert!(wrong.len() < 10 || !error.contains(wrong));
        }
    }

    #[test]
    fn its_debug_form_has_the_id_alone() {
        let token = AccessToken { id: 0xab, secret: [7; 32] };
        assert_eq!(format!("{token:?}"), "AccessToken(00000000000000ab)");
    }
}
