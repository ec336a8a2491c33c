//! A node's machine stops in the middle of a snapshot, and comes back.

use super::{Dice, End, Fault, Injection, Plan, Shape, World, any_node};

pub(super) struct SnapshotCrash;

impl Fault for SnapshotCrash {
    fn name(&self) -> &'static str {
        "snapshot-crash"
    }

    /// For the time until the next snapshot, and the outage after that.
    fn draw(&self, plan: &Plan, dice: &Dice) -> Option<Shape> {
        Some(Shape { for_ms: dice.within(5_000..=20_000), on: vec![any_node(plan, dice)], amount: 0 })
    }

    fn begin(&self, world: &mut World, injection: &Injection) -> Option<End> {
        let node = injection.on[0] as usize;
        if world.is_down(node) || world.nodes[node].running().is_none() {
            return None;
        }
        let before = world.snapshot_crashes(node);
        world.set_snapshot_trap(node);
        Some(Box::new(move |world| {
            world.clear_snapshot_trap(node);
            let sprung = world.snapshot_crashes(node) > before;
            if sprung {
                world.witness.markers.hit("crash-during-snapshot");
                world.start(node);
            }
            sprung
        }))
    }
}
