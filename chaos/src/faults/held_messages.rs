//! Messages between two groups of hosts are held, and arrive all at once in the end.

use super::{Dice, End, Fault, Injection, Plan, Shape, World, between, one_side};

pub(super) struct HeldMessages;

impl Fault for HeldMessages {
    fn name(&self) -> &'static str {
        "held-messages"
    }

    fn disturbs_network(&self) -> bool {
        true
    }

    fn draw(&self, plan: &Plan, dice: &Dice) -> Option<Shape> {
        Some(Shape { for_ms: dice.within(100..=6_000), on: one_side(plan, dice), amount: 0 })
    }

    fn begin(&self, world: &mut World, injection: &Injection) -> Option<End> {
        Some(between(
            world,
            &injection.on,
            |sim, one, other| sim.hold(one, other),
            |sim, one, other| sim.release(one, other),
        ))
    }
}
