//! Questions of the layer above to its counterpart on another node, over the link that the groups share.

use bytes::Bytes;
use futures::future::BoxFuture;
use tokio::time::Instant;

use super::Host;
use crate::{NodeId, peer::AskError};

/// The layer above, as its counterparts on other nodes see it.
pub trait Answerer: Send + Sync + 'static {
    /// Answers a question of a node. Called in the order of one node's questions; neither the call nor the answering may
    /// block. An empty answer says that nobody knows what became of the question (as after a panic).
    fn answer(&self, from: NodeId, question: Bytes) -> BoxFuture<'static, Bytes>;
}

impl Host {
    /// Lets somebody answer questions; until then they are refused. The first one stays.
    pub fn set_answerer(&self, answerer: impl Answerer) {
        // Asking twice for the same is no harm.
        let _ = self.shared.answerer.set(Box::new(answerer));
    }

    /// Asks the [`Answerer`] of another node. For what is small and frequent: many questions share a message.
    ///
    /// # Errors
    /// See [`AskError`]: whether it may have been heard.
    pub async fn ask(&self, node: NodeId, question: Bytes, deadline: Instant) -> Result<Bytes, AskError> {
        let limit = deadline.saturating_duration_since(Instant::now());
        if question.len() > super::MAX_COMMAND_BYTES || limit.is_zero() || self.shared.gate.is_stopping() {
            return Err(AskError::NotAsked);
        }
        self.shared.peers.ask(node, question, limit).await
    }
}
