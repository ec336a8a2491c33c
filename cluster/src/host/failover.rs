//! A leader whose connection breaks is followed up sooner than by a timeout.

use std::{
    sync::{Arc, Weak},
    time::Duration,
};

use openraft::async_runtime::watch::WatchReceiver;
use tokio::time::sleep;

use super::{group::Group, shared::Shared};
use crate::{NodeId, raft::config::LEASE};

/// How much later each further voter stands for election, so that they do not split the votes; about as long as an
/// election takes on a busy machine.
const STAGGER: Duration = Duration::from_millis(150);
/// The lease of the last heartbeat must be over, here and there: another voter may have heard it a little later.
const AFTER_LEASE: Duration = Duration::from_millis(20);
/// How often a voter tries in its turn.
const TRIES: u32 = 3;

/// The connection to a node broke: stands for election in the groups it led, once their lease is over. A pre-vote
/// makes sure that the others lost it too; if nothing comes of it, the usual timeout goes on.
pub(super) fn leader_lost(shared: &Arc<Shared>, node: NodeId) {
    for group in shared.groups.all() {
        if let Some(rank) = rank(&group, shared.node_id, node) {
            tokio::spawn(stand_for_election(Arc::downgrade(&group), node, LEASE + AFTER_LEASE + STAGGER * rank));
        }
    }
}

/// How many voters stand before this one in a group that `lost` leads. Different groups begin with different voters,
/// so that the leaders are spread. `None`: it does not lead, or this node does not vote.
fn rank(group: &Group, me: NodeId, lost: NodeId) -> Option<u32> {
    let metrics = group.raft.server_metrics();
    let metrics = metrics.borrow_watched();
    if metrics.current_leader != Some(lost) {
        return None;
    }
    let voters: Vec<NodeId> = metrics.membership_config.voter_ids().filter(|voter| *voter != lost).collect();
    let place = voters.iter().position(|voter| *voter == me)?;
    let count = voters.len();
    Some(((place + count - group.id().0 as usize % count) % count) as u32)
}

async fn stand_for_election(group: Weak<Group>, lost: NodeId, after: Duration) {
    sleep(after).await;
    for _ in 0..TRIES {
        let Some(group) = group.upgrade() else { return };
        // Somebody else may have asked for votes, or the node may be back.
        let still_lost = group.raft.server_metrics().borrow_watched().vote.leader_id.node_id == lost;
        // Refused while the lease is not over: the node is alive after all. A group that has stopped needs none.
        if !still_lost || group.raft.trigger().elect(true).await.is_err() {
            return;
        }
        drop(group);
        sleep(STAGGER / TRIES).await;
    }
}
