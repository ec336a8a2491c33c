//! The pacer, step by step. The backtest shows it over real logs.

use proptest::prelude::*;

use super::*;
use crate::campaign::traffic::HOUR_MS;

const START_MS: u64 = 1_704_067_200_000;

fn settings() -> Settings {
    Settings {
        start_ms: START_MS,
        end_ms: START_MS + 24 * HOUR_MS,
        budget_micros: 86_400_000,
        price_micros: 1_000,
        hold_ms: 300_000,
        relevance_floor: 0.0,
        boost_cap: 1.0,
        expected_billable_share: 1.0,
    }
}

fn pacer() -> Pacer {
    Pacer::new(settings(), Arc::new(Shape::flat()))
}

/// A step with traffic of relevance 1, none of it taken.
fn idle(second: u64, opportunities: u64) -> StepInput {
    StepInput {
        now_ms: START_MS + second * 1000,
        opportunities,
        relevance_sum: opportunities as f64,
        price_sum_micros: opportunities as f64 * 1_000.0,
        ..StepInput::default()
    }
}

fn taking(second: u64, opportunities: u64, takes: u64) -> StepInput {
    StepInput { takes, taken_micros: takes * 1_000, ..idle(second, opportunities) }
}

/// A pacer that has seen ten opportunities a second for a minute, and took what the plan wants: one a second.
fn warm() -> Pacer {
    let mut pacer = pacer();
    for second in 0..60 {
        pacer.step(&taking(second, 10, 1));
    }
    pacer
}

#[test]
fn spend_above_plan_raises_mu_and_below_plan_lowers_it() {
    let mut pacer = warm();
    let mu = pacer.mu();
    pacer.step(&taking(60, 10, 5));
    assert!(pacer.mu() > mu);
    let mu = pacer.mu();
    pacer.step(&taking(61, 10, 0));
    assert!(pacer.mu() < mu);
}

#[test]
fn mu_stays_where_it_is_without_traffic() {
    let mut pacer = warm();
    let mu = pacer.mu();
    for second in 60..10_000 {
        pacer.step(&idle(second, 0));
    }
    assert_eq!(pacer.mu(), mu);
}

#[test]
fn mu_does_not_fall_where_slots_guardrails_or_escrow_bind() {
    let cases = [
        Bound { lost_slot: 10, ..Bound::default() },
        Bound { frequency_cap: 10, ..Bound::default() },
        Bound { promoted_share: 10, ..Bound::default() },
        Bound { nothing_free: 10, ..Bound::default() },
        Bound { allowance_cap: 10, ..Bound::default() },
    ];
    for bound in cases {
        let mut pacer = warm();
        let mu = pacer.mu();
        for second in 60..600 {
            pacer.step(&StepInput { bound, ..idle(second, 10) });
        }
        assert!(pacer.mu() >= mu, "{bound:?}");
    }
}

#[test]
fn mu_does_not_fall_on_and_on_when_all_is_taken_anyway() {
    let mut pacer = warm();
    for second in 60..20_000 {
        pacer.step(&taking(second, 1, 1));
    }
    assert!(pacer.mu() > 0.01, "{}", pacer.mu());
}

#[test]
fn a_step_with_a_thousand_takes_too_many_moves_mu_by_a_bounded_amount() {
    let mut pacer = warm();
    let mu = pacer.mu();
    pacer.step(&taking(60, 100_000, 50_000));
    assert!(pacer.mu() > mu && pacer.mu() <= mu * MAX_RISE.exp());
}

#[test]
fn after_an_outage_the_plan_makes_up_for_it() {
    let rho = |pacer: &Pacer, second: u64| pacer.rho_micros(START_MS + second * 1000).unwrap();
    let pacer = warm();
    let (before, after) = (rho(&pacer, 60), rho(&pacer, 43_200));
    assert!((after / before - 2.0).abs() < 0.02, "half of the flight is gone, nothing of the money: {before} {after}");
}

#[test]
fn what_open_holds_are_expected_to_bill_is_not_planned_again() {
    let mut pacer = warm();
    let before = pacer.left_micros();
    let holds = Holds { issued_micros: 10_000_000, settled_micros: 4_000_000, released_micros: 1_000_000 };
    pacer.step(&StepInput { settled_micros: 4_000_000, holds, ..idle(60, 10) });
    assert!((before - pacer.left_micros() - 9_000_000.0).abs() < 1.0, "{before} {}", pacer.left_micros());
}

#[test]
fn a_low_billable_share_is_learned_and_more_tokens_are_planned_for_it() {
    let mut pacer = pacer();
    pacer.step(&idle(0, 10));
    let tokens = pacer.pace_share_tokens(60_000);
    pacer.step(&StepInput { billed: 100, unbilled: 900, ..idle(1, 10) });
    assert!((pacer.billable_share() - 0.118).abs() < 0.001, "{}", pacer.billable_share());
    assert!(pacer.pace_share_tokens(60_000) > 8 * tokens);
}

#[test]
fn outcomes_that_come_early_leave_the_whole_flight_to_the_plan_however_long_the_hold_time() {
    // The hold time is half of the flight, but money is out for two seconds.
    let flight_ms = 40_000;
    let settings =
        Settings { end_ms: START_MS + flight_ms, hold_ms: flight_ms / 2, expected_billable_share: 0.5, ..settings() };
    let mut pacer = Pacer::new(settings, Arc::new(Shape::flat()));
    for tenth in 0..100u64 {
        let holds = Holds { issued_micros: 1_000 * tenth.min(20), ..Holds::default() };
        let now_ms = START_MS + tenth * 100;
        pacer.step(&StepInput { now_ms, holds, billed: 1, unbilled: 1, ..taking(0, 10, 1) });
    }
    let turn_ms = pacer.turn_ms();
    assert!((turn_ms - 2_000.0).abs() < 100.0, "{turn_ms}");
    assert!(pacer.horizon_ms(START_MS + 10_000) >= START_MS + flight_ms - 2_000);
}

#[test]
fn a_successor_goes_on_from_a_checkpoint() {
    let mut pacer = warm();
    pacer.step(&StepInput { billed: 3, unbilled: 30, ..taking(60, 10, 4) });
    let mut successor = Pacer::restore(settings(), Arc::new(Shape::flat()), &pacer.checkpoint());
    assert_eq!(successor.weights(), pacer.weights());
    assert_eq!(successor.billable_share(), pacer.billable_share());
    assert_eq!(successor.checkpoint(), pacer.checkpoint());
    let step = taking(61, 10, 2);
    let (ours, theirs) = (pacer.step(&step).mu, successor.step(&step).mu);
    assert!((ours / theirs - 1.0).abs() < 0.01, "{ours} {theirs}");
}

#[test]
fn a_damaged_or_foreign_checkpoint_is_learned_anew() {
    let flat = || Arc::new(Shape::flat());
    for mu in [f64::NAN, f64::INFINITY, -1.0, 0.0] {
        let control = Control { mu, estimates: vec![0xff; 40], learned: None };
        assert_eq!(Pacer::restore(settings(), flat(), &control).weights(), pacer().weights());
    }
    let control = Control { mu: 1e300, estimates: Vec::new(), learned: None };
    assert_eq!(Pacer::restore(settings(), flat(), &control).mu(), MU_BOUNDS.1);
}

#[test]
fn the_plan_runs_from_nothing_at_the_start_to_all_at_the_end() {
    let pacer = pacer();
    assert_eq!(pacer.planned_micros(0), 0);
    assert_eq!(pacer.planned_micros(START_MS), 0);
    assert_eq!(pacer.planned_micros(START_MS + 12 * HOUR_MS), 43_200_000);
    assert_eq!(pacer.planned_micros(START_MS + 24 * HOUR_MS), 86_400_000);
    assert_eq!(pacer.planned_micros(u64::MAX), 86_400_000);
}

#[test]
fn what_binds_is_named() {
    let explained = |step: StepInput, now_ms: u64| {
        let mut pacer = warm();
        for second in 0..100 {
            pacer.step(&StepInput { now_ms: START_MS + (60 + second) * 1000, ..step });
        }
        pacer.obstacle(now_ms)
    };
    let now_ms = START_MS + 160_000;
    let bound = |bound| StepInput { bound, ..idle(0, 10) };
    let cases = [
        (idle(0, 10), START_MS - 1, Obstacle::NotStarted),
        (idle(0, 10), START_MS + 24 * HOUR_MS, Obstacle::Ended),
        (StepInput { settled_micros: 86_400_000, ..idle(0, 10) }, now_ms, Obstacle::BudgetExhausted),
        (idle(0, 0), now_ms + HOUR_MS, Obstacle::NoTraffic),
        (idle(0, 10), now_ms, Obstacle::Multiplier),
        (bound(Bound { nothing_free: 9, ..Bound::default() }), now_ms, Obstacle::NothingFree),
        (bound(Bound { allowance_cap: 9, ..Bound::default() }), now_ms, Obstacle::AllowanceCap),
        (bound(Bound { frequency_cap: 9, ..Bound::default() }), now_ms, Obstacle::FrequencyCap),
        (bound(Bound { lost_slot: 9, ..Bound::default() }), now_ms, Obstacle::LostSlots),
        (bound(Bound { promoted_share: 9, ..Bound::default() }), now_ms, Obstacle::PromotedShare),
        (bound(Bound { below_floor: 99, ..Bound::default() }), now_ms, Obstacle::RelevanceFloor),
    ];
    for (step, now_ms, obstacle) in cases {
        assert_eq!(explained(step, now_ms), Some(obstacle));
    }
}

#[test]
fn a_campaign_on_plan_needs_no_explanation() {
    let mut pacer = warm();
    pacer.step(&StepInput { settled_micros: 43_200_000, ..idle(43_200, 10) });
    assert_eq!(pacer.explanation(START_MS + 43_200_000), "");
    pacer.step(&StepInput { settled_micros: 20_000_000, ..idle(43_201, 10) });
    assert_ne!(pacer.explanation(START_MS + 43_201_000), "");
}

fn step() -> impl Strategy<Value = StepInput> {
    let counts = (0..1_000_000u64, 0..2_000u64, 0.0..1e6f64, 0..1u64 << 53, 0..2_000u64, 0..1u64 << 53);
    let money = (0..1u64 << 53, 0..1u64 << 53, 0..1u64 << 53, 0..1u64 << 53, 0..1u64 << 53);
    let rest = (0..2_000u64, 0..2_000u64, 0..500u64, 0..500u64, 0..500u64);
    (counts, money, rest).prop_map(|(c, m, r)| StepInput {
        now_ms: START_MS + c.0 * 100,
        opportunities: c.1,
        relevance_sum: c.2,
        price_sum_micros: c.3 as f64,
        takes: c.4,
        taken_micros: c.5,
        bound: Bound { lost_slot: r.2, frequency_cap: r.3, nothing_free: r.4, ..Bound::default() },
        billed: r.0,
        unbilled: r.1,
        settled_micros: m.0,
        open_micros: m.1,
        holds: Holds { issued_micros: m.2, settled_micros: m.3, released_micros: m.4 },
    })
}

proptest! {
    /// Whatever is claimed to have happened, in whatever order of times: no panic, nothing infinite, all bounds hold,
    /// and a checkpoint gives the same weights.
    #[test]
    fn any_steps_leave_sane_weights(steps in prop::collection::vec(step(), 1..20), budget in 1u64..1 << 53) {
        let settings = Settings { budget_micros: budget, ..settings() };
        let mut pacer = Pacer::new(settings, Arc::new(Shape::flat()));
        for step in steps {
            let weights = pacer.step(&step);
            prop_assert!((MU_BOUNDS.0..=MU_BOUNDS.1).contains(&weights.mu), "{weights:?}");
            prop_assert!(weights.value_scale.is_finite() && weights.value_scale > 0.0, "{weights:?}");
            prop_assert!(weights.price_scale.is_finite() && weights.price_scale > 0.0, "{weights:?}");
            prop_assert!(pacer.planned_micros(step.now_ms) <= budget);
            prop_assert!(pacer.stranded_micros() <= step.open_micros);
            prop_assert!(pacer.mean_ms_between_takes() >= 0.0);
            pacer.pace_share_tokens(pacer.life_ms());
            let successor = Pacer::restore(settings, Arc::new(Shape::flat()), &pacer.checkpoint());
            prop_assert_eq!(successor.weights(), weights);
        }
    }
}
