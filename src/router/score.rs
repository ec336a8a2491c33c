//! Scores a request: look up, ask the cells, merge, take. No await, no lock, no message on the way.

use std::sync::Arc;

use super::{Router, catalog::CatalogRef};
use crate::{
    actor::{Ask, Cell, Lost, Taken, track_key},
    campaign::{
        guardrails::max_placements,
        merge::{Offer, Selection, best_per_candidate},
        token::{TokenFields, TokenKeys, listener_hash, surface_hash},
    },
    v1,
};

impl Router {
    /// See [`Router::score`].
    pub(super) fn score_here(&self, request: &v1::ScoreRequest, in_time: bool) -> v1::ScoreResponse {
        let ask = Ask {
            now_ms: self.clock.now_ms(),
            monotonic_ms: self.clock.monotonic_ms(),
            listener: listener_hash(&request.listener_id),
            surface: surface_hash(&request.surface),
            market: request.market.as_bytes().try_into().unwrap_or_default(),
            placing: request.slots > 0,
        };
        let catalog = self.catalog.pin();
        let mut shards = ShardSet::default();
        let offers = self.offers(request, &ask, &catalog, &mut shards, in_time);
        let scores = scores(request, &catalog, &offers);
        self.metrics.promotable.inc_by(scores.iter().filter(|score| score.score > 0.0).count() as u64);
        let placements = if ask.placing { self.place(request, &ask, &catalog, offers) } else { Vec::new() };
        self.metrics.candidates.inc_by(request.candidates.len() as u64);
        self.metrics.placements.inc_by(placements.len() as u64);
        v1::ScoreResponse { scores, placements, coverage: Some(self.coverage(&shards, in_time)) }
    }

    fn offers(
        &self,
        request: &v1::ScoreRequest,
        ask: &Ask,
        catalog: &CatalogRef<'_>,
        shards: &mut ShardSet,
        in_time: bool,
    ) -> Vec<Offer> {
        let mut offers = Vec::with_capacity(request.candidates.len());
        for (i, candidate) in request.candidates.iter().enumerate() {
            let track = track_key(&candidate.track_id);
            for cell in catalog.cells(track) {
                if !shards.note(cell.shard.0, || in_time && self.leads(cell.shard)) {
                    continue;
                }
                let score = cell.offer(ask, track, candidate.relevance);
                if score > 0.0 {
                    offers.push(Offer { candidate: i as u32, campaign: cell.key, score });
                }
            }
        }
        offers
    }

    /// Takes tokens for the best offers, one per candidate; a refused take falls to the next best.
    fn place(
        &self,
        request: &v1::ScoreRequest,
        ask: &Ask,
        catalog: &CatalogRef<'_>,
        offers: Vec<Offer>,
    ) -> Vec<v1::Placement> {
        let candidates = request.candidates.len();
        let room = max_placements(request.slots, candidates, self.settings.promoted_share);
        let mut selection = Selection::new(candidates, offers, room);
        let mut placements: Vec<v1::Placement> = Vec::new();
        let keys = self.keys.load();
        loop {
            let winners = selection.winners();
            if winners.is_empty() {
                break;
            }
            for offer in winners {
                // The request has pinned the catalog: what it offered is still there.
                let Some(cell) = cell_of(request, catalog, &offer) else { continue };
                match cell.take(ask) {
                    Ok(taken) => placements.push(placement(&keys, request, ask, &offer, cell, taken)),
                    Err(_) => {
                        self.metrics.takes_refused.inc();
                        cell.traffic.lost(Lost::Unserved);
                        selection.refuse(&offer);
                    }
                }
            }
        }
        let lost = if room < request.slots as usize { Lost::PromotedShare } else { Lost::Slot };
        for offer in selection.losers() {
            if let Some(cell) = cell_of(request, catalog, offer) {
                cell.traffic.lost(lost);
            }
        }
        // Later rounds may have placed what the first refused.
        placements.sort_by(|a, b| b.score.total_cmp(&a.score));
        placements
    }

    fn coverage(&self, shards: &ShardSet, in_time: bool) -> v1::Coverage {
        let reason = if in_time { v1::MissingReason::NoLeader } else { v1::MissingReason::Deadline };
        let missing: Vec<_> = shards
            .silent()
            .inspect(|_| self.metrics.missing_shard(reason))
            .map(|shard| v1::MissingShard { shard, reason: reason.into() })
            .collect();
        let asked = shards.asked();
        v1::Coverage { shards_asked: asked, shards_answered: asked - missing.len() as u32, missing }
    }
}

fn cell_of<'a>(request: &v1::ScoreRequest, catalog: &'a CatalogRef<'_>, offer: &Offer) -> Option<&'a Arc<Cell>> {
    let track = track_key(&request.candidates[offer.candidate as usize].track_id);
    catalog.cells(track).iter().find(|cell| cell.key == offer.campaign)
}

fn scores(request: &v1::ScoreRequest, catalog: &CatalogRef<'_>, offers: &[Offer]) -> Vec<v1::CandidateScore> {
    let best = best_per_candidate(request.candidates.len(), offers);
    let score = |(candidate, best): (&v1::Candidate, Option<Offer>)| {
        let campaign = best.and_then(|offer| cell_of(request, catalog, &offer));
        v1::CandidateScore {
            track_id: candidate.track_id.clone(),
            score: best.map_or(0.0, |offer| offer.score),
            campaign: campaign.map(|cell| cell.view().settings.name.to_string()).unwrap_or_default(),
        }
    };
    request.candidates.iter().zip(best).map(score).collect()
}

fn placement(
    keys: &TokenKeys,
    request: &v1::ScoreRequest,
    ask: &Ask,
    offer: &Offer,
    cell: &Cell,
    taken: Taken,
) -> v1::Placement {
    let hold_ms = if request.hold_ms == 0 { taken.hold_ms } else { request.hold_ms.min(taken.hold_ms) };
    let expires_ms = ask.now_ms + hold_ms;
    let token = keys.mint(&TokenFields {
        campaign: cell.key,
        incarnation: cell.incarnation,
        number: taken.number,
        sequence: taken.sequence,
        listener: ask.listener,
        surface: ask.surface,
        expiry_ms: expires_ms,
    });
    v1::Placement {
        track_id: request.candidates[offer.candidate as usize].track_id.clone(),
        campaign: cell.view().settings.name.to_string(),
        score: offer.score,
        token: token.to_vec(),
        expires_ms,
    }
}

/// Shards met in a request: which were asked, which could not answer.
#[derive(Default)]
struct ShardSet {
    asked: [u64; 4],
    silent: [u64; 4],
}

impl ShardSet {
    /// Notes a shard; says whether it answers. `leads` is asked once per shard.
    fn note(&mut self, shard: u32, leads: impl FnOnce() -> bool) -> bool {
        let (word, bit) = (shard as usize / 64, 1u64 << (shard % 64));
        if self.asked[word] & bit == 0 {
            self.asked[word] |= bit;
            if !leads() {
                self.silent[word] |= bit;
            }
        }
        self.silent[word] & bit == 0
    }

    fn asked(&self) -> u32 {
        self.asked.iter().map(|word| word.count_ones()).sum()
    }

    fn silent(&self) -> impl Iterator<Item = u32> + '_ {
        (0..256).filter(|shard| self.silent[*shard as usize / 64] & (1 << (shard % 64)) != 0)
    }
}
