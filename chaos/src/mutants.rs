//! The seeded bugs, if this program was built with them (`ANDANTE_MUTANTS=1`). The simulation never asks which one is on.

use serde::{Deserialize, Serialize};

/// A seeded bug.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mutant {
    /// Its name.
    pub id: String,
    /// What is wrong.
    pub what: String,
}

/// All of them; none in a program that was built without.
pub fn all() -> Vec<Mutant> {
    #[cfg(andante_mutants)]
    let all = andante_cluster::mutants::Mutant::ALL.iter();
    #[cfg(andante_mutants)]
    return all.map(|mutant| Mutant { id: mutant.id().to_owned(), what: mutant.what().to_owned() }).collect();
    #[cfg(not(andante_mutants))]
    Vec::new()
}

/// Turns one on, for the rest of the process.
///
/// # Errors
/// There is none of this name.
pub fn choose(id: &str) -> anyhow::Result<()> {
    #[cfg(andante_mutants)]
    return Ok(andante_cluster::mutants::choose(id)?);
    #[cfg(not(andante_mutants))]
    anyhow::bail!("there is no mutant {id}: this program was built without them (set ANDANTE_MUTANTS=1 for the build)")
}

/// How often its line ran.
pub fn hits() -> u64 {
    #[cfg(andante_mutants)]
    return andante_cluster::mutants::hits();
    #[cfg(not(andante_mutants))]
    0
}
