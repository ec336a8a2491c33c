//! Outcomes on their way to the node that leads their shard.
//!
//! The leader's node batches them, whoever was asked: outcomes of one shard that clients gave to different nodes share
//! log entries. They travel over the link that the groups share, many in one message. Whatever goes wrong on the way,
//! the proposer here takes over: settling is idempotent.

use std::sync::{Arc, Weak};

use andante_cluster::{
    NodeId, ShardId,
    host::{Answerer, Leadership},
    peer::AskError,
};
use bytes::Bytes;
use futures::future::BoxFuture;
use prost::Message;
use tokio::time::{Duration, Instant};

use super::Router;
use crate::{
    actor::{Fate, known_status},
    campaign::proto,
    peer::v1::{self, question, settle_response},
};

/// No caller waits longer: the longest deadline of the API.
const TIMEOUT_MAX: Duration = Duration::from_secs(600);

impl Router {
    /// Applies outcomes of authenticated tokens of one shard, in order.
    pub(super) async fn settle(&self, shard: ShardId, outcomes: Vec<proto::Outcome>, deadline: Instant) -> Fate {
        let Some(proposer) = self.shards.proposer(shard) else {
            return Fate::Unavailable("there is no such shard".into());
        };
        let mut leadership = self.host.leadership(shard);
        let now = *leadership.borrow_and_update();
        let Leadership::Follower { leader: Some(leader) } = now else {
            return proposer.settle(outcomes, deadline).await;
        };
        let in_doubt = tokio::select! {
            biased;
            fate = self.settle_at(leader, shard, &outcomes, deadline) => match fate {
                Fate::Applied { .. } => return fate,
                Fate::Unavailable(_) => false,
                Fate::Unknown => true,
            },
            // Whoever leads now may take them, and need not wait for one who can't.
            _ = leadership.wait_for(|known| *known != now) => true,
        };
        match (proposer.settle(outcomes, deadline).await, in_doubt) {
            (Fate::Applied { statuses, .. }, true) => Fate::Applied { statuses, retried: true },
            (Fate::Unavailable(_), true) => Fate::Unknown,
            (fate, _) => fate,
        }
    }

    async fn settle_at(&self, node: NodeId, shard: ShardId, outcomes: &[proto::Outcome], deadline: Instant) -> Fate {
        let timeout_micros = deadline.saturating_duration_since(Instant::now()).as_micros() as u64;
        let settle = v1::SettleRequest { shard: shard.0, outcomes: outcomes.to_vec(), timeout_micros };
        let question = v1::Question { question: Some(question::Question::Settle(settle)) };
        let begun = self.clock.monotonic_micros();
        let answer = self.host.ask(node, Bytes::from(question.encode_to_vec()), deadline).await;
        self.metrics.settle_elsewhere.observe_micros(self.clock.monotonic_micros().saturating_sub(begun));
        match answer {
            Ok(answer) => fate_of(&answer, outcomes.len()),
            Err(AskError::NotAsked) => Fate::Unavailable("the leader can't be reached".into()),
            Err(AskError::Unknown) => Fate::Unknown,
        }
    }
}

/// What another node says became of so many outcomes.
fn fate_of(answer: &[u8], count: usize) -> Fate {
    let fate = v1::SettleResponse::decode(answer).ok().and_then(|response| response.fate);
    match fate {
        Some(settle_response::Fate::Settled(settled)) if settled.statuses.len() == count => {
            let statuses = settled.statuses.into_iter().map(known_status).collect::<Option<Vec<_>>>();
            statuses.map_or(Fate::Unknown, |statuses| Fate::Applied { statuses, retried: settled.retried })
        }
        Some(settle_response::Fate::Unavailable(why)) => Fate::Unavailable(why),
        Some(settle_response::Fate::Settled(_)) | None => Fate::Unknown,
    }
}

/// Answers other nodes' questions.
pub(super) struct Counterpart(pub(super) Weak<Router>);

impl Answerer for Counterpart {
    fn answer(&self, from: NodeId, question: Bytes) -> BoxFuture<'static, Bytes> {
        let (router, now) = (self.0.upgrade(), Instant::now());
        Box::pin(async move {
            let fate = match (router, v1::Question::decode(question).map(|asked| asked.question)) {
                (None, _) => Fate::Unavailable("the node is stopping".into()),
                (Some(router), Ok(Some(question::Question::Settle(settle)))) => {
                    router.settle_for_peer(settle, now).await
                }
                (Some(_), _) => {
                    tracing::warn!(from, "another node asks something that makes no sense here");
                    Fate::Unavailable("unknown question".into())
                }
            };
            let fate = match fate {
                Fate::Applied { statuses, retried } => {
                    let statuses = statuses.into_iter().map(i32::from).collect();
                    Some(settle_response::Fate::Settled(v1::Settled { statuses, retried }))
                }
                Fate::Unavailable(why) => Some(settle_response::Fate::Unavailable(why)),
                Fate::Unknown => None,
            };
            v1::SettleResponse { fate }.encode_to_vec().into()
        })
    }
}

impl Router {
    async fn settle_for_peer(self: Arc<Self>, settle: v1::SettleRequest, now: Instant) -> Fate {
        let deadline = now + Duration::from_micros(settle.timeout_micros).min(TIMEOUT_MAX);
        match self.shards.proposer(ShardId(settle.shard)) {
            // If somebody else leads by now, it passes them on.
            Some(proposer) => proposer.settle(settle.outcomes, deadline).await,
            None => Fate::Unavailable("there is no such shard".into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::campaign::proto::OutcomeStatus;

    fn told(fate: settle_response::Fate) -> Vec<u8> {
        v1::SettleResponse { fate: Some(fate) }.encode_to_vec()
    }

    #[test]
    fn only_an_answer_that_makes_sense_is_believed() {
        let settled = |statuses: &[i32]| {
            told(settle_response::Fate::Settled(v1::Settled { statuses: statuses.to_vec(), retried: true }))
        };
        let billed = i32::from(OutcomeStatus::Billed);
        match fate_of(&settled(&[billed, billed]), 2) {
            Fate::Applied { statuses, retried: true } => assert_eq!(statuses, [OutcomeStatus::Billed; 2]),
            fate => panic!("{fate:?}"),
        }
        let no = told(settle_response::Fate::Unavailable("why".into()));
        assert!(matches!(fate_of(&no, 2), Fate::Unavailable(why) if why == "why"));
        for (name, answer) in [
            ("too few", settled(&[billed])),
            ("a status of later", settled(&[billed, 9_999])),
            ("no status", settled(&[billed, 0])),
            ("nothing", Vec::new()),
            ("noise", vec![0xff; 9]),
        ] {
            assert!(matches!(fate_of(&answer, 2), Fate::Unknown), "{name}");
        }
    }
}
