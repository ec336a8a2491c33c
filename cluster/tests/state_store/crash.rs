//! A real process, really killed: what was synced is there, and whole.

use std::{
    env, fs,
    io::{BufRead, BufReader, Write},
    path::Path,
    process::{Command, Stdio},
};

use andante_cluster::{
    RecordChange,
    storage::{SledState, StateStore},
};

use super::{G1, bytes, set, state};

/// Tells the process to be killed where to write.
const DIR: &str = "ANDANTE_TEST_STATE_DIR";

/// Records in a batch; every batch sets all of them.
const RECORDS: u8 = 12;

/// A batch of a number: the lengths differ from batch to batch, from a few bytes to several parts.
fn batch(number: u32) -> Vec<RecordChange> {
    (0..RECORDS).map(|key| set(&[key], bytes((number as usize * 37 + usize::from(key) * 900) % 11_000, key))).collect()
}

fn last_batch(store: &dyn StateStore) -> u32 {
    store.applied(G1).unwrap().map_or(0, |marker| u32::from_be_bytes(marker[..].try_into().unwrap()))
}

/// Writes batches, syncs after every third one, and tells each synced one's number.
fn write_batches(dir: &Path, count: usize, tell: &mut dyn Write) {
    let store = SledState::open(dir).unwrap();
    let first = last_batch(&store) + 1;
    for number in (first..).take(count) {
        store.write(G1, &batch(number), &number.to_be_bytes()).unwrap();
        if number % 3 == 0 {
            store.sync().unwrap();
            writeln!(tell, "synced {number}").unwrap();
        }
    }
}

/// Reads what a process left and gives the number of its last batch.
fn check(dir: &Path) -> u32 {
    let store = SledState::open(dir).unwrap();
    let number = last_batch(&store);
    let (_, records) = state(&store, G1);
    let expected = if number == 0 { Vec::new() } else { batch(number) };
    let expected = expected.into_iter().map(|change| (change.key, change.value.unwrap())).collect();
    assert!(records == expected, "batch {number} is not whole");
    number
}

/// Also the process that is killed: started with a directory, it writes there without end.
#[test]
fn synced_batches_are_told_in_order() {
    if let Some(dir) = env::var_os(DIR) {
        write_batches(Path::new(&dir), usize::MAX, &mut std::io::stdout());
    }
    let dir = tempfile::tempdir().unwrap();
    let mut told = Vec::new();
    write_batches(dir.path(), 7, &mut told);
    assert_eq!(String::from_utf8(told).unwrap(), "synced 3\nsynced 6\n");
    assert_eq!(check(dir.path()), 7);
}

#[test]
fn a_killed_process_loses_no_synced_batch_and_leaves_no_part_of_one() {
    let root = tempfile::tempdir().unwrap();
    let dir = root.path().join("state");
    for synced_before_kill in [1, 8, 30, 3, 15] {
        let mut writer = Command::new(env::current_exe().unwrap())
            .args(["--exact", "state_store::crash::synced_batches_are_told_in_order", "--nocapture"])
            .env(DIR, &dir)
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let lines = BufReader::new(writer.stdout.take().unwrap()).lines();
        // libtest may print in the same line before the first of ours.
        let mut told =
            lines.filter_map(|line| line.unwrap().split_once("synced ").map(|(_, number)| number.to_owned()));
        // The pipe stays open to the end: the writer must be killed, not stopped by an error.
        let synced: u32 =
            told.by_ref().take(synced_before_kill).last().expect("the writer ended early").parse().unwrap();
        writer.kill().unwrap();
        writer.wait().unwrap();
        assert!(fs::metadata(&dir).unwrap().is_dir());
        let found = check(&dir);
        assert!(found >= synced, "batch {synced} was synced, {found} was found");
    }
}
