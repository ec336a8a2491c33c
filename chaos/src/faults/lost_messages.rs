//! Links break at some messages and mend at others. What is lost is not sent again: its connection hangs until somebody
//! gives it up.

use super::{Dice, End, Fault, Injection, Plan, Shape, World, across, one_side, sent};

pub(super) struct LostMessages;

impl Fault for LostMessages {
    fn name(&self) -> &'static str {
        "lost-messages"
    }

    fn disturbs_network(&self) -> bool {
        true
    }

    /// `amount`: of 10,000 messages so many break their link.
    fn draw(&self, plan: &Plan, dice: &Dice) -> Option<Shape> {
        let amount = dice.within(20..=500) as i64;
        Some(Shape { for_ms: dice.within(1_000..=12_000), on: one_side(plan, dice), amount })
    }

    fn begin(&self, world: &mut World, injection: &Injection) -> Option<End> {
        let pairs = across(world, &injection.on);
        let rate = injection.amount as f64 / 10_000.0;
        pairs.iter().for_each(|(one, other)| world.sim.set_link_fail_rate(&**one, &**other, rate));
        let before = sent(world, &pairs);
        Some(Box::new(move |world| {
            for (one, other) in &pairs {
                world.sim.set_link_fail_rate(&**one, &**other, 0.0);
                world.sim.repair(&**one, &**other);
            }
            // So many messages break a link for certain, or as good as.
            (sent(world, &pairs) - before) as f64 * rate > 3.0
        }))
    }
}
