//! Supervises the shards of a node and ticks them.
//!
//! One timer for the whole node: a shard without traffic and without anything due gets no tick, and one that is led
//! elsewhere gets none at all, so idle shards cost one comparison per tick.

use std::{collections::HashMap, sync::Arc};

use andante_cluster::host::Host;
use ractor::{Actor, ActorCell, ActorId, ActorProcessingErr, ActorRef, RpcReplyPort, SupervisionEvent};
use tokio::{
    task::JoinHandle,
    time::{Duration, MissedTickBehavior, interval},
};

use super::{
    clock::NodeClock,
    shard::Shard,
    supervisor::{ShardArgs, ShardMessage, ShardSupervisor},
};
use crate::metrics::Metrics;

/// Messages to the node's supervisor.
#[derive(Debug)]
pub enum NodeMessage {
    /// Tick the shards that need it.
    Tick,
    /// Kill a campaign's actor, as a crash would; answers whether there was one.
    Crash {
        /// Position of its shard.
        shard: usize,
        /// The campaign.
        key: u64,
        /// The answer.
        reply: RpcReplyPort<bool>,
    },
    /// Drain a shard.
    Drain {
        /// Its position.
        shard: usize,
        /// Answered when everything it held is given back.
        reply: RpcReplyPort<()>,
    },
}

/// The supervisor.
pub struct NodeSupervisor;

/// State of the node's supervisor.
pub struct NodeState {
    shards: Vec<ShardArgs>,
    supervisors: Vec<Option<ActorRef<ShardMessage>>>,
    positions: HashMap<ActorId, usize>,
    host: Arc<Host>,
    clock: Arc<NodeClock>,
    metrics: Arc<Metrics>,
}

impl Actor for NodeSupervisor {
    type Msg = NodeMessage;
    type State = NodeState;
    type Arguments = Vec<ShardArgs>;

    async fn pre_start(
        &self,
        myself: ActorRef<Self::Msg>,
        shards: Vec<ShardArgs>,
    ) -> Result<NodeState, ActorProcessingErr> {
        let first = shards.first().ok_or("a node has at least one shard")?;
        let mut state = NodeState {
            host: first.host.clone(),
            clock: first.clock.clone(),
            metrics: first.metrics.clone(),
            supervisors: vec![None; shards.len()],
            positions: HashMap::new(),
            shards,
        };
        for position in 0..state.shards.len() {
            state.start(&myself, position).await?;
        }
        Ok(state)
    }

    async fn handle(
        &self,
        myself: ActorRef<Self::Msg>,
        message: NodeMessage,
        state: &mut NodeState,
    ) -> Result<(), ActorProcessingErr> {
        match message {
            NodeMessage::Tick => state.tick(&myself).await,
            NodeMessage::Crash { shard, key, reply } => state.forward(shard, ShardMessage::Crash(key, reply)),
            NodeMessage::Drain { shard, reply } => state.forward(shard, ShardMessage::Drain(reply)),
        }
        Ok(())
    }

    async fn handle_supervisor_evt(
        &self,
        _myself: ActorRef<Self::Msg>,
        event: SupervisionEvent,
        state: &mut NodeState,
    ) -> Result<(), ActorProcessingErr> {
        match event {
            SupervisionEvent::ActorFailed(actor, error) => state.ended(&actor, &error.to_string()),
            SupervisionEvent::ActorTerminated(actor, _, reason) => {
                state.ended(&actor, reason.as_deref().unwrap_or("it stopped"));
            }
            _ => {}
        }
        Ok(())
    }
}

impl NodeState {
    async fn start(&mut self, myself: &ActorRef<NodeMessage>, position: usize) -> Result<(), ActorProcessingErr> {
        let args = self.shards[position].clone();
        let (actor, _) = Actor::spawn_linked(None, ShardSupervisor, args, myself.get_cell()).await?;
        self.positions.insert(actor.get_id(), position);
        self.supervisors[position] = Some(actor);
        Ok(())
    }

    async fn tick(&mut self, myself: &ActorRef<NodeMessage>) {
        let voters = self.host.directory().borrow().nodes.len();
        if self.clock.check(voters) {
            if self.clock.trusted() {
                tracing::info!("the wall clock is trusted again: allowances are closed as usual");
            } else {
                tracing::error!(
                    drift_ms = self.clock.drift_ms(),
                    "the wall clock stepped beyond the skew margin: scores and outcomes go on, but nothing is closed \
                     or purged until it comes back, most nodes show the same time, or an operator confirms it"
                );
            }
        }
        self.metrics.clock_trusted.set(self.clock.trusted().into());
        let now_ms = self.clock.now_ms();
        for position in 0..self.shards.len() {
            match &self.supervisors[position] {
                Some(supervisor) if needs_tick(&self.shards[position].shard, now_ms) => {
                    drop(supervisor.send_message(ShardMessage::Tick));
                }
                Some(_) => {}
                // The tick is the backoff: a shard whose supervisor can't start is tried again at the next one.
                None => {
                    if let Err(error) = self.start(myself, position).await {
                        tracing::error!(shard = %self.shards[position].shard.id, %error, "shard supervisor did not start");
                    }
                }
            }
        }
    }

    fn forward(&self, position: usize, message: ShardMessage) {
        // Dropping the message drops its reply port: the asker learns that nobody is there.
        if let Some(Some(supervisor)) = self.supervisors.get(position) {
            drop(supervisor.send_message(message));
        }
    }

    fn ended(&mut self, actor: &ActorCell, reason: &str) {
        if let Some(position) = self.positions.remove(&actor.get_id()) {
            tracing::error!(shard = %self.shards[position].shard.id, reason, "shard supervisor ended; it is started again");
            self.supervisors[position] = None;
        }
    }
}

/// A follower's cells change by its log alone.
fn needs_tick(shard: &Shard, now_ms: u64) -> bool {
    shard.scores() && (shard.has_touched() || shard.is_due_dirty() || now_ms >= shard.next_due_ms())
}

/// Sends ticks until the node's supervisor is gone. A late tick is not made up for.
pub fn start_ticker(supervisor: ActorRef<NodeMessage>, tick_ms: u64, metrics: Arc<Metrics>) -> JoinHandle<()> {
    tokio::spawn(async move {
        let mut ticks = interval(Duration::from_millis(tick_ms));
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let planned = ticks.tick().await;
            metrics.tick_lag.observe_micros(planned.elapsed().as_micros() as u64);
            if supervisor.send_message(NodeMessage::Tick).is_err() {
                return;
            }
        }
    })
}
