//! The transport between nodes, over real loopback connections: what it owes to consensus, and to whom it refuses
//! service.

mod peers;
mod toy;
mod wires;

use std::{
    collections::BTreeMap,
    io,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
        mpsc,
    },
    time::Duration,
};

use andante_cluster::{
    GroupId, NodeId, Record,
    env::TcpNetwork,
    host::Join,
    peer::{AskError, DEFAULT_SNAPSHOT_STALL, JoinError, JoinRequest, LedGroup, PeerServiceClient, join},
    raft::{
        SnapshotData,
        codec::{Applied, encode_applied},
        network::Peer,
        types::{Entry, LeaderId, LogId, Member, Snapshot, SnapshotMeta, StoredMembership, Vote},
    },
    security::{JoinToken, PeerSecurity},
    storage::{SnapshotInfo, SnapshotInstall, SnapshotReader, SnapshotStore, memory::MemoryStores},
};
use bytes::Bytes;
use futures::{StreamExt, future::join_all, stream::FuturesOrdered};
use openraft::{
    EntryPayload,
    async_runtime::watch::WatchReceiver,
    errors::{RPCError, StreamingError},
    network::RPCOption,
    raft::{AppendEntriesRequest, AppendEntriesResponse, VoteRequest},
};
use parking_lot::Mutex;
use tokio::time::Instant;
use tonic::{Code, Request};

use peers::{
    CLUSTER, Counting, NEWEST, Node, Replica, agree, env, form, led, linked_nodes, new_authority, position, write,
};
use toy::{soon, until};
use wires::Wires;

const GROUP: GroupId = GroupId(1);
const MANY: u64 = 1_000_000;

fn peer(node: NodeId, group: GroupId) -> Peer {
    Peer { group, node, member: Member::default() }
}

/// Longer than any test.
fn patient() -> RPCOption {
    RPCOption::new(Duration::from_secs(600))
}

async fn elects_and_replicates(nodes: Vec<Node>) {
    for node in &nodes {
        node.add_quick(GROUP, node.peers.transport()).await;
    }
    form(&nodes, GROUP).await;
    write(&nodes[0].replica(GROUP).raft, 0..500).await;
    agree(&nodes, GROUP).await;
    let mut nodes = nodes;
    nodes.remove(0).crash().await;
    let leader = || {
        nodes.iter().find(|node| {
            let leader = node.replica(GROUP).raft.server_metrics().borrow_watched().current_leader;
            leader == Some(node.id)
        })
    };
    until("another node leads", || leader().is_some()).await;
    let leading = leader().expect("found");
    let leader = leading.replica(GROUP);
    led(&leader.raft, leading.id).await;
    write(&leader.raft, 0..500).await;
    agree(&nodes, GROUP).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_group_replicates_and_elects_in_plaintext() {
    elects_and_replicates(linked_nodes(3, None).await).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_group_replicates_and_elects_over_mutual_tls() {
    let authority = new_authority();
    elects_and_replicates(linked_nodes(3, Some(&authority)).await).await;
}

#[tokio::test]
async fn a_broken_link_fails_what_is_under_way_at_once_and_heals() {
    let nodes = linked_nodes(2, None).await;
    let follower = nodes[1].add(GROUP, nodes[1].peers.transport(), MANY).await;
    // Answered when it is flushed, hence never.
    follower.stores.log.hold_flushes();
    let transport = nodes[0].peers.transport();
    let vote = Vote { leader_id: LeaderId { term: 1, node_id: 1 }, committed: false };
    let asked =
        tokio::spawn(async move { transport.vote(&peer(2, GROUP), VoteRequest::new(vote, None), patient()).await });
    until("the call has arrived", || nodes[1].peers.stats().frames_in.load(Ordering::Relaxed) > 1).await;
    let start = Instant::now();
    nodes[0].wires.bar(position(1));
    let failed = asked.await.expect("runs").expect_err("no answer");
    assert!(matches!(failed, RPCError::Unreachable(_)), "{failed}");
    assert!(start.elapsed() < Duration::from_secs(5), "not by its time limit");
    for node in &nodes {
        node.linked([]).await;
    }
    let transport = nodes[0].peers.transport();
    let refused = transport.vote(&peer(2, GROUP), VoteRequest::new(vote, None), patient()).await;
    assert!(matches!(refused.expect_err("no link"), RPCError::Unreachable(_)));
    follower.stores.log.release_flushes();
    nodes[0].wires.heal();
    nodes[0].linked([2]).await;
    nodes[1].linked([1]).await;
    let granted = transport.vote(&peer(2, GROUP), VoteRequest::new(vote, None), patient()).await;
    assert!(granted.expect("answered").vote_granted);
}

#[tokio::test]
async fn a_link_that_swallows_everything_is_noticed_at_both_ends_and_heals() {
    let nodes = linked_nodes(2, None).await;
    let follower = nodes[1].add(GROUP, nodes[1].peers.transport(), MANY).await;
    // Answered when it is flushed, hence never.
    follower.stores.log.hold_flushes();
    let transport = nodes[0].peers.transport();
    let vote = Vote { leader_id: LeaderId { term: 1, node_id: 1 }, committed: false };
    let asked =
        tokio::spawn(async move { transport.vote(&peer(2, GROUP), VoteRequest::new(vote, None), patient()).await });
    until("the call has arrived", || nodes[1].peers.stats().frames_in.load(Ordering::Relaxed) > 1).await;
    // Nothing is closed, and nothing arrives: only that nobody answers tells.
    nodes[0].wires.isolate(position(1), [position(2)]);
    for node in &nodes {
        node.linked([]).await;
    }
    let failed = asked.await.expect("runs").expect_err("no answer");
    assert!(matches!(failed, RPCError::Unreachable(_)), "not by its time limit: {failed}");
    follower.stores.log.release_flushes();
    nodes[0].wires.heal();
    nodes[0].linked([2]).await;
    nodes[1].linked([1]).await;
}

#[tokio::test]
async fn questions_are_answered_each_by_itself_and_whoever_asks_learns_whether_he_was_heard() {
    let nodes = linked_nodes(2, None).await;
    let peers = nodes[0].peers.clone();
    let ask = |to: NodeId, question: &'static [u8]| {
        let peers = peers.clone();
        async move { peers.ask(to, Bytes::from_static(question), Duration::from_secs(600)).await }
    };
    let unanswered = tokio::spawn(ask(2, b"never"));
    let answers = join_all((0..500).map(|_| ask(2, b" asks"))).await;
    assert!(answers.iter().all(|answer| answer.as_deref() == Ok(b"1 asks")), "one without an answer holds up no other");
    assert_eq!(ask(2, b"refuse").await, Err(AskError::NotAsked), "nobody answers there");
    assert_eq!(ask(3, b"").await, Err(AskError::NotAsked), "there is no such node");
    let hurried = peers.ask(2, Bytes::from_static(b"never"), Duration::from_millis(5)).await;
    assert_eq!(hurried, Err(AskError::Unknown), "the time was over");

    nodes[0].wires.bar(position(1));
    assert_eq!(unanswered.await.expect("runs"), Err(AskError::Unknown), "the link broke");
    nodes[0].linked([]).await;
    assert_eq!(ask(2, b"").await, Err(AskError::NotAsked), "there is no link");
    nodes[0].wires.heal();
    nodes[0].linked([2]).await;
    assert_eq!(ask(2, b" asks").await.as_deref(), Ok(&b"1 asks"[..]));
}

#[tokio::test]
async fn a_call_without_an_answer_ends_by_its_time_limit() {
    let nodes = linked_nodes(2, None).await;
    let follower = nodes[1].add(GROUP, nodes[1].peers.transport(), MANY).await;
    follower.stores.log.hold_flushes();
    let vote = Vote { leader_id: LeaderId { term: 1, node_id: 1 }, committed: false };
    let (transport, soon) = (nodes[0].peers.transport(), RPCOption::new(Duration::from_millis(40)));
    let late = transport.vote(&peer(2, GROUP), VoteRequest::new(vote, None), soon).await;
    assert!(matches!(late.expect_err("no answer"), RPCError::Timeout(_)));
    nodes[0].linked([2]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn appends_under_way_at_once_arrive_in_the_order_in_which_they_began() {
    let nodes = linked_nodes(2, None).await;
    let groups: Vec<GroupId> = (1..=8).map(GroupId).collect();
    for group in &groups {
        nodes[1].add(*group, nodes[1].peers.transport(), MANY).await;
    }
    let leader_id = LeaderId { term: 1, node_id: 1 };
    let id = |index| LogId { leader_id, index };
    let transport = nodes[0].peers.transport();
    // Each fits only behind the one before.
    let appends =
        (0..50_u64).flat_map(|index| groups.iter().map(move |group| (index, *group))).map(|(index, group)| {
            let request = AppendEntriesRequest {
                vote: Vote { leader_id, committed: true },
                prev_log_id: index.checked_sub(1).map(id),
                entries: vec![Entry { log_id: id(index), payload: EntryPayload::Blank }],
                leader_commit: None,
            };
            let transport = transport.clone();
            async move { transport.append(&peer(2, group), request, patient()).await.expect("answered") }
        });
    let answers: FuturesOrdered<_> = appends.collect();
    let answers: Vec<_> = answers.collect().await;
    assert!(answers.iter().all(AppendEntriesResponse::is_success), "{answers:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn groups_under_load_replicate_without_conflicts() {
    let nodes = linked_nodes(3, None).await;
    let (conflicts, failures) = (Arc::<AtomicU64>::default(), Arc::<AtomicU64>::default());
    let groups: Vec<GroupId> = (1..=8).map(GroupId).collect();
    for group in &groups {
        for node in &nodes {
            let transport = node.peers.transport();
            let counting = Counting { transport, conflicts: conflicts.clone(), failures: failures.clone() };
            node.add(*group, Arc::new(counting), MANY).await;
        }
        form(&nodes, *group).await;
        agree(&nodes, *group).await;
    }
    let before = conflicts.load(Ordering::SeqCst);
    let loads = groups.iter().map(|group| {
        let raft = nodes[0].replica(*group).raft.clone();
        tokio::spawn(async move {
            for _ in 0..10 {
                write(&raft, 0..60).await;
            }
        })
    });
    let done = join_all(loads).await;
    for load in done {
        load.expect("written");
    }
    for group in &groups {
        agree(&nodes, *group).await;
    }
    if failures.load(Ordering::SeqCst) == 0 {
        assert_eq!(conflicts.load(Ordering::SeqCst), before, "an append overtook another one");
    }
    let stats = nodes[0].peers.stats();
    let (frames, batches) = (stats.frames_out.load(Ordering::Relaxed), stats.batches_out.load(Ordering::Relaxed));
    assert!(batches < frames, "{frames} frames in {batches} messages");
}

#[tokio::test]
async fn a_slow_group_delays_no_other_and_what_it_piles_up_is_bounded() {
    let nodes = linked_nodes(2, None).await;
    let (slow, quick) = (GroupId(1), GroupId(2));
    for group in [slow, quick] {
        for node in &nodes {
            node.add(group, node.peers.transport(), MANY).await;
        }
    }
    form(&nodes, quick).await;
    nodes[1].replica(slow).stores.log.hold_flushes();
    let vote = Vote { leader_id: LeaderId { term: 1, node_id: 1 }, committed: false };
    // Consensus does one of them at a time.
    let calls: Vec<_> = (0..200)
        .map(|_| {
            let transport = nodes[0].peers.transport();
            tokio::spawn(async move {
                transport.vote(&peer(2, slow), VoteRequest::new(vote, None), patient()).await.map(|_| ())
            })
        })
        .collect();
    until("more has come than is taken in", || nodes[1].peers.stats().calls_refused.load(Ordering::Relaxed) > 0).await;
    write(&nodes[0].replica(quick).raft, 0..100).await;
    agree(&nodes, quick).await;
    let refused = || calls.iter().filter(|call| call.is_finished()).count();
    until("what is too much fails at once", || refused() == 200 - 64).await;
    nodes[1].replica(slow).stores.log.release_flushes();
    let answers = join_all(calls).await;
    assert_eq!(answers.into_iter().filter(|answer| matches!(answer, Ok(Ok(())))).count(), 64);
}

#[tokio::test]
async fn a_group_without_a_replica_there_is_said_so() {
    let nodes = linked_nodes(2, None).await;
    let vote = Vote { leader_id: LeaderId { term: 1, node_id: 1 }, committed: true };
    let request = AppendEntriesRequest { vote, prev_log_id: None, entries: Vec::new(), leader_commit: None };
    let transport = nodes[0].peers.transport();
    let failed = transport.append(&peer(2, GROUP), request, patient()).await.expect_err("no replica");
    assert!(failed.to_string().contains("no replica"), "{failed}");
    let stranger = transport.vote(&peer(3, GROUP), VoteRequest::new(vote, None), patient()).await;
    assert!(stranger.expect_err("not known").to_string().contains("node 3 is not known"));
}

#[tokio::test]
async fn a_node_of_another_cluster_is_refused() {
    let here = Node::start(CLUSTER, 1, PeerSecurity::Plaintext).await;
    let other = Node::start([8; 16], 2, PeerSecurity::Plaintext).await;
    other.peers.set_addresses(BTreeMap::from([(1, here.address.clone())]), NEWEST);
    here.peers.set_addresses(BTreeMap::from([(2, other.address.clone())]), NEWEST);
    until("it was refused", || other.peers.stats().connections_refused.load(Ordering::Relaxed) > 2).await;
    let mut client = PeerServiceClient::new(other.peers.channel(1).expect("known"));
    let refused = client.report(andante_cluster::peer::ReportRequest {}).await.expect_err("refused");
    assert_eq!(refused.code(), Code::Unavailable, "{refused:?}");
    here.linked([]).await;
    other.linked([]).await;
}

#[tokio::test]
async fn a_node_certified_by_another_authority_is_refused() {
    let (ours, theirs) = (new_authority(), new_authority());
    let here = Node::start(CLUSTER, 2, peers::certified(&ours, 2)).await;
    let other = Node::start(CLUSTER, 1, peers::certified(&theirs, 1)).await;
    other.peers.set_addresses(BTreeMap::from([(2, here.address.clone())]), NEWEST);
    here.peers.set_addresses(BTreeMap::from([(1, other.address.clone())]), NEWEST);
    until("it was refused", || here.peers.stats().connections_refused.load(Ordering::Relaxed) > 2).await;
    here.linked([]).await;
}

#[tokio::test]
async fn a_node_that_was_removed_is_no_longer_served() {
    let nodes = linked_nodes(2, None).await;
    let mut client = PeerServiceClient::new(nodes[1].peers.channel(1).expect("known"));
    let report = client.report(andante_cluster::peer::ReportRequest {}).await.expect("answered");
    assert_eq!(report.into_inner().node_id, 77);
    nodes[0].peers.set_addresses(BTreeMap::new(), NEWEST);
    let refused = client.report(andante_cluster::peer::ReportRequest {}).await.expect_err("refused");
    assert_eq!(refused.code(), Code::PermissionDenied);
    for node in &nodes {
        node.linked([]).await;
    }
    assert!(nodes[0].peers.channel(2).is_none());
}

/// Else the very node that would bring the directory up to date is kept out for ever.
#[tokio::test]
async fn a_node_that_has_joined_since_is_served_where_it_is_not_known_yet() {
    let nodes = linked_nodes(1, None).await;
    let newer = Node::start(CLUSTER, NEWEST + 1, PeerSecurity::Plaintext).await;
    newer.peers.set_addresses(nodes[0].peers.addresses(), NEWEST + 1);
    let mut client = PeerServiceClient::new(newer.peers.channel(1).expect("known"));
    client.report(andante_cluster::peer::ReportRequest {}).await.expect("answered");
}

#[tokio::test]
async fn a_node_that_comes_back_at_another_address_is_found_when_it_says_so() {
    let mut nodes = linked_nodes(2, None).await;
    nodes.remove(1).crash().await;
    nodes[0].linked([]).await;
    let again = Node::start(CLUSTER, 2, PeerSecurity::Plaintext).await;
    again.peers.set_addresses(nodes[0].peers.addresses(), NEWEST);
    nodes[0].peers.learn_address(2, again.address.clone());
    nodes[0].linked([2]).await;
    again.linked([1]).await;
    assert_eq!(nodes[0].peers.addresses()[&2], again.address);
}

#[tokio::test]
async fn every_peer_hears_who_leads_what() {
    let nodes = linked_nodes(3, None).await;
    let led = vec![LedGroup { group: 4, term: 9 }];
    nodes[1].handler.leads.lock().clone_from(&led);
    nodes[1].peers.notify_leads();
    for other in [0, 2] {
        until("it was heard", || nodes[other].handler.heard.lock().get(&2) == Some(&led)).await;
    }
}

#[tokio::test]
async fn a_shutdown_ends_in_time_and_the_others_notice() {
    let nodes = linked_nodes(3, None).await;
    let start = Instant::now();
    nodes[0].peers.shutdown().await;
    assert!(start.elapsed() < Duration::from_secs(4), "{:?}", start.elapsed());
    nodes[1].linked([3]).await;
    nodes[2].linked([2]).await;
}

/// A published snapshot of many counters, and what it stands for.
fn big_snapshot(stores: &MemoryStores, index: u64) -> (Vote, Snapshot) {
    let leader_id = LeaderId { term: 5, node_id: 1 };
    let last = Some(LogId { leader_id, index });
    let applied = Applied { last, membership: StoredMembership::default() };
    let record = |name: u64| Record { key: name.to_be_bytes().to_vec(), value: 1_u64.to_le_bytes().to_vec() };
    let snapshots = stores.snapshots.open();
    snapshots.publish(GROUP, &encode_applied(&applied), &mut (0..150_000).map(record)).expect("published");
    let reader = snapshots.open_reader(GROUP).expect("works").expect("there");
    let meta = SnapshotMeta { last_log_id: applied.last, last_membership: applied.membership };
    (Vote { leader_id, committed: true }, Snapshot { meta, snapshot: SnapshotData::Published(reader.into()) })
}

fn size(snapshot: &Snapshot) -> u64 {
    let SnapshotData::Published(reader) = &snapshot.snapshot else { panic!("published") };
    reader.info().size_bytes
}

#[tokio::test(flavor = "multi_thread")]
async fn a_snapshot_arrives_in_chunks_at_the_rate_it_may_take() {
    let nodes = linked_nodes(2, None).await;
    let follower = nodes[1].add(GROUP, nodes[1].peers.transport(), MANY).await;
    let stores = MemoryStores::default();
    let (vote, snapshot) = big_snapshot(&stores, 100);
    let bytes = size(&snapshot);
    assert!(bytes > 3 << 20, "{bytes}");
    let (rate, burst) = (8_u64 << 20, 2_u64 << 20);
    nodes[0].peers.set_snapshot_rate(rate);
    let start = Instant::now();
    let response = nodes[0].peers.transport().snapshot(&peer(2, GROUP), vote, snapshot, patient()).await;
    assert_eq!(response.expect("installed").vote, vote);
    let at_least = Duration::from_secs_f64((bytes - burst) as f64 / rate as f64);
    assert!(start.elapsed() >= at_least, "{bytes} bytes within {:?}", start.elapsed());
    assert_eq!(follower.storage.replica.applied().last.map(|id| id.index), Some(100));
    assert_eq!(nodes[0].peers.stats().snapshot_bytes_out.load(Ordering::Relaxed), bytes);
    assert_eq!(nodes[1].peers.stats().snapshot_bytes_in.load(Ordering::Relaxed), bytes);

    // From a leader that was deposed: not even transferred.
    let (mut old, snapshot) = big_snapshot(&stores, 200);
    old.leader_id.term = 4;
    let response = nodes[0].peers.transport().snapshot(&peer(2, GROUP), old, snapshot, patient()).await;
    assert_eq!(response.expect("answered").vote, vote);
    assert_eq!(nodes[1].handler.installs.load(Ordering::SeqCst), 1);

    // Of what the log has anyway: neither that.
    nodes[1].handler.covers.store(true, Ordering::SeqCst);
    let (vote, snapshot) = big_snapshot(&stores, 200);
    let response = nodes[0].peers.transport().snapshot(&peer(2, GROUP), vote, snapshot, patient()).await;
    assert_eq!(response.expect("answered").vote, vote);
    assert_eq!(nodes[1].handler.installs.load(Ordering::SeqCst), 1);
    assert_eq!(follower.storage.replica.applied().last.map(|id| id.index), Some(100));
}

/// Does something to the wires when the third chunk arrives.
struct Harming {
    install: Box<dyn SnapshotInstall>,
    wires: Arc<Wires>,
    harm: fn(&Wires),
    chunks: u64,
}

impl SnapshotInstall for Harming {
    fn received_bytes(&self) -> u64 {
        self.install.received_bytes()
    }

    fn write_chunk(&mut self, chunk: &[u8]) -> io::Result<()> {
        self.chunks += 1;
        if self.chunks == 3 {
            (self.harm)(&self.wires);
        }
        self.install.write_chunk(chunk)
    }

    fn publish(self: Box<Self>) -> io::Result<SnapshotInfo> {
        self.install.publish()
    }
}

/// A transfer that is harmed on its way leaves nothing, and the next one arrives.
async fn a_snapshot_arrives_after_harm(harm: fn(&Wires)) {
    let nodes = linked_nodes(2, None).await;
    let follower = nodes[1].add(GROUP, nodes[1].peers.transport(), MANY).await;
    let wires = nodes[0].wires.clone();
    *nodes[1].handler.wrap.lock() =
        Some(Box::new(move |install| Box::new(Harming { install, wires: wires.clone(), harm, chunks: 0 })));
    let stores = MemoryStores::default();
    let (vote, snapshot) = big_snapshot(&stores, 100);
    nodes[0].peers.set_snapshot_rate(1 << 20);
    let transport = nodes[0].peers.transport();
    let broken = transport.snapshot(&peer(2, GROUP), vote, snapshot, patient()).await.expect_err("broke");
    assert!(matches!(broken, StreamingError::Unreachable(_)), "{broken}");
    given_up(&nodes[1], &follower, 1).await;

    *nodes[1].handler.wrap.lock() = None;
    nodes[0].wires.heal();
    nodes[0].peers.set_snapshot_rate(1 << 30);
    let (vote, snapshot) = big_snapshot(&stores, 100);
    transport.snapshot(&peer(2, GROUP), vote, snapshot, patient()).await.expect("installed");
    assert_eq!(follower.storage.replica.applied().last.map(|id| id.index), Some(100));
    assert_eq!(nodes[1].handler.installs.load(Ordering::SeqCst), 2);
}

/// Waits until a node has given up so many snapshots; of none is anything left.
async fn given_up(node: &Node, follower: &Replica, times: u64) {
    until("the receiver has given it up", || node.peers.stats().snapshots_failed.load(Ordering::Relaxed) == times)
        .await;
    assert_eq!(follower.storage.replica.applied().last, None);
    assert!(follower.storage.stores.snapshots.current(GROUP).expect("works").is_none());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_snapshot_that_breaks_off_leaves_nothing_and_arrives_with_the_next_try() {
    a_snapshot_arrives_after_harm(|wires| wires.break_off(position(1))).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_snapshot_on_a_wire_that_falls_silent_is_given_up_and_arrives_with_the_next_try() {
    // Given up by the keepalive of its connection, long before it counts as stalled.
    a_snapshot_arrives_after_harm(|wires| wires.isolate(position(1), [position(2)])).await;
}

/// Gives its first chunk and then nothing until it is released.
struct Stuck {
    reader: Arc<dyn SnapshotReader>,
    released: Mutex<mpsc::Receiver<()>>,
}

impl SnapshotReader for Stuck {
    fn info(&self) -> &SnapshotInfo {
        self.reader.info()
    }

    fn read_chunk(&self, offset_bytes: u64, max_bytes: usize) -> io::Result<Bytes> {
        if offset_bytes > 0 {
            // Released when the other end is dropped.
            let _ = self.released.lock().recv();
        }
        self.reader.read_chunk(offset_bytes, max_bytes)
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_snapshot_that_does_not_get_on_is_given_up_by_either_end_and_arrives_with_the_next_try() {
    let nodes = linked_nodes(2, None).await;
    let follower = nodes[1].add(GROUP, nodes[1].peers.transport(), MANY).await;
    let (stores, transport) = (MemoryStores::default(), nodes[0].peers.transport());
    for (times, impatient) in (1..).zip([0, 1]) {
        nodes[impatient].peers.set_snapshot_stall(Duration::from_secs(1));
        nodes[1 - impatient].peers.set_snapshot_stall(Duration::from_secs(600));
        let (vote, mut snapshot) = big_snapshot(&stores, 100);
        let SnapshotData::Published(reader) = snapshot.snapshot else { panic!("published") };
        let (release, released) = mpsc::channel();
        let stuck = Stuck { reader, released: Mutex::new(released) };
        snapshot.snapshot = SnapshotData::Published(Arc::new(stuck));
        let peer = peer(2, GROUP);
        let transfer = transport.snapshot(&peer, vote, snapshot, patient());
        let ended = tokio::time::timeout(Duration::from_secs(60), transfer).await.expect("one of them loses patience");
        let stalled = ended.expect_err("stalled");
        assert!(stalled.to_string().contains("does not get on"), "{stalled}");
        drop(release);
        given_up(&nodes[1], &follower, times).await;
    }
    // The links have nothing to do with it.
    nodes[0].linked([2]).await;
    nodes.iter().for_each(|node| node.peers.set_snapshot_stall(DEFAULT_SNAPSHOT_STALL));
    let (vote, snapshot) = big_snapshot(&stores, 100);
    transport.snapshot(&peer(2, GROUP), vote, snapshot, patient()).await.expect("installed");
    assert_eq!(follower.storage.replica.applied().last.map(|id| id.index), Some(100));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_follower_that_was_away_catches_up_by_a_snapshot() {
    let nodes = linked_nodes(3, None).await;
    for node in &nodes {
        node.add(GROUP, node.peers.transport(), 50).await;
    }
    form(&nodes, GROUP).await;
    write(&nodes[0].replica(GROUP).raft, 0..10).await;
    agree(&nodes, GROUP).await;
    // 3 opens no link by itself: both others are cut off from it.
    nodes[2].peers.set_addresses(BTreeMap::new(), NEWEST);
    nodes[0].linked([2]).await;
    let leader = nodes[0].replica(GROUP);
    for _ in 0..20 {
        write(&leader.raft, 0..20).await;
    }
    until("the log is purged", || leader.storage.log.purged().is_some_and(|id| id.index > 20)).await;
    nodes[2].peers.set_addresses(nodes[0].peers.addresses(), NEWEST);
    agree(&nodes, GROUP).await;
    assert!(nodes[2].handler.installs.load(Ordering::SeqCst) > 0);
}

fn join_request(address: &str) -> JoinRequest {
    JoinRequest { address: address.to_owned(), ..JoinRequest::default() }
}

#[tokio::test]
async fn a_new_node_joins_in_plaintext_by_asking_whoever_answers() {
    let node = Node::start(CLUSTER, 1, PeerSecurity::Plaintext).await;
    let env = env(Arc::new(TcpNetwork));
    let nobody = peers::listen(&env).await.local_addr().to_string();
    let asked = Join { addresses: vec![nobody.clone(), node.address.clone()], token: String::new() };
    let joined = join(&env, &asked, None, join_request("n9:1"), soon()).await.expect("taken up");
    assert_eq!(joined.node_id, 9);
    let refused = join(&env, &asked, None, join_request(""), soon()).await.expect_err("no address");
    assert!(matches!(&refused, JoinError::Refused(status) if status.code() == Code::InvalidArgument), "{refused}");
    let long = "x".repeat(100_000);
    let soon = Instant::now() + Duration::from_millis(300);
    let cut_off = join(&env, &asked, None, join_request(&long), soon).await.expect_err("too much for a stranger");
    assert!(matches!(&cut_off, JoinError::Unavailable(_)), "{cut_off}");
    let alone = Join { addresses: vec![nobody.clone()], token: String::new() };
    let soon = Instant::now() + Duration::from_millis(50);
    let late = join(&env, &alone, None, join_request("n9:1"), soon).await.expect_err("nobody there");
    assert!(late.to_string().contains(&nobody), "{late}");
}

#[tokio::test]
async fn a_new_node_joins_over_tls_by_its_token_and_may_do_nothing_else() {
    let authority = new_authority();
    let node = Node::start(CLUSTER, 1, peers::certified(&authority, 1)).await;
    let env = env(Arc::new(TcpNetwork));
    let asked = Join { addresses: vec![node.address.clone()], token: String::new() };
    let token = JoinToken { authority_fingerprint: authority.fingerprint(), secret: [1; 32] };
    let joined = join(&env, &asked, Some(&token), join_request("n9:1"), soon()).await.expect("taken up");
    assert_eq!(joined.node_id, 9);

    let wrong = JoinToken { authority_fingerprint: [0; 32], secret: [1; 32] };
    let soon = || Instant::now() + Duration::from_millis(300);
    let refused = join(&env, &asked, Some(&wrong), join_request("n9:1"), soon()).await.expect_err("another authority");
    assert!(refused.to_string().contains("another cluster"), "{refused}");
    let refused = join(&env, &asked, None, join_request("n9:1"), soon()).await.expect_err("no TLS");
    assert!(refused.to_string().contains("TLS"), "{refused}");
}

#[tokio::test]
async fn a_deadline_is_passed_on() {
    let nodes = linked_nodes(2, None).await;
    let mut client = PeerServiceClient::new(nodes[1].peers.channel(1).expect("known"));
    let mut request = Request::new(andante_cluster::peer::ReportRequest {});
    request.set_timeout(Duration::from_millis(2_500));
    client.report(request).await.expect("answered");
    let asked = nodes[0].handler.deadline.lock().expect("asked");
    assert!(asked <= Instant::now() + Duration::from_millis(2_500));
}
