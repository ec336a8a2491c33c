//! A cluster that grows by itself: replicas and leaders end up where they belong, whoever comes and goes.

mod toy;

use std::{collections::BTreeMap, sync::Arc};

use andante_cluster::{
    GroupId, Host, HostConfig, NodeId,
    directory::Directory,
    host::{Join, Leadership},
    storage::memory::MemoryStores,
};
use tokio::{
    sync::watch,
    task::JoinHandle,
    time::{Duration, Instant},
};
use tonic::service::Routes;

use toy::{add, env, factory, shards, soon, value};

/// Longest wait for anything.
const PATIENCE: Duration = Duration::from_secs(120);
const LOOK_EVERY: Duration = Duration::from_millis(5);

struct Member {
    dir: tempfile::TempDir,
    stores: MemoryStores,
    host: Option<Arc<Host>>,
}

/// Nodes of one cluster, on in-memory stores and real connections.
struct Nodes {
    members: Vec<Member>,
    shards: u32,
}

impl Nodes {
    async fn start(shards: u32, count: usize) -> Self {
        let mut nodes = Self { members: Vec::new(), shards };
        for _ in 0..count {
            nodes.add().await;
        }
        nodes
    }

    async fn add(&mut self) {
        let dir = tempfile::tempdir().expect("a temporary folder");
        self.members.push(Member { dir, stores: MemoryStores::default(), host: None });
        self.run(self.members.len() - 1).await;
    }

    async fn run(&mut self, at: usize) {
        let seed = self.hosts().next().map(|seed| seed.peer_addr().to_string());
        let member = &self.members[at];
        let config = HostConfig {
            shards: Some(self.shards),
            plaintext_peers: true,
            join: seed.map(|address| Join { addresses: vec![address], token: String::new() }),
            ..HostConfig::new(member.dir.path())
        };
        let host = Host::start(env(member.stores.clone()), config, factory(), Routes::default()).await;
        self.members[at].host = Some(Arc::new(host.expect("starts")));
    }

    async fn stop(&mut self, at: usize) {
        let host = self.members[at].host.take().expect("it runs");
        host.hand_over().await;
        host.shutdown().await.expect("stops");
    }

    fn hosts(&self) -> impl Iterator<Item = &Arc<Host>> {
        self.members.iter().filter_map(|member| member.host.as_ref())
    }

    fn directory(&self) -> Arc<Directory> {
        self.hosts().next().expect("one runs").directory().borrow().clone()
    }

    async fn until(&self, what: &str, condition: impl Fn(&Self) -> bool) -> Duration {
        let begun = Instant::now();
        while !condition(self) {
            let settled = |nodes: &Self| nodes.directory().replicas.values().filter(|here| here.settled()).count();
            assert!(begun.elapsed() < PATIENCE, "not within {PATIENCE:?}: {what}; {} shards settled", settled(self));
            tokio::time::sleep(LOOK_EVERY).await;
        }
        begun.elapsed()
    }

    /// Every shard is on this many nodes, and all nodes have heard of it.
    async fn spread(&self, replicas: usize) -> Duration {
        self.until("the shards are spread", |nodes| {
            nodes.hosts().all(|host| {
                let directory = host.directory().borrow().clone();
                directory.nodes.len() == nodes.members.len()
                    && directory.replicas.values().all(|here| here.settled() && here.nodes.len() == replicas)
            })
        })
        .await
    }

    /// Each shard is led by the node that is to lead it, and everybody knows.
    async fn led_as_preferred(&self) -> Duration {
        self.until("the preferred nodes lead", |nodes| {
            let directory = nodes.directory();
            nodes.hosts().all(|host| {
                shards(host).all(|shard| {
                    let leader = match *host.leadership(shard).borrow() {
                        Leadership::Leader { .. } => Some(host.identity().node_id),
                        Leadership::Follower { leader } => leader,
                    };
                    leader == directory.replicas[&shard].target.first().copied()
                })
            })
        })
        .await
    }

    fn led(&self) -> BTreeMap<NodeId, usize> {
        let count = |host: &Arc<Host>| {
            let leads = |shard| matches!(*host.leadership(shard).borrow(), Leadership::Leader { .. });
            (host.identity().node_id, shards(host).filter(|shard| leads(*shard)).count())
        };
        self.hosts().map(count).collect()
    }

    /// Adds one to a counter of each shard, through every node.
    async fn add_ones(&self) -> Vec<u64> {
        let mut values = Vec::new();
        for host in self.hosts() {
            values.clear();
            for shard in shards(host) {
                let applied = host.submit(shard, add(7, 1), soon()).await.expect("applied");
                values.push(value(&applied.reply));
            }
        }
        values
    }

    /// Adds ones to a counter of each shard, through the first node, until it is told to stop; how many it added. Each
    /// must succeed.
    fn write_on(&self, stop: watch::Receiver<bool>) -> JoinHandle<u64> {
        let host = self.hosts().next().expect("one runs").clone();
        tokio::spawn(async move {
            let mut rounds = 0;
            while !*stop.borrow() {
                rounds += 1;
                for shard in shards(&host) {
                    let applied = host.submit(shard, add(9, 1), soon()).await.expect("no move is in the way");
                    assert_eq!(value(&applied.reply), rounds, "once each");
                }
            }
            rounds
        })
    }

    /// The directory's voters and learners, as its leader sees them.
    async fn directory_members(&self) -> Option<(Vec<NodeId>, Vec<NodeId>)> {
        for host in self.hosts() {
            let report = host.report(soon()).await;
            let group = report.groups.into_iter().find(|group| group.group == GroupId::DIRECTORY.0);
            if let Some(leader) = group.and_then(|group| group.leader) {
                return Some((leader.voters, leader.learners));
            }
        }
        None
    }

    async fn directory_becomes(&self, voters: &[NodeId], learners: &[NodeId]) {
        let begun = Instant::now();
        loop {
            let now = self.directory_members().await;
            if now.as_ref().is_some_and(|(a, b)| a == voters && b == learners) {
                return;
            }
            assert!(begun.elapsed() < PATIENCE, "the directory's members are {now:?}");
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }

    async fn shut_down(self) {
        for member in self.members {
            if let Some(host) = member.host {
                host.shutdown().await.expect("stops");
            }
        }
    }
}

fn is_level(count: &BTreeMap<NodeId, usize>) -> bool {
    count.values().max() <= count.values().min().map(|fewest| fewest + 1).as_ref()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cluster_grows_from_one_node_to_five_and_serves_all_the_time() {
    let mut nodes = Nodes::start(8, 1).await;
    nodes.led_as_preferred().await;
    let (stop, stopped) = watch::channel(false);
    let writer = nodes.write_on(stopped);
    assert_eq!(nodes.add_ones().await, [1; 8]);
    nodes.add().await;
    nodes.spread(2).await;
    nodes.directory_becomes(&[1], &[2]).await;
    assert_eq!(nodes.add_ones().await, [3; 8]);
    nodes.add().await;
    nodes.spread(3).await;
    nodes.directory_becomes(&[1, 2, 3], &[]).await;
    nodes.led_as_preferred().await;
    assert!(is_level(&nodes.led()), "{:?}", nodes.led());
    nodes.add().await;
    nodes.add().await;
    nodes.spread(3).await;
    nodes.directory_becomes(&[1, 2, 3, 4, 5], &[]).await;
    nodes.led_as_preferred().await;
    assert!(is_level(&nodes.led()), "{:?}", nodes.led());
    assert_eq!(nodes.add_ones().await, [8; 8], "nothing lost, nothing twice");
    stop.send_replace(true);
    assert!(writer.await.expect("no write failed") > 0);
    let mut replicas: BTreeMap<NodeId, usize> = BTreeMap::new();
    for node in nodes.directory().replicas.values().flat_map(|here| here.nodes.clone()) {
        *replicas.entry(node).or_default() += 1;
    }
    assert!(replicas.len() == 5 && is_level(&replicas), "{replicas:?}");
    for host in nodes.hosts() {
        let here = shards(host).filter(|shard| host.has_replica(*shard)).count();
        assert_eq!(Some(&here), replicas.get(&host.identity().node_id), "what is not wanted has gone");
    }
    nodes.shut_down().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn leaders_come_back_to_a_node_that_was_away_and_nothing_is_copied() {
    let mut nodes = Nodes::start(9, 3).await;
    nodes.spread(3).await;
    nodes.led_as_preferred().await;
    let before = nodes.directory();
    nodes.stop(2).await;
    nodes
        .until("the others lead everything", |nodes| nodes.led().values().sum::<usize>() == 9 && nodes.led().len() == 2)
        .await;
    nodes.add_ones().await;
    nodes.run(2).await;
    let back = nodes.led_as_preferred().await;
    assert!(is_level(&nodes.led()), "{:?} after {back:?}", nodes.led());
    assert_eq!(nodes.directory().replicas, before.replicas, "a node that is merely away moves nothing");
    nodes.shut_down().await;
}
