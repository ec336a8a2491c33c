//! One group on three nodes, over a transport that calls the peers directly: what the storage adaptors and the
//! transport seam owe to consensus when there are others.

mod toy;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use andante_cluster::{
    NodeId,
    raft::{
        config,
        network::{GroupNetwork, Peer, Rpc, Transport},
        types::{Command, Member, Membership, Raft, Snapshot, TypeConfig, Vote},
    },
    storage::memory::MemoryStores,
};
use async_trait::async_trait;
use openraft::{
    AnyError, ChangeMembers, EntryPayload,
    async_runtime::watch::WatchReceiver,
    errors::{StreamingError, Unreachable},
    network::RPCOption,
    raft::{
        AppendEntriesRequest, AppendEntriesResponse, Precondition, SnapshotResponse, TransferLeaderRequest,
        TransferLeaderResponse, VoteRequest, VoteResponse,
    },
};
use parking_lot::Mutex;

use toy::{
    add,
    storage::{GROUP, Storage},
    until,
};

/// Calls peers directly, unless one of the two is cut off.
#[derive(Default)]
struct Wire {
    rafts: Mutex<BTreeMap<NodeId, Raft>>,
    cut_off: Mutex<BTreeSet<NodeId>>,
    /// Pre-votes asked for that did not arrive.
    refused_pre_votes: Mutex<u64>,
}

/// One node's end of the wire.
struct End {
    me: NodeId,
    wire: Arc<Wire>,
}

fn unreachable(why: impl ToString) -> Unreachable<TypeConfig> {
    Unreachable::new(&AnyError::error(why.to_string()))
}

impl End {
    fn peer(&self, peer: &Peer) -> Result<Raft, Unreachable<TypeConfig>> {
        let cut_off = self.wire.cut_off.lock();
        if cut_off.contains(&self.me) || cut_off.contains(&peer.node) {
            return Err(unreachable("cut off"));
        }
        self.wire.rafts.lock().get(&peer.node).cloned().ok_or_else(|| unreachable("not there"))
    }
}

#[async_trait]
impl Transport for End {
    async fn append(
        &self,
        peer: &Peer,
        request: AppendEntriesRequest<TypeConfig>,
        _: RPCOption,
    ) -> Rpc<AppendEntriesResponse<TypeConfig>> {
        Ok(self.peer(peer)?.append_entries(request).await.map_err(unreachable)?)
    }

    async fn vote(&self, peer: &Peer, request: VoteRequest<TypeConfig>, _: RPCOption) -> Rpc<VoteResponse<TypeConfig>> {
        Ok(self.peer(peer)?.vote(request).await.map_err(unreachable)?)
    }

    async fn pre_vote(
        &self,
        peer: &Peer,
        request: VoteRequest<TypeConfig>,
        _: RPCOption,
    ) -> Rpc<VoteResponse<TypeConfig>> {
        let peer = self.peer(peer).inspect_err(|_| *self.wire.refused_pre_votes.lock() += 1)?;
        Ok(peer.pre_vote(request).await.map_err(unreachable)?)
    }

    async fn snapshot(
        &self,
        peer: &Peer,
        vote: Vote,
        snapshot: Snapshot,
        _: RPCOption,
    ) -> Result<SnapshotResponse<TypeConfig>, StreamingError<TypeConfig>> {
        let installed = self.peer(peer)?.install_full_snapshot(vote, snapshot).await;
        Ok(installed.map_err(unreachable)?)
    }

    async fn transfer_leader(
        &self,
        peer: &Peer,
        request: TransferLeaderRequest<TypeConfig>,
        _: RPCOption,
    ) -> Rpc<TransferLeaderResponse<TypeConfig>> {
        Ok(self.peer(peer)?.handle_transfer_leader(request).await.map_err(unreachable)?)
    }
}

struct Node {
    raft: Raft,
    storage: Storage,
    stores: MemoryStores,
}

impl Node {
    async fn start(me: NodeId, wire: &Arc<Wire>, snapshot_every: u64) -> Self {
        let stores = MemoryStores::default();
        let storage = Storage::in_memory(&stores, None);
        let config = config::config(GROUP, snapshot_every).expect("valid");
        let network = GroupNetwork::new(GROUP, Arc::new(End { me, wire: wire.clone() }));
        let (log, machine) = (storage.log.clone(), storage.machine());
        let raft = Raft::new(me, config, network, log, machine).await.expect("starts");
        wire.rafts.lock().insert(me, raft.clone());
        Self { raft, storage, stores }
    }

    fn term(&self) -> u64 {
        self.raft.server_metrics().borrow_watched().vote.leader_id.term
    }

    fn digest(&self) -> (Option<u64>, u64) {
        self.storage.replica.digest().expect("works")
    }
}

struct Group {
    wire: Arc<Wire>,
    nodes: BTreeMap<NodeId, Node>,
}

impl Group {
    /// Node 1 alone; nodes 2 and 3 run, but are not members yet.
    async fn start(snapshot_every: u64) -> Self {
        let wire = Arc::<Wire>::default();
        let mut nodes = BTreeMap::new();
        for me in 1..=3 {
            nodes.insert(me, Node::start(me, &wire, snapshot_every).await);
        }
        let first = &nodes[&1].raft;
        first.initialize(BTreeMap::from([(1, Member::default())])).await.expect("formed");
        first.wait(None).current_leader(1, "leads").await.expect("leads");
        Self { wire, nodes }
    }

    async fn write(&self, leader: NodeId, names: std::ops::Range<u64>) {
        for name in names {
            self.nodes[&leader].raft.client_write(Command(add(name, 1))).await.expect("applied");
        }
    }

    async fn grow(&self) {
        for learner in [2, 3] {
            self.nodes[&1].raft.add_learner(learner, Member::default(), true).await.expect("caught up");
        }
        self.nodes[&1].raft.change_membership([1, 2, 3], false).await.expect("changed");
    }

    /// The leader that the nodes which are not cut off agree on.
    async fn leader(&self) -> NodeId {
        let cut_off = self.wire.cut_off.lock().clone();
        let reached: Vec<&Node> = self.nodes.iter().filter(|(id, _)| !cut_off.contains(id)).map(|(_, n)| n).collect();
        let mut leader = None;
        until("a leader is known", || {
            let said: BTreeSet<Option<NodeId>> =
                reached.iter().map(|node| node.raft.server_metrics().borrow_watched().current_leader).collect();
            leader = said.first().copied().flatten().filter(|id| said.len() == 1 && !cut_off.contains(id));
            leader.is_some()
        })
        .await;
        leader.expect("found")
    }

    async fn agree(&self) {
        until("all nodes have the same state", || {
            let states: BTreeSet<_> = self.nodes.values().map(Node::digest).collect();
            states.len() == 1
        })
        .await;
    }
}

#[tokio::test]
async fn a_new_member_gets_the_snapshot_of_a_purged_log_and_the_entries_after_it() {
    let group = Group::start(20).await;
    group.write(1, 0..100).await;
    until("the log is purged", || group.nodes[&1].storage.log.purged().is_some()).await;
    group.grow().await;
    group.write(1, 100..110).await;
    group.agree().await;
    for id in [2, 3] {
        let log = &group.nodes[&id].storage.log;
        assert!(log.purged().is_some(), "it never had the entries that were purged");
        assert!(group.nodes[&id].storage.marker().is_some(), "what was installed is durable");
    }
}

#[tokio::test]
async fn a_leader_that_was_cut_off_drops_what_was_never_acknowledged() {
    let group = Group::start(1_000).await;
    group.grow().await;
    group.write(1, 0..10).await;
    group.agree().await;
    group.wire.cut_off.lock().insert(1);
    let alone = group.nodes[&1].raft.clone();
    let lost = tokio::spawn(async move { alone.client_write(Command(add(77, 1_000))).await });
    let leader = group.leader().await;
    group.write(leader, 10..20).await;
    group.wire.cut_off.lock().clear();
    group.agree().await;
    assert!(lost.await.expect("answered").is_err(), "never reported as applied");
    let reply = group.nodes[&leader].raft.client_write(Command(add(77, 0))).await.expect("applied");
    assert_eq!(toy::value(&reply.data.0), 0);
    group.agree().await;
    // Its log, too, was flushed up to what its state stands for.
    let old = &group.nodes[&1].storage;
    old.stores.flusher.flush().await.expect("flushes");
    assert!(old.marker() <= old.log.gate().index());
}

#[tokio::test]
async fn the_next_leader_finishes_the_joint_configuration_that_a_dead_one_has_left() {
    let group = Group::start(1_000).await;
    group.grow().await;
    group.agree().await;
    // What a change from voters 1, 2, 3 to 2, 3 leaves when its leader dies in the middle.
    let nodes: BTreeMap<NodeId, Member> = (1..=3).map(|node| (node, Member::default())).collect();
    let joint = vec![BTreeSet::from([1, 2, 3]), BTreeSet::from([2, 3])];
    let joint = Membership::new(joint, nodes).expect("valid");
    group.nodes[&1].raft.append_membership(joint, EntryPayload::Blank, []).await.expect("committed");
    group.wire.cut_off.lock().insert(1);
    let leader = group.leader().await;
    let raft = &group.nodes[&leader].raft;
    let members = || raft.server_metrics().borrow_watched().committed_membership_config.clone();
    until("the next leader has committed an entry of its own", || members().get_joint_config().len() == 2).await;
    group.write(leader, 0..1).await;
    // As `host/reconcile.rs` does: nobody new, and what leaves is let go.
    let unchanged = Precondition::LastMembershipLogId { last_membership_log_id: *members().log_id() };
    raft.change_membership_if(ChangeMembers::AddVoterIds(BTreeSet::new()), false, [unchanged]).await.expect("finished");
    assert_eq!(members().get_joint_config(), &[BTreeSet::from([2, 3])]);
    assert_eq!(members().nodes().map(|(id, _)| *id).collect::<Vec<_>>(), [2, 3]);
    group.wire.cut_off.lock().clear();
    group.write(leader, 1..10).await;
}

#[tokio::test]
async fn a_follower_that_is_cut_off_does_not_raise_the_term() {
    let group = Group::start(1_000).await;
    group.grow().await;
    group.agree().await;
    let before = group.nodes[&3].term();
    group.wire.cut_off.lock().insert(3);
    until("it has asked for votes again and again", || *group.wire.refused_pre_votes.lock() >= 4).await;
    assert_eq!(group.nodes[&3].term(), before);
    group.wire.cut_off.lock().clear();
    group.agree().await;
    assert_eq!(group.leader().await, 1, "the leader was not disturbed");
}

#[tokio::test]
async fn a_follower_applies_before_its_log_is_flushed_but_writes_nothing_before() {
    let group = Group::start(1_000).await;
    group.grow().await;
    group.write(1, 0..10).await;
    group.agree().await;
    let follower = &group.nodes[&3];
    follower.storage.stores.flusher.flush().await.expect("flushes");
    let before = follower.storage.marker();
    follower.stores.log.hold_flushes();
    group.write(1, 10..20).await;
    until("the follower has applied what it has not flushed", || {
        follower.digest().0 > follower.storage.log.gate().index()
    })
    .await;
    let flusher = follower.storage.stores.flusher.clone();
    let flush = tokio::spawn(async move { flusher.flush().await });
    for _ in 0..1_000 {
        tokio::task::yield_now().await;
    }
    assert!(!flush.is_finished());
    assert_eq!(follower.storage.marker(), before);
    follower.stores.log.release_flushes();
    flush.await.expect("runs").expect("flushes");
    assert!(follower.storage.marker() > before);
}
