//! What all tests here lean on: bounded waits, visible skips, programs of the machine.

use std::{
    io::Write as _,
    process::{Command, Output},
    time::{Duration, Instant},
};

use andante_cluster::env::{Rng as _, SystemRng};
use rand::{RngExt as _, SeedableRng as _, rngs::StdRng};

use crate::replay::ENOUGH;

/// Longest wait for anything. Starts, stops and answers take moments, a replay some seconds, but builders may share two
/// cores with others.
pub(crate) const PATIENCE: Duration = Duration::from_secs(180);
/// Time between two looks.
const LOOK_EVERY: Duration = Duration::from_millis(5);

/// Looks until there is something; fails after [`PATIENCE`].
pub(crate) fn until<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let started = Instant::now();
    loop {
        if let Some(seen) = look() {
            return seen;
        }
        assert!(started.elapsed() < PATIENCE, "waited {PATIENCE:?} for {what}");
        std::thread::park_timeout(LOOK_EVERY);
    }
}

/// Says that a test is left out, past the harness that hides the output of tests that pass. With `CI=true` the machine
/// has what is needed, so that a lack is a failure.
pub(crate) fn skip(test: &str, why: &str) {
    assert!(std::env::var("CI").as_deref() != Ok("true"), "{test} can't run: {why}");
    // Nowhere is left to say that this failed.
    let _ = writeln!(std::io::stderr(), "SKIPPED {test}: {why}");
}

/// Tells something even when the test passes.
pub(crate) fn tell(text: &str) {
    let _ = writeln!(std::io::stderr(), "{text}");
}

/// Repeats a run's moments.
const SEED: &str = "DURABILITY_SEED";

/// Random moments, in streams acknowledged until then, told with the seed that repeats them. The last comes before [`ENOUGH`].
pub(crate) fn moments(what: &str, count: usize) -> Vec<usize> {
    let seed = std::env::var(SEED).ok().map_or_else(|| SystemRng.u64(), |seed| seed.parse().expect("a number"));
    let mut rng = StdRng::seed_from_u64(seed);
    let slice = ENOUGH / (count + 1);
    let moments: Vec<usize> = (0..count).map(|i| i * slice + rng.random_range(slice / 10..slice)).collect();
    tell(&format!("{what} after {moments:?} acknowledged streams ({SEED}={seed})"));
    moments
}

/// Runs a program to its end.
///
/// # Errors
/// It can't be run or failed; with what it said.
pub(crate) fn run(program: &str, args: &[&str]) -> Result<Output, String> {
    let output = Command::new(program).args(args).output().map_err(|e| format!("{program}: {e}"))?;
    if output.status.success() {
        return Ok(output);
    }
    let said = [output.stdout, output.stderr].concat();
    Err(format!("{program} {}: {}: {}", args.join(" "), output.status, String::from_utf8_lossy(&said).trim()))
}

/// Whether processes can be traced here.
pub(crate) fn strace() -> Result<(), String> {
    run("strace", &["-f", "-o", "/dev/null", "true"]).map(drop)
}
