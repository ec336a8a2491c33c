//! All machines stop at once, and come back one after the other.

use super::{Dice, End, Fault, Injection, Plan, Shape, World};

pub(super) struct PowerLoss;

impl Fault for PowerLoss {
    fn name(&self) -> &'static str {
        "power-loss"
    }

    fn weight(&self) -> u64 {
        3
    }

    fn draw(&self, plan: &Plan, dice: &Dice) -> Option<Shape> {
        Some(Shape { for_ms: dice.within(1..=5_000), on: (0..plan.nodes).collect(), amount: 0 })
    }

    fn begin(&self, world: &mut World, injection: &Injection) -> Option<End> {
        let nodes: Vec<usize> = injection.on.iter().map(|node| *node as usize).collect();
        let here: Vec<usize> = nodes.into_iter().filter(|node| !world.is_down(*node)).collect();
        if here.is_empty() {
            return None;
        }
        here.iter().for_each(|node| world.crash(*node));
        Some(Box::new(move |world| {
            here.iter().for_each(|node| world.start(*node));
            true
        }))
    }
}
