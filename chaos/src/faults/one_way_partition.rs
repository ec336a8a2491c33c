//! Messages from one group of hosts to the others are lost; those the other way arrive.

use super::{Dice, End, Fault, Injection, Plan, Shape, World, across, one_side, sent};

pub(super) struct OneWayPartition;

impl Fault for OneWayPartition {
    fn name(&self) -> &'static str {
        "one-way-partition"
    }

    fn disturbs_network(&self) -> bool {
        true
    }

    /// `amount` 1: towards the group instead of from it.
    fn draw(&self, plan: &Plan, dice: &Dice) -> Option<Shape> {
        let amount = i64::from(dice.one_in(2));
        Some(Shape { for_ms: dice.within(300..=15_000), on: one_side(plan, dice), amount })
    }

    fn begin(&self, world: &mut World, injection: &Injection) -> Option<End> {
        let mut pairs = across(world, &injection.on);
        if injection.amount == 1 {
            pairs.iter_mut().for_each(|(one, other)| std::mem::swap(one, other));
        }
        pairs.iter().for_each(|(from, to)| world.sim.partition_oneway(&**from, &**to));
        let before = sent(world, &pairs);
        Some(Box::new(move |world| {
            pairs.iter().for_each(|(from, to)| world.sim.repair_oneway(&**from, &**to));
            sent(world, &pairs) > before
        }))
    }
}
