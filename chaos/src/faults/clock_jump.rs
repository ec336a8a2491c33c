//! A host's clock steps, and steps back later.

use super::{Dice, End, Fault, Injection, Plan, Shape, World};

pub(super) struct ClockJump;

impl Fault for ClockJump {
    fn name(&self) -> &'static str {
        "clock-jump"
    }

    /// `amount`: milliseconds, forwards or backwards; within the margin or far beyond.
    fn draw(&self, plan: &Plan, dice: &Dice) -> Option<Shape> {
        let far = if dice.one_in(2) { plan.settings.skew_margin_ms / 4 } else { 3_600_000 };
        let by_ms = dice.within(100..=far.max(101)) as i64;
        let on = vec![dice.below((plan.nodes + plan.load.clients) as usize) as u32];
        Some(Shape { for_ms: dice.within(2_000..=20_000), on, amount: if dice.one_in(2) { by_ms } else { -by_ms } })
    }

    fn begin(&self, world: &mut World, injection: &Injection) -> Option<End> {
        let (host, by_ms) = (injection.on[0] as usize, injection.amount);
        world.skew(host).step_ms(by_ms);
        Some(Box::new(move |world| {
            world.skew(host).step_ms(-by_ms);
            true
        }))
    }
}
