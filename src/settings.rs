//! What operators may tune, with limits. Every field says what it costs.
//!
//! [`Settings`] are a node's own. Three of them must be the same on all nodes: the directory holds these, and every node
//! obeys it ([`ClusterSettings`]).

mod cluster;

use serde::{Deserialize, Serialize};

use crate::campaign::limits::{ALLOWANCE_LIFE_MAX_MS, ALLOWANCE_LIFE_MIN_MS};

pub use cluster::{CLOSE_GRACE_MAX_MS, ClusterSettings, SKEW_MARGIN_MAX_MS, SettingsInForce, VersionedSettings};

/// Between publishing a key for delivery tokens and minting with it: a node that can be reached at all has it long
/// before.
pub const KEY_LEAD_MS: u64 = 60_000;

const DAY_MS: u64 = 24 * 3_600_000;

/// Settings of pacing, allowances and limits, as a node is configured. Best the same on all nodes of a cluster.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Settings {
    /// Time between a shard's ticks. Shorter reacts sooner and writes more log entries.
    pub tick_ms: u64,
    /// [`ClusterSettings::skew_margin_ms`] of a cluster that has none yet: the directory's holds.
    pub skew_margin_ms: u64,
    /// [`ClusterSettings::close_grace_ms`] of a cluster that has none yet: the directory's holds.
    pub close_grace_ms: u64,
    /// [`ClusterSettings::retry_window_ms`] of a cluster that has none yet: the directory's holds.
    pub retry_window_ms: u64,
    /// No allowance's tokens are handed out for longer than this, however seldom its campaign delivers. Shorter returns
    /// what a lost node had set aside sooner, and renews the allowances of slow campaigns more often.
    pub allowance_life_max_ms: u64,
    /// Ended campaigns are purged after this long.
    pub purge_after_ms: u64,
    /// At most this share of the candidates of one reply is promoted, (0, 1].
    pub promoted_share: f64,
    /// Campaigns one node accepts; bounds memory (about 2 KB each, 20 KB while active).
    pub max_campaigns: u64,
    /// Score requests in flight before new ones are refused.
    pub max_scores_in_flight: u32,
    /// Outcome events in flight before new ones are refused; bounds memory (about 200 bytes each).
    pub max_events_in_flight: u32,
    /// A campaign whose actor fails this often within the window is quarantined.
    pub max_restarts: u32,
    /// The window for `max_restarts`.
    pub restart_window_ms: u64,
    /// Log entries of a shard after which its snapshot is written and its log cut. Fewer keep the log short and a
    /// rebuild quick, and write the whole shard more often.
    pub snapshot_every_entries: u64,
    /// New campaigns are refused while the disk has less space free; 0: never. What is acknowledged needs no more.
    pub min_free_bytes: u64,
    /// Time between rotations of the keys of delivery tokens, at least twice as long as an old key is kept
    /// ([`ClusterSettings::token_key_overlap_ms`]). Shorter makes a leaked key worth less.
    pub token_key_rotation_ms: u64,
    /// Deadline of Score where the caller sets none.
    pub score_deadline_ms: u64,
    /// Deadline of every other call where the caller sets none.
    pub report_deadline_ms: u64,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            tick_ms: 100,
            skew_margin_ms: cluster::DEFAULT.skew_margin_ms,
            close_grace_ms: cluster::DEFAULT.close_grace_ms,
            retry_window_ms: cluster::DEFAULT.retry_window_ms,
            allowance_life_max_ms: ALLOWANCE_LIFE_MAX_MS,
            purge_after_ms: 90 * 24 * 3_600_000,
            promoted_share: 1.0,
            max_campaigns: 1_000_000,
            max_scores_in_flight: 1_024,
            max_events_in_flight: 65_536,
            max_restarts: 5,
            restart_window_ms: 60_000,
            snapshot_every_entries: 50_000,
            min_free_bytes: 512 << 20,
            token_key_rotation_ms: 30 * 24 * 3_600_000,
            score_deadline_ms: 250,
            report_deadline_ms: 5_000,
        }
    }
}

/// A setting out of its limits.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[error("settings.{field}: {reason}")]
pub struct SettingsError {
    /// The field.
    pub field: &'static str,
    /// The limit, in words.
    pub reason: String,
}

fn within(field: &'static str, value: u64, min: u64, max: u64) -> Result<(), SettingsError> {
    if (min..=max).contains(&value) {
        return Ok(());
    }
    Err(SettingsError { field, reason: format!("must lie in {min}..={max}, is {value}") })
}

impl Settings {
    /// The cluster's settings as this node would write them.
    pub fn cluster(&self) -> ClusterSettings {
        let Settings { skew_margin_ms, close_grace_ms, retry_window_ms, .. } = *self;
        ClusterSettings { skew_margin_ms, close_grace_ms, retry_window_ms }
    }

    /// Checks each field's limits and the relations between them.
    pub fn validate(&self) -> Result<(), SettingsError> {
        within("tick_ms", self.tick_ms, 10, 1_000)?;
        self.cluster().validate()?;
        let life_max_ms = self.allowance_life_max_ms;
        within("allowance_life_max_ms", life_max_ms, ALLOWANCE_LIFE_MIN_MS, ALLOWANCE_LIFE_MAX_MS)?;
        within("purge_after_ms", self.purge_after_ms, 60_000, 3_650 * DAY_MS)?;
        within("max_campaigns", self.max_campaigns, 1, 10_000_000)?;
        within("max_scores_in_flight", self.max_scores_in_flight.into(), 1, 1 << 20)?;
        within("max_events_in_flight", self.max_events_in_flight.into(), 1_000, 1 << 24)?;
        within("max_restarts", self.max_restarts.into(), 1, 1_000)?;
        within("restart_window_ms", self.restart_window_ms, 1_000, DAY_MS)?;
        within("snapshot_every_entries", self.snapshot_every_entries, 10, 10_000_000)?;
        within("min_free_bytes", self.min_free_bytes, 0, 1 << 50)?;
        // Two overlaps long, or old keys would pile up.
        let rotation_min_ms = 2 * self.cluster().token_key_overlap_ms();
        within("token_key_rotation_ms", self.token_key_rotation_ms, rotation_min_ms, 3_650 * DAY_MS)?;
        within("score_deadline_ms", self.score_deadline_ms, 1, 60_000)?;
        within("report_deadline_ms", self.report_deadline_ms, 1, 600_000)?;
        if !(self.promoted_share > 0.0 && self.promoted_share <= 1.0) {
            return Err(SettingsError {
                field: "promoted_share",
                reason: format!("must lie in (0, 1], is {}", self.promoted_share),
            });
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn defaults_are_valid() {
        assert_eq!(Settings::default().validate(), Ok(()));
    }

    #[test]
    fn an_error_names_the_field_and_its_limits() {
        let settings = Settings { tick_ms: 5, ..Settings::default() };
        let error = settings.validate().unwrap_err();
        assert_eq!(error.to_string(), "settings.tick_ms: must lie in 10..=1000, is 5");
    }

    #[test]
    fn a_share_that_is_no_number_is_refused() {
        let settings = Settings { promoted_share: f64::NAN, ..Settings::default() };
        assert_eq!(settings.validate().unwrap_err().field, "promoted_share");
    }
}
