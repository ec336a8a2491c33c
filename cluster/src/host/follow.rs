//! Follows who leads a group, as its replica on this node sees it.

use std::sync::Arc;

use openraft::{Instant as _, ServerState, async_runtime::watch::WatchReceiver, errors::Fatal};
use tokio::{
    sync::watch,
    time::{Instant, sleep_until},
};

use super::{
    Leadership,
    leaders::LeaderTable,
    shared::{Gate, Shared},
};
use crate::{
    GroupId, NodeId,
    raft::{
        config::{HEARTBEAT, LEASE},
        types::{LeaderId, Raft, StoredMembership, TypeConfig},
    },
};

/// Whether this node is the only member.
pub(super) fn is_alone(membership: &StoredMembership, me: NodeId) -> bool {
    let mut members = membership.nodes().map(|(id, _)| *id);
    members.next() == Some(me) && members.next().is_none()
}

/// Whether this node alone is a quorum.
pub(super) fn is_quorum(membership: &StoredMembership, me: NodeId) -> bool {
    let mut voters = membership.voter_ids();
    voters.next() == Some(me) && voters.next().is_none()
}

struct Follow {
    node_id: NodeId,
    group: GroupId,
    raft: Raft,
    gate: Arc<Gate>,
    leaders: Arc<LeaderTable>,
}

/// Tells the table of leaders what the replica here knows, and stops the group's clock while it is not needed. Ends
/// with the group.
pub(super) fn follow_leadership(
    shared: &Shared,
    group: GroupId,
    raft: Raft,
    applied_by: watch::Receiver<Option<LeaderId>>,
) -> impl Future<Output = ()> + Send + use<> {
    let (gate, leaders) = (shared.gate.clone(), shared.leaders.clone());
    Follow { node_id: shared.node_id, group, raft, gate, leaders }.run(applied_by)
}

impl Follow {
    async fn run(self, mut applied_by: watch::Receiver<Option<LeaderId>>) {
        let mut server = self.raft.server_metrics();
        loop {
            let (term, now, look_again) = {
                let metrics = server.borrow_watched();
                let members = &metrics.membership_config;
                let leading = metrics.state == ServerState::Leader;
                // A leader without other members needs no heartbeats and no elections: without a clock its group
                // costs nothing while it is idle.
                self.raft.runtime_config().tick(!(leading && is_alone(members, self.node_id)));
                let term = metrics.vote.leader_id.term;
                let applied = *applied_by.borrow_and_update();
                let follows = |leader| Leadership::Follower { leader };
                if !leading {
                    (term, follows(metrics.current_leader.filter(|id| *id != self.node_id)), None)
                } else if applied != Some(LeaderId { term, node_id: self.node_id }) {
                    (term, follows(None), None)
                } else if is_quorum(members, self.node_id) {
                    (term, Leadership::Leader { term }, None)
                } else {
                    // A leader that is cut off may have been replaced long ago.
                    let now = Instant::now();
                    match self.acknowledged().map(|at| at + LEASE).filter(|until| *until > now) {
                        Some(until) => (term, Leadership::Leader { term }, Some(until)),
                        None => (term, follows(None), Some(now + HEARTBEAT)),
                    }
                }
            };
            self.leaders.set_local(self.group, Some((term, now)));
            let alive = tokio::select! {
                changed = server.changed() => changed.is_ok(),
                changed = applied_by.changed() => changed.is_ok(),
                () = async { sleep_until(look_again.unwrap_or_else(Instant::now)).await }, if look_again.is_some() => true,
            };
            if !alive {
                break;
            }
        }
        self.leaders.set_local(self.group, None);
        // The machine may end first. When the core itself is gone, what it told last is final.
        while server.changed().await.is_ok() {}
        let running = self.raft.metrics().borrow_watched().running_state.clone();
        if let Some(why) = failure(running)
            && !self.gate.is_stopping()
        {
            self.gate.fatal.fail(format_args!("consensus of {} has stopped: {why}", self.group));
        }
    }

    /// When a quorum last acknowledged this leader.
    fn acknowledged(&self) -> Option<Instant> {
        let metrics = self.raft.metrics();
        let metrics = metrics.borrow_watched();
        Instant::now().checked_sub(metrics.last_quorum_acked.as_deref()?.elapsed())
    }
}

/// Why a core that has ended did so, by the state that it told last. `None`: it was told to.
fn failure(running: Result<(), Fatal<TypeConfig>>) -> Option<String> {
    match running {
        Err(Fatal::Stopped) => None,
        Err(why) => Some(why.to_string()),
        // A panic leaves it no time to tell anything.
        Ok(()) => Some("it panicked".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_core_that_ends_without_being_told_to_has_failed() {
        assert_eq!(failure(Err(Fatal::Stopped)), None);
        assert_eq!(failure(Err(Fatal::Panicked)).as_deref(), Some("panicked"));
        assert_eq!(failure(Ok(())).as_deref(), Some("it panicked"));
    }
}
