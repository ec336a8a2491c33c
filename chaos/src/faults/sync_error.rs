//! A sync fails: the node has to stop.

use andante_cluster::storage::memory::{Store, Unsynced};

use super::{Dice, End, Fault, Injection, Plan, Shape, World, any_node};

pub(super) struct SyncError;

impl Fault for SyncError {
    fn name(&self) -> &'static str {
        "sync-error"
    }

    /// `amount`: of which store.
    fn draw(&self, plan: &Plan, dice: &Dice) -> Option<Shape> {
        Some(Shape { for_ms: 3_000, on: vec![any_node(plan, dice)], amount: dice.within(0..=2) as i64 })
    }

    fn begin(&self, world: &mut World, injection: &Injection) -> Option<End> {
        let node = injection.on[0] as usize;
        world.nodes[node].running()?;
        let store = [Store::Log, Store::State, Store::Snapshots][injection.amount as usize % 3];
        let ends = world.ends(node);
        world.nodes[node].disks.fail_next_sync(store, Unsynced::draw(&world.dice));
        Some(Box::new(move |world| {
            // A snapshot that can't be published stops nobody.
            let stopped = world.ends(node) > ends;
            if stopped {
                world.witness.markers.hit("sync-error-stopped-node");
            }
            stopped
        }))
    }
}
