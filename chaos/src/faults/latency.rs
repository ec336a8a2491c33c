//! Messages between two groups of hosts take long.

use std::time::Duration;

use super::{Dice, End, Fault, Injection, Plan, Shape, World, between, one_side};

pub(super) struct Latency;

impl Fault for Latency {
    fn name(&self) -> &'static str {
        "latency"
    }

    fn disturbs_network(&self) -> bool {
        true
    }

    /// `amount`: the longest that a message takes, milliseconds.
    fn draw(&self, plan: &Plan, dice: &Dice) -> Option<Shape> {
        let amount = dice.within(50..=1_500) as i64;
        Some(Shape { for_ms: dice.within(1_000..=15_000), on: one_side(plan, dice), amount })
    }

    fn begin(&self, world: &mut World, injection: &Injection) -> Option<End> {
        let planned_ms = world.plan.latency_ms.1;
        let most = Duration::from_millis(injection.amount.unsigned_abs().max(planned_ms));
        let planned = Duration::from_millis(planned_ms);
        Some(between(
            world,
            &injection.on,
            move |sim, one, other| sim.set_link_max_message_latency(one, other, most),
            move |sim, one, other| sim.set_link_max_message_latency(one, other, planned),
        ))
    }
}
