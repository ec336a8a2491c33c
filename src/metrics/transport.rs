//! The transport between nodes, as the cluster crate counts it.

use std::sync::atomic::{AtomicU64, Ordering};

use andante_cluster::peer::PeerStats;
use prometheus_client::metrics::{counter::Counter, gauge::Gauge};

use super::Registrar;

/// One of the transport's counters: name, unit, meaning, where it is.
type Counted = (&'static str, &'static str, &'static str, fn(&PeerStats) -> &AtomicU64);

const COUNTED: [Counted; 13] = [
    ("transport_sent", "frames", "Raft frames sent to other nodes", |s| &s.frames_out),
    ("transport_received", "frames", "Raft frames received from other nodes", |s| &s.frames_in),
    ("transport_sent", "batches", "Messages that carried the Raft frames sent", |s| &s.batches_out),
    ("transport_sent", "bytes", "Bytes written to other nodes, everything included", |s| &s.bytes_out),
    ("transport_received", "bytes", "Bytes read from other nodes, everything included", |s| &s.bytes_in),
    ("transport_failed", "calls", "Raft calls to other nodes that brought no answer", |s| &s.calls_failed),
    ("transport_refused", "calls", "Raft calls of other nodes refused because too many were under way", |s| {
        &s.calls_refused
    }),
    ("transport_dropped", "frames", "Raft frames given up because the queue to a node was full", |s| &s.frames_dropped),
    ("transport_broken", "links", "Links to other nodes that broke", |s| &s.links_broken),
    ("transport_refused", "connections", "Connections refused on the peer address", |s| &s.connections_refused),
    ("snapshot_received", "bytes", "Bytes of snapshots received from other nodes", |s| &s.snapshot_bytes_in),
    ("snapshot_installed", "snapshots", "Snapshots of other nodes installed here", |s| &s.snapshots_installed),
    ("snapshot_failed", "snapshots", "Snapshots that did not arrive, sent or received", |s| &s.snapshots_failed),
];

/// What the transport has done, and its links.
#[derive(Debug)]
pub struct TransportMetrics {
    counted: [Counter; COUNTED.len()],
    links: Gauge,
}

impl TransportMetrics {
    pub(super) fn register(book: &mut Registrar) -> Self {
        Self {
            counted: COUNTED.map(|(name, unit, help, _)| book.counter(name, unit, help)),
            links: book.gauge("transport_working", "links", "Links to other nodes that work"),
        }
    }

    /// Takes over the transport's own counters, which only grow.
    pub fn follow(&self, stats: &PeerStats) {
        for (counter, (.., of)) in self.counted.iter().zip(COUNTED) {
            counter.inc_by(of(stats).load(Ordering::Relaxed).saturating_sub(counter.get()));
        }
        self.links.set(stats.links_up.load(Ordering::Relaxed) as i64);
    }
}
