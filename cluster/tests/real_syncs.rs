//! Proof by strace that "durable" means a system call that waits for the disk.
//!
//! Each probe is an ordinary test that marks its steps by creating files. The proof runs this same binary once more
//! under strace, with a directory for the probe, and reads the system calls between two marks.

use std::{
    env, fs,
    io::Write,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use andante_cluster::{
    GroupId, Record, RecordChange,
    storage::{SledState, SnapshotFiles, SnapshotStore, StateStore},
};

/// Tells a probe under strace where to work.
const DIR: &str = "ANDANTE_TEST_PROBE_DIR";

/// Runs a probe in a directory of its own.
fn probe(run: impl FnOnce(&Path)) {
    let own = tempfile::tempdir().unwrap();
    let dir = env::var_os(DIR).map_or_else(|| own.path().to_owned(), PathBuf::from);
    run(&dir);
}

fn mark(dir: &Path, name: &str) {
    fs::write(dir.join(name), "").unwrap();
}

#[test]
fn probe_state() {
    probe(|dir| {
        mark(dir, "mark-opening");
        let store = SledState::open(&dir.join("state")).unwrap();
        mark(dir, "mark-opened");
        let changes = [RecordChange { key: b"k".to_vec(), value: Some(b"v".to_vec()) }];
        store.write(GroupId(1), &changes, b"1").unwrap();
        mark(dir, "mark-syncing");
        store.sync().unwrap();
        mark(dir, "mark-synced");
        store.replace(GroupId(1), &mut std::iter::empty(), b"2").unwrap();
        mark(dir, "mark-replaced");
        store.remove_group(GroupId(1)).unwrap();
        mark(dir, "mark-removed");
        store.write(GroupId(1), &changes, b"1").unwrap();
        mark(dir, "mark-closing");
        store.close().unwrap();
        mark(dir, "mark-closed");
    });
}

#[test]
fn probe_snapshots() {
    probe(|dir| {
        let store = SnapshotFiles::open(&dir.join("snapshots")).unwrap();
        let record = Record { key: b"k".to_vec(), value: b"v".to_vec() };
        mark(dir, "mark-publishing");
        store.publish(GroupId(1), b"1", &mut [record].into_iter()).unwrap();
        mark(dir, "mark-published");
        let reader = store.open_reader(GroupId(1)).unwrap().unwrap();
        let mut install = store.begin_install(GroupId(1)).unwrap();
        install.write_chunk(&reader.read_chunk(0, usize::MAX).unwrap()).unwrap();
        mark(dir, "mark-installing");
        install.publish().unwrap();
        mark(dir, "mark-installed");
        store.remove_group(GroupId(1)).unwrap();
        mark(dir, "mark-removed");
    });
}

/// Under strace the first sync fails; by itself nothing does.
#[test]
fn probe_failing_sync() {
    let failing = env::var_os(DIR).is_some();
    probe(|dir| {
        let store = SledState::open(&dir.join("state")).unwrap();
        let changes = [RecordChange { key: b"k".to_vec(), value: Some(b"v".to_vec()) }];
        store.write(GroupId(1), &changes, b"1").unwrap();
        let synced = store.sync();
        if !failing {
            return synced.unwrap();
        }
        assert_eq!(synced.unwrap_err().raw_os_error(), Some(5), "EIO");
        // The second one would find nothing to sync and say so: the kernel reports a failure once.
        assert!(store.sync().is_err());
        assert!(store.write(GroupId(1), &changes, b"2").is_err());
        assert!(store.load(GroupId(1), &mut |_| ()).is_err());
        assert!(store.close().is_err());
    });
}

/// Runs a probe under strace; `None` (said on the terminal) where that is not possible.
fn trace(probe: &str, options: &[&str]) -> Option<String> {
    let quiet = |command: &mut Command| command.stdout(Stdio::null()).stderr(Stdio::null()).status();
    let usable = quiet(Command::new("strace").args(["-f", "-o", "/dev/null", "true"]));
    if !usable.is_ok_and(|status| status.success()) {
        // Not captured by the test harness, unlike `eprintln!`.
        let mut terminal = std::io::stderr();
        writeln!(terminal, "SKIPPED: {probe} needs a working strace").unwrap();
        return None;
    }
    let dir = tempfile::tempdir().unwrap();
    let calls = dir.path().join("calls");
    let mut command = Command::new("strace");
    command
        .args(["-f", "-y", "-e", "trace=openat,fsync,fdatasync,rename,renameat,renameat2", "-o"])
        .arg(&calls)
        .args(options);
    command.arg(env::current_exe().unwrap()).args(["--exact", probe]).env(DIR, dir.path());
    assert!(quiet(&mut command).unwrap().success(), "the probe failed under strace");
    Some(fs::read_to_string(calls).unwrap())
}

/// The calls between two marks.
fn between<'a>(calls: &'a str, from: &str, to: &str) -> Vec<&'a str> {
    let lines = calls.lines().skip_while(|line| !line.contains(from)).take_while(|line| !line.contains(to));
    let lines: Vec<_> = lines.collect();
    assert!(!lines.is_empty() && calls.contains(to), "{from} and {to} not found");
    lines
}

/// Position of the first successful call of one of some kinds that names a file ending like this. (A call that strace
/// reports in two lines counts by the first, which has the name; the caller's thread waits for its end.)
fn position(calls: &[&str], kinds: &[&str], file: &str) -> Option<usize> {
    let wanted = |line: &&str| kinds.iter().any(|kind| line.contains(&format!(" {kind}("))) && line.contains(file);
    let failed = |line: &&str| line.contains("= -1");
    calls.iter().position(|line| wanted(line) && !failed(line))
}

const SYNC: &[&str] = &["fsync", "fdatasync"];
const RENAME: &[&str] = &["rename", "renameat", "renameat2"];

#[test]
fn syncs_of_the_state_store_wait_for_the_disk() {
    let Some(calls) = trace("probe_state", &[]) else { return };
    for (from, to) in [
        ("mark-syncing", "mark-synced"),
        ("mark-synced", "mark-replaced"),
        ("mark-replaced", "mark-removed"),
        ("mark-closing", "mark-closed"),
    ] {
        let calls = between(&calls, from, to);
        assert!(position(&calls, SYNC, "/state/db>").is_some(), "{from} to {to}: {calls:#?}");
    }
    let opening = between(&calls, "mark-opening", "mark-opened");
    for file in ["/state/db>", "/state/conf>", "/state>"] {
        assert!(position(&opening, SYNC, file).is_some(), "{file}: {opening:#?}");
    }
    let writing = between(&calls, "mark-opened", "mark-syncing");
    assert_eq!(position(&writing, SYNC, ""), None, "a write alone does not sync");
}

#[test]
fn a_replaced_group_loses_its_marker_durably_before_anything_else() {
    let Some(calls) = trace("probe_state", &[]) else { return };
    // Marker removed, records written, marker written: a sync each.
    let replacing = between(&calls, "mark-synced", "mark-replaced");
    let syncs = replacing.iter().filter(|call| position(&[call], SYNC, "/state/db>").is_some()).count();
    assert_eq!(syncs, 3, "{replacing:#?}");
}

#[test]
fn snapshots_are_synced_then_named_then_their_folder_is_synced() {
    let Some(calls) = trace("probe_snapshots", &[]) else { return };
    for (from, to) in [("mark-publishing", "mark-published"), ("mark-installing", "mark-installed")] {
        let calls = between(&calls, from, to);
        let file = position(&calls, SYNC, ".new>").expect("the file is not synced");
        let renamed = position(&calls, RENAME, "g1.snapshot").expect("the file is not renamed");
        let folder = position(&calls, SYNC, "/snapshots>").expect("the folder is not synced");
        assert!(file < renamed && renamed < folder, "{calls:#?}");
    }
    let removing = between(&calls, "mark-installed", "mark-removed");
    assert!(position(&removing, SYNC, "/snapshots>").is_some(), "{removing:#?}");
}

#[test]
fn after_a_failed_sync_the_state_store_says_nothing_but_errors() {
    let Some(calls) = trace("probe_failing_sync", &["-e", "inject=fdatasync:error=EIO:when=1"]) else { return };
    assert!(calls.contains("(INJECTED)"), "{calls}");
}
