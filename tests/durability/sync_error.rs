//! The disk refuses a sync in the middle of a replay.

use crate::{
    digests::stored,
    inject::Injection,
    node::{FATAL, Home, Node},
    replay::{Replay, must_be_kept},
    tools::{moments, skip, strace},
};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_whose_sync_fails_stops_and_has_acknowledged_nothing_that_is_lost() {
    if let Err(why) = strace() {
        return skip("the test of failing syncs", &why);
    }
    let scratch = tempfile::tempdir().expect("a temporary folder");
    let home = Home::new(&scratch.path().join("data"), scratch.path());
    let mut node = Node::start(&home);
    let mut replay = Replay::start(&home, scratch.path());
    replay.wait_until_billed(moments("a failing sync", 1)[0]);
    // The writes succeed; only waiting for the disk tells.
    let injection = Injection::attach(node.pid(), "fsync,fdatasync:error=EIO");
    assert_eq!(node.ended("to end when its disk fails").code(), Some(FATAL));
    drop(injection);
    stored(&home, scratch.path());
    let _node = Node::start(&home);
    must_be_kept(&home, &mut replay).await;
}
