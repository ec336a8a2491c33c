//! Scores a request: look up, ask the cells, merge, take. What this node can do alone takes no await, no lock and no
//! message; the rest is [`super::fanout`]'s.

use andante_cluster::{ShardId, mutant};
use tokio::time::Instant;

use super::{
    Router,
    catalog::{Entries, Entry},
    shards::{Route, ShardSet},
};
use crate::{
    actor::{Ask, Cell, Lost, Taken, track_key},
    campaign::{
        guardrails::max_placements,
        merge::{Offer, Selection, best_per_candidate},
        token::{TOKEN_BYTES, TokenFields, listener_hash, surface_hash},
    },
    v1::{self, MissingReason},
};

/// How far a request came on this node.
pub(super) enum Scored {
    /// It is answered.
    Whole(v1::ScoreResponse),
    /// Other nodes must be asked.
    Partly(Box<Part>),
}

/// What other nodes are to be asked, and what this one has.
pub(super) struct Part {
    pub(super) ask: Ask,
    pub(super) lookup: Lookup<Entries>,
    pub(super) offers: Vec<Offer>,
    pub(super) met: Met,
}

/// What the catalog has for the candidates of a request: each is hashed and looked up once.
pub(super) struct Lookup<L> {
    /// The hash of each candidate's track.
    pub(super) tracks: Vec<u64>,
    /// Its campaigns.
    pub(super) lists: Vec<Option<L>>,
}

impl<L: AsRef<[Entry]>> Lookup<L> {
    /// The campaigns of a candidate.
    pub(super) fn entries(&self, candidate: usize) -> &[Entry] {
        self.lists.get(candidate).and_then(Option::as_ref).map_or(&[], AsRef::as_ref)
    }

    /// The campaign behind an offer.
    pub(super) fn entry(&self, offer: &Offer) -> Option<&Entry> {
        self.entries(offer.candidate as usize).iter().find(|entry| entry.key() == offer.campaign)
    }

    /// The best score of each candidate.
    pub(super) fn scores(&self, request: &v1::ScoreRequest, offers: &[Offer]) -> Vec<v1::CandidateScore> {
        let best = best_per_candidate(request.candidates.len(), offers);
        let score = |(candidate, best): (&v1::Candidate, Option<Offer>)| v1::CandidateScore {
            track_id: candidate.track_id.clone(),
            score: best.map_or(0.0, |offer| offer.score),
            campaign: best.and_then(|offer| self.entry(&offer)).map(Entry::name).unwrap_or_default(),
        };
        request.candidates.iter().zip(best).map(score).collect()
    }
}

/// Shards met in a request, each routed once.
#[derive(Debug, Clone, Default)]
pub(super) struct Met {
    asked: ShardSet,
    silent: ShardSet,
    there: ShardSet,
    /// Why the silent ones are.
    pub(super) missing: Vec<(ShardId, MissingReason)>,
}

impl Met {
    /// Where a shard is asked.
    #[inline]
    fn route(&mut self, shard: ShardId, route: impl FnOnce() -> Result<Route, MissingReason>) -> Way {
        if !self.asked.has(shard) {
            self.asked.put(shard);
            match route() {
                Ok(Route::Here) => {}
                Ok(Route::There(_)) => self.there.put(shard),
                Ok(Route::Nowhere) => self.miss(shard, MissingReason::NoLeader),
                Err(reason) => self.miss(shard, reason),
            }
        }
        match () {
            () if self.silent.has(shard) => Way::Silent,
            () if self.there.has(shard) => Way::There,
            () => Way::Here,
        }
    }

    /// A shard could compete but does not answer.
    pub(super) fn miss(&mut self, shard: ShardId, reason: MissingReason) {
        self.asked.put(shard);
        if !self.silent.has(shard) {
            self.silent.put(shard);
            self.missing.push((shard, reason));
        }
    }

    /// Shards that are asked on other nodes.
    pub(super) fn there(&self) -> &ShardSet {
        &self.there
    }
}

/// [`Route`] without the node.
enum Way {
    Here,
    There,
    Silent,
}

impl Router {
    /// What this node can do for a request.
    pub(super) fn score_here(&self, request: &v1::ScoreRequest, deadline: Instant) -> Scored {
        let in_time = Instant::now() < deadline;
        let ask = self.ask(
            listener_hash(&request.listener_id),
            surface_hash(&request.surface),
            request.market.as_bytes(),
            request.slots > 0,
        );
        let catalog = self.catalog.pin();
        let mut met = Met::default();
        for shard in self.catalog.out_of_step().iter().filter(|_| !mutant!(CatalogGapHidden)) {
            met.miss(shard, MissingReason::Catalog);
        }
        let candidates = request.candidates.len();
        let mut lookup = Lookup { tracks: Vec::with_capacity(candidates), lists: Vec::with_capacity(candidates) };
        let mut offers = Vec::with_capacity(candidates);
        for (i, candidate) in request.candidates.iter().enumerate() {
            let track = track_key(&candidate.track_id);
            let list = catalog.entries(track);
            for entry in list.iter().flat_map(|entries| entries.iter()) {
                let shard = entry.shard();
                let route =
                    || if in_time { Ok(self.shards.route(shard, self.me)) } else { Err(MissingReason::Deadline) };
                if let (Way::Here, Entry::Here(cell)) = (met.route(shard, route), entry) {
                    let score = cell.offer(&ask, track, candidate.relevance);
                    if score > 0.0 {
                        offers.push(Offer { candidate: i as u32, campaign: cell.key, score });
                    }
                }
            }
            lookup.tracks.push(track);
            lookup.lists.push(list);
        }
        if !met.there.is_empty() {
            let lists = lookup.lists.iter().map(|list| list.cloned()).collect();
            let lookup = Lookup { tracks: lookup.tracks, lists };
            return Scored::Partly(Box::new(Part { ask, lookup, offers, met }));
        }
        let scores = lookup.scores(request, &offers);
        let placements = if ask.placing { self.place_here(request, &ask, &lookup, offers) } else { Vec::new() };
        Scored::Whole(self.answer(scores, placements, &met))
    }

    /// What a request looks for, now.
    pub(super) fn ask(&self, listener: u64, surface: u16, market: &[u8], placing: bool) -> Ask {
        Ask {
            now_ms: self.clock.now_ms(),
            monotonic_ms: self.clock.monotonic_ms(),
            listener,
            surface,
            market: market.try_into().unwrap_or_default(),
            placing,
        }
    }

    /// Takes tokens for the best offers, one per candidate; a refused take falls to the next best.
    fn place_here(
        &self,
        request: &v1::ScoreRequest,
        ask: &Ask,
        lookup: &Lookup<&Entries>,
        offers: Vec<Offer>,
    ) -> Vec<v1::Placement> {
        let (mut selection, lost) = self.selection(request, offers);
        let mut placements: Vec<v1::Placement> = Vec::new();
        loop {
            let winners = selection.winners();
            if winners.is_empty() {
                break;
            }
            for offer in winners {
                // The request has pinned the catalog: what it offered is still there.
                let Some(Entry::Here(cell)) = lookup.entry(&offer) else { continue };
                match self.take_here(ask, cell, request.hold_ms) {
                    Some(token) => {
                        placements.push(token.placement(request, &offer, cell.view().settings.name.as_ref()))
                    }
                    None => selection.refuse(&offer),
                }
            }
        }
        for offer in selection.losers() {
            if let Some(Entry::Here(cell)) = lookup.entry(offer) {
                cell.traffic.lost(lost);
            }
        }
        placements
    }

    /// Picks the winners of a request; what keeps the others from a placement.
    pub(super) fn selection(&self, request: &v1::ScoreRequest, offers: Vec<Offer>) -> (Selection, Lost) {
        let candidates = request.candidates.len();
        let room = max_placements(request.slots, candidates, self.settings.promoted_share);
        let lost = if room < request.slots as usize { Lost::PromotedShare } else { Lost::Slot };
        (Selection::new(candidates, offers, room), lost)
    }

    /// Takes one token from a cell of this node; a refusal is counted.
    pub(super) fn take_here(&self, ask: &Ask, cell: &Cell, hold_ms: u64) -> Option<Token> {
        match cell.take(ask) {
            Ok(taken) => Some(self.mint(ask, cell, taken, hold_ms)),
            Err(_) => {
                self.metrics.takes_refused.inc();
                cell.traffic.lost(Lost::Unserved);
                None
            }
        }
    }

    fn mint(&self, ask: &Ask, cell: &Cell, taken: Taken, hold_ms: u64) -> Token {
        let hold_ms = if hold_ms == 0 { taken.hold_ms } else { hold_ms.min(taken.hold_ms) };
        let expires_ms = ask.now_ms + hold_ms;
        let bytes = self.keys.load().mint(&TokenFields {
            campaign: cell.key,
            incarnation: cell.incarnation,
            number: taken.number,
            sequence: taken.sequence,
            listener: ask.listener,
            surface: ask.surface,
            expiry_ms: expires_ms,
        });
        Token { bytes, expires_ms }
    }

    /// The answer, counted.
    pub(super) fn answer(
        &self,
        scores: Vec<v1::CandidateScore>,
        mut placements: Vec<v1::Placement>,
        met: &Met,
    ) -> v1::ScoreResponse {
        // Later rounds may have placed what the first refused.
        placements.sort_by(|a, b| b.score.total_cmp(&a.score));
        self.metrics.candidates.inc_by(scores.len() as u64);
        self.metrics.promotable.inc_by(scores.iter().filter(|score| score.score > 0.0).count() as u64);
        self.metrics.placements.inc_by(placements.len() as u64);
        let mut missing: Vec<_> = met
            .missing
            .iter()
            .inspect(|(_, reason)| self.metrics.missing_shard(*reason))
            .map(|(shard, reason)| v1::MissingShard { shard: shard.0, reason: (*reason).into() })
            .collect();
        missing.sort_unstable_by_key(|missing| missing.shard);
        if !missing.is_empty() && mutant!(CoverageSaysAll) {
            missing.clear();
        }
        let asked = met.asked.len();
        let coverage = v1::Coverage { shards_asked: asked, shards_answered: asked - missing.len() as u32, missing };
        v1::ScoreResponse { scores, placements, coverage: Some(coverage) }
    }
}

/// A token taken, with the end of its promise.
pub(super) struct Token {
    pub(super) bytes: [u8; TOKEN_BYTES],
    pub(super) expires_ms: u64,
}

impl Token {
    fn placement(&self, request: &v1::ScoreRequest, offer: &Offer, campaign: &str) -> v1::Placement {
        placement(request, offer, campaign.to_owned(), self.bytes.to_vec(), self.expires_ms)
    }
}

/// A winner with its token.
pub(super) fn placement(
    request: &v1::ScoreRequest,
    offer: &Offer,
    campaign: String,
    token: Vec<u8>,
    expires_ms: u64,
) -> v1::Placement {
    let track_id = request.candidates[offer.candidate as usize].track_id.clone();
    v1::Placement { track_id, campaign, score: offer.score, token, expires_ms }
}
