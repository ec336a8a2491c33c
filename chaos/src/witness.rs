//! Sees everything that happens in a run and hands it to the oracles; keeps the timeline and the first broken promise.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

use andante::{
    actor::BookObserver,
    campaign::{book::Book, proto},
};
use andante_cluster::{
    GroupId, ShardId,
    storage::{
        SnapshotInfo,
        memory::{Crash, DiskObserver, LogOp, StateOp, Unsynced},
    },
};
use parking_lot::Mutex;
use prost::Message as _;

use crate::{
    markers::Markers,
    oracles::{self, Applied, Life, Oracle, Stored, Told, Write},
    plan::Plan,
    report::Violation,
    trace::Trace,
    world::{World, clock::true_elapsed},
};

/// Lines of a timeline; what comes later is only counted.
const LINES_MAX: usize = 20_000;

/// The eyes of a run.
pub struct Witness {
    /// The hash of everything.
    pub trace: Arc<Trace>,
    /// Situations that came up.
    pub markers: Arc<Markers>,
    oracles: Mutex<Vec<Box<dyn Oracle>>>,
    violation: Mutex<Option<Violation>>,
    timeline: Mutex<Vec<String>>,
    left_out: AtomicU64,
    /// Settles that clients were told of.
    pub settles: AtomicU64,
}

impl Witness {
    /// The eyes for a plan, with all oracles.
    pub fn new(plan: &Plan) -> Arc<Self> {
        let markers = Arc::new(Markers::default());
        Arc::new(Self {
            trace: Arc::default(),
            oracles: Mutex::new(oracles::all(plan, &markers)),
            markers,
            violation: Mutex::default(),
            timeline: Mutex::default(),
            left_out: AtomicU64::new(0),
            settles: AtomicU64::new(0),
        })
    }

    /// The broken promise, once there is one.
    pub fn violation(&self) -> Option<Violation> {
        self.violation.lock().clone()
    }

    /// Something is broken, says an oracle. The first one counts.
    pub fn broken(&self, oracle: &str, what: String, at_ms: u64) {
        let mut violation = self.violation.lock();
        if violation.is_none() {
            self.line(at_ms, &format!("BROKEN ({oracle}): {what}"));
            *violation = Some(Violation { oracle: oracle.to_owned(), what, at_ms });
        }
    }

    /// Adds to the timeline.
    pub fn line(&self, at_ms: u64, text: &str) {
        let mut timeline = self.timeline.lock();
        if timeline.len() < LINES_MAX {
            timeline.push(format!("{:>4}.{:03} s  {text}", at_ms / 1_000, at_ms % 1_000));
        } else {
            self.left_out.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// The timeline.
    pub fn timeline(&self) -> Vec<String> {
        let mut lines = self.timeline.lock().clone();
        let left_out = self.left_out.load(Ordering::Relaxed);
        if left_out > 0 {
            lines.push(format!("({left_out} more lines were left out)"));
        }
        lines
    }

    fn each(&self, at_ms: u64, mut ask: impl FnMut(&mut dyn Oracle) -> oracles::Found) {
        for oracle in self.oracles.lock().iter_mut() {
            if let Err(what) = ask(&mut **oracle) {
                self.broken(oracle.name(), what, at_ms);
            }
        }
    }

    /// A client was told something, or is about to ask.
    pub fn told(&self, told: &Told<'_>) {
        let at_ms = true_elapsed().as_millis() as u64;
        self.each(at_ms, |oracle| oracle.told(told));
    }

    /// A node began or ended a life.
    pub fn life(&self, node: usize, life: &Life, at_ms: u64) {
        if let Life::Crashed(Crash { log_batch, state_lost, .. }) = life {
            match log_batch {
                Some((Unsynced::Written, _)) => self.markers.hit("unacknowledged-write-survived"),
                Some(_) => self.markers.hit("unsynced-write-lost"),
                None if *state_lost > 0 => self.markers.hit("unsynced-write-lost"),
                None => {}
            }
        }
        self.line(at_ms, &format!("node-{}: {life}", node + 1));
        self.each(at_ms, |oracle| oracle.life(node, life));
    }

    /// A moment has passed.
    pub fn look(&self, world: &World) {
        self.each(world.now_ms(), |oracle| oracle.look(world));
    }

    /// Clients have all their answers.
    pub fn over(&self, world: &World) {
        self.each(world.now_ms(), |oracle| oracle.over());
    }

    /// Everything is over.
    pub fn audit(&self, world: &World) {
        self.each(world.now_ms(), |oracle| oracle.audit(world));
    }
}

/// Sees what one node applies and stores.
pub struct NodeWitness {
    /// Position of the node.
    pub node: usize,
    /// Where it goes.
    pub witness: Arc<Witness>,
}

impl std::fmt::Debug for NodeWitness {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("NodeWitness").field("node", &self.node).finish_non_exhaustive()
    }
}

impl NodeWitness {
    fn stored(&self, group: GroupId, write: Write<'_>) {
        let at = true_elapsed();
        let stored = Stored { node: self.node, group, write };
        self.witness.each(at.as_millis() as u64, |oracle| oracle.stored(&stored));
    }
}

impl BookObserver for NodeWitness {
    fn applied(&self, shard: ShardId, index: u64, command: &proto::Command, reply: &proto::Reply, book: &Book) {
        let at = true_elapsed();
        let bytes = [command.encode_to_vec(), reply.encode_to_vec()].concat();
        self.witness.trace.add("applied", &format!("{}/{shard}/{index}", self.node), at.as_micros() as u64, &bytes);
        let at_ms = at.as_millis() as u64;
        let applied = Applied { node: self.node, shard, index, command, reply, book, at_ms };
        self.witness.each(at_ms, |oracle| oracle.applied(&applied));
    }

    fn restored(&self, shard: ShardId, book: &Book) {
        let at_ms = true_elapsed().as_millis() as u64;
        self.witness.each(at_ms, |oracle| oracle.restored(self.node, shard, book));
    }
}

/// What tells this write from others.
fn log_bytes(op: &LogOp) -> Vec<u8> {
    match op {
        LogOp::Append(entries) => entries
            .iter()
            .flat_map(|entry| entry.index.to_le_bytes().into_iter().chain(entry.data.iter().copied()))
            .collect(),
        LogOp::Vote(bytes) | LogOp::Committed(bytes) => bytes.to_vec(),
        LogOp::TruncateAfter(last) => last.unwrap_or(u64::MAX).to_le_bytes().to_vec(),
        LogOp::Purge { index, .. } => index.to_le_bytes().to_vec(),
        LogOp::Remove => Vec::new(),
    }
}

/// What tells this step from others.
fn state_bytes(op: &StateOp) -> Vec<u8> {
    match op {
        StateOp::Write { changes, applied } => {
            let records = changes.iter().flat_map(|change| change.key.iter().chain(change.value.iter().flatten()));
            applied.iter().chain(records).copied().collect()
        }
        StateOp::Remove => Vec::new(),
    }
}

impl DiskObserver for NodeWitness {
    fn log(&self, group: GroupId, op: &LogOp) {
        let at_micros = true_elapsed().as_micros() as u64;
        self.witness.trace.add("log", &format!("{}/{group}", self.node), at_micros, &log_bytes(op));
        self.stored(group, Write::Log(op));
    }

    fn state(&self, group: GroupId, op: &StateOp) {
        let at_micros = true_elapsed().as_micros() as u64;
        self.witness.trace.add("state", &format!("{}/{group}", self.node), at_micros, &state_bytes(op));
        self.stored(group, Write::State(op));
    }

    fn snapshot(&self, group: GroupId, published: Option<&SnapshotInfo>) {
        let at_micros = true_elapsed().as_micros() as u64;
        let meta = published.map(|info| info.meta.to_vec()).unwrap_or_default();
        self.witness.trace.add("snapshot", &format!("{}/{group}", self.node), at_micros, &meta);
        self.stored(group, Write::Snapshot(published));
    }
}
