//! The power goes in the middle of a replay.

use serde_json::Value;

use crate::{
    digests::stored,
    disk::Disk,
    inject::Injection,
    node::{FATAL, Home, Node},
    replay::{Replay, must_be_kept},
    tools::{moments, skip, strace, tell},
};

const LOSSES: usize = 2;
/// Streams acknowledged until syncs begin to lie.
const LYING: usize = 400;
/// Streams acknowledged until the power goes.
pub(crate) const CUT: usize = 1_000;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_power_loss_loses_nothing_acknowledged_bills_nothing_twice_and_overspends_nothing() {
    let scratch = tempfile::tempdir().expect("a temporary folder");
    let disk = match Disk::new(scratch.path()) {
        Ok(disk) => disk,
        Err(why) => return skip("the test of power losses", &why),
    };
    let home = Home::new(&disk.path().join("data"), scratch.path());
    let mut node = Node::start(&home);
    let mut replay = Replay::start(&home, scratch.path());
    for moment in moments("power losses", LOSSES) {
        replay.wait_until_billed(moment);
        disk.cut_power();
        assert_eq!(node.ended("to end when its disk fails").code(), Some(FATAL));
        disk.power_on();
        stored(&home, scratch.path());
        node = Node::start(&home);
    }
    must_be_kept(&home, &mut replay).await;
    // Before its disk is unmounted.
    assert!(node.terminate().success());
}

#[test]
fn the_test_of_power_losses_fails_when_syncs_lie() {
    let scratch = tempfile::tempdir().expect("a temporary folder");
    let disk = match strace().and_then(|()| Disk::new(scratch.path())) {
        Ok(disk) => disk,
        Err(why) => return skip("the proof that the test of power losses can fail", &why),
    };
    let home = Home::new(&disk.path().join("data"), scratch.path());
    let node = Node::start(&home);
    let mut replay = Replay::start(&home, scratch.path());
    // So far all is well: node and campaigns are on the disk.
    replay.wait_until_billed(LYING);
    let liar = Injection::attach(node.pid(), "fsync,fdatasync:retval=0");
    replay.wait_until_billed(CUT);
    disk.cut_power();
    node.kill();
    drop(liar);
    disk.power_on();
    must_be_found(&home, &mut replay);
}

/// After a power loss that cost acknowledged events, either the node refuses to start or the replay finds the loss.
pub(crate) fn must_be_found(home: &Home, replay: &mut Replay) {
    let found = match Node::try_start(home, &[]) {
        Ok(_node) => match replay.finish() {
            Ok(verdict) => {
                assert_eq!(verdict["ok"], false, "{verdict}");
                let wrong = |name: &str| verdict[name].as_u64() > Some(0);
                assert!(wrong("lost_outcomes") || wrong("double_billed"), "{verdict}");
                found(&verdict)
            }
            Err(why) => {
                assert!(why.contains("there is no campaign"), "{why}");
                why
            }
        },
        // The node notices by itself that its disk had promised more.
        Err(why) => {
            assert!(why.contains("damage"), "{why}");
            why
        }
    };
    tell(&format!("a power loss without syncs is found: {found}"));
}

fn found(verdict: &Value) -> String {
    let names = ["lost_outcomes", "double_billed", "overspend_micros", "wrong_answers"];
    names.map(|name| format!("{name} {}", verdict[name])).join(", ")
}
