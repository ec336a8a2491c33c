//! Messages between two groups of hosts are held, and arrive all at once in the end.

use super::{Dice, End, Fault, Injection, Plan, Shape, World, across, one_side, sent};

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
        let pairs = across(world, &injection.on);
        let back: Vec<_> = pairs.iter().map(|(one, other)| (other.clone(), one.clone())).collect();
        pairs.iter().for_each(|(one, other)| world.sim.hold(&**one, &**other));
        let before = sent(world, &pairs) + sent(world, &back);
        Some(Box::new(move |world| {
            pairs.iter().for_each(|(one, other)| world.sim.release(&**one, &**other));
            sent(world, &pairs) + sent(world, &back) > before
        }))
    }
}
