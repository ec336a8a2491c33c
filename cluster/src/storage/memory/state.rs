//! The twin of the state store.

use std::{collections::BTreeMap, io, mem, sync::Arc};

use bytes::Bytes;
use parking_lot::Mutex;

use crate::{
    GroupId, Record, RecordChange,
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

/// What a write does to the groups; kept until the next sync repeats it on the durable picture.
#[derive(Debug)]
enum Step {
    Write(GroupId, Vec<RecordChange>, Bytes),
    Remove(GroupId),
}

fn perform(groups: &mut Groups, step: &Step) {
    match step {
        Step::Write(group, changes, applied) => {
            let group = groups.entry(*group).or_default();
            for change in changes {
                match &change.value {
                    Some(value) => drop(group.records.insert(change.key.clone(), value.clone())),
                    None => drop(group.records.remove(&change.key)),
                }
            }
            group.applied = applied.clone();
        }
        Step::Remove(group) => drop(groups.remove(group)),
    }
}

#[derive(Debug, Default)]
struct Disk {
    durable: Groups,
    /// Counts the opens; a store of an older one is dead.
    opened: u64,
}

/// What survives a crash.
#[derive(Debug, Clone, Default)]
pub struct MemoryStateDisk(Arc<Mutex<Disk>>);

impl MemoryStateDisk {
    /// An empty disk.
    pub fn new() -> Self {
        Self::default()
    }

    /// Opens a store that shows what was synced.
    pub fn open(&self) -> MemoryState {
        let mut disk = self.0.lock();
        disk.opened += 1;
        MemoryState {
            disk: self.clone(),
            opened: disk.opened,
            live: Mutex::new(Live { groups: disk.durable.clone(), unsynced: Vec::new(), closed: false }),
        }
    }

    /// What a crash now would leave, as a disk of its own.
    pub fn image(&self) -> Self {
        let durable = self.0.lock().durable.clone();
        Self(Arc::new(Mutex::new(Disk { durable, opened: 0 })))
    }

    /// Damages a group's durable records: stores opened from now on report `InvalidData` when they load it.
    pub fn damage(&self, group: GroupId) {
        if let Some(group) = self.0.lock().durable.get_mut(&group) {
            group.damaged = true;
        }
    }
}

#[derive(Debug)]
struct Live {
    groups: Groups,
    unsynced: Vec<Step>,
    closed: bool,
}

impl Live {
    fn take(&mut self, step: Step) {
        perform(&mut self.groups, &step);
        self.unsynced.push(step);
    }
}

/// An open in-memory state store.
#[derive(Debug)]
pub struct MemoryState {
    disk: MemoryStateDisk,
    opened: u64,
    live: Mutex<Live>,
}

impl MemoryState {
    fn live<T>(&self, call: impl FnOnce(&mut Live, &mut Disk) -> io::Result<T>) -> io::Result<T> {
        let mut live = self.live.lock();
        let mut disk = self.disk.0.lock();
        if live.closed || disk.opened != self.opened {
            return Err(io::Error::other("the state store is closed"));
        }
        call(&mut live, &mut disk)
    }

    fn sync_to(live: &mut Live, disk: &mut Disk) {
        for step in mem::take(&mut live.unsynced) {
            perform(&mut disk.durable, &step);
        }
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
        self.live(|live, _| {
            live.take(Step::Write(group, changes.to_vec(), Bytes::copy_from_slice(applied)));
            Ok(())
        })
    }

    fn sync(&self) -> io::Result<()> {
        self.live(|live, disk| {
            Self::sync_to(live, disk);
            Ok(())
        })
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
        self.live(|live, disk| {
            live.take(Step::Write(group, changes, Bytes::copy_from_slice(applied)));
            Self::sync_to(live, disk);
            Ok(())
        })
    }

    fn remove_group(&self, group: GroupId) -> io::Result<()> {
        self.live(|live, disk| {
            live.take(Step::Remove(group));
            Self::sync_to(live, disk);
            Ok(())
        })
    }

    fn close(&self) -> io::Result<()> {
        self.live(|live, disk| {
            Self::sync_to(live, disk);
            live.closed = true;
            Ok(())
        })
    }

    fn size_bytes(&self) -> u64 {
        let live = self.live.lock();
        let records = live.groups.values().flat_map(|group| &group.records);
        records.map(|(key, value)| (key.len() + value.len()) as u64).sum()
    }
}
