//! The twin of the state store.

use std::{collections::BTreeMap, io, mem, sync::Arc};

use bytes::Bytes;
use parking_lot::Mutex;

use super::faults::{Faults, Unsynced};
use crate::{
    GroupId, Record, RecordChange,
    env::Rng,
    storage::{StateStore, check_ascending, check_key, invalid_data},
};

/// One group's records and marker.
#[derive(Debug, Clone, Default)]
struct Group {
    records: BTreeMap<Vec<u8>, Vec<u8>>,
    applied: Bytes,
    damaged: bool,
}

type Groups = BTreeMap<GroupId, Group>;

/// One step of a group's records: durable as a whole or not at all.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StateOp {
    /// Changed records, and the marker they lead to. A group that is replaced is removed first.
    Write {
        /// The last change of a key counts.
        changes: Vec<RecordChange>,
        /// The marker.
        applied: Bytes,
    },
    /// Every trace of the group was removed.
    Remove,
}

fn perform(groups: &mut Groups, group: GroupId, op: &StateOp) {
    match op {
        StateOp::Write { changes, applied } => {
            let group = groups.entry(group).or_default();
            for change in changes {
                match &change.value {
                    Some(value) => drop(group.records.insert(change.key.clone(), value.clone())),
                    None => drop(group.records.remove(&change.key)),
                }
            }
            group.applied = applied.clone();
        }
        StateOp::Remove => drop(groups.remove(&group)),
    }
}

#[derive(Default)]
struct Disk {
    durable: Groups,
    /// What the open store has written since its last sync.
    unsynced: Vec<(GroupId, StateOp)>,
    /// Counts opens and crashes: a store that was opened before the last one is dead.
    opened: u64,
    faults: Faults,
}

impl Disk {
    fn sync(&mut self) -> io::Result<()> {
        if !self.unsynced.is_empty() {
            self.faults.check_space()?;
        }
        let (unsynced, result) = self.faults.sync();
        let durable = match unsynced {
            Unsynced::Lost => 0,
            Unsynced::Torn => self.unsynced.len() / 2,
            Unsynced::Written => self.unsynced.len(),
        };
        self.settle(durable);
        result
    }

    /// Makes the first unsynced steps durable and forgets the others. Gives how many these were.
    fn settle(&mut self, durable: usize) -> usize {
        let mut unsynced = mem::take(&mut self.unsynced).into_iter();
        for (group, op) in unsynced.by_ref().take(durable) {
            self.faults.observed(|observer| observer.state(group, &op));
            perform(&mut self.durable, group, &op);
        }
        unsynced.len()
    }

    /// Ends the open store, if there is one.
    fn cut_off(&mut self, durable: usize) -> usize {
        self.opened += 1;
        self.settle(durable)
    }
}

/// What survives a crash.
#[derive(Clone, Default)]
pub struct MemoryStateDisk(Arc<Mutex<Disk>>);

impl MemoryStateDisk {
    /// An empty disk.
    pub fn new() -> Self {
        Self::default()
    }

    /// Opens a store that shows what was synced.
    pub fn open(&self) -> MemoryState {
        let mut disk = self.0.lock();
        disk.cut_off(0);
        MemoryState {
            disk: self.clone(),
            opened: disk.opened,
            live: Mutex::new(Live { groups: disk.durable.clone(), ended: None }),
        }
    }

    /// The disk as it is now, as one of its own: opened, it shows what was synced; crashed, a part of the rest too.
    pub fn image(&self) -> Self {
        let disk = self.0.lock();
        let (durable, unsynced) = (disk.durable.clone(), disk.unsynced.clone());
        Self(Arc::new(Mutex::new(Disk { durable, unsynced, ..Disk::default() })))
    }

    /// Damages a group's durable records: stores opened from now on report `InvalidData` when they load it.
    pub fn damage(&self, group: GroupId) {
        if let Some(group) = self.0.lock().durable.get_mut(&group) {
            group.damaged = true;
        }
    }

    /// Cuts off open stores. A drawn number of the first unsynced steps is durable; gives it, and how many are lost.
    pub(super) fn crash(&self, rng: &dyn Rng) -> (usize, usize) {
        let mut disk = self.0.lock();
        let durable = (rng.u64() % (disk.unsynced.len() as u64 + 1)) as usize;
        (durable, disk.cut_off(durable))
    }

    pub(super) fn wipe(&self) {
        let mut disk = self.0.lock();
        disk.cut_off(0);
        disk.durable.clear();
    }

    pub(super) fn faults<T>(&self, call: impl FnOnce(&mut Faults) -> T) -> T {
        call(&mut self.0.lock().faults)
    }
}

struct Live {
    /// As seen by readers: durable or not.
    groups: Groups,
    /// Why no call succeeds any more.
    ended: Option<&'static str>,
}

/// An open in-memory state store.
pub struct MemoryState {
    disk: MemoryStateDisk,
    opened: u64,
    live: Mutex<Live>,
}

impl MemoryState {
    fn live<T>(&self, call: impl FnOnce(&mut Live, &mut Disk) -> io::Result<T>) -> io::Result<T> {
        let mut live = self.live.lock();
        let mut disk = self.disk.0.lock();
        if disk.opened != self.opened {
            return Err(io::Error::other("the disk was opened again or crashed"));
        }
        match live.ended {
            None => call(&mut live, &mut disk),
            Some(why) => Err(io::Error::other(why)),
        }
    }

    /// Changes something. An error is final.
    fn change(&self, call: impl FnOnce(&mut Live, &mut Disk) -> io::Result<()>) -> io::Result<()> {
        self.live(|live, disk| {
            call(live, disk)
                .inspect_err(|_| live.ended = Some("the state store failed before; it has to be opened again"))
        })
    }
}

impl Live {
    fn take(&mut self, disk: &mut Disk, group: GroupId, op: StateOp) -> io::Result<()> {
        disk.faults.check_space()?;
        perform(&mut self.groups, group, &op);
        disk.unsynced.push((group, op));
        Ok(())
    }

    fn take_and_sync(&mut self, disk: &mut Disk, group: GroupId, op: StateOp) -> io::Result<()> {
        self.take(disk, group, op)?;
        disk.sync()
    }
}

impl StateStore for MemoryState {
    fn applied(&self, group: GroupId) -> io::Result<Option<Bytes>> {
        self.live(|live, _| Ok(live.groups.get(&group).map(|g| g.applied.clone())))
    }

    fn write(&self, group: GroupId, changes: &[RecordChange], applied: &[u8]) -> io::Result<()> {
        for change in changes {
            check_key(&change.key)?;
        }
        let op = StateOp::Write { changes: changes.to_vec(), applied: Bytes::copy_from_slice(applied) };
        self.change(|live, disk| live.take(disk, group, op))
    }

    fn sync(&self) -> io::Result<()> {
        self.change(|_, disk| disk.sync())
    }

    fn load(&self, group: GroupId, each: &mut dyn FnMut(Record)) -> io::Result<()> {
        let found = self.live(|live, _| Ok(live.groups.get(&group).cloned().unwrap_or_default()))?;
        if found.damaged {
            return Err(invalid_data(format!("records of {group} are damaged")));
        }
        for (key, value) in found.records {
            each(Record { key, value });
        }
        Ok(())
    }

    fn replace(&self, group: GroupId, records: &mut dyn Iterator<Item = Record>, applied: &[u8]) -> io::Result<()> {
        self.remove_group(group)?;
        // The iterator runs outside the lock: it is the caller's code, and may call back or fail.
        let mut changes = Vec::new();
        for record in records {
            check_ascending(changes.last().map_or(&[], |last: &RecordChange| &last.key), &record.key)?;
            changes.push(RecordChange { key: record.key, value: Some(record.value) });
        }
        let op = StateOp::Write { changes, applied: Bytes::copy_from_slice(applied) };
        self.change(|live, disk| live.take_and_sync(disk, group, op))
    }

    fn remove_group(&self, group: GroupId) -> io::Result<()> {
        self.change(|live, disk| live.take_and_sync(disk, group, StateOp::Remove))
    }

    fn close(&self) -> io::Result<()> {
        self.sync()?;
        self.live(|live, _| {
            live.ended = Some("the state store is closed");
            Ok(())
        })
    }

    fn size_bytes(&self) -> u64 {
        let live = self.live.lock();
        let records = live.groups.values().flat_map(|group| &group.records);
        records.map(|(key, value)| (key.len() + value.len()) as u64).sum()
    }
}
