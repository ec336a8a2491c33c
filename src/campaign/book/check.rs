//! The invariants, checked from scratch.

use super::{
    super::{limits::*, proto::State, spec::check_safe, token::campaign_key},
    Book, CampaignState, Due,
};

impl Book {
    /// Checks every invariant over the whole book. For tests, after a restore, and for operators: it walks everything.
    ///
    /// # Errors
    /// The invariant that is broken, and where.
    pub fn check(&self) -> Result<(), String> {
        let mut found = [0; 4];
        for (name, at) in &self.by_name {
            let state = &self.slot(*at).state;
            self.check_campaign(state).map_err(|broken| format!("campaign {name}: {broken}"))?;
            if **name != *state.spec.name || self.by_key.get(&state.key) != Some(at) {
                return Err(format!("campaign {name}: its indexes point elsewhere"));
            }
            found[0] += 1;
            found[1] += state.open.len();
            found[2] += state.closed.len();
            found[3] += usize::from(self.purges.contains(&(state.over_since_ms(), state.key)));
        }
        let occupied = self.slots.iter().flatten().count();
        let indexed = [self.by_key.len(), self.closings.len(), self.forgettings.len(), self.purges.len()];
        if found != indexed || occupied != found[0] || occupied + self.free_slots.len() != self.slots.len() {
            return Err(format!("indexes hold {indexed:?} entries, not {found:?}"));
        }
        self.deletions.check()?;
        for deletion in self.deletions() {
            let key = deletion.campaign;
            // Incarnations grow: what is there now came later.
            let is_gone = self.campaign(key).is_none_or(|state| state.incarnation > deletion.incarnation);
            if !is_gone || !(1..self.next_incarnation).contains(&deletion.incarnation) {
                return Err(format!("campaign {key:016x}: incarnation {} was not deleted", deletion.incarnation));
            }
        }
        Ok(())
    }

    fn check_campaign(&self, state: &CampaignState) -> Result<(), String> {
        let mut outstanding = 0_u64;
        let mut open_micros = 0_u64;
        for (number, allowance) in state.open.iter().chain(&state.closed) {
            allowance.check()?;
            if *number != allowance.number || *number >= state.next_allowance {
                return Err(format!("allowance {number} was never granted"));
            }
        }
        for (number, allowance) in &state.open {
            outstanding += u64::from(allowance.outstanding());
            open_micros = u64::from(allowance.outstanding())
                .checked_mul(allowance.price_micros)
                .and_then(|micros| open_micros.checked_add(micros))
                .ok_or_else(|| format!("allowance {number} is worth too much"))?;
            if !allowance.is_open() || !self.closings.contains(&Due::closing(state.key, allowance)) {
                return Err(format!("allowance {number} is not due to close"));
            }
        }
        for (number, allowance) in &state.closed {
            if allowance.is_open() || !self.forgettings.contains(&Due::forgetting(state.key, allowance)) {
                return Err(format!("allowance {number} is not due to be forgotten"));
            }
        }
        let counters = &state.counters;
        let accounted = [counters.billed, counters.released, counters.expired, counters.shrunk, outstanding];
        for (holds, broken) in [
            (state.ledger.holds(), "settled + open <= budget"),
            (state.ledger.open_micros() == open_micros, "open is what its allowances hold"),
            (state.ledger.budget_micros() == state.spec.budget_micros, "ledger and settings have one budget"),
            (
                u128::from(counters.granted) == accounted.iter().map(|n| u128::from(*n)).sum(),
                "each token granted is accounted for",
            ),
            (state.open.len() <= OPEN_ALLOWANCES_MAX, "not too many open allowances"),
            (state.closed.len() <= CLOSED_ALLOWANCES_MAX + OPEN_ALLOWANCES_MAX, "not too many closed allowances"),
            (state.requests.len() <= REQUESTS_REMEMBERED, "not too many requests"),
            (state.key == campaign_key(&state.spec.name), "the key is the name's hash"),
            (state.next_allowance >= 1 && state.revision >= 1, "numbers from 1"),
            ((1..self.next_incarnation).contains(&state.incarnation), "its incarnation was given out"),
            (check_safe(&state.spec).is_ok(), "safe settings"),
            (state.state != State::Unspecified, "a state"),
            (state.state != State::Ended || state.ended_ms > 0, "an ended one knows when"),
            (state.state != State::Deleting || !state.open.is_empty(), "a deleted one goes with its last allowance"),
        ] {
            if !holds {
                return Err(format!("broken: {broken}"));
            }
        }
        Ok(())
    }
}
