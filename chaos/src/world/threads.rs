//! Work that blocks, without threads.

use std::{io, sync::Arc, time::Duration};

use andante_cluster::env::Blocking;
use parking_lot::Mutex;

use crate::dice::Dice;

/// How long work that blocks takes on a host: mostly its disk's doing. Faults make it slower.
#[derive(Debug, Default)]
pub struct Pace(Mutex<(Duration, Duration)>);

impl Pace {
    /// From now on each piece of work takes a time within these bounds.
    pub fn set(&self, min: Duration, max: Duration) {
        *self.0.lock() = (min, max);
    }

    fn draw(&self, dice: &Dice) -> Duration {
        let (min, max) = *self.0.lock();
        if max.is_zero() {
            return Duration::ZERO;
        }
        Duration::from_micros(dice.within(min.as_micros() as u64..=max.as_micros() as u64))
    }
}

/// Runs work that blocks as a task, at the end of the time that it takes.
pub struct Tasks {
    /// Of the host.
    pub pace: Arc<Pace>,
    /// Draws the times.
    pub dice: Arc<Dice>,
}

impl Blocking for Tasks {
    /// Only the real stores have workers of their own.
    fn spawn(&self, name: String, _work: Box<dyn FnOnce() + Send>) -> io::Result<()> {
        Err(io::Error::new(io::ErrorKind::Unsupported, format!("no thread for {name} in the simulation")))
    }

    fn run(&self, work: Box<dyn FnOnce() + Send>) {
        let takes = self.pace.draw(&self.dice);
        tokio::spawn(async move {
            if !takes.is_zero() {
                tokio::time::sleep(takes).await;
            }
            work();
        });
    }
}
