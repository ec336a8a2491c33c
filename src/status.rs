//! How a cluster is, judged from what its nodes say of themselves. Pure: reports in, verdict out.

use std::collections::BTreeMap;

use andante_cluster::{
    GroupId, NodeId, ShardId,
    directory::Directory,
    report::{GroupReport, LeaderReport, NodeReport},
};

use crate::v1::{ClusterHealth, GetClusterStatusResponse, NodeStatus, ReplicaStatus, ShardStatus};

/// A replica that did not answer its leader for so long does not follow: several heartbeats.
const FOLLOWS_WITHIN_MS: u64 = 3_000;
/// A voter that lacks more entries than this is no help if others fail: it would have to catch up first.
const LAG_ENTRIES_MAX: u64 = 10_000;

/// How far a node's catalog is behind.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct CatalogLag {
    /// Shards it is not in step with.
    pub shards_behind: u32,
    /// At most, in log entries.
    pub entries: u64,
}

/// What one node answered.
#[derive(Debug, Clone, PartialEq)]
pub struct Answer {
    /// Its groups.
    pub report: NodeReport,
    /// Its catalog.
    pub catalog: CatalogLag,
}

/// The cluster's status. A node that is missing from `answers` was not asked; one with an error did not answer.
pub fn judge(
    directory: &Directory,
    replication_factor: u32,
    answers: &BTreeMap<NodeId, Result<Answer, String>>,
) -> GetClusterStatusResponse {
    let shard_status = |shard: ShardId| {
        let target = directory.replicas.get(&shard).map(|replicas| replicas.target.clone()).unwrap_or_default();
        group_status(shard.group(), shard.0, target, replication_factor, answers)
    };
    let shards: Vec<ShardStatus> = directory.replicas.keys().copied().map(shard_status).collect();
    let members = directory.nodes.len() as u32;
    let root = group_status(GroupId::DIRECTORY, 0, Vec::new(), replication_factor.min(members), answers);
    let nodes: Vec<NodeStatus> = directory
        .nodes
        .iter()
        .map(|(id, info)| {
            let (error, catalog) = match answers.get(id) {
                Some(Ok(answer)) => (String::new(), answer.catalog),
                Some(Err(error)) => (error.clone(), CatalogLag::default()),
                None => ("not asked".to_owned(), CatalogLag::default()),
            };
            NodeStatus {
                node_id: *id,
                address: info.address.clone(),
                error,
                leads: count(&shards, |shard| shard.leader == *id),
                replicas: count(&shards, |shard| shard.replicas.iter().any(|replica| replica.node_id == *id)),
                feature_level: info.feature_level,
                catalog_shards_behind: catalog.shards_behind,
                catalog_lag_entries: catalog.entries,
            }
        })
        .collect();
    let survives = shards.iter().chain([&root]).map(survives).min().unwrap_or(0);
    let (health, verdict) = verdict(directory, &nodes, &shards, &root, survives);
    GetClusterStatusResponse {
        health: health.into(),
        verdict,
        survives,
        nodes,
        shards,
        directory: Some(root),
        replication_factor,
        feature_level: directory.cluster.as_ref().map_or(0, |cluster| cluster.feature_level),
    }
}

fn count(shards: &[ShardStatus], is: impl Fn(&ShardStatus) -> bool) -> u32 {
    shards.iter().filter(|shard| is(shard)).count() as u32
}

/// One group, by the word of its leader.
fn group_status(
    group: GroupId,
    shard: u32,
    target: Vec<NodeId>,
    replication_factor: u32,
    answers: &BTreeMap<NodeId, Result<Answer, String>>,
) -> ShardStatus {
    let leaders = answers.iter().filter_map(|(id, answer)| {
        let groups = &answer.as_ref().ok()?.report.groups;
        let report = groups.iter().find(|report| report.group == group.0)?;
        Some((*id, report, report.leader.as_ref()?))
    });
    // One that was deposed may not know it yet.
    let Some((leader, report, led)) = leaders.max_by_key(|(_, report, _)| report.term) else {
        let probe_error = "no leader is known".to_owned();
        return ShardStatus { shard, target, probe_error, under_replicated: true, ..Default::default() };
    };
    let replicas = replicas(leader, report, led);
    let wanted = replication_factor.max(target.len() as u32);
    let following = replicas.iter().filter(|replica| replica.voter && replica.follows).count() as u32;
    ShardStatus {
        shard,
        leader,
        term: report.term,
        last_log: report.last_log,
        replicas,
        target,
        probe_micros: led.probe_micros,
        probe_error: led.probe_error.clone(),
        under_replicated: following < wanted,
    }
}

fn replicas(leader: NodeId, report: &GroupReport, led: &LeaderReport) -> Vec<ReplicaStatus> {
    let replica = |node_id: NodeId, voter: bool| {
        if node_id == leader {
            return ReplicaStatus { node_id, voter, lag_entries: 0, follows: true };
        }
        let follower = led.followers.iter().find(|follower| follower.node_id == node_id);
        ReplicaStatus {
            node_id,
            voter,
            lag_entries: report.last_log.saturating_sub(follower.map_or(0, |follower| follower.matched)),
            follows: follower.is_some_and(|follower| follower.heard_ms_ago <= FOLLOWS_WITHIN_MS),
        }
    };
    let learners = led.learners.iter().filter(|id| !led.voters.contains(id));
    led.voters.iter().map(|id| replica(*id, true)).chain(learners.map(|id| replica(*id, false))).collect()
}

/// How many of a group's voters may fail, whichever they are, so that a majority is left that is up to date.
fn survives(shard: &ShardStatus) -> u32 {
    let voters: Vec<_> = shard.replicas.iter().filter(|replica| replica.voter).collect();
    let sound = voters.iter().filter(|replica| replica.follows && replica.lag_entries <= LAG_ENTRIES_MAX).count();
    sound.saturating_sub(voters.len() / 2 + 1) as u32
}

/// In one word and in one sentence.
fn verdict(
    directory: &Directory,
    nodes: &[NodeStatus],
    shards: &[ShardStatus],
    root: &ShardStatus,
    survives: u32,
) -> (ClusterHealth, String) {
    let silent: Vec<&ShardStatus> = shards.iter().filter(|shard| !shard.probe_error.is_empty()).collect();
    let future = match survives {
        0 => "survives no further failure".to_owned(),
        1 => "survives 1 more failure".to_owned(),
        more => format!("survives {more} more failures"),
    };
    if !silent.is_empty() {
        let first = silent[0];
        let why = &first.probe_error;
        let text = format!("{} of {} shards do not answer (shard {}: {why})", silent.len(), shards.len(), first.shard);
        return (ClusterHealth::Unavailable, text);
    }
    if !root.probe_error.is_empty() {
        let text = format!("every shard answers, but the directory does not ({})", root.probe_error);
        return (ClusterHealth::Unavailable, text);
    }
    let mut flaws = Vec::new();
    let down: Vec<String> = nodes.iter().filter(|n| !n.error.is_empty()).map(|n| n.node_id.to_string()).collect();
    if !down.is_empty() {
        flaws.push(format!("node {} does not answer", down.join(", ")));
    }
    let behind = shards.iter().chain([root]).filter(|shard| shard.under_replicated).count();
    if behind > 0 {
        flaws.push(format!("{} under-replicated", some(behind, "shard is", "shards are")));
    }
    let moving = directory.replicas.values().filter(|replicas| !replicas.settled()).count();
    if moving > 0 {
        flaws.push(some(moving, "shard is on its way", "shards are on their way"));
    }
    let lagging = nodes.iter().filter(|node| node.catalog_shards_behind > 0).count();
    if lagging > 0 {
        flaws.push(format!("the catalog of {} behind", some(lagging, "node is", "nodes is")));
    }
    if flaws.is_empty() {
        let all =
            if shards.len() == 1 { "the shard answers".into() } else { format!("all {} shards answer", shards.len()) };
        return (ClusterHealth::Healthy, format!("{all}; {future}"));
    }
    (ClusterHealth::Degraded, format!("every shard answers, but {}; {future}", flaws.join(", ")))
}

/// So many, in the right form.
fn some(count: usize, one: &str, more: &str) -> String {
    format!("{count} {}", if count == 1 { one } else { more })
}

#[cfg(test)]
mod tests {
    use andante_cluster::{
        directory::{Cluster, NodeInfo, Replicas},
        report::FollowerReport,
    };

    use super::*;

    fn directory(nodes: u64) -> Directory {
        let all: Vec<NodeId> = (1..=nodes).collect();
        let info = |id: &NodeId| {
            (*id, NodeInfo { address: format!("n{id}:1"), feature_level: 1, join_nonce: Default::default() })
        };
        let replicas = Replicas { nodes: all.clone(), target: all.clone(), membership_index: 0 };
        Directory {
            cluster: Some(Cluster {
                id: [1; 16],
                incarnation: 1,
                shards: 2,
                feature_level: 1,
                last_node_id: nodes,
                placement_generation: 0,
            }),
            nodes: all.iter().map(info).collect(),
            replicas: [(ShardId(0), replicas.clone()), (ShardId(1), replicas)].into(),
            ..Default::default()
        }
    }

    /// Node 1 leads everything; the others follow as told: how many entries they lack, when they were heard.
    fn answers(nodes: u64, followers: &[(NodeId, u64, u64)]) -> BTreeMap<NodeId, Result<Answer, String>> {
        let groups = |leads: bool| {
            let group = |group: u32| GroupReport {
                group,
                term: 3,
                applied: 100_000,
                last_log: 100_000,
                leader: leads.then(|| LeaderReport {
                    probe_micros: 400,
                    probe_error: String::new(),
                    voters: (1..=nodes).collect(),
                    learners: Vec::new(),
                    followers: followers
                        .iter()
                        .map(|&(node_id, lag, heard_ms_ago)| FollowerReport {
                            node_id,
                            matched: 100_000 - lag,
                            heard_ms_ago,
                        })
                        .collect(),
                }),
            };
            (0..3).map(group).collect()
        };
        let answer = |id: NodeId| {
            let report = NodeReport { node_id: id, groups: groups(id == 1) };
            (id, Ok(Answer { report, catalog: CatalogLag::default() }))
        };
        (1..=nodes).map(answer).collect()
    }

    fn judged(
        directory: &Directory,
        answers: &BTreeMap<NodeId, Result<Answer, String>>,
    ) -> (ClusterHealth, u32, String) {
        let factor = (directory.nodes.len() as u32).min(3);
        let status = judge(directory, factor, answers);
        (status.health(), status.survives, status.verdict)
    }

    #[test]
    fn a_whole_cluster_is_healthy_and_says_what_it_survives() {
        for (nodes, followers, survives, text) in [
            (1, vec![], 0, "all 2 shards answer; survives no further failure"),
            (2, vec![(2, 0, 10)], 0, "all 2 shards answer; survives no further failure"),
            (3, vec![(2, 0, 10), (3, 5, 200)], 1, "all 2 shards answer; survives 1 more failure"),
            (5, vec![(2, 0, 1), (3, 0, 1), (4, 0, 1), (5, 0, 1)], 2, "all 2 shards answer; survives 2 more failures"),
        ] {
            let judged = judged(&directory(nodes), &answers(nodes, &followers));
            assert_eq!(judged, (ClusterHealth::Healthy, survives, text.to_owned()), "{nodes} nodes");
        }
    }

    #[test]
    fn a_node_that_is_down_degrades() {
        let mut answers = answers(3, &[(2, 0, 10), (3, 50_000, 60_000)]);
        answers.insert(3, Err("connection refused".into()));
        let text = "every shard answers, but node 3 does not answer, 3 shards are under-replicated; survives no further \
                    failure";
        assert_eq!(judged(&directory(3), &answers), (ClusterHealth::Degraded, 0, text.to_owned()));
    }

    #[test]
    fn a_voter_far_behind_is_no_help_yet() {
        let (health, survives, _) = judged(&directory(3), &answers(3, &[(2, 0, 10), (3, 50_000, 10)]));
        assert_eq!((health, survives), (ClusterHealth::Healthy, 0));
    }

    #[test]
    fn a_shard_on_its_way_degrades() {
        let mut directory = directory(3);
        directory.replicas.insert(ShardId(1), Replicas { nodes: vec![1], target: vec![1, 2, 3], membership_index: 0 });
        let (health, _, text) = judged(&directory, &answers(3, &[(2, 0, 10), (3, 0, 10)]));
        assert_eq!(health, ClusterHealth::Degraded);
        assert_eq!(text, "every shard answers, but 1 shard is on its way; survives 1 more failure");
    }

    #[test]
    fn a_failed_probe_or_a_missing_leader_is_unavailable() {
        let mut failed = answers(3, &[(2, 0, 10), (3, 0, 10)]);
        let Some(Ok(first)) = failed.get_mut(&1) else { panic!("it answered") };
        let led = first.report.groups[2].leader.as_mut().expect("it leads");
        led.probe_error = "no quorum".into();
        let (health, _, text) = judged(&directory(3), &failed);
        assert_eq!(
            (health, text.as_str()),
            (ClusterHealth::Unavailable, "1 of 2 shards do not answer (shard 1: no quorum)")
        );

        let mut gone = answers(3, &[]);
        gone.insert(1, Err("gone".into()));
        let (health, survives, text) = judged(&directory(3), &gone);
        assert_eq!((health, survives), (ClusterHealth::Unavailable, 0));
        assert_eq!(text, "2 of 2 shards do not answer (shard 0: no leader is known)");
    }

    #[test]
    fn of_two_that_say_they_lead_the_one_with_the_higher_term_does() {
        let mut both = answers(3, &[(2, 0, 10), (3, 0, 10)]);
        let Some(Ok(first)) = both.get(&1).cloned() else { panic!("it answered") };
        let mut groups = first.report.groups;
        groups.iter_mut().for_each(|group| group.term = 4);
        let report = NodeReport { node_id: 2, groups };
        both.insert(2, Ok(Answer { report, catalog: CatalogLag::default() }));
        assert!(judge(&directory(3), 3, &both).shards.iter().all(|shard| shard.leader == 2));
    }
}
