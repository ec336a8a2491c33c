//! A shard's tick: shrinks first (they free money), then grants, then checkpoints.

use std::sync::Arc;

use super::{
    super::{
        allowance::{Allowance, Times},
        limits::*,
        proto::{Checkpoint, Grant, GrantReply, GrantStatus, Reply, Shrink, Tick},
    },
    Book, Due, Effect,
    records::Part,
};

impl Book {
    pub(super) fn tick(&mut self, tick: &Tick) -> Reply {
        for shrink in &tick.shrinks {
            self.shrink(shrink);
        }
        let now_ms = self.time(tick.now_ms);
        let grants = tick.grants.iter().map(|grant| self.grant(grant, now_ms)).collect();
        for checkpoint in &tick.checkpoints {
            self.checkpoint(checkpoint);
        }
        Reply { grants, ..Reply::default() }
    }

    fn grant(&mut self, grant: &Grant, now_ms: u64) -> GrantReply {
        match self.try_grant(grant, now_ms) {
            Ok(allowance) => GrantReply { status: GrantStatus::Granted as i32, allowance: Some(allowance) },
            Err(status) => {
                let allowance = (status == GrantStatus::WrongNumber).then(|| self.granted_before(grant)).flatten();
                GrantReply { status: status as i32, allowance }
            }
        }
    }

    fn try_grant(&mut self, grant: &Grant, now_ms: u64) -> Result<super::super::proto::Allowance, GrantStatus> {
        let at = self.place(grant.campaign, grant.incarnation).ok_or(GrantStatus::NotEligible)?;
        let slot = self.slot_mut(at);
        let state = &slot.state;
        if !state.is_eligible(now_ms) {
            return Err(GrantStatus::NotEligible);
        }
        if grant.number != state.next_allowance {
            return Err(GrantStatus::WrongNumber);
        }
        let issue_until_ms =
            grant.issue_until_ms.min(state.spec.end_ms).min(now_ms.saturating_add(ALLOWANCE_LIFE_MAX_MS));
        let holder = grant.holder.ok_or(GrantStatus::Invalid)?;
        // The last number is never given, so that there always is a next one.
        if grant.n == 0 || issue_until_ms <= now_ms || grant.number == u32::MAX {
            return Err(GrantStatus::Invalid);
        }
        if state.open.len() >= OPEN_ALLOWANCES_MAX || state.closed.len() >= CLOSED_ALLOWANCES_MAX {
            return Err(GrantStatus::TooManyOpen);
        }
        let (price_micros, hold_ms) = (state.spec.price_micros, state.spec.hold_ms);
        if state.ledger.free_micros() < price_micros {
            return Err(GrantStatus::NothingFree);
        }

        let state = slot.state_mut();
        let n = state.ledger.grant(grant.n.min(ALLOWANCE_TOKENS_MAX), price_micros);
        state.next_allowance += 1;
        state.counters.granted += u64::from(n);
        let times = Times { granted_ms: now_ms, issue_until_ms };
        let allowance = Allowance::new(grant.number, n, price_micros, hold_ms, holder, times);
        let (key, incarnation, number) = (state.key, state.incarnation, grant.number);
        let reply = allowance.to_proto(key, incarnation);
        let due = Due::closing(key, &allowance);
        state.open.insert(number, Arc::new(allowance));
        self.closings.insert(due);
        self.mark_allowance(at, number);
        self.effects.events.push(Effect::Granted { key, incarnation, number });
        Ok(reply)
    }

    /// The open allowance of this number, if a grant by this very holder made it: the answer to a retry.
    fn granted_before(&self, grant: &Grant) -> Option<super::super::proto::Allowance> {
        let state = self.campaign(grant.campaign)?;
        let allowance = state.open.get(&grant.number)?;
        (Some(allowance.holder) == grant.holder).then(|| allowance.to_proto(state.key, state.incarnation))
    }

    fn shrink(&mut self, shrink: &Shrink) {
        let Some(at) = self.place(shrink.campaign, shrink.incarnation) else { return };
        let state = &self.slot(at).state;
        let Some(allowance) = state.open.get(&shrink.number) else { return };
        if Some(allowance.holder) != shrink.holder || shrink.issued >= allowance.n {
            return;
        }
        let state = self.slot_mut(at).state_mut();
        let allowance = Arc::make_mut(state.open.get_mut(&shrink.number).expect("found above"));
        let tokens = allowance.shrink(shrink.issued);
        if tokens == 0 {
            return;
        }
        let complete = allowance.outstanding() == 0;
        state.ledger.give_back(tokens, allowance.price_micros);
        state.counters.shrunk += u64::from(tokens);
        let (key, incarnation, number) = (state.key, state.incarnation, shrink.number);
        self.mark_allowance(at, number);
        self.effects.events.push(Effect::Shrunk { key, incarnation, number, tokens });
        if complete {
            self.close(at, number);
        }
    }

    fn checkpoint(&mut self, checkpoint: &Checkpoint) {
        let Some(at) = self.place(checkpoint.campaign, checkpoint.incarnation) else { return };
        let Some(control) = &checkpoint.control else { return };
        if !control.mu.is_finite() || control.estimates.len() > ESTIMATES_BYTES_MAX {
            return;
        }
        self.slot_mut(at).state_mut().control = Some(Arc::new(control.clone()));
        self.mark(at, Part::Control);
    }

    /// The place of exactly this incarnation of a campaign.
    fn place(&self, key: u64, incarnation: u32) -> Option<u32> {
        let at = *self.by_key.get(&key)?;
        (self.slot(at).state.incarnation == incarnation).then_some(at)
    }
}
