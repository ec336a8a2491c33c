//! The cluster's settings in the directory: written by the node that finds none, obeyed by all, changed by operators.
//!
//! - A node that forms a cluster, or finds one of an older program, writes those of its configuration; of several that
//!   do so the first wins.
//! - Every node follows the directory. Actors and clock read from [`SettingsInForce`] whenever they decide.
//! - A node that was away may have missed a change: [`SettingsInForce::confirmed`] says when it has asked the directory's
//!   leader since its start.

use std::{collections::BTreeSet, sync::Arc};

use andante_cluster::{
    directory::Directory,
    host::{Host, SettingError},
};
use anyhow::Context as _;
use prost::Message as _;
use tokio::{
    task::JoinHandle,
    time::{Duration, Instant, sleep},
};

use super::records;
use crate::{
    directory_setting,
    feature::CLUSTER_SETTINGS,
    metrics::Metrics,
    router::Router,
    settings::{ClusterSettings, SettingsError, SettingsInForce, VersionedSettings},
};

/// Name of the directory's setting.
const SETTING: &str = "cluster_settings";
/// How long the directory's leader may take to say that nothing was missed; then it is asked again.
const CONFIRM_TIMEOUT: Duration = Duration::from_secs(10);
/// Wait before it is asked again.
const CONFIRM_AGAIN: Duration = Duration::from_secs(1);

/// Why settings were not changed.
#[derive(Debug, thiserror::Error)]
pub enum SettingsChangeError {
    /// These are out of their limits; nothing changed.
    #[error("{} settings are out of their limits", .0.len())]
    Invalid(Vec<SettingsError>),
    /// Nodes may run programs that go by their own configuration; nothing changed. Upgrade them.
    #[error(
        "the cluster's feature level is {level}: its settings can be changed from level {CLUSTER_SETTINGS} on, when every \
         node runs a program that obeys them"
    )]
    FeatureLevel {
        /// The cluster's.
        level: u32,
    },
    /// They changed since they were read; nothing changed. Read them again.
    #[error("the cluster's settings have changed since they were read")]
    Stale {
        /// Their version now.
        revision: u64,
    },
    /// What the directory holds makes no sense; nothing changed.
    #[error("the cluster's settings in the directory can't be used: {0}")]
    Unusable(String),
    /// The directory's answer.
    #[error(transparent)]
    Setting(#[from] SettingError),
}

fn encode(settings: ClusterSettings) -> Vec<u8> {
    let ClusterSettings { skew_margin_ms, close_grace_ms, retry_window_ms } = settings;
    records::ClusterSettings { skew_margin_ms, close_grace_ms, retry_window_ms }.encode_to_vec()
}

/// What a directory holds; `None`: nothing yet.
fn find(directory: &Directory) -> anyhow::Result<Option<VersionedSettings>> {
    let Some(setting) = directory.settings.get(SETTING) else { return Ok(None) };
    let decoded = records::ClusterSettings::decode(setting.value.clone())?;
    let records::ClusterSettings { skew_margin_ms, close_grace_ms, retry_window_ms } = decoded;
    let settings = ClusterSettings { skew_margin_ms, close_grace_ms, retry_window_ms };
    settings.validate()?;
    Ok(Some(VersionedSettings { settings, revision: setting.revision }))
}

fn found(directory: &Directory) -> anyhow::Result<Option<VersionedSettings>> {
    find(directory).context("the cluster's settings in the directory can't be used")
}

/// Reads the cluster's settings; writes the configured ones first if there are none.
pub(super) async fn load_or_create(
    host: &Host,
    configured: ClusterSettings,
    deadline: Instant,
) -> anyhow::Result<VersionedSettings> {
    if let Some(there) = found(&host.directory().borrow())? {
        return Ok(there);
    }
    let revision = match host.put_setting(SETTING, Some(encode(configured).into()), Some(0), deadline).await {
        // Somebody else was quicker: theirs count.
        Ok(revision) | Err(SettingError::Mismatch { revision }) => revision,
        Err(error) => return Err(error).context("the cluster's settings could not be stored"),
    };
    directory_setting::catch_up(host, SETTING, revision, deadline).await;
    found(&host.directory().borrow())?.context("the cluster's settings did not arrive in time")
}

/// What a node's configuration says.
pub(super) struct Configured {
    /// The values.
    pub(super) settings: ClusterSettings,
    /// The keys that were set. A value other than the default was set in any case.
    pub(super) set_keys: BTreeSet<String>,
}

/// What the configuration asks for and the cluster does not do, in words.
fn overruled(configured: &Configured, in_force: ClusterSettings) -> Option<String> {
    let Configured { settings, set_keys } = configured;
    let fields = settings.fields().into_iter().zip(in_force.fields()).zip(ClusterSettings::default().fields());
    let overruled = fields.filter(|(((field, configured), (_, holds)), (_, default))| {
        let set = configured != default || set_keys.contains(&format!("settings.{field}"));
        set && configured != holds
    });
    let overruled: Vec<_> =
        overruled.map(|(((field, configured), (_, holds)), _)| (field, configured, holds)).collect();
    if overruled.is_empty() {
        return None;
    }
    let told: Vec<String> =
        overruled.iter().map(|(field, own, holds)| format!("settings.{field} is {own}, but {holds} holds")).collect();
    let flags: String = overruled.iter().map(|(field, own, _)| format!(" --set {field}={own}")).collect();
    Some(format!("{}; `andante cluster settings{flags}` would change that for all nodes", told.join(", ")))
}

/// Follows the directory, and makes sure that nothing was missed before the start. Then it says, once, what of the
/// configuration does not hold.
pub(super) fn start(
    host: Arc<Host>,
    router: Arc<Router>,
    metrics: Arc<Metrics>,
    in_force: SettingsInForce,
    configured: Configured,
) -> JoinHandle<()> {
    tokio::spawn(async move {
        let mut directory = host.directory();
        let mut confirmed = std::pin::pin!(until_current(&host));
        loop {
            take_over(&router, &metrics, &in_force, &directory.borrow_and_update().clone());
            tokio::select! {
                changed = directory.changed() => if changed.is_err() {
                    return;
                },
                () = &mut confirmed, if !in_force.confirmed() => {
                    // What was missed has arrived, and is taken over first.
                    take_over(&router, &metrics, &in_force, &directory.borrow_and_update().clone());
                    in_force.confirm();
                    if let Some(overruled) = overruled(&configured, in_force.get()) {
                        tracing::warn!("the cluster's settings overrule this node's configuration: {overruled}");
                    }
                }
            }
        }
    })
}

/// Returns when this node's directory has everything that was acknowledged before the call.
async fn until_current(host: &Host) {
    while let Err(error) = host.read_directory(Instant::now() + CONFIRM_TIMEOUT).await {
        tracing::warn!(%error, "nobody says yet whether the cluster's settings have changed: nothing is closed or purged");
        sleep(CONFIRM_AGAIN).await;
    }
}

/// Obeys the directory's settings from now on, if they are newer.
pub(super) fn take_over(router: &Router, metrics: &Metrics, in_force: &SettingsInForce, directory: &Directory) {
    match found(directory) {
        Ok(Some(there)) if in_force.advance(there) => {
            tracing::info!(settings = ?there.settings, "the cluster's settings have changed");
            metrics.set_cluster_settings(&there.settings);
            // What is due, and when, follows from them.
            router.shards.iter().for_each(|shard| shard.mark_due_dirty());
        }
        Ok(_) => {}
        Err(error) => tracing::error!(error = format!("{error:#}"), "the old settings stay in force"),
    }
}

/// Changes the settings, from `expected_revision` (`None`: any). What holds already is done, whatever the revision: a
/// change whose answer was lost can be repeated.
pub(super) async fn change(
    host: &Host,
    change: impl Fn(&mut ClusterSettings),
    expected_revision: Option<u64>,
    deadline: Instant,
) -> Result<VersionedSettings, SettingsChangeError> {
    let changed = directory_setting::change(host, SETTING, deadline, |directory| {
        let level = directory.cluster.as_ref().map_or(0, |cluster| cluster.feature_level);
        let there = find(directory).map_err(|error| SettingsChangeError::Unusable(format!("{error:#}")))?;
        let changed = changed(there, level, &change, expected_revision)?;
        Ok::<_, SettingsChangeError>((encode(changed), changed))
    });
    let (settings, revision) = changed.await?;
    Ok(VersionedSettings { settings, revision })
}

/// What becomes of settings at a cluster's feature level. Pure.
fn changed(
    there: Option<VersionedSettings>,
    level: u32,
    change: impl Fn(&mut ClusterSettings),
    expected_revision: Option<u64>,
) -> Result<ClusterSettings, SettingsChangeError> {
    if level < CLUSTER_SETTINGS {
        return Err(SettingsChangeError::FeatureLevel { level });
    }
    let there = there.ok_or_else(|| SettingsChangeError::Unusable("there are none".into()))?;
    let mut settings = there.settings;
    change(&mut settings);
    let problems = settings.problems();
    if !problems.is_empty() {
        return Err(SettingsChangeError::Invalid(problems));
    }
    if settings != there.settings && expected_revision.is_some_and(|expected| expected != there.revision) {
        return Err(SettingsChangeError::Stale { revision: there.revision });
    }
    Ok(settings)
}

#[cfg(test)]
mod tests {
    use andante_cluster::directory::Setting;

    use super::*;

    const DEFAULT: VersionedSettings = VersionedSettings {
        settings: ClusterSettings { skew_margin_ms: 5_000, close_grace_ms: 30_000, retry_window_ms: 600_000 },
        revision: 7,
    };

    fn holding(value: Vec<u8>) -> Directory {
        let setting = Setting { value: value.into(), revision: 7 };
        Directory { settings: [(SETTING.to_owned(), setting)].into(), ..Directory::default() }
    }

    #[test]
    fn the_directory_gives_back_what_was_put_in_and_nothing_else() {
        assert_eq!(find(&Directory::default()).expect("nothing is no error"), None);
        let settings = ClusterSettings { skew_margin_ms: 8_000, close_grace_ms: 0, retry_window_ms: 1_000 };
        let versioned = VersionedSettings { settings, revision: 7 };
        assert_eq!(find(&holding(encode(settings))).expect("decodes"), Some(versioned));

        // What no program of this level writes must not be obeyed.
        let beyond = encode(ClusterSettings { skew_margin_ms: 60_001, ..settings });
        for (bad, why) in [(beyond, "skew_margin_ms"), (Vec::new(), "skew_margin_ms"), (vec![0xff], "varint")] {
            let error = format!("{:#}", found(&holding(bad)).expect_err("can't be used"));
            assert!(error.contains("can't be used") && error.contains(why), "{error}");
        }
    }

    #[test]
    fn a_node_says_once_what_it_was_told_and_does_not_do() {
        let own = ClusterSettings { skew_margin_ms: 5_000, close_grace_ms: 1_000, retry_window_ms: 600_000 };
        let holds = ClusterSettings { skew_margin_ms: 8_000, close_grace_ms: 2_000, retry_window_ms: 600_000 };
        let says = |settings, set_keys: &[&str], in_force| {
            let set_keys = set_keys.iter().map(|key| (*key).to_owned()).collect();
            overruled(&Configured { settings, set_keys }, in_force)
        };
        assert_eq!(says(own, &["settings.close_grace_ms"], own), None);
        assert_eq!(says(DEFAULT.settings, &["settings.tick_ms"], holds), None, "nobody asked for these");
        assert_eq!(
            says(own, &[], holds).expect("it differs"),
            "settings.close_grace_ms is 1000, but 2000 holds; `andante cluster settings --set close_grace_ms=1000` \
             would change that for all nodes"
        );
        let both = says(own, &["settings.skew_margin_ms", "settings.close_grace_ms"], holds).expect("they differ");
        assert!(both.starts_with("settings.skew_margin_ms is 5000, but 8000 holds, settings.close_grace_ms"), "{both}");
        assert!(both.contains("--set skew_margin_ms=5000 --set close_grace_ms=1000`"), "{both}");
    }

    #[test]
    fn a_change_needs_its_level_its_limits_and_the_version_that_was_read() {
        use SettingsChangeError::{FeatureLevel, Invalid, Stale, Unusable};
        let margin = |ms: u64| move |settings: &mut ClusterSettings| settings.skew_margin_ms = ms;
        let good = ClusterSettings { skew_margin_ms: 8_000, ..DEFAULT.settings };
        for revision in [None, Some(7)] {
            assert!(matches!(changed(Some(DEFAULT), 2, margin(8_000), revision), Ok(settings) if settings == good));
        }
        assert!(matches!(changed(Some(DEFAULT), 1, margin(8_000), None), Err(FeatureLevel { level: 1 })));
        assert!(matches!(changed(None, 2, margin(8_000), None), Err(Unusable(_))));
        assert!(matches!(changed(Some(DEFAULT), 2, margin(8_000), Some(6)), Err(Stale { revision: 7 })));
        assert!(changed(Some(DEFAULT), 2, margin(5_000), Some(6)).is_ok(), "it is so already");
        match changed(Some(DEFAULT), 2, margin(60_001), Some(6)) {
            Err(Invalid(problems)) => assert_eq!(problems[0].field, "skew_margin_ms"),
            other => panic!("{other:?}"),
        }
    }
}
