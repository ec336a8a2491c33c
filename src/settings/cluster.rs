//! Settings on which all nodes of a cluster agree: the directory holds them, every node obeys it.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use arc_swap::ArcSwap;
use serde::Serialize;

use super::{DAY_MS, KEY_LEAD_MS, SettingsError, within};
use crate::campaign::limits::{ALLOWANCE_LIFE_MAX_MS, HOLD_MAX_MS};

/// Shortest skew margin: below, ordinary corrections of clocks would make them untrusted.
const SKEW_MARGIN_MIN_MS: u64 = 100;
/// Longest skew margin: unused money stays set aside for as long.
pub const SKEW_MARGIN_MAX_MS: u64 = 60_000;
/// Longest close grace: after each change of leaders unused money stays set aside for as long.
pub const CLOSE_GRACE_MAX_MS: u64 = 600_000;
/// Shortest retry window: below, hardly a retry comes in time.
const RETRY_WINDOW_MIN_MS: u64 = 1_000;
/// Longest retry window: bitmaps are kept for as long.
const RETRY_WINDOW_MAX_MS: u64 = DAY_MS;

/// The values of a cluster where nobody says otherwise.
pub(super) const DEFAULT: ClusterSettings =
    ClusterSettings { skew_margin_ms: 5_000, close_grace_ms: 30_000, retry_window_ms: 600_000 };

/// Settings on which all nodes of a cluster agree. A shard's leader carries them in its commands, so that replicas never
/// differ; leaders of different shards agree by the directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct ClusterSettings {
    /// Clocks of clients and nodes may differ by this much: an allowance closes this long after the expiry of its last
    /// token at the earliest. Longer keeps unused money set aside for longer.
    pub skew_margin_ms: u64,
    /// A new leader closes nothing for this long; longer than the clients' retry budget.
    pub close_grace_ms: u64,
    /// Closed allowances answer retries exactly for this long; costs memory and disk.
    pub retry_window_ms: u64,
}

impl Default for ClusterSettings {
    fn default() -> Self {
        DEFAULT
    }
}

impl ClusterSettings {
    /// Each field's name, the same in the configuration, in the API and here, with its value.
    pub fn fields(&self) -> [(&'static str, u64); 3] {
        let Self { skew_margin_ms, close_grace_ms, retry_window_ms } = *self;
        [("skew_margin_ms", skew_margin_ms), ("close_grace_ms", close_grace_ms), ("retry_window_ms", retry_window_ms)]
    }

    /// Changes the field of this name; `false`: there is none.
    pub fn set(&mut self, field: &str, value: u64) -> bool {
        match field {
            "skew_margin_ms" => self.skew_margin_ms = value,
            "close_grace_ms" => self.close_grace_ms = value,
            "retry_window_ms" => self.retry_window_ms = value,
            _ => return false,
        }
        true
    }

    /// Every field that is out of its limits.
    pub fn problems(&self) -> Vec<SettingsError> {
        let checked = self.fields().map(|(field, value)| {
            let (min, max) = match field {
                "skew_margin_ms" => (SKEW_MARGIN_MIN_MS, SKEW_MARGIN_MAX_MS),
                "close_grace_ms" => (0, CLOSE_GRACE_MAX_MS),
                _ => (RETRY_WINDOW_MIN_MS, RETRY_WINDOW_MAX_MS),
            };
            within(field, value, min, max)
        });
        checked.into_iter().filter_map(Result::err).collect()
    }

    /// Checks each field's limits; the first problem is told.
    ///
    /// # Errors
    /// A field is out of its limits.
    pub fn validate(&self) -> Result<(), SettingsError> {
        self.problems().into_iter().next().map_or(Ok(()), Err)
    }

    /// How long a key opens delivery tokens after it minted for the last time, in milliseconds.
    ///
    /// A node that does not hear of the switch (it is cut off) mints on with the old key while it has allowances, at
    /// most for an allowance's life; each token then lives for at most the longest hold, and may be settled until its
    /// allowance closes. Margin and grace, which say when that is, count with the most that they may ever be: a key
    /// that is gone does not come back when somebody raises them. The retry window counts as it is. It settles nothing,
    /// callers only learn a token's fate once more while the ledger remembers it: what closed under a shorter window is
    /// forgotten by the time its key goes, and a longer one does not bring it back.
    pub fn token_key_overlap_ms(&self) -> u64 {
        let settles_ms = ALLOWANCE_LIFE_MAX_MS + HOLD_MAX_MS + SKEW_MARGIN_MAX_MS + CLOSE_GRACE_MAX_MS;
        KEY_LEAD_MS + settles_ms + self.retry_window_ms
    }
}

/// The cluster's settings and their version.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct VersionedSettings {
    /// The values.
    pub settings: ClusterSettings,
    /// Grows with each change; 0: not from the directory.
    pub revision: u64,
}

/// The cluster's settings in force on this node. Whoever reads them takes one load and no lock; whoever decides several
/// things by them reads once. Clones share them.
#[derive(Debug, Clone)]
pub struct SettingsInForce(Arc<InForce>);

#[derive(Debug)]
struct InForce {
    settings: ArcSwap<VersionedSettings>,
    confirmed: AtomicBool,
}

impl SettingsInForce {
    /// Those that were found; they may be old.
    pub fn new(settings: VersionedSettings) -> Self {
        Self(Arc::new(InForce { settings: ArcSwap::from_pointee(settings), confirmed: AtomicBool::new(false) }))
    }

    /// Those of a node that knows no others.
    pub fn fixed(settings: ClusterSettings) -> Self {
        let fixed = Self::new(VersionedSettings { settings, revision: 0 });
        fixed.confirm();
        fixed
    }

    /// The values.
    pub fn get(&self) -> ClusterSettings {
        self.versioned().settings
    }

    /// The values and their version.
    pub fn versioned(&self) -> VersionedSettings {
        **self.0.settings.load()
    }

    /// Takes over newer ones; older ones change nothing. Says whether they were newer.
    pub fn advance(&self, to: VersionedSettings) -> bool {
        let before = self.0.settings.rcu(|now| if to.revision > now.revision { Arc::new(to) } else { now.clone() });
        to.revision > before.revision
    }

    /// Whether this node has made sure since its start that it missed no change while it was away. Until then it does
    /// nothing by them that can't be taken back: nothing is closed, forgotten or purged, and no key is dropped.
    pub fn confirmed(&self) -> bool {
        self.0.confirmed.load(Ordering::Acquire)
    }

    /// It missed none.
    pub fn confirm(&self) {
        self.0.confirmed.store(true, Ordering::Release);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_field_has_limits_and_an_error_names_both() {
        assert_eq!(ClusterSettings::default().validate(), Ok(()));
        let limits = [
            ("skew_margin_ms", 100, 60_000),
            ("close_grace_ms", 0, 600_000),
            ("retry_window_ms", 1_000, 24 * 3_600_000),
        ];
        assert_eq!(limits.map(|(field, ..)| field), ClusterSettings::default().fields().map(|(field, _)| field));
        for (field, min, max) in limits {
            let with = |value| {
                let mut settings = ClusterSettings::default();
                assert!(settings.set(field, value));
                settings.validate().map_err(|error| error.to_string())
            };
            assert_eq!((with(min), with(max)), (Ok(()), Ok(())), "{field}");
            for bad in [max + 1, u64::MAX].into_iter().chain(u64::checked_sub(min, 1)) {
                assert_eq!(with(bad), Err(format!("settings.{field}: must lie in {min}..={max}, is {bad}")));
            }
        }
    }

    #[test]
    fn all_bad_fields_are_told_and_unknown_ones_set_nothing() {
        let bad = ClusterSettings { skew_margin_ms: 0, close_grace_ms: 600_001, retry_window_ms: 0 };
        let fields: Vec<_> = bad.problems().into_iter().map(|problem| problem.field).collect();
        assert_eq!(fields, ["skew_margin_ms", "close_grace_ms", "retry_window_ms"]);
        let mut same = bad;
        assert!(!same.set("tick_ms", 1) && same == bad);
    }

    #[test]
    fn no_change_within_the_limits_lets_a_key_go_while_its_tokens_may_be_settled() {
        let settles_ms = |settings: ClusterSettings| {
            ALLOWANCE_LIFE_MAX_MS + HOLD_MAX_MS + settings.skew_margin_ms + settings.close_grace_ms
        };
        let largest = ClusterSettings { skew_margin_ms: 60_000, close_grace_ms: 600_000, retry_window_ms: 1_000 };
        let smallest = ClusterSettings { skew_margin_ms: 100, close_grace_ms: 0, retry_window_ms: 1_000 };
        // It was dropped by the smallest settings; then they became the largest.
        assert!(smallest.token_key_overlap_ms() >= settles_ms(largest) + KEY_LEAD_MS);
    }

    #[test]
    fn older_settings_never_replace_newer_ones() {
        let versioned = |skew_margin_ms, revision| VersionedSettings {
            settings: ClusterSettings { skew_margin_ms, ..ClusterSettings::default() },
            revision,
        };
        let in_force = SettingsInForce::new(versioned(1_000, 5));
        let reader = in_force.clone();
        assert!(!in_force.confirmed());
        assert!(!in_force.advance(versioned(2_000, 4)) && !in_force.advance(versioned(2_000, 5)));
        assert_eq!(reader.versioned(), versioned(1_000, 5));
        assert!(in_force.advance(versioned(2_000, 6)));
        in_force.confirm();
        assert!(reader.confirmed() && reader.get().skew_margin_ms == 2_000);
    }
}
