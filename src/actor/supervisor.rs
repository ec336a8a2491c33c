//! Supervises one shard: its campaigns' actors ([`children`](super::children)) and what they put into its log
//! ([`entries`](super::entries)), as who leads it comes and goes.
//!
//! | news | what happens |
//! |---|---|
//! | this node leads | a session begins; cells of active campaigns get allowances, actors follow ([`takeover`](super::takeover)) |
//! | this node leads in another term | the same; actors that are there stay, their allowances are still theirs |
//! | this node leads again, in the same term | it proposes again |
//! | nobody is known to lead | cells hand out what they have, nothing is proposed |
//! | another node leads | cells are sealed at once, actors end, what was not handed out is given back through the leader |

use std::sync::Arc;

use andante_cluster::host::{Host, Leadership};
use ractor::{Actor, ActorProcessingErr, ActorRef, RpcReplyPort, SupervisionEvent};
use tokio::{sync::watch, task::JoinHandle, time::Duration};

use super::{
    campaign::{Wants, shrinks},
    children::{Children, Ended},
    clock::NodeClock,
    entries::{Answer, Entries, EntryFate},
    role::Role,
    shard::Shard,
    takeover::{self, StaleWeights},
};
use crate::{
    campaign::book::CampaignState,
    metrics::Metrics,
    settings::{Settings, SettingsInForce},
};

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
    Answered(Answer),
    /// A closing was applied, or not.
    Closed {
        /// When it was proposed.
        session: u64,
    },
    /// The pause after an entry that failed is over.
    Retry,
    /// The time to drain is over.
    GiveUp,
    /// Who leads the shard.
    Leadership(Leadership),
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
    /// Who leads it.
    pub leadership: watch::Receiver<Leadership>,
    /// Node time.
    pub clock: Arc<NodeClock>,
    /// The node's settings.
    pub settings: Arc<Settings>,
    /// The cluster's.
    pub cluster_settings: SettingsInForce,
    /// Metrics.
    pub metrics: Arc<Metrics>,
}

/// How long a shard that is drained waits for somebody to give its money back to: an election takes a second or two.
const DRAIN_PATIENCE: Duration = Duration::from_secs(5);

/// The supervisor.
pub struct ShardSupervisor;

/// State of a shard's supervisor.
pub struct ShardState {
    args: ShardArgs,
    children: Children,
    entries: Entries,
    /// The term in which this node led last.
    term: u64,
    stale_weights: StaleWeights,
    /// No actor is started any more.
    draining: bool,
    drained: Option<RpcReplyPort<()>>,
    follower: JoinHandle<()>,
}

impl Drop for ShardState {
    fn drop(&mut self) {
        self.follower.abort();
    }
}

/// Tells a supervisor who leads, now and whenever that changes.
fn follow(mut leadership: watch::Receiver<Leadership>, supervisor: ActorRef<ShardMessage>) -> JoinHandle<()> {
    tokio::spawn(async move {
        loop {
            let news = *leadership.borrow_and_update();
            if supervisor.send_message(ShardMessage::Leadership(news)).is_err() || leadership.changed().await.is_err() {
                return;
            }
        }
    })
}

impl Actor for ShardSupervisor {
    type Msg = ShardMessage;
    type State = ShardState;
    type Arguments = ShardArgs;

    async fn pre_start(&self, myself: ActorRef<Self::Msg>, args: ShardArgs) -> Result<ShardState, ActorProcessingErr> {
        args.shard.set_next_due(0);
        let mut entries = Entries::new(&args);
        // What a supervisor before this one left behind.
        for cell in args.shard.cells() {
            entries.add_shrinks(shrinks(&cell));
        }
        // One before it may have led: nothing is handed out until this one does.
        args.shard.set_role(Role::Following);
        Ok(ShardState {
            children: Children::new(args.clone()),
            entries,
            term: 0,
            stale_weights: StaleWeights::default(),
            draining: false,
            drained: None,
            follower: follow(args.leadership.clone(), myself),
            args,
        })
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
            ShardMessage::Answered(answer) => state.answered(&myself, answer),
            ShardMessage::Closed { session } => state.entries.closed(session),
            ShardMessage::Retry => state.maybe_propose(&myself),
            ShardMessage::GiveUp => state.give_up(),
            ShardMessage::Leadership(news) => state.news(&myself, &news),
            ShardMessage::Crash(key, reply) => drop(reply.send(state.children.crash(key))),
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
        let ended = match event {
            SupervisionEvent::ActorFailed(actor, error) => state.children.ended(&actor, Some(error.to_string())),
            SupervisionEvent::ActorTerminated(actor, last, reason) => {
                // The guard in the actor's state seals the cell: it must be gone before leftovers are collected.
                drop(last);
                state.children.ended(&actor, reason)
            }
            _ => None,
        };
        if let Some(Ended { key, shrinks }) = ended {
            state.entries.drop_grant(key);
            state.entries.add_shrinks(shrinks);
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
            let shrinks = self.children.start_anew();
            self.entries.add_shrinks(shrinks);
        }
        let starting = !self.draining && self.args.shard.role().scores();
        self.children.tick(myself, now_ms, starting).await;
        let children = &self.children;
        self.stale_weights.turn(&self.args.shard, |key| children.is_served(key));
        self.entries.maybe_close(myself, now_ms);
        self.maybe_propose(myself);
    }

    fn wants(&mut self, myself: &ActorRef<ShardMessage>, key: u64, wants: Wants) {
        self.entries.add_shrinks(wants.shrinks);
        // An actor that is gone has no use for a grant: nobody else may hand it out.
        if self.children.is_there(key, wants.epoch) {
            if let Some(checkpoint) = wants.checkpoint {
                self.entries.add_checkpoint(key, checkpoint);
            }
            if wants.last {
                self.children.stop(key);
            } else if self.children.stays(key, wants.epoch) {
                if wants.idle {
                    self.children.retire(key);
                } else {
                    if let Some(grant) = wants.grant {
                        self.entries.add_grant(key, grant);
                    }
                    if let Some(at) = wants.wake_ms {
                        self.children.wake_at(key, at);
                    }
                }
            }
        }
        self.children.heard(key);
        if !self.children.awaits() {
            self.maybe_propose(myself);
        }
    }

    fn answered(&mut self, myself: &ActorRef<ShardMessage>, answer: Answer) {
        let keys: Vec<u64> = answer.grants.iter().map(|grant| grant.campaign).collect();
        self.children.answered(&keys);
        let current = self.entries.answered(myself, answer.session, answer.fate, answer.shrinks);
        let unused = if current && answer.fate == EntryFate::Applied && !self.draining {
            self.children.standing.granted(&self.args.shard, answer.pledges)
        } else {
            self.children.standing.refused(&answer.pledges);
            answer.pledges
        };
        // Nothing of them was or will be handed out. Those surely not applied don't exist.
        if matches!(answer.fate, EntryFate::Applied | EntryFate::Unknown) {
            self.entries.add_shrinks(takeover::give_back(unused));
            let missed = answer.grants.into_iter().filter(|grant| takeover::missed(&self.args.shard, grant)).collect();
            self.entries.add_shrinks(takeover::give_back(missed));
        }
        self.maybe_propose(myself);
    }

    fn news(&mut self, myself: &ActorRef<ShardMessage>, news: &Leadership) {
        let before = self.args.shard.role();
        let role = before.after(news);
        match (role, news) {
            (Role::Leading, Leadership::Leader { term }) if *term != self.term || before == Role::Following => {
                self.term = *term;
                self.lead(myself);
            }
            // In its old term: nobody else has led meanwhile.
            (Role::Leading, _) if before == Role::CutOff => {
                tracing::info!(shard = %self.args.shard.id, term = self.term, "a quorum answers again");
                self.args.shard.set_role(role);
                self.entries.resume();
            }
            (Role::CutOff, _) if before != Role::CutOff => {
                tracing::warn!(shard = %self.args.shard.id, term = self.term, "no quorum answers: cells hand out what they have");
                self.args.shard.set_role(role);
                self.entries.cut_off();
            }
            (Role::Following, _) if before != Role::Following => {
                tracing::info!(shard = %self.args.shard.id, term = self.term, ?news, "another node leads: actors end");
                self.args.shard.set_role(role);
                self.entries.follow();
                self.stale_weights = StaleWeights::default();
                let shrinks = self.children.depose();
                self.entries.add_shrinks(shrinks);
            }
            _ => {}
        }
        self.maybe_propose(myself);
    }

    fn lead(&mut self, myself: &ActorRef<ShardMessage>) {
        let shard = self.args.shard.clone();
        let waiting = self.entries.lead();
        self.children.answered(&waiting);
        // A time that was set in an earlier term has sealed what there was.
        shard.take_time_set();
        shard.mark_due_dirty();
        let mut granted = 0;
        if !self.draining {
            let children = &mut self.children;
            let now_ms = self.args.clock.now_ms();
            let skip =
                |campaign: &CampaignState| children.is_served(campaign.key) || children.is_barred(campaign, now_ms);
            let grants =
                takeover::grants(&shard, children.node(), now_ms, self.args.settings.allowance_life_max_ms, skip);
            granted = grants.len();
            children.standing.pledge(&grants);
            self.entries.pledge(grants);
            // Before the rest is looked after: the entry is what tokens wait for.
            self.entries.maybe_propose(myself);
            self.stale_weights =
                StaleWeights::of(&shard, |key| children.is_served(key) || children.standing.is_pledged(key));
        }
        tracing::info!(shard = %shard.id, term = self.term, granted, "leads");
        shard.set_role(Role::Leading);
    }

    fn maybe_propose(&mut self, myself: &ActorRef<ShardMessage>) {
        self.entries.maybe_propose(myself);
        self.maybe_drained();
    }

    fn drain(&mut self, myself: &ActorRef<ShardMessage>, reply: RpcReplyPort<()>) {
        self.draining = true;
        self.drained = Some(reply);
        myself.send_after(DRAIN_PATIENCE, || ShardMessage::GiveUp);
        let shrinks = self.children.standing.give_up();
        self.entries.add_shrinks(shrinks);
        self.children.retire_all();
        self.maybe_propose(myself);
    }

    fn give_up(&mut self) {
        self.entries.give_up();
        self.maybe_drained();
    }

    fn maybe_drained(&mut self) {
        if self.children.is_empty()
            && self.entries.is_settled()
            && let Some(reply) = self.drained.take()
        {
            drop(reply.send(()));
        }
    }

    /// Tells the ticker when this shard wants its next tick even without traffic.
    fn publish_due(&self) {
        let stale = if self.stale_weights.is_empty() { u64::MAX } else { 0 };
        self.args.shard.set_next_due(stale.min(self.children.due_ms()).min(self.entries.due_ms()));
    }
}

#[cfg(test)]
mod tests;
