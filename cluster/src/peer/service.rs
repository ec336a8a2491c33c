//! What peers ask, handed to the handler.

use std::{pin::Pin, sync::Arc, time::Duration};

use futures::{Stream, StreamExt};
use tokio::{sync::Semaphore, time::Instant};
use tonic::{Request, Response, Status, Streaming, metadata::MetadataMap};

use super::{Inner, PeerHandler, connect::with_causes, hello::Caller, session::Session};
use crate::{
    NodeId,
    proto::{
        AnnounceRequest, AnnounceResponse, FramesRequest, FramesResponse, InstallSnapshotRequest,
        InstallSnapshotResponse, JoinRequest, JoinResponse, ProposeRequest, ProposeResponse, ReadIndexRequest,
        ReadIndexResponse, ReportRequest, ReportResponse, peer_service_server::PeerService,
    },
};

/// Longest time a call may take; also that of a call that does not say.
const MAX_CALL: Duration = Duration::from_secs(10);
/// Snapshots taken in at once: each writes as fast as it comes, and the log shares that disk.
const MAX_INSTALLS: usize = 2;

/// Answers peers.
pub(super) struct PeerCalls {
    inner: Arc<Inner>,
    handler: Arc<dyn PeerHandler>,
    installs: Semaphore,
}

impl PeerCalls {
    pub(super) fn new(inner: Arc<Inner>, handler: Arc<dyn PeerHandler>) -> Self {
        Self { inner, handler, installs: Semaphore::new(MAX_INSTALLS) }
    }
}

fn caller<T>(request: &Request<T>) -> Result<NodeId, Status> {
    let node = request.extensions().get::<Caller>().and_then(|caller| caller.node);
    node.ok_or_else(|| Status::unauthenticated("only a node of the cluster may ask this"))
}

/// Until when a call has to be answered.
fn deadline(metadata: &MetadataMap) -> Instant {
    let asked = metadata.get("grpc-timeout").and_then(|value| parse_timeout(value.to_str().ok()?));
    Instant::now() + asked.unwrap_or(MAX_CALL).min(MAX_CALL)
}

/// A timeout as gRPC writes it: up to eight digits and a unit.
fn parse_timeout(text: &str) -> Option<Duration> {
    let (digits, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    if digits.is_empty() || digits.len() > 8 || !digits.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    let amount: u64 = digits.parse().ok()?;
    Some(match unit {
        "H" => Duration::from_secs(amount * 3_600),
        "M" => Duration::from_secs(amount * 60),
        "S" => Duration::from_secs(amount),
        "m" => Duration::from_millis(amount),
        "u" => Duration::from_micros(amount),
        "n" => Duration::from_nanos(amount),
        _ => return None,
    })
}

#[tonic::async_trait]
impl PeerService for PeerCalls {
    type FramesStream = Pin<Box<dyn Stream<Item = Result<FramesResponse, Status>> + Send>>;

    async fn frames(&self, request: Request<Streaming<FramesRequest>>) -> Result<Response<Self::FramesStream>, Status> {
        let peer = caller(&request)?;
        if peer >= self.inner.node_id {
            return Err(Status::failed_precondition("of two nodes the one with the lower id opens the link"));
        }
        let link = self.inner.links.read().get(&peer).cloned();
        let link = link.ok_or_else(|| Status::permission_denied("not a node known here"))?;
        let id = link.begin().ok_or_else(|| Status::unavailable("this node is stopping"))?;
        let outgoing = link.outgoing(id).map(|frames| Ok(FramesResponse { frames }));
        let incoming = request.into_inner().map(|batch| batch.map(|batch| batch.frames));
        let session = Session { link, id, handler: self.handler.clone(), stats: self.inner.stats.clone() };
        tracing::info!(peer, "linked");
        tokio::spawn(async move {
            let why = session.run(incoming).await;
            tracing::warn!(peer, why = why.map(|status| with_causes(&status)), "the link ended");
        });
        Ok(Response::new(Box::pin(outgoing)))
    }

    async fn install_snapshot(
        &self,
        request: Request<Streaming<InstallSnapshotRequest>>,
    ) -> Result<Response<InstallSnapshotResponse>, Status> {
        let from = caller(&request)?;
        let busy = |_| Status::resource_exhausted("other snapshots are being installed here");
        let _permit = self.installs.try_acquire().map_err(busy)?;
        let installed = self.inner.receive_snapshot(from, request.into_inner(), &self.handler).await;
        Ok(Response::new(installed?))
    }

    async fn join(&self, request: Request<JoinRequest>) -> Result<Response<JoinResponse>, Status> {
        Ok(Response::new(self.handler.join(request.into_inner()).await?))
    }

    async fn announce(&self, request: Request<AnnounceRequest>) -> Result<Response<AnnounceResponse>, Status> {
        let node = caller(&request)?;
        let request = request.into_inner();
        if request.cluster_id.as_ref() != self.inner.connector.cluster_id {
            return Err(Status::permission_denied("another cluster"));
        }
        if request.from.as_ref().is_none_or(|from| from.node_id != node) {
            return Err(Status::permission_denied(format!("node {node} speaks for another one")));
        }
        Ok(Response::new(self.handler.announce(request).await?))
    }

    async fn propose(&self, request: Request<ProposeRequest>) -> Result<Response<ProposeResponse>, Status> {
        let deadline = deadline(request.metadata());
        Ok(Response::new(self.handler.propose(request.into_inner(), deadline).await))
    }

    async fn read_index(&self, request: Request<ReadIndexRequest>) -> Result<Response<ReadIndexResponse>, Status> {
        let deadline = deadline(request.metadata());
        Ok(Response::new(self.handler.read_index(request.into_inner(), deadline).await))
    }

    async fn report(&self, request: Request<ReportRequest>) -> Result<Response<ReportResponse>, Status> {
        let deadline = deadline(request.metadata());
        Ok(Response::new(self.handler.report(deadline).await))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn timeouts_are_read_as_grpc_writes_them() {
        for (text, expected) in [
            ("10S", Some(Duration::from_secs(10))),
            ("250m", Some(Duration::from_millis(250))),
            ("99999999u", Some(Duration::from_micros(99_999_999))),
            ("7n", Some(Duration::from_nanos(7))),
            ("2M", Some(Duration::from_secs(120))),
            ("1H", Some(Duration::from_secs(3_600))),
            ("", None),
            ("S", None),
            ("+1S", None),
            ("100000000m", None),
            ("1x", None),
            ("1\u{e9}", None),
        ] {
            assert_eq!(parse_timeout(text), expected, "{text}");
        }
    }

    #[test]
    fn a_call_without_a_timeout_or_with_a_long_one_gets_the_longest_there_is() {
        for text in ["", "1H", "nonsense"] {
            let mut metadata = MetadataMap::new();
            metadata.insert("grpc-timeout", text.parse().expect("ascii"));
            assert!(deadline(&metadata) <= Instant::now() + MAX_CALL);
        }
    }
}
