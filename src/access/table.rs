//! The cluster's access tokens, parsed, for looking up.

use std::{collections::HashMap, fmt, sync::Arc};

use constant_time_eq::constant_time_eq_32;
use prost::Message as _;

use super::{AccessToken, Role, Roles, proto, token::show_id};

/// An access token as it may be shown: everything but its secret.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TokenInfo {
    /// Its id.
    pub id: u64,
    /// What it is for.
    pub name: String,
    /// What it allows.
    pub roles: Roles,
    /// When it was made, UTC milliseconds.
    pub created_ms: u64,
    /// When it ends, UTC milliseconds; 0: never.
    pub expires_ms: u64,
}

impl TokenInfo {
    /// Whether it is valid at that time.
    pub fn is_valid(&self, now_ms: u64) -> bool {
        self.expires_ms == 0 || now_ms < self.expires_ms
    }
}

/// What a caller may do; travels with the request.
#[derive(Debug, Clone)]
pub struct Grant(pub Arc<TokenInfo>);

impl fmt::Display for Grant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.0.name, show_id(self.0.id))
    }
}

/// Why a caller is turned away. Says nothing that helps guessing: unknown, revoked and wrong are one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Denied {
    /// The call carries no token.
    #[error("this call needs an access token: send `authorization: Bearer TOKEN` (--token or ANDANTE_TOKEN)")]
    Missing,
    /// The header is not `Bearer` and a token.
    #[error("the authorization is not `Bearer` and an access token")]
    Malformed,
    /// No valid token: unknown, revoked, or with another secret.
    #[error("the access token is not, or no longer, valid in this cluster")]
    Unknown,
    /// It is over.
    #[error("the access token has expired")]
    Expired,
    /// The token is good, but not for this.
    #[error("this call needs an access token with the role {0}")]
    Role(Role),
}

/// All tokens. Immutable: a change makes a new table.
#[derive(Debug, Default)]
pub struct AccessTable {
    tokens: HashMap<u64, Entry>,
}

struct Entry {
    secret_sha256: [u8; 32],
    info: Arc<TokenInfo>,
}

/// Never shows the hash: it is no secret, but nobody needs it.
impl fmt::Debug for Entry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.info.fmt(f)
    }
}

impl AccessTable {
    /// Reads the directory's setting. What does not make sense is left out: one bad record must not lock everybody
    /// out, and an entry left out allows nothing.
    ///
    /// # Errors
    /// It does not decode at all.
    pub fn decode(setting: &[u8]) -> Result<Self, prost::DecodeError> {
        let record = proto::AccessTokens::decode(setting)?;
        let tokens = record.tokens.into_iter().filter_map(|token| {
            let info = TokenInfo {
                id: token.id,
                name: token.name,
                roles: Roles::from_record(&token.roles),
                created_ms: token.created_ms,
                expires_ms: token.expires_ms,
            };
            let secret_sha256 = token.secret_sha256.try_into().ok()?;
            Some((token.id, Entry { secret_sha256, info: Arc::new(info) }))
        });
        Ok(Self { tokens: tokens.collect() })
    }

    /// Whom an `authorization` header stands for.
    ///
    /// # Errors
    /// Nobody, for that reason.
    pub fn authenticate(&self, authorization: Option<&[u8]>, now_ms: u64) -> Result<Grant, Denied> {
        let header = authorization.ok_or(Denied::Missing)?;
        let (scheme, token) = header.split_at_checked("Bearer ".len()).ok_or(Denied::Malformed)?;
        if !scheme.eq_ignore_ascii_case(b"Bearer ") {
            return Err(Denied::Malformed);
        }
        let token = std::str::from_utf8(token).map_err(|_| Denied::Malformed)?;
        let token = AccessToken::parse(token.trim()).map_err(|_| Denied::Malformed)?;
        let entry = self.tokens.get(&token.id()).ok_or(Denied::Unknown)?;
        if !constant_time_eq_32(&token.secret_sha256(), &entry.secret_sha256) {
            return Err(Denied::Unknown);
        }
        if !entry.info.is_valid(now_ms) {
            return Err(Denied::Expired);
        }
        Ok(Grant(Arc::clone(&entry.info)))
    }

    /// All tokens, by name and id.
    pub fn list(&self) -> Vec<Arc<TokenInfo>> {
        let mut list: Vec<_> = self.tokens.values().map(|entry| Arc::clone(&entry.info)).collect();
        list.sort_by(|a, b| (&a.name, a.id).cmp(&(&b.name, b.id)));
        list
    }
}

#[cfg(test)]
mod tests {
    use andante_cluster::env::SystemRng;

    use super::*;

    fn table(token: &AccessToken, expires_ms: u64) -> AccessTable {
        let record = proto::AccessToken {
            id: token.id(),
            name: "n".into(),
            secret_sha256: token.secret_sha256().to_vec(),
            roles: Roles::from_iter([Role::Score]).to_record(),
            created_ms: 1,
            expires_ms,
        };
        let broken = proto::AccessToken { id: 5, secret_sha256: vec![1], ..Default::default() };
        AccessTable::decode(&proto::AccessTokens { tokens: vec![record, broken] }.encode_to_vec()).unwrap()
    }

    #[test]
    fn a_caller_is_known_by_the_whole_token_alone() {
        let token = AccessToken::generate(&SystemRng);
        let table = table(&token, 100);
        let text = token.reveal();
        let ask = |header: &str, now_ms| table.authenticate(Some(header.as_bytes()), now_ms).map(|g| g.0.id);
        assert_eq!(ask(&format!("Bearer {text}"), 99), Ok(token.id()));
        assert_eq!(ask(&format!("bearer {text}"), 0), Ok(token.id()), "schemes have no case");
        assert_eq!(ask(&format!("Bearer {text}"), 100), Err(Denied::Expired));
        let last = if text.ends_with('A') { "E" } else { "A" };
        let other = format!("Bearer {}{last}", &text[..text.len() - 1]);
        assert_eq!(ask(&other, 0), Err(Denied::Unknown));
        assert_eq!(ask(&format!("Bearer {}", AccessToken::generate(&SystemRng).reveal()), 0), Err(Denied::Unknown));
        for header in ["", "Bearer", "Bearer ", "Basic YWJj", &text, "Bearer \u{e9}\u{e9}"] {
            assert_eq!(ask(header, 0), Err(Denied::Malformed), "{header:?}");
        }
        assert_eq!(table.authenticate(None, 0).map(drop), Err(Denied::Missing));
    }

    #[test]
    fn a_token_without_an_end_stays_valid_and_a_broken_record_is_left_out() {
        let token = AccessToken::generate(&SystemRng);
        let table = table(&token, 0);
        assert_eq!(table.list().len(), 1);
        let header = format!("Bearer {}", token.reveal());
        assert!(table.authenticate(Some(header.as_bytes()), u64::MAX).is_ok());
    }
}
