//! Money of one campaign under the ledger's rules, for opportunities that all have prices of their own.
//!
//! As in the cluster, money is set aside in allowances before anything is handed out of it; it comes back by settling,
//! by a shrink, or when the allowance closes at `issue_until + hold + margin`. The money itself is in the cluster's
//! [`Ledger`]. The cluster's allowances are so many tokens of one price; those here are an amount of money, because a
//! trace's rows differ in price. A test holds this model to the book of a shard, step by step, at a constant price.

use std::collections::VecDeque;

use crate::campaign::{ledger::Ledger, limits::OPEN_ALLOWANCES_MAX, pacing::Holds};

/// One allowance.
#[derive(Clone, Copy, Debug)]
struct Allowance {
    amount_micros: u64,
    issued_micros: u64,
    settled_micros: u64,
    tokens: u64,
    settled_tokens: u64,
    issue_until_ms: u64,
    close_ms: u64,
    open: bool,
}

/// Why nothing was handed out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// What is not billed is set aside.
    NothingFree,
    /// As many allowances are open as may be.
    TooManyOpen,
}

/// How the next allowance should be.
#[derive(Clone, Copy, Debug)]
pub struct Wish {
    /// What the plan spends within its life, at full price.
    pub pace_share_micros: u64,
    /// How long it hands out tokens.
    pub life_ms: u64,
}

/// The ledger of one campaign.
#[derive(Clone, Debug)]
pub struct Escrow {
    ledger: Ledger,
    holds: Holds,
    hold_ms: u64,
    margin_ms: u64,
    end_ms: u64,
    /// By number; the front is `first`.
    allowances: VecDeque<Allowance>,
    first: u64,
    open_count: usize,
    /// Highest settled + open beyond the budget.
    overspend_micros: u64,
    settled_after_close: u64,
}

impl Escrow {
    /// All money is free.
    pub fn new(budget_micros: u64, hold_ms: u64, margin_ms: u64, end_ms: u64) -> Self {
        Escrow {
            ledger: Ledger::new(budget_micros),
            holds: Holds::default(),
            hold_ms,
            margin_ms,
            end_ms,
            allowances: VecDeque::new(),
            first: 0,
            open_count: 0,
            overspend_micros: 0,
            settled_after_close: 0,
        }
    }

    /// Billed.
    pub fn settled_micros(&self) -> u64 {
        self.ledger.settled_micros()
    }

    /// Set aside and not settled.
    pub fn open_micros(&self) -> u64 {
        self.ledger.open_micros()
    }

    /// Tokens handed out of open allowances.
    pub fn holds(&self) -> Holds {
        self.holds
    }

    /// By how much settled + open ever exceeded the budget.
    pub fn overspend_micros(&self) -> u64 {
        self.overspend_micros
    }

    /// Settles refused because the allowance had closed.
    pub fn settled_after_close(&self) -> u64 {
        self.settled_after_close
    }

    /// Hands out one token of the given price, from the current allowance or a new one. Answers its allowance.
    pub fn take(&mut self, now_ms: u64, price_micros: u64, wish: Wish) -> Result<u64, Refusal> {
        let fits = self
            .allowances
            .back()
            .is_some_and(|a| a.open && now_ms < a.issue_until_ms && a.amount_micros - a.issued_micros >= price_micros);
        if !fits {
            self.shrink_last();
            self.grant(now_ms, price_micros, wish)?;
        }
        if let Some(last) = self.allowances.back_mut() {
            last.issued_micros += price_micros;
            last.tokens += 1;
        }
        self.holds.issued_micros += price_micros;
        Ok(self.first + self.allowances.len() as u64 - 1)
    }

    /// `n = min(floor(left/price), max(1, min(pace share, floor(left/price/2))))`, in money; see
    /// [`crate::campaign::allowance::grant_size`].
    fn grant(&mut self, now_ms: u64, price_micros: u64, wish: Wish) -> Result<(), Refusal> {
        let left = self.ledger.free_micros();
        if left < price_micros {
            return Err(Refusal::NothingFree);
        }
        if self.open_count >= OPEN_ALLOWANCES_MAX {
            return Err(Refusal::TooManyOpen);
        }
        let pace_micros = wish.pace_share_micros.min(left / 2);
        // Whole tokens of the price asked for now.
        let whole_micros = pace_micros - pace_micros.checked_rem(price_micros).unwrap_or(0);
        let amount_micros = whole_micros.max(price_micros);
        let issue_until_ms = now_ms.saturating_add(wish.life_ms).min(self.end_ms);
        self.allowances.push_back(Allowance {
            amount_micros,
            issued_micros: 0,
            settled_micros: 0,
            tokens: 0,
            settled_tokens: 0,
            issue_until_ms,
            close_ms: issue_until_ms + self.hold_ms + self.margin_ms,
            open: true,
        });
        self.open_count += 1;
        let mut missing = amount_micros;
        while missing > 0 {
            missing -= u64::from(self.ledger.grant(micros(missing), 1));
        }
        let used = self.ledger.settled_micros() + self.ledger.open_micros();
        self.overspend_micros = self.overspend_micros.max(used.saturating_sub(self.ledger.budget_micros()));
        Ok(())
    }

    /// Gives back what the current allowance has not handed out.
    fn shrink_last(&mut self) {
        let Some(last) = self.allowances.back_mut().filter(|a| a.open) else { return };
        let unissued = last.amount_micros - last.issued_micros;
        last.amount_micros = last.issued_micros;
        give_back(&mut self.ledger, unissued);
        let number = self.first + self.allowances.len() as u64 - 1;
        self.close_if_done(number);
    }

    /// Bills a token of an allowance; `false` if that has closed.
    pub fn settle(&mut self, number: u64, price_micros: u64) -> bool {
        let at = number.checked_sub(self.first).map(|i| i as usize);
        let Some(allowance) = at.and_then(|i| self.allowances.get_mut(i)).filter(|a| a.open) else {
            self.settled_after_close += 1;
            return false;
        };
        allowance.settled_micros += price_micros;
        allowance.settled_tokens += 1;
        self.ledger.settle(price_micros);
        self.holds.settled_micros += price_micros;
        self.close_if_done(number);
        true
    }

    /// Closes allowances that are due. Answers how many tokens came back unbilled.
    pub fn close_due(&mut self, now_ms: u64) -> u64 {
        let mut unbilled = 0;
        // Lives may differ, so a later allowance may be due first: look at all open ones, at most `OPEN_ALLOWANCES_MAX` and gaps.
        for i in 0..self.allowances.len() {
            if self.allowances[i].open && now_ms >= self.allowances[i].close_ms {
                unbilled += self.allowances[i].tokens - self.allowances[i].settled_tokens;
                self.close(i);
            }
        }
        while self.allowances.front().is_some_and(|a| !a.open) {
            self.allowances.pop_front();
            self.first += 1;
        }
        unbilled
    }

    fn close_if_done(&mut self, number: u64) {
        let i = (number - self.first) as usize;
        let a = &self.allowances[i];
        if a.settled_micros == a.amount_micros && a.settled_tokens == a.tokens {
            self.close(i);
        }
    }

    fn close(&mut self, i: usize) {
        let a = &mut self.allowances[i];
        a.open = false;
        self.open_count -= 1;
        give_back(&mut self.ledger, a.amount_micros - a.settled_micros);
        self.holds.issued_micros -= a.issued_micros;
        self.holds.settled_micros -= a.settled_micros;
    }
}

/// The ledger counts tokens in u32; here a token is one micro.
fn micros(amount: u64) -> u32 {
    u32::try_from(amount).unwrap_or(u32::MAX)
}

fn give_back(ledger: &mut Ledger, mut amount_micros: u64) {
    while amount_micros > 0 {
        let part = micros(amount_micros);
        ledger.give_back(part, 1);
        amount_micros -= u64::from(part);
    }
}
#[cfg(test)]
mod tests;
