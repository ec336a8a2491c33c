//! Brings the members of the groups that this node leads to where the directory wants them.
//!
//! One task for all groups, woken by what changes; [`membership::next`] decides each step from what is, so that it does
//! not matter who has begun, who has died, and how often something is tried.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use futures::{StreamExt, stream::FuturesUnordered};
use openraft::{ChangeMembers, async_runtime::watch::WatchReceiver, raft::Precondition};
use tokio::time::{Instant, sleep, timeout};

use super::{
    balance,
    group::Group,
    observe::{Seen, leads, observe, shard_of, wanted},
    shared::Shared,
};
use crate::{
    GroupId, NodeId,
    directory::Directory,
    placement::membership::{self, Members, Step},
    proto::{ConfirmReplicas, directory_command, directory_reply},
    raft::types::{Member, TypeConfig},
};

/// Looks at all groups at least this often, should a change have been missed.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// Time between two looks at one group: entries change its metrics far more often.
const LOOK_PAUSE: Duration = Duration::from_millis(10);
/// Time for one step: two entries of a group that has a quorum. What takes longer is looked at anew.
const STEP_TIMEOUT: Duration = Duration::from_secs(10);
/// Wait after a failure, doubled each time.
const FIRST_WAIT: Duration = Duration::from_millis(50);
const LONGEST_WAIT: Duration = Duration::from_secs(5);
/// A step that waits this long is reported, and then again and again.
const REPORT_AFTER: Duration = Duration::from_secs(10);

/// Runs for ever.
pub(super) async fn reconcile(shared: Arc<Shared>) {
    let (mut directory, mut replicas) = (shared.directory.clone(), shared.groups.changes());
    let mut led = shared.leaders.led_changes();
    let mut under_way: BTreeSet<GroupId> = BTreeSet::new();
    let mut work = FuturesUnordered::new();
    let mut look_at = shared.groups.all();
    while !shared.gate.is_stopping() {
        let now = directory.borrow().clone();
        for group in look_at.drain(..) {
            if leads(&group) && !under_way.contains(&group.id()) && !is_settled(&group, &now) {
                under_way.insert(group.id());
                work.push(settle(shared.clone(), group));
            }
        }
        let alive = tokio::select! {
            Some(done) = work.next(), if !work.is_empty() => {
                under_way.remove(&done);
                // Something may have changed after its last look.
                look_at.extend(shared.groups.get(done));
                continue;
            }
            changed = directory.changed() => changed.is_ok(),
            changed = replicas.changed() => changed.is_ok(),
            changed = led.changed() => changed.is_ok(),
            () = sleep(LOOK_EVERY) => true,
        };
        if !alive {
            return;
        }
        // Before it is read: a change in between wakes this up again.
        directory.mark_unchanged();
        look_at = shared.groups.all();
    }
}

/// Whether a group has the members that it is to have, and the directory knows.
fn is_settled(group: &Group, directory: &Directory) -> bool {
    let Some(wanted) = wanted(directory, group.id()) else { return true };
    let metrics = group.raft.server_metrics();
    let metrics = metrics.borrow_watched();
    let members = &metrics.membership_config;
    members.log_id() == metrics.committed_membership_config.log_id()
        && members.get_joint_config().len() == 1
        && members.get_joint_config().first() == Some(&wanted.voters)
        && members.membership().learner_ids().eq(wanted.learners.iter().copied())
        && is_confirmed(group.id(), &wanted, directory)
}

fn is_confirmed(group: GroupId, voters: &Members, directory: &Directory) -> bool {
    let replicas = shard_of(group).and_then(|shard| directory.replicas.get(&shard));
    replicas.is_none_or(|replicas| {
        replicas.nodes.len() == voters.voters.len() && replicas.nodes.iter().all(|node| voters.voters.contains(node))
    })
}

/// Takes step after step until a group has arrived, or this node no longer leads it.
async fn settle(shared: Arc<Shared>, group: Arc<Group>) -> GroupId {
    let id = group.id();
    let (mut directory, mut metrics) = (shared.directory.clone(), group.raft.metrics());
    let (mut wait, mut patience) = (FIRST_WAIT, Patience::default());
    loop {
        let now = directory.borrow_and_update().clone();
        if !leads(&group) || is_settled(&group, &now) || shared.gate.is_stopping() {
            return id;
        }
        let (Some(wanted), Some(seen)) = (wanted(&now, id), observe(&group)) else {
            // It has just stopped leading; soon that is known here, too.
            sleep(LOOK_PAUSE).await;
            return id;
        };
        let step = membership::next(&seen.group, &wanted);
        let failed = match &step {
            Step::Commit | Step::CatchUp(_) | Step::Successor(_) => {
                patience.look(id, &seen, &step);
                tokio::select! {
                    _ = metrics.changed() => {}
                    _ = directory.changed() => {}
                    () = sleep(LOOK_EVERY) => {}
                }
                sleep(LOOK_PAUSE).await;
                continue;
            }
            Step::Done => {
                let confirmed = confirm(&shared, id, &seen).await;
                if confirmed.is_ok() {
                    // This node's copy of the directory may be behind; to say it again would not help.
                    let _ = timeout(LOOK_EVERY, directory.changed()).await;
                }
                confirmed
            }
            Step::HandOver(to) => {
                tracing::info!(%id, to, "hands over before it leaves the group");
                balance::pass_on(&group, *to).await.then_some(()).ok_or_else(|| format!("{to} did not take over"))
            }
            step => {
                tracing::info!(group = %id, voters = ?seen.group.voter_sets, ?step, "members change");
                change(&group, &seen, step, &now).await
            }
        };
        match failed {
            Ok(()) => (wait, patience) = (FIRST_WAIT, Patience::default()),
            Err(why) => {
                if wait > FIRST_WAIT {
                    tracing::warn!(group = %id, ?step, why, "a change of members failed; it is tried again");
                }
                sleep(wait).await;
                wait = (2 * wait).min(LONGEST_WAIT);
            }
        }
    }
}

/// Tells the directory where a shard is.
async fn confirm(shared: &Shared, group: GroupId, seen: &Seen) -> Result<(), String> {
    let (Some(shard), Some(node_ids), Some(id)) = (shard_of(group), seen.voters(), seen.membership_id) else {
        return Ok(());
    };
    let confirm = ConfirmReplicas { shard: shard.0, node_ids, membership_index: id.index };
    let command = directory_command::Command::ConfirmReplicas(confirm);
    match shared.tell_directory(command, Instant::now() + STEP_TIMEOUT).await {
        Ok(directory_reply::Reply::Done(_)) => Ok(()),
        Ok(other) => Err(format!("the directory refused: {other:?}")),
        Err(e) => Err(format!("the directory: {e}")),
    }
}

/// Has consensus change the members, if they are still what was seen.
async fn change(group: &Group, seen: &Seen, step: &Step, directory: &Directory) -> Result<(), String> {
    let change: ChangeMembers<NodeId, Member> = match step {
        Step::AddLearners(nodes) => ChangeMembers::AddNodes(members(nodes, directory)),
        Step::ChangeVoters(voters) => ChangeMembers::ReplaceAllVoters(voters.clone()),
        Step::RemoveLearners(nodes) => ChangeMembers::RemoveNodes(nodes.clone()),
        // Nobody new: the joint configuration ends with its latter set.
        Step::FinishJoint => ChangeMembers::AddVoterIds(BTreeSet::new()),
        Step::Done | Step::Commit | Step::CatchUp(_) | Step::Successor(_) | Step::HandOver(_) => return Ok(()),
    };
    // Who no longer votes for the directory still has a replica of it.
    let keeps_removed_voters = group.id() == GroupId::DIRECTORY;
    let unchanged = Precondition::<TypeConfig>::LastMembershipLogId { last_membership_log_id: seen.membership_id };
    let changed = group.raft.change_membership_if(change, keeps_removed_voters, [unchanged]);
    match timeout(STEP_TIMEOUT, Box::pin(changed)).await {
        Ok(Ok(_)) => Ok(()),
        Ok(Err(e)) => Err(e.to_string()),
        Err(_) => Err(format!("not committed within {STEP_TIMEOUT:?}: is there a quorum?")),
    }
}

/// Members are dialled by the directory's addresses; what stands in the membership is for people.
fn members(nodes: &BTreeSet<NodeId>, directory: &Directory) -> BTreeMap<NodeId, Member> {
    let address = |node: &NodeId| directory.nodes.get(node).map(|info| info.address.clone()).unwrap_or_default();
    nodes.iter().map(|node| (*node, Member { address: address(node) })).collect()
}

/// Reports what waits for long, but not all the time.
#[derive(Default)]
struct Patience {
    since: Option<Instant>,
    reports: u32,
}

impl Patience {
    fn look(&mut self, group: GroupId, seen: &Seen, step: &Step) {
        let waited = self.since.get_or_insert_with(Instant::now).elapsed();
        if waited < REPORT_AFTER * (1 << self.reports.min(6)) {
            return;
        }
        self.reports += 1;
        let (Step::CatchUp(nodes) | Step::Successor(nodes)) = step else {
            tracing::warn!(%group, waited_s = waited.as_secs(), "a change of members is not committed: is there a quorum?");
            return;
        };
        for node in nodes {
            let progress = seen.group.progress.get(node).copied().unwrap_or_default();
            let missing = seen.group.last_log.saturating_sub(progress.matched.unwrap_or(0));
            let (waited_s, heard_ago) = (waited.as_secs(), progress.heard_ago);
            tracing::warn!(%group, node, waited_s, missing, ?heard_ago, "a replica is not close yet: is its node up?");
        }
    }
}
