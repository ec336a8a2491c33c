//! openraft's types, filled in.

use std::fmt;

use bytes::Bytes;
use openraft::{
    OptionalSend, RaftTypeConfig,
    alias::{CommittedLeaderIdOf, EntryOf, LogIdOf, SnapshotMetaOf, SnapshotOf, StoredMembershipOf, VoteOf},
    impls::{self, leader_id_adv},
    raft::responder::Responder,
    vote::RaftLeaderId,
};
use tokio::sync::{OwnedSemaphorePermit, oneshot};

use crate::NodeId;

/// A command of the layer above, opaque here. It may hold a key: never formatted.
#[derive(Clone, PartialEq, Eq)]
pub struct Command(pub Bytes);

impl fmt::Debug for Command {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Command({self})")
    }
}

impl fmt::Display for Command {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} bytes", self.0.len())
    }
}

/// The machine's reply to a command; empty for entries without one.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Reply(pub Bytes);

/// A member of a group.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Member {
    /// `host:port` of its transport; empty for a node without one.
    pub address: String,
}

/// Where a proposal's outcome goes. It holds the proposal's share of the admission limits until openraft lets go of
/// it, whether or not anybody still waits: so what is bounded is what really is in flight.
pub struct Completion<T> {
    tx: oneshot::Sender<T>,
    _admitted: Vec<OwnedSemaphorePermit>,
}

impl<T> Completion<T> {
    /// A completion and the receiver of the outcome.
    pub(crate) fn new(admitted: Vec<OwnedSemaphorePermit>) -> (Self, oneshot::Receiver<T>) {
        let (tx, rx) = oneshot::channel();
        (Self { tx, _admitted: admitted }, rx)
    }
}

impl<T: OptionalSend + 'static> Responder<TypeConfig, T> for Completion<T> {
    fn on_complete(self, result: T) {
        // Nobody waits any more: its deadline has passed.
        let _ = self.tx.send(result);
    }
}

/// The types of all groups. (`declare_raft_types!` can't set a responder.)
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct TypeConfig;

impl RaftTypeConfig for TypeConfig {
    type D = Command;
    type R = Reply;
    type NodeId = NodeId;
    type Node = Member;
    type Term = u64;
    type LeaderId = leader_id_adv::LeaderId<u64, NodeId>;
    type Vote = impls::Vote<Self::LeaderId>;
    type Payload = openraft::EntryPayload<Command, NodeId, Member>;
    type Entry = openraft::Entry<<Self::LeaderId as RaftLeaderId>::Committed, Self::Payload>;
    type AsyncRuntime = super::runtime::InStep;
    type Responder<T>
        = Completion<T>
    where
        T: OptionalSend + 'static;
    type Batch<T>
        = impls::InlineBatch<T>
    where
        T: OptionalSend + 'static;
    type ErrorSource = impls::BoxedErrorSource;
}

/// The id of a log entry.
pub type LogId = LogIdOf<TypeConfig>;
/// Who proposed an entry: term and node.
pub type LeaderId = CommittedLeaderIdOf<TypeConfig>;
/// A vote.
pub type Vote = VoteOf<TypeConfig>;
/// A log entry.
pub type Entry = EntryOf<TypeConfig>;
/// A group's configuration.
pub type Membership = openraft::Membership<NodeId, Member>;
/// A group's configuration and the entry it came with.
pub type StoredMembership = StoredMembershipOf<TypeConfig>;
/// What a snapshot stands for.
pub type SnapshotMeta = SnapshotMetaOf<TypeConfig>;
/// A snapshot with its data.
pub type Snapshot = SnapshotOf<TypeConfig, super::SnapshotData>;
/// One group's consensus.
pub type Raft = openraft::Raft<TypeConfig, super::machine::GroupMachine>;
