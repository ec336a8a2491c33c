//! Random histories of a state store, with crashes, against a model.

use std::collections::BTreeMap;

use andante_cluster::{GroupId, RecordChange, storage::StateStore};
use proptest::prelude::*;

use super::{Records, bytes, disks::Disk, records_iter, state};

/// One step of a random history.
#[derive(Debug, Clone)]
pub(super) enum Op {
    Write(u8, Vec<(u8, Option<u16>)>),
    Replace(u8, BTreeMap<u8, u16>),
    Remove(u8),
    Sync,
    Reopen,
    Crash,
}

pub(super) fn op() -> impl Strategy<Value = Op> {
    // Lengths around the limits of heads and chunks, and small ones.
    let length = prop_oneof![6 => 0..60u16, 2 => 3_980..4_005u16, 1 => 7_970..8_010u16, 1 => 0..30_000u16];
    let changes = prop::collection::vec((0..12u8, prop::option::weighted(0.7, length.clone())), 0..6);
    let records = prop::collection::btree_map(0..12u8, length, 0..6);
    prop_oneof![
        10 => (0..3u8, changes).prop_map(|(group, changes)| Op::Write(group, changes)),
        2 => (0..3u8, records).prop_map(|(group, records)| Op::Replace(group, records)),
        1 => (0..3u8).prop_map(Op::Remove),
        3 => Just(Op::Sync),
        1 => Just(Op::Reopen),
        1 => Just(Op::Crash),
    ]
}

/// Markers and records of all groups.
pub(super) type Model = BTreeMap<GroupId, (Vec<u8>, Records)>;

/// Runs random histories on empty disks of the same kind as `disk`.
pub(crate) fn check_random_histories(disk: &dyn Disk) {
    let mut runner = proptest::test_runner::TestRunner::new(ProptestConfig { cases: 40, ..Default::default() });
    runner
        .run(&prop::collection::vec(op(), 1..40), |ops| {
            check_history(disk.empty(), ops);
            Ok(())
        })
        .unwrap();
}

fn check_history(mut disk: Box<dyn Disk>, ops: Vec<Op>) {
    let mut store = disk.open();
    let mut model = Model::new();
    // The states since the last sync: a crash may lead back to any of them.
    let mut history = vec![model.clone()];
    for (n, op) in ops.into_iter().enumerate() {
        let marker = vec![n as u8; n % 3];
        match op {
            Op::Write(group, changes) => {
                let group = GroupId(group.into());
                let changes = changes_of(&changes, n);
                store.write(group, &changes, &marker).unwrap();
                let (applied, records) = model.entry(group).or_default();
                *applied = marker;
                for RecordChange { key, value } in changes {
                    match value {
                        Some(value) => drop(records.insert(key, value)),
                        None => drop(records.remove(&key)),
                    }
                }
                history.push(model.clone());
            }
            Op::Replace(group, records) => {
                let group = GroupId(group.into());
                let records = records_of_step(&records, n);
                store.replace(group, &mut records_iter(&records), &marker).unwrap();
                model.insert(group, (marker, records));
                history = vec![model.clone()];
            }
            Op::Remove(group) => {
                store.remove_group(GroupId(group.into())).unwrap();
                model.remove(&GroupId(group.into()));
                history = vec![model.clone()];
            }
            Op::Sync => {
                store.sync().unwrap();
                history = vec![model.clone()];
            }
            Op::Reopen => {
                store.close().unwrap();
                store = disk.open();
                history = vec![model.clone()];
            }
            Op::Crash => {
                let image = disk.image();
                drop(store);
                disk = image;
                store = disk.open();
                model = observe(&*store);
                assert!(history.contains(&model), "a crash led to a state that never was");
                history = vec![model.clone()];
            }
        }
        assert!(observe(&*store) == model, "step {n}");
    }
}

fn key(number: u8) -> Vec<u8> {
    vec![number, number / 3]
}

/// The changes of step `n`, from numbers of keys and lengths of values.
pub(super) fn changes_of(changes: &[(u8, Option<u16>)], n: usize) -> Vec<RecordChange> {
    let change = |(k, length): &(u8, Option<u16>)| {
        let value = length.map(|length| bytes(length.into(), n as u8));
        RecordChange { key: key(*k), value }
    };
    changes.iter().map(change).collect()
}

/// The records of step `n`, likewise.
pub(super) fn records_of_step(records: &BTreeMap<u8, u16>, n: usize) -> Records {
    records.iter().map(|(k, length)| (key(*k), bytes((*length).into(), n as u8))).collect()
}

pub(super) fn observe(store: &dyn StateStore) -> Model {
    let groups = (0..3).map(|group| (GroupId(group), state(store, GroupId(group))));
    groups.filter_map(|(group, (marker, records))| Some((group, (marker?, records)))).collect()
}
