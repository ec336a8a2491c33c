//! Campaigns' actors die, some of them again and again, until they are quarantined.

use std::sync::atomic::Ordering;

use super::{Dice, End, Fault, Injection, Plan, Shape, World};
use crate::workloads::campaigns;

pub(super) struct ActorPanics;

impl Fault for ActorPanics {
    fn name(&self) -> &'static str {
        "actor-panics"
    }

    /// `amount`: the campaign. A fault of more than a second kills its actor again and again.
    fn draw(&self, plan: &Plan, dice: &Dice) -> Option<Shape> {
        let for_ms = if dice.one_in(3) { dice.within(5_000..=15_000) } else { 1_000 };
        Some(Shape { for_ms, on: Vec::new(), amount: dice.below(plan.load.campaigns as usize) as i64 })
    }

    fn begin(&self, world: &mut World, injection: &Injection) -> Option<End> {
        let campaign = campaigns::name(injection.amount as u32);
        world.sabotage.campaigns.lock().insert(campaign.clone(), injection.for_ms > 1_000);
        let before = world.sabotage.crashed.load(Ordering::Relaxed);
        Some(Box::new(move |world| {
            world.sabotage.campaigns.lock().remove(&campaign);
            world.sabotage.crashed.load(Ordering::Relaxed) > before
        }))
    }
}
