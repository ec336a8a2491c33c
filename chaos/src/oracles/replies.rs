//! Invariants 3 and 5: replies are honest. A score reply names each shard that could not answer; a token that comes back
//! in time settles.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use andante::v1;
use andante_cluster::ShardId;

use super::{Found, Oracle, TokenId, Told};
use crate::{
    markers::Markers,
    plan::Plan,
    workloads::campaigns,
    world::{World, clock::EPOCH_MS},
};

/// Until all nodes know of campaigns that were created before.
const KNOWN_MS: u64 = 10_000;

/// Honest replies.
pub(super) struct Replies {
    markers: Arc<Markers>,
    shards: u32,
    /// The margin within which clocks must agree; a token's promise leans on it.
    margin_ms: u64,
    /// The clocks of two hosts differed by more than the margin at some time.
    clocks_apart: bool,
    /// Expiries of tokens, as clients were told.
    expiries: BTreeMap<TokenId, u64>,
    /// When somebody could last answer for a shard.
    answerable: BTreeMap<ShardId, u64>,
    /// When the first score was asked for.
    begun_ms: Option<u64>,
}

impl Replies {
    pub(super) fn new(plan: &Plan, markers: Arc<Markers>) -> Self {
        Self {
            markers,
            shards: plan.shards,
            margin_ms: plan.settings.skew_margin_ms,
            clocks_apart: false,
            expiries: BTreeMap::new(),
            answerable: BTreeMap::new(),
            begun_ms: None,
        }
    }

    fn coverage(
        &mut self,
        request: &v1::ScoreRequest,
        reply: &v1::ScoreResponse,
        asked_ms: u64,
        told_ms: u64,
    ) -> Found {
        let coverage = reply.coverage.clone().unwrap_or_default();
        if !coverage.missing.is_empty() {
            self.markers.hit("shard-missing-told");
        }
        if coverage.shards_answered as usize + coverage.missing.len() != coverage.shards_asked as usize {
            return Err(format!("a reply's coverage does not add up: {coverage:?}"));
        }
        let missing = |shard: ShardId| coverage.missing.iter().any(|missing| missing.shard == shard.0);
        for placement in &reply.placements {
            if !request.candidates.iter().any(|candidate| candidate.track_id == placement.track_id) {
                return Err(format!("{} was placed, but nobody asked for it", placement.track_id));
            }
        }
        if reply.placements.len() > request.slots as usize {
            return Err(format!("{} placements for {} slots", reply.placements.len(), request.slots));
        }
        self.concerned(request, &coverage, asked_ms)?;
        if coverage.shards_asked == self.shards {
            // All are concerned: whoever is not named has answered.
            for shard in (0..self.shards).map(ShardId) {
                let last_ms = self.answerable.get(&shard).copied().unwrap_or_default();
                if last_ms < asked_ms && !missing(shard) {
                    return Err(format!(
                        "a reply asked for at {asked_ms} ms and told at {told_ms} ms says that {shard} answered, but \
                         nobody has led it since {last_ms} ms"
                    ));
                }
            }
        }
        Ok(())
    }

    /// Whoever was asked for campaigns that everybody knows has asked for their shards, or said that it could not.
    fn concerned(&mut self, request: &v1::ScoreRequest, coverage: &v1::Coverage, asked_ms: u64) -> Found {
        let begun_ms = *self.begun_ms.get_or_insert(asked_ms);
        if asked_ms < begun_ms + KNOWN_MS {
            return Ok(());
        }
        let campaigns = request.candidates.iter().filter_map(|candidate| campaigns::of_track(&candidate.track_id));
        let shards: BTreeSet<u32> = campaigns.map(|name| campaigns::shard_of(name, self.shards)).collect();
        if (coverage.shards_asked as usize) < shards.len() {
            return Err(format!("shards {shards:?} are concerned, but a reply's coverage says {coverage:?}"));
        }
        Ok(())
    }

    fn in_time(&self, event: &v1::OutcomeEvent, result: Option<&v1::OutcomeResult>, told_ms: u64) -> Found {
        use v1::OutcomeStatus as Status;
        let status = result.map_or(Status::Unknown, v1::OutcomeResult::status);
        let Some(token) = TokenId::read(&event.token) else { return Ok(()) };
        let Some(expires_ms) = self.expiries.get(&token) else { return Ok(()) };
        let late = EPOCH_MS + told_ms >= *expires_ms;
        if matches!(status, Status::RefusedClosed | Status::ClosedUnknown) && !late && !self.clocks_apart {
            let early_ms = expires_ms - EPOCH_MS - told_ms;
            return Err(format!("{token:?} is {}, {early_ms} ms before it expires", status.as_str_name()));
        }
        Ok(())
    }
}

impl Oracle for Replies {
    fn name(&self) -> &'static str {
        "replies"
    }

    fn told(&mut self, told: &Told<'_>) -> Found {
        match told {
            Told::Scored { request, reply, asked_ms, told_ms, .. } => {
                for placement in &reply.placements {
                    if let Some(token) = TokenId::read(&placement.token) {
                        self.expiries.insert(token, placement.expires_ms);
                    }
                }
                self.coverage(request, reply, *asked_ms, *told_ms)
            }
            Told::Reported { event, result, told_ms, .. } => self.in_time(event, *result, *told_ms),
            Told::Unanswered { .. } | Told::Reporting(_) | Told::Deleting(_) | Told::Operation(_) => Ok(()),
        }
    }

    fn look(&mut self, world: &World) -> Found {
        let now_ms = world.now_ms();
        for (_, shard) in world.replicas() {
            if shard.role().scores() {
                self.answerable.insert(shard.id, now_ms);
            }
        }
        // The margin is for the difference of any two clocks, and a bit of it is spent on the way.
        self.clocks_apart |= world.clocks_differ_ms() > self.margin_ms / 2;
        if world.running().any(|(_, node)| !node.clock_trusted()) {
            self.markers.hit("clock-not-trusted");
        }
        Ok(())
    }
}
