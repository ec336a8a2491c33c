//! Timers and limits of consensus.

use std::{sync::Arc, time::Duration};

use openraft::{Config, ConfigError, SnapshotPolicy};

#[cfg(doc)]
use super::runtime::TICK;
use crate::GroupId;

/// A heartbeat goes to every member at each [`TICK`], unless the one before is not as old as this: shorter, so that a
/// tick that comes late does not cost the next one its heartbeat. Also what a heartbeat's answer may take before it
/// counts as lost, hence not much shorter: on a machine whose cores are all busy, two processes can take a tenth of a
/// second to exchange two messages.
pub const HEARTBEAT: Duration = Duration::from_millis(200);
/// How long after a quorum's last acknowledgement a leader may still call itself one, and a follower refuses to elect
/// another: three ticks, so that a lost frame or a busy moment elects nobody, even when a tick comes so late that the
/// next one sends no heartbeat. openraft's longest election timeout.
pub const LEASE: Duration = Duration::from_millis(900);
/// Shortest election timeout. An election comes by itself [`LEASE`] plus this to [`LEASE`] after the leader was last
/// heard; the host triggers it earlier when the leader's connection breaks. Above a tick and a heartbeat.
const ELECTION_MIN_MS: u64 = 550;
/// A leader without a quorum falls silent this long so that its followers elect another one, then speaks again.
/// Without it a one-way partition leaves a group without a usable leader for ever. At least the lease and the longest
/// election timeout; a bit more than the time in which its followers elect (lease + longest timeout + a tick).
const QUORUM_LOSS_PROBE_MS: u64 = 2_200;
/// Sending and installing a snapshot of a large shard over a slow link; openraft's 200 ms never end.
const INSTALL_SNAPSHOT_MS: u64 = 10 * 60 * 1_000;
/// Entries kept behind a snapshot so that a follower that was away for a moment needs no snapshot.
const ENTRIES_KEPT: u64 = 10_000;
/// Entries in one replication message (the bytes are bounded by the log reader).
const ENTRIES_PER_MESSAGE: u64 = 512;
/// Proposals waiting to be taken up by a group's core; above the host's admission limit, so that it never fills.
const API_QUEUE: u64 = 65_536;

/// openraft's settings for a group. `snapshot_every` entries a snapshot is built and the log purged behind it.
pub fn config(group: GroupId, snapshot_every: u64) -> Result<Arc<Config>, ConfigError> {
    let config = Config {
        cluster_name: group.to_string(),
        heartbeat_interval: HEARTBEAT.as_millis() as u64,
        // No append takes a heartbeat's place: the next one is a whole tick away.
        heartbeat_min_interval: None,
        election_timeout_min: ELECTION_MIN_MS,
        election_timeout_max: LEASE.as_millis() as u64,
        enable_pre_vote: Some(true),
        quorum_loss_probe_interval: Some(QUORUM_LOSS_PROBE_MS),
        // A restarted leader asks again: its state may be older than what it has acknowledged.
        enable_leader_restore: Some(false),
        install_snapshot_timeout: INSTALL_SNAPSHOT_MS,
        snapshot_policy: SnapshotPolicy::LogsSinceLast(snapshot_every),
        max_in_snapshot_log_to_keep: ENTRIES_KEPT.min(snapshot_every / 2),
        // Purging costs a write: not for every entry.
        purge_batch_size: (snapshot_every / 4).max(1),
        replication_lag_threshold: snapshot_every.saturating_mul(2),
        max_payload_entries: ENTRIES_PER_MESSAGE,
        api_channel_size: Some(API_QUEUE),
        ..Config::default()
    };
    Ok(Arc::new(config.validate()?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::raft::runtime::TICK;

    /// openraft, which knows nothing of the longer ticks, checks less.
    #[test]
    fn timers_leave_room_for_a_late_tick_and_a_lost_heartbeat() {
        let (election_min, probe) =
            (Duration::from_millis(ELECTION_MIN_MS), Duration::from_millis(QUORUM_LOSS_PROBE_MS));
        assert!(HEARTBEAT < TICK, "each tick sends one");
        assert!(election_min > TICK + HEARTBEAT && election_min < LEASE);
        // A late tick, one without a heartbeat, and an answer as late as it may be.
        assert!(LEASE >= 2 * TICK + HEARTBEAT);
        assert!(probe >= 2 * LEASE + TICK);
    }

    #[test]
    fn the_settings_are_valid_for_every_snapshot_distance() {
        for snapshot_every in [1, 10, 50_000, u64::MAX] {
            config(GroupId(3), snapshot_every).expect("valid");
        }
    }
}
