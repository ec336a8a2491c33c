//! What every `LogStore` promises, checked on the in-memory twin, without and with faults, and on raft-engine.

mod log_store;
mod sim_disk;

use std::sync::Arc;

use andante_cluster::{
    GroupId,
    storage::{LogStore, memory::MemoryLogDisk},
};
use bytes::Bytes;
use log_store::{CrashingDisk, Disk, EngineDisk, crashes, model, side_by_side, *};
use parking_lot::Mutex;
use proptest::{
    strategy::{Strategy, ValueTree},
    test_runner::{Config, RngAlgorithm, TestRng, TestRunner},
};

const G1: GroupId = GroupId(1);
const G2: GroupId = GroupId(2);

/// Runs each check on each kind of disk, as tests of their own.
macro_rules! contract {
    ($($check:ident),* $(,)?) => {
        mod twin { $(#[tokio::test] async fn $check() { super::$check(&super::MemoryLogDisk::new()).await; })* }
        mod crashing_twin {
            $(#[tokio::test(start_paused = true)] async fn $check() {
                super::$check(&super::CrashingDisk::new()).await;
            })*
        }
        mod engine { $(#[tokio::test] async fn $check() { super::$check(&super::EngineDisk::new()).await; })* }
    };
}

contract!(
    a_new_store_holds_nothing,
    entries_are_readable_before_they_are_durable,
    callbacks_come_in_the_order_of_the_calls,
    many_writes_share_a_sync,
    appending_over_entries_drops_what_follows,
    truncating_drops_what_follows_and_lasts,
    truncating_to_nothing_lasts,
    a_truncated_log_grows_again_with_other_entries,
    purging_drops_the_beginning_and_lasts,
    purging_past_the_end_empties_the_log,
    purging_never_goes_back,
    reads_stop_at_the_limit_but_give_at_least_one_entry,
    reads_outside_of_the_log_give_nothing,
    large_and_empty_entries_come_back,
    votes_and_committed_ids_come_back,
    a_removed_group_leaves_nothing_and_may_come_back,
    groups_do_not_see_each_other,
    close_drains_the_queue_and_ends_the_store,
    empty_appends_are_answered,
    random_histories_match_a_model,
    a_crash_leaves_a_prefix_of_the_queue_with_all_that_was_acknowledged,
);

async fn a_new_store_holds_nothing(disk: &dyn Disk) {
    let store = disk.open().unwrap();
    assert!(store.recovered().is_empty());
    assert!(all(&*store, G1).is_empty());
    drop(store);
    assert!(disk.open().unwrap().recovered().is_empty());
}

async fn entries_are_readable_before_they_are_durable(disk: &dyn Disk) {
    let store = disk.open().unwrap();
    for i in 0..50 {
        let (done, wait) = waiter();
        store.append(G1, entries(i * 3..i * 3 + 3, "a"), done);
        assert_eq!(store.read(G1, i * 3..u64::MAX, usize::MAX).unwrap(), entries(i * 3..i * 3 + 3, "a"));
        assert_eq!(all(&*store, G1), entries(0..i * 3 + 3, "a"));
        if i % 10 == 0 {
            flushed(wait).await.unwrap();
        }
    }
}

async fn callbacks_come_in_the_order_of_the_calls(disk: &dyn Disk) {
    let store = disk.open().unwrap();
    let order = Arc::new(Mutex::new(Vec::new()));
    let note = |n: u64| {
        let order = order.clone();
        Box::new(move |result: std::io::Result<()>| {
            result.unwrap();
            order.lock().push(n);
        })
    };
    for n in 0..200u64 {
        let group = GroupId((n % 7) as u32);
        match n % 5 {
            0 => store.save_vote(group, Bytes::from(vec![n as u8]), note(n)),
            1 => store.truncate_after(group, Some(n), note(n)),
            2 => store.purge(group, n, Bytes::new(), note(n)),
            _ => store.append(group, entries(1000 + n..1001 + n, "x"), note(n)),
        }
        // What follows must leave no gap.
        store.remove_group(group, Box::new(|result| result.unwrap()));
    }
    save_vote(&*store, G1, b"last").await.unwrap();
    assert_eq!(*order.lock(), (0..200).collect::<Vec<_>>());
}

async fn many_writes_share_a_sync(disk: &dyn Disk) {
    let store = disk.open().unwrap();
    let before = store.stats();
    let waits: Vec<_> = (0..500)
        .map(|i| {
            let (done, wait) = waiter();
            store.append(GroupId(i % 16), entries(u64::from(i / 16)..u64::from(i / 16) + 1, "shared"), done);
            wait
        })
        .collect();
    for wait in waits {
        flushed(wait).await.unwrap();
    }
    let stats = store.stats();
    assert_eq!((stats.writes - before.writes, stats.entries - before.entries), (500, 500));
    assert!(stats.batches - before.batches < 250, "{stats:?}");
    assert!(stats.bytes > before.bytes && stats.syncs > before.syncs);
}

async fn appending_over_entries_drops_what_follows(disk: &dyn Disk) {
    let store = disk.open().unwrap();
    append(&*store, G1, entries(1..11, "old")).await.unwrap();
    append(&*store, G1, entries(4..6, "new")).await.unwrap();
    let expected = [entries(1..4, "old"), entries(4..6, "new")].concat();
    assert_eq!(all(&*store, G1), expected);
    drop(store);
    let store = disk.open().unwrap();
    assert_eq!(store.recovered()[&G1].entries, 1..6);
    assert_eq!(all(&*store, G1), expected);
    append(&*store, G1, entries(1..2, "all new")).await.unwrap();
    assert_eq!(all(&*store, G1), entries(1..2, "all new"));
}

async fn truncating_drops_what_follows_and_lasts(disk: &dyn Disk) {
    let store = disk.open().unwrap();
    append(&*store, G1, entries(1..11, "a")).await.unwrap();
    truncate_after(&*store, G1, Some(20)).await.unwrap();
    assert_eq!(all(&*store, G1), entries(1..11, "a"));
    truncate_after(&*store, G1, Some(7)).await.unwrap();
    assert_eq!(all(&*store, G1), entries(1..8, "a"));
    drop(store);
    let store = disk.open().unwrap();
    assert_eq!(all(&*store, G1), entries(1..8, "a"));
    // The entries to keep are read from disk now.
    truncate_after(&*store, G1, Some(3)).await.unwrap();
    assert_eq!(all(&*store, G1), entries(1..4, "a"));
    drop(store);
    assert_eq!(all(&*disk.open().unwrap(), G1), entries(1..4, "a"));
}

async fn truncating_to_nothing_lasts(disk: &dyn Disk) {
    let store = disk.open().unwrap();
    append(&*store, G1, entries(1..11, "a")).await.unwrap();
    truncate_after(&*store, G1, None).await.unwrap();
    assert!(all(&*store, G1).is_empty());
    append(&*store, G2, entries(1..11, "a")).await.unwrap();
    purge(&*store, G2, 5).await.unwrap();
    truncate_after(&*store, G2, Some(5)).await.unwrap();
    drop(store);
    let store = disk.open().unwrap();
    assert!(all(&*store, G1).is_empty() && all(&*store, G2).is_empty());
    assert_eq!(store.recovered()[&G2].entries, 0..0);
}

async fn a_truncated_log_grows_again_with_other_entries(disk: &dyn Disk) {
    let store = disk.open().unwrap();
    append(&*store, G1, entries(6..11, "a")).await.unwrap();
    truncate_after(&*store, G1, Some(7)).await.unwrap();
    append(&*store, G1, entries(8..10, "b")).await.unwrap();
    truncate_after(&*store, G1, None).await.unwrap();
    append(&*store, G1, entries(6..8, "c")).await.unwrap();
    assert_eq!(all(&*store, G1), entries(6..8, "c"));
    drop(store);
    let store = disk.open().unwrap();
    assert_eq!(store.recovered()[&G1].entries, 6..8);
    assert_eq!(all(&*store, G1), entries(6..8, "c"));
}

async fn purging_drops_the_beginning_and_lasts(disk: &dyn Disk) {
    let store = disk.open().unwrap();
    append(&*store, G1, entries(1..11, "a")).await.unwrap();
    purge(&*store, G1, 4).await.unwrap();
    assert_eq!(all(&*store, G1), entries(5..11, "a"));
    drop(store);
    let store = disk.open().unwrap();
    let found = &store.recovered()[&G1];
    assert_eq!((found.entries.clone(), found.purged.as_deref()), (5..11, Some(&b"purged 4"[..])));
    assert_eq!(all(&*store, G1), entries(5..11, "a"));
}

async fn purging_past_the_end_empties_the_log(disk: &dyn Disk) {
    let store = disk.open().unwrap();
    append(&*store, G1, entries(1..11, "a")).await.unwrap();
    purge(&*store, G1, 99).await.unwrap();
    assert!(all(&*store, G1).is_empty());
    append(&*store, G1, entries(100..102, "b")).await.unwrap();
    purge(&*store, G2, 7).await.unwrap();
    drop(store);
    let store = disk.open().unwrap();
    assert_eq!(all(&*store, G1), entries(100..102, "b"));
    assert_eq!(store.recovered()[&G1].purged.as_deref(), Some(&b"purged 99"[..]));
    let found = &store.recovered()[&G2];
    assert_eq!((found.entries.clone(), found.purged.as_deref()), (0..0, Some(&b"purged 7"[..])));
}

async fn purging_never_goes_back(disk: &dyn Disk) {
    let store = disk.open().unwrap();
    append(&*store, G1, entries(1..11, "a")).await.unwrap();
    purge(&*store, G1, 8).await.unwrap();
    purge(&*store, G1, 3).await.unwrap();
    assert_eq!(all(&*store, G1), entries(9..11, "a"));
    drop(store);
    let store = disk.open().unwrap();
    assert_eq!(store.recovered()[&G1].purged.as_deref(), Some(&b"purged 8"[..]));
    assert_eq!(all(&*store, G1), entries(9..11, "a"));
}

async fn reads_stop_at_the_limit_but_give_at_least_one_entry(disk: &dyn Disk) {
    let store = disk.open().unwrap();
    append(&*store, G1, entries(0..100, "a")).await.unwrap();
    let one = entry(10, "a").data.len();
    let check = |store: &dyn LogStore| {
        assert_eq!(store.read(G1, 10..20, 0).unwrap(), entries(10..11, "a"));
        assert_eq!(store.read(G1, 10..20, one - 1).unwrap(), entries(10..11, "a"));
        assert_eq!(store.read(G1, 10..20, 3 * one).unwrap(), entries(10..13, "a"));
        assert_eq!(store.read(G1, 10..20, 4 * one - 1).unwrap(), entries(10..13, "a"));
        assert_eq!(store.read(G1, 10..20, usize::MAX).unwrap(), entries(10..20, "a"));
    };
    check(&*store);
    drop(store);
    let store = disk.open().unwrap();
    check(&*store);
    // Half from disk, half from memory.
    append(&*store, G1, entries(15..30, "a")).await.unwrap();
    check(&*store);
    assert_eq!(all(&*store, G1), entries(0..30, "a"));
}

async fn reads_outside_of_the_log_give_nothing(disk: &dyn Disk) {
    let store = disk.open().unwrap();
    append(&*store, G1, entries(5..8, "a")).await.unwrap();
    for range in [0..0, 0..5, 8..9, 8..u64::MAX, 6..6] {
        assert!(store.read(G1, range.clone(), usize::MAX).unwrap().is_empty(), "{range:?}");
    }
    assert_eq!(store.read(G1, 3..6, usize::MAX).unwrap(), entries(5..6, "a"));
    assert!(store.read(G2, 0..9, usize::MAX).unwrap().is_empty());
}

async fn large_and_empty_entries_come_back(disk: &dyn Disk) {
    let store = disk.open().unwrap();
    let mut large: Vec<_> = entries(1..6, "a");
    for (i, size) in [0, 1, 300_000, 0, 70_000].into_iter().enumerate() {
        large[i].data = Bytes::from(vec![i as u8 + 1; size]);
    }
    append(&*store, G1, large.clone()).await.unwrap();
    // Pushes the large ones out of memory.
    append(&*store, G1, entries(6..9, "a")).await.unwrap();
    large.extend(entries(6..9, "a"));
    assert_eq!(all(&*store, G1), large);
    drop(store);
    assert_eq!(all(&*disk.open().unwrap(), G1), large);
}

async fn votes_and_committed_ids_come_back(disk: &dyn Disk) {
    let store = disk.open().unwrap();
    save_vote(&*store, G1, b"first").await.unwrap();
    store.save_committed(G1, Bytes::from_static(b"committed 1"));
    store.save_committed(G1, Bytes::from_static(b"committed 2"));
    save_vote(&*store, G1, b"second").await.unwrap();
    drop(store);
    let found = disk.open().unwrap().recovered()[&G1].clone();
    assert_eq!(found.vote.as_deref(), Some(&b"second"[..]));
    assert_eq!(found.committed.as_deref(), Some(&b"committed 2"[..]));
    assert_eq!(found.entries, 0..0);
}

async fn a_removed_group_leaves_nothing_and_may_come_back(disk: &dyn Disk) {
    let store = disk.open().unwrap();
    append(&*store, G1, entries(1..11, "a")).await.unwrap();
    save_vote(&*store, G1, b"vote").await.unwrap();
    purge(&*store, G1, 3).await.unwrap();
    append(&*store, G2, entries(1..3, "b")).await.unwrap();
    remove_group(&*store, G1).await.unwrap();
    assert!(all(&*store, G1).is_empty());
    drop(store);
    let store = disk.open().unwrap();
    assert_eq!(store.recovered().keys().collect::<Vec<_>>(), [&G2]);
    append(&*store, G1, entries(1..2, "again")).await.unwrap();
    drop(store);
    let store = disk.open().unwrap();
    assert_eq!((all(&*store, G1), all(&*store, G2)), (entries(1..2, "again"), entries(1..3, "b")));
    assert_eq!(store.recovered()[&G1].vote, None);
}

async fn groups_do_not_see_each_other(disk: &dyn Disk) {
    let store = disk.open().unwrap();
    let mut waits = Vec::new();
    for round in 0..20u64 {
        for group in 0..40u32 {
            let (done, wait) = waiter();
            store.append(GroupId(group), entries(round * 2..round * 2 + 2, &format!("of {group}")), done);
            waits.push(wait);
        }
        let (done, wait) = waiter();
        store.truncate_after(GroupId(7), Some(round), done);
        waits.push(wait);
        let (done, wait) = waiter();
        store.append(GroupId(7), entries(round + 1..round * 2 + 2, "of 7"), done);
        waits.push(wait);
    }
    for wait in waits {
        flushed(wait).await.unwrap();
    }
    drop(store);
    let store = disk.open().unwrap();
    assert_eq!(store.recovered().len(), 40);
    for group in 0..40 {
        assert_eq!(all(&*store, GroupId(group)), entries(0..40, &format!("of {group}")));
    }
}

async fn close_drains_the_queue_and_ends_the_store(disk: &dyn Disk) {
    let store = disk.open().unwrap();
    let (done, wait) = waiter();
    store.append(G1, entries(1..5, "a"), done);
    store.save_committed(G1, Bytes::from_static(b"committed"));
    store.close().unwrap();
    flushed(wait).await.unwrap();
    assert!(append(&*store, G1, entries(5..6, "a")).await.is_err());
    assert!(save_vote(&*store, G1, b"late").await.is_err());
    assert!(store.read(G1, 1..2, 1).is_err());
    assert!(store.close().is_err());
    drop(store);
    let store = disk.open().unwrap();
    assert_eq!(all(&*store, G1), entries(1..5, "a"));
    let found = &store.recovered()[&G1];
    assert_eq!((found.vote.clone(), found.committed.as_deref()), (None, Some(&b"committed"[..])));
}

async fn empty_appends_are_answered(disk: &dyn Disk) {
    let store = disk.open().unwrap();
    append(&*store, G1, Vec::new()).await.unwrap();
    assert!(all(&*store, G1).is_empty());
}

async fn random_histories_match_a_model(disk: &dyn Disk) {
    // Each history goes on where the one before has ended, after removing its groups.
    let rng = TestRng::from_seed(RngAlgorithm::ChaCha, &[17; 32]);
    let mut runner = TestRunner::new_with_rng(Config::default(), rng);
    for _ in 0..16 {
        remove_all(disk).await;
        let steps = model::steps().new_tree(&mut runner).unwrap().current();
        model::run(disk, &steps).await;
    }
}

async fn remove_all(disk: &dyn Disk) {
    let store = disk.open().unwrap();
    for group in store.recovered().into_keys() {
        remove_group(&*store, group).await.unwrap();
    }
}

async fn a_crash_leaves_a_prefix_of_the_queue_with_all_that_was_acknowledged(disk: &dyn Disk) {
    let rng = TestRng::from_seed(RngAlgorithm::ChaCha, &[23; 32]);
    let mut runner = TestRunner::new_with_rng(Config::default(), rng);
    for _ in 0..16 {
        remove_all(disk).await;
        let steps = model::steps().new_tree(&mut runner).unwrap().current();
        crashes::run(disk, &steps).await;
    }
}

#[tokio::test]
async fn the_twin_and_raft_engine_cannot_be_told_apart() {
    let rng = TestRng::from_seed(RngAlgorithm::ChaCha, &[31; 32]);
    let mut runner = TestRunner::new_with_rng(Config::default(), rng);
    for _ in 0..24 {
        let steps = model::steps().new_tree(&mut runner).unwrap().current();
        side_by_side::run([&MemoryLogDisk::new(), &EngineDisk::new()], &steps).await;
    }
}

#[tokio::test]
async fn only_synced_writes_of_the_twin_survive_a_crash_and_failures_are_sticky() {
    let disk = MemoryLogDisk::new();
    let store = disk.open();
    append(&*store, G1, entries(1..3, "a")).await.unwrap();
    disk.hold_flushes();
    let (done, mut lost) = waiter();
    store.append(G1, entries(2..4, "b"), done);
    assert_eq!(all(&*store, G1), [entries(1..2, "a"), entries(2..4, "b")].concat());
    assert!(lost.try_recv().is_err(), "not durable yet");

    let reopened = disk.open();
    disk.release_flushes();
    assert_eq!(all(&*reopened, G1), entries(1..3, "a"));
    assert_eq!(disk.syncs(), 1);
    disk.fail_next_sync();
    assert!(save_vote(&*reopened, G1, b"vote").await.is_err());
    assert!(save_vote(&*reopened, G1, b"vote").await.is_err());
    assert!(reopened.read(G1, 1..2, 1).is_err());
    assert_eq!(disk.open().recovered()[&G1].vote, None);
}
