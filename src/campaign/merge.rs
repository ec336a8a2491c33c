//! Merges what campaigns offer for the candidates of one request and picks the winners. Pure and deterministic.

/// A campaign's offer for a candidate.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Offer {
    /// Position of the candidate in the request.
    pub candidate: u32,
    /// Campaign's key.
    pub campaign: u64,
    /// Promotion score, above 0.
    pub score: f64,
}

impl Offer {
    /// Highest score first; ties by candidate's position, then by campaign's key, so that every node orders alike.
    fn rank(&self, other: &Offer) -> std::cmp::Ordering {
        other
            .score
            .total_cmp(&self.score)
            .then(self.candidate.cmp(&other.candidate))
            .then(self.campaign.cmp(&other.campaign))
    }
}

/// The best offer per candidate, in the order of the request; `None` where nobody offers.
pub fn best_per_candidate(candidates: usize, offers: &[Offer]) -> Vec<Option<Offer>> {
    let mut best: Vec<Option<Offer>> = vec![None; candidates];
    for offer in offers {
        let Some(best) = best.get_mut(offer.candidate as usize) else { continue };
        if best.is_none_or(|b| offer.rank(&b).is_lt()) {
            *best = Some(*offer);
        }
    }
    best
}

/// Picks winners round by round: the caller takes tokens for a round's winners in parallel, says which takes were
/// refused, and asks for the next round, until there are no more winners.
#[derive(Clone, Debug)]
pub struct Selection {
    /// Ranked; those before `next` were looked at.
    offers: Vec<Offer>,
    next: usize,
    /// Candidates with a winner.
    filled: Vec<bool>,
    free: usize,
}

impl Selection {
    /// For a request of so many candidates, with at most `max_placements` winners
    /// (see [`super::guardrails::max_placements`]). Offers without a positive score are ignored.
    pub fn new(candidates: usize, mut offers: Vec<Offer>, max_placements: usize) -> Self {
        offers.retain(|o| o.score > 0.0 && (o.candidate as usize) < candidates);
        offers.sort_unstable_by(Offer::rank);
        Selection { offers, next: 0, filled: vec![false; candidates], free: max_placements.min(candidates) }
    }

    /// The best offers for what is free, highest first, at most one per candidate. Each counts as a winner unless
    /// refused. Empty: the selection is complete.
    pub fn winners(&mut self) -> Vec<Offer> {
        let mut winners = Vec::with_capacity(self.free);
        let mut skipped = Vec::new();
        while self.free > 0 && self.next < self.offers.len() {
            let offer = self.offers[self.next];
            self.next += 1;
            let filled = &mut self.filled[offer.candidate as usize];
            if *filled {
                // Second best for its candidate: comes back if the winner's take is refused.
                skipped.push(offer);
                continue;
            }
            *filled = true;
            self.free -= 1;
            winners.push(offer);
        }
        // What was looked at and skipped goes before the rest, still in rank order.
        let rest = self.next - skipped.len();
        self.offers[rest..self.next].copy_from_slice(&skipped);
        self.next = rest;
        winners
    }

    /// A winner's take was refused: its candidate and its slot are free for the next best.
    pub fn refuse(&mut self, offer: &Offer) {
        let filled = &mut self.filled[offer.candidate as usize];
        if *filled {
            *filled = false;
            self.free += 1;
        }
    }

    /// Offers that are not winners and were not refused: they lost to others or found no slot.
    pub fn losers(&self) -> &[Offer] {
        &self.offers[self.next..]
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn offer(candidate: u32, campaign: u64, score: f64) -> Offer {
        Offer { candidate, campaign, score }
    }

    #[test]
    fn winners_are_the_best_offers_one_per_candidate() {
        let offers = vec![offer(0, 1, 0.5), offer(0, 2, 0.6), offer(1, 1, 0.9), offer(2, 3, 0.1), offer(3, 1, 0.0)];
        let mut selection = Selection::new(4, offers.clone(), 2);
        assert_eq!(selection.winners(), vec![offer(1, 1, 0.9), offer(0, 2, 0.6)]);
        assert_eq!(selection.winners(), vec![]);
        assert_eq!(selection.losers(), [offer(0, 1, 0.5), offer(2, 3, 0.1)]);
        let best = best_per_candidate(5, &offers);
        assert_eq!(best[0], Some(offer(0, 2, 0.6)));
        assert_eq!(best[4], None);
    }

    #[test]
    fn a_refused_take_falls_to_the_next_best_even_for_the_same_candidate() {
        let offers = vec![offer(0, 1, 0.9), offer(0, 2, 0.8), offer(1, 3, 0.7), offer(2, 4, 0.6)];
        let mut selection = Selection::new(3, offers, 2);
        let first = selection.winners();
        assert_eq!(first, vec![offer(0, 1, 0.9), offer(1, 3, 0.7)]);
        selection.refuse(&first[0]);
        assert_eq!(selection.winners(), vec![offer(0, 2, 0.8)]);
        selection.refuse(&offer(0, 2, 0.8));
        assert_eq!(selection.winners(), vec![offer(2, 4, 0.6)]);
        assert_eq!(selection.winners(), vec![]);
        assert_eq!(selection.losers(), []);
    }

    #[test]
    fn ties_go_to_the_earlier_candidate_then_to_the_smaller_key() {
        let offers = vec![offer(1, 1, 0.5), offer(0, 9, 0.5), offer(0, 2, 0.5)];
        assert_eq!(Selection::new(2, offers, 2).winners(), vec![offer(0, 2, 0.5), offer(1, 1, 0.5)]);
    }

    #[test]
    fn offers_for_unknown_candidates_are_ignored() {
        let offers = vec![offer(5, 1, 0.5)];
        assert_eq!(best_per_candidate(2, &offers), vec![None, None]);
        assert_eq!(Selection::new(2, offers, 2).winners(), vec![]);
    }

    fn offers() -> impl Strategy<Value = Vec<Offer>> {
        let one = (0u32..8, 0u64..6, 0u8..5).prop_map(|(c, k, s)| offer(c, k, f64::from(s) / 4.0));
        prop::collection::vec(one, 0..40).prop_map(|mut offers| {
            // A campaign makes one offer per candidate.
            offers.sort_by_key(|o| (o.candidate, o.campaign));
            offers.dedup_by_key(|o| (o.candidate, o.campaign));
            offers
        })
    }

    proptest! {
        #[test]
        fn the_order_of_the_answers_does_not_matter(offers in offers(), slots in 0usize..10, turn in 0usize..40) {
            let mut turned = offers.clone();
            turned.rotate_left(turn.min(offers.len()));
            prop_assert_eq!(best_per_candidate(8, &offers), best_per_candidate(8, &turned));
            prop_assert_eq!(Selection::new(8, offers, slots).winners(), Selection::new(8, turned, slots).winners());
        }

        #[test]
        fn whatever_is_refused_placements_stay_within_the_slots_and_nothing_better_is_left_out(
            offers in offers(), slots in 0usize..10, refusals in prop::collection::vec(any::<bool>(), 40),
        ) {
            let mut selection = Selection::new(8, offers.clone(), slots);
            let (mut placed, mut refused, mut asked): (Vec<Offer>, Vec<Offer>, usize) = Default::default();
            loop {
                let winners = selection.winners();
                if winners.is_empty() {
                    break;
                }
                for winner in winners {
                    if refusals[asked] {
                        selection.refuse(&winner);
                        refused.push(winner);
                    } else {
                        placed.push(winner);
                    }
                    asked += 1;
                }
            }
            prop_assert!(placed.len() <= slots);
            let mut candidates: Vec<u32> = placed.iter().map(|o| o.candidate).collect();
            candidates.sort_unstable();
            candidates.dedup();
            prop_assert_eq!(candidates.len(), placed.len());
            // Each offer was placed, refused, useless, or lost to what was asked for before it.
            for offer in offers.iter().filter(|o| o.score > 0.0 && !placed.contains(o) && !refused.contains(o)) {
                let taken = placed.iter().any(|p| p.candidate == offer.candidate);
                prop_assert!(taken || placed.len() == slots, "{offer:?} was left out");
            }
            prop_assert_eq!(selection.losers().len() + placed.len() + refused.len(),
                offers.iter().filter(|o| o.score > 0.0).count());
        }
    }
}
