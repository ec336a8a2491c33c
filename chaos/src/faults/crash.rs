//! A node's machine stops at once, and comes back.

use super::{Dice, End, Fault, Injection, Plan, Shape, World, any_node};

pub(super) struct Crash;

impl Fault for Crash {
    fn name(&self) -> &'static str {
        "crash"
    }

    fn weight(&self) -> u64 {
        20
    }

    /// Short or long: some are back before anybody was elected.
    fn draw(&self, plan: &Plan, dice: &Dice) -> Option<Shape> {
        let for_ms = if dice.one_in(2) { dice.within(1..=800) } else { dice.within(800..=20_000) };
        Some(Shape { for_ms, on: vec![any_node(plan, dice)], amount: 0 })
    }

    fn begin(&self, world: &mut World, injection: &Injection) -> Option<End> {
        let node = injection.on[0] as usize;
        if world.is_down(node) || world.nodes[node].running().is_none() {
            return None;
        }
        world.crash(node);
        Some(Box::new(move |world| {
            world.start(node);
            true
        }))
    }
}
