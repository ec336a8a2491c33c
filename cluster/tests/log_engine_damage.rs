//! What happens to synced data is noticed, what happens to the unsynced tail is cut: raft-engine's log store against
//! bit flips, lost files and torn writes, and beside its in-memory twin.

mod log_store;
mod sim_disk;

use std::{
    io::{self, Seek, SeekFrom, Write},
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use andante_cluster::{
    GroupId,
    env::{OsThreads, SystemClock},
    storage::{
        EngineLogStore, LogEngineConfig, LogStore,
        memory::{MemoryStores, Store, Unsynced},
    },
};
use log_store::{
    files::*,
    model::{self, Step},
    side_by_side::{Contents, Writer, contents, outcomes},
    *,
};
use proptest::{
    strategy::{Strategy, ValueTree},
    test_runner::{Config, RngAlgorithm, TestRng, TestRunner},
};
use raft_engine::env::{DefaultFileSystem, FileSystem, Handle, Permission, WriteExt};
use sim_disk::Drawn;

const G1: GroupId = GroupId(1);
const G2: GroupId = GroupId(2);

/// Opening must be refused as damage, and change nothing.
fn assert_refused(damaged: &Files, what: &str) {
    let dir = restore(damaged);
    match open_engine(dir.path()) {
        Err(e) => assert_eq!(e.kind(), io::ErrorKind::InvalidData, "{what}: {e}"),
        Ok(_) => panic!("{what} went unnoticed"),
    }
    assert!(files(dir.path()) == *damaged, "{what}: files were changed");
}

/// A log of several files in both queues, closed.
async fn closed_log() -> Files {
    let disk = EngineDisk::new();
    let store = open_engine(disk.0.path()).unwrap();
    save_vote(&store, G2, b"an old vote").await.unwrap();
    append(&store, G2, entries(1..9, "old entries that stay")).await.unwrap();
    for i in 0..60 {
        append(&store, G1, entries(i * 10..i * 10 + 10, "some longer text to fill the files with")).await.unwrap();
        purge(&store, G1, i * 10 + 5).await.unwrap();
    }
    // More than is rewritten at once, so that it stays where it is.
    for i in 60.. {
        append(&store, G1, entries(i * 10..i * 10 + 10, "some longer text to fill the files with")).await.unwrap();
        if i >= 70 && log_files(&files(disk.0.path()), ".raftlog").len() > 1 {
            break;
        }
    }
    store.close().unwrap();
    drop(store);
    files(disk.0.path())
}

#[tokio::test]
async fn a_flipped_bit_anywhere_in_synced_data_is_refused_and_nothing_changed() {
    let good = closed_log().await;
    let (append, rewrite) = (log_files(&good, ".raftlog"), log_files(&good, ".rewrite"));
    assert!(append.len() > 1 && rewrite.iter().any(|path| good[*path].len() > 200), "{append:?} {rewrite:?}");
    for path in append.into_iter().chain(rewrite).chain(log_files(&good, "witness")) {
        let len = good[path].len();
        // Every byte of the beginning, then samples; the last byte of all.
        for at in (0..200.min(len)).chain((200..len).step_by(41)).chain([len - 1]) {
            let mut bad = good.clone();
            bad.get_mut(path).unwrap()[at] ^= 1 << (at % 8);
            if len == FILE_HEADER {
                // A file that holds nothing yet may be torn; it is made again.
                drop(open_engine(restore(&bad).path()).unwrap());
            } else {
                assert_refused(&bad, &format!("bit {} of byte {at} of {}", at % 8, path.display()));
            }
        }
    }
}

/// Length of a log file that holds nothing.
const FILE_HEADER: usize = 69;

#[tokio::test]
async fn cut_or_lost_files_are_refused_and_nothing_changed() {
    let good = closed_log().await;
    for path in good.keys().filter(|path| !path.to_str().unwrap().to_lowercase().ends_with("lock")) {
        let mut bad = good.clone();
        let bytes = bad.remove(path).unwrap();
        if bytes.len() > FILE_HEADER {
            assert_refused(&bad, &format!("the loss of {}", path.display()));
        }
        for len in (FILE_HEADER..bytes.len()).step_by(97) {
            bad.insert(path.clone(), bytes[..len].to_vec());
            assert_refused(&bad, &format!("{} cut to {len}", path.display()));
        }
    }
    let mut bad = good.clone();
    bad.retain(|path, _| !path.starts_with("engine"));
    assert_refused(&bad, "the loss of all log files");
}

#[tokio::test]
async fn a_vote_older_than_promised_is_refused() {
    let disk = EngineDisk::new();
    let store = open_engine(disk.0.path()).unwrap();
    save_vote(&store, G1, b"first").await.unwrap();
    let before = files(disk.0.path());
    save_vote(&store, G1, b"second").await.unwrap();
    // As if the last batch, with the vote in it, had been lost from the log, without a graceful end.
    let mut bad = before;
    let witness = PathBuf::from("witness");
    bad.insert(witness.clone(), files(disk.0.path())[&witness].clone());
    assert_refused(&bad, "a lost vote");
}

#[tokio::test]
async fn a_torn_tail_is_cut_at_every_byte_and_everything_synced_comes_back() {
    let disk = EngineDisk::new();
    let store = open_engine(disk.0.path()).unwrap();
    save_vote(&store, G1, b"vote").await.unwrap();
    append(&store, G1, entries(1..9, "synced")).await.unwrap();
    let before = files(disk.0.path());
    let bytes_before = store.stats().bytes;
    append(&store, G1, entries(9..11, "torn")).await.unwrap();
    let batch = (store.stats().bytes - bytes_before) as usize;
    store.close().unwrap();
    drop(store);
    let path = log_files(&before, ".raftlog")[0].clone();
    let whole = files(disk.0.path())[&path].clone();
    let start = whole.len() - batch;
    assert_eq!(before[&path][..start], whole[..start], "the last batch is where it is looked for");

    let synced = entries(1..9, "synced");
    for cut in start..=whole.len() {
        let complete = cut == whole.len();
        let padded = before[&path].len().max(whole.len());
        let variants = [
            ("cut", whole[..cut].to_vec()),
            ("zeros behind", [&whole[..cut], &vec![0; padded - cut]].concat()),
            ("garbage behind", [&whole[..cut], &vec![0xa5; whole.len() - cut]].concat()),
            ("first part lost", [&whole[..start], &vec![0; cut - start], &whole[cut..]].concat()),
        ];
        // Each opening syncs: the other kinds are tried at every fifth byte.
        let kinds = if complete || (cut - start).is_multiple_of(5) { variants.len() } else { 1 };
        for (kind, bytes) in variants.into_iter().take(kinds) {
            let mut torn = before.clone();
            torn.insert(path.clone(), bytes);
            let dir = restore(&torn);
            let store = open_engine(dir.path()).unwrap_or_else(|e| panic!("{kind} at {}: {e}", cut - start));
            let found = all(&store, G1);
            // The batch begins with zeros: losing these loses nothing.
            let intact = torn[&path].starts_with(&whole);
            let expected = if intact { [synced.clone(), entries(9..11, "torn")].concat() } else { synced.clone() };
            assert_eq!(found, expected, "{kind} at {}", cut - start);
            assert_eq!(store.recovered()[&G1].vote.as_deref(), Some(&b"vote"[..]));
        }
    }
}

#[tokio::test]
async fn a_log_that_is_open_cannot_be_opened_again() {
    let disk = EngineDisk::new();
    let store = open_engine(disk.0.path()).unwrap();
    assert_eq!(open_engine(disk.0.path()).err().unwrap().kind(), io::ErrorKind::ResourceBusy);
    drop(store);
    open_engine(disk.0.path()).unwrap();
}

#[tokio::test]
async fn a_store_may_be_dropped_by_its_own_callback() {
    let disk = EngineDisk::new();
    let store = Arc::new(open_engine(disk.0.path()).unwrap());
    let (done, wait) = waiter();
    let last = store.clone();
    store.append(
        G1,
        entries(1..2, "a"),
        Box::new(move |result| {
            drop(last);
            done(result);
        }),
    );
    drop(store);
    // Either the callback came first, or the store was dropped before the write.
    drop(wait.await);
}

/// The history's writes on a twin whose machine stops while the last one is being synced.
async fn crashed_twin(history: &[Step], outcome: (u64, Unsynced)) -> Contents {
    let stores = MemoryStores::default();
    let log = stores.log.open();
    let mut writer = Writer::new();
    for (n, step) in history.iter().enumerate() {
        if n + 1 == history.len() {
            writer.settle().await;
            stores.set_sync_time(Duration::from_secs(3600), Duration::from_secs(3600), Arc::new(Drawn(0)));
        }
        writer.write(&*log, step, n).await;
    }
    tokio::task::yield_now().await;
    let (fate, writes) = stores.crash(&Drawn(outcome.0)).log_batch.expect("a batch is being synced");
    assert!(fate == outcome.1 && writes > 0);
    contents(&*stores.log.open())
}

/// The history's writes on the real one. Files before the last one, and the append file, with the place where the
/// last batch starts, after it.
async fn files_of(history: &[Step]) -> (Files, PathBuf, Vec<u8>, usize) {
    let dir = tempfile::tempdir().unwrap();
    // Large enough for one file.
    let config = LogEngineConfig { target_file_bytes: 1 << 20, purge_threshold_bytes: 4 << 20 };
    let store = EngineLogStore::open(dir.path(), &config, Arc::new(SystemClock::default()), &OsThreads).unwrap();
    let mut writer = Writer::new();
    let (last, earlier) = history.split_last().unwrap();
    for (n, step) in earlier.iter().enumerate() {
        writer.write(&store, step, n).await;
    }
    writer.settle().await;
    let before = files(dir.path());
    let bytes_before = store.stats().bytes;
    writer.write(&store, last, earlier.len()).await;
    writer.settle().await;
    let batch_bytes = (store.stats().bytes - bytes_before) as usize;
    store.close().unwrap();
    let path = log_files(&before, ".raftlog")[0].clone();
    let whole = files(dir.path())[&path].clone();
    let start = whole.len() - batch_bytes;
    (before, path, whole, start)
}

#[tokio::test]
async fn what_a_crash_leaves_of_the_last_batch_is_what_the_twin_leaves() {
    let rng = TestRng::from_seed(RngAlgorithm::ChaCha, &[41; 32]);
    let mut runner = TestRunner::new_with_rng(Config::default(), rng);
    for _ in 0..16 {
        let mut history = model::steps().new_tree(&mut runner).unwrap().current();
        history.retain(|step| !matches!(step, Step::Reopen { .. }));
        // The last step starts a sync.
        while matches!(history.last(), Some(Step::Wait | Step::Committed { .. })) {
            history.pop();
        }
        if history.is_empty() {
            continue;
        }
        let (before, path, whole, start) = files_of(&history).await;
        let middle = start.midpoint(whole.len());
        let cuts = [
            (start, (0, Unsynced::Lost)),
            (start + 1, (1, Unsynced::Torn)),
            (middle, (1, Unsynced::Torn)),
            (whole.len() - 1, (1, Unsynced::Torn)),
            (whole.len(), (2, Unsynced::Written)),
        ];
        for (cut, outcome) in cuts {
            let mut left = before.clone();
            left.insert(path.clone(), whole[..cut].to_vec());
            let found = contents(&open_engine(restore(&left).path()).unwrap());
            assert_eq!(found, crashed_twin(&history, outcome).await, "{outcome:?} after {history:?}");
        }
    }
}

/// A disk whose syncs fail, or whose writes find no space, on demand.
#[derive(Clone, Default)]
struct FailingFiles {
    failing: Arc<AtomicBool>,
    full: Arc<AtomicBool>,
}

struct FailingHandle {
    inner: Arc<<DefaultFileSystem as FileSystem>::Handle>,
    failing: Arc<AtomicBool>,
}

impl Handle for FailingHandle {
    fn truncate(&self, offset: usize) -> io::Result<()> {
        self.inner.truncate(offset)
    }

    fn file_size(&self) -> io::Result<usize> {
        self.inner.file_size()
    }

    fn sync(&self) -> io::Result<()> {
        if self.failing.load(Ordering::SeqCst) { Err(io::Error::from_raw_os_error(5)) } else { self.inner.sync() }
    }
}

struct FailingWriter {
    inner: <DefaultFileSystem as FileSystem>::Writer,
    full: Arc<AtomicBool>,
}

impl Write for FailingWriter {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        if self.full.load(Ordering::SeqCst) { Err(io::ErrorKind::StorageFull.into()) } else { self.inner.write(buf) }
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

impl Seek for FailingWriter {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        self.inner.seek(to)
    }
}

impl WriteExt for FailingWriter {
    fn truncate(&mut self, offset: usize) -> io::Result<()> {
        self.inner.truncate(offset)
    }

    fn allocate(&mut self, offset: usize, size: usize) -> io::Result<()> {
        self.inner.allocate(offset, size)
    }
}

impl FileSystem for FailingFiles {
    type Handle = FailingHandle;
    type Reader = <DefaultFileSystem as FileSystem>::Reader;
    type Writer = FailingWriter;

    fn create<P: AsRef<Path>>(&self, path: P) -> io::Result<FailingHandle> {
        Ok(FailingHandle { inner: Arc::new(DefaultFileSystem.create(path)?), failing: self.failing.clone() })
    }

    fn open<P: AsRef<Path>>(&self, path: P, perm: Permission) -> io::Result<FailingHandle> {
        Ok(FailingHandle { inner: Arc::new(DefaultFileSystem.open(path, perm)?), failing: self.failing.clone() })
    }

    fn delete<P: AsRef<Path>>(&self, path: P) -> io::Result<()> {
        DefaultFileSystem.delete(path)
    }

    fn rename<P: AsRef<Path>>(&self, src_path: P, dst_path: P) -> io::Result<()> {
        DefaultFileSystem.rename(src_path, dst_path)
    }

    fn new_reader(&self, handle: Arc<FailingHandle>) -> io::Result<Self::Reader> {
        DefaultFileSystem.new_reader(handle.inner.clone())
    }

    fn new_writer(&self, handle: Arc<FailingHandle>) -> io::Result<Self::Writer> {
        Ok(FailingWriter { inner: DefaultFileSystem.new_writer(handle.inner.clone())?, full: self.full.clone() })
    }
}

fn open_failing(dir: &Path) -> (EngineLogStore, FailingFiles) {
    let (files, clock) = (FailingFiles::default(), Arc::new(SystemClock::default()));
    (EngineLogStore::open_on(dir, &small_files(), clock, &OsThreads, files.clone()).unwrap(), files)
}

#[tokio::test]
async fn a_failed_sync_fails_its_callbacks_and_every_later_call_as_with_the_twin() {
    let dir = tempfile::tempdir().unwrap();
    let (store, files) = open_failing(dir.path());
    append(&store, G1, entries(1..4, "synced")).await.unwrap();
    files.failing.store(true, Ordering::SeqCst);
    let failed = append(&store, G1, entries(4..6, "lost")).await.unwrap_err();
    files.failing.store(false, Ordering::SeqCst);
    let later = outcomes(&store).await;
    assert!(later.iter().all(Option::is_some), "{later:?}");
    drop(store);
    let found = all(&open_engine(dir.path()).unwrap(), G1);
    assert_eq!(found[..3], entries(1..4, "synced"));

    let stores = MemoryStores::default();
    let twin = stores.log.open();
    stores.fail_next_sync(Store::Log, Unsynced::Written);
    assert_eq!(append(&*twin, G1, entries(4..6, "lost")).await.unwrap_err().kind(), failed.kind());
    assert_eq!(outcomes(&*twin).await, later);
}

#[tokio::test]
async fn a_full_disk_fails_the_write_and_every_later_call_as_with_the_twin() {
    let dir = tempfile::tempdir().unwrap();
    let (store, files) = open_failing(dir.path());
    append(&store, G1, entries(1..4, "synced")).await.unwrap();
    files.full.store(true, Ordering::SeqCst);
    let failed = append(&store, G1, entries(4..6, "lost")).await.unwrap_err();
    assert_eq!(failed.kind(), io::ErrorKind::StorageFull);
    files.full.store(false, Ordering::SeqCst);
    let later = outcomes(&store).await;
    assert_eq!(later, [Some(io::ErrorKind::StorageFull); 4]);
    drop(store);
    assert_eq!(all(&open_engine(dir.path()).unwrap(), G1), entries(1..4, "synced"));

    let stores = MemoryStores::default();
    let twin = stores.log.open();
    stores.set_full(true);
    assert_eq!(append(&*twin, G1, entries(4..6, "lost")).await.unwrap_err().kind(), failed.kind());
    assert_eq!(outcomes(&*twin).await, later);
}
