//! What simulated disks do when something goes wrong: slow and failing syncs, no space, crashes, loss.

mod log_store;
mod sim_disk;

use std::{
    io::{self, ErrorKind},
    path::Path,
    sync::Arc,
    time::Duration,
};

use andante_cluster::{
    GroupId, Record, RecordChange,
    env::OsThreads,
    storage::{
        LogStore, SnapshotInfo, SnapshotStore, StateStore, Stores,
        memory::{Crash, DiskObserver, LogOp, MemoryLogStore, MemoryStores, StateOp, Store, Unsynced},
    },
};
use log_store::{all, append, entries, flushed, purge, remove_group, save_vote, truncate_after, waiter};
use parking_lot::Mutex;
use sim_disk::{Drawn, Seeded};
use tokio::time::Instant;

const G1: GroupId = GroupId(1);
const G2: GroupId = GroupId(2);
const SECOND: Duration = Duration::from_secs(1);
/// The numbers that lead to each outcome.
const OUTCOMES: [(u64, Unsynced); 3] = [(0, Unsynced::Lost), (1, Unsynced::Torn), (2, Unsynced::Written)];

/// Disks on which every sync of the log takes a second.
fn slow() -> MemoryStores {
    let stores = MemoryStores::default();
    stores.set_sync_time(SECOND, SECOND, Arc::new(Drawn(0)));
    stores
}

/// A log that is syncing entry 1 to 3 of group 1 after a vote, with entry 4 queued behind.
async fn syncing(stores: &MemoryStores) -> (Arc<MemoryLogStore>, Vec<log_store::Flushed>) {
    let log = stores.log.open();
    save_vote(&*log, G1, b"vote").await.unwrap();
    let mut waits = Vec::new();
    for range in [1..3, 3..4, 4..5] {
        if range.start == 4 {
            tokio::time::sleep(SECOND / 2).await;
        }
        let (done, wait) = waiter();
        log.append(G1, entries(range, "a"), done);
        waits.push(wait);
    }
    (log, waits)
}

fn change(key: &str, value: &str) -> RecordChange {
    RecordChange { key: key.into(), value: Some(value.into()) }
}

/// Writes records of group 1 with their number as the marker.
fn write(state: &dyn StateStore, number: u8) -> io::Result<()> {
    state.write(G1, &[change("last", &number.to_string()), change(&number.to_string(), "")], &[number])
}

/// The last number written, after checking that all before it are there and none behind.
fn written(state: &dyn StateStore) -> u8 {
    let marker = state.applied(G1).unwrap().map_or(0, |marker| marker[0]);
    let mut found = Vec::new();
    state.load(G1, &mut |record| found.push((record.key, record.value))).unwrap();
    let mut expected: Vec<_> = (1..=marker).map(|n| (n.to_string().into_bytes(), Vec::new())).collect();
    expected.extend((marker > 0).then(|| (b"last".to_vec(), marker.to_string().into_bytes())));
    assert_eq!(found, expected);
    marker
}

fn publish(snapshots: &dyn SnapshotStore, meta: &'static [u8]) -> io::Result<SnapshotInfo> {
    snapshots.publish(G1, meta, &mut [Record { key: b"k".to_vec(), value: meta.to_vec() }].into_iter())
}

fn published(snapshots: &dyn SnapshotStore) -> Option<Vec<u8>> {
    let mut values = Vec::new();
    let info = snapshots.load(G1, &mut |record| values.push(record.value)).unwrap()?;
    assert_eq!(values, [info.meta.to_vec()], "meta and records are of one snapshot");
    Some(info.meta.to_vec())
}

fn assert_eio<T: std::fmt::Debug>(result: io::Result<T>) {
    // A copy of an error keeps its kind and its text.
    let error = result.unwrap_err();
    assert_eq!(error.kind(), io::Error::from_raw_os_error(5).kind());
    assert!(error.to_string().contains("os error 5"), "{error}");
}

fn kind<T>(result: io::Result<T>) -> Option<ErrorKind> {
    result.err().map(|error| error.kind())
}

#[tokio::test(start_paused = true)]
async fn what_arrives_during_a_sync_is_the_next_batch_and_callbacks_come_after_it() {
    let stores = slow();
    let log = stores.log.open();
    let start = Instant::now();
    let (done, first) = waiter();
    log.append(G1, entries(1..2, "a"), done);
    tokio::time::sleep(SECOND / 2).await;
    let mut waits = Vec::new();
    for index in 2..5 {
        let (done, wait) = waiter();
        log.append(G1, entries(index..index + 1, "a"), done);
        waits.push(wait);
    }
    assert_eq!(all(&*log, G1), entries(1..5, "a"), "readable before they are durable");
    assert!(stores.log.durable(G1).is_empty());
    flushed(first).await.unwrap();
    assert_eq!(start.elapsed(), SECOND);
    assert_eq!(stores.log.durable(G1), entries(1..2, "a"));
    for wait in waits {
        flushed(wait).await.unwrap();
        assert_eq!(start.elapsed(), 2 * SECOND, "one sync for all three");
    }
    assert_eq!((stores.log.durable(G1), stores.log.syncs()), (entries(1..5, "a"), 2));
}

#[tokio::test(start_paused = true)]
async fn sync_times_are_drawn_between_their_limits_and_the_same_for_the_same_seed() {
    let (min, max) = (Duration::from_millis(3), Duration::from_millis(9));
    let mut histories = Vec::new();
    for seed in [7, 7, 8] {
        let stores = MemoryStores::default();
        stores.set_sync_time(min, max, Arc::new(Seeded::new(seed)));
        let log = stores.log.open();
        let mut times = Vec::new();
        for _ in 0..200 {
            let start = Instant::now();
            save_vote(&*log, G1, b"vote").await.unwrap();
            times.push(start.elapsed());
        }
        // The timer rounds up to whole milliseconds.
        assert!(times.iter().all(|time| (min..=max).contains(time)), "{times:?}");
        assert!(times.contains(&(min + Duration::from_millis(1))) && times.contains(&max));
        histories.push(times);
    }
    assert_eq!(histories[0], histories[1]);
    assert_ne!(histories[0], histories[2]);
}

#[tokio::test(start_paused = true)]
async fn held_flushes_end_no_sync() {
    let stores = slow();
    let log = stores.log.open();
    let (done, mut wait) = waiter();
    log.append(G1, entries(1..2, "a"), done);
    tokio::time::sleep(SECOND / 2).await;
    stores.log.hold_flushes();
    tokio::time::sleep(5 * SECOND).await;
    assert!(wait.try_recv().is_err() && stores.log.durable(G1).is_empty());
    stores.log.release_flushes();
    flushed(wait).await.unwrap();
    assert_eq!(stores.log.durable(G1), entries(1..2, "a"));
}

#[tokio::test(start_paused = true)]
async fn closing_waits_for_no_sync_and_keeps_the_order_of_callbacks() {
    let stores = slow();
    let log = stores.log.open();
    let order = Arc::new(Mutex::new(Vec::new()));
    for index in 1..4 {
        let order = order.clone();
        let note = Box::new(move |result: io::Result<()>| order.lock().push((index, result.is_ok())));
        log.append(G1, entries(index..index + 1, "a"), note);
        tokio::time::sleep(SECOND / 4).await;
    }
    log.close().unwrap();
    assert_eq!(*order.lock(), [(1, true), (2, true), (3, true)]);
    assert_eq!(all(&*stores.log.open(), G1), entries(1..4, "a"));
    // The task that was syncing finds nothing left to do.
    tokio::time::sleep(5 * SECOND).await;
    assert_eq!(order.lock().len(), 3);
}

#[tokio::test(start_paused = true)]
async fn a_crash_during_a_sync_loses_tears_or_writes_the_batch_and_loses_what_is_queued_behind() {
    for (number, outcome) in OUTCOMES {
        let stores = slow();
        let (log, waits) = syncing(&stores).await;
        let crash = stores.crash(&Drawn(number));
        assert_eq!(crash, Crash { log_batch: Some((outcome, 2)), state_written: 0, state_lost: 0 });
        let expected = if outcome == Unsynced::Written { entries(1..4, "a") } else { Vec::new() };
        for wait in waits {
            assert!(flushed(wait).await.is_err(), "{outcome:?}: nothing is acknowledged");
        }
        assert_eq!(stores.log.durable(G1), expected, "{outcome:?}");
        drop(log);

        assert_eq!(stores.torn_tails_cut(), 0, "{outcome:?}: found at the next open");
        for _ in 0..2 {
            let log = stores.log.open();
            assert_eq!(all(&*log, G1), expected, "{outcome:?}");
            assert_eq!(log.recovered()[&G1].vote.as_deref(), Some(&b"vote"[..]), "{outcome:?}");
            assert_eq!(stores.torn_tails_cut(), u64::from(outcome == Unsynced::Torn), "{outcome:?}: cut once");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_batch_outlives_the_runtime_that_was_syncing_it() {
    let stores = slow();
    let node = stores.clone();
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
        runtime.block_on(async { drop(syncing(&node).await) });
    })
    .join()
    .unwrap();
    assert_eq!(stores.crash(&Drawn(2)).log_batch, Some((Unsynced::Written, 2)));
    assert_eq!(all(&*stores.log.open(), G1), entries(1..4, "a"));
}

#[tokio::test]
async fn a_crash_without_a_sync_under_way_changes_nothing_durable() {
    let stores = MemoryStores::default();
    let log = stores.log.open();
    append(&*log, G1, entries(1..3, "a")).await.unwrap();
    for (number, _) in OUTCOMES {
        let crash = stores.crash(&Drawn(number));
        assert_eq!(crash, Crash { log_batch: None, state_written: 0, state_lost: 0 });
        assert_eq!(all(&*stores.log.open(), G1), entries(1..3, "a"));
        assert_eq!(stores.torn_tails_cut(), 0);
    }
}

#[test]
fn a_crash_leaves_a_drawn_number_of_the_first_unsynced_steps_of_the_state_store() {
    for durable in 0..=3u8 {
        let stores = MemoryStores::default();
        let state = stores.state.open();
        write(&state, 1).unwrap();
        state.sync().unwrap();
        for number in 2..=4 {
            write(&state, number).unwrap();
        }
        let crash = stores.crash(&Drawn(durable.into()));
        let (state_written, state_lost) = (durable.into(), 3 - usize::from(durable));
        assert_eq!(crash, Crash { log_batch: None, state_written, state_lost });
        assert_eq!(written(&stores.state.open()), 1 + durable);
    }
}

#[tokio::test(start_paused = true)]
async fn stores_that_were_open_in_a_crash_or_a_wipe_fail_for_ever_and_reach_no_disk() {
    for wiped in [false, true] {
        let stores = MemoryStores::default();
        let (log, state, snapshots) = (stores.log.open(), stores.state.open(), stores.snapshots.open());
        publish(&snapshots, b"old").unwrap();
        let reader = snapshots.open_reader(G1).unwrap().unwrap();
        let mut install = snapshots.begin_install(G1).unwrap();
        install.write_chunk(&reader.read_chunk(0, usize::MAX).unwrap()).unwrap();
        if wiped {
            stores.wipe();
        } else {
            stores.crash(&Drawn(0));
        }
        let (new_log, new_state, new_snapshots) = (stores.log.open(), stores.state.open(), stores.snapshots.open());
        let left = if wiped { None } else { Some(b"old".to_vec()) };

        assert!(log.read(G1, 0..1, 1).is_err() && log.close().is_err(), "also before any write has failed");
        assert!(append(&*log, G1, entries(1..2, "a")).await.is_err());
        assert!(save_vote(&*log, G1, b"vote").await.is_err());
        assert!(write(&state, 1).is_err() && state.sync().is_err() && state.remove_group(G1).is_err());
        assert!(state.replace(G1, &mut std::iter::empty(), b"m").is_err());
        assert!(state.applied(G1).is_err() && state.load(G1, &mut |_| ()).is_err() && state.close().is_err());
        assert!(publish(&snapshots, b"new").is_err() && snapshots.remove_group(G1).is_err());
        assert!(snapshots.current(G1).is_err() && snapshots.load(G1, &mut |_| ()).is_err());
        assert!(snapshots.open_reader(G1).is_err() && reader.read_chunk(0, 1).is_err());
        assert!(install.write_chunk(b"more").is_err() && install.publish().is_err());

        assert!(stores.log.durable(G1).is_empty() && new_log.recovered().is_empty());
        assert_eq!((written(&new_state), published(&new_snapshots)), (0, left));
    }
}

#[tokio::test]
async fn a_log_whose_sync_failed_fails_for_ever_and_has_lost_torn_or_written_the_batch() {
    for (_, outcome) in OUTCOMES {
        let stores = MemoryStores::default();
        let log = stores.log.open();
        append(&*log, G1, entries(1..3, "a")).await.unwrap();
        stores.fail_next_sync(Store::Log, outcome);
        assert_eio(append(&*log, G1, entries(3..4, "a")).await);
        assert_eio(save_vote(&*log, G1, b"late").await);
        assert_eio(log.read(G1, 1..2, 1));
        assert_eio(log.close());
        let log = stores.log.open();
        let end = if outcome == Unsynced::Written { 4 } else { 3 };
        assert_eq!(all(&*log, G1), entries(1..end, "a"), "{outcome:?}");
        assert_eq!(stores.torn_tails_cut(), u64::from(outcome == Unsynced::Torn));
        append(&*log, G1, entries(end..end + 1, "a")).await.expect("only one sync fails");
    }
}

#[test]
fn a_state_store_whose_sync_failed_fails_for_ever_and_has_a_prefix_of_its_steps() {
    for (outcome, durable) in [(Unsynced::Lost, 1), (Unsynced::Torn, 3), (Unsynced::Written, 5)] {
        let stores = MemoryStores::default();
        let state = stores.state.open();
        write(&state, 1).unwrap();
        state.sync().unwrap();
        for number in 2..=5 {
            write(&state, number).unwrap();
        }
        stores.fail_next_sync(Store::State, outcome);
        assert_eio(state.sync());
        assert!(write(&state, 6).is_err() && state.sync().is_err() && state.applied(G1).is_err());
        assert!(state.load(G1, &mut |_| ()).is_err() && state.close().is_err());
        let state = stores.state.open();
        assert_eq!(written(&state), durable, "{outcome:?}");
        write(&state, durable + 1).and_then(|()| state.sync()).expect("only one sync fails");
    }
}

#[test]
fn a_publication_whose_sync_failed_leaves_the_older_snapshot_or_the_new_one() {
    for (outcome, left) in [(Unsynced::Lost, b"old"), (Unsynced::Torn, b"old"), (Unsynced::Written, b"new")] {
        let stores = MemoryStores::default();
        let snapshots = stores.snapshots.open();
        publish(&snapshots, b"old").unwrap();
        stores.fail_next_sync(Store::Snapshots, outcome);
        assert_eio(publish(&snapshots, b"new"));
        assert_eq!(published(&snapshots).as_deref(), Some(&left[..]), "{outcome:?}");
        publish(&snapshots, b"next").expect("only one sync fails");
        stores.fail_next_sync(Store::Snapshots, outcome);
        assert_eio(snapshots.remove_group(G1));
        assert_eq!(published(&snapshots).is_none(), outcome == Unsynced::Written, "{outcome:?}");
    }
}

#[tokio::test]
async fn each_store_fails_alone() {
    let stores = MemoryStores::default();
    for store in [Store::Log, Store::State, Store::Snapshots] {
        let (log, state, snapshots) = (stores.log.open(), stores.state.open(), stores.snapshots.open());
        stores.fail_next_sync(store, Unsynced::Lost);
        assert_eq!(save_vote(&*log, G1, b"vote").await.is_err(), store == Store::Log);
        assert_eq!(write(&state, 1).and_then(|()| state.sync()).is_err(), store == Store::State);
        assert_eq!(publish(&snapshots, b"m").is_err(), store == Store::Snapshots);
        state.remove_group(G1).ok();
    }
}

#[tokio::test]
async fn a_full_disk_ends_log_and_state_store_and_refuses_snapshots_while_it_is_full() {
    let stores = MemoryStores::default();
    stores.set_free_bytes(77);
    let (log, state, snapshots) = (stores.log.open(), stores.state.open(), stores.snapshots.open());
    append(&*log, G1, entries(1..3, "a")).await.unwrap();
    write(&state, 1).and_then(|()| state.sync()).unwrap();
    publish(&snapshots, b"old").unwrap();
    let mut install = snapshots.begin_install(G1).unwrap();
    let free = || stores.free_bytes(Path::new("")).unwrap();
    assert_eq!(free(), 77);

    stores.set_full(true);
    assert_eq!(free(), 0);
    let full = Some(ErrorKind::StorageFull);
    assert_eq!(kind(append(&*log, G1, entries(3..4, "a")).await), full);
    assert_eq!(kind(write(&state, 2)), full);
    assert_eq!(kind(publish(&snapshots, b"new")), full);
    assert_eq!(kind(install.write_chunk(b"chunk")), full);
    assert_eq!(kind(stores.open_log(Path::new(""), &OsThreads)), full);
    assert_eq!(kind(stores.open_state(Path::new(""), &OsThreads)), full);
    assert_eq!(published(&snapshots).as_deref(), Some(&b"old"[..]));
    snapshots.remove_group(G1).expect("gives space back");

    stores.set_full(false);
    assert_eq!(free(), 77);
    assert_eq!(kind(save_vote(&*log, G1, b"late").await), full, "for good");
    assert_eq!(kind(log.read(G1, 1..2, 1)), full);
    assert!(write(&state, 2).is_err() && state.applied(G1).is_err(), "for good");
    publish(&snapshots, b"new").unwrap();
    assert_eq!(all(&*stores.log.open(), G1), entries(1..3, "a"));
    assert_eq!(written(&stores.state.open()), 1);
}

#[test]
fn a_state_store_whose_disk_gets_full_before_its_sync_ends() {
    let stores = MemoryStores::default();
    let state = stores.state.open();
    write(&state, 1).unwrap();
    stores.set_full(true);
    assert_eq!(kind(state.sync()), Some(ErrorKind::StorageFull));
    stores.set_full(false);
    assert!(state.sync().is_err(), "for good");
}

#[tokio::test(start_paused = true)]
async fn a_wiped_disk_is_empty_and_as_good_as_new() {
    let stores = slow();
    let (log, waits) = syncing(&stores).await;
    let (state, snapshots) = (stores.state.open(), stores.snapshots.open());
    write(&state, 1).and_then(|()| state.sync()).unwrap();
    publish(&snapshots, b"old").unwrap();
    stores.crash(&Drawn(1));
    stores.wipe();
    for wait in waits {
        assert!(flushed(wait).await.is_err());
    }
    drop(log);
    let log = stores.log.open();
    assert!(log.recovered().is_empty() && stores.log.durable(G1).is_empty());
    assert_eq!(stores.torn_tails_cut(), 0, "the torn tail is lost as well");
    assert_eq!((written(&stores.state.open()), published(&stores.snapshots.open())), (0, None));
    append(&*log, G1, entries(7..9, "new")).await.unwrap();
    assert_eq!(all(&*stores.log.open(), G1), entries(7..9, "new"));
}

/// Writes down what it hears.
#[derive(Default)]
struct Notes(Mutex<Vec<String>>);

impl Notes {
    fn take(&self) -> Vec<String> {
        std::mem::take(&mut self.0.lock())
    }
}

impl DiskObserver for Notes {
    fn log(&self, group: GroupId, op: &LogOp) {
        let what = match op {
            LogOp::Append(entries) => {
                let entries = entries.iter().map(|e| (e.index, String::from_utf8_lossy(&e.data)));
                format!("append {:?}", entries.collect::<Vec<_>>())
            }
            LogOp::Vote(vote) => format!("vote {vote:?}"),
            LogOp::Committed(committed) => format!("committed {committed:?}"),
            LogOp::TruncateAfter(last) => format!("truncate after {last:?}"),
            LogOp::Purge { index, .. } => format!("purge {index}"),
            LogOp::Remove => "remove".to_owned(),
        };
        self.0.lock().push(format!("{group} {what}"));
    }

    fn state(&self, group: GroupId, op: &StateOp) {
        let what = match op {
            StateOp::Write { changes, applied } => format!("{} changes to {applied:?}", changes.len()),
            StateOp::Remove => "removed".to_owned(),
        };
        self.0.lock().push(format!("{group} state: {what}"));
    }

    fn snapshot(&self, group: GroupId, published: Option<&SnapshotInfo>) {
        self.0.lock().push(format!("{group} snapshot: {:?}", published.map(|info| &info.meta)));
    }
}

fn observed() -> (MemoryStores, Arc<Notes>) {
    let (stores, notes) = (slow(), Arc::new(Notes::default()));
    stores.observe(notes.clone());
    (stores, notes)
}

#[tokio::test(start_paused = true)]
async fn an_observer_hears_of_log_writes_in_order_when_they_become_durable() {
    let (stores, notes) = observed();
    let log = stores.log.open();
    let (done, wait) = waiter();
    log.append(G1, entries(1..3, "a"), done);
    tokio::time::sleep(SECOND / 2).await;
    assert!(notes.take().is_empty(), "not durable yet");
    flushed(wait).await.unwrap();
    log.save_committed(G2, "id".into());
    truncate_after(&*log, G1, Some(1)).await.unwrap();
    purge(&*log, G1, 1).await.unwrap();
    save_vote(&*log, G2, b"vote").await.unwrap();
    remove_group(&*log, G1).await.unwrap();
    let expected = [
        "g1 append [(1, \"a 1\"), (2, \"a 2\")]",
        "g2 committed b\"id\"",
        "g1 truncate after Some(1)",
        "g1 purge 1",
        "g2 vote b\"vote\"",
        "g1 remove",
    ];
    assert_eq!(notes.take(), expected);
}

#[tokio::test(start_paused = true)]
async fn an_observer_hears_of_what_is_durable_though_never_acknowledged_and_of_nothing_lost() {
    for (number, outcome) in OUTCOMES {
        let (stores, notes) = observed();
        drop(syncing(&stores).await);
        let state = stores.state.open();
        write(&state, 1).unwrap();
        write(&state, 2).unwrap();
        notes.take();
        stores.crash(&Drawn(number));
        let log = ["g1 append [(1, \"a 1\"), (2, \"a 2\")]", "g1 append [(3, \"a 3\")]"];
        let mut expected = if outcome == Unsynced::Written { log.to_vec() } else { Vec::new() };
        expected.extend(
            ["g1 state: 2 changes to b\"\\x01\"", "g1 state: 2 changes to b\"\\x02\""].iter().take(number as usize),
        );
        assert_eq!(notes.take(), expected, "{outcome:?}");
    }
}

#[test]
fn an_observer_hears_of_records_and_snapshots() {
    let (stores, notes) = observed();
    let (state, snapshots) = (stores.state.open(), stores.snapshots.open());
    write(&state, 1).unwrap();
    assert!(notes.take().is_empty(), "not durable yet");
    state.replace(G1, &mut std::iter::empty(), b"m").unwrap();
    state.remove_group(G2).unwrap();
    publish(&snapshots, b"meta").unwrap();
    snapshots.remove_group(G1).unwrap();
    let expected = [
        "g1 state: 2 changes to b\"\\x01\"",
        "g1 state: removed",
        "g1 state: 0 changes to b\"m\"",
        "g2 state: removed",
        "g1 snapshot: Some(b\"meta\")",
        "g1 snapshot: None",
    ];
    assert_eq!(notes.take(), expected);
}
