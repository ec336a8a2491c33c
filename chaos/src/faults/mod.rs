//! What goes wrong. One file each; a new one is a file and a line in [`ALL`].

mod actor_panics;
mod clock_drift;
mod clock_jump;
mod crash;
mod disk_full;
mod disk_lost;
mod held_messages;
mod latency;
mod lost_messages;
mod one_way_partition;
mod partition;
mod power_loss;
mod slow_disk;
mod snapshot_crash;
mod sync_error;

use turmoil::Sim;

use crate::{
    dice::Dice,
    plan::{Injection, Plan},
    world::World,
};

/// Ends a fault that has begun. Says whether it had a visible effect: one without is not counted as injected.
pub type End = Box<dyn FnOnce(&mut World) -> bool>;

/// How a fault is to be: for how long, whom it befalls, how much of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Shape {
    /// Milliseconds.
    pub for_ms: u64,
    /// Positions of hosts, nodes first.
    pub on: Vec<u32>,
    /// What that means is the fault's.
    pub amount: i64,
}

/// One kind of fault.
pub trait Fault: Sync {
    /// Its name in plans and reports.
    fn name(&self) -> &'static str;
    /// How often it comes, relative to the others, in a plan that has it.
    fn weight(&self) -> u64 {
        10
    }
    /// Whether messages are late or lost while it lasts.
    fn disturbs_network(&self) -> bool {
        false
    }
    /// Draws one; `None`: the plan's cluster can't have it.
    fn draw(&self, plan: &Plan, dice: &Dice) -> Option<Shape>;
    /// Begins it; `None`: there is nothing to befall now.
    fn begin(&self, world: &mut World, injection: &Injection) -> Option<End>;
}

/// All faults.
pub const ALL: &[&dyn Fault] = &[
    &partition::Partition,
    &one_way_partition::OneWayPartition,
    &held_messages::HeldMessages,
    &lost_messages::LostMessages,
    &latency::Latency,
    &crash::Crash,
    &power_loss::PowerLoss,
    &snapshot_crash::SnapshotCrash,
    &actor_panics::ActorPanics,
    &sync_error::SyncError,
    &disk_full::DiskFull,
    &slow_disk::SlowDisk,
    &disk_lost::DiskLost,
    &clock_jump::ClockJump,
    &clock_drift::ClockDrift,
];

/// The fault of this name.
pub fn by_name(name: &str) -> Option<&'static dyn Fault> {
    ALL.iter().copied().find(|fault| fault.name() == name)
}

/// A position among the nodes.
fn any_node(plan: &Plan, dice: &Dice) -> u32 {
    dice.below(plan.nodes as usize) as u32
}

/// Pairs of a first group and the rest of the hosts.
fn across(world: &World, group: &[u32]) -> Vec<(std::sync::Arc<str>, std::sync::Arc<str>)> {
    let hosts = world.hosts();
    let inside = |position: &usize| group.contains(&(*position as u32));
    let (mut pairs, positions) = (Vec::new(), 0..hosts.len());
    for one in positions.clone().filter(inside) {
        for other in positions.clone().filter(|other| !inside(other)) {
            pairs.push((hosts[one].clone(), hosts[other].clone()));
        }
    }
    pairs
}

/// Does something to each link between a group of hosts and the rest, and undoes it in the end. That is seen if anything
/// was sent there meanwhile.
fn between(
    world: &World,
    group: &[u32],
    change: impl Fn(&Sim<'_>, &str, &str),
    undo: impl Fn(&Sim<'_>, &str, &str) + 'static,
) -> End {
    let there = across(world, group);
    let back: Vec<_> = there.iter().map(|(one, other)| (other.clone(), one.clone())).collect();
    there.iter().for_each(|(one, other)| change(&world.sim, one, other));
    let before = sent(world, &there) + sent(world, &back);
    Box::new(move |world| {
        there.iter().for_each(|(one, other)| undo(&world.sim, one, other));
        sent(world, &there) + sent(world, &back) > before
    })
}

/// How much has been sent between each two of these hosts, in the given direction.
fn sent(world: &World, pairs: &[(std::sync::Arc<str>, std::sync::Arc<str>)]) -> u64 {
    pairs.iter().map(|(from, to)| world.traffic.count(from, to)).sum()
}

/// Some hosts, at least one node among them and not all of them: one side of a partition. Clients are on either side.
fn one_side(plan: &Plan, dice: &Dice) -> Vec<u32> {
    let hosts: Vec<u32> = (0..plan.nodes + plan.load.clients).collect();
    let node = any_node(plan, dice);
    let others: Vec<u32> = hosts.iter().copied().filter(|host| *host != node).collect();
    let further = dice.within(0..=others.len() as u64 / 2) as usize;
    let mut side = dice.several(&others, further);
    side.push(node);
    side.sort_unstable();
    side
}
