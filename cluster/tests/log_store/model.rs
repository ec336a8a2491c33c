//! A naive log store, and random histories to compare the others with.

use std::collections::{BTreeMap, BTreeSet};

use andante_cluster::{
    GroupId,
    storage::{LogEntry, LogStore, RecoveredGroup},
};
use bytes::Bytes;
use proptest::prelude::*;

use super::{Disk, Flushed, flushed, waiter};

/// One step of a history. Numbers are reduced to what makes sense at that point.
#[derive(Debug, Clone)]
pub(crate) enum Step {
    Append { group: u32, back: u64, count: u64, size: usize },
    Vote { group: u32 },
    Committed { group: u32 },
    Truncate { group: u32, at: u64 },
    Purge { group: u32, at: u64 },
    Remove { group: u32 },
    Wait,
    Reopen { close: bool },
}

const GROUPS: u32 = 4;

pub(crate) fn steps() -> impl Strategy<Value = Vec<Step>> {
    let group = 0..GROUPS;
    let step = prop_oneof![
        12 => (group.clone(), 0..4u64, 1..6u64, 0..900usize)
            .prop_map(|(group, back, count, size)| Step::Append { group, back: back.saturating_sub(1), count, size }),
        2 => group.clone().prop_map(|group| Step::Vote { group }),
        2 => group.clone().prop_map(|group| Step::Committed { group }),
        2 => (group.clone(), 0..12u64).prop_map(|(group, at)| Step::Truncate { group, at }),
        3 => (group.clone(), 0..12u64).prop_map(|(group, at)| Step::Purge { group, at }),
        1 => group.prop_map(|group| Step::Remove { group }),
        2 => Just(Step::Wait),
        1 => any::<bool>().prop_map(|close| Step::Reopen { close }),
    ];
    prop::collection::vec(step, 1..120)
}

/// The groups of a model.
pub(crate) type Groups = BTreeMap<u32, Group>;

pub(crate) fn new_groups() -> Groups {
    (0..GROUPS).map(|group| (group, Group::new())).collect()
}

/// One group of a model.
#[derive(Default, Clone)]
pub(crate) struct Group {
    vote: Option<Bytes>,
    /// The committed ids that a crash may leave: they need no sync.
    committed: BTreeSet<Option<Bytes>>,
    pub(crate) last_committed: Option<Bytes>,
    purged: Option<u64>,
    /// Empty, or consecutive.
    pub(crate) entries: Vec<LogEntry>,
}

impl Group {
    fn new() -> Self {
        Self { committed: BTreeSet::from([None]), ..Self::default() }
    }

    pub(crate) fn start(&self) -> u64 {
        self.entries.first().map_or(self.purged.map_or(1, |index| index + 1), |e| e.index)
    }

    pub(crate) fn end(&self) -> u64 {
        self.start() + self.entries.len() as u64
    }

    /// What a store must find at opening.
    pub(crate) fn recovered(&self, committed: Option<Bytes>) -> RecoveredGroup {
        RecoveredGroup {
            vote: self.vote.clone(),
            committed,
            purged: self.purged.map(|index| Bytes::from(format!("purged {index}"))),
            entries: if self.entries.is_empty() { 0..0 } else { self.start()..self.end() },
        }
    }
}

/// Runs a history on a disk and on the model, comparing what can be read after each step and what is recovered at
/// each opening.
pub(crate) async fn run(disk: &dyn Disk, steps: &[Step]) {
    let mut groups = new_groups();
    let mut store = Some(disk.open().unwrap());
    let mut waits: Vec<Flushed> = Vec::new();
    for (n, step) in steps.iter().chain([&Step::Reopen { close: true }, &Step::Reopen { close: false }]).enumerate() {
        let log = store.as_ref().unwrap().clone();
        match step {
            Step::Reopen { close } => {
                settle(&mut waits).await;
                if *close {
                    log.close().unwrap();
                    for group in groups.values_mut() {
                        group.committed = BTreeSet::from([group.last_committed.clone()]);
                    }
                }
                drop(log);
                drop(store.take());
                store = Some(disk.open().unwrap());
                compare_recovered(&**store.as_ref().unwrap(), &mut groups);
            }
            Step::Wait => settle(&mut waits).await,
            step => waits.extend(apply(&*log, &mut groups, step, n)),
        }
        for (group, model) in &groups {
            let found = store.as_ref().unwrap().read(GroupId(*group), 0..u64::MAX, usize::MAX).unwrap();
            assert_eq!(found, model.entries, "group {group} after step {n} {step:?}");
        }
    }
}

/// Waits until everything queued is durable.
async fn settle(waits: &mut Vec<Flushed>) {
    for wait in waits.drain(..) {
        flushed(wait).await.unwrap();
    }
}

/// Makes a write, numbered `n`, to a log and a model.
pub(crate) fn apply(log: &dyn LogStore, groups: &mut Groups, step: &Step, n: usize) -> Option<Flushed> {
    let (done, wait) = waiter();
    match *step {
        Step::Append { group, back, count, size } => {
            let model = groups.get_mut(&group).unwrap();
            let first = model.end().saturating_sub(back).max(model.start());
            let new: Vec<LogEntry> = (first..first + count)
                .map(|index| LogEntry { index, data: Bytes::from(vec![(n % 251) as u8 + 1; size]) })
                .collect();
            model.entries.retain(|e| e.index < first);
            model.entries.extend(new.iter().cloned());
            log.append(GroupId(group), new, done);
        }
        Step::Vote { group } => {
            let vote = Bytes::from(format!("vote {n}"));
            groups.get_mut(&group).unwrap().vote = Some(vote.clone());
            log.save_vote(GroupId(group), vote, done);
        }
        Step::Committed { group } => {
            let committed = Bytes::from(format!("committed {n}"));
            let model = groups.get_mut(&group).unwrap();
            model.committed.insert(Some(committed.clone()));
            model.last_committed = Some(committed.clone());
            log.save_committed(GroupId(group), committed);
            return None;
        }
        Step::Truncate { group, at } => {
            let model = groups.get_mut(&group).unwrap();
            let last = (model.start() + at).checked_sub(2);
            model.entries.retain(|e| last.is_some_and(|last| e.index <= last));
            log.truncate_after(GroupId(group), last, done);
        }
        Step::Purge { group, at } => {
            let model = groups.get_mut(&group).unwrap();
            let index = model.start() + at;
            model.entries.retain(|e| e.index > index);
            model.purged = Some(index);
            log.purge(GroupId(group), index, Bytes::from(format!("purged {index}")), done);
        }
        Step::Remove { group } => {
            groups.insert(group, Group::new());
            log.remove_group(GroupId(group), done);
        }
        Step::Wait | Step::Reopen { .. } => unreachable!("handled by the caller"),
    }
    Some(wait)
}

fn compare_recovered(log: &dyn LogStore, groups: &mut Groups) {
    let recovered = log.recovered();
    for (id, model) in groups {
        let found = recovered.get(&GroupId(*id)).cloned().unwrap_or_default();
        assert!(model.committed.contains(&found.committed), "group {id}: {found:?}");
        model.committed = BTreeSet::from([found.committed.clone()]);
        model.last_committed = found.committed.clone();
        assert_eq!(found, model.recovered(found.committed.clone()), "group {id}");
    }
    assert!(recovered.keys().all(|group| group.0 < GROUPS), "a group nobody made");
}
