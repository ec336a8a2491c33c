//! One group's log and machine, without a host.

use std::sync::Arc;

use andante_cluster::{
    GroupId,
    env::{Blocking, OsThreads},
    host::Fatal,
    raft::{
        Flusher, Replica, SnapshotPermits,
        codec::{Applied, decode_applied},
        log::{FlushGate, GroupLog},
        machine::{GroupMachine, GroupStores},
    },
    storage::{LogStore, SnapshotStore, StateStore, memory::MemoryStores},
};
use tokio::task::AbortHandle;

use super::Counters;

pub(crate) const GROUP: GroupId = GroupId(1);

/// One group's log and machine.
pub(crate) struct Storage {
    pub(crate) log: GroupLog,
    pub(crate) replica: Arc<Replica>,
    pub(crate) stores: Arc<GroupStores>,
    flusher: AbortHandle,
}

impl Drop for Storage {
    fn drop(&mut self) {
        self.flusher.abort();
    }
}

impl Storage {
    /// `gate`: what counts as flushed, if not the log.
    pub(crate) fn open(
        log: Arc<dyn LogStore>,
        state: Arc<dyn StateStore>,
        snapshots: Arc<dyn SnapshotStore>,
        gate: Option<FlushGate>,
    ) -> Self {
        Self::open_group(GROUP, log, state, snapshots, gate)
    }

    fn open_group(
        group: GroupId,
        log: Arc<dyn LogStore>,
        state: Arc<dyn StateStore>,
        snapshots: Arc<dyn SnapshotStore>,
        gate: Option<FlushGate>,
    ) -> Self {
        let blocking: Arc<dyn Blocking> = Arc::new(OsThreads);
        let found = log.recovered().remove(&group).unwrap_or_default();
        let log = GroupLog::open(log, group, found, Fatal::default()).expect("decodes");
        let flusher = Flusher::new(state.clone(), blocking.clone(), Fatal::default());
        let gate = gate.unwrap_or_else(|| log.gate().clone());
        let replica = flusher.add(group, Box::<Counters>::default(), Applied::default(), gate);
        let run = tokio::spawn(flusher.clone().run()).abort_handle();
        let permits = SnapshotPermits::default();
        Self {
            log,
            replica,
            stores: Arc::new(GroupStores { state, snapshots, blocking, flusher, permits }),
            flusher: run,
        }
    }

    pub(crate) fn in_memory(memory: &MemoryStores, gate: Option<FlushGate>) -> Self {
        Self::open(memory.log.open(), Arc::new(memory.state.open()), Arc::new(memory.snapshots.open()), gate)
    }

    /// One of several groups, with stores of its own.
    pub(crate) fn of_group(group: GroupId, memory: &MemoryStores) -> Self {
        let (state, snapshots) = (Arc::new(memory.state.open()), Arc::new(memory.snapshots.open()));
        Self::open_group(group, memory.log.open(), state, snapshots, None)
    }

    pub(crate) fn machine(&self) -> GroupMachine {
        GroupMachine::new(self.replica.clone(), self.stores.clone())
    }

    pub(crate) fn marker(&self) -> Option<u64> {
        let marker = self.stores.state.applied(GROUP).expect("readable")?;
        decode_applied(marker).expect("decodes").last.map(|id| id.index)
    }
}
