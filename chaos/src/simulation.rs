//! One run: the cluster forms, faults come, everything heals, and then all must be well.

use std::{collections::BTreeMap, path::Path, sync::atomic::Ordering};

use andante::actor::{Life, Role, Shard};
use andante_cluster::ShardId;

use crate::{
    faults::{self, End},
    plan::Plan,
    report::{FaultCount, Report},
    workloads::campaigns,
    world::{World, client::Stage, clock::EPOCH_MS},
};

/// Until the cluster has formed and all campaigns are there.
const SETUP_MS: u64 = 60_000;
/// After the healing, until every shard is led and every node is ready.
const RECOVERED_MS: u64 = 60_000;
/// New work is served for so long after that.
const WORK_MS: u64 = 8_000;
/// Until what clients have under way is over: the latest outcomes are reported a minute and a half after their expiry, and
/// each of their events a few times.
const CALM_MS: u64 = 300_000;
/// Until the last answer's consequences have reached all replicas.
const ECHO_MS: u64 = 10_000;
/// Ticks, elections and syncs on top of what an allowance may live.
const SLACK_MS: u64 = 20_000;

/// Plays a plan. What nodes keep beside their disks lies below `root` meanwhile.
pub fn run(plan: &Plan, root: &Path) -> Report {
    let mut run = Run { world: World::new(plan, root.to_owned()), counts: BTreeMap::new(), ends: Vec::new() };
    let faults_ms = run.play();
    let world = &run.world;
    let witness = &world.witness;
    let (hash, events) = witness.trace.digest();
    let torn: u64 = world.nodes.iter().map(|node| node.disks.torn_tails_cut()).sum();
    (0..torn).for_each(|_| witness.markers.hit("torn-tail-cut"));
    Report {
        seed: plan.seed,
        violation: witness.violation(),
        simulated_ms: world.now_ms(),
        faults_ms,
        settles: witness.settles.load(Ordering::Relaxed),
        faults: run.counts,
        markers: witness.markers.counts(),
        trace: format!("{hash:016x}"),
        events,
        mutant_hits: None,
        plan: plan.clone(),
        timeline: witness.timeline(),
    }
}

struct Run {
    world: World,
    counts: BTreeMap<String, FaultCount>,
    /// Faults that last, by the time they end.
    ends: Vec<(u64, String, End)>,
}

impl Run {
    /// Plays all stages, or up to the first broken promise. How long faults came.
    fn play(&mut self) -> u64 {
        let campaigns = u64::from(self.world.plan.load.campaigns);
        if !self.until(SETUP_MS, "the cluster formed and had all campaigns", |world| {
            done(world, "campaigns") == campaigns && recovered(world).is_ok()
        }) {
            return 0;
        }
        let began_ms = self.world.now_ms();
        self.world.enter(Stage::Faults);
        self.play_schedule(began_ms);
        let faults_ms = self.world.now_ms() - began_ms;
        self.heal();
        // More was destroyed than the shards can survive: all that is left is to give no wrong answers.
        if self.world.plan.beyond {
            if self.pass(WORK_MS) {
                self.world.enter(Stage::Quiet);
                self.fall_silent();
            }
            return faults_ms;
        }
        if self.until(RECOVERED_MS, "each shard was led and each node ready", |world| recovered(world).is_ok()) {
            self.serve_and_settle();
        }
        faults_ms
    }

    /// Lets a moment pass; false: a promise is broken.
    fn step(&mut self) -> bool {
        self.world.step();
        self.world.witness.look(&self.world);
        self.world.witness.violation().is_none()
    }

    /// Lets time pass; false: a promise is broken.
    fn pass(&mut self, ms: u64) -> bool {
        let end_ms = self.world.now_ms() + ms;
        while self.world.now_ms() < end_ms {
            if !self.step() {
                return false;
            }
        }
        true
    }

    /// Waits for a condition, which must come true within a time.
    fn until(&mut self, within_ms: u64, what: &str, condition: impl Fn(&World) -> bool) -> bool {
        let end_ms = self.world.now_ms() + within_ms;
        while !condition(&self.world) {
            if !self.step() {
                return false;
            }
            if self.world.now_ms() >= end_ms {
                let why = recovered(&self.world).err().unwrap_or_default();
                let what = format!("waited {within_ms} ms until {what}; {why}{}", open(&self.world));
                self.world.witness.broken("liveness", what, end_ms);
                return false;
            }
        }
        true
    }

    fn play_schedule(&mut self, began_ms: u64) {
        let plan = self.world.plan.clone();
        let mut schedule = plan.schedule.iter().peekable();
        while self.world.now_ms() < began_ms + plan.faults_ms {
            let now_ms = self.world.now_ms();
            while let Some(injection) = schedule.next_if(|next| began_ms + next.at_ms <= now_ms) {
                let Some(fault) = faults::by_name(&injection.fault) else {
                    let what = format!("there is no fault named {}", injection.fault);
                    return self.world.witness.broken("plan", what, now_ms);
                };
                if let Some(end) = fault.begin(&mut self.world, injection) {
                    let end = match fault.disturbs_network() {
                        true => self.world.disturb_network(end),
                        false => end,
                    };
                    self.counts.entry(injection.fault.clone()).or_default().begun += 1;
                    let (on, amount, for_ms) = (&injection.on, injection.amount, injection.for_ms);
                    self.world
                        .witness
                        .line(now_ms, &format!("{} on {on:?}, {amount}, for {for_ms} ms", injection.fault));
                    self.ends.push((now_ms + injection.for_ms, injection.fault.clone(), end));
                }
            }
            self.end_faults(now_ms);
            if !self.step() {
                return;
            }
        }
    }

    /// Ends the faults whose time is over.
    fn end_faults(&mut self, until_ms: u64) {
        let now_ms = self.world.now_ms();
        let (over, last): (Vec<_>, Vec<_>) =
            std::mem::take(&mut self.ends).into_iter().partition(|(end_ms, ..)| *end_ms <= until_ms);
        self.ends = last;
        for (_, fault, end) in over {
            let seen = end(&mut self.world);
            self.world.witness.line(now_ms, &format!("{fault} is over{}", if seen { "" } else { ", without effect" }));
            self.counts.entry(fault).or_default().seen += u64::from(seen);
        }
    }

    fn heal(&mut self) {
        self.end_faults(u64::MAX);
        self.world.heal();
        self.world.sabotage.confirms_clocks.store(true, Ordering::Relaxed);
        self.world.enter(Stage::Healed);
    }

    /// New work is served, then everything comes to rest, and the money that was set aside is back.
    fn serve_and_settle(&mut self) {
        let before = allowances(&self.world);
        if !self.until(RECOVERED_MS, "each shard paced its campaigns again", |world| paced_since(world, &before)) {
            return;
        }
        let shards = u64::from(self.world.plan.shards);
        let served = move |world: &World| done(world, "fresh") == shards;
        if !self.pass(WORK_MS) || !self.until(RECOVERED_MS, "each shard served new work", served) {
            return;
        }
        self.world.enter(Stage::Quiet);
        let plan = self.world.plan.clone();
        let settings = &plan.settings;
        let returned_ms = settings.allowance_life_max_ms
            + plan.load.hold_ms
            + settings.skew_margin_ms
            + settings.close_grace_ms
            + SLACK_MS;
        if self.until(returned_ms, "the money set aside was back", nothing_open) && self.fall_silent() {
            self.world.witness.audit(&self.world);
        }
    }

    /// Lets clients wait for what they have under way; false: a promise is broken.
    fn fall_silent(&mut self) -> bool {
        let idle = |world: &World| world.clients.iter().all(|client| client.is_idle());
        if !self.until(CALM_MS, "clients had all their answers", idle) || !self.pass(ECHO_MS) {
            return false;
        }
        self.world.witness.over(&self.world);
        self.world.witness.violation().is_none()
    }
}

/// How much a workload has done, on all clients.
fn done(world: &World, workload: &str) -> u64 {
    world.clients.iter().filter_map(|client| client.done.lock().get(workload).copied()).sum()
}

/// Whether every node runs and is ready, and every shard has one leader. If not, what is missing.
fn recovered(world: &World) -> Result<(), String> {
    let mut leaders: BTreeMap<ShardId, usize> = BTreeMap::new();
    for slot in &world.nodes {
        let Some(node) = slot.running() else { return Err(format!("{} does not run", slot.name)) };
        node.ready().map_err(|why| format!("{} is not ready: {why}", slot.name))?;
    }
    for (_, shard) in world.replicas() {
        *leaders.entry(shard.id).or_default() += usize::from(shard.role() == Role::Leading);
    }
    let count = leaders.values().filter(|leaders| **leaders == 1).count();
    if count == world.plan.shards as usize { Ok(()) } else { Err(format!("leaders by shard: {leaders:?}")) }
}

/// The number of the next allowance of each campaign that is there all the time.
fn allowances(world: &World) -> BTreeMap<u64, u32> {
    let mut next: BTreeMap<u64, u32> = BTreeMap::new();
    for (_, shard) in world.replicas() {
        for campaign in shard.book().campaigns().filter(|campaign| campaigns::is_standing(&campaign.spec.name)) {
            let next = next.entry(campaign.key).or_default();
            *next = campaign.next_allowance.max(*next);
        }
    }
    next
}

/// Whether in each shard one of the campaigns that could deliver has got an allowance that it had not got before.
fn paced_since(world: &World, before: &BTreeMap<u64, u32>) -> bool {
    let now_ms = EPOCH_MS + world.now_ms();
    world.replicas().iter().filter(|(_, shard)| shard.role() == Role::Leading).all(|(_, shard)| {
        let book = shard.book();
        let serves = |key| shard.cell(key).is_none_or(|cell| cell.life() != Life::Quarantined);
        let mut able = book.campaigns().filter(|campaign| {
            before.contains_key(&campaign.key)
                && campaign.is_eligible(now_ms)
                && campaign.ledger.free_micros() >= campaign.spec.price_micros
                && serves(campaign.key)
        });
        let mut none = true;
        let paced = able.any(|campaign| {
            none = false;
            campaign.next_allowance > before[&campaign.key]
        });
        paced || none
    })
}

/// The allowances that are open on the first replica that has any, for a person to read.
fn open(world: &World) -> String {
    let now_ms = EPOCH_MS + world.now_ms();
    let describe = |shard: &Shard| {
        let book = shard.book();
        let described: Vec<_> = book
            .campaigns()
            .flat_map(|campaign| campaign.open.values().map(move |allowance| (campaign, allowance)))
            .take(5)
            .map(|(campaign, allowance)| {
                let (name, number) = (&campaign.spec.name, allowance.number);
                let granted_ms = now_ms as i64 - allowance.granted_ms as i64;
                let until_ms = allowance.issue_until_ms as i64 - now_ms as i64;
                let (left, n) = (allowance.outstanding(), allowance.n);
                format!(
                    "{name}/{number} {left} of {n}, granted {granted_ms} ms ago, to be handed out for {until_ms} ms"
                )
            })
            .collect();
        (!described.is_empty()).then(|| format!("; open: {}", described.join("; ")))
    };
    world.replicas().iter().find_map(|(_, shard)| describe(shard)).unwrap_or_default()
}

/// Whether no money is set aside on any replica.
fn nothing_open(world: &World) -> bool {
    world
        .replicas()
        .iter()
        .all(|(_, shard)| shard.book().campaigns().all(|campaign| campaign.ledger.open_micros() == 0))
}
