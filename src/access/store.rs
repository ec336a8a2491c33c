//! The access tokens in the directory: followed by every node, changed by any of them.

use std::sync::Arc;

use andante_cluster::{
    directory::Directory,
    env::Rng,
    host::{Host, SettingError},
    security::SecurityError,
};
use arc_swap::ArcSwap;
use prost::Message as _;
use tokio::{sync::watch, task::AbortHandle, time::Instant};

use super::{AccessTable, AccessToken, Denied, Grant, Role, Roles, TokenInfo, proto};
use crate::directory_setting;

/// Name of the directory's setting.
const SETTING: &str = "access_tokens";
/// Tokens of a cluster: all of them, with the longest names, fit into one setting of the directory (64 KiB).
pub const TOKENS_MAX: usize = 500;
/// Bytes of a token's name.
pub const TOKEN_NAME_BYTES_MAX: usize = 40;
/// Shortest life of a token: below, clocks that differ a little would decide.
const TTL_MIN_MS: u64 = 60_000;
/// Longest life of a token that ends: ten years.
const TTL_MAX_MS: u64 = 10 * 366 * 24 * 3_600_000;
/// Expired tokens are listed for a month, so that somebody who wonders finds them; the next creation drops them then.
const EXPIRED_KEPT_MS: u64 = 30 * 24 * 3_600_000;

/// A token to be made.
#[derive(Debug, Clone)]
pub struct NewToken {
    /// What it is for: 1 to [`TOKEN_NAME_BYTES_MAX`] lower case letters, digits, `-`, `_`, `.`.
    pub name: String,
    /// At least one.
    pub roles: Roles,
    /// How long it is valid; 0: until revoked.
    pub ttl_ms: u64,
}

/// Why tokens were not changed.
#[derive(Debug, thiserror::Error)]
pub enum AccessError {
    /// The request is wrong; nothing changed.
    #[error("{field}: {reason}")]
    Invalid {
        /// The field.
        field: &'static str,
        /// What is wrong.
        reason: String,
    },
    /// There are as many tokens as there may be; nothing changed. Revoke some.
    #[error("there are {TOKENS_MAX} access tokens already; revoke some")]
    Full,
    /// There is no such token.
    #[error("there is no access token with this id")]
    NotFound,
    /// Without this token nobody could administer the cluster; nothing changed. Make another one first.
    #[error("this is the last valid token of an operator; create another one first")]
    LastOperator,
    /// What the directory holds can't be read; nothing changed.
    #[error("the access tokens in the directory do not decode: {0}")]
    Undecodable(#[from] prost::DecodeError),
    /// The cluster has no authority: its nodes talk without TLS.
    #[error("the cluster has no authority: its nodes talk without TLS")]
    NoAuthority,
    /// The authority or the join secrets can't be used, or there are too many of these.
    #[error(transparent)]
    Security(#[from] SecurityError),
    /// The directory's answer.
    #[error(transparent)]
    Setting(#[from] SettingError),
}

/// Clients' access on one node.
pub struct Access {
    pub(super) host: Arc<Host>,
    pub(super) rng: Arc<dyn Rng>,
    table: Arc<ArcSwap<AccessTable>>,
    follower: AbortHandle,
}

impl Drop for Access {
    fn drop(&mut self) {
        self.follower.abort();
    }
}

impl Access {
    /// Reads the tokens and follows the directory from now on.
    pub fn start(host: Arc<Host>, rng: Arc<dyn Rng>) -> Self {
        let directory = host.directory();
        let table = Arc::new(ArcSwap::<AccessTable>::default());
        let mut revision = 0;
        refresh(&table, &directory.borrow(), &mut revision);
        let follower = tokio::spawn(follow(Arc::clone(&table), directory, revision)).abort_handle();
        Self { host, rng, table, follower }
    }

    /// Whom an `authorization` header stands for. One load and one hash; no lock, no message.
    ///
    /// # Errors
    /// Nobody, for that reason.
    pub fn authenticate(&self, authorization: Option<&[u8]>, now_ms: u64) -> Result<Grant, Denied> {
        self.table.load().authenticate(authorization, now_ms)
    }

    /// All tokens, by name.
    pub fn list(&self) -> Vec<Arc<TokenInfo>> {
        self.table.load().list()
    }

    /// Whether there was ever a token in this cluster.
    pub(super) fn exists(&self) -> bool {
        self.host.directory().borrow().settings.contains_key(SETTING)
    }

    /// Makes a token. This node knows it when this returns, others as soon as the directory's change reaches them.
    ///
    /// # Errors
    /// See [`AccessError`].
    pub async fn create(
        &self,
        new: NewToken,
        now_ms: u64,
        deadline: Instant,
    ) -> Result<(AccessToken, TokenInfo), AccessError> {
        let token = AccessToken::generate(&*self.rng);
        let info = check(new, token.id(), now_ms)?;
        self.change(deadline, |tokens| add(tokens, &token, &info, now_ms)).await?;
        Ok((token, info))
    }

    /// Writes the first token of all: an operator's. `false`: there are tokens already.
    pub(super) async fn create_first(
        &self,
        token: &AccessToken,
        now_ms: u64,
        deadline: Instant,
    ) -> Result<bool, AccessError> {
        let new = NewToken { name: "first-operator".into(), roles: Roles::from_iter([Role::Operator]), ttl_ms: 0 };
        let info = check(new, token.id(), now_ms)?;
        let mut tokens = proto::AccessTokens::default();
        add(&mut tokens, token, &info, now_ms)?;
        let value = tokens.encode_to_vec().into();
        match self.host.put_setting(SETTING, Some(value), Some(0), deadline).await {
            Ok(revision) => {
                directory_setting::catch_up(&self.host, SETTING, revision, deadline).await;
                self.refresh();
                Ok(true)
            }
            Err(SettingError::Mismatch { .. }) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }

    /// Ends a token's life. The last valid token of an operator stays.
    ///
    /// # Errors
    /// See [`AccessError`].
    pub async fn revoke(&self, id: u64, now_ms: u64, deadline: Instant) -> Result<TokenInfo, AccessError> {
        self.change(deadline, |tokens| remove(tokens, id, now_ms)).await
    }

    async fn change<T>(
        &self,
        deadline: Instant,
        change: impl Fn(&mut proto::AccessTokens) -> Result<T, AccessError>,
    ) -> Result<T, AccessError> {
        let changed = directory_setting::change(&self.host, SETTING, deadline, |directory| {
            let mut tokens = match directory.settings.get(SETTING) {
                Some(setting) => proto::AccessTokens::decode(setting.value.clone())?,
                None => proto::AccessTokens::default(),
            };
            let changed = change(&mut tokens)?;
            Ok::<_, AccessError>((tokens.encode_to_vec(), changed))
        });
        let (changed, _) = changed.await?;
        self.refresh();
        Ok(changed)
    }

    /// Takes over what this node's directory has, not waiting for the task that follows it.
    fn refresh(&self) {
        refresh(&self.table, &self.host.directory().borrow(), &mut 0);
    }
}

async fn follow(table: Arc<ArcSwap<AccessTable>>, mut directory: watch::Receiver<Arc<Directory>>, mut revision: u64) {
    while directory.changed().await.is_ok() {
        refresh(&table, &directory.borrow_and_update(), &mut revision);
    }
}

/// Takes over the directory's tokens if they are others than those of `revision`.
fn refresh(table: &ArcSwap<AccessTable>, directory: &Directory, revision: &mut u64) {
    let setting = directory.settings.get(SETTING);
    let found = setting.map_or(0, |setting| setting.revision);
    if found == *revision {
        return;
    }
    *revision = found;
    match setting.map(|setting| AccessTable::decode(&setting.value)).transpose() {
        Ok(new) => table.store(Arc::new(new.unwrap_or_default())),
        Err(error) => tracing::error!(%error, "the access tokens in the directory do not decode; the old ones stay"),
    }
}

fn check(new: NewToken, id: u64, now_ms: u64) -> Result<TokenInfo, AccessError> {
    let invalid = |field, reason: String| Err(AccessError::Invalid { field, reason });
    let allowed = |c: u8| c.is_ascii_lowercase() || c.is_ascii_digit() || matches!(c, b'-' | b'_' | b'.');
    let NewToken { name, roles, ttl_ms } = new;
    if !(1..=TOKEN_NAME_BYTES_MAX).contains(&name.len()) || !name.bytes().all(allowed) {
        let rule = "lower case letters, digits, `-`, `_`, `.`";
        return invalid("name", format!("must have 1 to {TOKEN_NAME_BYTES_MAX} {rule}"));
    }
    if roles.is_empty() {
        return invalid("roles", "must name at least one role".into());
    }
    if ttl_ms != 0 && !(TTL_MIN_MS..=TTL_MAX_MS).contains(&ttl_ms) {
        return invalid("ttl_ms", format!("must be 0 or lie in {TTL_MIN_MS}..={TTL_MAX_MS}, is {ttl_ms}"));
    }
    let expires_ms = if ttl_ms == 0 { 0 } else { now_ms + ttl_ms };
    Ok(TokenInfo { id, name, roles, created_ms: now_ms, expires_ms })
}

fn add(
    tokens: &mut proto::AccessTokens,
    token: &AccessToken,
    info: &TokenInfo,
    now_ms: u64,
) -> Result<(), AccessError> {
    tokens.tokens.retain(|token| token.expires_ms == 0 || now_ms < token.expires_ms.saturating_add(EXPIRED_KEPT_MS));
    if tokens.tokens.len() >= TOKENS_MAX {
        return Err(AccessError::Full);
    }
    tokens.tokens.push(proto::AccessToken {
        id: info.id,
        name: info.name.clone(),
        secret_sha256: token.secret_sha256().to_vec(),
        roles: info.roles.to_record(),
        created_ms: info.created_ms,
        expires_ms: info.expires_ms,
    });
    Ok(())
}

fn remove(tokens: &mut proto::AccessTokens, id: u64, now_ms: u64) -> Result<TokenInfo, AccessError> {
    let at = tokens.tokens.iter().position(|token| token.id == id).ok_or(AccessError::NotFound)?;
    let removed = tokens.tokens.remove(at);
    let info = |token: &proto::AccessToken| TokenInfo {
        id: token.id,
        name: token.name.clone(),
        roles: Roles::from_record(&token.roles),
        created_ms: token.created_ms,
        expires_ms: token.expires_ms,
    };
    let operates = |info: &TokenInfo| info.roles.has(Role::Operator) && info.is_valid(now_ms);
    let removed = info(&removed);
    if operates(&removed) && !tokens.tokens.iter().map(info).any(|other| operates(&other)) {
        return Err(AccessError::LastOperator);
    }
    Ok(removed)
}

#[cfg(test)]
mod tests {
    use andante_cluster::{directory::MAX_SETTING_BYTES, env::SystemRng};

    use super::*;

    const NOW: u64 = 1_800_000_000_000;

    fn new(name: &str, role: Role, ttl_ms: u64) -> NewToken {
        NewToken { name: name.into(), roles: Roles::from_iter([role]), ttl_ms }
    }

    fn put(tokens: &mut proto::AccessTokens, new: NewToken, now_ms: u64) -> Result<u64, AccessError> {
        let token = AccessToken::generate(&SystemRng);
        let info = check(new, token.id(), now_ms)?;
        add(tokens, &token, &info, now_ms).map(|()| token.id())
    }

    #[test]
    fn as_many_tokens_as_there_may_be_fit_into_the_directory() {
        let mut tokens = proto::AccessTokens::default();
        let name = "n".repeat(TOKEN_NAME_BYTES_MAX);
        for _ in 0..TOKENS_MAX {
            let longest = NewToken { name: name.clone(), roles: Role::ALL.into_iter().collect(), ttl_ms: TTL_MAX_MS };
            put(&mut tokens, longest, NOW).unwrap();
        }
        assert!(tokens.encoded_len() <= MAX_SETTING_BYTES, "{}", tokens.encoded_len());
        assert!(matches!(put(&mut tokens, new("more", Role::Score, 0), NOW), Err(AccessError::Full)));
    }

    #[test]
    fn bad_tokens_are_refused_by_field() {
        let mut tokens = proto::AccessTokens::default();
        let no_roles = NewToken { roles: Roles::default(), ..new("a", Role::Score, 0) };
        let cases = [
            ("name", new("", Role::Score, 0)),
            ("name", new("A", Role::Score, 0)),
            ("name", new(&"a".repeat(41), Role::Score, 0)),
            ("roles", no_roles),
            ("ttl_ms", new("a", Role::Score, 59_999)),
            ("ttl_ms", new("a", Role::Score, u64::MAX)),
        ];
        for (expected, bad) in cases {
            match put(&mut tokens, bad, NOW) {
                Err(AccessError::Invalid { field, .. }) => assert_eq!(field, expected),
                other => panic!("{expected}: {other:?}"),
            }
        }
        assert!(tokens.tokens.is_empty());
    }

    #[test]
    fn long_expired_tokens_make_room() {
        let mut tokens = proto::AccessTokens::default();
        put(&mut tokens, new("old", Role::Score, TTL_MIN_MS), NOW).unwrap();
        put(&mut tokens, new("b", Role::Score, 0), NOW + TTL_MIN_MS + EXPIRED_KEPT_MS - 1).unwrap();
        assert_eq!(tokens.tokens.len(), 2);
        put(&mut tokens, new("c", Role::Score, 0), NOW + TTL_MIN_MS + EXPIRED_KEPT_MS).unwrap();
        let names: Vec<_> = tokens.tokens.iter().map(|t| t.name.as_str()).collect();
        assert_eq!(names, ["b", "c"]);
    }

    #[test]
    fn the_last_operator_can_not_be_revoked() {
        let mut tokens = proto::AccessTokens::default();
        let expiring = put(&mut tokens, new("a", Role::Operator, TTL_MIN_MS), NOW).unwrap();
        let lasting = put(&mut tokens, new("b", Role::Operator, 0), NOW).unwrap();
        let score = put(&mut tokens, new("c", Role::Score, 0), NOW).unwrap();
        let later = NOW + TTL_MIN_MS;
        let revoke = |id, now_ms| remove(&mut tokens.clone(), id, now_ms).map(|info| info.id);
        assert!(matches!(revoke(lasting, NOW), Ok(id) if id == lasting));
        assert!(matches!(revoke(lasting, later), Err(AccessError::LastOperator)), "the other one has expired");
        assert!(matches!(revoke(expiring, later), Ok(id) if id == expiring));
        assert!(matches!(revoke(score, later), Ok(id) if id == score));
        assert!(matches!(revoke(7, later), Err(AccessError::NotFound)));
    }
}
