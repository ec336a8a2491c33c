//! Arbitrary command sequences.

use andante::campaign::{book::Book, proto::Command};
use proptest::prelude::*;
use prost::Message;

use crate::{
    driver::Driver,
    model::Model,
    ops::{Maker, Op, ops},
};

/// Cases per property: together some seconds in a debug build. `PROPTEST_CASES` may ask for more.
const CASES: u32 = 300;
/// Commands of a case.
const COMMANDS_MAX: usize = 90;

fn config() -> ProptestConfig {
    let default = ProptestConfig::default();
    ProptestConfig { cases: default.cases.max(CASES), failure_persistence: None, ..default }
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn the_book_agrees_with_a_naive_ledger_after_every_command(ops in ops(COMMANDS_MAX)) {
        let mut driver = Driver::new();
        let mut maker = Maker::default();
        for op in &ops {
            let command = maker.make(op, &driver.model);
            driver.apply(&command);
        }
    }

    #[test]
    fn restarts_at_any_point_change_nothing(ops in ops(COMMANDS_MAX), period in 1..9_usize) {
        let mut driver = Driver::new();
        let mut maker = Maker::default();
        let mut untouched = Book::new();
        for (i, op) in ops.iter().enumerate() {
            if i % period == 0 {
                driver.restart();
            }
            let command = maker.make(op, &driver.model);
            let reply = driver.apply(&command);
            prop_assert_eq!(untouched.apply(&command), reply);
            prop_assert_eq!(untouched.digest(), driver.book.digest());
            prop_assert_eq!(untouched.last_effects(), driver.book.last_effects());
        }
    }

    #[test]
    fn a_snapshot_stays_what_it_was_while_commands_go_on(ops in ops(COMMANDS_MAX), at in 0..COMMANDS_MAX) {
        let mut book = Book::new();
        let mut held = None;
        let mut maker = Maker::default();
        let mut model = Model::default();
        for (i, op) in ops.iter().enumerate() {
            if i == at.min(ops.len() - 1) {
                held = Some((book.snapshot(), book.digest(), book.snapshot().collect::<Vec<_>>()));
            }
            let command = maker.make(op, &model);
            model.apply(&command);
            book.apply(&command);
        }
        let (snapshot, digest, then) = held.unwrap();
        let records: Vec<_> = snapshot.collect();
        prop_assert_eq!(&records, &then);
        prop_assert_eq!(Book::restore(records).unwrap().digest(), digest);
    }

    /// A proposer gone mad: commands with flipped bits that still decode. Nothing panics, no invariant breaks.
    #[test]
    fn damaged_commands_never_break_the_book(
        ops in ops(COMMANDS_MAX),
        flips in prop::collection::vec(any::<usize>(), COMMANDS_MAX),
    ) {
        let mut book = Book::new();
        let mut maker = Maker::default();
        let mut model = Model::default();
        for (op, flip) in ops.iter().zip(flips) {
            let command = maker.make(op, &model);
            let mut bytes = command.encode_to_vec();
            // Every other command stays whole, so that there is something to break.
            if flip % 2 == 1 && !bytes.is_empty() {
                let bit = (flip / 2) % (bytes.len() * 8);
                bytes[bit / 8] ^= 1 << (bit % 8);
            }
            if let Ok(command) = Command::decode(&*bytes) {
                model.apply(&command);
                book.apply(&command);
                book.check().unwrap();
                prop_assert_eq!(Book::restore(book.snapshot()).unwrap().digest(), book.digest());
            }
        }
    }

    /// Any single flipped bit of any record is refused or makes a book whose invariants hold: never a panic.
    #[test]
    fn damaged_records_never_make_a_broken_book(ops in ops(40), which in any::<usize>(), bit in any::<usize>()) {
        let mut book = Book::new();
        let mut maker = Maker::default();
        let mut model = Model::default();
        for op in &ops {
            let command = maker.make(op, &model);
            model.apply(&command);
            book.apply(&command);
        }
        let mut records: Vec<_> = book.snapshot().collect();
        let at = which % records.len();
        let record = &mut records[at];
        let bits = (record.key.len() + record.value.len()) * 8;
        let bit = bit % bits;
        match bit.checked_sub(record.key.len() * 8) {
            None => record.key[bit / 8] ^= 1 << (bit % 8),
            Some(bit) => record.value[bit / 8] ^= 1 << (bit % 8),
        }
        if let Ok(restored) = Book::restore(records) {
            restored.check().unwrap();
        }
    }
}

/// The generator reaches what the properties are about; else they would prove nothing.
#[test]
fn arbitrary_commands_reach_every_answer() {
    use std::collections::BTreeSet;

    use proptest::{strategy::ValueTree, test_runner::TestRunner};

    let mut seen = BTreeSet::new();
    let mut runner = TestRunner::deterministic();
    for _ in 0..CASES {
        let ops: Vec<Op> = ops(COMMANDS_MAX).new_tree(&mut runner).unwrap().current();
        let (mut model, mut maker) = (Model::default(), Maker::default());
        for op in &ops {
            let command = maker.make(op, &model);
            let answer = model.apply(&command);
            seen.insert(format!("{:?}", answer.refusal));
            if let Some(andante::campaign::proto::command::Kind::Delete(delete)) = &command.kind {
                let lives = model.campaigns.contains_key(&delete.name);
                seen.insert(format!("delete repeated {}, a campaign lives {lives}", answer.repeated));
            }
            seen.extend(answer.grants.iter().map(|(status, _)| format!("grant {status:?}")));
            seen.extend(answer.outcomes.iter().map(|status| format!("outcome {status:?}")));
        }
    }
    for expected in [
        "AlreadyExists",
        "BudgetTooLow",
        "Invalid",
        "NotFound",
        "StaleRevision",
        "UnknownCommand",
        "WrongState",
        "delete repeated false, a campaign lives false",
        "delete repeated false, a campaign lives true",
        "delete repeated true, a campaign lives false",
        "delete repeated true, a campaign lives true",
        "grant Granted",
        "grant Invalid",
        "grant NotEligible",
        "grant NothingFree",
        "grant WrongNumber",
        "outcome Billed",
        "outcome ClosedUnknown",
        "outcome Duplicate",
        "outcome InvalidEvent",
        "outcome InvalidToken",
        "outcome Recorded",
        "outcome RefusedClosed",
        "outcome Released",
        "outcome UnknownCampaign",
    ] {
        assert!(seen.contains(expected), "{expected} was never answered");
    }
}
