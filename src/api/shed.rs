//! Sheds load when requests wait too long before anybody looks at them.
//!
//! A score is computed in one go, so a count of those in flight stays low however many wait in the runtime's queue. So
//! the queue itself is probed: a task that wants to run at a certain time, and looks how late it does. Once that was
//! too late for a while without a break, new requests are refused at once: an answer after the caller's deadline helps
//! nobody and delays all others. The first probe in time ends it.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use tokio::time::{Duration, Instant, sleep_until};

use crate::{metrics::Metrics, settings::Settings};

/// Probes come this often: next to nothing for an idle node.
const PROBE_EVERY: Duration = Duration::from_millis(20);
/// A delay for so long is load; a shorter one is a hiccup that passes by itself.
const LASTING: Duration = Duration::from_millis(500);
/// Of the default deadline of Score, this part may be spent waiting.
const PATIENCE_PART: u32 = 2;

/// Whether new requests are refused.
#[derive(Debug, Default)]
pub(crate) struct Shedding(AtomicBool);

impl Shedding {
    /// Whether it is so.
    pub(crate) fn on(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }

    /// Probes for ever.
    pub(crate) async fn probe(self: Arc<Self>, settings: Settings, metrics: Arc<Metrics>) {
        let mut delay = Delay::new(Duration::from_millis(settings.score_deadline_ms) / PATIENCE_PART);
        loop {
            let planned = Instant::now() + PROBE_EVERY;
            sleep_until(planned).await;
            let now = Instant::now();
            let late = now.saturating_duration_since(planned);
            metrics.queue.observe_micros(late.as_micros() as u64);
            let on = delay.observe(now, late);
            if self.0.swap(on, Ordering::Relaxed) != on {
                if on {
                    tracing::warn!(
                        ?late,
                        "too much to do: new requests are refused until those that wait are answered"
                    );
                } else {
                    tracing::info!("requests are taken again");
                }
            }
        }
    }
}

/// Judges delays.
#[derive(Debug)]
struct Delay {
    patience: Duration,
    /// Since when every probe was too late.
    since: Option<Instant>,
}

impl Delay {
    fn new(patience: Duration) -> Self {
        Self { patience, since: None }
    }

    /// A probe came late by so much; whether to shed load from now on.
    fn observe(&mut self, now: Instant, late: Duration) -> bool {
        if late <= self.patience {
            self.since = None;
            return false;
        }
        now.duration_since(*self.since.get_or_insert(now)) >= LASTING
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_delay_that_lasts_is_load_and_one_probe_in_time_ends_it() {
        let start = Instant::now();
        let ms = Duration::from_millis;
        let mut delay = Delay::new(ms(100));
        for (at_ms, late_ms, shed) in [
            (0, 1, false),
            (200, 150, false),
            (600, 101, false),
            (699, 150, false),
            (700, 150, true),
            (900, 300, true),
            (920, 100, false),
            (1_000, 150, false),
            (1_400, 99, false),
            (1_600, 150, false),
        ] {
            assert_eq!(delay.observe(start + ms(at_ms), ms(late_ms)), shed, "at {at_ms}");
        }
    }
}
