//! A new node's way into a cluster.

use std::{io, time::Duration};

use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use thiserror::Error;
use tokio::time::{Instant, sleep, timeout};
use tonic::{Code, Request, Status, transport::Uri};
use tower::service_fn;

use super::{
    connect::{CONNECT_TIMEOUT, endpoint, with_causes},
    hello,
};
use crate::{
    env::{Env, Io},
    host::Join,
    proto::{Hello, JoinRequest, JoinResponse, peer_service_client::PeerServiceClient},
    security::{JoinToken, connect_for_join},
};

/// Waits between rounds over all addresses: doubled each time.
const BACKOFF: Duration = Duration::from_millis(100);
const MAX_BACKOFF: Duration = Duration::from_secs(2);
/// How long one node may take: it asks the directory's leader, which may just be elected.
const ANSWER: Duration = Duration::from_secs(10);

/// Why a node could not join.
#[derive(Debug, Error)]
pub enum JoinError {
    /// A node of the cluster refuses it, for good.
    #[error("the cluster refuses this node: {}", .0.message())]
    Refused(Status),
    /// Nobody has taken it up before the deadline; what each address said last.
    #[error("no node has let this one join before the deadline: {0}")]
    Unavailable(String),
}

/// Asks the addresses in turn, with backoff, until one answers or the deadline passes. `token`: `None` in a cluster
/// without TLS.
pub async fn join(
    env: &Env,
    join: &Join,
    token: Option<&JoinToken>,
    request: JoinRequest,
    deadline: Instant,
) -> Result<JoinResponse, JoinError> {
    let mut backoff = BACKOFF;
    loop {
        let mut said = Vec::new();
        for address in &join.addresses {
            let left = deadline.saturating_duration_since(Instant::now()).min(ANSWER);
            let asked = timeout(left, ask(env, address, token, request.clone(), left)).await;
            let why = match asked {
                Ok(Ok(response)) => return Ok(response),
                Ok(Err(status)) if is_final(&status) => return Err(JoinError::Refused(status)),
                Ok(Err(status)) => status.message().to_owned(),
                Err(_) => "no answer".to_owned(),
            };
            tracing::info!(address, why, "not joined yet");
            said.push(format!("{address}: {why}"));
        }
        if Instant::now() + backoff >= deadline {
            return Err(JoinError::Unavailable(said.join("; ")));
        }
        sleep(backoff).await;
        backoff = (backoff * 2).min(MAX_BACKOFF);
    }
}

/// Whether asking again, or somebody else, is of no use.
fn is_final(status: &Status) -> bool {
    use Code::{FailedPrecondition, InvalidArgument, PermissionDenied, Unauthenticated};
    matches!(status.code(), PermissionDenied | Unauthenticated | InvalidArgument | FailedPrecondition)
}

async fn ask(
    env: &Env,
    address: &str,
    token: Option<&JoinToken>,
    request: JoinRequest,
    limit: Duration,
) -> Result<JoinResponse, Status> {
    let unavailable = |e: &dyn ToString| Status::unavailable(e.to_string());
    let io = timeout(CONNECT_TIMEOUT * 2, connect(env, address, token)).await;
    let io = io.map_err(|_| unavailable(&"no connection"))?.map_err(|e| unavailable(&e))?;
    // Used up by the first connection; there is no second one.
    let io = Mutex::new(Some(TokioIo::new(io)));
    let connector = service_fn(move |_: Uri| {
        let io = io.lock().take();
        async move { io.ok_or_else(|| io::Error::other("the connection broke")) }
    });
    let channel = endpoint().connect_with_connector(connector).await;
    let channel = channel.map_err(|e| unavailable(&with_causes(&e)))?;
    let mut request = Request::new(request);
    request.set_timeout(limit);
    Ok(PeerServiceClient::new(channel).join(request).await?.into_inner())
}

async fn connect(env: &Env, address: &str, token: Option<&JoinToken>) -> io::Result<Box<dyn Io>> {
    let io = env.network.connect(address).await?;
    let mut io = match token {
        Some(token) => connect_for_join(io, token, &env.clock).await?,
        None => io,
    };
    hello::greet(&mut io, &Hello::default()).await?;
    Ok(io)
}
