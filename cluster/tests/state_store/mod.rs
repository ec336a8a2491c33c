//! What the checks of state stores share.

mod crash;
mod damage;
pub(crate) mod disks;
pub(crate) mod history;
mod side_by_side;

use std::{collections::BTreeMap, io};

use andante_cluster::{GroupId, Record, RecordChange, storage::StateStore};

pub(crate) const G1: GroupId = GroupId(1);
pub(crate) const G2: GroupId = GroupId(2);

/// A group's records.
pub(crate) type Records = BTreeMap<Vec<u8>, Vec<u8>>;

pub(crate) fn set(key: &[u8], value: impl Into<Vec<u8>>) -> RecordChange {
    RecordChange { key: key.to_vec(), value: Some(value.into()) }
}

pub(crate) fn delete(key: &[u8]) -> RecordChange {
    RecordChange { key: key.to_vec(), value: None }
}

/// Bytes that differ from place to place, so that no mix-up of parts goes unseen.
pub(crate) fn bytes(length: usize, seed: u8) -> Vec<u8> {
    (0..length).map(|i| (i / 256) as u8 ^ (i as u8).wrapping_mul(31) ^ seed).collect()
}

pub(crate) fn keys_in_order(store: &dyn StateStore, group: GroupId) -> Vec<Vec<u8>> {
    let mut keys = Vec::new();
    store.load(group, &mut |record| keys.push(record.key)).unwrap();
    keys
}

pub(crate) fn load(store: &dyn StateStore, group: GroupId) -> io::Result<Records> {
    let mut records = Records::new();
    store.load(group, &mut |Record { key, value }| {
        assert!(records.insert(key, value).is_none(), "a record came twice");
    })?;
    Ok(records)
}

/// Marker and records of a group.
pub(crate) fn state(store: &dyn StateStore, group: GroupId) -> (Option<Vec<u8>>, Records) {
    (store.applied(group).unwrap().map(Vec::from), load(store, group).unwrap())
}

pub(crate) fn records_of(pairs: &[(&[u8], Vec<u8>)]) -> Records {
    pairs.iter().map(|(key, value)| (key.to_vec(), value.clone())).collect()
}

pub(crate) fn records_iter(records: &Records) -> impl Iterator<Item = Record> + use<> {
    records.clone().into_iter().map(|(key, value)| Record { key, value })
}
