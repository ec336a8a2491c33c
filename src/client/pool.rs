//! The nodes' addresses and what is known about each: who gets the next call.
//!
//! Health is learned from the calls themselves, and from the nodes' health service where there is more than one address:
//! a node that says it drains gets no new calls, one that fails is set aside, with backoff, until it answers again. Of
//! the healthy ones two are drawn, and the one with less to do is taken (power of two choices; load is the recent
//! latency times the calls in flight).

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering},
    },
    time::Duration,
};

use andante_cluster::env::{Clock, Rng};
use parking_lot::Mutex;

use super::{
    channel::Service,
    retry::{self, Failure},
};

/// How fast old latencies are forgotten.
const LATENCY_MEMORY: Duration = Duration::from_secs(5);
/// Calls in a row without an answer after which a node that still takes connections is set aside.
const SILENT_CALLS_MAX: u32 = 3;
/// The first wait of a node that is set aside is this many doublings long already (40 ms).
const ASIDE_DOUBLINGS: u32 = 3;

/// One node's address.
pub(super) struct Endpoint {
    pub(super) url: String,
    pub(super) service: Service,
    clock: Arc<dyn Clock>,
    rng: Arc<dyn Rng>,
    in_flight: AtomicU32,
    latency: Mutex<Latency>,
    /// It said that it will stop.
    draining: AtomicBool,
    /// Failures in a row.
    failures: AtomicU32,
    /// Calls in a row that were never answered.
    silent: AtomicU32,
    /// Set aside until then, in microseconds of the clock; 0: not.
    aside_until: AtomicU64,
}

#[derive(Default)]
struct Latency {
    micros: f64,
    at_micros: u64,
}

/// A call in flight.
pub(super) struct InFlight<'a> {
    endpoint: &'a Endpoint,
    begun_micros: u64,
}

impl Drop for InFlight<'_> {
    fn drop(&mut self) {
        self.endpoint.in_flight.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Endpoint {
    pub(super) fn new(url: String, service: Service, clock: Arc<dyn Clock>, rng: Arc<dyn Rng>) -> Self {
        Self {
            url,
            service,
            clock,
            rng,
            in_flight: AtomicU32::new(0),
            latency: Mutex::default(),
            draining: AtomicBool::new(false),
            failures: AtomicU32::new(0),
            silent: AtomicU32::new(0),
            aside_until: AtomicU64::new(0),
        }
    }

    /// Counts a call until the result is dropped.
    pub(super) fn begin(&self) -> InFlight<'_> {
        self.in_flight.fetch_add(1, Ordering::Relaxed);
        InFlight { endpoint: self, begun_micros: self.clock.monotonic_micros() }
    }

    /// It is there and takes calls.
    pub(super) fn serves(&self) {
        self.draining.store(false, Ordering::Relaxed);
        self.answers();
    }

    /// It is there; whether it takes calls is another matter.
    fn answers(&self) {
        self.failures.store(0, Ordering::Relaxed);
        self.silent.store(0, Ordering::Relaxed);
        self.aside_until.store(0, Ordering::Relaxed);
    }

    /// It will stop: no new calls until it says otherwise.
    pub(super) fn drains(&self) {
        self.draining.store(true, Ordering::Relaxed);
    }

    /// It can't be reached: sets it aside. Calls that fail together count once.
    pub(super) fn fails(&self) {
        let now = self.clock.monotonic_micros();
        if self.aside_until.load(Ordering::Relaxed) > now {
            return;
        }
        let wait = self.next_look();
        self.failures.fetch_add(1, Ordering::Relaxed);
        self.aside_until.store(now + wait.as_micros() as u64, Ordering::Relaxed);
    }

    /// How long to leave it alone.
    pub(super) fn next_look(&self) -> Duration {
        let failures = self.failures.load(Ordering::Relaxed);
        retry::backoff(failures.saturating_add(ASIDE_DOUBLINGS), self.rng.u64())
    }

    /// Lower is better.
    fn load(&self, now_micros: u64) -> f64 {
        let latency = self.latency.lock();
        // At least a microsecond: who never answered a call yet must still show what is in flight.
        (latency.now(now_micros).max(1.0)) * f64::from(self.in_flight.load(Ordering::Relaxed) + 1)
    }

    fn standing(&self, now_micros: u64) -> Standing {
        if self.draining.load(Ordering::Relaxed) {
            Standing::Draining
        } else if self.aside_until.load(Ordering::Relaxed) > now_micros {
            Standing::Aside
        } else {
            Standing::Ready
        }
    }
}

impl Latency {
    fn weight(&self, now_micros: u64) -> f64 {
        let age = now_micros.saturating_sub(self.at_micros) as f64;
        (-age / LATENCY_MEMORY.as_micros() as f64).exp()
    }

    fn now(&self, now_micros: u64) -> f64 {
        self.micros * self.weight(now_micros)
    }

    /// Slow answers count at once, fast ones little by little.
    fn add(&mut self, micros: f64, now_micros: u64) {
        let before = self.now(now_micros);
        self.micros = if micros > before { micros } else { before + (micros - before) * 0.1 };
        self.at_micros = now_micros;
    }
}

impl InFlight<'_> {
    /// What became of the call.
    pub(super) fn done(self, failure: Option<Failure>, silent: bool) {
        let endpoint = self.endpoint;
        let now = endpoint.clock.monotonic_micros();
        if failure.is_none() || silent {
            endpoint.latency.lock().add(now.saturating_sub(self.begun_micros) as f64, now);
        }
        match failure {
            Some(Failure::Lost(_)) if silent => {
                if endpoint.silent.fetch_add(1, Ordering::Relaxed) + 1 >= SILENT_CALLS_MAX {
                    endpoint.fails();
                }
            }
            Some(Failure::NotSent | Failure::Away | Failure::Lost(None)) => endpoint.fails(),
            None | Some(Failure::Busy(_) | Failure::Lost(Some(_)) | Failure::Final) => endpoint.answers(),
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Standing {
    Ready,
    Aside,
    Draining,
}

/// All addresses.
pub(super) struct Pool {
    pub(super) endpoints: Vec<Arc<Endpoint>>,
    pub(super) clock: Arc<dyn Clock>,
    pub(super) rng: Arc<dyn Rng>,
}

/// Addresses that a call has tried already.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Tried(u64);

impl Pool {
    /// Who gets the next try: nobody twice before each was tried.
    pub(super) fn pick(&self, tried: &mut Tried) -> &Arc<Endpoint> {
        let now = self.clock.monotonic_micros();
        let all = (0..self.endpoints.len()).fold(0u64, |all, i| all | 1 << i);
        if tried.0 & all == all {
            tried.0 = 0;
        }
        let standing = |i: usize| self.endpoints[i].standing(now);
        let left = || (0..self.endpoints.len()).filter(|i| tried.0 & (1 << i) == 0);
        let best = left().map(standing).min().unwrap_or(Standing::Draining);
        let choice: Vec<usize> = left().filter(|i| standing(*i) == best).collect();
        let picked = match (choice.as_slice(), best) {
            ([], _) => 0,
            ([only], _) => *only,
            // The one that may be tried soonest.
            (several, Standing::Aside) => several
                .iter()
                .copied()
                .min_by_key(|i| self.endpoints[*i].aside_until.load(Ordering::Relaxed))
                .unwrap_or(several[0]),
            (several, _) => {
                let (first, second) = two_of(several.len(), self.rng.u64());
                let (first, second) = (several[first], several[second]);
                if self.endpoints[second].load(now) < self.endpoints[first].load(now) { second } else { first }
            }
        };
        tried.0 |= 1 << picked;
        &self.endpoints[picked]
    }

    /// Whether one that this call has not tried yet can be tried at once.
    pub(super) fn has_another(&self, tried: Tried) -> bool {
        let now = self.clock.monotonic_micros();
        let mut left = self.endpoints.iter().enumerate().filter(|(i, _)| tried.0 & (1 << i) == 0);
        left.any(|(_, endpoint)| endpoint.standing(now) == Standing::Ready)
    }

    /// All addresses, as people know them.
    pub(super) fn urls(&self) -> String {
        self.endpoints.iter().map(|e| e.url.as_str()).collect::<Vec<_>>().join(", ")
    }
}

impl Tried {
    /// How many.
    pub(super) fn count(self) -> usize {
        self.0.count_ones() as usize
    }
}

/// Two different positions below `count` (at least 2), by chance.
fn two_of(count: usize, random: u64) -> (usize, usize) {
    let (count, high, low) = (count as u64, random >> 32, random & u64::from(u32::MAX));
    let first = high % count;
    let second = (first + 1 + low % (count - 1)) % count;
    (first as usize, second as usize)
}

#[cfg(test)]
mod tests {
    use andante_cluster::env::{Env, SystemRng};
    use tonic::transport::Channel;

    use super::*;
    use crate::client::channel::Bearer;

    /// Time that stands still until it is told otherwise.
    #[derive(Default)]
    struct Still(AtomicU64);

    impl Clock for Still {
        fn now_ms(&self) -> u64 {
            self.0.load(Ordering::Relaxed) / 1_000
        }

        fn monotonic_micros(&self) -> u64 {
            self.0.load(Ordering::Relaxed)
        }
    }

    fn pool(count: usize) -> (Pool, Arc<Still>) {
        let still = Arc::new(Still::default());
        let (clock, rng): (Arc<dyn Clock>, Arc<dyn Rng>) = (still.clone(), Arc::new(SystemRng));
        let channel: Channel = super::super::channel::open(
            &Env::production().network,
            &super::super::config::Address { host: "127.0.0.1".into(), port: 1, tls: false },
            None,
        )
        .unwrap();
        let endpoint = |i| {
            let service = Service::new(channel.clone(), Bearer(None));
            Arc::new(Endpoint::new(format!("node-{i}"), service, clock.clone(), rng.clone()))
        };
        (Pool { endpoints: (0..count).map(endpoint).collect(), clock: clock.clone(), rng: rng.clone() }, still)
    }

    fn picks(pool: &Pool) -> Vec<String> {
        let mut seen: Vec<_> = (0..200).map(|_| pool.pick(&mut Tried::default()).url.clone()).collect();
        seen.sort();
        seen.dedup();
        seen
    }

    #[tokio::test]
    async fn every_healthy_node_gets_calls_and_a_draining_one_none() {
        let (pool, _) = pool(3);
        assert_eq!(picks(&pool), ["node-0", "node-1", "node-2"]);
        pool.endpoints[1].drains();
        assert_eq!(picks(&pool), ["node-0", "node-2"]);
        pool.endpoints[1].serves();
        assert_eq!(picks(&pool).len(), 3);
    }

    #[tokio::test]
    async fn a_failed_node_is_set_aside_longer_and_longer_and_comes_back() {
        let (pool, clock) = pool(2);
        let mut before = 0;
        for _ in 0..3 {
            let now = clock.monotonic_micros();
            pool.endpoints[0].fails();
            pool.endpoints[0].fails();
            let until = pool.endpoints[0].aside_until.load(Ordering::Relaxed);
            assert!(until - now >= before, "{until} {before}");
            before = until - now;
            assert_eq!(picks(&pool), ["node-1"]);
            clock.0.store(until, Ordering::Relaxed);
            assert_eq!(picks(&pool), ["node-0", "node-1"]);
        }
        pool.endpoints[0].fails();
        pool.endpoints[0].serves();
        assert_eq!(picks(&pool).len(), 2, "its health knows better than the backoff");
    }

    #[tokio::test]
    async fn with_nobody_healthy_left_the_one_that_failed_first_is_tried() {
        let (pool, clock) = pool(3);
        pool.endpoints[2].drains();
        pool.endpoints[1].fails();
        clock.0.fetch_add(10_000, Ordering::Relaxed);
        pool.endpoints[0].fails();
        let mut tried = Tried::default();
        let order: Vec<_> = (0..4).map(|_| pool.pick(&mut tried).url.clone()).collect();
        assert_eq!(order[2], "node-2", "who drains comes last: {order:?}");
        assert_eq!(order.iter().take(3).collect::<std::collections::BTreeSet<_>>().len(), 3, "{order:?}");
        assert_ne!(order[3], "node-2", "then it starts again: {order:?}");
        assert!(!pool.has_another(Tried::default()));
    }

    #[tokio::test]
    async fn a_slow_or_busy_node_gets_less() {
        let (pool, clock) = pool(2);
        let call = pool.endpoints[0].begin();
        clock.0.fetch_add(50_000, Ordering::Relaxed);
        call.done(None, false);
        assert_eq!(picks(&pool), ["node-1"], "50 ms are more than nothing");
        clock.0.fetch_add(120_000_000, Ordering::Relaxed);
        assert_eq!(picks(&pool).len(), 2, "but they are forgotten");
        let _busy: Vec<_> = (0..3).map(|_| pool.endpoints[1].begin()).collect();
        assert_eq!(picks(&pool), ["node-0"]);
    }

    #[tokio::test]
    async fn a_node_that_answers_nothing_is_set_aside_after_some_calls() {
        let (pool, _) = pool(2);
        for calls in 1..=SILENT_CALLS_MAX {
            assert_eq!(pool.endpoints[0].standing(0), Standing::Ready, "before call {calls}");
            pool.endpoints[0].begin().done(Some(Failure::Lost(None)), true);
        }
        assert_eq!(pool.endpoints[0].standing(0), Standing::Aside);
    }

    #[test]
    fn two_different_ones_are_drawn_and_each_can_be() {
        let mut seen = std::collections::BTreeSet::new();
        for random in (0..10_000u64).map(|i| i.wrapping_mul(0x9e37_79b9_7f4a_7c15)) {
            let (first, second) = two_of(3, random);
            assert!(first != second && first < 3 && second < 3);
            seen.insert((first, second));
        }
        assert_eq!(seen.len(), 6);
    }
}
