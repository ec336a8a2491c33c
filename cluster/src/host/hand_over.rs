//! A node that stops in an orderly way gives its groups to others first.

use std::{sync::Arc, time::Duration};

use futures::future::join_all;
use openraft::{Instant as _, ServerState, async_runtime::watch::WatchReceiver};
use tokio::time::{sleep, timeout};

use super::{group::Group, shared::Shared};
use crate::{NodeId, raft::config::LEASE};

/// Time to hand over all groups; what is not handed over by then is elected anew.
const HAND_OVER_TIMEOUT: Duration = Duration::from_secs(5);
/// Time for one group and one successor. openraft can't take a transfer back: a successor that does not come up by
/// then is left to the election that follows.
const TRANSFER_TIMEOUT: Duration = Duration::from_secs(2);
/// Pause between two looks at what is still led here.
const LOOK_AGAIN: Duration = Duration::from_millis(50);
/// A successor that is further behind would keep writers waiting until it has caught up.
const MAX_LAG: u64 = 1_000;

/// Hands every group that this node leads to one of its other voters, and tells the peers to give it none. Returns how
/// many are still led here although there are other voters.
pub(super) async fn hand_over(shared: &Arc<Shared>) -> usize {
    shared.leaders.set_leaving(shared.node_id, true);
    shared.peers.notify_leads();
    let led = || -> Vec<_> {
        let groups = shared.groups.all().into_iter();
        groups.filter(|group| leads(group) && has_others(group, shared.node_id)).collect()
    };
    let handed_over = async {
        loop {
            let groups = led();
            join_all(groups.iter().map(|group| hand_over_group(shared, group))).await;
            // What was on its way here arrives meanwhile; a new leader learns where its followers are.
            sleep(LOOK_AGAIN).await;
            if groups.is_empty() && led().is_empty() {
                return;
            }
        }
    };
    if timeout(HAND_OVER_TIMEOUT, handed_over).await.is_ok() {
        return 0;
    }
    let left = led().len();
    tracing::warn!(left, "groups could not be handed over; the others elect leaders for them");
    left
}

/// Whether a group has voters elsewhere.
fn has_others(group: &Group, me: NodeId) -> bool {
    group.raft.server_metrics().borrow_watched().membership_config.voter_ids().any(|voter| voter != me)
}

fn leads(group: &Group) -> bool {
    group.raft.server_metrics().borrow_watched().state == ServerState::Leader
}

/// The voters that could take over now: heard of within the lease, caught up, and not about to stop themselves.
fn successors(shared: &Shared, group: &Group) -> Vec<NodeId> {
    let metrics = group.raft.metrics().borrow_watched().clone();
    let (heard, matched) = (metrics.heartbeat.unwrap_or_default(), metrics.replication.unwrap_or_default());
    let last = metrics.last_log_index.unwrap_or(0);
    let voters = metrics.committed_membership_config.voter_ids();
    let voters = voters.filter(|voter| *voter != shared.node_id && !shared.leaders.is_leaving(*voter));
    let mut fit: Vec<NodeId> = voters
        .filter(|voter| matches!(heard.get(voter), Some(Some(at)) if at.elapsed() < LEASE))
        .filter(|voter| {
            let matched = matched.get(voter).and_then(Option::as_ref).map_or(0, |id| id.index);
            matched + MAX_LAG >= last
        })
        .collect();
    fit.sort_unstable();
    // Each group begins with another one, so that the leaders are spread.
    let first = group.id().0 as usize % fit.len().max(1);
    fit.rotate_left(first);
    fit
}

async fn hand_over_group(shared: &Shared, group: &Group) {
    for successor in successors(shared, group) {
        if !leads(group) || transfer(group, successor).await {
            return;
        }
    }
}

/// Has another voter take over; whether this node has stopped leading.
pub(super) async fn transfer(group: &Group, successor: NodeId) -> bool {
    if group.raft.trigger().transfer_leader(successor).await.is_err() {
        return true;
    }
    let mut metrics = group.raft.server_metrics();
    let handed_over =
        async { while metrics.borrow_watched().state == ServerState::Leader && metrics.changed().await.is_ok() {} };
    timeout(TRANSFER_TIMEOUT, handed_over).await.is_ok()
}
