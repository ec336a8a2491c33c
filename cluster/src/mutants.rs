//! Seeded bugs, to prove that the tests of the whole cluster would notice them.
//!
//! They exist only in builds with `--cfg andante_mutants` (or with ANDANTE_MUTANTS=1 in the environment, which spares
//! the dependencies a build of their own). All are in one build; none is active until one is chosen, for the whole
//! process. The wrong line stands beside the right one: `if mutant!(AckBeforeFlush) { wrong } else { right }`.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

/// No mutant has this id.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("there is no mutant {0}")]
pub struct UnknownMutant(pub String);

macro_rules! mutants {
    ($($name:ident: $what:literal,)*) => {
        /// A seeded bug.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub enum Mutant {
            $(#[doc = $what] $name,)*
        }

        impl Mutant {
            /// All of them.
            pub const ALL: &[Self] = &[$(Self::$name,)*];

            /// Its name.
            pub fn id(self) -> &'static str {
                match self {
                    $(Self::$name => stringify!($name),)*
                }
            }

            /// What is wrong.
            pub fn what(self) -> &'static str {
                match self {
                    $(Self::$name => $what,)*
                }
            }
        }
    };
}

mutants! {
    AckBeforeFlush: "appended entries are reported as durable before they are",
    VoteNotPersisted: "a vote is reported as durable without being written",
    BitmapNotInSnapshot: "a snapshot has how many tokens of an allowance were settled, not which",
    CloseIgnoresHold: "an allowance closes when its last token may be handed out, not when that one expires",
    GrantBeforeApplied: "a cell hands out an allowance that was only proposed",
    ResumeOldSequence: "an actor that starts takes over open allowances of its node, and counts from 0 again",
    GrantNotReserved: "the budget does not count what is set aside",
    DedupSkippedAfterRestore: "the first duplicate for an allowance that was restored bills again",
    ReadWithoutReadIndex: "a campaign is read from the local replica without asking a quorum",
    ClockInApply: "ticks and closings are applied at the replica's own time, not the command's",
    SealIgnored: "a sealed allowance stays in its cell and is handed out further",
    RpcWithoutDeadline: "calls to other nodes wait for their answers for ever",
    SnapshotMerged: "a snapshot is installed over the state that was there, not in its place",
    UnknownSaidFailed: "a write of unknown fate is answered as surely not done",
    CoverageSaysAll: "a reply names no shard that did not answer",
    ReleasedSettles: "a token that was released bills all the same",
    BudgetCutAccepted: "a budget is cut below what is billed and set aside",
    IncarnationIgnored: "a token of a deleted campaign bills its successor of the same name",
    GraceSkipped: "a new leader closes allowances at once",
    RequestForgotten: "a write that is repeated with its request id is not recognised",
    CatalogGapHidden: "a reply does not name shards that the catalog is not in step with",
}

/// Which one is chosen: its position, and one. 0: none.
static CHOSEN: AtomicUsize = AtomicUsize::new(0);
static HITS: AtomicU64 = AtomicU64::new(0);

/// Makes one bug real, for the whole process.
///
/// # Errors
/// There is none of this id; nothing changes then.
pub fn choose(id: &str) -> Result<(), UnknownMutant> {
    let at = Mutant::ALL.iter().position(|mutant| mutant.id() == id).ok_or_else(|| UnknownMutant(id.to_owned()))?;
    HITS.store(0, Ordering::Relaxed);
    CHOSEN.store(at + 1, Ordering::Relaxed);
    Ok(())
}

/// How often the wrong line ran since it was chosen.
pub fn hits() -> u64 {
    HITS.load(Ordering::Relaxed)
}

/// Whether a mutant is chosen, and a hit if so. For [`mutant!`](crate::mutant).
#[doc(hidden)]
pub fn is_chosen(mutant: Mutant) -> bool {
    let chosen = CHOSEN.load(Ordering::Relaxed) == mutant as usize + 1;
    if chosen {
        HITS.fetch_add(1, Ordering::Relaxed);
    }
    chosen
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeSet, fs, path::Path};

    use super::*;

    fn read(folder: &Path, sources: &mut String) {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                read(&path, sources);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                sources.push_str(&fs::read_to_string(&path).unwrap());
            }
        }
    }

    #[test]
    fn each_has_an_id_of_its_own_and_a_line_that_it_breaks() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
        let mut sources = String::new();
        for folder in ["cluster/src", "src"] {
            read(&root.join(folder), &mut sources);
        }
        for mutant in Mutant::ALL {
            assert!(sources.contains(&format!("mutant!({})", mutant.id())), "{mutant:?} is nowhere");
        }
        let ids: BTreeSet<_> = Mutant::ALL.iter().map(|mutant| mutant.id()).collect();
        assert!(ids.len() == Mutant::ALL.len() && ids.len() >= 12);
    }

    #[test]
    fn one_is_chosen_by_its_id() {
        assert_eq!(choose("Nonsense"), Err(UnknownMutant("Nonsense".into())));
        assert_eq!(choose("ClockInApply"), Ok(()));
        assert!(!crate::mutant!(SealIgnored));
        assert_eq!(hits(), 0);
        assert!(crate::mutant!(ClockInApply));
        assert_eq!(hits(), 1);
    }
}
