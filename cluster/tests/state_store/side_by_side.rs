//! Histories on the twin and on sled at once: nobody who only looks at the stores can tell which is which.

use std::{io, iter};

use andante_cluster::{GroupId, Record, storage::StateStore};
use proptest::prelude::*;

use super::{
    disks::{Disk, SledDisk, TwinDisk},
    history::{Op, changes_of, observe, op, records_of_step},
    records_iter, set,
};

/// One step of a history, which may be a caller's mistake.
#[derive(Debug, Clone)]
enum Step {
    Good(Op),
    BadKey(u8),
    OutOfOrder(u8),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        12 => op().prop_map(Step::Good),
        1 => (0..3u8).prop_map(Step::BadKey),
        1 => (0..3u8).prop_map(Step::OutOfOrder),
    ]
}

/// An outcome, without the text of an error.
fn kind<T>(result: io::Result<T>) -> Result<T, io::ErrorKind> {
    result.map_err(|error| error.kind())
}

/// Takes a step that leaves the store open.
fn take(store: &dyn StateStore, step: &Step, n: usize) -> Result<(), io::ErrorKind> {
    let marker = [n as u8];
    let group = |group: &u8| GroupId((*group).into());
    kind(match step {
        Step::Good(Op::Write(id, changes)) => store.write(group(id), &changes_of(changes, n), &marker),
        Step::Good(Op::Replace(id, records)) => {
            store.replace(group(id), &mut records_iter(&records_of_step(records, n)), &marker)
        }
        Step::Good(Op::Remove(id)) => store.remove_group(group(id)),
        // What a crash leaves of unsynced steps is not the same in two runs even with one store.
        Step::Good(Op::Sync | Op::Crash) => store.sync(),
        Step::Good(Op::Reopen) => store.close(),
        Step::BadKey(id) => store.write(group(id), &[set(b"fine", "1"), set(&[7; 129], "2")], &marker),
        Step::OutOfOrder(id) => {
            let mut records = [b"b", b"a"].into_iter().map(|key| Record { key: key.to_vec(), value: Vec::new() });
            store.replace(group(id), &mut records, &marker)
        }
    })
}

/// How the calls of a closed store fail.
fn outcomes(store: &dyn StateStore) -> Vec<Result<(), io::ErrorKind>> {
    let group = GroupId(0);
    vec![
        kind(store.applied(group).map(drop)),
        kind(store.write(group, &[], b"late")),
        kind(store.sync()),
        kind(store.load(group, &mut |_| ())),
        kind(store.replace(group, &mut iter::empty(), b"late")),
        kind(store.remove_group(group)),
        kind(store.close()),
    ]
}

#[test]
fn the_twin_and_sled_cannot_be_told_apart() {
    let mut runner = proptest::test_runner::TestRunner::new(ProptestConfig { cases: 24, ..Default::default() });
    runner
        .run(&prop::collection::vec(step(), 1..40), |steps| {
            check(&steps);
            Ok(())
        })
        .unwrap();
}

fn check(steps: &[Step]) {
    let mut disks: [Box<dyn Disk>; 2] = [Box::new(TwinDisk::default()), Box::new(SledDisk::default())];
    let mut stores = [0, 1].map(|i| disks[i].open());
    for (n, step) in steps.iter().enumerate() {
        let [twin, sled] = [0, 1].map(|i| take(&*stores[i], step, n));
        assert_eq!(twin, sled, "step {n} {step:?}");
        match step {
            Step::Good(Op::Reopen) => {
                assert_eq!(outcomes(&*stores[0]), outcomes(&*stores[1]), "closed in step {n}");
                stores = [0, 1].map(|i| disks[i].open());
            }
            Step::Good(Op::Crash) => {
                disks = [0, 1].map(|i| disks[i].image());
                stores = [0, 1].map(|i| disks[i].open());
            }
            _ => {}
        }
        assert!(observe(&*stores[0]) == observe(&*stores[1]), "after step {n} {step:?}");
    }
}
