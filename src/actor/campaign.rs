//! The actor of one campaign: the only one that hands its allowances to its cell.
//!
//! No brains of its own: what to promote is decided by [`Pacer`], how much to set aside by [`crate::campaign`]; it
//! moves values between the book, the pacer and the cell. It is woken by its shard's tick, never by a timer.

use std::sync::Arc;

use andante_cluster::mutant;
use ractor::{Actor, ActorProcessingErr, ActorRef};

use super::{
    block::Block,
    cell::{Cell, Life, PacingStatus},
    clock::NodeClock,
    shard::Shard,
    supervisor::ShardMessage,
    traffic::Counts,
};
use crate::{
    campaign::{
        allowance::{allowance_life_ms, grant_size},
        book::CampaignState,
        explain,
        limits::{CLOSED_ALLOWANCES_MAX, OPEN_ALLOWANCES_MAX},
        pacing::{self, Holds, Pacer, StepInput},
        proto::{self, Holder},
    },
    metrics::Metrics,
    settings::Settings,
};

/// Pacing state goes into the replicated record this often at most, while there is traffic.
const CHECKPOINT_EVERY_MS: u64 = 30_000;
/// Without traffic for this long the actor ends; the next score wakes it again.
const IDLE_MS: u64 = 120_000;
/// An allowance is replaced while this many ticks' worth of tokens, or of its time, is left: a grant takes two.
const TICKS_AHEAD: f64 = 3.0;
/// What people are told is refreshed this often.
const STATUS_EVERY_TICKS: u64 = 10;
/// Listeners whose frequency windows have lapsed are forgotten this often.
const FORGET_EVERY_TICKS: u64 = 1_000;
/// Weight of the newest tick in the average of takes per tick.
const TAKES_WEIGHT: f64 = 0.3;

/// Messages to a campaign's actor.
#[derive(Debug)]
pub enum CampaignMessage {
    /// The shard's tick: the cell saw traffic, or something is due.
    Tick,
    /// The entry with this actor's wants was applied, or failed.
    Answered,
    /// Give up the allowance and end.
    Retire,
}

/// What an actor asks of its shard's next entry.
#[derive(Debug, Default)]
pub struct Wants {
    /// Epoch of the actor that asks.
    pub epoch: u64,
    /// A grant.
    pub grant: Option<proto::Grant>,
    /// Unissued tokens to give back.
    pub shrinks: Vec<proto::Shrink>,
    /// Pacing state to keep.
    pub checkpoint: Option<proto::Checkpoint>,
    /// When to be ticked again even without traffic, node time.
    pub wake_ms: Option<u64>,
    /// The campaign has been quiet for long or is gone: the actor can end.
    pub idle: bool,
    /// Nothing more comes from this actor: its supervisor ends it.
    pub last: bool,
}

/// What an actor is started with.
pub struct CampaignArgs {
    /// Its shard.
    pub shard: Arc<Shard>,
    /// Its cell.
    pub cell: Arc<Cell>,
    /// Its holder: nobody's before.
    pub holder: Holder,
    /// The allowance that the supervisor has handed out with this holder so far; the actor goes on with it.
    pub stood_behind: Option<u32>,
    /// Node time.
    pub clock: Arc<NodeClock>,
    /// Settings.
    pub settings: Arc<Settings>,
    /// Metrics.
    pub metrics: Arc<Metrics>,
    /// Where its wants go.
    pub supervisor: ActorRef<ShardMessage>,
}

/// The actor.
pub struct CampaignActor;

/// Seals the cell when whoever stands behind it ends, in whatever way.
pub(super) struct SealGuard {
    pub(super) cell: Arc<Cell>,
    pub(super) epoch: u64,
    /// How the end is to be seen; `None`: somebody else stands behind the cell by now.
    pub(super) life: Option<Life>,
}

impl Drop for SealGuard {
    fn drop(&mut self) {
        if let Some(life) = self.life {
            self.cell.end(self.epoch, life);
        }
    }
}

/// State of a campaign's actor.
pub struct ActorState {
    args: CampaignArgs,
    guard: SealGuard,
    pacer: Pacer,
    /// The highest allowance number seen.
    adopted: u32,
    /// Revision of the settings the pacer has.
    revision: u64,
    /// Outcomes the pacer has learned from.
    counters: proto::Counters,
    /// Shard time up to which closings were learned from.
    closed_until_ms: u64,
    ticks: u64,
    /// A grant is on its way.
    waiting: bool,
    takes_per_tick: f64,
    last_traffic_ms: u64,
    last_checkpoint_ms: u64,
}

impl Actor for CampaignActor {
    type Msg = CampaignMessage;
    type State = ActorState;
    type Arguments = CampaignArgs;

    async fn pre_start(
        &self,
        _myself: ActorRef<Self::Msg>,
        args: CampaignArgs,
    ) -> Result<ActorState, ActorProcessingErr> {
        let now_ms = args.clock.now_ms();
        let book = args.shard.book();
        let closed_until_ms = book.shard_time_ms();
        let (pacer, revision, counters) = match book.campaign(args.cell.key) {
            Some(campaign) => {
                // What came since the checkpoint is learned by the first step.
                let learned = campaign.control.as_ref().and_then(|control| control.learned);
                (args.shard.pacer(campaign), campaign.revision, learned.unwrap_or(campaign.counters))
            }
            None => return Err("the campaign is gone".into()),
        };
        drop(book);
        let epoch = args.holder.cell_epoch;
        let guard = SealGuard { cell: args.cell.clone(), epoch, life: Some(Life::Failed) };
        let mut state = ActorState {
            pacer,
            guard,
            // Handed out already: never installed again, since its counter goes on in the cell.
            adopted: args.stood_behind.filter(|_| !mutant!(ResumeOldSequence)).unwrap_or(0),
            revision,
            counters,
            closed_until_ms,
            ticks: 0,
            waiting: false,
            takes_per_tick: 0.0,
            last_traffic_ms: now_ms,
            last_checkpoint_ms: now_ms,
            args,
        };
        if state.args.stood_behind.is_none() {
            state.args.cell.begin(epoch);
        }
        state.tick();
        Ok(state)
    }

    async fn handle(
        &self,
        _myself: ActorRef<Self::Msg>,
        message: CampaignMessage,
        state: &mut ActorState,
    ) -> Result<(), ActorProcessingErr> {
        match message {
            CampaignMessage::Retire => state.retire(),
            // The cell was taken from it: what it would do is somebody else's now.
            _ if !state.args.cell.is_held_by(state.args.holder.cell_epoch) => {}
            CampaignMessage::Tick => state.tick(),
            CampaignMessage::Answered => state.answered(),
        }
        Ok(())
    }
}

impl ActorState {
    fn send(&self, wants: Wants) {
        let wants = Box::new(Wants { epoch: self.args.holder.cell_epoch, ..wants });
        // A supervisor that is gone takes its actors with it.
        drop(self.args.supervisor.send_message(ShardMessage::Wants { key: self.args.cell.key, wants }));
    }

    fn tick(&mut self) {
        let now_ms = self.args.clock.now_ms();
        let shard = self.args.shard.clone();
        let book = shard.book();
        let key = self.args.cell.key;
        let Some(campaign) = book.campaign(key).filter(|c| c.incarnation == self.args.cell.incarnation) else {
            drop(book);
            self.args.cell.seal();
            return self.send(Wants { idle: true, ..Wants::default() });
        };
        self.adopt(campaign);
        let counts = self.args.cell.traffic.drain();
        if counts.opportunities > 0 {
            self.last_traffic_ms = now_ms;
        }
        self.takes_per_tick += TAKES_WEIGHT * (counts.takes as f64 - self.takes_per_tick);
        self.step(now_ms, campaign, &counts);
        if self.args.cell.refresh(self.args.clock.monotonic_ms()) {
            self.args.metrics.cells_suspended.inc();
        }
        // The book's time is never behind shard time: a clock that is gets allowances all the same.
        let wants = self.wants(now_ms, now_ms.max(book.shard_time_ms()), campaign, &counts);
        self.closed_until_ms = book.shard_time_ms();
        #[cfg(andante_mutants)]
        if let Some(grant) = &wants.grant
            && mutant!(GrantBeforeApplied)
        {
            self.adopted = grant.number;
            self.args.cell.install(Block::proposed(grant, &campaign.spec));
        }
        drop(book);
        if self.ticks.is_multiple_of(FORGET_EVERY_TICKS) {
            self.args.cell.forget_lapsed(now_ms);
        }
        self.waiting |= wants.grant.is_some();
        self.send(wants);
    }

    fn answered(&mut self) {
        self.waiting = false;
        let shard = self.args.shard.clone();
        let book = shard.book();
        if let Some(campaign) = book.campaign(self.args.cell.key) {
            self.adopt(campaign);
        }
        drop(book);
        // Without traffic from now on, its end is what wakes the actor to give back what was not handed out.
        if let Some(block) = self.args.cell.block() {
            self.send(Wants { wake_ms: Some(block.issue_until_ms + 1), ..Wants::default() });
        }
    }

    /// Takes over allowances that were applied with this holder: the newest is handed out, others (a reply was lost)
    /// are given back.
    fn adopt(&mut self, campaign: &CampaignState) {
        for (number, allowance) in campaign.open.range(self.adopted + 1..) {
            if allowance.holder == self.args.holder {
                self.adopted = *number;
                self.args.cell.install(Block::new(allowance));
            }
            #[cfg(andante_mutants)]
            if allowance.holder != self.args.holder
                && allowance.holder.node_id == self.args.holder.node_id
                && mutant!(ResumeOldSequence)
            {
                self.adopted = *number;
                let mut block = Block::new(allowance);
                block.holder = self.args.holder;
                self.args.cell.install(block);
            }
        }
    }

    fn step(&mut self, now_ms: u64, campaign: &CampaignState, counts: &Counts) {
        if campaign.revision != self.revision {
            self.revision = campaign.revision;
            self.pacer.set(pacing::Settings::from(&*campaign.spec));
        }
        let (before, after) = (self.counters, campaign.counters);
        self.counters = after;
        self.pacer.learn_quality(&after);
        let weights = self.pacer.step(&StepInput {
            now_ms,
            opportunities: counts.opportunities,
            relevance_sum: counts.relevance_sum,
            price_sum_micros: counts.price_sum_micros as f64,
            takes: counts.takes,
            taken_micros: counts.taken_micros,
            bound: explain::Bound {
                lost_slot: counts.slot,
                promoted_share: counts.promoted_share,
                frequency_cap: counts.frequency_cap,
                nothing_free: if campaign.ledger.free_micros() < campaign.spec.price_micros {
                    counts.unserved
                } else {
                    0
                },
                allowance_cap: if campaign.ledger.free_micros() < campaign.spec.price_micros {
                    0
                } else {
                    counts.unserved
                },
                below_floor: counts.below_floor,
            },
            billed: after.billed.saturating_sub(before.billed),
            unbilled: after.released.saturating_sub(before.released)
                + if after.expired > before.expired { self.expired(campaign) } else { 0 },
            settled_micros: campaign.ledger.settled_micros(),
            open_micros: campaign.ledger.open_micros(),
            holds: holds(campaign, self.args.cell.block().as_deref()),
        });
        let cell = &self.args.cell;
        cell.publish_weights(weights);
        if self.ticks.is_multiple_of(STATUS_EVERY_TICKS) {
            cell.publish_status(PacingStatus {
                mu: self.pacer.mu(),
                billable_share: self.pacer.billable_share(),
                stranded_micros: self.pacer.stranded_micros(),
                explanation: self.pacer.explanation(now_ms),
            });
        }
        self.ticks += 1;
    }

    /// Tokens that were handed out and came back unused by a closing since the last step. Only allowances of this
    /// start of the node tell: they gave back what was not handed out before they closed. What a lost process held
    /// closes as a whole, whether it was handed out or not.
    fn expired(&self, campaign: &CampaignState) -> u64 {
        let Holder { node_id, boot_id, .. } = self.args.holder;
        let own = |holder: &Holder| holder.node_id == node_id && holder.boot_id == boot_id;
        let closed = campaign.closed.values().filter(|a| a.closed_ms > self.closed_until_ms && own(&a.holder));
        closed.map(|allowance| u64::from(allowance.outstanding())).sum()
    }

    fn wants(&mut self, now_ms: u64, book_now_ms: u64, campaign: &CampaignState, counts: &Counts) -> Wants {
        let cell = &self.args.cell;
        if cell.block().is_some_and(|block| now_ms > block.issue_until_ms || block.is_sealed()) {
            cell.seal();
        }
        let block = cell.block();
        let low = block.as_ref().is_none_or(|block| {
            let time_left_ms = block.issue_until_ms.saturating_sub(now_ms) as f64;
            let tick_ms = self.args.settings.tick_ms as f64;
            block.left() == 0
                || f64::from(block.left()) <= TICKS_AHEAD * self.takes_per_tick
                || time_left_ms <= TICKS_AHEAD * tick_ms
        });
        let wanted = low && counts.opportunities > 0 && !self.waiting;
        let grant = wanted
            .then(|| {
                grant(&self.pacer, self.args.holder, campaign, book_now_ms, self.args.settings.allowance_life_max_ms)
            })
            .flatten();
        let due = counts.opportunities > 0 && now_ms >= self.last_checkpoint_ms + CHECKPOINT_EVERY_MS;
        let idle_at_ms = self.last_traffic_ms + IDLE_MS;
        Wants {
            grant,
            shrinks: shrinks(cell),
            wake_ms: Some(block.as_ref().map_or(idle_at_ms, |block| block.issue_until_ms + 1)),
            idle: now_ms >= idle_at_ms && block.is_none(),
            checkpoint: due.then(|| self.checkpoint(now_ms)),
            ..Wants::default()
        }
    }

    fn checkpoint(&mut self, now_ms: u64) -> proto::Checkpoint {
        self.last_checkpoint_ms = now_ms;
        proto::Checkpoint {
            campaign: self.args.cell.key,
            incarnation: self.args.cell.incarnation,
            control: Some(proto::Control { learned: Some(self.counters), ..self.pacer.checkpoint() }),
        }
    }

    fn retire(&mut self) {
        self.guard.life = Some(Life::Dormant);
        // What is left in it is collected by the supervisor when the actor has ended.
        self.args.cell.end(self.guard.epoch, Life::Dormant);
        let checkpoint = Some(self.checkpoint(self.args.clock.now_ms()));
        self.send(Wants { checkpoint, last: true, ..Wants::default() });
    }
}

/// Tokens handed out of open allowances; `block` is the one in the cell. How many another holder handed out is not
/// known here: all, at worst.
pub(super) fn holds(campaign: &CampaignState, block: Option<&Block>) -> Holds {
    let mut holds = Holds::default();
    for (number, allowance) in &campaign.open {
        let own = block.filter(|block| block.number == *number);
        let issued = own.map_or(allowance.n, |block| block.n - block.left());
        holds.issued_micros += u64::from(issued) * allowance.price_micros;
        holds.settled_micros += u64::from(allowance.settled_count) * allowance.price_micros;
        holds.released_micros += u64::from(allowance.released_count) * allowance.price_micros;
    }
    holds
}

/// What to ask for, as the pacer plans it; `None` if nothing can be had now.
pub(super) fn grant(
    pacer: &Pacer,
    holder: Holder,
    campaign: &CampaignState,
    now_ms: u64,
    life_max_ms: u64,
) -> Option<proto::Grant> {
    let spec = &campaign.spec;
    let full = campaign.open.len() >= OPEN_ALLOWANCES_MAX || campaign.closed.len() >= CLOSED_ALLOWANCES_MAX;
    if !campaign.is_eligible(now_ms) || full {
        return None;
    }
    let life_ms = allowance_life_ms(spec.hold_ms, pacer.mean_ms_between_takes() as u64).min(life_max_ms);
    let n = grant_size(campaign.ledger.free_micros(), spec.price_micros, pacer.pace_share_tokens(life_ms));
    (n > 0).then(|| proto::Grant {
        campaign: campaign.key,
        incarnation: campaign.incarnation,
        number: campaign.next_allowance,
        n,
        holder: Some(holder),
        issue_until_ms: now_ms + life_ms,
    })
}

/// The shrinks that give back what a cell's sealed allowances did not hand out.
pub fn shrinks(cell: &Cell) -> Vec<proto::Shrink> {
    let shrink = |block: Arc<Block>| proto::Shrink {
        campaign: cell.key,
        incarnation: cell.incarnation,
        number: block.number,
        issued: block.seal(),
        holder: Some(block.holder),
    };
    cell.drain_leftovers().into_iter().map(shrink).collect()
}
