//! No message passes between two groups of hosts; what is on its way is lost.

use super::{Dice, End, Fault, Injection, Plan, Shape, World, between, one_side};

pub(super) struct Partition;

impl Fault for Partition {
    fn name(&self) -> &'static str {
        "partition"
    }

    fn disturbs_network(&self) -> bool {
        true
    }

    fn draw(&self, plan: &Plan, dice: &Dice) -> Option<Shape> {
        Some(Shape { for_ms: dice.within(300..=15_000), on: one_side(plan, dice), amount: 0 })
    }

    fn begin(&self, world: &mut World, injection: &Injection) -> Option<End> {
        Some(between(
            world,
            &injection.on,
            |sim, one, other| sim.partition(one, other),
            |sim, one, other| sim.repair(one, other),
        ))
    }
}
