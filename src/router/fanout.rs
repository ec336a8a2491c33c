//! The part of a score request that concerns other nodes: one call per node, in parallel, under the deadline; then the
//! winners' tokens, round by round.
//!
//! Nothing is given back or taken twice: a token whose answer is lost stays on hold until it expires.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    future::Future,
};

use andante_cluster::{NodeId, ShardId};
use futures::{StreamExt, future::join_all, stream::FuturesUnordered};
use tokio::time::{Duration, Instant};

use super::{
    Router,
    catalog::{Entries, Entry},
    score::{Lookup, Met, Part, placement},
    shards::{Route, ShardSet},
};
use crate::{
    actor::{Ask, Lost},
    campaign::{
        key_hash::KeyState,
        merge::{Offer, Selection},
    },
    peer::{CallError, v1 as peer},
    v1::{self, MissingReason},
};

/// Of the time left, this part is kept for merging, and as much again for taking tokens.
const RESERVE_PART: u32 = 8;
const RESERVE_MIN: Duration = Duration::from_micros(200);
const RESERVE_MAX: Duration = Duration::from_millis(5);
/// Of the time left, this part at most is spent on offers where tokens are to be taken afterwards.
const OFFERS_PART: u32 = 2;

/// One node's part of a request.
#[derive(Default)]
struct Share {
    shards: ShardSet,
    request: peer::ScoreRequest,
    /// Positions in the whole request.
    candidates: Vec<u32>,
}

/// What a node answered.
struct Answer {
    node: NodeId,
    share: Share,
    result: Result<peer::ScoreResponse, CallError>,
}

/// Who answered for each shard.
#[derive(Default)]
struct Owners(BTreeMap<ShardId, Route>);

/// A request under way.
struct Asking<'a> {
    router: &'a Router,
    request: &'a v1::ScoreRequest,
    ask: Ask,
    lookup: &'a Lookup<Entries>,
    offers: Vec<Offer>,
    met: Met,
    owners: Owners,
    /// Shards that were asked for twice.
    retried: ShardSet,
}

impl Router {
    /// Asks other nodes for their part and answers the request.
    pub(super) async fn score_elsewhere(
        &self,
        request: &v1::ScoreRequest,
        part: Part,
        deadline: Instant,
    ) -> v1::ScoreResponse {
        let Part { ask, lookup, offers, met } = part;
        let retried = ShardSet::default();
        let mut asking =
            Asking { router: self, request, ask, lookup: &lookup, offers, met, owners: Owners::default(), retried };
        let now = Instant::now();
        let left = deadline.saturating_duration_since(now);
        let until = deadline - (left / RESERVE_PART).clamp(RESERVE_MIN, RESERVE_MAX).min(left);
        let offers_part = if ask.placing { OFFERS_PART } else { 1 };
        let offers_until = now + until.saturating_duration_since(now) / offers_part;
        asking.gather(offers_until).await;
        let scores = lookup.scores(request, &asking.offers);
        let placements = if ask.placing { asking.place(until).await } else { Vec::new() };
        self.answer(scores, placements, &asking.met)
    }
}

impl<'a> Asking<'a> {
    /// Asks every node once; shards whose route was stale are asked for once more.
    async fn gather(&mut self, until: Instant) {
        let mut shares: BTreeMap<NodeId, ShardSet> = BTreeMap::new();
        let there = *self.met.there();
        for shard in there.iter() {
            self.route(shard, self.router.shards.route(shard, self.router.me), &mut shares);
        }
        let mut calls = FuturesUnordered::new();
        loop {
            for (node, shards) in std::mem::take(&mut shares) {
                calls.push(self.call(node, shards, until));
            }
            let Some(answer) = calls.next().await else { break };
            self.take_answer(answer, &mut shares);
        }
    }

    /// Where a shard is asked, now.
    fn route(&mut self, shard: ShardId, route: Route, shares: &mut BTreeMap<NodeId, ShardSet>) {
        self.owners.0.insert(shard, route);
        match route {
            Route::There(node) => shares.entry(node).or_default().put(shard),
            Route::Here => self.offer_here(shard),
            Route::Nowhere => self.met.miss(shard, MissingReason::NoLeader),
        }
    }

    fn call(&self, node: NodeId, shards: ShardSet, until: Instant) -> impl Future<Output = Answer> + Send + use<'a> {
        let mut share = self.share(shards);
        let router = self.router;
        async move {
            let request = std::mem::take(&mut share.request);
            let result = router.links.score(node, request, until).await;
            Answer { node, share, result }
        }
    }

    /// What a node that leads these shards is asked.
    fn share(&self, shards: ShardSet) -> Share {
        let mut share = Share {
            shards,
            request: peer::ScoreRequest {
                listener: self.ask.listener,
                surface: self.ask.surface.into(),
                market: self.ask.market.to_vec(),
                placing: self.ask.placing,
                shards: shards.iter().map(|shard| shard.0).collect(),
                ..Default::default()
            },
            candidates: Vec::new(),
        };
        for (i, candidate) in self.request.candidates.iter().enumerate() {
            if self.lookup.entries(i).iter().any(|entry| shards.has(entry.shard())) {
                share.candidates.push(i as u32);
                share.request.tracks.push(self.lookup.tracks[i]);
                share.request.relevances.push(candidate.relevance);
            }
        }
        share
    }

    fn take_answer(&mut self, answer: Answer, shares: &mut BTreeMap<NodeId, ShardSet>) {
        let Answer { node, share, result } = answer;
        match result {
            Ok(response) => {
                for silent in &response.silent {
                    let shard = ShardId(silent.shard);
                    if share.shards.has(shard) {
                        self.router.metrics.stale_routes.inc();
                        let told = (silent.leader != 0).then_some(silent.leader);
                        self.try_again(shard, node, told, MissingReason::NoLeader, shares);
                    }
                }
                self.take_offers(node, &share, &response);
            }
            Err(error) => {
                let reason = missing(error);
                for shard in share.shards.iter() {
                    // Another node may lead by now. Not after the deadline or under overload: that would add to it.
                    if error == CallError::Unreachable {
                        self.try_again(shard, node, None, reason, shares);
                    } else {
                        self.met.miss(shard, reason);
                    }
                }
            }
        }
    }

    /// Asks for a shard once more where it is now: where the asked node says, or where this node has heard since.
    fn try_again(
        &mut self,
        shard: ShardId,
        asked: NodeId,
        told: Option<NodeId>,
        reason: MissingReason,
        shares: &mut BTreeMap<NodeId, ShardSet>,
    ) {
        let me = self.router.me;
        let route = next_route(self.router.shards.route(shard, me), asked, told, me);
        if self.retried.has(shard) || route == Route::Nowhere {
            return self.met.miss(shard, reason);
        }
        self.retried.put(shard);
        self.route(shard, route, shares);
    }

    /// Offers, as far as they make sense: of shards that were asked there, of campaigns that the catalog knows.
    fn take_offers(&mut self, node: NodeId, share: &Share, response: &peer::ScoreResponse) {
        let offers = response.candidates.iter().zip(&response.campaigns).zip(&response.scores);
        for ((candidate, campaign), score) in offers {
            let Some(candidate) = share.candidates.get(*candidate as usize) else { continue };
            let offer = Offer { candidate: *candidate, campaign: *campaign, score: *score };
            let Some(entry) = self.lookup.entry(&offer) else { continue };
            let owner = self.owners.0.get(&entry.shard());
            if score.is_finite() && *score > 0.0 && owner == Some(&Route::There(node)) {
                self.offers.push(offer);
            }
        }
    }

    /// The shard came to this node meanwhile.
    fn offer_here(&mut self, shard: ShardId) {
        for (i, candidate) in self.request.candidates.iter().enumerate() {
            for entry in self.lookup.entries(i).iter().filter(|entry| entry.shard() == shard) {
                if let Some(cell) = self.router.cell(entry) {
                    let score = cell.offer(&self.ask, self.lookup.tracks[i], candidate.relevance);
                    if score > 0.0 {
                        self.offers.push(Offer { candidate: i as u32, campaign: cell.key, score });
                    }
                }
            }
        }
    }

    /// Takes tokens for the best offers, one per candidate, each round's in parallel; a refused take falls to the next
    /// best, a node that does not answer gets no second chance.
    async fn place(&mut self, until: Instant) -> Vec<v1::Placement> {
        let offers = std::mem::take(&mut self.offers);
        let (mut selection, lost) = self.router.selection(self.request, offers);
        let mut placements = Vec::new();
        let mut dumb: BTreeSet<NodeId> = BTreeSet::new();
        loop {
            let winners = selection.winners();
            if winners.is_empty() {
                break;
            }
            let mut calls: BTreeMap<NodeId, Vec<Offer>> = BTreeMap::new();
            for offer in winners {
                let Some(entry) = self.lookup.entry(&offer) else { continue };
                match self.owner(entry) {
                    Route::There(node) if dumb.contains(&node) => selection.refuse(&offer),
                    Route::There(node) => calls.entry(node).or_default().push(offer),
                    Route::Here => self.place_here(&offer, &mut selection, &mut placements),
                    Route::Nowhere => selection.refuse(&offer),
                }
            }
            let calls = calls.into_iter().map(|(node, offers)| self.take_there(node, offers, until));
            for (node, offers, result) in join_all(calls).await {
                match result {
                    Ok(taken) => self.take_tokens(offers, taken, &mut selection, &mut placements),
                    Err(error) => {
                        // Its shards have scored, but what they offered could not be had.
                        dumb.insert(node);
                        offers.iter().for_each(|offer| selection.refuse(offer));
                        self.miss_all_of(node, missing(error));
                    }
                }
            }
        }
        self.tell_losers(&selection, lost);
        placements
    }

    async fn take_there(
        &self,
        node: NodeId,
        offers: Vec<Offer>,
        until: Instant,
    ) -> (NodeId, Vec<Offer>, Result<peer::TakeResponse, CallError>) {
        let request = peer::TakeRequest {
            listener: self.ask.listener,
            surface: self.ask.surface.into(),
            market: self.ask.market.to_vec(),
            hold_ms: self.request.hold_ms,
            campaigns: offers.iter().map(|offer| offer.campaign).collect(),
        };
        let result = self.router.links.take(node, request, until).await;
        (node, offers, result)
    }

    fn place_here(&self, offer: &Offer, selection: &mut Selection, placements: &mut Vec<v1::Placement>) {
        let cell = self.lookup.entry(offer).and_then(|entry| self.router.cell(entry));
        match cell.and_then(|cell| self.router.take_here(&self.ask, &cell, self.request.hold_ms)) {
            Some(token) => placements.push(self.placement(offer, token.bytes.to_vec(), token.expires_ms)),
            None => selection.refuse(offer),
        }
    }

    fn take_tokens(
        &self,
        offers: Vec<Offer>,
        response: peer::TakeResponse,
        selection: &mut Selection,
        placements: &mut Vec<v1::Placement>,
    ) {
        let mut taken = response.taken.into_iter();
        for offer in offers {
            match taken.next() {
                Some(peer::Taken { token, expires_ms }) if !token.is_empty() => {
                    placements.push(self.placement(&offer, token, expires_ms));
                }
                _ => {
                    self.router.metrics.takes_refused.inc();
                    selection.refuse(&offer);
                }
            }
        }
    }

    fn placement(&self, offer: &Offer, token: Vec<u8>, expires_ms: u64) -> v1::Placement {
        let name = self.lookup.entry(offer).map(Entry::name).unwrap_or_default();
        placement(self.request, offer, name, token, expires_ms)
    }

    /// Campaigns learn that their offers came to nothing: it tells them what binds their delivery.
    fn tell_losers(&self, selection: &Selection, lost: Lost) {
        let mut there: BTreeMap<NodeId, HashMap<u64, u32, KeyState>> = BTreeMap::new();
        for offer in selection.losers() {
            let Some(entry) = self.lookup.entry(offer) else { continue };
            match self.owner(entry) {
                Route::Here => {
                    if let Some(cell) = self.router.cell(entry) {
                        cell.traffic.lost(lost);
                    }
                }
                Route::There(node) => *there.entry(node).or_default().entry(offer.campaign).or_default() += 1,
                Route::Nowhere => {}
            }
        }
        for (node, campaigns) in there {
            self.router.links.lost(node, lost, campaigns);
        }
    }

    fn owner(&self, entry: &Entry) -> Route {
        // A shard that nobody else was asked for was asked here.
        self.owners.0.get(&entry.shard()).copied().unwrap_or(Route::Here)
    }

    fn miss_all_of(&mut self, node: NodeId, reason: MissingReason) {
        let shards: Vec<_> =
            self.owners.0.iter().filter(|(_, owner)| **owner == Route::There(node)).map(|(shard, _)| *shard).collect();
        shards.into_iter().for_each(|shard| self.met.miss(shard, reason));
    }
}

/// Where a shard is asked after one node did not answer for it: where it is by now, or where that node said.
fn next_route(now: Route, asked: NodeId, told: Option<NodeId>, me: NodeId) -> Route {
    match (now, told) {
        (Route::Here, _) => Route::Here,
        (Route::There(node), _) if node != asked => Route::There(node),
        (_, Some(node)) if node != me && node != asked => Route::There(node),
        _ => Route::Nowhere,
    }
}

/// What a shard's silence is called.
fn missing(error: CallError) -> MissingReason {
    match error {
        CallError::Deadline => MissingReason::Deadline,
        CallError::Overloaded => MissingReason::Overloaded,
        CallError::Unreachable | CallError::Refused => MissingReason::Unreachable,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stale_route_leads_to_where_the_shard_is_now_and_never_back() {
        let (me, asked) = (1, 2);
        for (now, told, expected) in [
            (Route::There(2), Some(3), Route::There(3)),
            (Route::There(3), Some(4), Route::There(3)),
            (Route::There(3), None, Route::There(3)),
            (Route::Here, Some(3), Route::Here),
            (Route::Nowhere, Some(3), Route::There(3)),
            (Route::There(2), None, Route::Nowhere),
            (Route::There(2), Some(2), Route::Nowhere),
            // It says that this node leads, which does not know of it yet.
            (Route::There(2), Some(1), Route::Nowhere),
        ] {
            assert_eq!(next_route(now, asked, told, me), expected, "{now:?} {told:?}");
        }
    }
}
