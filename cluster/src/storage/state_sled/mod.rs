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
    io,
    path::Path,
    sync::Arc,
};

use bytes::Bytes;
use parking_lot::Mutex;

use self::{
    db::Db,
    layout::{Head, Marker, Totals},
};
use super::{StateStore, check_ascending, check_key, invalid_data};
use crate::{GroupId, Record, RecordChange};

/// Most bytes and keys in one batch of [`StateStore::replace`], [`StateStore::remove_group`] and the like, which have
/// no need to be atomic: enough to make the cost of a batch small, few enough to keep sled's buffers small.
const BATCH_BYTES: usize = 1 << 20;
const BATCH_KEYS: usize = 1_024;

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
        if self.db.write(|sled| sled.remove(layout::marker_key(group)))?.is_some() {
            self.db.sync()?;
        }
        Ok(())
    }

    /// Removes all that a group without marker still has; not synced.
    fn remove_remains(&self, group: GroupId) -> io::Result<()> {
        let mut batch = BulkBatch::new(&self.db);
        let mut keys = self.db.read(|sled| Ok(sled.scan_prefix(layout::group_prefix(group)).keys()))?;
        while let Some(key) = self.db.read(|_| keys.next().transpose())? {
            batch.remove(key)?;
        }
        batch.apply()
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
        let mut batch = sled::Batch::default();
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
                    batch.insert(layout::chunk_key(&head_key, new_chunks), chunk);
                    new_chunks += 1;
                }
                batch.insert(head_key.as_slice(), layout::head(hash, value)?);
            } else {
                batch.remove(head_key.as_slice());
            }
            for stale in new_chunks..old_chunks {
                batch.remove(layout::chunk_key(&head_key, stale));
            }
        }
        let marker = Marker { applied: Bytes::copy_from_slice(applied), totals };
        batch.insert(&layout::marker_key(group), marker.encode());
        self.db.write(|sled| sled.apply_batch(batch))
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
        let mut batch = BulkBatch::new(&self.db);
        let mut last_key = Vec::new();
        for Record { key, value } in records {
            check_ascending(&last_key, &key)?;
            let head_key = layout::head_key(group, &key);
            let hash = layout::record_hash(&head_key, &value);
            totals.add(hash);
            for (number, chunk) in (0..).zip(layout::following(&value)) {
                batch.insert(layout::chunk_key(&head_key, number), chunk)?;
            }
            let head = layout::head(hash, &value)?;
            batch.insert(head_key, &head)?;
            last_key = key;
        }
        batch.apply()?;
        self.db.sync()?;
        let marker = Marker { applied: Bytes::copy_from_slice(applied), totals };
        self.db.write(|sled| sled.insert(layout::marker_key(group), marker.encode()))?;
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

/// Many changes that need not be atomic, in batches of a bounded size.
struct BulkBatch<'a> {
    db: &'a Db,
    batch: sled::Batch,
    bytes: usize,
    keys: usize,
}

impl<'a> BulkBatch<'a> {
    fn new(db: &'a Db) -> Self {
        Self { db, batch: sled::Batch::default(), bytes: 0, keys: 0 }
    }

    fn insert(&mut self, key: Vec<u8>, value: &[u8]) -> io::Result<()> {
        self.bytes += key.len() + value.len();
        self.batch.insert(key, value);
        self.count()
    }

    fn remove(&mut self, key: sled::IVec) -> io::Result<()> {
        self.bytes += key.len();
        self.batch.remove(key);
        self.count()
    }

    fn count(&mut self) -> io::Result<()> {
        self.keys += 1;
        if self.bytes >= BATCH_BYTES || self.keys >= BATCH_KEYS { self.apply() } else { Ok(()) }
    }

    fn apply(&mut self) -> io::Result<()> {
        (self.bytes, self.keys) = (0, 0);
        let batch = std::mem::take(&mut self.batch);
        self.db.write(|sled| sled.apply_batch(batch))
    }
}
