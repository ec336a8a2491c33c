//! Snapshots on their way: chunk by chunk, on a connection of their own, at a bounded rate.

use std::{io, sync::Arc, time::Duration};

use bytes::Bytes;
use futures::{Stream, StreamExt, stream};
use openraft::{
    async_runtime::watch::WatchReceiver,
    errors::{StreamingError, Unreachable},
    raft::SnapshotResponse,
};
use parking_lot::Mutex;
use tokio::{
    sync::watch,
    time::{Instant, sleep_until, timeout, timeout_at},
};
use tonic::{Code, Status};

use super::{
    Inner, PeerHandler,
    connect::with_causes,
    convert,
    stats::{PeerStats, add},
};
use crate::{
    GroupId, NodeId,
    proto::{InstallSnapshotRequest, InstallSnapshotResponse, SnapshotHead, peer_service_client::PeerServiceClient},
    raft::{
        SnapshotData,
        codec::{Applied, applied_from_proto, applied_to_proto, vote_from_proto, vote_to_proto},
        network::Peer,
        types::{Snapshot, SnapshotMeta, TypeConfig, Vote},
    },
    storage::SnapshotReader,
};

/// Bytes of a chunk: a few milliseconds of a disk, and of the rate.
const CHUNK_BYTES: usize = 512 << 10;
/// Bytes of snapshots a node sends in a second, to all peers together, unless told otherwise: half of what 1 Gbit/s
/// carries, so that entries and scores get through beside it.
pub const DEFAULT_SNAPSHOT_RATE_BYTES: u64 = 64 << 20;
/// How much may go at once after a pause: one chunk each for a few transfers.
const BURST_BYTES: u64 = 4 * CHUNK_BYTES as u64;
/// A transfer that does not get on this long has ended, unless told otherwise: a disk that is busy with something else
/// comes back sooner, and nothing else waits for the transfer.
pub const DEFAULT_SNAPSHOT_STALL: Duration = Duration::from_secs(10);
/// Installing what has arrived: a large shard is read, decoded and written once more.
const INSTALL: Duration = Duration::from_secs(120);

/// Lets bytes through at a rate: a bucket that fills while nothing goes.
#[derive(Debug)]
pub(super) struct Rate {
    bytes_per_second: u64,
    /// Everything let through is paid for by then.
    paid: Option<Instant>,
}

impl Rate {
    pub(super) fn new(bytes_per_second: u64) -> Self {
        Self { bytes_per_second: bytes_per_second.max(1), paid: None }
    }

    /// When `bytes` may go. They count as gone.
    fn take(&mut self, bytes: u64, now: Instant) -> Instant {
        let seconds = |bytes: u64| Duration::from_secs_f64(bytes as f64 / self.bytes_per_second as f64);
        let credit = seconds(BURST_BYTES);
        // What was not used is credit, up to a burst.
        let earliest = now.checked_sub(credit).unwrap_or(now);
        let paid = self.paid.map_or(earliest, |paid| paid.max(earliest)) + seconds(bytes);
        self.paid = Some(paid);
        paid
    }
}

/// Waits until `bytes` may go.
async fn pace(rate: &Mutex<Rate>, bytes: usize) {
    let until = rate.lock().take(bytes as u64, Instant::now());
    sleep_until(until).await;
}

/// Counts a transfer that was given up, also when whoever waited for it is gone.
struct Unfinished<'a>(&'a PeerStats, bool);

impl Drop for Unfinished<'_> {
    fn drop(&mut self) {
        if !self.1 {
            add(&self.0.snapshots_failed, 1);
        }
    }
}

impl Inner {
    /// Sends a snapshot and waits until it is installed.
    pub(super) async fn send_snapshot(
        self: &Arc<Self>,
        peer: &Peer,
        vote: Vote,
        snapshot: Snapshot,
        limit: Duration,
    ) -> Result<SnapshotResponse<TypeConfig>, StreamingError<TypeConfig>> {
        let mut unfinished = Unfinished(&self.stats, false);
        let sent = self.try_send_snapshot(peer, vote, snapshot, limit).await;
        unfinished.1 = sent.is_ok();
        sent.inspect_err(|e| {
            tracing::warn!(peer = peer.node, group = %peer.group, error = %e, "a snapshot did not arrive");
        })
    }

    async fn try_send_snapshot(
        self: &Arc<Self>,
        peer: &Peer,
        vote: Vote,
        snapshot: Snapshot,
        limit: Duration,
    ) -> Result<SnapshotResponse<TypeConfig>, StreamingError<TypeConfig>> {
        let unreachable =
            |what: String| Unreachable::from_string(format!("node {} ({}): {what}", peer.node, peer.group));
        let Snapshot { meta, snapshot: SnapshotData::Published(reader) } = snapshot else {
            return Err(unreachable("the snapshot is not published here".to_owned()).into());
        };
        let channel = self.connector.connected(peer.node).await.map_err(|e| unreachable(with_causes(&e)))?;
        let applied = Applied { last: meta.last_log_id, membership: meta.last_membership };
        let size_bytes = reader.info().size_bytes;
        let head = SnapshotHead {
            group: peer.group.0,
            vote: Some(vote_to_proto(&vote)),
            applied: Some(applied_to_proto(&applied)),
            size_bytes,
        };
        let (progress, mut sent) = watch::channel(0);
        let head = stream::once(async { InstallSnapshotRequest { head: Some(head), chunk: Bytes::new() } });
        let chunks = head.chain(self.clone().chunks(reader, progress));
        let mut client = PeerServiceClient::new(channel);
        let mut call = std::pin::pin!(client.install_snapshot(chunks));
        let (end, stall) = (Instant::now() + limit, *self.stall.lock());
        // Ends when the call does, or when nothing has been sent for too long.
        let answered = loop {
            let patience = if *sent.borrow_and_update() < size_bytes { stall } else { INSTALL };
            let stalled = (Instant::now() + patience).min(end);
            tokio::select! {
                answered = &mut call => break answered,
                Ok(()) = sent.changed() => {}
                () = sleep_until(stalled) => {
                    return Err(unreachable("the transfer does not get on".to_owned()).into());
                }
            }
        };
        match answered {
            Ok(response) => {
                let vote = response.into_inner().vote;
                let vote = vote.ok_or_else(|| unreachable("an answer without a vote".to_owned()))?;
                Ok(SnapshotResponse::new(vote_from_proto(&vote)))
            }
            // Its turn comes; not at once.
            Err(status) if status.code() == Code::ResourceExhausted => {
                Err(unreachable(status.message().to_owned()).into())
            }
            Err(status) => Err(unreachable(with_causes(&status)).into()),
        }
    }

    /// The chunks of a file, at the node's rate. A read that fails ends them early, which the receiver notices.
    fn chunks(
        self: Arc<Self>,
        reader: Arc<dyn SnapshotReader>,
        progress: watch::Sender<u64>,
    ) -> impl Stream<Item = InstallSnapshotRequest> + Send + 'static {
        stream::unfold((self, reader, 0_u64, progress), |(inner, reader, at, progress)| async move {
            let from = reader.clone();
            let read = inner.connector.env.blocking.call(move || from.read_chunk(at, CHUNK_BYTES)).await;
            let chunk = match read {
                Some(Ok(chunk)) if chunk.is_empty() => return None,
                Some(Ok(chunk)) => chunk,
                Some(Err(e)) => {
                    tracing::error!(error = %e, "a snapshot could not be read");
                    return None;
                }
                None => return None,
            };
            pace(&inner.rate, chunk.len()).await;
            let at = at + chunk.len() as u64;
            add(&inner.stats.snapshot_bytes_out, chunk.len() as u64);
            progress.send_replace(at);
            Some((InstallSnapshotRequest { head: None, chunk }, (inner, reader, at, progress)))
        })
    }

    /// Takes a snapshot in and installs it. What has arrived of one that breaks off is discarded.
    pub(super) async fn receive_snapshot(
        &self,
        from: NodeId,
        chunks: impl Stream<Item = Result<InstallSnapshotRequest, Status>> + Unpin,
        handler: &Arc<dyn PeerHandler>,
    ) -> Result<InstallSnapshotResponse, Status> {
        let mut unfinished = Unfinished(&self.stats, false);
        let received = self.try_receive_snapshot(chunks, handler).await;
        unfinished.1 = received.is_ok();
        received.inspect_err(|e| {
            tracing::warn!(from, error = %with_causes(e), "a snapshot was not installed");
        })
    }

    async fn try_receive_snapshot(
        &self,
        mut chunks: impl Stream<Item = Result<InstallSnapshotRequest, Status>> + Unpin,
        handler: &Arc<dyn PeerHandler>,
    ) -> Result<InstallSnapshotResponse, Status> {
        let invalid = |e: io::Error| Status::invalid_argument(e.to_string());
        let stalled = |_| Status::deadline_exceeded("the transfer does not get on");
        let stall = *self.stall.lock();
        let first = timeout(stall, chunks.next()).await.map_err(stalled)?;
        let head = first.transpose()?.and_then(|first| first.head);
        let head = head.ok_or_else(|| Status::invalid_argument("a snapshot without a head"))?;
        let (group, vote) = (GroupId(head.group), convert::vote(head.vote.as_ref()).map_err(invalid)?);
        let applied = applied_from_proto(head.applied.unwrap_or_default()).map_err(invalid)?;
        let meta = SnapshotMeta { last_log_id: applied.last, last_membership: applied.membership };
        let no_replica = || Status::not_found(format!("no replica of {group} here"));
        let raft = handler.raft(group).ok_or_else(no_replica)?;
        let seen = raft.server_metrics().borrow_watched().vote;
        if seen > vote {
            // Not from a leader any more: spare the transfer.
            return Ok(InstallSnapshotResponse { vote: Some(vote_to_proto(&seen)) });
        }

        // A leader whose link broke may not know what arrived. openraft takes a snapshot that its log has passed for a
        // step back of the log, which it asserts never to happen.
        let is_covered = async || {
            let Some(last) = applied.last.filter(|_| raft.server_metrics().borrow_watched().vote == vote) else {
                return Ok(false);
            };
            let covered = timeout(INSTALL, handler.covers(group, last)).await;
            let late = |_| Status::deadline_exceeded("the log is still being flushed");
            covered.map_err(late)?.map_err(|e| Status::internal(format!("the log could not be read: {e}")))
        };
        let covered = InstallSnapshotResponse { vote: Some(vote_to_proto(&vote)) };
        if is_covered().await? {
            return Ok(covered);
        }

        let disk = |e: io::Error| Status::internal(format!("the snapshot could not be written: {e}"));
        let gone = || Status::unavailable("this node is stopping");
        let (blocking, installer) = (&self.connector.env.blocking, handler.clone());
        let begun = blocking.call(move || installer.begin_install(group)).await;
        let mut install = begun.ok_or_else(gone)?.map_err(disk)?;
        loop {
            let next = timeout(stall, chunks.next()).await.map_err(stalled)?;
            let Some(chunk) = next.transpose()?.map(|request| request.chunk) else { break };
            let received = install.received_bytes() + chunk.len() as u64;
            if received > head.size_bytes {
                return Err(Status::invalid_argument("the snapshot is longer than its head says"));
            }
            add(&self.stats.snapshot_bytes_in, chunk.len() as u64);
            let written = blocking.call(move || install.write_chunk(&chunk).map(|()| install)).await;
            install = written.ok_or_else(gone)?.map_err(disk)?;
        }
        if install.received_bytes() != head.size_bytes {
            return Err(Status::data_loss("the snapshot broke off"));
        }
        if is_covered().await? {
            return Ok(covered);
        }
        let snapshot = Snapshot { meta, snapshot: SnapshotData::Received(install) };
        let installing = raft.install_full_snapshot(vote, snapshot);
        let installed = timeout_at(Instant::now() + INSTALL, installing).await;
        let response = installed
            .map_err(|_| Status::deadline_exceeded("the snapshot is still being installed"))?
            .map_err(|e| Status::unavailable(e.to_string()))?;
        add(&self.stats.snapshots_installed, 1);
        Ok(InstallSnapshotResponse { vote: Some(vote_to_proto(&response.vote)) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// When the last of `chunks` chunks goes, each sent as soon as the one before has gone.
    fn send(rate: &mut Rate, chunks: usize, start: Instant) -> Instant {
        (0..chunks).fold(start, |now, _| rate.take(CHUNK_BYTES as u64, now).max(now))
    }

    #[test]
    fn bytes_go_at_the_rate_after_a_burst() {
        let mut rate = Rate::new(10 * CHUNK_BYTES as u64);
        let start = Instant::now() + Duration::from_secs(1_000);
        let after_burst = send(&mut rate, 4, start);
        assert_eq!(after_burst, start, "the burst is free");
        let end = send(&mut rate, 20, after_burst);
        assert_eq!(end.duration_since(start).as_millis(), 2_000);
        let later = end + Duration::from_secs(100);
        let end = send(&mut rate, 14, later);
        assert_eq!(end.duration_since(later).as_millis(), 1_000, "a long pause earns one burst, not more");
    }

    #[test]
    fn transfers_share_the_rate() {
        let (mut rate, now) = (Rate::new(BURST_BYTES), Instant::now() + Duration::from_secs(1_000));
        assert!(rate.take(BURST_BYTES, now) <= now);
        let waits = [1, 2, 3].map(|_| rate.take(BURST_BYTES, now).duration_since(now).as_millis());
        assert_eq!(waits, [1_000, 2_000, 3_000]);
    }
}
