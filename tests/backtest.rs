//! The pacing code over real auction logs, offline: one parameter set reaches all of its goals.
//!
//! The logs lie beside the checkout (`../shared/data`) and are no part of the project. Without them these tests say that
//! they were skipped; with CI=true they fail.

use std::{env, path::Path};

use andante::{
    backtest::{Options, PolicyName, Report, replay},
    trace::{Format, Row, read_all},
};

/// The rows of a log; `None` if it is not there and need not be.
#[allow(clippy::print_stderr)] // a skip must be seen
fn rows(name: &str) -> Option<Vec<Row>> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../shared/data").join(name);
    if path.exists() {
        return Some(read_all(&path, Format::Ipinyou).expect("the log can be read"));
    }
    assert!(env::var("CI").as_deref() != Ok("true"), "{} is missing", path.display());
    eprintln!("SKIPPED: {} is missing", path.display());
    None
}

fn run(rows: &[Row], options: &Options) -> Report {
    let (report, _) = replay(rows, options).expect("the options are valid");
    assert_eq!(report.overspend_micros, 0);
    report
}

fn at(budget_fraction: f64) -> Options {
    Options { budget_fraction, ..Options::default() }
}

/// Both test logs with a name for messages.
fn logs() -> impl Iterator<Item = (&'static str, Vec<Row>)> {
    ["ipinyou_2997_test.txt.gz", "ipinyou_1458_test.txt.gz"].into_iter().filter_map(|name| Some((name, rows(name)?)))
}

#[test]
fn value_comes_close_to_the_best_choice_in_hindsight_and_the_budget_is_spent_evenly() {
    let goals = [
        // log, budget fraction, lowest value ratio, highest avg_err_96
        ("ipinyou_2997_test.txt.gz", 0.125, 0.985, 0.09),
        ("ipinyou_2997_test.txt.gz", 0.03125, 0.955, 1.0),
        ("ipinyou_2997_test.txt.gz", 0.5, 0.985, 0.09),
        ("ipinyou_1458_test.txt.gz", 0.125, 0.985, 0.09),
        ("ipinyou_1458_test.txt.gz", 0.03125, 0.955, 1.0),
    ];
    for (name, fraction, value_ratio, avg_err_96) in goals {
        let Some(rows) = rows(name) else { return };
        let report = run(&rows, &at(fraction));
        let figures =
            format!("{name} at {fraction}: {} {} {}", report.value_ratio, report.utilisation, report.avg_err_96);
        assert!(report.value_ratio >= value_ratio, "{figures}");
        assert!(report.utilisation >= 0.99, "{figures}");
        assert!(report.avg_err_96 <= avg_err_96, "{figures}");
    }
}

#[test]
fn the_budget_is_spent_when_half_of_the_traffic_stays_away_in_the_second_half() {
    for (name, rows) in logs() {
        let report = run(&rows, &Options { drop_half: true, ..at(0.125) });
        assert!(report.utilisation >= 0.98, "{name}: {}", report.utilisation);
        assert!(report.value_ratio >= 0.97, "{name}: {}", report.value_ratio);
    }
}

#[test]
fn a_forecast_wrong_by_two_costs_little() {
    let Some(rows) = rows("ipinyou_1458_test.txt.gz") else { return };
    let truth = run(&rows, &Options { forecast_factor: Some(1.0), ..at(0.125) });
    for factor in [0.5, 2.0] {
        let report = run(&rows, &Options { forecast_factor: Some(factor), ..at(0.125) });
        assert!(report.value_ratio >= truth.value_ratio - 0.02, "{factor}: {}", report.value_ratio);
        assert!(report.utilisation >= 0.99, "{factor}: {}", report.utilisation);
    }
}

#[test]
fn late_outcomes_few_of_them_billable_and_rivals_leave_the_budget_spent_without_swings() {
    for (name, rows) in logs() {
        let options = Options { delay: 0.01, billable_share: 0.1, rivals: 50, ..at(0.125) };
        let report = run(&rows, &options);
        assert!(report.utilisation >= 0.95, "{name}: {}", report.utilisation);
        assert!(report.max_slice <= 3.0, "{name}: {}", report.max_slice);
    }
}

#[test]
fn pacing_by_value_beats_throttling_and_greed() {
    let Some(rows) = rows("ipinyou_1458_test.txt.gz") else { return };
    let andante = run(&rows, &at(0.125));
    for policy in [PolicyName::Linkedin, PolicyName::Greedy] {
        let other = run(&rows, &Options { policy, ..at(0.125) });
        assert!(other.value_ratio < 0.5 * andante.value_ratio, "{policy}: {}", other.value_ratio);
    }
}

#[test]
fn decisions_depend_on_nothing_that_lies_ahead() {
    let rows: Vec<Row> = (0..6_000)
        .map(|index| Row {
            index,
            click: false,
            price_micros: 100 + index * 7919 % 400,
            pctr: (index * 104_729 % 1_000) as f64 / 1e6,
            hour: None,
        })
        .collect();
    let t = 3_000;
    let mut changed = rows.clone();
    // Another order of the prices: what all rows cost together, which the budget is a share of, stays the same.
    changed[t..].reverse();
    for (row, old) in changed[t..].iter_mut().zip(&rows[t..]) {
        row.index = old.index;
        row.pctr = 1.0 - old.pctr;
    }
    for options in [at(0.125), Options { delay: 0.01, billable_share: 0.3, ..at(0.125) }] {
        let placed = |rows: &[Row]| {
            let (_, mut placements) = replay(rows, &options).expect("the options are valid");
            placements.retain(|p| p.index < t as u64);
            placements
        };
        let placements = placed(&rows);
        assert!(placements.len() > 100);
        assert_eq!(placements, placed(&changed));
    }
}
