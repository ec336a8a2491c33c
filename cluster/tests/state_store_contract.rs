//! What every `StateStore` promises, checked on the in-memory twin, without and with crashes, and on sled.

mod sim_disk;
mod state_store;

use std::{
    io,
    panic::{AssertUnwindSafe, catch_unwind},
};

use andante_cluster::{GroupId, Record};
use state_store::{
    disks::{CrashingDisk, Disk, SledDisk, TwinDisk},
    history, *,
};

/// Runs each check on each kind of disk, as tests of their own.
macro_rules! contract {
    ($($check:ident),* $(,)?) => {
        mod twin { $(#[test] fn $check() { super::$check(&super::TwinDisk::default()); })* }
        mod crashing_twin { $(#[test] fn $check() { super::$check(&super::CrashingDisk::default()); })* }
        mod sled { $(#[test] fn $check() { super::$check(&super::SledDisk::default()); })* }
    };
}

contract!(
    an_empty_store_has_no_marker_and_no_records,
    records_load_in_the_order_of_their_keys,
    values_of_any_length_come_back,
    a_shorter_value_replaces_a_longer_one_completely,
    no_part_of_a_longer_value_stays_behind,
    a_deleted_record_is_gone_and_may_come_back,
    the_last_change_of_a_key_in_a_batch_counts,
    groups_do_not_see_each_other,
    a_removed_group_leaves_nothing,
    bad_keys_are_refused_and_change_nothing,
    what_was_synced_survives_a_crash,
    a_crash_leaves_a_prefix_of_the_batches,
    close_syncs_and_ends_the_store,
    replace_gives_exactly_the_new_records,
    replace_refuses_records_out_of_order,
    a_replace_that_panics_leaves_a_group_without_marker,
    a_crash_during_replace_leaves_no_marker,
    a_write_after_an_interrupted_replace_starts_from_nothing,
    random_histories_match_a_model,
);

fn an_empty_store_has_no_marker_and_no_records(disk: &dyn Disk) {
    let store = disk.open();
    assert_eq!(state(&*store, G1), (None, Records::new()));
    store.remove_group(G1).unwrap();
    store.sync().unwrap();
    drop(store);
    assert_eq!(state(&*disk.open(), G1), (None, Records::new()));
}

fn records_load_in_the_order_of_their_keys(disk: &dyn Disk) {
    let store = disk.open();
    let keys: [&[u8]; 7] = [b"b", b"a", b"a\0", b"\xff\xff", b"ab", b"\0", &[7; 128]];
    for (i, key) in keys.iter().enumerate() {
        store.write(G1, &[set(key, bytes(i * 3_000, i as u8))], b"m").unwrap();
    }
    let mut sorted: Vec<_> = keys.iter().map(|key| key.to_vec()).collect();
    sorted.sort();
    assert_eq!(keys_in_order(&*store, G1), sorted);
    store.close().unwrap();
    assert_eq!(keys_in_order(&*disk.open(), G1), sorted);
}

fn values_of_any_length_come_back(disk: &dyn Disk) {
    let lengths = [0, 1, 3_987, 3_988, 3_989, 4_000, 4_096, 7_988, 7_989, 20_000, 102_400];
    let records: Records = lengths.iter().map(|&n| (format!("k{n}").into_bytes(), bytes(n, 5))).collect();
    let changes: Vec<_> = records.iter().map(|(key, value)| set(key, value.clone())).collect();
    let store = disk.open();
    store.write(G1, &changes, b"m").unwrap();
    assert_eq!(load(&*store, G1).unwrap(), records);
    store.close().unwrap();
    assert_eq!(load(&*disk.open(), G1).unwrap(), records);
}

fn a_shorter_value_replaces_a_longer_one_completely(disk: &dyn Disk) {
    let store = disk.open();
    for length in [100_000, 9_000, 4_001, 3, 0, 12_000, 8_000] {
        store.write(G1, &[set(b"k", bytes(length, length as u8))], b"m").unwrap();
        assert_eq!(load(&*store, G1).unwrap(), records_of(&[(b"k", bytes(length, length as u8))]));
    }
    store.close().unwrap();
    assert_eq!(load(&*disk.open(), G1).unwrap(), records_of(&[(b"k", bytes(8_000, 8_000usize as u8))]));
}

fn no_part_of_a_longer_value_stays_behind(disk: &dyn Disk) {
    let store = disk.open();
    store.write(G1, &[set(b"k", "short")], b"m").unwrap();
    store.sync().unwrap();
    let short = disk.entries_of(G1);
    for last in [set(b"k", "short"), delete(b"k")] {
        store.write(G1, &[set(b"k", bytes(50_000, 1))], b"m").unwrap();
        store.write(G1, std::slice::from_ref(&last), b"m").unwrap();
        store.sync().unwrap();
        assert_eq!(disk.entries_of(G1), short - usize::from(last.value.is_none()));
    }
}

fn a_deleted_record_is_gone_and_may_come_back(disk: &dyn Disk) {
    let store = disk.open();
    store.write(G1, &[set(b"a", bytes(9_000, 1)), set(b"b", "2")], b"1").unwrap();
    store.write(G1, &[delete(b"a"), delete(b"never was")], b"2").unwrap();
    assert_eq!(state(&*store, G1), (Some(b"2".to_vec()), records_of(&[(b"b", b"2".to_vec())])));
    store.write(G1, &[set(b"a", "3")], b"3").unwrap();
    store.close().unwrap();
    let expected = records_of(&[(b"a", b"3".to_vec()), (b"b", b"2".to_vec())]);
    assert_eq!(state(&*disk.open(), G1), (Some(b"3".to_vec()), expected));
}

fn the_last_change_of_a_key_in_a_batch_counts(disk: &dyn Disk) {
    let store = disk.open();
    let changes =
        [set(b"a", bytes(9_000, 1)), set(b"a", "2"), set(b"b", "1"), delete(b"b"), delete(b"c"), set(b"c", "3")];
    store.write(G1, &changes, b"m").unwrap();
    assert_eq!(load(&*store, G1).unwrap(), records_of(&[(b"a", b"2".to_vec()), (b"c", b"3".to_vec())]));
}

fn groups_do_not_see_each_other(disk: &dyn Disk) {
    let store = disk.open();
    let groups = [0, 1, 2, 255, 256, 0x0100_0000, u32::MAX].map(GroupId);
    for group in groups {
        let value = group.0.to_be_bytes();
        store.write(group, &[set(b"k", value), set(b"long", bytes(9_000, value[3]))], &value).unwrap();
    }
    store.write(G1, &[set(b"only here", "1"), delete(b"long")], b"new").unwrap();
    store.remove_group(GroupId(256)).unwrap();
    store.close().unwrap();
    let store = disk.open();
    for group in groups.into_iter().filter(|group| ![1, 256].contains(&group.0)) {
        let value = group.0.to_be_bytes();
        let expected = records_of(&[(b"k", value.to_vec()), (b"long", bytes(9_000, value[3]))]);
        assert_eq!(state(&*store, group), (Some(value.to_vec()), expected), "{group}");
    }
    assert_eq!(state(&*store, GroupId(256)), (None, Records::new()));
}

fn a_removed_group_leaves_nothing(disk: &dyn Disk) {
    let store = disk.open();
    let changes: Vec<_> = (0..3_000u32).map(|i| set(&i.to_be_bytes(), bytes(i as usize % 50, 1))).collect();
    store.write(G1, &changes, b"m").unwrap();
    store.write(G2, &[set(b"k", "2")], b"m").unwrap();
    store.remove_group(G1).unwrap();
    let image = disk.image();
    drop(store);
    for disk in [disk, &*image] {
        let store = disk.open();
        assert_eq!(state(&*store, G1), (None, Records::new()));
        assert_eq!(disk.entries_of(G1), 0);
        assert_eq!(load(&*store, G2).unwrap(), records_of(&[(b"k", b"2".to_vec())]));
    }
}

fn bad_keys_are_refused_and_change_nothing(disk: &dyn Disk) {
    let store = disk.open();
    store.write(G1, &[set(b"a", "1")], b"1").unwrap();
    for key in [&[][..], &[1; 129]] {
        let refused = store.write(G1, &[set(b"a", "2"), set(key, "x")], b"2").unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::InvalidInput);
    }
    assert_eq!(state(&*store, G1), (Some(b"1".to_vec()), records_of(&[(b"a", b"1".to_vec())])));
}

fn what_was_synced_survives_a_crash(disk: &dyn Disk) {
    let store = disk.open();
    store.write(G1, &[set(b"a", bytes(50_000, 1))], b"1").unwrap();
    store.write(G2, &[set(b"b", "1")], b"2").unwrap();
    store.sync().unwrap();
    let image = disk.image();
    let store = image.open();
    assert_eq!(state(&*store, G1), (Some(b"1".to_vec()), records_of(&[(b"a", bytes(50_000, 1))])));
    assert_eq!(state(&*store, G2), (Some(b"2".to_vec()), records_of(&[(b"b", b"1".to_vec())])));
}

fn a_crash_leaves_a_prefix_of_the_batches(disk: &dyn Disk) {
    let store = disk.open();
    let batch = |n: u8| (0..30u8).map(|key| set(&[key], bytes(700 * (1 + usize::from(n % 4)), n))).collect::<Vec<_>>();
    let mut synced = 0;
    for n in 1..=40u8 {
        store.write(G1, &batch(n), &[n]).unwrap();
        if n % 16 == 0 {
            store.sync().unwrap();
            synced = n;
        }
        if n % 5 == 0 {
            let store = disk.image().open();
            let (marker, records) = state(&*store, G1);
            let found = marker.map_or(0, |marker| marker[0]);
            assert!((synced..=n).contains(&found), "synced {synced}, written {n}, found {found}");
            let expected = batch(found).into_iter().map(|change| (change.key, change.value.unwrap())).collect();
            assert!(records == if found == 0 { Records::new() } else { expected }, "batch {found} is not whole");
        }
    }
}

fn close_syncs_and_ends_the_store(disk: &dyn Disk) {
    let store = disk.open();
    store.write(G1, &[set(b"a", "1")], b"1").unwrap();
    store.close().unwrap();
    assert!(store.write(G1, &[], b"2").is_err());
    assert!(store.applied(G1).is_err());
    assert!(store.load(G1, &mut |_| ()).is_err());
    assert!(store.sync().is_err());
    assert!(store.close().is_err());
    let again = disk.open();
    assert_eq!(state(&*again, G1), (Some(b"1".to_vec()), records_of(&[(b"a", b"1".to_vec())])));
    assert!(store.applied(G1).is_err());
    assert!(again.size_bytes() > 0);
}

fn replace_gives_exactly_the_new_records(disk: &dyn Disk) {
    let store = disk.open();
    store.write(G2, &[set(b"k", "2")], b"m").unwrap();
    for size in [0, 1, 5_000, 3] {
        let key = |i: usize| (i as u32).to_be_bytes().to_vec();
        let records: Records =
            (0..size).map(|i| (key(i * 7), bytes(i % 300 + i / 4_990 * 9_000, size as u8))).collect();
        store.replace(G1, &mut records_iter(&records), &[size as u8]).unwrap();
        assert_eq!(state(&*store, G1), (Some(vec![size as u8]), records.clone()), "{size}");
        assert_eq!(state(&*disk.image().open(), G1), (Some(vec![size as u8]), records), "{size}");
    }
    store.write(G1, &[set(&0u32.to_be_bytes(), "changed")], b"m").unwrap();
    assert_eq!(load(&*store, G1).unwrap()[&0u32.to_be_bytes()[..]], b"changed");
    assert_eq!(load(&*store, G2).unwrap(), records_of(&[(b"k", b"2".to_vec())]));
}

fn replace_refuses_records_out_of_order(disk: &dyn Disk) {
    let store = disk.open();
    let record = |key: &[u8]| Record { key: key.to_vec(), value: b"v".to_vec() };
    for keys in [[&b"b"[..], b"a"], [b"a", b"a"], [b"", b"a"]] {
        store.write(G1, &[set(b"old", "1")], b"old").unwrap();
        let refused = store.replace(G1, &mut keys.into_iter().map(record), b"new").unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::InvalidInput);
        assert_eq!(state(&*store, G1), (None, Records::new()));
    }
}

/// An old state with long values, and a new one.
fn old_and_new() -> (Records, Records) {
    let old = records_of(&[(b"a", bytes(9_000, 1)), (b"b", b"old".to_vec()), (b"z", bytes(20_000, 2))]);
    let new = records_of(&[(b"b", bytes(5_000, 3)), (b"c", b"new".to_vec()), (b"d", vec![]), (b"z", bytes(10, 4))]);
    (old, new)
}

fn a_replace_that_panics_leaves_a_group_without_marker(disk: &dyn Disk) {
    let (old, new) = old_and_new();
    for step in 0..=new.len() {
        let store = disk.open();
        store.replace(G1, &mut records_iter(&old), b"old").unwrap();
        let mut failing = records_iter(&new).take(step).chain(std::iter::once_with(|| panic!("no more")));
        let outcome = catch_unwind(AssertUnwindSafe(|| store.replace(G1, &mut failing, b"new")));
        assert!(outcome.is_err());
        assert_eq!(state(&*store, G1), (None, Records::new()), "step {step}");
        assert_eq!(state(&*disk.image().open(), G1), (None, Records::new()), "step {step}, after a crash");
        store.replace(G1, &mut records_iter(&new), b"new").unwrap();
        assert_eq!(state(&*store, G1), (Some(b"new".to_vec()), new.clone()), "step {step}, second try");
        store.close().unwrap();
    }
}

fn a_crash_during_replace_leaves_no_marker(disk: &dyn Disk) {
    let (old, new) = old_and_new();
    let store = disk.open();
    store.replace(G1, &mut records_iter(&old), b"old").unwrap();
    assert_eq!(state(&*disk.image().open(), G1), (Some(b"old".to_vec()), old));
    let mut images = Vec::new();
    let mut watched = records_iter(&new).inspect(|_| images.push(disk.image()));
    store.replace(G1, &mut watched, b"new").unwrap();
    assert_eq!(images.len(), new.len());
    for image in images {
        assert_eq!(state(&*image.open(), G1), (None, Records::new()));
    }
    assert_eq!(state(&*disk.image().open(), G1), (Some(b"new".to_vec()), new));
}

fn a_write_after_an_interrupted_replace_starts_from_nothing(disk: &dyn Disk) {
    let (old, new) = old_and_new();
    let store = disk.open();
    store.replace(G1, &mut records_iter(&old), b"old").unwrap();
    let mut image = None;
    // Enough records that some of them are in the database before the crash.
    let many = (0..3_000u32).map(|i| Record { key: i.to_be_bytes().to_vec(), value: bytes(9, 1) });
    let mut watched = many.inspect(|record| {
        if record.key == 2_999u32.to_be_bytes() {
            image = Some(disk.image());
        }
    });
    store.replace(G1, &mut watched, b"new").unwrap();
    let image = image.unwrap();
    let store = image.open();
    let changes: Vec<_> = new.iter().map(|(key, value)| set(key, value.clone())).collect();
    store.write(G1, &changes, b"m").unwrap();
    assert_eq!(state(&*store, G1), (Some(b"m".to_vec()), new));
}

fn random_histories_match_a_model(disk: &dyn Disk) {
    history::check_random_histories(disk);
}
