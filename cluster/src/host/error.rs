//! What can go wrong at a start, with a proposal, with a setting.

use std::{io, net::SocketAddr, path::PathBuf};

use crate::{GroupId, NodeId, raft::Gap};

/// Why a node did not start. Nothing was changed, unless the variant says so.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// Another process uses this data directory.
    #[error("the data directory {} is in use by another process", path.display())]
    Locked {
        /// The directory.
        path: PathBuf,
    },
    /// The data was written by a newer program, or belongs to a node that told its cluster what it knows: start that
    /// one.
    #[error("the data directory needs a program of feature level {found}, this one knows level {known} only")]
    FormatTooNew {
        /// Format of the data: the feature level it needs.
        found: u32,
        /// Newest format this program reads.
        known: u32,
    },
    /// The number of shards is chosen once, when the cluster is formed.
    #[error("this cluster has {stored} shards, which can't be changed to {asked}; leave the number out to keep it")]
    ShardCountDiffers {
        /// What the cluster has.
        stored: u32,
        /// What was asked for.
        asked: u32,
    },
    /// A number of shards that can't be.
    #[error("the number of shards must be 1 to {max}, not {asked}")]
    BadShardCount {
        /// What was asked for.
        asked: u32,
        /// Most shards.
        max: u32,
    },
    /// A group that existed has no log any more. Restore the data directory from a backup.
    #[error("the log of {group} is gone")]
    LostGroup {
        /// The group.
        group: GroupId,
    },
    /// A group's parts don't fit together: something synced was lost. Restore the data directory from a backup.
    #[error("{group}: {gap}")]
    Gap {
        /// The group.
        group: GroupId,
        /// What is missing.
        gap: Gap,
    },
    /// The disk, or damaged data (`InvalidData`).
    #[error("{what}: {source}")]
    Io {
        /// Which part of the data.
        what: &'static str,
        /// The error.
        source: io::Error,
    },
    /// Consensus did not start.
    #[error("{group}: {why}")]
    Raft {
        /// The group.
        group: GroupId,
        /// What it said.
        why: String,
    },
    /// The peer address can't be listened on: it is taken, or not one of this machine's.
    #[error("can't listen for peers on {address}: {source}")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// Why.
        source: io::Error,
    },
    /// The data directory is one of a node that wanted to join a cluster and has not been taken up. Name the cluster.
    #[error("this node has not joined its cluster yet: say again which one to join")]
    NotJoined,
    /// The join token can't be used, or the cluster does not want this node, or can't be reached. What was written: the
    /// request's nonce, so that the next try is the same request.
    #[error("joining the cluster: {0}")]
    Join(String),
    /// Keys or certificates, or a cluster that talks otherwise than this node was told to.
    #[error("security between nodes: {0}")]
    Security(String),
    /// The directory had no leader in time.
    #[error("the directory has no leader after {waited_s} s")]
    NoDirectory {
        /// How long it took.
        waited_s: u64,
    },
}

/// Why a proposal has no reply. Only [`ProposeError::Unknown`] leaves open whether it was or will be applied.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ProposeError {
    /// Not applied: this node doesn't lead the shard. Try the leader, or wait for one.
    #[error("not the leader (which is {leader:?})")]
    NotLeader {
        /// Who leads, if known.
        leader: Option<NodeId>,
    },
    /// Not applied; the text says why. Try again.
    #[error("unavailable: {0}")]
    Unavailable(&'static str),
    /// Not applied: too much is in flight. Back off.
    #[error("overloaded")]
    Overloaded,
    /// Not applied: the command is longer than a log entry may be. The caller's fault.
    #[error("the command has {bytes} bytes, more than {max_bytes}")]
    TooLarge {
        /// What it has.
        bytes: usize,
        /// What it may have.
        max_bytes: usize,
    },
    /// It may have been applied, or may still be; the text says why nobody knows. Only a command that is safe to
    /// repeat may be proposed again.
    #[error("outcome unknown: {0}")]
    Unknown(&'static str),
    /// Not applied: this node is stopping or has failed.
    #[error("the node is stopping")]
    Stopping,
}

/// Why a setting was not written.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SettingError {
    /// It has another revision than expected: read it again.
    #[error("the setting has revision {revision}")]
    Mismatch {
        /// Its revision; 0: there is no such setting.
        revision: u64,
    },
    /// Name, value or number of settings is beyond the limits.
    #[error("{0}")]
    Refused(String),
    /// The directory could not be written.
    #[error(transparent)]
    Propose(#[from] ProposeError),
}
