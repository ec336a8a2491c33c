//! A host's clock runs too fast or too slow.

use super::{Dice, End, Fault, Injection, Plan, Shape, World};

pub(super) struct ClockDrift;

impl Fault for ClockDrift {
    fn name(&self) -> &'static str {
        "clock-drift"
    }

    /// `amount`: parts per million.
    fn draw(&self, plan: &Plan, dice: &Dice) -> Option<Shape> {
        let ppm = dice.within(100..=50_000) as i64;
        let on = vec![dice.below((plan.nodes + plan.load.clients) as usize) as u32];
        Some(Shape { for_ms: dice.within(5_000..=30_000), on, amount: if dice.one_in(2) { ppm } else { -ppm } })
    }

    fn begin(&self, world: &mut World, injection: &Injection) -> Option<End> {
        let host = injection.on[0] as usize;
        world.skew(host).drift(world.sim.elapsed(), injection.amount);
        Some(Box::new(move |world| {
            let elapsed = world.sim.elapsed();
            world.skew(host).drift(elapsed, 0);
            world.skew(host).ahead_ms(elapsed) != 0
        }))
    }
}
