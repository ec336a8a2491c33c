//! The runtime that openraft runs on: tokio, with the groups' clocks in step.

use std::{sync::LazyLock, time::Duration};

use openraft::{AsyncRuntime, Instant as _, OptionalSend, impls::TokioRuntime};

/// Clocks tick at multiples of this. Every group has a clock of its own; left to themselves, those of 64 groups wake
/// the process 1,800 times a second for one small thing each. Like this it wakes a hundred times and does what is due,
/// and what falls due together leaves in one write. Small enough that a batch of ticks delays nobody, and against the
/// time between two ticks (about 35 ms) of no account.
const STEP: Duration = Duration::from_millis(10);

type TokioInstant = <TokioRuntime as AsyncRuntime>::Instant;

/// What multiples are counted from: the same for all groups of the process.
static ORIGIN: LazyLock<TokioInstant> = LazyLock::new(TokioInstant::now);

/// The first moment of the common steps that is not before `deadline`.
fn in_step(deadline: TokioInstant) -> TokioInstant {
    let past = (deadline - *ORIGIN).as_nanos() % STEP.as_nanos();
    if past == 0 { deadline } else { deadline + (STEP - Duration::from_nanos(past as u64)) }
}

/// Tokio, whose [`AsyncRuntime::sleep_until`] ends in common steps of 10 ms. Of openraft only a group's clock (and a
/// caller's own waits for metrics) sleeps until a moment; timeouts and pauses are as exact as tokio's.
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
        TokioRuntime::sleep_until(in_step(deadline))
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
    fn whoever_waits_is_woken_on_time_in_common_steps() {
        let start = *ORIGIN + 3 * STEP;
        for micros in [0, 1, 4_999, 5_000, 9_999, 10_000, 10_001] {
            let wanted = start + Duration::from_micros(micros);
            let woken = in_step(wanted);
            assert!(woken >= wanted && woken - wanted < STEP, "{micros} us");
            assert_eq!((woken - *ORIGIN).as_nanos() % STEP.as_nanos(), 0, "{micros} us");
        }
    }
}
