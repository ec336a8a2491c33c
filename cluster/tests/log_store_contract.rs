//! What every [`LogStore`] promises.

use andante_cluster::{
    GroupId,
    storage::{LogEntry, LogStore, OnFlush, memory::MemoryLogDisk},
};
use bytes::Bytes;
use tokio::sync::oneshot;

fn entry(index: u64) -> LogEntry {
    LogEntry { index, data: Bytes::from(format!("entry {index}")) }
}

fn waiter() -> (OnFlush, oneshot::Receiver<std::io::Result<()>>) {
    let (tx, rx) = oneshot::channel();
    (Box::new(move |result| drop(tx.send(result))), rx)
}

#[tokio::test]
async fn only_synced_entries_of_the_memory_twin_survive_a_crash() {
    let disk = MemoryLogDisk::new();
    let store = disk.open();
    let (done, flushed) = waiter();
    store.append(GroupId(1), vec![entry(1), entry(2)], done);
    flushed.await.unwrap().unwrap();

    disk.hold_flushes();
    let (done, mut lost) = waiter();
    store.append(GroupId(1), vec![entry(2), entry(3)], done);
    assert_eq!(store.read(GroupId(1), 1..9, usize::MAX).unwrap(), [entry(1), entry(2), entry(3)]);
    assert!(lost.try_recv().is_err(), "not durable yet");

    let reopened = disk.open();
    assert_eq!(reopened.recovered()[&GroupId(1)].entries, 1..3);
    disk.release_flushes();
    disk.fail_next_sync();
    let (done, failed) = waiter();
    reopened.save_vote(GroupId(1), Bytes::from_static(b"vote"), done);
    assert!(failed.await.unwrap().is_err());
    assert!(reopened.read(GroupId(1), 1..2, 1).is_err(), "a failure is sticky");
}
