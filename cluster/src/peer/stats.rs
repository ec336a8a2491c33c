//! What the transport counts.

use std::sync::atomic::{AtomicU64, Ordering};

/// Counters of a node's transport since its start; they only grow, except [`links_up`](Self::links_up).
#[derive(Debug, Default)]
pub struct PeerStats {
    /// Raft frames sent.
    pub frames_out: AtomicU64,
    /// Raft frames received.
    pub frames_in: AtomicU64,
    /// Messages that carried the frames sent.
    pub batches_out: AtomicU64,
    /// Bytes written to peers, everything included.
    pub bytes_out: AtomicU64,
    /// Bytes read from peers, everything included.
    pub bytes_in: AtomicU64,
    /// Calls that brought no answer: no link, a link that broke, no answer in time, a full queue, a refusal.
    pub calls_failed: AtomicU64,
    /// Calls of peers refused because too many of the same group were under way.
    pub calls_refused: AtomicU64,
    /// Frames given up because the queue to a peer was full.
    pub frames_dropped: AtomicU64,
    /// Links that work now.
    pub links_up: AtomicU64,
    /// Links that broke.
    pub links_broken: AtomicU64,
    /// Connections of others refused.
    pub connections_refused: AtomicU64,
    /// Bytes of snapshots sent.
    pub snapshot_bytes_out: AtomicU64,
    /// Bytes of snapshots received.
    pub snapshot_bytes_in: AtomicU64,
    /// Snapshots received and installed.
    pub snapshots_installed: AtomicU64,
    /// Snapshots that did not arrive, sent or received.
    pub snapshots_failed: AtomicU64,
}

/// Adds to a counter.
pub(super) fn add(counter: &AtomicU64, by: u64) {
    counter.fetch_add(by, Ordering::Relaxed);
}
