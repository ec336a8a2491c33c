//! Supervises the campaigns of one shard: starts their actors when they are scored, restarts those that fail, and
//! turns what they want into one log entry per tick.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::Arc,
};

use andante_cluster::host::Host;
use prost::Message;
use ractor::{Actor, ActorCell, ActorId, ActorProcessingErr, ActorRef, RpcReplyPort, SupervisionEvent};
use tokio::time::{Duration, Instant};

use super::{
    campaign::{CampaignActor, CampaignArgs, CampaignMessage, Wants, shrinks},
    cell::Life,
    clock::NodeClock,
    shard::Shard,
    supervision::{Failures, Verdict},
};
use crate::{campaign::proto, metrics::Metrics, settings::Settings};

/// Actors started per tick; a burst of first scores is spread over ticks.
const STARTS_PER_TICK: usize = 1_000;
/// Grants per entry; the rest waits for the next entry. So below: an entry stays far under its size limit.
const GRANTS_PER_ENTRY: usize = 4_096;
/// Shrinks per entry.
const SHRINKS_PER_ENTRY: usize = 16_384;
/// Checkpoints per entry, of some 1.5 KB each.
const CHECKPOINTS_PER_ENTRY: usize = 1_024;
/// How long the fate of a tick's entry is waited for.
const ENTRY_TIMEOUT: Duration = Duration::from_secs(10);

/// Messages to a shard's supervisor.
#[derive(Debug)]
pub enum ShardMessage {
    /// Time to look after the shard.
    Tick,
    /// An actor's wants.
    Wants {
        /// The campaign.
        key: u64,
        /// What it wants.
        wants: Box<Wants>,
    },
    /// An entry of wants was applied, or not.
    Answered {
        /// Whether it was surely applied.
        applied: bool,
        /// Campaigns with grants in it.
        grants: Vec<u64>,
        /// Its shrinks, proposed again unless it was applied.
        shrinks: Vec<proto::Shrink>,
    },
    /// A closing was applied, or not.
    Closed,
    /// Kill a campaign's actor, as a crash would.
    Crash(u64, RpcReplyPort<bool>),
    /// End all actors, give back what they hold, answer when it is applied.
    Drain(RpcReplyPort<()>),
}

/// What a supervisor is started with.
#[derive(Clone)]
pub struct ShardArgs {
    /// The shard.
    pub shard: Arc<Shard>,
    /// Its log.
    pub host: Arc<Host>,
    /// Node time.
    pub clock: Arc<NodeClock>,
    /// Settings.
    pub settings: Arc<Settings>,
    /// Metrics.
    pub metrics: Arc<Metrics>,
}

/// The supervisor.
pub struct ShardSupervisor;

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

/// Takes the first `count` out of a map.
fn take_first<K: Ord + Copy, V>(map: &mut BTreeMap<K, V>, count: usize) -> BTreeMap<K, V> {
    let rest = map.keys().nth(count).copied().map(|later| map.split_off(&later)).unwrap_or_default();
    std::mem::replace(map, rest)
}

/// State of a shard's supervisor.
pub struct ShardState {
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
    grants: BTreeMap<u64, proto::Grant>,
    shrinks: BTreeMap<(u64, u32, u32), proto::Shrink>,
    checkpoints: BTreeMap<u64, proto::Checkpoint>,
    /// Actors ticked that have not said what they want yet.
    awaited: BTreeSet<u64>,
    entry_in_flight: bool,
    closing_in_flight: bool,
    close_due_ms: u64,
    /// Nothing is closed before this moment of the monotonic clock.
    grace_until_ms: u64,
    /// No actor is started any more.
    draining: bool,
    drained: Option<RpcReplyPort<()>>,
}

impl Actor for ShardSupervisor {
    type Msg = ShardMessage;
    type State = ShardState;
    type Arguments = ShardArgs;

    async fn pre_start(&self, _myself: ActorRef<Self::Msg>, args: ShardArgs) -> Result<ShardState, ActorProcessingErr> {
        let grace_until_ms = args.clock.monotonic_ms() + args.settings.close_grace_ms;
        args.shard.set_next_due(0);
        let mut state = ShardState {
            args,
            children: BTreeMap::new(),
            keys: HashMap::new(),
            failures: HashMap::new(),
            restart_at: HashMap::new(),
            quarantined: HashMap::new(),
            wakes: BTreeSet::new(),
            wake_of: HashMap::new(),
            grants: BTreeMap::new(),
            shrinks: BTreeMap::new(),
            checkpoints: BTreeMap::new(),
            awaited: BTreeSet::new(),
            entry_in_flight: false,
            closing_in_flight: false,
            close_due_ms: 0,
            grace_until_ms,
            draining: false,
            drained: None,
        };
        // What a supervisor before this one left behind.
        for cell in state.args.shard.cells() {
            state.collect_shrinks(shrinks(&cell));
        }
        Ok(state)
    }

    async fn handle(
        &self,
        myself: ActorRef<Self::Msg>,
        message: ShardMessage,
        state: &mut ShardState,
    ) -> Result<(), ActorProcessingErr> {
        match message {
            ShardMessage::Tick => state.tick(&myself).await,
            ShardMessage::Wants { key, wants } => state.wants(&myself, key, *wants),
            ShardMessage::Answered { applied, grants, shrinks } => state.answered(&myself, applied, grants, shrinks),
            ShardMessage::Closed => state.closing_in_flight = false,
            ShardMessage::Crash(key, reply) => {
                let child = state.children.get(&key);
                if let Some(child) = child {
                    child.actor.kill();
                }
                drop(reply.send(child.is_some()));
            }
            ShardMessage::Drain(reply) => state.drain(&myself, reply),
        }
        state.publish_due();
        Ok(())
    }

    async fn handle_supervisor_evt(
        &self,
        myself: ActorRef<Self::Msg>,
        event: SupervisionEvent,
        state: &mut ShardState,
    ) -> Result<(), ActorProcessingErr> {
        match event {
            SupervisionEvent::ActorFailed(actor, error) => state.ended(&actor, Some(error.to_string())),
            SupervisionEvent::ActorTerminated(actor, last, reason) => {
                // The guard in the actor's state seals the cell: it must be gone before leftovers are collected.
                drop(last);
                state.ended(&actor, reason);
            }
            _ => {}
        }
        state.maybe_propose(&myself);
        state.publish_due();
        Ok(())
    }
}

impl ShardState {
    async fn tick(&mut self, myself: &ActorRef<ShardMessage>) {
        let now_ms = self.args.clock.now_ms();
        self.args.metrics.ticks.inc();
        if self.args.shard.take_time_set() {
            self.start_anew();
        }
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
                if !child.retiring && child.actor.send_message(CampaignMessage::Tick).is_ok() {
                    self.awaited.insert(key);
                }
            } else if !self.draining {
                let restart_at = self.restart_at.get(&key).copied().unwrap_or(0);
                if now_ms < restart_at {
                    self.wake_at(key, restart_at);
                } else if starts < STARTS_PER_TICK {
                    starts += usize::from(self.start(myself, key).await);
                } else {
                    self.wake_at(key, now_ms);
                }
            }
        }
        self.maybe_close(myself, now_ms);
        self.maybe_propose(myself);
    }

    /// Starts a campaign's actor unless it is quarantined or gone. Its first wants arrive like those of a tick.
    async fn start(&mut self, myself: &ActorRef<ShardMessage>, key: u64) -> bool {
        let shard = self.args.shard.clone();
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
        let identity = self.args.host.identity();
        let epoch = shard.next_epoch();
        let args = CampaignArgs {
            shard: shard.clone(),
            cell: cell.clone(),
            holder: proto::Holder { node_id: identity.node_id, boot_id: identity.boot_id, cell_epoch: epoch },
            clock: self.args.clock.clone(),
            settings: self.args.settings.clone(),
            metrics: self.args.metrics.clone(),
            supervisor: myself.clone(),
        };
        match Actor::spawn_linked(None, CampaignActor, args, myself.get_cell()).await {
            Ok((actor, _)) => {
                self.keys.insert(actor.get_id(), key);
                self.children.insert(key, Child { actor, epoch, retiring: false });
                self.awaited.insert(key);
                self.args.metrics.actors_alive.inc();
                true
            }
            Err(error) => {
                tracing::warn!(shard = %shard.id, campaign = %cell.view().settings.name, %error, "campaign actor did not start");
                self.failed(key);
                false
            }
        }
    }

    fn wants(&mut self, myself: &ActorRef<ShardMessage>, key: u64, wants: Wants) {
        self.collect_shrinks(wants.shrinks);
        // An actor that is gone has no use for a grant: nobody else may hand it out.
        if let Some(child) = self.children.get_mut(&key)
            && child.epoch == wants.epoch
        {
            if let Some(checkpoint) = wants.checkpoint {
                self.checkpoints.insert(key, checkpoint);
            }
            if wants.last {
                child.actor.stop(None);
            } else if wants.idle && !child.retiring {
                child.retire();
            } else if !child.retiring {
                if let Some(grant) = wants.grant {
                    self.grants.insert(key, grant);
                }
                if let Some(at) = wants.wake_ms {
                    self.wake_at(key, at);
                }
            }
        }
        self.awaited.remove(&key);
        if self.awaited.is_empty() {
            self.maybe_propose(myself);
        }
    }

    fn collect_shrinks(&mut self, shrinks: Vec<proto::Shrink>) {
        self.shrinks.extend(shrinks.into_iter().map(|s| ((s.campaign, s.incarnation, s.number), s)));
    }

    /// Proposes everything wanted as one entry, in id order, unless one is on its way.
    fn maybe_propose(&mut self, myself: &ActorRef<ShardMessage>) {
        let nothing = self.grants.is_empty() && self.shrinks.is_empty() && self.checkpoints.is_empty();
        if self.entry_in_flight || nothing {
            self.maybe_drained();
            return;
        }
        let grants = take_first(&mut self.grants, GRANTS_PER_ENTRY);
        let keys: Vec<u64> = grants.keys().copied().collect();
        let shrinks: Vec<_> = take_first(&mut self.shrinks, SHRINKS_PER_ENTRY).into_values().collect();
        let tick = proto::Tick {
            now_ms: self.args.clock.now_ms(),
            shrinks: shrinks.clone(),
            grants: grants.into_values().collect(),
            checkpoints: take_first(&mut self.checkpoints, CHECKPOINTS_PER_ENTRY).into_values().collect(),
        };
        self.entry_in_flight = true;
        let (host, shard, metrics) = (self.args.host.clone(), self.args.shard.id, self.args.metrics.clone());
        let (myself, shrunk) = (myself.clone(), shrinks.len() as u64);
        let command = proto::Command { kind: Some(proto::command::Kind::Tick(tick)) }.encode_to_vec();
        tokio::spawn(async move {
            let result = host.propose(shard, command.into(), Instant::now() + ENTRY_TIMEOUT).await;
            let applied = match result {
                Ok(applied) => {
                    let reply = proto::Reply::decode(applied.reply).expect("the book's own reply decodes");
                    reply.grants.iter().for_each(|grant| metrics.grant(grant.status()));
                    metrics.shrinks.inc_by(shrunk);
                    true
                }
                Err(error) => {
                    tracing::warn!(%shard, %error, "a tick's entry was not applied; its wants are tried again");
                    false
                }
            };
            // A supervisor that is gone has no use for the answer.
            drop(myself.send_message(ShardMessage::Answered { applied, grants: keys, shrinks }));
        });
    }

    fn answered(
        &mut self,
        myself: &ActorRef<ShardMessage>,
        applied: bool,
        grants: Vec<u64>,
        shrinks: Vec<proto::Shrink>,
    ) {
        self.entry_in_flight = false;
        for key in grants {
            if let Some(child) = self.children.get(&key) {
                drop(child.actor.send_message(CampaignMessage::Answered));
            }
        }
        if !applied {
            self.collect_shrinks(shrinks);
            if self.draining {
                // The node is stopping and its log does not take entries any more: closing returns the money later.
                self.shrinks.clear();
                self.checkpoints.clear();
            }
            return self.maybe_drained();
        }
        self.maybe_propose(myself);
    }

    fn maybe_close(&mut self, myself: &ActorRef<ShardMessage>, now_ms: u64) {
        let settings = &self.args.settings;
        if self.args.shard.take_due_dirty() {
            let due_ms = self.args.shard.book().next_maintenance_due_ms(
                settings.skew_margin_ms,
                settings.retry_window_ms,
                settings.purge_after_ms,
            );
            self.close_due_ms = due_ms.unwrap_or(u64::MAX);
        }
        let in_grace = self.args.clock.monotonic_ms() < self.grace_until_ms;
        let trusted = self.clock_trusted(now_ms);
        if self.closing_in_flight || in_grace || now_ms < self.close_due_ms || !trusted {
            return;
        }
        self.closing_in_flight = true;
        let close = proto::CloseExpired {
            now_ms,
            skew_margin_ms: settings.skew_margin_ms,
            retry_window_ms: settings.retry_window_ms,
            purge_after_ms: settings.purge_after_ms,
        };
        let command = proto::Command { kind: Some(proto::command::Kind::CloseExpired(close)) }.encode_to_vec();
        let (host, shard, metrics) = (self.args.host.clone(), self.args.shard.id, self.args.metrics.clone());
        let myself = myself.clone();
        tokio::spawn(async move {
            match host.propose(shard, command.into(), Instant::now() + ENTRY_TIMEOUT).await {
                Ok(applied) => {
                    let reply = proto::Reply::decode(applied.reply).expect("the book's own reply decodes");
                    metrics.allowances_closed.inc_by(reply.closed);
                }
                Err(error) => tracing::warn!(%shard, %error, "a closing was not applied; it is tried again"),
            }
            drop(myself.send_message(ShardMessage::Closed));
        });
    }

    /// The node's clock is trusted and the shard's own time is not ahead of it.
    fn clock_trusted(&self, now_ms: u64) -> bool {
        let ahead = self.args.shard.book().shard_time_ms() > now_ms + self.args.settings.skew_margin_ms;
        self.args.shard.set_time_ahead(ahead);
        !ahead && self.args.clock.trusted()
    }

    fn wake_at(&mut self, key: u64, at_ms: u64) {
        self.unwake(key);
        self.wake_of.insert(key, at_ms);
        self.wakes.insert((at_ms, key));
    }

    fn unwake(&mut self, key: u64) {
        if let Some(before) = self.wake_of.remove(&key) {
            self.wakes.remove(&(before, key));
        }
    }

    fn ended(&mut self, actor: &ActorCell, reason: Option<String>) {
        let Some(key) = self.keys.remove(&actor.get_id()) else { return };
        let Some(child) = self.children.remove(&key) else { return };
        self.awaited.remove(&key);
        self.grants.remove(&key);
        self.unwake(key);
        self.args.metrics.actors_alive.dec();
        if let Some(cell) = self.args.shard.cell(key) {
            // The actor's own guard may not have run yet.
            cell.end(child.epoch, if child.retiring { Life::Dormant } else { Life::Failed });
            self.collect_shrinks(shrinks(&cell));
            if child.retiring {
                return;
            }
            let reason = reason.unwrap_or_else(|| "killed".into());
            tracing::error!(shard = %self.args.shard.id, campaign = %cell.view().settings.name, reason, "campaign actor failed; it hands out nothing until it is back");
            self.failed(key);
        }
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

    fn drain(&mut self, myself: &ActorRef<ShardMessage>, reply: RpcReplyPort<()>) {
        self.draining = true;
        self.drained = Some(reply);
        self.retire_all();
        self.maybe_propose(myself);
    }

    fn retire_all(&mut self) {
        self.children.values_mut().filter(|child| !child.retiring).for_each(Child::retire);
    }

    /// Shard time was set: what was planned in the old time means nothing, and holders start anew.
    fn start_anew(&mut self) {
        self.wakes.clear();
        self.wake_of.clear();
        self.restart_at.clear();
        self.failures.clear();
        self.retire_all();
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

    fn maybe_drained(&mut self) {
        let done =
            self.children.is_empty() && !self.entry_in_flight && self.shrinks.is_empty() && self.checkpoints.is_empty();
        if done && let Some(reply) = self.drained.take() {
            drop(reply.send(()));
        }
    }

    /// Tells the ticker when this shard wants its next tick even without traffic.
    fn publish_due(&self) {
        let wake = self.wakes.first().map_or(u64::MAX, |(at, _)| *at);
        let pending = if self.grants.is_empty() && self.shrinks.is_empty() { u64::MAX } else { 0 };
        self.args.shard.set_next_due(wake.min(self.close_due_ms).min(pending));
    }
}
