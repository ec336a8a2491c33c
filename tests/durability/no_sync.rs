//! These tests are worth something only if they fail for a node that does not sync.

use std::{
    path::{Path, PathBuf},
    process::Command,
};

use crate::{
    disk::Disk,
    node::{Home, Node},
    power_loss::{CUT, must_be_found},
    replay::Replay,
    strace::reports_under_strace,
    tools::{skip, strace, tell},
};

/// Asks for the proof: it builds the workspace once more, which is too slow for every run.
const ASK: &str = "DURABILITY_NO_SYNC_BUILD";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_build_with_the_sync_switched_off_fails_the_strace_and_the_power_loss_test() {
    if std::env::var_os(ASK).is_none() {
        return tell(&format!("SKIPPED the proof by a build with the sync switched off: set {ASK}=1 for it"));
    }
    let scratch = tempfile::tempdir().expect("a temporary folder");
    let disk = match strace().and_then(|()| Disk::new(scratch.path())) {
        Ok(disk) => disk,
        Err(why) => return skip("the proof by a build with the sync switched off", &why),
    };
    let binary = build();

    let home = Home { binary: binary.clone(), ..Home::new(&scratch.path().join("data"), scratch.path()) };
    let verdict = reports_under_strace(&home, scratch.path()).await.expect("the trace shows every Report");
    tell(&format!("without syncs strace proves {} Reports and finds {} broken", verdict.proven, verdict.broken.len()));
    assert_eq!(verdict.proven, 0);

    let home = Home { binary, ..Home::new(&disk.path().join("data"), scratch.path()) };
    let node = Node::start(&home);
    let mut replay = Replay::start(&home, scratch.path());
    replay.wait_until_billed(CUT);
    disk.cut_power();
    node.kill();
    disk.power_on();
    must_be_found(&home, &mut replay);
}

/// Builds the binary with the log's syncs left out, in a target directory of its own.
fn build() -> PathBuf {
    let target = Path::new(env!("CARGO_TARGET_TMPDIR")).join("no-sync");
    let status = Command::new(env!("CARGO"))
        .args(["build", "--locked", "--quiet", "--bin", "andante", "--target-dir"])
        .arg(&target)
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .env("RUSTFLAGS", "--cfg andante_no_sync")
        .status()
        .expect("cargo runs");
    assert!(status.success(), "the build failed");
    target.join("debug/andante")
}
