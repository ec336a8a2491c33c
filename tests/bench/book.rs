//! The book's hot path and tokens: `cargo bench --bench book`.

#![allow(missing_docs)] // criterion's macros make public functions

use std::{
    hint::black_box,
    time::{Duration, Instant},
};

use andante::campaign::{
    book::Book,
    limits::{ALLOWANCE_TOKENS_MAX, HOLD_DEFAULT_MS, MICROS_MAX, MIN_STREAM_DEFAULT_MS},
    proto::{Command, Create, Grant, GrantStatus, Holder, Kind, Outcome, OutcomeStatus, Settle, Spec, Tick, command},
    token::{TokenFields, TokenKeys, campaign_key},
};
use criterion::{Criterion, Throughput, criterion_group, criterion_main};

/// Outcomes of one command: what a busy shard gathers in one log entry.
const BATCH: u32 = 64;

/// A book whose campaigns always have tokens outstanding.
struct Bench {
    book: Book,
    keys: Vec<u64>,
    number: u32,
    sequence: u32,
}

impl Bench {
    fn new(campaigns: usize) -> Self {
        let mut book = Book::new();
        let keys = (0..campaigns).map(|i| create(&mut book, format!("campaign-{i}"))).collect();
        let mut bench = Self { book, keys, number: 0, sequence: 0 };
        bench.grant();
        bench
    }

    fn grant(&mut self) {
        self.number += 1;
        self.sequence = 0;
        for (i, campaign) in self.keys.iter().enumerate() {
            let grant = Grant {
                campaign: *campaign,
                incarnation: i as u32 + 1,
                number: self.number,
                n: ALLOWANCE_TOKENS_MAX,
                holder: Some(Holder::default()),
                issue_until_ms: 1_000_000,
            };
            let tick = Tick { now_ms: 1, grants: vec![grant], ..Tick::default() };
            let reply = self.book.apply(&Command { kind: Some(command::Kind::Tick(tick)) });
            assert_eq!(reply.grants[0].status(), GrantStatus::Granted);
        }
    }

    /// The next outcomes, each of another campaign as far as there are enough.
    fn next(&mut self) -> Command {
        let rounds = BATCH.div_ceil(self.keys.len() as u32);
        if self.sequence + rounds > ALLOWANCE_TOKENS_MAX {
            self.grant();
        }
        let outcomes = (0..BATCH).map(|i| {
            let at = if rounds > 1 { i as usize % self.keys.len() } else { self.scattered(i) };
            Outcome {
                campaign: self.keys[at],
                incarnation: at as u32 + 1,
                number: self.number,
                sequence: self.sequence + i / self.keys.len() as u32,
                kind: Kind::Stream as i32,
                stream_ms: MIN_STREAM_DEFAULT_MS,
            }
        });
        let command = Command { kind: Some(command::Kind::Settle(Settle { outcomes: outcomes.collect() })) };
        self.sequence += rounds;
        command
    }

    /// Campaigns far apart in memory, without a pattern that the processor could foresee.
    fn scattered(&self, i: u32) -> usize {
        let mixed = u64::from(self.sequence * BATCH + i).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        (mixed >> 32) as usize % self.keys.len()
    }
}

fn create(book: &mut Book, name: String) -> u64 {
    let key = campaign_key(&name);
    let spec = Spec {
        name,
        end_ms: 10_000_000,
        budget_micros: MICROS_MAX,
        price_micros: 1,
        billable: Kind::Stream as i32,
        min_stream_ms: MIN_STREAM_DEFAULT_MS,
        hold_ms: HOLD_DEFAULT_MS,
        ..Spec::default()
    };
    book.apply(&Command { kind: Some(command::Kind::Create(Create { spec: Some(spec), ..Create::default() })) });
    key
}

fn settle(c: &mut Criterion) {
    let mut group = c.benchmark_group("book/settle");
    group.throughput(Throughput::Elements(BATCH.into()));
    for campaigns in [1, 10_000] {
        let mut bench = Bench::new(campaigns);
        // Only applying is timed: the next command depends on the book.
        group.bench_function(format!("{campaigns}_campaigns"), |b| {
            b.iter_custom(|iterations| {
                let mut spent = Duration::ZERO;
                for _ in 0..iterations {
                    let command = bench.next();
                    let start = Instant::now();
                    let reply = bench.book.apply(&command);
                    spent += start.elapsed();
                    assert!(reply.outcomes.contains(&(OutcomeStatus::Billed as i32)));
                }
                spent
            });
        });
        bench.book.check().expect("a book");
    }
    group.finish();
}

fn token(c: &mut Criterion) {
    let keys = TokenKeys::new(1, vec![(1, [7; 32])], 1).expect("one key");
    let fields = TokenFields {
        campaign: campaign_key("campaign"),
        incarnation: 1,
        number: 1,
        sequence: 1,
        listener: 1,
        surface: 1,
        expiry_ms: 1,
    };
    let token = keys.mint(&fields);
    c.bench_function("token/mint", |b| b.iter(|| keys.mint(black_box(&fields))));
    c.bench_function("token/open", |b| b.iter(|| keys.open(black_box(&token)).is_ok()));
}

criterion_group!(benches, settle, token);
criterion_main!(benches);
