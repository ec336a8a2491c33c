//! Draws a plan from a seed.

use andante::settings::Settings;

use crate::{
    dice::Dice,
    faults::{self, Fault},
    plan::{Injection, Load, Plan},
};

/// Kinds of faults in one plan: a few at a time find more than all at once.
const KINDS: std::ops::RangeInclusive<u64> = 3..=7;
/// Mean pause between two faults, milliseconds.
const PAUSES_MS: &[u64] = &[800, 2_000, 2_000, 4_000, 6_000];

impl Plan {
    /// The plan of a seed.
    pub fn draw(seed: u64) -> Self {
        let dice = Dice::new(seed, "plan");
        let nodes = *dice.pick(&[1, 2, 3, 3, 3, 3, 4, 5, 5, 7]);
        let shards = *dice.pick(&[1, 2, 3, 4, 4, 6, 8, 16]);
        let load = load(&dice);
        let hosts = nodes + load.clients;
        let skewed = dice.one_in(3);
        let mut plan = Self {
            seed,
            nodes,
            shards,
            settings: settings(&dice, load.hold_ms),
            latency_ms: *dice.pick(&[(0, 2), (1, 5), (1, 10), (2, 40)]),
            sync_micros: *dice.pick(&[(0, 0), (1_000, 2_000), (1_000, 8_000), (2_000, 30_000)]),
            blocking_micros: *dice.pick(&[(0, 0), (100, 1_000), (1_000, 10_000)]),
            skews_ms: vec![0; hosts as usize],
            load,
            faults_ms: dice.within(60_000..=90_000),
            beyond: dice.one_in(25),
            schedule: Vec::new(),
        };
        if skewed {
            let most = (plan.settings.skew_margin_ms / 5) as i64;
            plan.skews_ms.iter_mut().for_each(|skew| *skew = dice.within(0..=2 * most as u64) as i64 - most);
        }
        plan.schedule = schedule(&plan, &Dice::new(seed, "schedule"));
        plan
    }
}

fn settings(dice: &Dice, hold_ms: u64) -> Settings {
    // Stranded money is to be back within simulated minutes.
    let allowance_life_max_ms = hold_ms;
    let retry_window_ms = *dice.pick(&[20_000, 60_000, 600_000]);
    Settings {
        tick_ms: *dice.pick(&[50, 100, 100, 200]),
        skew_margin_ms: *dice.pick(&[2_000, 5_000]),
        close_grace_ms: *dice.pick(&[5_000, 10_000, 30_000]),
        retry_window_ms,
        allowance_life_max_ms,
        // Small, so that followers that were away need a snapshot.
        snapshot_every_entries: *dice.pick(&[20, 100, 400, 2_000]),
        max_restarts: dice.within(2..=5) as u32,
        restart_window_ms: *dice.pick(&[5_000, 20_000]),
        purge_after_ms: *dice.pick(&[60_000, 3_600_000]),
        max_scores_in_flight: *dice.pick(&[8, 64, 1_024]),
        max_events_in_flight: *dice.pick(&[1_000, 65_536]),
        ..Settings::default()
    }
}

fn load(dice: &Dice) -> Load {
    let clients = dice.within(2..=4);
    Load {
        clients: clients as u32,
        campaigns: dice.within(6..=24) as u32,
        // Short, so that stranded money is back within minutes; seldom longer.
        hold_ms: if dice.one_in(50) { 60_000 } else { dice.within(10_000..=30_000) },
        // Of all clients together, one request in 13 to 26 ms: most runs bill some thousand tokens.
        pause_ms: clients * dice.within(13..=26),
        slots: dice.within(1..=4) as u32,
        // The pace is that of a flight of ten minutes.
        deliveries: *dice.pick(&[10_000, 40_000, 200_000]),
        hot: *dice.pick(&[0.0, 0.1, 0.6]),
        duplicated: *dice.pick(&[0.0, 0.05, 0.3]),
        not_used: *dice.pick(&[0.0, 0.05, 0.2]),
        late: *dice.pick(&[0.0, 0.05, 0.2, 0.5]),
        lost: *dice.pick(&[0.0, 0.05, 0.2]),
        edit_pause_ms: dice.within(200..=2_000),
    }
}

/// Faults until the time for them is over: each may overlap the others, and there are quiet times.
fn schedule(plan: &Plan, dice: &Dice) -> Vec<Injection> {
    let kinds: Vec<&dyn Fault> = dice.several(faults::ALL, dice.within(KINDS) as usize);
    let weights: u64 = kinds.iter().map(|fault| fault.weight()).sum();
    let mean_ms = *dice.pick(PAUSES_MS);
    let (mut schedule, mut at_ms) = (Vec::new(), 0);
    loop {
        at_ms += if dice.one_in(12) { 10_000 } else { dice.within(mean_ms / 4..=mean_ms * 7 / 4) };
        if at_ms >= plan.faults_ms {
            return schedule;
        }
        let mut ticket = dice.within(1..=weights);
        let drawn = kinds.iter().find(|fault| {
            let here = ticket <= fault.weight();
            ticket = ticket.saturating_sub(fault.weight());
            here
        });
        if let Some(fault) = drawn
            && let Some(shape) = fault.draw(plan, dice)
        {
            let for_ms = shape.for_ms.min(plan.faults_ms - at_ms);
            let fault = fault.name().to_owned();
            schedule.push(Injection { fault, at_ms, for_ms, on: shape.on, amount: shape.amount });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_seed_draws_a_valid_plan_and_the_same_one_again() {
        for seed in 0..300 {
            let plan = Plan::draw(seed);
            plan.settings.validate().expect("valid settings");
            assert_eq!(plan, Plan::draw(seed));
            assert_eq!(plan.skews_ms.len() as u32, plan.nodes + plan.load.clients);
            for injection in &plan.schedule {
                assert!(faults::by_name(&injection.fault).is_some(), "{injection:?}");
                assert!(injection.at_ms + injection.for_ms <= plan.faults_ms, "{injection:?}");
                assert!(injection.on.iter().all(|host| *host < plan.nodes + plan.load.clients), "{injection:?}");
            }
        }
    }

    #[test]
    fn a_plan_survives_being_written_down() {
        let plan = Plan::draw(7);
        let text = serde_json::to_string(&plan).expect("writes");
        assert_eq!(serde_json::from_str::<Plan>(&text).expect("reads"), plan);
    }
}
