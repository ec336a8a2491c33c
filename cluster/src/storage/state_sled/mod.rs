//! The state store on sled: one database per node, one tree for all its groups (layout in `layout.rs`).
//!
//! What is not synced may be lost after an abrupt stop, as may be the order in which it was written. The totals in a
//! group's marker make that visible: [`StateStore::load`] either gives exactly the records of the marker, or
//! `InvalidData`. (sled repairs what it takes for a torn tail by going back to an earlier batch. That is an older
//! state with its older marker, which the log leads on from.)

mod db;
mod layout;

use std::{
    collections::{BTreeMap, HashMap},
    io, mem,
    path::Path,
    sync::Arc,
};

use bytes::Bytes;
use parking_lot::Mutex;

use self::{
    db::{Batch, Db},
    layout::{Head, Marker, Totals},
};
use super::{StateStore, check_ascending, check_key, invalid_data};
use crate::{GroupId, Record, RecordChange};

/// Size of a batch in [`StateStore::replace`] and [`StateStore::remove_group`], which have no need to be atomic: large
/// enough to make the syncs between batches cheap, small enough to keep sled's buffers small.
const BULK_BYTES: usize = 1 << 20;

/// The state store on sled.
pub struct SledState {
    db: Db,
    /// A write reads what it replaces, so each group has one writer (or loader) at a time.
    groups: Mutex<HashMap<GroupId, Arc<Mutex<()>>>>,
}

impl SledState {
    /// Opens or creates the store in a directory of its own. `InvalidData`: the directory is damaged; sled may have
    /// changed it further, so nothing in it is to be trusted.
    pub fn open(dir: &Path) -> io::Result<Self> {
        Ok(Self { db: Db::open(dir)?, groups: Mutex::default() })
    }

    /// The lock of a group.
    fn group(&self, group: GroupId) -> Arc<Mutex<()>> {
        self.groups.lock().entry(group).or_default().clone()
    }

    fn marker(&self, group: GroupId) -> io::Result<Option<Marker>> {
        let found = self.db.read(|sled| sled.get(layout::marker_key(group)))?;
        found.map(|value| Marker::decode(&value)).transpose()
    }

    /// Removes a group's marker, durably: from here on its records mean nothing.
    fn remove_marker(&self, group: GroupId) -> io::Result<()> {
        let key = layout::marker_key(group);
        if self.db.read(|sled| sled.contains_key(key))? {
            let mut batch = Batch::default();
            batch.remove(&key);
            self.db.write(batch)?;
            self.db.sync()?;
        }
        Ok(())
    }

    /// Removes all that a group without marker still has; not synced.
    fn remove_remains(&self, group: GroupId) -> io::Result<()> {
        let mut batch = Batch::default();
        let mut keys = self.db.read(|sled| Ok(sled.scan_prefix(layout::group_prefix(group)).keys()))?;
        while let Some(key) = self.db.read(|_| keys.next().transpose())? {
            batch.remove(&key);
            self.write_if_large(&mut batch)?;
        }
        self.db.write(batch)
    }

    /// Writes and empties a batch that has grown large enough, where changes need not be atomic.
    fn write_if_large(&self, batch: &mut Batch) -> io::Result<()> {
        if batch.cost_bytes() >= BULK_BYTES { self.db.write(mem::take(batch)) } else { Ok(()) }
    }

    /// A value, from its head and what follows it.
    fn value(&self, head_key: &[u8], head: Head<'_>) -> io::Result<Vec<u8>> {
        let mut value = head.beginning.to_vec();
        for number in 0..head.chunks() {
            let chunk = self.db.read(|sled| sled.get(layout::chunk_key(head_key, number)))?;
            value.extend_from_slice(&chunk.ok_or_else(|| invalid_data("a part of a long record is missing"))?);
        }
        if value.len() != head.length || layout::record_hash(head_key, &value) != head.hash {
            return Err(invalid_data("a record is damaged"));
        }
        Ok(value)
    }
}

impl StateStore for SledState {
    fn applied(&self, group: GroupId) -> io::Result<Option<Bytes>> {
        Ok(self.marker(group)?.map(|marker| marker.applied))
    }

    fn write(&self, group: GroupId, changes: &[RecordChange], applied: &[u8]) -> io::Result<()> {
        let mut last_of_key = BTreeMap::new();
        for change in changes {
            check_key(&change.key)?;
            last_of_key.insert(&change.key, change.value.as_deref());
        }
        let lock = self.group(group);
        let _writing = lock.lock();
        let mut totals = match self.marker(group)? {
            Some(marker) => marker.totals,
            None => {
                self.remove_remains(group)?;
                Totals::default()
            }
        };
        let mut batch = Batch::default();
        for (key, value) in last_of_key {
            let head_key = layout::head_key(group, key);
            let mut old_chunks = 0;
            if let Some(old) = self.db.read(|sled| sled.get(&head_key))? {
                let old = Head::decode(&old)?;
                totals.remove(old.hash)?;
                old_chunks = old.chunks();
            }
            let mut new_chunks = 0;
            if let Some(value) = value {
                let hash = layout::record_hash(&head_key, value);
                totals.add(hash);
                for chunk in layout::following(value) {
                    batch.insert(&layout::chunk_key(&head_key, new_chunks), chunk);
                    new_chunks += 1;
                }
                batch.insert(&head_key, &layout::head(hash, value)?);
            } else {
                batch.remove(&head_key);
            }
            for stale in new_chunks..old_chunks {
                batch.remove(&layout::chunk_key(&head_key, stale));
            }
        }
        let marker = Marker { applied: Bytes::copy_from_slice(applied), totals };
        batch.insert(&layout::marker_key(group), &marker.encode());
        self.db.write(batch)
    }

    fn sync(&self) -> io::Result<()> {
        self.db.sync()
    }

    fn load(&self, group: GroupId, each: &mut dyn FnMut(Record)) -> io::Result<()> {
        let lock = self.group(group);
        let _loading = lock.lock();
        let Some(marker) = self.marker(group)? else { return Ok(()) };
        let mut totals = Totals::default();
        let mut heads = self.db.read(|sled| Ok(sled.scan_prefix(layout::heads_prefix(group))))?;
        while let Some((head_key, head)) = self.db.read(|_| heads.next().transpose())? {
            let head = Head::decode(&head)?;
            let value = self.value(&head_key, head)?;
            totals.add(head.hash);
            each(Record { key: layout::key_of(&head_key).to_vec(), value });
        }
        if totals != marker.totals {
            return Err(invalid_data(format!("records of {group} are missing or not those of its marker")));
        }
        Ok(())
    }

    fn replace(&self, group: GroupId, records: &mut dyn Iterator<Item = Record>, applied: &[u8]) -> io::Result<()> {
        let lock = self.group(group);
        let _writing = lock.lock();
        self.remove_marker(group)?;
        self.remove_remains(group)?;
        let mut totals = Totals::default();
        let mut batch = Batch::default();
        let mut last_key = Vec::new();
        for Record { key, value } in records {
            check_ascending(&last_key, &key)?;
            let head_key = layout::head_key(group, &key);
            let hash = layout::record_hash(&head_key, &value);
            totals.add(hash);
            for (number, chunk) in (0..).zip(layout::following(&value)) {
                batch.insert(&layout::chunk_key(&head_key, number), chunk);
                self.write_if_large(&mut batch)?;
            }
            batch.insert(&head_key, &layout::head(hash, &value)?);
            self.write_if_large(&mut batch)?;
            last_key = key;
        }
        self.db.write(batch)?;
        self.db.sync()?;
        let marker = Marker { applied: Bytes::copy_from_slice(applied), totals };
        let mut batch = Batch::default();
        batch.insert(&layout::marker_key(group), &marker.encode());
        self.db.write(batch)?;
        self.db.sync()
    }

    fn remove_group(&self, group: GroupId) -> io::Result<()> {
        let lock = self.group(group);
        let _writing = lock.lock();
        self.remove_marker(group)?;
        self.remove_remains(group)?;
        self.db.sync()
    }

    fn close(&self) -> io::Result<()> {
        self.db.close()
    }

    fn size_bytes(&self) -> u64 {
        self.db.size_bytes()
    }
}
