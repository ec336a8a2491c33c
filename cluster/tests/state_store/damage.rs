//! Damage below sled, and below us: found, or gone back to an earlier whole state; never a wrong record.

use std::{fs, io, path::PathBuf};

use andante_cluster::storage::{SledState, StateStore};

use super::{
    G1, G2, Records, bytes, delete,
    disks::{Disk, SledDisk, copy_dir},
    load, set, state,
};

/// Marker and records of a group.
type State = (Option<Vec<u8>>, Records);

/// A closed store's disk and all states group 1 was in, the last one last.
fn written() -> (SledDisk, Vec<State>) {
    let disk = SledDisk::default();
    let store = disk.open();
    let mut states = vec![(None, Records::new())];
    let batches = [
        vec![set(b"a", "first"), set(b"b", bytes(9_000, 1)), set(b"c", "third")],
        vec![set(b"a", "second"), delete(b"c"), set(b"d", bytes(300, 2))],
        vec![set(b"b", bytes(9_000, 3)), set(b"e", "")],
    ];
    for (marker, batch) in (1..).zip(batches) {
        store.write(G1, &batch, &[marker]).unwrap();
        store.sync().unwrap();
        states.push(state(&*store, G1));
    }
    store.write(G2, &[set(b"other", "group")], b"other").unwrap();
    store.close().unwrap();
    (disk, states)
}

fn copy(disk: &SledDisk) -> SledDisk {
    let copy = SledDisk::default();
    copy_dir(&disk.dir(), &copy.dir());
    copy
}

/// Marker and records, or the first error on the way.
fn read(store: &dyn StateStore) -> io::Result<State> {
    Ok((store.applied(G1)?.map(Vec::from), load(store, G1)?))
}

fn raw_entries(disk: &SledDisk) -> Vec<(sled::IVec, sled::IVec)> {
    disk.raw(|db| db.scan_prefix(G1.0.to_be_bytes()).map(Result::unwrap).collect())
}

fn assert_damaged(disk: &SledDisk, what: &str) {
    let read = read(&*disk.open());
    assert!(matches!(&read, Err(e) if e.kind() == io::ErrorKind::InvalidData), "{what}: {read:?}");
}

#[test]
fn a_flipped_bit_in_any_stored_value_is_invalid_data() {
    let (disk, _) = written();
    let entries = raw_entries(&disk);
    assert_eq!(entries.len(), 1 + 4 + 2, "marker, records, the further parts of the long one");
    for (key, value) in entries {
        for byte in [0, value.len() / 2, value.len() - 1] {
            let disk = copy(&disk);
            let mut damaged = value.to_vec();
            damaged[byte] ^= 0x10;
            disk.raw(|db| db.insert(&key, damaged)).unwrap();
            assert_damaged(&disk, &format!("{key:?}, byte {byte}"));
        }
    }
}

#[test]
fn a_missing_or_additional_record_is_invalid_data() {
    let (disk, _) = written();
    let entries = raw_entries(&disk);
    for (key, value) in &entries[1..] {
        let lost = copy(&disk);
        lost.raw(|db| db.remove(key)).unwrap();
        assert_damaged(&lost, &format!("{key:?} is missing"));
        let cut = copy(&disk);
        cut.raw(|db| db.insert(key, &value[..value.len() - 1])).unwrap();
        assert_damaged(&cut, &format!("{key:?} is cut off"));
    }
    let moved = copy(&disk);
    moved.raw(|db| db.insert([&entries[1].0[..], b"x"].concat(), &entries[1].1)).unwrap();
    assert_damaged(&moved, "a record under two keys");
}

#[test]
fn an_older_version_of_a_record_or_marker_is_invalid_data() {
    let (disk, _) = written();
    let before = raw_entries(&disk);
    let store = disk.open();
    store.write(G1, &[set(b"a", "changed"), set(b"b", bytes(9_000, 9)), set(b"d", "changed")], b"4").unwrap();
    store.close().unwrap();
    let after = raw_entries(&disk);
    let mut changed = 0;
    for (key, old) in before {
        let Some((_, new)) = after.iter().find(|(now, _)| *now == key) else { continue };
        if *new != old {
            let disk = copy(&disk);
            disk.raw(|db| db.insert(&key, old)).unwrap();
            assert_damaged(&disk, &format!("{key:?} is an older one"));
            changed += 1;
        }
    }
    assert_eq!(changed, 1 + 3 + 2, "marker, three records, the further parts of the long one");
}

#[test]
fn a_group_without_marker_reads_as_empty() {
    let (disk, _) = written();
    let marker = raw_entries(&disk)[0].0.clone();
    disk.raw(|db| db.remove(marker)).unwrap();
    assert_eq!(read(&*disk.open()).unwrap(), (None, Records::new()));
}

#[test]
fn a_damaged_group_leaves_the_others_readable() {
    let (disk, _) = written();
    let (key, _) = raw_entries(&disk)[1].clone();
    disk.raw(|db| db.remove(key)).unwrap();
    let store = disk.open();
    assert_eq!(load(&*store, G1).unwrap_err().kind(), io::ErrorKind::InvalidData);
    assert_eq!(load(&*store, G2).unwrap()[&b"other"[..]], b"group");
    store.remove_group(G1).unwrap();
    store.write(G1, &[set(b"a", "new")], b"new").unwrap();
    assert_eq!(load(&*store, G1).unwrap()[&b"a"[..]], b"new");
}

/// Opens what is left after some damage to the files and checks that it reads as nothing wrong.
fn check_damaged_files(disk: &SledDisk, states: &[State], what: &str) -> bool {
    let found = SledState::open(&disk.dir()).and_then(|store| read(&store));
    match found {
        Ok(found) => {
            assert!(states.contains(&found), "{what}: a state that never was");
            found != *states.last().unwrap()
        }
        Err(error) => {
            assert_eq!(error.kind(), io::ErrorKind::InvalidData, "{what}: {error}");
            true
        }
    }
}

fn files(disk: &SledDisk) -> Vec<PathBuf> {
    let files = fs::read_dir(disk.dir()).unwrap().map(|file| file.unwrap().path());
    let mut files: Vec<_> = files.filter(|path| path.is_file()).collect();
    files.sort();
    files
}

#[test]
fn flipped_bytes_in_the_files_never_give_a_wrong_record() {
    let (disk, states) = written();
    let mut noticed = 0;
    for file in files(&disk) {
        let name = file.file_name().unwrap();
        let content = fs::read(&file).unwrap();
        // Where something is written, at most 60 places per file.
        let written: Vec<usize> = (0..content.len()).filter(|&byte| content[byte] != 0).collect();
        for &byte in written.iter().step_by((written.len() / 60).max(1)) {
            let disk = copy(&disk);
            let mut damaged = content.clone();
            damaged[byte] ^= 0x55;
            fs::write(disk.dir().join(name), damaged).unwrap();
            noticed += usize::from(check_damaged_files(&disk, &states, &format!("{name:?}, byte {byte}")));
        }
    }
    assert!(noticed > 20, "only {noticed} places mattered");
}

#[test]
fn cut_off_or_missing_files_never_give_a_wrong_record() {
    let (disk, states) = written();
    for file in files(&disk) {
        let name = file.file_name().unwrap();
        let length = fs::metadata(&file).unwrap().len();
        for cut in [0, 1, 10, 30, length / 50, length / 10, length / 2, length.saturating_sub(1)] {
            let disk = copy(&disk);
            let file = fs::OpenOptions::new().write(true).open(disk.dir().join(name)).unwrap();
            file.set_len(cut).unwrap();
            check_damaged_files(&disk, &states, &format!("{name:?} cut to {cut}"));
        }
        let disk = copy(&disk);
        fs::remove_file(disk.dir().join(name)).unwrap();
        check_damaged_files(&disk, &states, &format!("{name:?} removed"));
    }
}
