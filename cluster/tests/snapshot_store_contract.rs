//! What every `SnapshotStore` promises, checked on the in-memory twin, without and with crashes, and on files.

mod sim_disk;

use std::{
    fs, io,
    panic::{AssertUnwindSafe, catch_unwind},
    path::PathBuf,
    sync::Arc,
};

use andante_cluster::{
    GroupId, Record,
    storage::{
        SnapshotFiles, SnapshotInfo, SnapshotReader, SnapshotStore,
        memory::{MemorySnapshotDisk, MemoryStores},
    },
};
use proptest::prelude::*;
use sim_disk::Drawn;
use tempfile::TempDir;

const G1: GroupId = GroupId(1);
const G2: GroupId = GroupId(2);

/// Where a snapshot store keeps its data.
trait Disk {
    fn open(&self) -> Arc<dyn SnapshotStore>;
    fn flip_bit(&self, group: GroupId, offset_bytes: usize);
}

impl Disk for MemorySnapshotDisk {
    fn open(&self) -> Arc<dyn SnapshotStore> {
        Arc::new(self.open())
    }

    fn flip_bit(&self, group: GroupId, offset_bytes: usize) {
        assert!(self.flip_bit(group, offset_bytes));
    }
}

/// The twin's, which crashes before each opening.
#[derive(Default)]
struct CrashingDisk(MemoryStores);

impl Disk for CrashingDisk {
    fn open(&self) -> Arc<dyn SnapshotStore> {
        self.0.crash(&Drawn(0));
        Arc::new(self.0.snapshots.open())
    }

    fn flip_bit(&self, group: GroupId, offset_bytes: usize) {
        assert!(self.0.snapshots.flip_bit(group, offset_bytes));
    }
}

struct Folder(TempDir);

impl Default for Folder {
    fn default() -> Self {
        Self(tempfile::tempdir().unwrap())
    }
}

impl Folder {
    fn dir(&self) -> PathBuf {
        self.0.path().join("snapshots")
    }

    fn files(&self) -> Vec<String> {
        let files = fs::read_dir(self.dir()).unwrap();
        let mut files: Vec<_> = files.map(|file| file.unwrap().file_name().into_string().unwrap()).collect();
        files.sort();
        files
    }
}

impl Disk for Folder {
    fn open(&self) -> Arc<dyn SnapshotStore> {
        Arc::new(SnapshotFiles::open(&self.dir()).unwrap())
    }

    fn flip_bit(&self, group: GroupId, offset_bytes: usize) {
        let path = self.dir().join(format!("{group}.snapshot"));
        let mut bytes = fs::read(&path).unwrap();
        bytes[offset_bytes] ^= 1;
        fs::write(path, bytes).unwrap();
    }
}

/// Runs each check on each kind of disk, as tests of their own.
macro_rules! contract {
    ($($check:ident),* $(,)?) => {
        mod twin { $(#[test] fn $check() { super::$check(&super::MemorySnapshotDisk::default()); })* }
        mod crashing_twin { $(#[test] fn $check() { super::$check(&super::CrashingDisk::default()); })* }
        mod files { $(#[test] fn $check() { super::$check(&super::Folder::default()); })* }
    };
}

contract!(
    an_empty_store_has_no_snapshots,
    a_published_snapshot_loads_as_it_was,
    a_newer_snapshot_replaces_the_older_one,
    groups_have_snapshots_of_their_own,
    a_removed_snapshot_is_gone,
    a_publication_that_fails_leaves_the_older_snapshot,
    a_flipped_bit_anywhere_is_invalid_data_before_the_first_record,
    a_reader_keeps_its_snapshot_when_a_newer_one_is_published,
    a_snapshot_travels_in_chunks_to_another_store,
    what_does_not_verify_is_not_installed,
    an_abandoned_installation_leaves_nothing,
    any_records_come_back,
);

fn record(key: impl Into<Vec<u8>>, value: impl Into<Vec<u8>>) -> Record {
    Record { key: key.into(), value: value.into() }
}

fn records(seed: u8) -> Vec<Record> {
    (0..50u8).map(|i| record([i], vec![seed ^ i; usize::from(i) * 40])).collect()
}

fn publish(store: &dyn SnapshotStore, group: GroupId, seed: u8) {
    let info = store.publish(group, &[seed], &mut records(seed).into_iter()).unwrap();
    assert_eq!(store.current(group).unwrap(), Some(info));
}

/// Meta data and records of a group's snapshot.
fn load(store: &dyn SnapshotStore, group: GroupId) -> io::Result<Option<(Vec<u8>, Vec<Record>)>> {
    let mut records = Vec::new();
    let info = store.load(group, &mut |record| records.push(record))?;
    assert!(info.is_some() || records.is_empty());
    Ok(info.map(|info| (info.meta.to_vec(), records)))
}

fn expect(store: &dyn SnapshotStore, group: GroupId, seed: u8) {
    assert!(load(store, group).unwrap() == Some((vec![seed], records(seed))), "{group} has not snapshot {seed}");
}

fn kind<T>(result: io::Result<T>) -> Option<io::ErrorKind> {
    result.err().map(|error| error.kind())
}

/// The whole raw file, in chunks of a size.
fn raw(reader: &dyn SnapshotReader, chunk_bytes: usize) -> Vec<u8> {
    let mut bytes = Vec::new();
    loop {
        let chunk = reader.read_chunk(bytes.len() as u64, chunk_bytes).unwrap();
        if chunk.is_empty() {
            return bytes;
        }
        bytes.extend_from_slice(&chunk);
    }
}

fn install(store: &dyn SnapshotStore, group: GroupId, bytes: &[u8]) -> io::Result<()> {
    let mut install = store.begin_install(group)?;
    for chunk in bytes.chunks(1_000) {
        install.write_chunk(chunk)?;
    }
    assert_eq!(install.received_bytes(), bytes.len() as u64);
    install.publish().map(drop)
}

fn an_empty_store_has_no_snapshots(disk: &dyn Disk) {
    let store = disk.open();
    assert_eq!(store.current(G1).unwrap(), None);
    assert_eq!(load(&*store, G1).unwrap(), None);
    assert!(store.open_reader(G1).unwrap().is_none());
    store.remove_group(G1).unwrap();
}

fn a_published_snapshot_loads_as_it_was(disk: &dyn Disk) {
    let store = disk.open();
    publish(&*store, G1, 7);
    expect(&*store, G1, 7);
    let before = store.current(G1).unwrap();
    drop(store);
    let store = disk.open();
    assert_eq!(store.current(G1).unwrap(), before);
    expect(&*store, G1, 7);
    store.publish(G1, b"", &mut std::iter::empty()).unwrap();
    assert_eq!(load(&*disk.open(), G1).unwrap(), Some((vec![], vec![])));
}

fn a_newer_snapshot_replaces_the_older_one(disk: &dyn Disk) {
    let store = disk.open();
    for seed in 1..=3 {
        publish(&*store, G1, seed);
    }
    expect(&*store, G1, 3);
    expect(&*disk.open(), G1, 3);
}

fn groups_have_snapshots_of_their_own(disk: &dyn Disk) {
    let store = disk.open();
    let groups = [0, 1, 2, 10, 11, u32::MAX].map(GroupId);
    for (seed, group) in (0..).zip(groups) {
        publish(&*store, group, seed);
    }
    for (seed, group) in (0..).zip(groups) {
        expect(&*store, group, seed);
    }
}

fn a_removed_snapshot_is_gone(disk: &dyn Disk) {
    let store = disk.open();
    publish(&*store, G1, 1);
    publish(&*store, G2, 2);
    store.remove_group(G1).unwrap();
    assert_eq!(store.current(G1).unwrap(), None);
    let store = disk.open();
    assert_eq!(load(&*store, G1).unwrap(), None);
    expect(&*store, G2, 2);
}

fn a_publication_that_fails_leaves_the_older_snapshot(disk: &dyn Disk) {
    let store = disk.open();
    publish(&*store, G1, 1);
    for bad in [vec![record("b", "1"), record("a", "2")], vec![record("", "1")], vec![record([1; 129], "1")]] {
        let refused = store.publish(G1, b"new", &mut bad.into_iter());
        assert_eq!(kind(refused), Some(io::ErrorKind::InvalidInput));
        expect(&*store, G1, 1);
    }
    let mut failing = records(2).into_iter().chain(std::iter::once_with(|| panic!("no more")));
    assert!(catch_unwind(AssertUnwindSafe(|| store.publish(G1, b"new", &mut failing))).is_err());
    expect(&*store, G1, 1);
    expect(&*disk.open(), G1, 1);
}

fn a_flipped_bit_anywhere_is_invalid_data_before_the_first_record(disk: &dyn Disk) {
    let store = disk.open();
    let three = || [record("a", "1"), record("b", [2; 30]), record("c", "")].into_iter();
    let size_bytes = store.publish(G1, b"meta", &mut three()).unwrap().size_bytes as usize;
    for offset in 0..size_bytes {
        disk.flip_bit(G1, offset);
        let outcome = store.load(G1, &mut |_| panic!("a record of a damaged snapshot"));
        assert_eq!(kind(outcome), Some(io::ErrorKind::InvalidData), "byte {offset}");
        if let Ok(info) = store.current(G1) {
            assert_eq!(info.unwrap().meta, b"meta"[..], "a flipped bit in the header went unseen");
        }
        disk.flip_bit(G1, offset);
    }
    assert_eq!(load(&*store, G1).unwrap(), Some((b"meta".to_vec(), three().collect())));
}

fn a_reader_keeps_its_snapshot_when_a_newer_one_is_published(disk: &dyn Disk) {
    let store = disk.open();
    publish(&*store, G1, 1);
    let reader = store.open_reader(G1).unwrap().unwrap();
    let before = raw(&*reader, 100);
    publish(&*store, G1, 2);
    assert!(raw(&*reader, 1_000) == before);
    store.remove_group(G1).unwrap();
    assert!(raw(&*reader, usize::MAX) == before);
    assert_eq!(reader.info().meta, [1][..]);
    assert_eq!(reader.info().size_bytes, before.len() as u64);
    for offset in [reader.info().size_bytes, u64::MAX] {
        assert!(reader.read_chunk(offset, 10).unwrap().is_empty());
    }
}

fn a_snapshot_travels_in_chunks_to_another_store(disk: &dyn Disk) {
    let store = disk.open();
    publish(&*store, G1, 1);
    let bytes = raw(&*store.open_reader(G1).unwrap().unwrap(), 777);
    // Both kinds of store understand each other.
    for target in [&MemorySnapshotDisk::new() as &dyn Disk, &Folder::default()] {
        let peer = target.open();
        publish(&*peer, G1, 9);
        let mut install = peer.begin_install(G1).unwrap();
        for chunk in bytes.chunks(1_234) {
            install.write_chunk(chunk).unwrap();
            expect(&*peer, G1, 9);
        }
        let info = install.publish().unwrap();
        assert_eq!(peer.current(G1).unwrap(), Some(info));
        expect(&*peer, G1, 1);
        expect(&*target.open(), G1, 1);
    }
}

fn what_does_not_verify_is_not_installed(disk: &dyn Disk) {
    let store = disk.open();
    publish(&*store, G1, 1);
    publish(&*store, G2, 2);
    let good = raw(&*store.open_reader(G1).unwrap().unwrap(), 4_096);
    let mut flipped = good.clone();
    flipped[good.len() / 2] ^= 8;
    let longer = [&good[..], b"x"].concat();
    let cut = [0, 1, 8, 23, 24, 30, good.len() - 1].map(|length| good[..length].to_vec());
    for bad in cut.into_iter().chain([flipped, longer, good[1..].to_vec()]) {
        assert_eq!(kind(install(&*store, G1, &bad)), Some(io::ErrorKind::InvalidData));
    }
    assert_eq!(kind(install(&*store, G2, &good)), Some(io::ErrorKind::InvalidData), "another group's");
    expect(&*store, G1, 1);
    expect(&*store, G2, 2);
}

fn an_abandoned_installation_leaves_nothing(disk: &dyn Disk) {
    let store = disk.open();
    let mut install = store.begin_install(G1).unwrap();
    install.write_chunk(&[1; 10_000]).unwrap();
    drop(install);
    assert_eq!(store.current(G1).unwrap(), None);
    assert_eq!(disk.open().current(G1).unwrap(), None);
}

fn any_records_come_back(disk: &dyn Disk) {
    let store = disk.open();
    let key = prop::collection::vec(any::<u8>(), 1..=128);
    let value = prop_oneof![prop::collection::vec(any::<u8>(), 0..50), prop::collection::vec(any::<u8>(), 0..9_000)];
    let contents = (prop::collection::vec(any::<u8>(), 0..200), prop::collection::btree_map(key, value, 0..20));
    let mut runner = proptest::test_runner::TestRunner::new(ProptestConfig { cases: 40, ..Default::default() });
    runner
        .run(&contents, |(meta, records)| {
            let records: Vec<_> = records.into_iter().map(|(key, value)| Record { key, value }).collect();
            store.publish(G1, &meta, &mut records.clone().into_iter()).unwrap();
            assert!(load(&*store, G1).unwrap() == Some((meta, records)));
            Ok(())
        })
        .unwrap();
}

#[test]
fn unfinished_files_are_removed_at_open_and_nothing_else() {
    let folder = Folder::default();
    let store = folder.open();
    publish(&*store, G1, 1);
    let install = store.begin_install(G2).unwrap();
    assert_eq!(folder.files().len(), 2);
    // As if the process had ended here: nobody removes its temporary file.
    std::mem::forget(install);
    fs::write(folder.dir().join("notes.txt"), "somebody's").unwrap();
    expect(&*folder.open(), G1, 1);
    assert_eq!(folder.files(), ["g1.snapshot", "notes.txt"]);
}

#[test]
fn finished_and_failed_publications_leave_no_temporary_files() {
    let folder = Folder::default();
    let store = folder.open();
    publish(&*store, G1, 1);
    assert!(store.publish(G1, b"new", &mut [record("", "")].into_iter()).is_err());
    assert!(install(&*store, G2, b"no snapshot at all").is_err());
    drop(store.begin_install(G2).unwrap());
    assert_eq!(folder.files(), ["g1.snapshot"]);
}

#[test]
fn a_cut_off_file_is_invalid_data() {
    let folder = Folder::default();
    let store = folder.open();
    publish(&*store, G1, 1);
    let path = folder.dir().join("g1.snapshot");
    let bytes = fs::read(&path).unwrap();
    for length in [0, 1, 15, 16, 17, 24, 25, 40, bytes.len() / 2, bytes.len() - 1] {
        fs::write(&path, &bytes[..length]).unwrap();
        assert_eq!(kind(load(&*store, G1)), Some(io::ErrorKind::InvalidData), "{length} bytes");
    }
}

/// One step of a history on two stores at once.
#[derive(Debug, Clone)]
enum Step {
    Publish {
        group: u32,
        seed: u8,
    },
    PublishBad {
        group: u32,
    },
    /// `flip`: a byte that is damaged on the way.
    Install {
        from: u32,
        to: u32,
        flip: Option<usize>,
    },
    Flip {
        group: u32,
        offset_bytes: usize,
    },
    Remove {
        group: u32,
    },
    Reopen,
}

fn step() -> impl Strategy<Value = Step> {
    let group = 0..3u32;
    prop_oneof![
        4 => (group.clone(), any::<u8>()).prop_map(|(group, seed)| Step::Publish { group, seed }),
        1 => group.clone().prop_map(|group| Step::PublishBad { group }),
        4 => (group.clone(), group.clone(), prop::option::weighted(0.3, 0..50_000usize))
            .prop_map(|(from, to, flip)| Step::Install { from, to, flip }),
        1 => (group.clone(), 0..50usize).prop_map(|(group, offset_bytes)| Step::Flip { group, offset_bytes }),
        2 => group.prop_map(|group| Step::Remove { group }),
        1 => Just(Step::Reopen),
    ]
}

/// Takes a step other than opening again.
fn take(disk: &dyn Disk, store: &dyn SnapshotStore, step: &Step) -> Result<(), io::ErrorKind> {
    let result = match *step {
        Step::Publish { group, seed } => {
            store.publish(GroupId(group), &[seed], &mut records(seed).into_iter()).map(drop)
        }
        Step::PublishBad { group } => {
            store.publish(GroupId(group), b"bad", &mut [record("b", ""), record("a", "")].into_iter()).map(drop)
        }
        Step::Install { from, to, flip } => store.open_reader(GroupId(from)).and_then(|reader| {
            let mut bytes = reader.map_or_else(Vec::new, |reader| raw(&*reader, 10_000));
            if let Some(byte) = flip.and_then(|at| bytes.get_mut(at)) {
                *byte ^= 1;
            }
            install(store, GroupId(to), &bytes)
        }),
        Step::Flip { group, offset_bytes } => {
            if store.current(GroupId(group)).is_ok_and(|found| found.is_some()) {
                disk.flip_bit(GroupId(group), offset_bytes);
            }
            Ok(())
        }
        Step::Remove { group } => store.remove_group(GroupId(group)),
        Step::Reopen => Ok(()),
    };
    result.map_err(|error| error.kind())
}

type Seen = Result<(Option<SnapshotInfo>, Option<(Vec<u8>, Vec<Record>)>, Option<Vec<u8>>), io::ErrorKind>;

/// All that a store shows of a group.
fn seen(store: &dyn SnapshotStore, group: GroupId) -> Seen {
    let reader = || store.open_reader(group).map(|reader| reader.map(|reader| raw(&*reader, 10_000)));
    let current = store.current(group);
    let seen = current.and_then(|current| Ok((current, load(store, group)?, reader()?)));
    seen.map_err(|error| error.kind())
}

#[test]
fn the_twin_and_files_cannot_be_told_apart() {
    let mut runner = proptest::test_runner::TestRunner::new(ProptestConfig { cases: 40, ..Default::default() });
    runner
        .run(&prop::collection::vec(step(), 1..30), |steps| {
            let (twin, folder) = (CrashingDisk::default(), Folder::default());
            let disks = [&twin as &dyn Disk, &folder];
            let mut stores = disks.map(Disk::open);
            for (n, step) in steps.iter().enumerate() {
                let [a, b] = [0, 1].map(|i| take(disks[i], &*stores[i], step));
                assert_eq!(a, b, "step {n} {step:?}");
                if let Step::Reopen = step {
                    stores = disks.map(Disk::open);
                }
                for group in (0..3).map(GroupId) {
                    assert!(seen(&*stores[0], group) == seen(&*stores[1], group), "{group} after step {n} {step:?}");
                }
            }
            Ok(())
        })
        .unwrap();
}
