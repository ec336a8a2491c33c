//! Closing allowances, forgetting them, purging campaigns, and shard time, on which all of that depends.

use std::sync::Arc;

use super::{
    super::{
        limits::*,
        proto::{CloseExpired, Reply},
    },
    Book, Due, Effect,
    records::Part,
};

impl Book {
    pub(super) fn close_expired(&mut self, close: &CloseExpired) -> Reply {
        self.move_shard_time(self.time(close.now_ms));
        let now_ms = self.shard_time_ms;
        let keep_ms = close.skew_margin_ms.saturating_add(close.retry_window_ms);
        self.deletions.forget(|at_ms| at_ms.saturating_add(keep_ms) <= now_ms);

        let mut closed = 0;
        while closed < CLOSINGS_PER_COMMAND_MAX
            && let Some(due) = self.closings.first().copied()
            && due.closes_ms(close.skew_margin_ms) <= now_ms
        {
            let at = self.by_key[&due.campaign];
            self.close(at, due.number);
            closed += 1;
        }

        for _ in 0..CLOSINGS_PER_COMMAND_MAX {
            match self.forgettings.first().copied() {
                Some(due) if due.at_ms.saturating_add(keep_ms) <= now_ms => self.forget(due),
                _ => break,
            }
        }

        let over: Vec<u64> = self
            .purges
            .iter()
            .take_while(|(since_ms, _)| since_ms.saturating_add(close.purge_after_ms) <= now_ms)
            .map(|(_, key)| *key)
            .filter(|key| self.campaign(*key).is_some_and(|state| state.open.is_empty()))
            .take(PURGES_PER_COMMAND_MAX)
            .collect();
        for key in over {
            self.remove(self.by_key[&key]);
        }
        Reply { closed: closed as u64, ..Reply::default() }
    }

    /// Closes an open allowance: what is outstanding is free again, its bitmaps are kept for a while.
    pub(super) fn close(&mut self, at: u32, number: u32) {
        // 0 means "open".
        let closed_ms = self.shard_time_ms.max(1);
        let state = self.slot_mut(at).state_mut();
        let mut allowance = state.open.remove(&number).expect("only open allowances close");
        let (key, incarnation) = (state.key, state.incarnation);
        let closing = Due::closing(key, &allowance);
        let (expired, price_micros) = (allowance.outstanding(), allowance.price_micros);
        state.ledger.give_back(expired, price_micros);
        state.counters.expired += u64::from(expired);
        Arc::make_mut(&mut allowance).closed_ms = closed_ms;
        let forgetting = Due::forgetting(key, &allowance);
        state.closed.insert(number, allowance);
        assert!(self.closings.remove(&closing), "open allowances are due to close");
        self.forgettings.insert(forgetting);
        self.mark_allowance(at, number);
        self.effects.events.push(Effect::Closed { key, incarnation, number, expired, price_micros });
        self.remove_if_deleted(at);
    }

    /// Drops the bitmaps of a closed allowance.
    fn forget(&mut self, due: Due) {
        self.forgettings.remove(&due);
        let at = self.by_key[&due.campaign];
        let state = self.slot_mut(at).state_mut();
        state.closed.remove(&due.number).expect("only closed allowances are forgotten");
        let incarnation = state.incarnation;
        self.changes.remove_allowance(due.campaign, incarnation, due.number);
    }

    /// An operator sets shard time. Times that lie ahead of it came from a clock that was wrong; they move back, since
    /// else their money would be stranded, their bitmaps kept and their campaigns unpurged for as long as it was ahead.
    pub(super) fn set_shard_time(&mut self, now_ms: u64) -> Reply {
        let now_ms = now_ms.min(TIME_MAX_MS);
        self.move_shard_time(now_ms);
        for at in 0..self.slots.len() as u32 {
            if self.slots[at as usize].is_some() {
                self.move_back(at, now_ms);
            }
        }
        self.deletions.move_back(now_ms);
        self.effects.events.push(Effect::TimeSet);
        Reply::default()
    }

    fn move_back(&mut self, at: u32, now_ms: u64) {
        let state = &self.slot(at).state;
        let key = state.key;
        if state.ended_ms > now_ms {
            let before = state.over_since_ms();
            let state = self.slot_mut(at).state_mut();
            state.ended_ms = now_ms.max(1);
            let after = state.over_since_ms();
            self.purges.remove(&(before, key));
            self.purges.insert((after, key));
            self.mark(at, Part::Ledger);
        }
        let state = &self.slot(at).state;
        let ahead: Vec<u32> = state
            .open
            .values()
            .chain(state.closed.values())
            .filter(|allowance| allowance.granted_ms > now_ms || allowance.closed_ms > now_ms)
            .map(|allowance| allowance.number)
            .collect();
        for number in ahead {
            let state = self.slot_mut(at).state_mut();
            let is_open = state.open.contains_key(&number);
            let allowances = if is_open { &mut state.open } else { &mut state.closed };
            let allowance = Arc::make_mut(allowances.get_mut(&number).expect("listed above"));
            let (closing, forgetting) = (Due::closing(key, allowance), Due::forgetting(key, allowance));
            if allowance.granted_ms > now_ms {
                allowance.issue_until_ms -= allowance.granted_ms - now_ms;
                allowance.granted_ms = now_ms;
            }
            if !is_open {
                allowance.closed_ms = allowance.closed_ms.min(now_ms.max(1));
            }
            let (closing_now, forgetting_now) = (Due::closing(key, allowance), Due::forgetting(key, allowance));
            if is_open {
                self.closings.remove(&closing);
                self.closings.insert(closing_now);
            } else {
                self.forgettings.remove(&forgetting);
                self.forgettings.insert(forgetting_now);
            }
            self.mark_allowance(at, number);
        }
    }

    fn move_shard_time(&mut self, now_ms: u64) {
        if self.shard_time_ms != now_ms {
            self.shard_time_ms = now_ms;
            self.changes.meta = true;
        }
    }
}
