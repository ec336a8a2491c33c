//! What this node knows of its groups.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use futures::future::join_all;
use openraft::{Instant as _, async_runtime::watch::WatchReceiver};
use tokio::{
    sync::OwnedMutexGuard,
    time::{Instant, timeout, timeout_at},
};
use tonic::Request;

use super::{Leadership, group::Group, shared::Shared};
use crate::{
    NodeId,
    env::Clock,
    proto::ReportRequest,
    raft::types::Raft,
    report::{FollowerReport, GroupReport, LeaderReport, NodeReport},
};

/// A probe is a write: one serves all who ask within this time.
const PROBE_LIFE: Duration = Duration::from_secs(1);
/// A replicated write that takes longer has failed, as far as anybody who waits is concerned.
const PROBE_TIMEOUT: Duration = Duration::from_secs(2);

/// What the last probe of a group found.
#[derive(Debug, Clone)]
pub(super) struct Probe {
    at: Instant,
    micros: u64,
    error: String,
}

impl Probe {
    /// Now; without an error if that is empty.
    fn ended(error: impl Into<String>) -> Self {
        Self { at: Instant::now(), micros: 0, error: error.into() }
    }
}

/// This node's groups, with a fresh probe of those it leads.
pub(super) async fn report(shared: &Arc<Shared>, deadline: Instant) -> NodeReport {
    let groups = shared.groups.all();
    let groups = join_all(groups.iter().map(|group| report_group(shared, group, deadline))).await;
    NodeReport { node_id: shared.node_id, groups }
}

async fn report_group(shared: &Shared, group: &Group, deadline: Instant) -> GroupReport {
    let leads = matches!(*group.leadership.borrow(), Leadership::Leader { .. });
    let leader = if leads { Some(report_leader(shared, group, deadline).await) } else { None };
    let term = group.raft.server_metrics().borrow_watched().vote.leader_id.term;
    let applied = group.replica.applied().last.map_or(0, |id| id.index);
    GroupReport { group: group.id().0, term, applied, last_log: group.log.last().map_or(0, |id| id.index), leader }
}

async fn report_leader(shared: &Shared, group: &Group, deadline: Instant) -> LeaderReport {
    let probe = probe(shared, group, deadline).await;
    let metrics = group.raft.metrics().borrow_watched().clone();
    let heard = metrics.heartbeat.unwrap_or_default();
    let followers = metrics.replication.unwrap_or_default().into_iter().filter(|(id, _)| *id != shared.node_id);
    let members = &metrics.membership_config;
    LeaderReport {
        probe_micros: probe.micros,
        probe_error: probe.error,
        voters: members.voter_ids().collect(),
        learners: members.membership().learner_ids().collect(),
        followers: followers
            .map(|(node_id, matched)| FollowerReport {
                node_id,
                matched: matched.map_or(0, |id| id.index),
                heard_ms_ago: match heard.get(&node_id) {
                    Some(Some(at)) => at.elapsed().as_millis() as u64,
                    _ => u64::MAX,
                },
            })
            .collect(),
    }
}

/// What a write of an empty entry finds, made at most once a second whoever asks. One that is under way goes on when
/// whoever began it has no time to wait: what is told then is not kept, and the next one learns what it finds.
async fn probe(shared: &Shared, group: &Group, deadline: Instant) -> Probe {
    let under_way = || Probe::ended("the probe is still under way");
    let Ok(last) = timeout_at(deadline, group.probe.clone().lock_owned()).await else { return under_way() };
    if let Some(probe) = last.as_ref().filter(|probe| probe.at.elapsed() < PROBE_LIFE) {
        return probe.clone();
    }
    let probing = tokio::spawn(write_probe(group.raft.clone(), shared.env.clock.clone(), last));
    match timeout_at(deadline, probing).await {
        Ok(Ok(probe)) => probe,
        Ok(Err(_)) | Err(_) => under_way(),
    }
}

/// Writes an empty entry and notes how long it takes.
async fn write_probe(raft: Raft, clock: Arc<dyn Clock>, mut last: OwnedMutexGuard<Option<Probe>>) -> Probe {
    let begun_micros = clock.monotonic_micros();
    let mut probe = match timeout(PROBE_TIMEOUT, raft.write_blank()).await {
        Ok(Ok(_)) => Probe::ended(""),
        Ok(Err(e)) => Probe::ended(e.to_string()),
        Err(_) => Probe::ended("no quorum has written it in time"),
    };
    if probe.error.is_empty() {
        probe.micros = (clock.monotonic_micros() - begun_micros).max(1);
    }
    *last = Some(probe.clone());
    probe
}

/// What every node of the cluster says of its groups, or why it says nothing.
pub(super) async fn reports(shared: &Arc<Shared>, deadline: Instant) -> BTreeMap<NodeId, Result<NodeReport, String>> {
    let nodes: Vec<NodeId> = shared.directory.borrow().nodes.keys().copied().collect();
    let asked = nodes.into_iter().map(|node| async move {
        let answer = match node == shared.node_id {
            true => Ok(report(shared, deadline).await),
            false => report_at(shared, node, deadline).await,
        };
        (node, answer)
    });
    join_all(asked).await.into_iter().collect()
}

async fn report_at(shared: &Shared, node: NodeId, deadline: Instant) -> Result<NodeReport, String> {
    let mut client = shared.client(node).ok_or("there is no way to the node")?;
    let mut request = Request::new(ReportRequest {});
    request.set_timeout(deadline.saturating_duration_since(Instant::now()));
    match timeout_at(deadline, client.report(request)).await {
        Ok(Ok(answer)) => Ok(answer.into_inner()),
        Ok(Err(status)) => Err(status.message().to_owned()),
        Err(_) => Err("no answer in time".to_owned()),
    }
}
