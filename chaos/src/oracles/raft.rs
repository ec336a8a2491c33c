//! What consensus leans on: logs that agree, votes that are never forgotten, and entries that are durable on a quorum
//! before anybody applies them. (That all nodes apply the same is for `digests`. Terms may have several leaders here:
//! leaders are told apart by term and node.)

use std::collections::{BTreeMap, BTreeSet};

use andante_cluster::{
    GroupId, NodeId,
    raft::{codec, types::Entry},
    storage::memory::{Crash, LogOp},
};
use openraft::EntryPayload;
use xxhash_rust::xxh3::xxh3_64;

use super::{Applied, Found, Life, Oracle, Stored, Write};
use crate::world::World;

/// Who voted for whom: term, node, and whether that one was elected.
type Vote = (u64, NodeId, bool);

/// What is durable in one group's log on one node.
#[derive(Debug, Default, Clone)]
struct Log {
    /// The last index, purged ones included.
    last: u64,
    vote: Vote,
}

/// Raft's safety.
#[derive(Default)]
pub(super) struct Raft {
    /// By position of the node.
    logs: BTreeMap<(usize, GroupId), Log>,
    /// Hashes of entries by group, index, and who proposed them.
    entries: BTreeMap<(GroupId, u64, u64, NodeId), (u64, usize)>,
    /// Sets of voters by group and the index they came with.
    voters: BTreeMap<(GroupId, u64), Vec<BTreeSet<NodeId>>>,
    /// Where the nodes run that have told their ids.
    positions: BTreeMap<NodeId, usize>,
    /// Terms that nodes showed while they ran.
    shown: BTreeMap<(usize, GroupId), u64>,
    /// Terms that nodes must know when they run again.
    must_know: BTreeMap<(usize, GroupId), u64>,
}

impl Raft {
    fn append(&mut self, node: usize, group: GroupId, entry: &Entry, bytes: &[u8]) -> Found {
        let (index, leader) = (entry.log_id.index, &entry.log_id.leader_id);
        let at = (group, index, leader.term, leader.node_id);
        let (hash, by) = *self.entries.entry(at).or_insert((xxh3_64(bytes), node));
        if hash != xxh3_64(bytes) {
            let (one, two) = (by + 1, node + 1);
            return Err(format!(
                "{group}, index {index}, term {}: node-{one} and node-{two} hold two entries",
                leader.term
            ));
        }
        if let EntryPayload::Membership(membership) = &entry.payload {
            self.voters.insert((group, index), membership.get_joint_config().clone());
        }
        Ok(())
    }

    fn vote(&mut self, node: usize, group: GroupId, vote: Vote) -> Found {
        let log = self.logs.entry((node, group)).or_default();
        if vote < log.vote {
            return Err(format!("{group}: node-{} has voted {:?}, and votes {vote:?} now", node + 1, log.vote));
        }
        log.vote = vote;
        Ok(())
    }

    /// Whether an index is durable on a majority of each of these sets of voters. `None`: not all are known.
    fn on_quorum(&self, group: GroupId, index: u64, voters: &[BTreeSet<NodeId>]) -> Option<bool> {
        for set in voters {
            let mut durable = 0;
            for voter in set {
                let position = *self.positions.get(voter)?;
                durable += usize::from(self.logs.get(&(position, group)).is_some_and(|log| log.last >= index));
            }
            if durable <= set.len() / 2 {
                return Some(false);
            }
        }
        Some(true)
    }
}

impl Oracle for Raft {
    fn name(&self) -> &'static str {
        "raft"
    }

    fn stored(&mut self, stored: &Stored<'_>) -> Found {
        let (node, group) = (stored.node, stored.group);
        let Write::Log(op) = &stored.write else { return Ok(()) };
        let damaged =
            |error: std::io::Error| format!("{group}: node-{} stored what nobody can read: {error}", node + 1);
        match op {
            LogOp::Append(entries) => {
                for entry in entries {
                    let decoded = codec::decode_entry(entry.data.clone()).map_err(damaged)?;
                    self.append(node, group, &decoded, &entry.data)?;
                    self.logs.entry((node, group)).or_default().last = entry.index;
                }
                Ok(())
            }
            LogOp::Vote(bytes) => {
                let vote = codec::decode_vote(bytes.clone()).map_err(damaged)?;
                self.vote(node, group, (vote.leader_id.term, vote.leader_id.node_id, vote.committed))
            }
            LogOp::TruncateAfter(last) => {
                let log = self.logs.entry((node, group)).or_default();
                log.last = log.last.min(last.unwrap_or_default());
                Ok(())
            }
            LogOp::Purge { index, .. } => {
                let log = self.logs.entry((node, group)).or_default();
                log.last = log.last.max(*index);
                Ok(())
            }
            LogOp::Remove => {
                self.logs.remove(&(node, group));
                self.shown.remove(&(node, group));
                self.must_know.remove(&(node, group));
                Ok(())
            }
            LogOp::Committed(_) => Ok(()),
        }
    }

    /// The configuration in force when an entry was committed is the last one before it, or a later one.
    fn applied(&mut self, applied: &Applied<'_>) -> Found {
        let (group, index) = (applied.shard.group(), applied.index);
        let before = self.voters.range((group, 0)..=(group, index)).next_back();
        let later = self.voters.range((group, index + 1)..=(group, u64::MAX));
        let configurations = before.into_iter().chain(later).map(|(_, voters)| voters);
        // Once two sets have agreed to change to the second one, the leader counts on that alone, from when it has the
        // entry that says so, which need not be on any disk yet.
        let mut configurations = configurations.flat_map(|sets| [&sets[..], &sets[sets.len() - 1..]]);
        if configurations.all(|voters| self.on_quorum(group, index, voters) == Some(false)) && before.is_some() {
            let node = applied.node + 1;
            let voters: Vec<_> = self.voters.range((group, 0)..=(group, u64::MAX)).collect();
            let durable = self.positions.iter().map(|(id, at)| (id, self.logs.get(&(*at, group)).map(|log| log.last)));
            let durable: Vec<_> = durable.collect();
            return Err(format!(
                "{group}: node-{node} applies index {index}, which is not durable on a quorum; voters by index: \
                 {voters:?}; last durable index by node id: {durable:?}"
            ));
        }
        Ok(())
    }

    fn life(&mut self, node: usize, life: &Life) -> Found {
        match life {
            Life::Started { node_id, .. } => {
                self.positions.insert(*node_id, node);
            }
            Life::Crashed(Crash { log_batch, .. }) => {
                // Nothing was on its way to the disk: all that was shown is there.
                let shown = self.shown.iter().filter(|((at, _), _)| *at == node && log_batch.is_none());
                let durable = self.logs.iter().filter(|((at, _), _)| *at == node).map(|(at, log)| (*at, log.vote.0));
                let must_know: Vec<_> = durable.chain(shown.map(|(at, term)| (*at, *term))).collect();
                self.must_know.extend(must_know);
                self.shown.retain(|(at, _), _| *at != node);
            }
            Life::Ended(_) => self.shown.retain(|(at, _), _| *at != node),
            Life::DiskLost => {
                self.logs.retain(|(at, _), _| *at != node);
                self.must_know.retain(|(at, _), _| *at != node);
                self.positions.retain(|_, at| *at != node);
            }
        }
        Ok(())
    }

    fn look(&mut self, world: &World) -> Found {
        if !world.now_ms().is_multiple_of(LOOK_EVERY_MS) {
            return Ok(());
        }
        for (node, running) in world.running() {
            for shard in world.replicas_on(&running) {
                let at = (node, shard.id.group());
                let term = running.host().status(shard.id).term;
                if let Some(known) = self.must_know.remove(&at)
                    && term < known
                {
                    return Err(format!("{}: node-{} knew term {known}, and starts with {term}", at.1, node + 1));
                }
                self.shown.insert(at, term);
            }
        }
        Ok(())
    }
}

/// Reading the state of all groups costs something.
const LOOK_EVERY_MS: u64 = 10;
