//! Which leadership to hand over, and to whom.
//!
//! Leaders end up where the directory prefers them: after a node was away, it gets its share back. Only to a voter that
//! is close and answers, one at a time with a pause, and neither right after a leader has come to be nor right after a
//! node has come back: a node that comes and goes does not take the leaders with it each time.

use std::time::Duration;

use super::ProgressOf;
use crate::{GroupId, NodeId};

/// Entries that a successor may miss: it gets them in one message, and only then asks for votes.
pub const SUCCESSOR_LAG: u64 = 200;
/// How long a node leads a group before it hands it over: what has just failed may fail again, and a node that is
/// stopping gives its groups away and does not want them back.
pub const SETTLED_AFTER: Duration = Duration::from_secs(10);
/// How long a node that was away has been back before it leads again: first it catches up, which is work enough, and
/// what has just failed may fail again.
pub const BACK_FOR: Duration = Duration::from_secs(5);
/// Time between two hand-overs of a node: each is a few milliseconds without a leader, and work for the new one.
pub const PAUSE: Duration = Duration::from_millis(100);
/// How long a hand-over that has failed is not tried again.
pub const RETRY_AFTER: Duration = Duration::from_secs(30);

/// A group that this node leads.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Led {
    /// The group.
    pub group: GroupId,
    /// The node that is to lead it.
    pub preferred: NodeId,
    /// Its voters; `None` while they change.
    pub voters: Option<Vec<NodeId>>,
    /// Last log index of the leader.
    pub last_log: u64,
    /// How far its members are.
    pub progress: ProgressOf,
    /// How long the node that is to lead it has been back; `None`: it is this one, or was never here.
    pub preferred_up_for: Option<Duration>,
    /// How long this node has led it.
    pub led_for: Duration,
    /// How long ago a hand-over has failed; `None`: none has since this node leads it.
    pub failed_ago: Option<Duration>,
}

/// The next group to hand over, and to whom. `idle_for`: time since the last hand-over of this node ended.
pub fn next(me: NodeId, led: &[Led], idle_for: Duration) -> Option<(GroupId, NodeId)> {
    if idle_for < PAUSE {
        return None;
    }
    let due = led.iter().find(|group| {
        group.preferred != me
            && group.led_for >= SETTLED_AFTER
            && group.preferred_up_for.is_none_or(|back| back >= BACK_FOR)
            && group.failed_ago.is_none_or(|ago| ago >= RETRY_AFTER)
            && can_take_over(group.preferred, group.voters.as_deref(), group.last_log, &group.progress)
    });
    due.map(|group| (group.group, group.preferred))
}

fn can_take_over(node: NodeId, voters: Option<&[NodeId]>, last_log: u64, progress: &ProgressOf) -> bool {
    voters.is_some_and(|voters| voters.contains(&node))
        && progress.get(&node).is_some_and(|progress| progress.is_close(last_log, SUCCESSOR_LAG))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::placement::Progress;

    const LONG: Duration = Duration::from_secs(3_600);

    fn progress(nodes: &[(NodeId, u64, u64)]) -> ProgressOf {
        let one = |(node, matched, ago_ms): &(NodeId, u64, u64)| {
            (*node, Progress { matched: Some(*matched), heard_ago: Some(Duration::from_millis(*ago_ms)) })
        };
        nodes.iter().map(one).collect()
    }

    /// A group led by node 1 which is to be led by node 2.
    fn led() -> Led {
        Led {
            group: GroupId(3),
            preferred: 2,
            voters: Some(vec![1, 2, 3]),
            last_log: 1_000,
            progress: progress(&[(1, 1_000, 0), (2, 990, 50), (3, 1_000, 50)]),
            preferred_up_for: None,
            led_for: LONG,
            failed_ago: None,
        }
    }

    #[test]
    fn a_leadership_goes_to_the_preferred_node_when_that_can_take_over() {
        let away = progress(&[(2, 1_000, 5_000)]);
        let far = progress(&[(2, 500, 50)]);
        let (soon, recent) = (Duration::from_secs(1), Some(Duration::from_secs(10)));
        let table: [(&str, Led, Option<NodeId>); 11] = [
            ("close", led(), Some(2)),
            ("it leads already", Led { preferred: 1, ..led() }, None),
            ("voters change", Led { voters: None, ..led() }, None),
            ("no voter", Led { voters: Some(vec![1, 3]), ..led() }, None),
            ("does not answer", Led { progress: away, ..led() }, None),
            ("far behind", Led { progress: far, ..led() }, None),
            ("led for a moment only", Led { led_for: soon, ..led() }, None),
            ("back for a moment only", Led { preferred_up_for: Some(soon), ..led() }, None),
            ("back for long", Led { preferred_up_for: Some(LONG), ..led() }, Some(2)),
            ("failed lately", Led { failed_ago: recent, ..led() }, None),
            ("failed long ago", Led { failed_ago: Some(LONG), ..led() }, Some(2)),
        ];
        for (name, led, expected) in table {
            assert_eq!(next(1, &[led], LONG), expected.map(|node| (GroupId(3), node)), "{name}");
        }
    }

    #[test]
    fn hand_overs_come_one_by_one_with_a_pause() {
        let (first, second) = (Led { voters: None, ..led() }, Led { group: GroupId(4), ..led() });
        assert_eq!(next(1, &[first.clone(), second.clone()], PAUSE), Some((GroupId(4), 2)));
        assert_eq!(next(1, &[first, second], PAUSE / 2), None);
    }
}
