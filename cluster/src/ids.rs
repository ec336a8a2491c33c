//! Names of things: nodes, groups, shards, buckets.

use std::fmt;

/// A node of the cluster. Never reused: a node whose disk was lost comes back as a new one.
pub type NodeId = u64;

/// A Raft group: 0 is the directory, shard `s` is group `s + 1`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct GroupId(pub u32);

impl GroupId {
    /// The directory's group.
    pub const DIRECTORY: GroupId = GroupId(0);
}

impl fmt::Display for GroupId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "g{}", self.0)
    }
}

/// A shard, counted from 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ShardId(pub u32);

impl ShardId {
    /// The Raft group that replicates this shard.
    pub const fn group(self) -> GroupId {
        GroupId(self.0 + 1)
    }
}

impl fmt::Display for ShardId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "s{}", self.0)
    }
}

/// Number of buckets; fixed for ever, since it is part of what keys mean on disk.
pub const BUCKETS: u16 = 4096;

/// The bucket of an already hashed key.
pub const fn bucket_of(key_hash: u64) -> u16 {
    (key_hash % BUCKETS as u64) as u16
}
