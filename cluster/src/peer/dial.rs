//! Keeps a session with a peer that this node dials: the one of the two with the lower id does.

use std::{sync::Arc, time::Duration};

use futures::StreamExt;
use tokio::time::{sleep, timeout};
use tonic::Status;

use super::{
    Inner, PeerHandler,
    connect::{CONNECT_TIMEOUT, with_causes},
    link::Link,
    server::MAX_MESSAGE_BYTES,
    session::Session,
};
use crate::proto::{FramesRequest, peer_service_client::PeerServiceClient};

/// Waits between attempts: doubled each time.
const BACKOFF: Duration = Duration::from_millis(20);
const MAX_BACKOFF: Duration = Duration::from_millis(500);

/// Opens a session whenever there is none, until the link is closed.
pub(super) async fn dial(inner: Arc<Inner>, link: Arc<Link>, handler: Arc<dyn PeerHandler>) {
    let (mut backoff, mut said) = (BACKOFF, String::new());
    while !link.is_closed() {
        let why = match open(&inner, &link, &handler).await {
            // It worked until now.
            Ok(ended) => {
                (backoff, said) = (BACKOFF, String::new());
                ended.map_or_else(|| "it ended".to_owned(), |status| with_causes(&status))
            }
            Err(why) => why,
        };
        if link.is_closed() {
            break;
        }
        // Once for each reason, not for each attempt.
        if said != why {
            tracing::warn!(peer = link.peer, why, "no link");
            said = why;
        }
        tokio::select! {
            () = sleep(backoff) => backoff = (backoff * 2).min(MAX_BACKOFF),
            () = link.redial.notified() => backoff = BACKOFF,
        }
    }
}

/// Opens a session and carries it to its end. An error: it never worked.
async fn open(inner: &Arc<Inner>, link: &Arc<Link>, handler: &Arc<dyn PeerHandler>) -> Result<Option<Status>, String> {
    let channel = inner.connector.connected(link.peer).await.map_err(|e| with_causes(&e))?;
    let mut client = PeerServiceClient::new(channel).max_decoding_message_size(MAX_MESSAGE_BYTES);
    let Some(id) = link.begin() else { return Ok(None) };
    let outgoing = link.outgoing(id).map(|frames| FramesRequest { frames });
    let incoming = match timeout(CONNECT_TIMEOUT, client.frames(outgoing)).await {
        Ok(Ok(response)) => response.into_inner(),
        refused => {
            link.end(id);
            return Err(refused
                .map_or_else(|_| "no answer".to_owned(), |r| r.err().map_or_else(String::new, |e| with_causes(&e))));
        }
    };
    tracing::info!(peer = link.peer, "linked");
    let session = Session { link: link.clone(), id, handler: handler.clone(), stats: inner.stats.clone() };
    Ok(session.run(incoming.map(|batch| batch.map(|batch| batch.frames))).await)
}
