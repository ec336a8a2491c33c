//! Messages between two groups of hosts take long.

use std::time::Duration;

use super::{Dice, End, Fault, Injection, Plan, Shape, World, across, one_side, sent};

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
        let pairs = across(world, &injection.on);
        let set = |world: &World, ms: u64| {
            let most = Duration::from_millis(ms);
            pairs.iter().for_each(|(one, other)| world.sim.set_link_max_message_latency(&**one, &**other, most));
        };
        set(world, injection.amount.unsigned_abs().max(world.plan.latency_ms.1));
        let before = sent(world, &pairs);
        Some(Box::new(move |world| {
            let most = Duration::from_millis(world.plan.latency_ms.1);
            pairs.iter().for_each(|(one, other)| world.sim.set_link_max_message_latency(&**one, &**other, most));
            sent(world, &pairs) > before
        }))
    }
}
