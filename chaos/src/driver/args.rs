//! What all commands take.

use std::{path::PathBuf, time::Duration};

use super::{
    failure::Failure,
    output::Output,
    player::{Player, Run, Source, program_beside_this_one},
};

/// Where broken promises are written by default.
pub(super) const OUT: &str = "chaos-failures";
/// A month: more is a slip of the finger.
const MINUTES_MAX: f64 = 31.0 * 24.0 * 60.0;

/// How runs are started and results are told.
#[derive(Debug, clap::Args)]
pub(super) struct Common {
    /// Runs at the same time; as many as there are processors by default.
    #[arg(long, value_name = "J", value_parser = clap::value_parser!(u16).range(1..=1024))]
    jobs: Option<u16>,
    /// A run that takes longer is killed and counts as broken.
    #[arg(long, value_name = "S", default_value_t = 300, value_parser = clap::value_parser!(u64).range(1..=86_400))]
    wall_limit_s: u64,
    /// Print the result as JSON.
    #[arg(long)]
    pub(super) json: bool,
    /// The simulation's program.
    #[arg(long, value_name = "PROGRAM", hide = true)]
    sim: Option<PathBuf>,
}

impl Common {
    /// # Errors
    /// The simulation's program is not there.
    pub(super) fn player(&self) -> Result<Player, Failure> {
        let program = match &self.sim {
            Some(program) => program.clone(),
            None => program_beside_this_one()?,
        };
        let jobs = self.jobs.map_or_else(processors, usize::from);
        Ok(Player { program, jobs, wall_max: Duration::from_secs(self.wall_limit_s), talks: false })
    }

    pub(super) fn output(&self) -> Output {
        Output::new(self.json)
    }
}

fn processors() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

/// One run.
#[derive(Debug, clap::Args)]
#[command(group = clap::ArgGroup::new("source").required(true))]
pub(super) struct What {
    /// Play what this seed draws.
    #[arg(long, value_name = "N", group = "source")]
    seed: Option<u64>,
    /// Play a plan that was written down.
    #[arg(long, value_name = "FILE", group = "source")]
    plan: Option<PathBuf>,
    /// Play with this seeded bug.
    #[arg(long, value_name = "ID")]
    pub(super) mutant: Option<String>,
}

impl What {
    pub(super) fn run(&self, timeline: bool) -> Run {
        let source = match (&self.plan, self.seed) {
            (Some(plan), _) => Source::Plan(plan.clone()),
            // One of them is required.
            (None, seed) => Source::Seed(seed.unwrap_or_default()),
        };
        Run { source, mutant: self.mutant.clone(), timeline }
    }
}

/// Reads minutes, 0.5 too.
pub(super) fn minutes(text: &str) -> Result<Duration, String> {
    let minutes: f64 = text.parse().map_err(|_| "not a number".to_owned())?;
    if minutes > 0.0 && minutes <= MINUTES_MAX {
        Ok(Duration::from_secs_f64(minutes * 60.0))
    } else {
        Err(format!("more than 0 and at most {MINUTES_MAX}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn minutes_are_positive_and_bounded() {
        assert_eq!(minutes("0.5"), Ok(Duration::from_secs(30)));
        assert_eq!(minutes("12"), Ok(Duration::from_secs(720)));
        for wrong in ["0", "-1", "NaN", "inf", "1e9", "soon"] {
            assert!(minutes(wrong).is_err(), "{wrong}");
        }
    }
}
