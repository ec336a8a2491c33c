//! openraft's storage conformance suite, over each set of stores, and what it does not check: the order on disk.

mod toy;

use andante_cluster::{
    env::Env,
    raft::{
        log::{FlushGate, GroupLog},
        machine::GroupMachine,
        types::{Command, Entry, LeaderId, LogId, TypeConfig},
    },
    storage::memory::MemoryStores,
};
use futures::stream;
use openraft::{
    EntryPayload, RaftSnapshotBuilder, StorageError,
    storage::{IOFlushed, RaftLogStorage, RaftStateMachine},
    testing::log::{StoreBuilder, Suite},
};
use tempfile::TempDir;

use toy::{
    add,
    storage::{GROUP, Storage},
    until,
};

/// The suite applies entries that no log holds, so its gate is open.
fn open_gate() -> Option<FlushGate> {
    Some(FlushGate::new(Some(u64::MAX)))
}

struct InMemory;

impl StoreBuilder<TypeConfig, GroupLog, GroupMachine, Storage> for InMemory {
    async fn build(&self) -> Result<(Storage, GroupLog, GroupMachine), StorageError<TypeConfig>> {
        let storage = Storage::in_memory(&MemoryStores::default(), open_gate());
        let (log, machine) = (storage.log.clone(), storage.machine());
        Ok((storage, log, machine))
    }
}

struct OnDisk;

impl StoreBuilder<TypeConfig, GroupLog, GroupMachine, (Storage, TempDir)> for OnDisk {
    async fn build(&self) -> Result<((Storage, TempDir), GroupLog, GroupMachine), StorageError<TypeConfig>> {
        let dir = tempfile::tempdir().expect("dir");
        let Env { stores, blocking, .. } = Env::production();
        let log = stores.open_log(&dir.path().join("log"), &*blocking).expect("opens");
        let state = stores.open_state(&dir.path().join("state"), &*blocking).expect("opens");
        let snapshots = stores.open_snapshots(&dir.path().join("snapshots"), &*blocking).expect("opens");
        let storage = Storage::open(log, state, snapshots, open_gate());
        let (log, machine) = (storage.log.clone(), storage.machine());
        Ok(((storage, dir), log, machine))
    }
}

#[tokio::test]
async fn the_in_memory_stores_conform() {
    Suite::test_all(InMemory).await.expect("conforms");
}

#[tokio::test]
async fn the_stores_on_disk_conform() {
    Suite::test_all(OnDisk).await.expect("conforms");
}

fn entry(index: u64) -> Entry {
    let payload = if index == 0 { EntryPayload::Blank } else { EntryPayload::Normal(Command(add(index, 1))) };
    Entry { log_id: LogId { leader_id: LeaderId { term: 1, node_id: 1 }, index }, payload }
}

/// Appends without waiting for the flush, and applies at once: what a follower does.
async fn append_and_apply(storage: &Storage, indexes: std::ops::Range<u64>) {
    let mut log = storage.log.clone();
    log.append(indexes.clone().map(entry), IOFlushed::noop()).await.expect("queued");
    let entries = indexes.map(|index| Ok((entry(index), None)));
    storage.machine().apply(stream::iter(entries)).await.expect("applied");
}

#[tokio::test]
async fn records_of_entries_that_are_applied_but_not_flushed_wait_for_the_log() {
    let memory = MemoryStores::default();
    let storage = Storage::in_memory(&memory, None);
    append_and_apply(&storage, 0..5).await;
    storage.stores.flusher.flush().await.expect("flushes");
    assert_eq!(storage.marker(), Some(4));

    memory.log.hold_flushes();
    append_and_apply(&storage, 5..9).await;
    let flusher = storage.stores.flusher.clone();
    let flush = tokio::spawn(async move { flusher.flush().await });
    let mut builder = storage.machine().try_create_snapshot_builder(true).await.expect("forced");
    let build = tokio::spawn(async move { builder.build_snapshot().await });
    // All there is to do is done by then, but for what waits for the log.
    for _ in 0..1_000 {
        tokio::task::yield_now().await;
    }
    assert!(!flush.is_finished() && !build.is_finished());
    assert_eq!((storage.marker(), storage.replica.durable()), (Some(4), Some(4)));
    assert_eq!(storage.stores.snapshots.current(GROUP).expect("readable"), None);

    memory.log.release_flushes();
    flush.await.expect("runs").expect("flushes");
    let built = build.await.expect("runs").expect("builds");
    assert_eq!((storage.marker(), built.meta.last_log_id.map(|id| id.index)), (Some(8), Some(8)));
}

#[tokio::test]
async fn a_snapshot_file_is_never_newer_than_the_durable_records() {
    let memory = MemoryStores::default();
    let storage = Storage::in_memory(&memory, None);
    append_and_apply(&storage, 0..5).await;
    let mut builder = storage.machine().try_create_snapshot_builder(true).await.expect("forced");
    append_and_apply(&storage, 5..9).await;
    let built = builder.build_snapshot().await.expect("builds");
    assert_eq!(built.meta.last_log_id.map(|id| id.index), Some(4), "as of its creation");
    assert!(storage.marker() >= Some(4));
    let crashed = Storage::in_memory(&memory, None);
    assert!(crashed.marker() >= Some(4), "also after a crash");
}

#[tokio::test]
async fn only_one_snapshot_of_a_node_is_built_at_once_unless_it_is_needed() {
    let memory = MemoryStores::default();
    let storage = Storage::in_memory(&memory, None);
    append_and_apply(&storage, 0..5).await;
    let first = storage.machine().try_create_snapshot_builder(false).await;
    assert!(first.is_some());
    assert!(storage.machine().try_create_snapshot_builder(false).await.is_none());
    assert!(storage.machine().try_create_snapshot_builder(true).await.is_some());
    drop(first);
    assert!(storage.machine().try_create_snapshot_builder(false).await.is_some());
}

#[tokio::test]
async fn an_older_batch_never_lands_on_an_installed_snapshot() {
    let (source, target) = (MemoryStores::default(), MemoryStores::default());
    let (from, to) = (Storage::in_memory(&source, None), Storage::in_memory(&target, None));
    append_and_apply(&from, 0..50).await;
    let mut builder = from.machine().try_create_snapshot_builder(true).await.expect("forced");
    let snapshot = builder.build_snapshot().await.expect("builds");

    // A batch of the target is cut and waits for its log.
    target.log.hold_flushes();
    append_and_apply(&to, 0..3).await;
    let flusher = to.stores.flusher.clone();
    let flush = tokio::spawn(async move { flusher.flush().await });
    let mut machine = to.machine();
    let meta = snapshot.meta.clone();
    let install = tokio::spawn(async move { machine.install_snapshot(&meta, snapshot.snapshot).await });
    tokio::task::yield_now().await;
    target.log.release_flushes();
    flush.await.expect("runs").expect("flushes");
    install.await.expect("runs").expect("installs");
    until("the installed state is durable", || to.marker() == Some(49)).await;
    assert_eq!(to.replica.digest().expect("works"), from.replica.digest().expect("works"));

    let crashed = Storage::in_memory(&target, None);
    let mut records = 0;
    crashed.stores.state.load(GROUP, &mut |_| records += 1).expect("loads");
    assert_eq!((crashed.marker(), records), (Some(49), 49));
}
