//! The cluster's keys for delivery tokens: kept in the directory, made at the first start, rotated by themselves.
//!
//! A rotation takes three steps, each one write of the directory's setting by the directory's leader:
//! 1. **publish**: a new key is there; nobody mints with it yet, so that every node learns of it first;
//! 2. **switch**, [`KEY_LEAD_MS`] later: it mints, the old one opens;
//! 3. **drop**, [`ClusterSettings::token_key_overlap_ms`] later: what the old one minted is over, and so is it.
//!
//! Every node follows the directory. One that is so far behind that it meets a token of a key it has yet to learn of
//! says so (`TokenError::KeyAhead`), and the caller asks again.

use std::sync::Arc;

use andante_cluster::{
    directory::Directory,
    env::Rng,
    host::{Host, Leadership, SettingError},
};
use anyhow::Context;
use prost::Message;
use tokio::{
    task::JoinHandle,
    time::{Duration, Instant, MissedTickBehavior, interval},
};

use super::records::{TokenKey, TokenKeySet};
use crate::{
    campaign::token::{TOKEN_KEYS_MAX, TokenKeys},
    router::Router,
    settings::{ClusterSettings, KEY_LEAD_MS, Settings, SettingsInForce},
};

/// Name of the directory's setting.
const SETTING: &str = "token_keys";
/// How often the directory's leader looks whether a step is due.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// How long a step may take; the next look tries again.
const STEP_TIMEOUT: Duration = Duration::from_secs(5);

/// How long keys live.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct KeyLives {
    /// One mints for so long.
    rotation_ms: u64,
    /// One that mints no more is kept for so long.
    overlap_ms: u64,
}

impl KeyLives {
    /// By a node's settings and the cluster's in force. As long as these may be old no key is over.
    pub(super) fn of(settings: &Settings, in_force: &SettingsInForce) -> Self {
        let lives = Self::new(settings, in_force.get());
        if in_force.confirmed() { lives } else { Self { overlap_ms: u64::MAX, ..lives } }
    }

    /// By a node's settings and the cluster's. A key mints for at least twice as long as an old one is kept, or they
    /// would pile up.
    fn new(settings: &Settings, cluster_settings: ClusterSettings) -> Self {
        let overlap_ms = cluster_settings.token_key_overlap_ms();
        Self { rotation_ms: settings.token_key_rotation_ms.max(2 * overlap_ms), overlap_ms }
    }
}

/// Where a rotation stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KeyRotation {
    /// Id of the key that mints now.
    pub current: u8,
    /// Id of the key that mints next.
    pub next: u8,
    /// From then on, UTC milliseconds.
    pub mints_from_ms: u64,
}

/// Why no rotation began.
#[derive(Debug, thiserror::Error)]
pub enum RotateError {
    /// The keys of earlier rotations are still needed; nothing changed. Wait until the oldest is dropped.
    #[error("{TOKEN_KEYS_MAX} token keys are valid already; the oldest is still needed")]
    TooManyKeys,
    /// What the directory holds makes no sense.
    #[error("the token keys in the directory can't be used: {0}")]
    Unusable(String),
    /// The directory's answer.
    #[error(transparent)]
    Setting(#[from] SettingError),
}

/// Reads the keys, making the first one if there is none yet.
pub(super) async fn load_or_create(
    host: &Host,
    rng: &dyn Rng,
    now_ms: u64,
    deadline: Instant,
) -> anyhow::Result<TokenKeys> {
    loop {
        let stored = host.directory().borrow().settings.get(SETTING).map(|setting| setting.value.clone());
        if let Some(value) = stored {
            let keys = TokenKeySet::decode(value).map_err(Into::into).and_then(|set| usable(host, &set));
            return keys.context("the token keys in the directory can't be used");
        }
        let key = TokenKey { id: 1, secret: secret(rng), published_ms: now_ms, retired_ms: 0 };
        let set = TokenKeySet { keys: vec![key], current: 1, minting_since_ms: now_ms };
        match host.put_setting(SETTING, Some(set.encode_to_vec().into()), Some(0), deadline).await {
            // Somebody else was quicker: theirs count.
            Ok(_) | Err(SettingError::Mismatch { .. }) => {}
            Err(error) => return Err(error).context("the token keys could not be stored"),
        }
    }
}

fn secret(rng: &dyn Rng) -> Vec<u8> {
    let mut secret = vec![0; 32];
    rng.fill(&mut secret);
    secret
}

fn usable(host: &Host, set: &TokenKeySet) -> anyhow::Result<TokenKeys> {
    token_keys(set, host.identity().incarnation.try_into()?)
}

fn token_keys(set: &TokenKeySet, cluster_incarnation: u32) -> anyhow::Result<TokenKeys> {
    let key = |key: &TokenKey| -> anyhow::Result<(u8, [u8; 32])> {
        let secret = key.secret.as_slice().try_into().context("a key must have 32 bytes")?;
        Ok((key.id.try_into()?, secret))
    };
    let keys = set.keys.iter().map(key).collect::<Result<_, _>>()?;
    Ok(TokenKeys::new(cluster_incarnation, keys, set.current.try_into()?)?)
}

/// Follows the directory's keys, and takes the steps that are due while this node leads the directory.
pub(super) fn start(
    host: Arc<Host>,
    router: Arc<Router>,
    rng: Arc<dyn Rng>,
    cluster_settings: SettingsInForce,
) -> JoinHandle<()> {
    tokio::spawn(async move {
        let mut directory = host.directory();
        let mut revision = 0;
        let mut look = interval(LOOK_EVERY);
        look.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            take_over(&host, &router, &directory.borrow_and_update().clone(), &mut revision);
            tokio::select! {
                changed = directory.changed() => if changed.is_err() {
                    return;
                },
                _ = look.tick() => step_if_due(&host, &router, &*rng, &cluster_settings).await,
            }
        }
    })
}

/// Mints and opens with the directory's keys from now on.
fn take_over(host: &Host, router: &Router, directory: &Directory, revision: &mut u64) {
    let Some(setting) = directory.settings.get(SETTING) else { return };
    if setting.revision == *revision {
        return;
    }
    *revision = setting.revision;
    let keys = TokenKeySet::decode(setting.value.clone()).map_err(Into::into).and_then(|set| usable(host, &set));
    match keys {
        Ok(keys) => {
            tracing::debug!(?keys, "token keys");
            router.keys.store(Arc::new(keys));
        }
        Err(error) => tracing::error!(error = format!("{error:#}"), "the directory's token keys can't be used"),
    }
}

async fn step_if_due(host: &Host, router: &Router, rng: &dyn Rng, cluster_settings: &SettingsInForce) {
    let leads = matches!(*host.directory_leadership().borrow(), Leadership::Leader { .. });
    // A clock in doubt drops nothing.
    if !leads || !router.clock.trusted() {
        return;
    }
    let (lives, now_ms) = (KeyLives::of(&router.settings, cluster_settings), router.clock.now_ms());
    let step = |set: &TokenKeySet| Ok(due(set, now_ms, lives, || secret(rng)));
    match change(host, Instant::now() + STEP_TIMEOUT, step).await {
        Ok(Some(set)) => tracing::info!(current = set.current, keys = ?set.keys, "token keys rotated by a step"),
        Ok(None) => {}
        // Somebody else leads by now, or the next look is luckier.
        Err(error) => tracing::debug!(%error, "token keys not rotated"),
    }
}

/// Begins a rotation now; says what comes if one is under way already.
pub(super) async fn rotate(
    host: &Host,
    rng: &dyn Rng,
    now_ms: u64,
    lives: KeyLives,
    deadline: Instant,
) -> Result<KeyRotation, RotateError> {
    let mut under_way = None;
    let publish = |set: &TokenKeySet| {
        under_way = rotation(set);
        if under_way.is_some() {
            return Ok(None);
        }
        let set = drop_old(set, now_ms, lives).unwrap_or_else(|| set.clone());
        publish(&set, now_ms, secret(rng)).map(Some).ok_or(RotateError::TooManyKeys)
    };
    match change(host, deadline, publish).await? {
        Some(set) => rotation(&set),
        None => under_way,
    }
    .ok_or_else(|| RotateError::Unusable("no key is next".into()))
}

/// Replaces the keys by what `change` makes of them; `None`: it wants no change.
async fn change(
    host: &Host,
    deadline: Instant,
    change: impl FnOnce(&TokenKeySet) -> Result<Option<TokenKeySet>, RotateError>,
) -> Result<Option<TokenKeySet>, RotateError> {
    let setting = host.directory().borrow().settings.get(SETTING).cloned();
    let setting = setting.ok_or_else(|| RotateError::Unusable("there are none".into()))?;
    let set = TokenKeySet::decode(setting.value).map_err(|error| RotateError::Unusable(error.to_string()))?;
    let Some(set) = change(&set)? else { return Ok(None) };
    let value = set.encode_to_vec().into();
    host.put_setting(SETTING, Some(value), Some(setting.revision), deadline).await?;
    Ok(Some(set))
}

/// The step that is due, if one is. Pure but for the secret of a new key.
fn due(set: &TokenKeySet, now_ms: u64, lives: KeyLives, secret: impl FnOnce() -> Vec<u8>) -> Option<TokenKeySet> {
    if let Some(rotation) = rotation(set) {
        return (now_ms >= rotation.mints_from_ms).then(|| switch(set, rotation.next, now_ms));
    }
    if let Some(set) = drop_old(set, now_ms, lives) {
        return Some(set);
    }
    let rotates = now_ms >= set.minting_since_ms.saturating_add(lives.rotation_ms);
    if rotates { publish(set, now_ms, secret()) } else { None }
}

/// The rotation under way: the newest key does not mint yet.
fn rotation(set: &TokenKeySet) -> Option<KeyRotation> {
    let newest = set.keys.last()?;
    if newest.id == set.current {
        return None;
    }
    Some(KeyRotation {
        current: set.current.try_into().ok()?,
        next: newest.id.try_into().ok()?,
        mints_from_ms: newest.published_ms.saturating_add(KEY_LEAD_MS),
    })
}

/// The set with a new key that does not mint yet; `None`: there are as many keys as there may be.
fn publish(set: &TokenKeySet, now_ms: u64, secret: Vec<u8>) -> Option<TokenKeySet> {
    if set.keys.len() >= TOKEN_KEYS_MAX {
        return None;
    }
    let id = TokenKeys::id_after(set.keys.last()?.id.try_into().ok()?).into();
    let mut set = set.clone();
    set.keys.push(TokenKey { id, secret, published_ms: now_ms, retired_ms: 0 });
    Some(set)
}

fn switch(set: &TokenKeySet, next: u8, now_ms: u64) -> TokenKeySet {
    let mut set = set.clone();
    for key in set.keys.iter_mut().filter(|key| key.id == set.current) {
        key.retired_ms = now_ms;
    }
    (set.current, set.minting_since_ms) = (next.into(), now_ms);
    set
}

/// The set without the keys that nobody needs any more, if there are such.
fn drop_old(set: &TokenKeySet, now_ms: u64, lives: KeyLives) -> Option<TokenKeySet> {
    let over = |key: &TokenKey| {
        key.id != set.current && key.retired_ms != 0 && now_ms >= key.retired_ms.saturating_add(lives.overlap_ms)
    };
    if !set.keys.iter().any(over) {
        return None;
    }
    let mut left = set.clone();
    left.keys.retain(|key| !over(key));
    Some(left)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        campaign::{
            limits::HOLD_MAX_MS,
            token::{TokenError, TokenFields},
        },
        settings::VersionedSettings,
    };

    const NOW: u64 = 1_800_000_000_000;

    fn first() -> TokenKeySet {
        let key = TokenKey { id: 1, secret: vec![1; 32], published_ms: NOW, retired_ms: 0 };
        TokenKeySet { keys: vec![key], current: 1, minting_since_ms: NOW }
    }

    fn lives() -> KeyLives {
        KeyLives::new(&Settings::default(), ClusterSettings::default())
    }

    fn step(set: &TokenKeySet, now_ms: u64) -> Option<TokenKeySet> {
        due(set, now_ms, lives(), || vec![9; 32])
    }

    fn ids(set: &TokenKeySet) -> (u32, Vec<u32>) {
        (set.current, set.keys.iter().map(|key| key.id).collect())
    }

    #[test]
    fn a_rotation_publishes_then_mints_then_drops_each_at_its_time() {
        let lives = lives();
        let set = first();
        let begins = NOW + lives.rotation_ms;
        assert_eq!(step(&set, begins - 1), None);
        let published = step(&set, begins).expect("is due");
        assert_eq!(ids(&published), (1, vec![1, 2]));

        let switches = begins + KEY_LEAD_MS;
        assert_eq!(step(&published, switches - 1), None);
        let switched = step(&published, switches).expect("is due");
        assert_eq!(ids(&switched), (2, vec![1, 2]));

        let drops = switches + lives.overlap_ms;
        assert_eq!(step(&switched, drops - 1), None);
        let dropped = step(&switched, drops).expect("is due");
        assert_eq!(ids(&dropped), (2, vec![2]));
        assert_eq!(step(&dropped, switches + lives.rotation_ms - 1), None);
        assert!(step(&dropped, switches + lives.rotation_ms).is_some());
    }

    #[test]
    fn a_token_opens_for_as_long_as_its_promise_whenever_it_was_minted() {
        let settings = Settings { token_key_rotation_ms: 5 * 3_600_000, ..Settings::default() };
        assert_eq!(settings.validate(), Ok(()));
        let lives = KeyLives::new(&settings, settings.cluster());
        let (mut set, mut minted) = (first(), Vec::new());
        let minute = 60_000;
        for now_ms in (NOW..NOW + 48 * 3_600_000).step_by(minute) {
            while let Some(next) = due(&set, now_ms, lives, || vec![3; 32]) {
                set = next;
            }
            minted.push((set.current, now_ms));
            assert!(set.keys.len() <= TOKEN_KEYS_MAX);
            let promise = HOLD_MAX_MS + settings.skew_margin_ms;
            for (key, _) in minted.iter().filter(|(_, at)| now_ms <= at + promise) {
                assert!(set.keys.iter().any(|valid| valid.id == *key));
            }
        }
        assert!(set.current > 8, "it did rotate: {}", set.current);
    }

    #[test]
    fn a_node_that_is_behind_calls_no_token_invalid_and_its_own_are_good() {
        let fields = TokenFields {
            campaign: 1,
            incarnation: 1,
            number: 1,
            sequence: 0,
            listener: 1,
            surface: 1,
            expiry_ms: NOW,
        };
        let published = step(&first(), NOW + lives().rotation_ms).expect("publishes");
        let switched = step(&published, u64::MAX / 2).expect("switches");
        // Of two nodes, what each may have seen of a rotation when the other has seen all of it.
        for behind in [&first(), &published, &switched].map(|set| token_keys(set, 1).unwrap()) {
            let ahead = token_keys(&switched, 1).unwrap();
            assert_eq!(ahead.open(&behind.mint(&fields)), Ok(fields));
            assert!(matches!(behind.open(&ahead.mint(&fields)), Ok(_) | Err(TokenError::KeyAhead)));
        }
    }

    #[test]
    fn ids_start_again_after_255() {
        let mut set = first();
        (set.keys[0].id, set.current) = (255, 255);
        assert_eq!(ids(&publish(&set, NOW, vec![2; 32]).unwrap()), (255, vec![255, 1]));
    }

    #[test]
    fn keys_are_never_more_than_may_be() {
        let mut set = first();
        let mut now_ms = NOW;
        while let Some(published) = publish(&set, now_ms, vec![2; 32]) {
            now_ms += KEY_LEAD_MS;
            set = step(&published, now_ms).expect("switches");
        }
        assert_eq!(set.keys.len(), TOKEN_KEYS_MAX);
        let dropped = step(&set, now_ms + lives().overlap_ms);
        assert_eq!(dropped.map(|set| set.keys.len()), Some(1));
    }

    #[test]
    fn a_set_written_before_keys_rotated_is_due_at_once_and_loses_nothing() {
        let old = TokenKey { id: 1, secret: vec![1; 32], ..Default::default() };
        let set = TokenKeySet { keys: vec![old], current: 1, minting_since_ms: 0 };
        assert_eq!(ids(&step(&set, NOW).unwrap()), (1, vec![1, 2]));
    }

    #[test]
    fn a_longer_retry_window_keeps_old_keys_for_longer_and_rotations_further_apart() {
        let settings = Settings { token_key_rotation_ms: 5 * 3_600_000, ..Settings::default() };
        let day_ms = 24 * 3_600_000;
        let longer = ClusterSettings { retry_window_ms: day_ms, ..ClusterSettings::default() };
        let (before, after) = (KeyLives::new(&settings, settings.cluster()), KeyLives::new(&settings, longer));
        assert_eq!(before.rotation_ms, settings.token_key_rotation_ms);
        assert_eq!(after.overlap_ms - before.overlap_ms, day_ms - settings.retry_window_ms);
        assert_eq!(after.rotation_ms, 2 * after.overlap_ms);

        let published = publish(&first(), NOW, vec![2; 32]).expect("there is room");
        let switched = switch(&published, 2, NOW + KEY_LEAD_MS);
        let drops_ms = NOW + KEY_LEAD_MS + before.overlap_ms;
        assert!(drop_old(&switched, drops_ms, before).is_some());
        assert_eq!(drop_old(&switched, drops_ms, after), None, "raised before it went");
        assert!(drop_old(&switched, NOW + KEY_LEAD_MS + after.overlap_ms, after).is_some());

        let in_force = SettingsInForce::new(VersionedSettings { settings: settings.cluster(), revision: 1 });
        assert_eq!(
            drop_old(&switched, u64::MAX - 1, KeyLives::of(&settings, &in_force)),
            None,
            "it may have been raised"
        );
        in_force.confirm();
        assert!(drop_old(&switched, drops_ms, KeyLives::of(&settings, &in_force)).is_some());
    }

    #[test]
    fn a_clock_that_went_back_changes_nothing() {
        let published = publish(&first(), NOW, vec![2; 32]).unwrap();
        assert_eq!(step(&published, NOW - 3_600_000), None);
    }
}
