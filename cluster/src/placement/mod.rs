//! Decides where replicas and leaders are to be, and what the next step there is.
//!
//! Functions of values: no clock, no IO, nothing asynchronous. The host's tasks observe, ask, and do.
//! - [`spread`]: which nodes each shard is to be on (asked by the directory's leader).
//! - [`membership`]: the next change of a group's members (asked by the group's leader).
//! - [`leaders`]: which leadership to hand over, and to whom (asked by every node for the groups it leads).
//! - [`feature`]: when the cluster may propose newer commands (asked by the directory's leader).

pub mod feature;
pub mod leaders;
pub mod membership;
pub mod spread;

use std::{collections::BTreeMap, time::Duration};

use crate::NodeId;

/// A member that has not answered for longer counts as away: several heartbeats.
pub const HEARD_WITHIN: Duration = Duration::from_millis(1_000);

/// How far a member of a group is, as its leader sees it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Progress {
    /// Last log index it is known to have; `None`: not known yet, or nothing.
    pub matched: Option<u64>,
    /// Time since it last answered; `None`: never yet.
    pub heard_ago: Option<Duration>,
}

impl Progress {
    /// Whether it answers, and misses at most `lag` entries of a log that ends at `last_log`.
    pub fn is_close(&self, last_log: u64, lag: u64) -> bool {
        self.heard_ago.is_some_and(|ago| ago <= HEARD_WITHIN)
            && self.matched.is_some_and(|matched| matched.saturating_add(lag) >= last_log)
    }
}

/// How far the members of a group are, as its leader sees it.
pub type ProgressOf = BTreeMap<NodeId, Progress>;
