//! The runtime that openraft runs on: tokio, with the groups' clocks in step.

use std::{
    hash::{DefaultHasher, Hash as _, Hasher as _},
    sync::LazyLock,
    time::Duration,
};

use openraft::{AsyncRuntime, Instant as _, OptionalSend, impls::TokioRuntime};

/// Time between two ticks of a group's clock: when its heartbeat is sent and silence is noticed. openraft would tick
/// every heartbeat x 13/64, and with many groups that is most of what idling costs. What many groups cost while nothing
/// happens and how soon a silent leader is noticed pull this in opposite directions. A group whose only member is this
/// node runs without a clock (see [`crate::host`]).
pub(super) const TICK: Duration = Duration::from_millis(300);
/// The groups of a node tick at so many different moments: those of a moment wake the process once, and what they send
/// leaves in one write; not all at once, so that a batch delays nobody.
const PHASES: u32 = 4;

type TokioInstant = <TokioRuntime as AsyncRuntime>::Instant;

/// What multiples are counted from: the same for all groups of the process.
static ORIGIN: LazyLock<TokioInstant> = LazyLock::new(TokioInstant::now);

/// Who waits no longer than this is no clock: openraft lets what a log has flushed pile up for a microsecond.
const NO_CLOCK: Duration = Duration::from_millis(1);

/// When a wait until `deadline` ends: the first moment of a phase that is not before it.
fn in_step(deadline: TokioInstant, now: TokioInstant, phase: u32) -> TokioInstant {
    let first = *ORIGIN + TICK / PHASES * (phase % PHASES);
    if deadline <= now + NO_CLOCK || deadline < first {
        return deadline;
    }
    let past = ((deadline - first).as_nanos() % TICK.as_nanos()) as u64;
    if past == 0 { deadline } else { deadline + (TICK - Duration::from_nanos(past)) }
}

/// Different for the clocks of different groups, the same for all ticks of one.
fn phase() -> u32 {
    let mut hasher = DefaultHasher::new();
    tokio::task::try_id().hash(&mut hasher);
    (hasher.finish() % u64::from(PHASES)) as u32
}

/// Tokio, whose [`AsyncRuntime::sleep_until`] ends every [`TICK`], in step with others. Of openraft a group's clock sleeps
/// until a moment, and whoever hands on what a log has flushed, for a microsecond; timeouts and pauses are tokio's.
#[derive(Debug)]
pub struct InStep(TokioRuntime);

impl AsyncRuntime for InStep {
    type JoinError = <TokioRuntime as AsyncRuntime>::JoinError;
    type JoinHandle<T: OptionalSend + 'static> = <TokioRuntime as AsyncRuntime>::JoinHandle<T>;
    type Sleep = <TokioRuntime as AsyncRuntime>::Sleep;
    type Instant = TokioInstant;
    type TimeoutError = <TokioRuntime as AsyncRuntime>::TimeoutError;
    type Timeout<R, T: Future<Output = R> + OptionalSend> = <TokioRuntime as AsyncRuntime>::Timeout<R, T>;
    type ThreadLocalRng = <TokioRuntime as AsyncRuntime>::ThreadLocalRng;
    type Mpsc = <TokioRuntime as AsyncRuntime>::Mpsc;
    type Watch = <TokioRuntime as AsyncRuntime>::Watch;
    type Oneshot = <TokioRuntime as AsyncRuntime>::Oneshot;
    type Mutex<T: OptionalSend + 'static> = <TokioRuntime as AsyncRuntime>::Mutex<T>;

    fn spawn<T>(future: T) -> Self::JoinHandle<T::Output>
    where
        T: Future + OptionalSend + 'static,
        T::Output: OptionalSend + 'static,
    {
        TokioRuntime::spawn(future)
    }

    fn sleep(duration: Duration) -> Self::Sleep {
        TokioRuntime::sleep(duration)
    }

    fn sleep_until(deadline: Self::Instant) -> Self::Sleep {
        TokioRuntime::sleep_until(in_step(deadline, TokioInstant::now(), phase()))
    }

    fn timeout<R, F: Future<Output = R> + OptionalSend>(duration: Duration, future: F) -> Self::Timeout<R, F> {
        TokioRuntime::timeout(duration, future)
    }

    fn timeout_at<R, F: Future<Output = R> + OptionalSend>(deadline: Self::Instant, future: F) -> Self::Timeout<R, F> {
        TokioRuntime::timeout_at(deadline, future)
    }

    fn is_panic(join_error: &Self::JoinError) -> bool {
        TokioRuntime::is_panic(join_error)
    }

    fn thread_rng() -> Self::ThreadLocalRng {
        TokioRuntime::thread_rng()
    }

    fn new(threads: usize) -> Self {
        Self(TokioRuntime::new(threads))
    }

    fn block_on<F: Future<Output = T>, T>(&mut self, future: F) -> T {
        self.0.block_on(future)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clock_is_woken_after_a_tick_at_most_and_with_others_of_its_phase() {
        for phase in 0..PHASES {
            let first = *ORIGIN + TICK / PHASES * phase;
            for micros in [0, 1, 74_999, 75_000, 150_001, 299_999, 300_000, 300_001, 3_000_000] {
                let (now, wanted) = (*ORIGIN + TICK, *ORIGIN + 2 * TICK + Duration::from_micros(micros));
                let woken = in_step(wanted, now, phase);
                assert!(woken >= wanted && woken < wanted + TICK, "{micros} us, phase {phase}");
                assert_eq!((woken - first).as_nanos() % TICK.as_nanos(), 0, "{micros} us, phase {phase}");
            }
        }
    }

    #[test]
    fn who_waits_for_a_moment_is_no_clock() {
        let now = *ORIGIN + 2 * TICK + Duration::from_micros(17);
        for wait in [Duration::ZERO, Duration::from_micros(1), NO_CLOCK] {
            assert_eq!(in_step(now + wait, now, 1), now + wait, "{wait:?}");
        }
    }
}
