//! The cluster's token keys: kept in the directory, made at the first start.

use andante_cluster::{
    env::Rng,
    host::{Host, SettingError},
};
use anyhow::Context;
use prost::Message;
use tokio::time::Instant;

use crate::campaign::token::TokenKeys;

/// Name of the directory's setting.
const SETTING: &str = "token_keys";

/// What the setting holds.
#[derive(Clone, PartialEq, Message)]
struct KeySet {
    /// Valid keys.
    #[prost(message, repeated, tag = "1")]
    keys: Vec<Key>,
    /// Id of the one that mints.
    #[prost(uint32, tag = "2")]
    current: u32,
}

/// One key.
#[derive(Clone, PartialEq, Message)]
struct Key {
    /// Its id, at most 255.
    #[prost(uint32, tag = "1")]
    id: u32,
    /// 32 bytes.
    #[prost(bytes = "vec", tag = "2")]
    secret: Vec<u8>,
}

/// Reads the keys, making the first one if there is none yet.
pub(super) async fn load_or_create(host: &Host, rng: &dyn Rng, deadline: Instant) -> anyhow::Result<TokenKeys> {
    loop {
        let stored = host.directory().borrow().settings.get(SETTING).map(|setting| setting.value.clone());
        if let Some(value) = stored {
            return decode(host, &value).context("the token keys in the directory can't be used");
        }
        let mut secret = vec![0; 32];
        rng.fill(&mut secret);
        let set = KeySet { keys: vec![Key { id: 1, secret }], current: 1 };
        match host.put_setting(SETTING, Some(set.encode_to_vec().into()), Some(0), deadline).await {
            // Somebody else was quicker: theirs count.
            Ok(_) | Err(SettingError::Mismatch { .. }) => {}
            Err(error) => return Err(error).context("the token keys could not be stored"),
        }
    }
}

fn decode(host: &Host, value: &[u8]) -> anyhow::Result<TokenKeys> {
    let set = KeySet::decode(value)?;
    let key = |key: Key| -> anyhow::Result<(u8, [u8; 32])> {
        let secret = key.secret.try_into().map_err(|_| anyhow::anyhow!("a key must have 32 bytes"))?;
        Ok((key.id.try_into()?, secret))
    };
    let keys = set.keys.into_iter().map(key).collect::<Result<_, _>>()?;
    let incarnation = host.identity().incarnation.try_into()?;
    Ok(TokenKeys::new(incarnation, keys, set.current.try_into()?)?)
}
