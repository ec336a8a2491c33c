//! Histories on two kinds of disks at once: nobody who only looks at the stores can tell which is which.

use std::{collections::BTreeMap, io, ops::Range};

use andante_cluster::{
    GroupId,
    storage::{LogEntry, LogStore, RecoveredGroup},
};

use super::{
    Disk, Flushed, append, entries, flushed,
    model::{Groups, Step, apply, new_groups},
    save_vote,
};

/// What two stores must have in common after opening.
#[derive(Debug, PartialEq)]
pub(crate) struct Contents {
    recovered: BTreeMap<GroupId, RecoveredGroup>,
    entries: BTreeMap<u32, Vec<LogEntry>>,
}

pub(crate) fn contents(log: &dyn LogStore) -> Contents {
    let entries = |id| log.read(GroupId(id), 0..u64::MAX, usize::MAX).unwrap();
    Contents { recovered: log.recovered(), entries: new_groups().into_keys().map(|id| (id, entries(id))).collect() }
}

/// Writes to a store in the order of a history; what it holds then is the same with every store. That is so because a
/// committed id, which waits for no sync, never comes while a batch is on its way.
pub(crate) struct Writer {
    groups: Groups,
    waits: Vec<Flushed>,
}

impl Writer {
    pub(crate) fn new() -> Self {
        Self { groups: new_groups(), waits: Vec::new() }
    }

    /// Queues step `n`, if it is a write.
    pub(crate) async fn write(&mut self, log: &dyn LogStore, step: &Step, n: usize) {
        match step {
            Step::Wait | Step::Reopen { .. } => self.settle().await,
            Step::Committed { .. } => {
                self.settle().await;
                apply(log, &mut self.groups, step, n);
            }
            step => self.waits.extend(apply(log, &mut self.groups, step, n)),
        }
    }

    /// Waits until everything queued is durable.
    pub(crate) async fn settle(&mut self) {
        for wait in self.waits.drain(..) {
            flushed(wait).await.unwrap();
        }
    }

    /// Reads that begin, end or stop in the middle of a log, and around it.
    fn reads(&self, group: u32) -> Vec<(Range<u64>, usize)> {
        let (start, end) = (self.groups[&group].start(), self.groups[&group].end());
        let middle = start.midpoint(end);
        vec![
            (0..u64::MAX, usize::MAX),
            (start..end, 0),
            (start..end, 700),
            (middle..end, 2_000),
            (start.saturating_sub(1)..middle, usize::MAX),
            (end..end + 1, 1),
        ]
    }
}

/// Runs a history on two disks, comparing all that can be seen of them.
pub(crate) async fn run(disks: [&dyn Disk; 2], steps: &[Step]) {
    let mut stores = disks.map(|disk| disk.open().unwrap());
    let mut writers = [Writer::new(), Writer::new()];
    for (n, step) in steps.iter().chain([&Step::Reopen { close: true }, &Step::Reopen { close: false }]).enumerate() {
        for (store, writer) in stores.iter().zip(&mut writers) {
            writer.write(&**store, step, n).await;
        }
        if let Step::Reopen { close } = step {
            if *close {
                assert_eq!(closed(&*stores[0]).await, closed(&*stores[1]).await, "closed in step {n}");
            }
            drop(stores);
            stores = disks.map(|disk| disk.open().unwrap());
            assert_eq!(contents(&*stores[0]), contents(&*stores[1]), "opened in step {n}");
        }
        for group in new_groups().into_keys() {
            for (range, max_bytes) in writers[0].reads(group) {
                let [a, b] = [0, 1].map(|i| stores[i].read(GroupId(group), range.clone(), max_bytes).unwrap());
                assert_eq!(a, b, "{max_bytes} bytes of {range:?} of group {group} after step {n} {step:?}");
            }
        }
    }
}

/// Closes a store; how each call of it fails then.
async fn closed(log: &dyn LogStore) -> Vec<Option<io::ErrorKind>> {
    log.close().unwrap();
    outcomes(log).await
}

/// How calls of a store that is closed or has failed end.
pub(crate) async fn outcomes(log: &dyn LogStore) -> Vec<Option<io::ErrorKind>> {
    let group = GroupId(0);
    let (append, vote) =
        (append(log, group, entries(1_000..1_001, "late")).await, save_vote(log, group, b"late").await);
    let results = [append, vote, log.read(group, 0..1, 1).map(drop), log.close()];
    results.into_iter().map(|result| result.err().map(|error| error.kind())).collect()
}
