//! Replicas leave a node and come back to it.

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use tempfile::TempDir;
use tokio::time::{Instant, timeout};
use tonic::service::Routes;

use crate::{
    Machine, MachineError, NodeId, Record, RecordChange, ShardId,
    env::Env,
    host::{Host, HostConfig, Join, MachineFactory},
    proto::{SetTargets, Target, directory_command, directory_reply},
    storage::memory::MemoryStores,
};

/// Counts the commands it has applied; the count can be watched from outside, as a machine's maker may.
struct Count(Arc<AtomicU64>);

impl Machine for Count {
    fn apply(&mut self, _: u64, _: &Bytes) -> Bytes {
        self.0.fetch_add(1, Ordering::SeqCst);
        Bytes::new()
    }

    fn take_changes(&mut self) -> Vec<RecordChange> {
        vec![RecordChange { key: vec![1], value: Some(self.digest().to_be_bytes().into()) }]
    }

    fn snapshot(&self) -> Box<dyn Iterator<Item = Record> + Send> {
        Box::new(std::iter::once(Record { key: vec![1], value: self.digest().to_be_bytes().into() }))
    }

    fn restore(&mut self, records: &mut dyn Iterator<Item = Record>) -> Result<(), MachineError> {
        let count = records.next().map_or(Ok([0; 8]), |record| record.value.try_into());
        let count = count.map_err(|_| MachineError("not a count".into()))?;
        self.0.store(u64::from_be_bytes(count), Ordering::SeqCst);
        Ok(())
    }

    fn digest(&self) -> u64 {
        self.0.load(Ordering::SeqCst)
    }
}

struct Node {
    host: Host,
    counts: BTreeMap<ShardId, Arc<AtomicU64>>,
    _dir: TempDir,
}

const SHARDS: u32 = 4;

fn soon() -> Instant {
    Instant::now() + Duration::from_secs(60)
}

async fn start(join: Option<&Host>) -> Node {
    let (dir, stores) = (tempfile::tempdir().expect("dir"), MemoryStores::default());
    let counts: BTreeMap<ShardId, Arc<AtomicU64>> = (0..SHARDS).map(|shard| (ShardId(shard), Arc::default())).collect();
    let made = counts.clone();
    let factory: MachineFactory = Arc::new(move |shard| Box::new(Count(made[&shard].clone())));
    let join = join.map(|host| Join { addresses: vec![host.peer_addr().to_string()], token: String::new() });
    let plain = HostConfig { plaintext_peers: true, shards: Some(SHARDS), ..HostConfig::new(dir.path()) };
    let env = Env { stores: Arc::new(stores), ..Env::production() };
    let host = Host::start(env, HostConfig { join, ..plain }, factory, Routes::default()).await.expect("starts");
    Node { host, counts, _dir: dir }
}

/// Waits until all shards are where they are wanted, and `wanted` says that this is so.
async fn settled(
    host: &Host,
    wanted: impl Fn(&BTreeMap<ShardId, Vec<NodeId>>) -> bool,
) -> BTreeMap<ShardId, Vec<NodeId>> {
    let mut directory = host.directory();
    let places = |directory: &crate::directory::Directory| -> BTreeMap<ShardId, Vec<NodeId>> {
        directory.replicas.iter().map(|(shard, replicas)| (*shard, replicas.nodes.clone())).collect()
    };
    let all = directory.wait_for(|now| now.replicas.values().all(|shard| shard.settled()) && wanted(&places(now)));
    places(&timeout(Duration::from_secs(60), all).await.expect("settles").expect("runs"))
}

/// Plans anew while the plan rests on a directory that is not the newest here.
async fn set_targets(host: &Host, targets: &BTreeMap<ShardId, Vec<NodeId>>) {
    let targets: Vec<_> =
        targets.iter().map(|(shard, nodes)| Target { shard: shard.0, node_ids: nodes.clone() }).collect();
    let mut directory = host.directory();
    let planned = timeout(Duration::from_secs(60), async {
        loop {
            let placement_generation =
                directory.borrow_and_update().cluster.as_ref().expect("formed").placement_generation;
            let targets = targets.clone();
            let command = directory_command::Command::SetTargets(SetTargets { targets, placement_generation });
            match host.shared.tell_directory(command, soon()).await.expect("applied") {
                directory_reply::Reply::Done(_) => break,
                // Only another generation is a reason.
                refused => {
                    let known = directory.changed().await;
                    known.unwrap_or_else(|_| panic!("{refused:?}"));
                }
            }
        }
    });
    planned.await.expect("planned from the newest directory");
}

async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let waited = timeout(Duration::from_secs(60), async {
        while !holds() {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    });
    waited.await.unwrap_or_else(|_| panic!("never: {what}"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replica_that_leaves_takes_everything_with_it_and_comes_back_from_nothing() {
    let mut nodes = vec![start(None).await];
    for _ in 0..3 {
        nodes.push(start(Some(&nodes[0].host)).await);
    }
    let three = |places: &BTreeMap<ShardId, Vec<NodeId>>| places.values().all(|nodes| nodes.len() == 3);
    let spread = |places: &BTreeMap<ShardId, Vec<NodeId>>| {
        three(places) && (1..=4).all(|node| places.values().filter(|nodes| nodes.contains(&node)).count() == 3)
    };
    let before = settled(&nodes[0].host, spread).await;
    for shard in before.keys() {
        nodes[1].host.submit(*shard, Bytes::new(), soon()).await.expect("applied");
    }
    // Two shards that are not on the same nodes change places: nothing is less even then.
    let (a, b) = (ShardId(0), *before.iter().find(|(_, nodes)| **nodes != before[&ShardId(0)]).expect("spread").0);
    let swapped = BTreeMap::from([(a, before[&b].clone()), (b, before[&a].clone())]);
    let leaves = *before[&a].iter().find(|node| !before[&b].contains(node)).expect("not on the same nodes");
    let left = &nodes[leaves as usize - 1];
    let same = |some: &[NodeId], others: &[NodeId]| some.iter().all(|node| others.contains(node));
    set_targets(&nodes[0].host, &swapped).await;
    settled(&nodes[2].host, |places| swapped.iter().all(|(shard, nodes)| same(&places[shard], nodes))).await;
    until("the machine is in its initial state", || left.counts[&a].load(Ordering::SeqCst) == 0).await;
    until("there is no replica", || !left.host.has_replica(a)).await;
    // The others go on.
    nodes[1].host.submit(a, Bytes::new(), soon()).await.expect("applied");

    let back = BTreeMap::from([(a, before[&a].clone()), (b, before[&b].clone())]);
    set_targets(&nodes[0].host, &back).await;
    settled(&nodes[2].host, |places| back.iter().all(|(shard, nodes)| same(&places[shard], nodes))).await;
    left.host.read_index(a, soon()).await.expect("a replica again");
    assert_eq!(left.counts[&a].load(Ordering::SeqCst), 2, "everything was sent anew");
}
