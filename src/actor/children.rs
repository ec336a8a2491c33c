//! The actors of a shard's campaigns: when they are started, ticked, restarted and quarantined.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::Arc,
};

use ractor::{Actor, ActorCell, ActorId, ActorRef};

use super::{
    campaign::{CampaignActor, CampaignArgs, CampaignMessage, shrinks},
    cell::Life,
    supervision::{Failures, Verdict},
    supervisor::{ShardArgs, ShardMessage},
    takeover::{Stand, Standing},
};
use crate::campaign::{
    allowance::Allowance,
    book::CampaignState,
    proto::{self, Holder},
};

/// Actors started per tick; a burst of first scores is spread over ticks.
const STARTS_PER_TICK: usize = 1_000;

struct Child {
    actor: ActorRef<CampaignMessage>,
    epoch: u64,
    /// It was told to end.
    retiring: bool,
}

impl Child {
    fn retire(&mut self) {
        self.retiring = true;
        // An actor that is gone already is noticed by its end.
        drop(self.actor.send_message(CampaignMessage::Retire));
    }
}

/// An actor ended.
pub(super) struct Ended {
    /// Its campaign.
    pub(super) key: u64,
    /// What gives back what it did not hand out.
    pub(super) shrinks: Vec<proto::Shrink>,
}

/// The actors of one shard.
pub(super) struct Children {
    args: ShardArgs,
    children: BTreeMap<u64, Child>,
    keys: HashMap<ActorId, u64>,
    failures: HashMap<u64, Failures>,
    /// Failed actors are not started before this moment, however much traffic asks for them.
    restart_at: HashMap<u64, u64>,
    /// Incarnation and revision of the campaign when it was quarantined; others (an operator resumed it) lift that.
    quarantined: HashMap<u64, (u32, u64)>,
    /// When campaigns are to be ticked without traffic.
    wakes: BTreeSet<(u64, u64)>,
    wake_of: HashMap<u64, u64>,
    /// Actors ticked that have not said what they want yet.
    awaited: BTreeSet<u64>,
    /// Cells that hand out although their actors are yet to come.
    pub(super) standing: Standing,
}

impl Drop for Children {
    /// They end with their supervisor, and nobody hears of it.
    fn drop(&mut self) {
        self.args.metrics.actors_alive.dec_by(self.children.len() as i64);
        self.args.metrics.actors_quarantined.dec_by(self.quarantined.len() as i64);
    }
}

impl Children {
    pub(super) fn new(args: ShardArgs) -> Self {
        Self {
            args,
            children: BTreeMap::new(),
            keys: HashMap::new(),
            failures: HashMap::new(),
            restart_at: HashMap::new(),
            quarantined: HashMap::new(),
            wakes: BTreeSet::new(),
            wake_of: HashMap::new(),
            awaited: BTreeSet::new(),
            standing: Standing::default(),
        }
    }

    /// This node, as the holder of no cell in particular.
    pub(super) fn node(&self) -> Holder {
        let identity = self.args.host.identity();
        Holder { node_id: identity.node_id, boot_id: identity.boot_id, cell_epoch: 0 }
    }

    /// Whether somebody stands behind the campaign's cell and stays.
    pub(super) fn is_served(&self, key: u64) -> bool {
        self.standing.has(key) || self.children.get(&key).is_some_and(|child| !child.retiring)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.children.is_empty()
    }

    /// Whether somebody has not said yet what it wants of the next entry.
    pub(super) fn awaits(&self) -> bool {
        !self.awaited.is_empty()
    }

    /// When the next tick is wanted even without traffic.
    pub(super) fn due_ms(&self) -> u64 {
        if !self.standing.is_empty() {
            return 0;
        }
        self.wakes.first().map_or(u64::MAX, |(at, _)| *at)
    }

    /// Ticks the actors of campaigns that saw traffic or are due; starts those that have none, if `starting`.
    pub(super) async fn tick(&mut self, myself: &ActorRef<ShardMessage>, now_ms: u64, starting: bool) {
        let mut due: BTreeSet<u64> = BTreeSet::new();
        for key in self.args.shard.drain_touched() {
            if let Some(cell) = self.args.shard.cell(key) {
                cell.untouch();
            }
            due.insert(key);
        }
        while let Some(&(at, key)) = self.wakes.first() {
            if at > now_ms {
                break;
            }
            self.wakes.pop_first();
            self.wake_of.remove(&key);
            due.insert(key);
        }
        let mut starts = 0;
        self.awaited.clear();
        for key in due {
            if let Some(child) = self.children.get(&key) {
                if child.retiring {
                    self.standing.refresh(key, self.args.clock.monotonic_ms());
                } else if child.actor.send_message(CampaignMessage::Tick).is_ok() {
                    self.awaited.insert(key);
                }
            } else if starting && !self.standing.is_pledged(key) {
                let restart_at = self.restart_at.get(&key).copied().unwrap_or(0);
                if now_ms < restart_at {
                    self.wake_at(key, restart_at);
                } else if starts < STARTS_PER_TICK {
                    starts += usize::from(self.start(myself, key).await);
                } else {
                    self.wake_at(key, now_ms);
                    self.standing.refresh(key, self.args.clock.monotonic_ms());
                }
            }
        }
        let mut postponed = Vec::new();
        while starting
            && starts < STARTS_PER_TICK
            && let Some(key) = self.standing.next()
        {
            if self.children.contains_key(&key) {
                // One of an earlier term is about to end.
                postponed.push(key);
            } else {
                starts += usize::from(self.start(myself, key).await);
            }
        }
        self.standing.postpone(postponed);
    }

    /// Starts a campaign's actor unless it is quarantined or gone. Its first wants arrive like those of a tick.
    async fn start(&mut self, myself: &ActorRef<ShardMessage>, key: u64) -> bool {
        let shard = self.args.shard.clone();
        let stand = self.standing.take(key);
        let Some(cell) = shard.cell(key) else {
            self.forget(key);
            return false;
        };
        if let Some(at) = self.quarantined.get(&key) {
            if *at == self.version(key) {
                return false;
            }
            self.forget(key);
            tracing::info!(shard = %shard.id, campaign = %cell.view().settings.name, "quarantine lifted: the campaign was changed");
        }
        let stand = stand.filter(|stand| stand.is_of(&cell));
        let epoch = stand.as_ref().map_or_else(|| shard.next_epoch(), Stand::epoch);
        let args = CampaignArgs {
            shard: shard.clone(),
            cell: cell.clone(),
            holder: Holder { cell_epoch: epoch, ..self.node() },
            stood_behind: stand.as_ref().map(Stand::number),
            clock: self.args.clock.clone(),
            settings: self.args.settings.clone(),
            metrics: self.args.metrics.clone(),
            supervisor: myself.clone(),
        };
        match Actor::spawn_linked(None, CampaignActor, args, myself.get_cell()).await {
            Ok((actor, _)) => {
                if let Some(stand) = stand {
                    stand.hand_over();
                }
                self.keys.insert(actor.get_id(), key);
                self.children.insert(key, Child { actor, epoch, retiring: false });
                self.awaited.insert(key);
                self.args.metrics.actors_alive.inc();
                true
            }
            Err(error) => {
                drop(stand);
                tracing::warn!(shard = %shard.id, campaign = %cell.view().settings.name, %error, "campaign actor did not start");
                self.failed(key);
                false
            }
        }
    }

    /// Whether the actor of this epoch is there and stays: what it wants of the log counts.
    pub(super) fn stays(&self, key: u64, epoch: u64) -> bool {
        self.children.get(&key).is_some_and(|child| child.epoch == epoch && !child.retiring)
    }

    /// Whether the actor of this epoch is there.
    pub(super) fn is_there(&self, key: u64, epoch: u64) -> bool {
        self.children.get(&key).is_some_and(|child| child.epoch == epoch)
    }

    /// Whether the campaign's actor failed and is not to be started now: nobody else stands in for it.
    pub(super) fn is_barred(&self, campaign: &CampaignState, now_ms: u64) -> bool {
        let backs_off = self.restart_at.get(&campaign.key).is_some_and(|at| now_ms < *at);
        let quarantined = self.quarantined.get(&campaign.key);
        backs_off || quarantined.is_some_and(|at| *at == (campaign.incarnation, campaign.revision))
    }

    /// An actor has said what it wants.
    pub(super) fn heard(&mut self, key: u64) {
        self.awaited.remove(&key);
    }

    /// Ends an actor that has told its last wants.
    pub(super) fn stop(&self, key: u64) {
        if let Some(child) = self.children.get(&key) {
            child.actor.stop(None);
        }
    }

    /// Asks an actor to end.
    pub(super) fn retire(&mut self, key: u64) {
        if let Some(child) = self.children.get_mut(&key) {
            child.retire();
        }
    }

    /// Asks all actors to end.
    pub(super) fn retire_all(&mut self) {
        self.children.values_mut().filter(|child| !child.retiring).for_each(Child::retire);
    }

    /// Another node leads: no cell hands out any more, all actors end, nothing is held against any campaign. Returns
    /// what gives back what was not handed out.
    pub(super) fn depose(&mut self) -> Vec<proto::Shrink> {
        let mut given_up = self.standing.give_up();
        for (key, child) in &mut self.children {
            if let Some(cell) = self.args.shard.cell(*key) {
                cell.end(child.epoch, Life::Dormant);
                given_up.extend(shrinks(&cell));
            }
            if !child.retiring {
                child.retire();
            }
        }
        let failed: Vec<u64> = self.failures.keys().copied().collect();
        for key in failed {
            self.forget(key);
            if let Some(cell) = self.args.shard.cell(key) {
                cell.set_life(Life::Dormant);
            }
        }
        self.awaited.clear();
        self.wakes.clear();
        self.wake_of.clear();
        given_up
    }

    /// Tells actors that the entry with their grants was applied or failed.
    pub(super) fn answered(&self, keys: &[u64]) {
        for key in keys {
            if let Some(child) = self.children.get(key) {
                drop(child.actor.send_message(CampaignMessage::Answered));
            }
        }
    }

    /// Kills an actor, as a crash would; says whether there was one.
    pub(super) fn crash(&self, key: u64) -> bool {
        let child = self.children.get(&key);
        if let Some(child) = child {
            child.actor.kill();
        }
        child.is_some()
    }

    /// Shard time was set: what was planned in the old time means nothing, and holders start anew. Returns what gives
    /// back what cells without actors did not hand out.
    pub(super) fn start_anew(&mut self) -> Vec<proto::Shrink> {
        self.wakes.clear();
        self.wake_of.clear();
        self.restart_at.clear();
        self.failures.clear();
        self.retire_all();
        self.standing.give_up()
    }

    /// An actor ended; `None` if it was none of ours.
    pub(super) fn ended(&mut self, actor: &ActorCell, reason: Option<String>) -> Option<Ended> {
        let key = self.keys.remove(&actor.get_id())?;
        let child = self.children.remove(&key)?;
        self.awaited.remove(&key);
        self.unwake(key);
        self.args.metrics.actors_alive.dec();
        let Some(cell) = self.args.shard.cell(key) else { return Some(Ended { key, shrinks: Vec::new() }) };
        // The actor's own guard may not have run yet.
        cell.end(child.epoch, if child.retiring { Life::Dormant } else { Life::Failed });
        let mut shrinks = shrinks(&cell);
        shrinks.extend(self.missed(key, child.epoch));
        if !child.retiring {
            let reason = reason.unwrap_or_else(|| "killed".into());
            tracing::error!(shard = %self.args.shard.id, campaign = %cell.view().settings.name, reason, "campaign actor failed; it hands out nothing until it is back");
            self.failed(key);
        }
        Some(Ended { key, shrinks })
    }

    /// What gives back the allowances that were applied for a holder that ended before it heard of them.
    fn missed(&self, key: u64, epoch: u64) -> Vec<proto::Shrink> {
        let holder = Holder { cell_epoch: epoch, ..self.node() };
        let (book, cell) = (self.args.shard.book(), self.args.shard.cell(key));
        let campaign = book.campaign(key).zip(cell).filter(|(campaign, cell)| campaign.incarnation == cell.incarnation);
        let Some((campaign, cell)) = campaign else { return Vec::new() };
        let missed = campaign.open.values().filter(|a| a.holder == holder && cell.missed(epoch, a.number));
        let shrink = |allowance: &Arc<Allowance>| proto::Shrink {
            campaign: key,
            incarnation: campaign.incarnation,
            number: allowance.number,
            issued: 0,
            holder: Some(holder),
        };
        missed.map(shrink).collect()
    }

    fn failed(&mut self, key: u64) {
        let Some(cell) = self.args.shard.cell(key) else { return self.forget(key) };
        let version = self.version(key);
        let settings = &self.args.settings;
        let now_ms = self.args.clock.now_ms();
        self.args.metrics.actor_restarts.inc();
        let failures = self.failures.entry(key).or_default();
        match failures.record(now_ms, settings.max_restarts, settings.restart_window_ms) {
            Verdict::RestartAt(at) => {
                cell.set_life(Life::Failed);
                self.restart_at.insert(key, at);
                self.wake_at(key, at);
            }
            Verdict::Quarantine => {
                cell.set_life(Life::Quarantined);
                self.quarantined.insert(key, version);
                self.args.metrics.actors_quarantined.inc();
                tracing::error!(shard = %self.args.shard.id, campaign = %cell.view().settings.name, "campaign quarantined: its actor fails again and again; pause and resume it to try again");
            }
        }
    }

    pub(super) fn wake_at(&mut self, key: u64, at_ms: u64) {
        self.unwake(key);
        self.wake_of.insert(key, at_ms);
        self.wakes.insert((at_ms, key));
    }

    fn unwake(&mut self, key: u64) {
        if let Some(before) = self.wake_of.remove(&key) {
            self.wakes.remove(&(before, key));
        }
    }

    /// What tells a campaign from another of its name, and from itself before a change.
    fn version(&self, key: u64) -> (u32, u64) {
        self.args.shard.book().campaign(key).map_or((0, 0), |campaign| (campaign.incarnation, campaign.revision))
    }

    /// Nothing is held against a campaign any more.
    fn forget(&mut self, key: u64) {
        self.failures.remove(&key);
        self.restart_at.remove(&key);
        if self.quarantined.remove(&key).is_some() {
            self.args.metrics.actors_quarantined.dec();
        }
    }
}
