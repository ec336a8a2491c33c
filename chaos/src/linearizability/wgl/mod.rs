//! The search for an order: Wing and Gong's algorithm (JPDC 1993) with Lowe's memory of configurations (CCPE 2017).
//!
//! It runs on one thread and counts steps instead of reading a clock: the same input has the same finding everywhere.

mod lists;
mod order;

use std::hash::Hash;

use order::Order;

/// The state of a sequential specification.
pub trait Specification: Clone + Eq + Hash {
    /// What is called, together with what it answered if that is known.
    type Operation;

    /// What no operation lowers, as a version that only grows; `()` if there is no such thing.
    type Age: Copy + Ord;

    /// The state afterwards; `None` if the operation can't have this answer here.
    fn apply(&self, operation: &Self::Operation) -> Option<Self>;

    /// Whether the operation only tells of a state: leaving it out rules out nothing that comes later.
    fn only_tells(operation: &Self::Operation) -> bool;

    /// This state's age.
    fn age(&self) -> Self::Age;

    /// The operation is possible in no state that is older; `None`: its age does not matter.
    fn age_max(operation: &Self::Operation) -> Option<Self::Age>;
}

/// An operation and when it may have taken effect.
#[derive(Debug, Clone)]
pub struct Call<O> {
    /// When it began. At equal times calls come before returns: what might overlap does.
    pub called: u64,
    /// When its answer came. `None`: its fate is unknown; it takes effect at any time after `called`, or never.
    pub returned: Option<u64>,
    /// It takes effect after this other call did.
    pub after: Option<usize>,
    /// The operation.
    pub operation: O,
}

/// What the search found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Finding<S> {
    /// There is an order.
    Linearizable,
    /// There is no order.
    Blocked {
        /// There is none for what happened until this call returned.
        call: usize,
        /// There is an order for what happened before that, which leads here. (Or there may be one that takes too many
        /// steps to find; this is of an earlier time then.)
        state: S,
    },
    /// Not known: the search would have taken more steps.
    OutOfSteps,
}

/// Looks for an order of `calls` that `initial` and its operations allow. One step is one operation tried; time and
/// memory are bounded by `steps_max` times the number of calls, and by a few times that to say where it is blocked.
pub fn search<S: Specification>(initial: S, calls: &[Call<S::Operation>], steps_max: u64) -> Finding<S> {
    match order::find(&initial, calls, u64::MAX, steps_max) {
        Order::Found(_) => Finding::Linearizable,
        Order::None => first_blocked(initial, calls, steps_max),
        Order::OutOfSteps => Finding::OutOfSteps,
    }
}

/// The shortest beginning of a history without an order that has none. Where a beginning has none, no longer one has.
fn first_blocked<S: Specification>(initial: S, calls: &[Call<S::Operation>], steps_max: u64) -> Finding<S> {
    let mut returns: Vec<(u64, usize)> =
        calls.iter().enumerate().filter_map(|(index, call)| Some((call.returned?, index))).collect();
    returns.sort_unstable();
    let mut state = initial.clone();
    // Beginnings up to a return before `low` have an order, from `high` on they have none.
    let (mut low, mut high) = (0, returns.len() - 1);
    while low < high {
        let middle = (low + high) / 2;
        match order::find(&initial, calls, returns[middle].0, steps_max) {
            Order::None => high = middle,
            Order::Found(reached) => {
                state = reached;
                low = middle + 1;
            }
            Order::OutOfSteps => low = middle + 1,
        }
    }
    Finding::Blocked { call: returns[high].1, state }
}
