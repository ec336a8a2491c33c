//! Who finds broken promises. One file each; a new one is a file and a line in [`all`].

mod deadlines;
mod digests;
mod grace;
mod linearizable;
mod overspend;
mod promises;
mod raft;
mod replies;
mod situations;
mod token;

use std::{fmt, sync::Arc};

use andante::{
    campaign::{book::Book, proto},
    v1,
};
use andante_cluster::{
    GroupId, ShardId,
    storage::{
        SnapshotInfo,
        memory::{Crash, LogOp, StateOp},
    },
};

pub use self::token::TokenId;
use crate::{linearizability::Operation, markers::Markers, plan::Plan, world::World};

/// What an oracle found: nothing wrong, or what is broken.
pub type Found = Result<(), String>;

/// A command that a node has just applied.
pub struct Applied<'a> {
    /// Position of the node.
    pub node: usize,
    /// The shard.
    pub shard: ShardId,
    /// Log index.
    pub index: u64,
    /// The command.
    pub command: &'a proto::Command,
    /// The reply.
    pub reply: &'a proto::Reply,
    /// The book after it.
    pub book: &'a Book,
    /// True time, simulated milliseconds.
    pub at_ms: u64,
}

/// Something became durable on a node's disks.
pub struct Stored<'a> {
    /// Position of the node.
    pub node: usize,
    /// The group.
    pub group: GroupId,
    /// What.
    pub write: Write<'a>,
}

/// A durable write.
pub enum Write<'a> {
    /// Of a log.
    Log(&'a LogOp),
    /// Of records.
    State(&'a StateOp),
    /// Of a snapshot; `None`: it is gone.
    Snapshot(Option<&'a SnapshotInfo>),
}

/// Begin or end of a node's life.
pub enum Life {
    /// It runs.
    Started {
        /// Its id in the cluster.
        node_id: u64,
        /// Count of its starts.
        boot_id: u64,
    },
    /// It ended by itself: why.
    Ended(String),
    /// It was stopped from outside: what that did to its disks.
    Crashed(Crash),
    /// Its disks were lost.
    DiskLost,
}

impl fmt::Display for Life {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Started { node_id, boot_id } => write!(f, "runs as node {node_id}, boot {boot_id}"),
            Self::Ended(why) => write!(f, "ended: {why}"),
            Self::Crashed(Crash { log_batch, state_written, state_lost }) => {
                let batch = match log_batch {
                    None => "no log batch was being synced".to_owned(),
                    Some((unsynced, writes)) => format!("a log batch of {writes} writes was {unsynced:?}"),
                };
                write!(
                    f,
                    "crashed; {batch}; of the unsynced records {state_written} steps stayed, {state_lost} are lost"
                )
            }
            Self::DiskLost => f.write_str("lost its disks"),
        }
    }
}

/// What a client asks or is told. Times are true, simulated milliseconds.
pub enum Told<'a> {
    /// A reply to a score request, which has an id of its own.
    Scored {
        /// Position of the node that was asked.
        node: usize,
        /// The request.
        request: &'a v1::ScoreRequest,
        /// Number of the call: a request that is sent twice makes two calls.
        call: u64,
        /// The reply.
        reply: &'a v1::ScoreResponse,
        /// When it was asked.
        asked_ms: u64,
        /// When it was told.
        told_ms: u64,
    },
    /// A score request was not answered by its deadline.
    Unanswered {
        /// Position of the node that was asked.
        node: usize,
        /// When it was asked.
        asked_ms: u64,
        /// When it was given up.
        told_ms: u64,
    },
    /// An outcome is about to be reported.
    Reporting(&'a v1::OutcomeEvent),
    /// An outcome was reported.
    Reported {
        /// The event.
        event: &'a v1::OutcomeEvent,
        /// The answer; `None`: there was none, or its fate is unknown.
        result: Option<&'a v1::OutcomeResult>,
        /// When it was reported.
        asked_ms: u64,
        /// When it was answered, or given up.
        told_ms: u64,
    },
    /// A client asks for a campaign to be deleted.
    Deleting(&'a str),
    /// An edit or a read of a campaign is over: its fate is known, or it was given up.
    Operation(&'a Operation),
}

/// Finds one kind of broken promise. All are told everything; most look at little.
pub trait Oracle: Send {
    /// Its name: the class of what it finds.
    fn name(&self) -> &'static str;
    /// A node has applied a command.
    fn applied(&mut self, _applied: &Applied<'_>) -> Found {
        Ok(())
    }
    /// A node's book of a shard was replaced as a whole.
    fn restored(&mut self, _node: usize, _shard: ShardId, _book: &Book) -> Found {
        Ok(())
    }
    /// Something became durable.
    fn stored(&mut self, _stored: &Stored<'_>) -> Found {
        Ok(())
    }
    /// A client asks or was told something.
    fn told(&mut self, _told: &Told<'_>) -> Found {
        Ok(())
    }
    /// A node begins or ends a life.
    fn life(&mut self, _node: usize, _life: &Life) -> Found {
        Ok(())
    }
    /// A moment has passed.
    fn look(&mut self, _world: &World) -> Found {
        Ok(())
    }
    /// Clients have all their answers and ask for nothing any more.
    fn over(&mut self) -> Found {
        Ok(())
    }
    /// Everything is over and calm.
    fn audit(&mut self, _world: &World) -> Found {
        Ok(())
    }
}

/// All oracles, for a plan.
pub fn all(plan: &Plan, markers: &Arc<Markers>) -> Vec<Box<dyn Oracle>> {
    vec![
        Box::new(overspend::Overspend),
        Box::new(promises::Promises::new(markers.clone())),
        Box::new(replies::Replies::new(plan, markers.clone())),
        Box::new(deadlines::Deadlines::new(plan)),
        Box::new(digests::Digests::default()),
        Box::new(grace::Grace::new(plan)),
        Box::new(raft::Raft::default()),
        Box::new(situations::Situations::new(markers.clone())),
        Box::new(linearizable::Linearizable::new(markers.clone())),
    ]
}
