//! A node's disk is full for a while: it stops, and can't start until there is room.

use super::{Dice, End, Fault, Injection, Plan, Shape, World, any_node};

pub(super) struct DiskFull;

impl Fault for DiskFull {
    fn name(&self) -> &'static str {
        "disk-full"
    }

    /// `amount` 1: nearly full only; new campaigns are refused, and nothing else.
    fn draw(&self, plan: &Plan, dice: &Dice) -> Option<Shape> {
        let amount = i64::from(dice.one_in(2));
        Some(Shape { for_ms: dice.within(500..=10_000), on: vec![any_node(plan, dice)], amount })
    }

    fn begin(&self, world: &mut World, injection: &Injection) -> Option<End> {
        let node = injection.on[0] as usize;
        world.nodes[node].running()?;
        if injection.amount == 1 {
            world.nodes[node].disks.set_free_bytes(1);
            return Some(Box::new(move |world| {
                let low = world.nodes[node].running().is_some_and(|node| node.host().disk_low());
                world.nodes[node].disks.set_free_bytes(u64::MAX);
                low
            }));
        }
        let ends = world.ends(node);
        world.nodes[node].disks.set_full(true);
        Some(Box::new(move |world| {
            world.nodes[node].disks.set_full(false);
            let stopped = world.ends(node) > ends;
            if stopped {
                world.witness.markers.hit("full-disk-stopped-node");
            }
            stopped
        }))
    }
}
