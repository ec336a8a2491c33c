//! What holds for any history.

use andante_chaos::linearizability::{
    Online, Operation, Outcome, Refusal, STEPS_MAX_DEFAULT, Seen, State, Verdict, Version, check,
};
use proptest::{collection::vec, prelude::*, test_runner::RngSeed};

use super::{book, brute_force};

/// The same cases always: among others there is one in thousands with too many of unknown fate for the budget.
fn config(cases: u32) -> ProptestConfig {
    ProptestConfig { cases, failure_persistence: None, rng_seed: RngSeed::Fixed(1), ..ProptestConfig::default() }
}

/// Any answer, right or wrong.
fn answers() -> impl Strategy<Value = Outcome> {
    let states = prop_oneof![
        3 => Just(State::Active), 1 => Just(State::Paused), 1 => Just(State::Ended), 2 => Just(State::Deleting)
    ];
    let seen = (1..3_u32, 1..4_u64, 1..4_u64, 1..3_u64, states);
    let shown = seen.prop_map(|(incarnation, revision, budget_micros, price_micros, state)| {
        Outcome::Shown(Seen { version: Version { incarnation, revision }, budget_micros, price_micros, state })
    });
    let refusals = [Refusal::NotFound, Refusal::AlreadyExists, Refusal::StaleEtag, Refusal::WrongState];
    prop_oneof![
        4 => shown,
        1 => Just(Outcome::Gone),
        2 => proptest::sample::select(refusals.map(Outcome::Refused).to_vec()),
    ]
}

/// Whether every conditional write expects what was shown before it was called.
fn expects_what_was_shown(history: &[Operation]) -> bool {
    history.iter().all(|operation| {
        operation.action.expected().is_none_or(|expected| {
            history.iter().any(|other| {
                let is_before = other.returned.is_some_and(|returned| returned < operation.called);
                is_before && matches!(other.outcome, Outcome::Shown(seen) if seen.version == expected)
            })
        })
    })
}

proptest! {
    #![proptest_config(config(400))]

    #[test]
    fn what_happened_one_after_the_other_is_linearizable(draws in book::draws(60)) {
        let mut history = book::history(&draws);
        prop_assert_eq!(check(&history, STEPS_MAX_DEFAULT), Verdict::Linearizable);
        history.sort_by_key(|operation| operation.returned);
        let mut online = Online::default();
        for operation in &history {
            prop_assert_eq!(online.observe(operation), Ok(()));
        }
    }
}

proptest! {
    #![proptest_config(config(3_000))]

    #[test]
    fn brute_force_agrees(draws in book::draws(6), changes in vec((0..6_usize, answers()), 0..3)) {
        let mut history = book::history(&draws);
        for (index, answer) in changes {
            if let Some(operation) = history.get_mut(index).filter(|operation| operation.returned.is_some()) {
                operation.outcome = answer;
            }
        }
        prop_assume!(expects_what_was_shown(&history));
        let verdict = check(&history, STEPS_MAX_DEFAULT);
        let is_linearizable = brute_force::is_linearizable(&history);
        prop_assert_eq!(verdict == Verdict::Linearizable, is_linearizable, "{:?}", verdict);
        // What the cheap check finds is found by the other.
        history.sort_by_key(|operation| operation.returned);
        let mut online = Online::default();
        let found = history.iter().find_map(|operation| online.observe(operation).err());
        prop_assert!(!is_linearizable || found.is_none(), "{:?}", found);
    }
}
