//! What the simulation needs to notice each seeded bug, and the table of it in the README.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write as _,
};

use serde::{Deserialize, Serialize};

/// The README's table stands between these lines.
const BEGIN: &str = "<!-- mutants: begin -->";
const END: &str = "<!-- mutants: end -->";

/// A seeded bug.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Mutant {
    pub(super) id: String,
    /// What it breaks.
    pub(super) what: String,
}

/// How a seeded bug fared.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(super) struct Caught {
    #[serde(flatten)]
    pub(super) mutant: Mutant,
    /// Who caught it.
    pub(super) oracles: BTreeSet<String>,
    /// Seeds played from each start until it was caught; `None`: it never was.
    pub(super) seeds_needed: Vec<Option<u64>>,
    /// Seeds that broke a promise before the bug's line ever ran: not its doing.
    pub(super) unrelated: Vec<u64>,
    /// Seeds that came to no verdict, and why.
    pub(super) harness_failures: Vec<(u64, String)>,
}

impl Caught {
    /// From every start.
    pub(super) fn always(&self) -> bool {
        !self.seeds_needed.is_empty() && self.seeds_needed.iter().all(Option::is_some)
    }

    /// The middle one (the lower of two); `None`: half of the starts never caught it.
    pub(super) fn median(&self) -> Option<u64> {
        let mut sorted: Vec<u64> = self.seeds_needed.iter().map(|needed| needed.unwrap_or(u64::MAX)).collect();
        sorted.sort_unstable();
        sorted.get(sorted.len().checked_sub(1)? / 2).copied().filter(|needed| *needed < u64::MAX)
    }

    /// As cells of a table: id, what, oracles, seeds needed, median.
    pub(super) fn cells(&self) -> [String; 5] {
        let number = |needed: &Option<u64>| needed.map_or_else(|| "not caught".to_owned(), |needed| needed.to_string());
        let oracles: Vec<&str> = self.oracles.iter().map(String::as_str).collect();
        let needed: Vec<String> = self.seeds_needed.iter().map(number).collect();
        let Mutant { id, what } = self.mutant.clone();
        [id, what, oracles.join(", "), needed.join(", "), number(&self.median())]
    }

    fn row(&self) -> String {
        let [id, what, oracles, needed, median] = self.cells().map(|cell| cell.replace('|', r"\|"));
        format!("| `{id}` | {what} | {oracles} | {needed} | {median} |")
    }
}

/// A README with these rows in its table, in the order of `all`. Rows of mutants that were not tried now stay, as long as
/// there is such a mutant.
///
/// # Errors
/// It has no table.
pub(super) fn updated(readme: &str, all: &[Mutant], tried: &[Caught]) -> Result<String, String> {
    let missing = || format!("there is no \"{BEGIN}\" with a \"{END}\" after it");
    let (before, rest) = readme.split_once(BEGIN).ok_or_else(missing)?;
    let (old, after) = rest.split_once(END).ok_or_else(missing)?;
    let mut rows: BTreeMap<&str, String> =
        old.lines().filter_map(|line| Some((line.strip_prefix("| `")?.split_once('`')?.0, line.to_owned()))).collect();
    for caught in tried {
        rows.insert(&caught.mutant.id, caught.row());
    }
    let mut table = format!(
        "{before}{BEGIN}\n| mutant | what it does | caught by | seeds needed, per start | median |\n|---|---|---|---|---|\n"
    );
    for row in all.iter().filter_map(|mutant| rows.get(mutant.id.as_str())) {
        let _ = writeln!(table, "{row}");
    }
    Ok(table + END + after)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mutant(id: &str) -> Mutant {
        Mutant { id: id.to_owned(), what: "breaks | it".to_owned() }
    }

    fn caught(id: &str, seeds_needed: &[Option<u64>]) -> Caught {
        Caught {
            mutant: mutant(id),
            oracles: ["ledger".to_owned()].into(),
            seeds_needed: seeds_needed.to_vec(),
            unrelated: vec![],
            harness_failures: vec![],
        }
    }

    #[test]
    fn the_median_takes_what_was_never_caught_for_endless() {
        let table = [
            (vec![Some(1), Some(9), Some(3)], Some(3), true),
            (vec![Some(1), Some(9), Some(3), Some(4)], Some(3), true),
            (vec![Some(1), None, Some(3)], Some(3), false),
            (vec![None, None, Some(3)], None, false),
            (vec![], None, false),
        ];
        for (seeds_needed, median, always) in table {
            let caught = caught("a", &seeds_needed);
            assert_eq!((caught.median(), caught.always()), (median, always), "{seeds_needed:?}");
        }
    }

    #[test]
    fn rows_are_replaced_in_the_order_of_mutants_and_old_ones_stay() {
        let all = [mutant("a"), mutant("b"), mutant("c")];
        let readme = "# Head\n<!-- mutants: begin -->\nold\n| `c` | old c |\n| `gone` | x |\n| `b` | old b |\n\
                      <!-- mutants: end -->\ntail\n";
        let new = updated(readme, &all, &[caught("b", &[Some(2), None])]).unwrap();
        assert_eq!(
            new,
            "# Head\n<!-- mutants: begin -->\n| mutant | what it does | caught by | seeds needed, per start | median |\n\
             |---|---|---|---|---|\n\
             | `b` | breaks \\| it | ledger | 2, not caught | 2 |\n| `c` | old c |\n<!-- mutants: end -->\ntail\n"
        );
        assert_eq!(updated(&new, &all, &[]).unwrap(), new);
        assert!(updated("no table", &all, &[]).is_err());
    }
}
