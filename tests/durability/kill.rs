//! `kill -9` in the middle of a replay, again and again.

use crate::{
    digests::{closed, stored},
    node::{Home, Node},
    replay::{Replay, must_be_kept},
    tools::{moments, skip, strace},
};

const KILLS: usize = 3;
/// Syncs of a start, counted by each thread for itself, at which a node dies. Behind the last of them it is ready.
const FATAL_SYNCS: [usize; 6] = [1, 2, 3, 4, 6, 9];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_node_loses_nothing_acknowledged_bills_nothing_twice_and_overspends_nothing() {
    let scratch = tempfile::tempdir().expect("a temporary folder");
    let home = Home::new(&scratch.path().join("data"), scratch.path());
    let mut node = Node::start(&home);
    let mut replay = Replay::start(&home, scratch.path());
    for moment in moments("kills", KILLS) {
        replay.wait_until_billed(moment);
        node.kill();
        stored(&home, scratch.path());
        node = Node::start(&home);
    }
    must_be_kept(&home, &mut replay).await;
    assert!(node.terminate().success());
    let before = closed(&home);
    assert!(!before.is_empty(), "the node says what it closes with");
    assert_eq!(stored(&home, scratch.path()), before, "a graceful stop and a start change nothing");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_killed_while_it_recovers_loses_nothing_either() {
    if let Err(why) = strace() {
        return skip("the test of kills in a recovery", &why);
    }
    let scratch = tempfile::tempdir().expect("a temporary folder");
    let home = Home::new(&scratch.path().join("data"), scratch.path());
    let node = Node::start(&home);
    let mut replay = Replay::start(&home, scratch.path());
    replay.wait_until_billed(400);
    node.kill();
    let mut died = 0;
    for sync in FATAL_SYNCS {
        let inject = format!("inject=fsync,fdatasync:signal=KILL:when={sync}");
        let wrapper = ["strace", "-D", "-f", "-q", "--seccomp-bpf", "-o", "/dev/null", "-e", &inject];
        match Node::try_start(&home, &wrapper.map(str::to_owned)) {
            Ok(node) => node.kill(),
            Err(_) => died += 1,
        }
        stored(&home, scratch.path());
    }
    assert!(died > 0, "no start came to its syncs");
    let _node = Node::start(&home);
    must_be_kept(&home, &mut replay).await;
}
