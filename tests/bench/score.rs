//! The score path without the network: `cargo bench --bench score`.

#![allow(missing_docs)] // criterion's macros make public functions

use std::{
    hint::black_box,
    sync::{Arc, Mutex, atomic::AtomicBool, atomic::Ordering},
    thread,
    time::Instant,
};

use andante::{
    actor::{Ask, Cell, block::Block, cell::TouchList, track_key},
    campaign::{
        book::Book,
        limits::{ALLOWANCE_TOKENS_MAX, HOLD_DEFAULT_MS, MICROS_MAX, MIN_STREAM_DEFAULT_MS},
        merge::{Offer, Selection, best_per_candidate},
        proto::{Command, Create, Grant, Holder, Kind, Spec, Tick, command},
        score::Weights,
        token::campaign_key,
    },
};
use andante_cluster::ids::ShardId;
use criterion::{Criterion, criterion_group, criterion_main};

/// Candidates of a request, and campaigns that offer for each.
const CANDIDATES: u32 = 50;
const OFFERS_PER_CANDIDATE: u64 = 3;

/// Tracks of a campaign.
const TRACKS: usize = 20;

const WEIGHTS: Weights =
    Weights { mu: 1.2, value_scale: 250.0, price_scale: 1e-3, boost_cap: 1.0, relevance_floor: 1e-4 };

const ASK: Ask = Ask { now_ms: 2, monotonic_ms: 2, listener: 7, surface: 0, market: *b"DE", placing: true };

/// A book with one campaign and an allowance for holder (1, 1, 1).
fn book() -> (Book, u64) {
    let mut book = Book::new();
    let spec = Spec {
        name: "bench".into(),
        tracks: (0..TRACKS).map(|i| format!("track-{i:03}")).collect(),
        markets: ["AT", "CH", "DE", "FR"].map(String::from).into(),
        end_ms: 100_000_000,
        budget_micros: MICROS_MAX,
        price_micros: 1_000,
        billable: Kind::Stream as i32,
        min_stream_ms: MIN_STREAM_DEFAULT_MS,
        hold_ms: HOLD_DEFAULT_MS,
        boost_cap: 1.0,
        expected_billable_share: 0.5,
        ..Spec::default()
    };
    book.apply(&Command { kind: Some(command::Kind::Create(Create { spec: Some(spec), ..Create::default() })) });
    (book, campaign_key("bench"))
}

/// The next allowance.
fn grant(book: &mut Book, campaign: u64) -> Block {
    let state = book.campaign(campaign).expect("it was created");
    let number = state.next_allowance;
    let grant = Grant {
        campaign,
        incarnation: state.incarnation,
        number,
        n: ALLOWANCE_TOKENS_MAX,
        holder: Some(Holder { node_id: 1, boot_id: 1, cell_epoch: 1 }),
        issue_until_ms: 3_600_000,
    };
    let tick = Tick { now_ms: 1, grants: vec![grant], ..Tick::default() };
    book.apply(&Command { kind: Some(command::Kind::Tick(tick)) });
    Block::new(&book.campaign(campaign).expect("it is there").open[&number])
}

fn cell(book: &mut Book, campaign: u64) -> Cell {
    let block = grant(book, campaign);
    let state = book.campaign(campaign).expect("it was created");
    let cell = Cell::new(ShardId(1), state, WEIGHTS, 100, Arc::new(TouchList::default()));
    cell.begin(1);
    cell.install(block);
    cell
}

fn evaluate(c: &mut Criterion) {
    let mut relevance = 0.0;
    c.bench_function("score/weights", |b| {
        b.iter(|| {
            relevance = if relevance > 0.01 { 0.0 } else { relevance + 1e-5 };
            black_box(&WEIGHTS).evaluate(black_box(relevance), black_box(1_000))
        });
    });
}

fn offer(c: &mut Criterion) {
    let (mut book, campaign) = book();
    let cell = cell(&mut book, campaign);
    let tracks: Vec<u64> = (0..TRACKS).map(|i| track_key(&format!("track-{i:03}"))).collect();
    let mut i = 0;
    c.bench_function("score/cell", |b| {
        b.iter(|| {
            i += 1;
            cell.offer(black_box(&ASK), tracks[i % TRACKS], 0.001 * (1 + i % 9) as f64)
        });
    });
}

fn merge(c: &mut Criterion) {
    let offers: Vec<Offer> = (0..CANDIDATES)
        .flat_map(|candidate| (0..OFFERS_PER_CANDIDATE).map(move |campaign| (candidate, campaign)))
        .map(|(candidate, campaign)| {
            let mixed = (u64::from(candidate) * 31 + campaign).wrapping_mul(0x9e37_79b9_7f4a_7c15);
            Offer { candidate, campaign, score: (mixed >> 11) as f64 / (1u64 << 53) as f64 }
        })
        .collect();
    c.bench_function("score/merge_50_candidates", |b| {
        b.iter(|| {
            let best = best_per_candidate(CANDIDATES as usize, black_box(&offers));
            let mut selection = Selection::new(CANDIDATES as usize, offers.clone(), 3);
            let winners = selection.winners();
            // One take is refused.
            selection.refuse(&winners[0]);
            (best, winners, selection.winners())
        });
    });
}

/// Takes from one cell, alone and while another thread does the same. Its allowance is replaced when it is used up.
fn take(c: &mut Criterion) {
    let (mut first, campaign) = book();
    let cell = cell(&mut first, campaign);
    let replacing = Mutex::new(());
    let take = || {
        if cell.take(&ASK).is_err() {
            let _one = replacing.lock().expect("nobody panics");
            if cell.block().is_none_or(|block| !block.has_left()) {
                cell.install(grant(&mut book().0, campaign));
            }
        }
    };
    c.bench_function("score/take", |b| b.iter(take));
    c.bench_function("score/take_contended", |b| {
        b.iter_custom(|iterations| {
            let stop = AtomicBool::new(false);
            thread::scope(|scope| {
                scope.spawn(|| {
                    while !stop.load(Ordering::Relaxed) {
                        take();
                    }
                });
                let start = Instant::now();
                for _ in 0..iterations {
                    take();
                }
                let spent = start.elapsed();
                stop.store(true, Ordering::Relaxed);
                spent
            })
        });
    });
}

criterion_group!(benches, evaluate, offer, merge, take);
criterion_main!(benches);
