//! Hands leaderships to the nodes that the directory prefers.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use openraft::async_runtime::watch::WatchReceiver;
use tokio::time::{Instant, sleep};

use super::{
    group::Group,
    hand_over::transfer,
    observe::{observe, shard_of},
    shared::Shared,
};
use crate::{
    GroupId, NodeId,
    directory::Directory,
    placement::leaders::{self, Led},
};

/// Looks again at leaderships that can't be handed over now.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// What this node remembers of a group that it leads.
struct Memory {
    term: u64,
    since: Instant,
    failed: Option<Instant>,
}

/// Runs for ever; costs nothing while the leaders are where they should be.
pub(super) async fn balance(shared: Arc<Shared>) {
    let (mut directory, mut led) = (shared.directory.clone(), shared.leaders.led_changes());
    let mut memory: BTreeMap<GroupId, Memory> = BTreeMap::new();
    let mut last_end = Instant::now();
    while !shared.gate.is_stopping() {
        led.mark_unchanged();
        remember(&mut memory, &shared.leaders.led());
        let misplaced = misplaced(&shared, &directory.borrow_and_update(), &memory);
        let Some((id, to)) = leaders::next(shared.node_id, &misplaced, last_end.elapsed()) else {
            let again = leaders::PAUSE.saturating_sub(last_end.elapsed());
            let again = if again.is_zero() { LOOK_EVERY } else { again };
            let alive = tokio::select! {
                changed = directory.changed() => changed.is_ok(),
                changed = led.changed() => changed.is_ok(),
                () = sleep(again), if !misplaced.is_empty() => true,
            };
            if !alive {
                return;
            }
            continue;
        };
        if let Some(group) = shared.groups.get(id) {
            let done = pass_on(&group, to).await;
            if !done && let Some(memory) = memory.get_mut(&id) {
                memory.failed = Some(Instant::now());
            }
            tracing::info!(group = %id, to, done, "hands the leadership to the preferred node");
        }
        last_end = Instant::now();
    }
}

/// Since when each group is led; a new term is a new beginning.
fn remember(memory: &mut BTreeMap<GroupId, Memory>, led: &[(GroupId, u64)]) {
    let mut known = std::mem::take(memory);
    for (group, term) in led {
        let new = || Memory { term: *term, since: Instant::now(), failed: None };
        let old = known.remove(group).filter(|memory| memory.term == *term);
        memory.insert(*group, old.unwrap_or_else(new));
    }
}

/// The groups that somebody else should lead.
fn misplaced(shared: &Shared, directory: &Directory, memory: &BTreeMap<GroupId, Memory>) -> Vec<Led> {
    let mut misplaced = Vec::new();
    for (id, memory) in memory {
        let replicas = shard_of(*id).and_then(|shard| directory.replicas.get(&shard));
        let preferred = replicas.and_then(|replicas| replicas.target.first().copied());
        let preferred = preferred.filter(|node| *node != shared.node_id && !shared.leaders.is_leaving(*node));
        let Some(preferred) = preferred else { continue };
        let Some(seen) = shared.groups.get(*id).and_then(|group| observe(&group)) else { continue };
        misplaced.push(Led {
            group: *id,
            preferred,
            voters: seen.voters(),
            last_log: seen.group.last_log,
            progress: seen.group.progress,
            preferred_up_for: shared.leaders.reachable_for(preferred),
            led_for: memory.since.elapsed(),
            failed_ago: memory.failed.map(|at| at.elapsed()),
        });
    }
    misplaced
}

/// Has a voter take over, and yet another one if that does not come up: openraft can't take a transfer back, and this
/// leader does not write or send heartbeats any more until somebody else has won. If all are silent, those of them that
/// are a majority again elect one by themselves. Whether this node stopped leading while the first one was asked.
pub(super) async fn pass_on(group: &Group, to: NodeId) -> bool {
    let others: Vec<NodeId> = {
        let metrics = group.raft.server_metrics();
        let metrics = metrics.borrow_watched();
        metrics.membership_config.voter_ids().filter(|node| *node != to && *node != metrics.id).collect()
    };
    for successor in std::iter::once(to).chain(others) {
        if transfer(group, successor).await {
            return successor == to;
        }
        tracing::warn!(group = %group.id(), successor, "did not take over in time");
    }
    tracing::error!(group = %group.id(), "no voter takes over; the group can't be written until one is elected");
    false
}
