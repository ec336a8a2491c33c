//! Random histories that crash with writes on their way, waiting for none of them.

use std::{collections::BTreeMap, time::Duration};

use andante_cluster::{
    GroupId,
    storage::{LogEntry, LogStore, RecoveredGroup},
};

use super::{
    Disk, Flushed,
    model::{Group, Groups, Step, apply, new_groups},
};

/// Runs a history on a disk whose groups are empty. After each opening, the log must be as it was after one of the
/// writes, in the order of the calls: none that was acknowledged is missing.
pub(crate) async fn run(disk: &dyn Disk, steps: &[Step]) {
    let mut groups = new_groups();
    // The state after each write since the last opening, and the callbacks with their states' places.
    let mut states = vec![groups.clone()];
    let mut waits: Vec<(usize, Flushed)> = Vec::new();
    let mut store = Some(disk.open().unwrap());
    for (n, step) in steps.iter().chain([&Step::Reopen { close: false }]).enumerate() {
        let log = store.take().unwrap();
        match step {
            Step::Wait => tokio::time::sleep(Duration::from_millis(5)).await,
            Step::Reopen { close } => {
                let mut durable = 0;
                if *close {
                    log.close().unwrap();
                    durable = states.len() - 1;
                }
                for (state, mut wait) in waits.drain(..) {
                    if matches!(wait.try_recv(), Ok(Ok(()))) {
                        durable = durable.max(state);
                    }
                }
                drop(log);
                store = Some(disk.open().unwrap());
                let found = observe(&**store.as_ref().unwrap());
                let survived = states.drain(durable..).find(|state| expected(state) == found);
                groups = survived.unwrap_or_else(|| panic!("step {n}: {found:?} is no state since {durable}"));
                states = vec![groups.clone()];
                continue;
            }
            step => {
                let wait = apply(&*log, &mut groups, step, n);
                waits.extend(wait.map(|wait| (states.len(), wait)));
                states.push(groups.clone());
            }
        }
        store = Some(log);
    }
}

type Observed = BTreeMap<u32, (RecoveredGroup, Vec<LogEntry>)>;

fn expected(state: &Groups) -> Observed {
    let of_group = |group: &Group| (group.recovered(group.last_committed.clone()), group.entries.clone());
    state.iter().map(|(id, group)| (*id, of_group(group))).collect()
}

fn observe(log: &dyn LogStore) -> Observed {
    let mut recovered = log.recovered();
    let entries = |id| log.read(GroupId(id), 0..u64::MAX, usize::MAX).unwrap();
    new_groups().into_keys().map(|id| (id, (recovered.remove(&GroupId(id)).unwrap_or_default(), entries(id)))).collect()
}
