//! Arbitrary commands. Small domains, so that they meet: few names, holders, request ids; numbers and sequences near
//! those that exist; times near those that matter. What depends on the state is resolved when the command is made.

use andante::campaign::{
    proto::{
        Checkpoint, CloseExpired, Command, Control, Create, Delete, Grant, Holder, Kind, Outcome, SetShardTime,
        SetState, Settle, Shrink, Spec, Tick, Update, command,
    },
    token::campaign_key,
};
use proptest::prelude::*;

use crate::model::{Campaign, Model};

pub(crate) const NAMES: [&str; 3] = ["a", "b", "c"];
const MICROS_MAX: u64 = (1 << 53) - 1;
/// Budgets in deliveries, and beside them the extremes.
const PRICES: [u64; 5] = [1, 7, 1_000, MICROS_MAX / 3, MICROS_MAX];
const STEPS_MS: [i64; 9] = [0, 0, 1, 900, 5_000, 30_000, 400_000, 4_000_000, -100_000];

#[derive(Debug, Clone)]
pub(crate) enum Op {
    Create {
        name: usize,
        request: u8,
        money: Money,
        billable: bool,
        flight: u64,
        odd: u8,
    },
    Update {
        name: usize,
        request: u8,
        money: Money,
        revision: u8,
        odd: u8,
    },
    SetState {
        name: usize,
        request: u8,
        state: i32,
        revision: u8,
    },
    Delete {
        name: usize,
        request: u8,
        revision: u8,
    },
    Tick {
        step: usize,
        shrinks: Vec<Ref>,
        grants: Vec<Ref>,
        checkpoints: Vec<Ref>,
    },
    Settle {
        outcomes: Vec<(Ref, i32, u64)>,
    },
    /// At a time to come, or exactly when something is due, or just before.
    Close {
        step: usize,
        aim: Option<(usize, u64)>,
        margin: u64,
        retry: u64,
        purge: u64,
    },
    SetTime {
        step: usize,
    },
    /// An earlier command once more: a retry, a duplicate, a late arrival.
    Again {
        back: usize,
    },
    Nothing,
}

/// Price and budget.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Money {
    price: usize,
    deliveries: u64,
    rest: u64,
    /// Of an update: aim at what is used, and miss it by 0 or 1.
    near_used: Option<bool>,
}

/// Something near an allowance or token that exists.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Ref {
    name: usize,
    /// Counted back from the latest one; -1: one never granted.
    back: i32,
    sequence: u32,
    stale: bool,
    holder: u64,
    n: u32,
    life: u64,
}

fn money() -> impl Strategy<Value = Money> {
    let near_used = prop_oneof![3 => Just(None), 1 => Just(Some(true)), 1 => Just(Some(false))];
    let deliveries = prop_oneof![Just(1), 1..12u64, Just(1_000), Just(u64::MAX)];
    (0..PRICES.len(), deliveries, 0..3u64, near_used).prop_map(|(price, deliveries, rest, near_used)| Money {
        price,
        deliveries,
        rest,
        near_used,
    })
}

fn reference() -> impl Strategy<Value = Ref> {
    let n = prop_oneof![1 => Just(0), 8 => 1..6u32, 2 => Just(100), 1 => Just(u32::MAX)];
    let sequence = prop_oneof![8 => 0..6u32, 1 => Just(99), 1 => Just(u32::MAX)];
    let back = prop_oneof![6 => Just(0), 4 => 1..5i32, 1 => Just(-1)];
    let life = prop_oneof![6 => Just(5_000), 2 => Just(60_000), 1 => Just(u64::MAX), 1 => Just(0)];
    (0..NAMES.len(), back, sequence, prop::bool::weighted(0.05), 0..4u64, n, life)
        .prop_map(|(name, back, sequence, stale, holder, n, life)| Ref { name, back, sequence, stale, holder, n, life })
}

fn op() -> impl Strategy<Value = Op> {
    let name = 0..NAMES.len();
    let step = 0..STEPS_MS.len();
    let odd = prop_oneof![9 => Just(0u8), 1 => 1..8u8];
    let flight = prop_oneof![Just(50_000), Just(3_000_000), Just(100_000_000)];
    let list = |max| prop::collection::vec(reference(), 0..max);
    let kind = prop_oneof![6 => Just(2), 2 => Just(1), 2 => Just(6), 3 => 0..8i32];
    let stream = prop_oneof![3 => Just(30_000), 1 => Just(29_999)];
    prop_oneof![
        3 => (name.clone(), 0..4u8, money(), any::<bool>(), flight, odd.clone()).prop_map(
            |(name, request, money, billable, flight, odd)| Op::Create { name, request, money, billable, flight, odd }),
        3 => (name.clone(), 0..20u8, money(), 0..7u8, odd)
            .prop_map(|(name, request, money, revision, odd)| Op::Update { name, request, money, revision, odd }),
        1 => (name.clone(), 0..3u8, 0..7u8).prop_map(|(name, request, revision)| Op::Delete { name, request, revision }),
        3 => (name, 0..20u8, prop_oneof![3 => Just(1), 1 => 0..6i32], 0..7u8)
            .prop_map(|(name, request, state, revision)| Op::SetState { name, request, state, revision }),
        8 => (step.clone(), list(3), list(4), list(2))
            .prop_map(|(step, shrinks, grants, checkpoints)| Op::Tick { step, shrinks, grants, checkpoints }),
        10 => prop::collection::vec((reference(), kind, stream), 0..8).prop_map(|outcomes| Op::Settle { outcomes }),
        4 => (step.clone(), prop::option::of((0..4usize, 0..2u64)), prop_oneof![Just(0), Just(5_000)],
              prop_oneof![Just(0), Just(600_000)], prop_oneof![1 => Just(1_000), 2 => Just(7_776_000_000)])
            .prop_map(|(step, aim, margin, retry, purge)| Op::Close { step, aim, margin, retry, purge }),
        1 => step.prop_map(|step| Op::SetTime { step }),
        4 => (0..12usize).prop_map(|back| Op::Again { back }),
        1 => Just(Op::Nothing),
    ]
}

/// A sequence that starts with something to work on.
pub(crate) fn ops(max: usize) -> impl Strategy<Value = Vec<Op>> {
    prop::collection::vec(op(), 1..max)
}

/// Makes commands of ops.
#[derive(Default)]
pub(crate) struct Maker {
    now: i64,
    made: Vec<Command>,
}

impl Maker {
    pub(crate) fn make(&mut self, op: &Op, model: &Model) -> Command {
        if self.now == 0 {
            self.now = 10_000_000;
        }
        let command = match op {
            Op::Again { back } => {
                let at = self.made.len().checked_sub(1 + back);
                at.map_or_else(Command::default, |at| self.made[at].clone())
            }
            op => Command { kind: self.kind(op, model) },
        };
        self.made.push(command.clone());
        command
    }

    fn step(&mut self, step: usize) -> u64 {
        self.now = (self.now + STEPS_MS[step]).max(0);
        self.now as u64
    }

    fn kind(&mut self, op: &Op, model: &Model) -> Option<command::Kind> {
        let now_ms = self.now as u64;
        Some(match op.clone() {
            Op::Create { name, request, money, billable, flight, odd } => {
                let (price_micros, budget_micros) = money.amounts(0);
                let mut spec = Spec {
                    name: NAMES[name].into(),
                    owner: "o".into(),
                    tracks: vec![format!("track-{name}")],
                    start_ms: now_ms,
                    end_ms: now_ms + flight,
                    budget_micros,
                    price_micros,
                    billable: if billable { Kind::Stream } else { Kind::Impression } as i32,
                    min_stream_ms: 30_000,
                    hold_ms: 10_000 << (flight % 4),
                    boost_cap: 1.0,
                    expected_billable_share: 0.5,
                    ..Spec::default()
                };
                make_odd(&mut spec, odd);
                let spec = (odd != 7).then_some(spec);
                command::Kind::Create(Create { request_id: request_id(request), spec, now_ms })
            }
            Op::Update { name, request, money, revision, odd } => {
                let campaign = model.campaigns.get(NAMES[name]);
                let used = campaign.map_or(0, |c| c.settled_micros() + c.open_micros());
                let (price_micros, budget_micros) = money.amounts(used as u64);
                let mut spec = campaign.map_or_else(Spec::default, |c| c.spec.clone());
                spec.name = NAMES[name].into();
                (spec.price_micros, spec.budget_micros) = (price_micros, budget_micros);
                spec.hold_ms = 10_000 << (money.rest % 3);
                make_odd(&mut spec, odd);
                let (expected_incarnation, expected_revision) = version_of(campaign, revision);
                let spec = (odd != 7).then_some(spec);
                command::Kind::Update(Update {
                    request_id: request_id(request),
                    spec,
                    expected_revision,
                    now_ms,
                    expected_incarnation,
                })
            }
            Op::SetState { name, request, state, revision } => {
                let (expected_incarnation, expected_revision) = version_of(model.campaigns.get(NAMES[name]), revision);
                command::Kind::SetState(SetState {
                    request_id: request_id(request),
                    name: NAMES[name].into(),
                    state,
                    expected_revision,
                    now_ms,
                    expected_incarnation,
                    // Of all levels, mixed.
                    remember_unchanged: request % 2 == 1,
                })
            }
            Op::Delete { name, request, revision } => {
                let (expected_incarnation, expected_revision) = version_of(model.campaigns.get(NAMES[name]), revision);
                command::Kind::Delete(Delete {
                    request_id: request_id(request),
                    name: NAMES[name].into(),
                    expected_revision,
                    now_ms,
                    expected_incarnation,
                })
            }
            Op::Tick { step, shrinks, grants, checkpoints } => {
                let now_ms = self.step(step);
                let mut granted = [0; NAMES.len()];
                let grants = grants.iter().map(|r| grant(r, model, now_ms, &mut granted)).collect();
                let shrinks = shrinks.iter().map(|r| shrink(r, model)).collect();
                let checkpoints = checkpoints.iter().map(|r| checkpoint(r, model)).collect();
                command::Kind::Tick(Tick { now_ms, shrinks, grants, checkpoints })
            }
            Op::Settle { outcomes } => {
                let outcomes =
                    outcomes.iter().map(|(r, kind, stream_ms)| outcome(r, *kind, *stream_ms, model)).collect();
                command::Kind::Settle(Settle { outcomes })
            }
            Op::Close { step, aim, margin, retry, purge } => {
                let aimed = aim.and_then(|(what, before)| {
                    let due = model.next_due(margin.into(), retry.into(), purge.into())[what]?;
                    let due = i64::try_from(due).ok()?;
                    // No leap of months to the next purge: nothing would be in flight after it.
                    (due < self.now + 10_000_000).then_some(due - before as i64)
                });
                self.now = aimed.unwrap_or(self.step(step) as i64).max(0);
                command::Kind::CloseExpired(CloseExpired {
                    now_ms: self.now as u64,
                    skew_margin_ms: margin,
                    retry_window_ms: retry,
                    purge_after_ms: purge,
                })
            }
            Op::SetTime { step } => {
                let now_ms = (model.time as i64 - STEPS_MS[step]).max(0) as u64;
                command::Kind::SetShardTime(SetShardTime { now_ms })
            }
            Op::Again { .. } | Op::Nothing => return None,
        })
    }
}

impl Money {
    fn amounts(self, used: u64) -> (u64, u64) {
        let price = PRICES[self.price];
        let budget = match self.near_used {
            Some(exact) if used > 0 => used - u64::from(!exact),
            _ => price.saturating_mul(self.deliveries).saturating_add(self.rest),
        };
        // A few budgets lie above the limit.
        (price, if budget == u64::MAX { MICROS_MAX + self.rest / 2 } else { budget.min(MICROS_MAX) })
    }
}

fn request_id(request: u8) -> String {
    if request == 0 { String::new() } else { format!("r{request}") }
}

fn version_of(campaign: Option<&Campaign>, choice: u8) -> (u32, u64) {
    let (incarnation, revision) = campaign.map_or((1, 1), |c| (c.incarnation, c.revision));
    match choice {
        0 | 1 => (0, 0),
        2 => (0, revision),
        3 => (0, revision + 1),
        4 => (incarnation, revision),
        5 => (incarnation, 0),
        _ => (incarnation + 1, revision),
    }
}

/// One thing wrong with settings that are sound otherwise.
fn make_odd(spec: &mut Spec, odd: u8) {
    match odd {
        1 => spec.price_micros = 0,
        2 => spec.end_ms = spec.start_ms,
        3 => spec.hold_ms = 9_999,
        4 => spec.billable = Kind::Save as i32,
        5 => spec.relevance_floor = f64::NAN,
        6 => spec.hold_ms = 3_600_001,
        _ => {}
    }
}

fn holder(holder: u64) -> Option<Holder> {
    (holder > 0).then_some(Holder { node_id: 1, boot_id: 1, cell_epoch: holder })
}

/// Key, incarnation, and the number of the next allowance.
fn campaign(r: &Ref, model: &Model) -> (u64, u32, u32) {
    let (incarnation, next) = model.campaigns.get(NAMES[r.name]).map_or((1, 1), |c| (c.incarnation, c.next()));
    (campaign_key(NAMES[r.name]), incarnation - u32::from(r.stale), next)
}

fn grant(r: &Ref, model: &Model, now_ms: u64, granted: &mut [u32; NAMES.len()]) -> Grant {
    let (key, incarnation, next) = campaign(r, model);
    let number = match r.back {
        0 | 1 => next + granted[r.name],
        back => (next as i32 - back).max(0) as u32,
    };
    granted[r.name] += 1;
    let issue_until_ms = now_ms.saturating_add(r.life);
    Grant { campaign: key, incarnation, number, n: r.n, holder: holder(r.holder), issue_until_ms }
}

/// An allowance: its number, and its holder in most cases.
fn allowance(r: &Ref, model: &Model) -> (u32, Option<Holder>) {
    let (_, _, next) = campaign(r, model);
    let number = (next as i32 - 1 - r.back).max(0) as u32;
    let block = model.campaigns.get(NAMES[r.name]).and_then(|c| c.blocks.get(&number));
    let own = block.map(|block| block.holder).filter(|_| !r.n.is_multiple_of(3));
    (number, own.or(holder(r.holder)))
}

fn shrink(r: &Ref, model: &Model) -> Shrink {
    let (key, incarnation, _) = campaign(r, model);
    let (number, holder) = allowance(r, model);
    Shrink { campaign: key, incarnation, number, issued: r.sequence, holder }
}

fn checkpoint(r: &Ref, model: &Model) -> Checkpoint {
    let (key, incarnation, _) = campaign(r, model);
    let mu = if r.n == 0 { f64::NAN } else { f64::from(r.n) / 7.0 };
    let control = (r.n != 3).then(|| Control { mu, estimates: vec![1; r.sequence.min(9) as usize], learned: None });
    Checkpoint { campaign: key, incarnation, control }
}

fn outcome(r: &Ref, kind: i32, stream_ms: u64, model: &Model) -> Outcome {
    let (key, incarnation, _) = campaign(r, model);
    let (number, _) = allowance(r, model);
    Outcome { campaign: key, incarnation, number, sequence: r.sequence, kind, stream_ms }
}
