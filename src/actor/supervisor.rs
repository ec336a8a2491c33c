//! Supervises one shard: its campaigns' actors ([`children`](super::children)) and what they put into its log
//! ([`entries`](super::entries)).

use std::sync::Arc;

use andante_cluster::host::Host;
use ractor::{Actor, ActorProcessingErr, ActorRef, RpcReplyPort, SupervisionEvent};

use super::{
    campaign::{Wants, shrinks},
    children::{Children, Ended},
    clock::NodeClock,
    entries::{Answer, Entries},
    shard::Shard,
};
use crate::{metrics::Metrics, settings::Settings};

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

/// State of a shard's supervisor.
pub struct ShardState {
    args: ShardArgs,
    children: Children,
    entries: Entries,
    /// No actor is started any more.
    draining: bool,
    drained: Option<RpcReplyPort<()>>,
}

impl Actor for ShardSupervisor {
    type Msg = ShardMessage;
    type State = ShardState;
    type Arguments = ShardArgs;

    async fn pre_start(&self, _myself: ActorRef<Self::Msg>, args: ShardArgs) -> Result<ShardState, ActorProcessingErr> {
        args.shard.set_next_due(0);
        let mut entries = Entries::new(&args);
        // What a supervisor before this one left behind.
        for cell in args.shard.cells() {
            entries.add_shrinks(shrinks(&cell));
        }
        Ok(ShardState { children: Children::new(args.clone()), entries, draining: false, drained: None, args })
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
            ShardMessage::Closed => state.entries.closed(),
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
            self.children.start_anew();
        }
        self.children.tick(myself, now_ms, !self.draining).await;
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
        self.children.answered(&answer.grants);
        self.entries.answered(answer.applied, answer.shrinks, self.draining);
        if answer.applied {
            self.maybe_propose(myself);
        } else {
            self.maybe_drained();
        }
    }

    fn maybe_propose(&mut self, myself: &ActorRef<ShardMessage>) {
        self.entries.maybe_propose(myself);
        self.maybe_drained();
    }

    fn drain(&mut self, myself: &ActorRef<ShardMessage>, reply: RpcReplyPort<()>) {
        self.draining = true;
        self.drained = Some(reply);
        self.children.retire_all();
        self.maybe_propose(myself);
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
        self.args.shard.set_next_due(self.children.due_ms().min(self.entries.due_ms()));
    }
}
