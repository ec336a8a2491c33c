//! Outcomes: authenticate each token, group by shard, settle the groups side by side, answer in the order asked.

use std::collections::BTreeMap;

use andante_cluster::{ShardId, mutant};
use futures::future::join_all;
use tokio::time::Instant;

use super::Router;
use crate::{
    actor::Fate,
    campaign::{
        proto::{self, Kind},
        token::TokenError,
    },
    v1::{self, OutcomeKind, OutcomeResult, OutcomeStatus},
};

/// The events of one request that concern one shard: their positions, and what to settle.
#[derive(Default)]
struct Group {
    positions: Vec<usize>,
    outcomes: Vec<proto::Outcome>,
}

impl Router {
    /// Applies outcome events; one result per event, in order. Never fails as a whole.
    pub async fn report(&self, request: &v1::ReportRequest, deadline: Instant) -> Vec<OutcomeResult> {
        let mut results = vec![OutcomeResult::default(); request.events.len()];
        let mut groups: BTreeMap<ShardId, Group> = BTreeMap::new();
        let keys = self.keys.load();
        for (i, event) in request.events.iter().enumerate() {
            let Some(kind) = billing_kind(event.kind()) else {
                results[i] = result(OutcomeStatus::InvalidEvent, "kind: must be a known kind of outcome");
                continue;
            };
            match keys.open(&event.token) {
                Ok(token) => {
                    let group = groups.entry(self.host.shard_of(token.campaign)).or_default();
                    group.positions.push(i);
                    group.outcomes.push(proto::Outcome {
                        campaign: token.campaign,
                        incarnation: token.incarnation,
                        number: token.number,
                        sequence: token.sequence,
                        kind: kind.into(),
                        stream_ms: event.stream_ms,
                    });
                }
                // Most likely the keys were rotated and this node has yet to hear of it.
                Err(error @ TokenError::KeyAhead) => results[i] = result(OutcomeStatus::Unavailable, error.to_string()),
                Err(error) => results[i] = result(OutcomeStatus::InvalidToken, error.to_string()),
            }
        }
        drop(keys);
        let settled = join_all(groups.into_iter().map(|(shard, group)| async move {
            (group.positions, self.settle(shard, group.outcomes, deadline).await)
        }));
        for (positions, fate) in settled.await {
            match fate {
                Fate::Applied { statuses, retried } => {
                    for (i, status) in positions.into_iter().zip(statuses) {
                        results[i] = OutcomeResult { retried, ..applied(status) };
                    }
                }
                Fate::Unavailable(reason) => {
                    positions.iter().for_each(|i| results[*i] = result(OutcomeStatus::Unavailable, reason.as_str()));
                }
                Fate::Unknown if mutant!(UnknownSaidFailed) => {
                    positions.iter().for_each(|i| results[*i] = result(OutcomeStatus::Unavailable, "not done"));
                }
                Fate::Unknown => {
                    let detail = "the fate of this event is not known yet; report the same token again";
                    positions.iter().for_each(|i| results[*i] = result(OutcomeStatus::Unknown, detail));
                }
            }
        }
        for result in &results {
            self.metrics.outcome(result.status());
        }
        results
    }
}

fn result(status: OutcomeStatus, detail: impl Into<String>) -> OutcomeResult {
    OutcomeResult { status: status.into(), detail: detail.into(), retried: false }
}

/// Whether a short stream is one is for `apply` to say: only the book knows the campaign's minimum.
fn billing_kind(kind: OutcomeKind) -> Option<Kind> {
    match kind {
        OutcomeKind::Unspecified => None,
        OutcomeKind::Impression => Some(Kind::Impression),
        OutcomeKind::Stream => Some(Kind::Stream),
        OutcomeKind::Skip => Some(Kind::Skip),
        OutcomeKind::Save => Some(Kind::Save),
        OutcomeKind::NotUsed => Some(Kind::NotUsed),
    }
}

fn applied(status: proto::OutcomeStatus) -> OutcomeResult {
    use proto::OutcomeStatus as Book;
    match status {
        Book::Billed => result(OutcomeStatus::Billed, ""),
        Book::Recorded => result(OutcomeStatus::Recorded, ""),
        Book::Duplicate => result(OutcomeStatus::Duplicate, ""),
        Book::Released => result(OutcomeStatus::Released, ""),
        Book::RefusedClosed => result(OutcomeStatus::RefusedClosed, "too late: the allowance is closed"),
        Book::ClosedUnknown => result(OutcomeStatus::ClosedUnknown, "much too late: the allowance is forgotten"),
        Book::InvalidToken => result(OutcomeStatus::InvalidToken, "no such token: its campaign never handed it out"),
        Book::UnknownCampaign => result(OutcomeStatus::UnknownCampaign, "no such campaign"),
        Book::InvalidEvent => result(OutcomeStatus::InvalidEvent, "malformed"),
        Book::Unspecified => unreachable!("the book answers with a status"),
    }
}
