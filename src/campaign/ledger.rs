//! The money of one campaign: what is billed, what is set aside, what is free.
//!
//! `settled + open <= budget` holds before and after every call (invariant 1). Callers name amounts that follow from
//! exact bitmaps; an amount that does not fit means that a bitmap and the ledger disagree, and that stops the process.

use andante_cluster::mutant;

use super::limits::MICROS_MAX;

/// Money in micros.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ledger {
    budget: u64,
    settled: u64,
    open: u64,
}

impl Ledger {
    /// Nothing billed, nothing set aside.
    ///
    /// # Panics
    /// If the budget is above [`MICROS_MAX`].
    pub fn new(budget_micros: u64) -> Self {
        Self::restore(budget_micros, 0, 0).expect("the budget was validated")
    }

    /// A stored ledger; `None` if it breaks the invariant.
    pub fn restore(budget_micros: u64, settled_micros: u64, open_micros: u64) -> Option<Self> {
        let ledger = Self { budget: budget_micros, settled: settled_micros, open: open_micros };
        ledger.holds().then_some(ledger)
    }

    /// The budget.
    pub fn budget_micros(&self) -> u64 {
        self.budget
    }

    /// Billed for good.
    pub fn settled_micros(&self) -> u64 {
        self.settled
    }

    /// Set aside and neither settled nor released.
    pub fn open_micros(&self) -> u64 {
        self.open
    }

    /// What can still be set aside.
    pub fn free_micros(&self) -> u64 {
        if mutant!(GrantNotReserved) {
            return self.budget.saturating_sub(self.settled);
        }
        if self.lowest_budget_micros() > self.budget && mutant!(BudgetCutAccepted) {
            return 0;
        }
        self.budget - self.settled - self.open
    }

    /// The lowest budget possible now.
    pub fn lowest_budget_micros(&self) -> u64 {
        self.settled + self.open
    }

    /// Whether `settled + open <= budget`.
    pub fn holds(&self) -> bool {
        let fits = self.settled.checked_add(self.open).is_some_and(|used| used <= self.budget);
        #[cfg(andante_mutants)]
        let fits = fits || mutant!(GrantNotReserved) || mutant!(BudgetCutAccepted);
        self.budget <= MICROS_MAX && fits
    }

    /// Sets money aside for up to `n` tokens; returns for how many there was enough.
    pub fn grant(&mut self, n: u32, price_micros: u64) -> u32 {
        let n = (self.free_micros() / price_micros).min(u64::from(n));
        self.open += n * price_micros;
        self.verify();
        n as u32
    }

    /// Bills one token whose money was set aside.
    pub fn settle(&mut self, price_micros: u64) {
        self.take_open(price_micros);
        self.settled += price_micros;
        self.verify();
    }

    /// Frees the money of `n` tokens: released, shrunk away, or unused at the closing.
    pub fn give_back(&mut self, n: u32, price_micros: u64) {
        let amount = price_micros.checked_mul(u64::from(n)).expect("no more was set aside than the budget");
        self.take_open(amount);
        self.verify();
    }

    /// Changes the budget.
    ///
    /// # Errors
    /// The lowest budget possible now, if the new one is below it; nothing changed then.
    pub fn set_budget(&mut self, budget_micros: u64) -> Result<(), u64> {
        assert!(budget_micros <= MICROS_MAX, "the budget was validated");
        if budget_micros < self.lowest_budget_micros() && !mutant!(BudgetCutAccepted) {
            return Err(self.lowest_budget_micros());
        }
        self.budget = budget_micros;
        self.verify();
        Ok(())
    }

    fn take_open(&mut self, amount: u64) {
        self.open = self.open.checked_sub(amount).expect("only money that was set aside is settled or given back");
    }

    fn verify(&self) {
        assert!(self.holds(), "overspend: {self:?}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn grants_what_is_free_and_no_more() {
        let mut ledger = Ledger::new(1_000);
        assert_eq!(ledger.grant(3, 300), 3);
        assert_eq!(ledger.free_micros(), 100);
        assert_eq!(ledger.grant(3, 300), 0);
        ledger.settle(300);
        ledger.give_back(2, 300);
        assert_eq!((ledger.settled_micros(), ledger.open_micros(), ledger.free_micros()), (300, 0, 700));
    }

    #[test]
    fn extreme_amounts_are_exact() {
        let mut ledger = Ledger::new(MICROS_MAX);
        assert_eq!(ledger.grant(u32::MAX, MICROS_MAX), 1);
        assert_eq!(ledger.grant(1, 1), 0);
        ledger.settle(MICROS_MAX);
        assert_eq!(ledger.free_micros(), 0);
        assert_eq!(ledger.set_budget(MICROS_MAX - 1), Err(MICROS_MAX));
    }

    #[test]
    fn a_budget_may_fall_to_what_is_used() {
        let mut ledger = Ledger::new(1_000);
        ledger.grant(5, 100);
        ledger.settle(100);
        assert_eq!(ledger.set_budget(499), Err(500));
        assert_eq!(ledger.set_budget(500), Ok(()));
        assert_eq!(ledger.free_micros(), 0);
    }

    #[test]
    fn a_stored_overspend_is_not_restored() {
        assert!(Ledger::restore(10, 6, 5).is_none());
        assert!(Ledger::restore(10, u64::MAX, 5).is_none());
        assert!(Ledger::restore(MICROS_MAX + 1, 0, 0).is_none());
    }

    #[test]
    #[should_panic(expected = "only money that was set aside")]
    fn settling_what_was_not_set_aside_stops_the_process() {
        Ledger::new(1_000).settle(1);
    }
}
