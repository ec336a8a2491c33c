//! A node's machine stops and its disks are lost: it comes back as a new node.

use super::{Dice, End, Fault, Injection, Plan, Shape, World, any_node};

pub(super) struct DiskLost;

impl Fault for DiskLost {
    fn name(&self) -> &'static str {
        "disk-lost"
    }

    fn weight(&self) -> u64 {
        4
    }

    /// With three nodes a shard survives the loss of one disk; without, or when more is to be lost than it can survive,
    /// any disk.
    fn draw(&self, plan: &Plan, dice: &Dice) -> Option<Shape> {
        (plan.nodes >= 3 || plan.beyond).then(|| Shape {
            for_ms: dice.within(1_000..=10_000),
            on: vec![any_node(plan, dice)],
            amount: 0,
        })
    }

    fn begin(&self, world: &mut World, injection: &Injection) -> Option<End> {
        let node = injection.on[0] as usize;
        if world.is_down(node) || !(world.plan.beyond || world.may_lose_disk()) {
            return None;
        }
        world.crash(node);
        world.lose_disk(node);
        Some(Box::new(move |world| {
            world.start(node);
            true
        }))
    }
}
