//! What escrow costs: a table over delays and billable shares, next to what is possible at best.

use serde::Serialize;

use super::{BacktestError, Options, replay};
use crate::trace::Row;

/// Delays of outcomes, as shares of the flight.
pub const DELAYS: [f64; 6] = [0.001, 0.002, 0.005, 0.01, 0.02, 0.05];

/// Billable shares.
pub const SHARES: [f64; 5] = [0.05, 0.1, 0.2, 0.5, 1.0];

/// One cell of the table.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Cost {
    /// Delay of outcomes, as a share of the flight.
    pub delay: f64,
    /// Billable share.
    pub billable_share: f64,
    /// Billed over budget.
    pub utilisation: f64,
    /// The most that could be billed, taking every opportunity that money is free for.
    pub possible: f64,
    /// Value over the hindsight optimum, which knows no escrow.
    pub value_ratio: f64,
    /// Must be 0.
    pub overspend_micros: u64,
}

/// Replays the rows for each delay and share; calls `progress` after each.
pub fn table(rows: &[Row], options: &Options, mut progress: impl FnMut()) -> Result<Vec<Cost>, BacktestError> {
    let mut costs = Vec::with_capacity(DELAYS.len() * SHARES.len());
    for delay in DELAYS {
        for billable_share in SHARES {
            let (report, _) = replay(rows, &Options { delay, billable_share, ..options.clone() })?;
            costs.push(Cost {
                delay,
                billable_share,
                utilisation: report.utilisation,
                possible: possible(delay, billable_share, options.budget_fraction),
                value_ratio: report.value_ratio,
                overspend_micros: report.overspend_micros,
            });
            progress();
        }
    }
    Ok(costs)
}

/// Share of the budget that can be billed at best: in each delay, everything is taken that money is free for and that
/// comes by, and `billable_share` of it is billed; the rest is free again for the next delay. (The cluster's allowances
/// hold money a little longer, for the rest of their life and the margin.)
fn possible(delay: f64, billable_share: f64, budget_fraction: f64) -> f64 {
    // In units of the budget; all rows together cost 1 / (budget fraction x billable share) of it.
    let comes_by = 1.0 / (budget_fraction * billable_share);
    let (mut billed, mut time) = (0.0f64, 0.0);
    while time < 1.0 {
        let window = delay.min(1.0 - time);
        billed += billable_share * (1.0 - billed).min(comes_by * window);
        time += delay;
    }
    billed.min(1.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_best_possible_is_all_without_waste_and_falls_with_delay_and_waste() {
        assert!((possible(0.01, 1.0, 0.125) - 1.0).abs() < 1e-9);
        // 20 delays, each billing a twentieth of what is left.
        assert!((possible(0.05, 0.05, 0.01) - (1.0 - 0.95f64.powi(20))).abs() < 1e-9);
        assert!(possible(0.01, 0.1, 0.125) > possible(0.02, 0.1, 0.125));
        assert!(possible(0.02, 0.1, 0.125) > possible(0.02, 0.05, 0.125));
    }
}
