//! A node's disk takes its time.

use std::time::Duration;

use super::{Dice, End, Fault, Injection, Plan, Shape, World, any_node};

pub(super) struct SlowDisk;

impl Fault for SlowDisk {
    fn name(&self) -> &'static str {
        "slow-disk"
    }

    /// `amount`: the longest that a sync takes, milliseconds.
    fn draw(&self, plan: &Plan, dice: &Dice) -> Option<Shape> {
        let amount = dice.within(20..=2_000) as i64;
        Some(Shape { for_ms: dice.within(1_000..=15_000), on: vec![any_node(plan, dice)], amount })
    }

    fn begin(&self, world: &mut World, injection: &Injection) -> Option<End> {
        let slot = &world.nodes[injection.on[0] as usize];
        let node = slot.position;
        let most = Duration::from_millis(injection.amount.unsigned_abs());
        slot.disks.set_sync_time(most / 4, most, slot.dice.clone());
        slot.pace.set(most / 4, most);
        let before = slot.disks.log.syncs();
        Some(Box::new(move |world| {
            world.disk_as_planned(node);
            world.nodes[node].disks.log.syncs() > before
        }))
    }
}
