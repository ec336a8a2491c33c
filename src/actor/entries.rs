//! What a shard puts into its log beside outcomes: one entry per tick with everything its actors want, and closings.
//!
//! What is on its way belongs to a *session*, the time between two changes of leadership. An answer that arrives in a
//! later session frees nobody to propose again; what it says of actors and of money counts all the same.
//!
//! | role | what waits |
//! |---|---|
//! | leading | is proposed here |
//! | cut off | waits |
//! | following | shrinks are sent to the leader, a few times at most; nothing else is wanted any more |

use std::{collections::BTreeMap, sync::Arc};

use andante_cluster::{
    host::{Host, ProposeError},
    mutant,
};
use prost::Message;
use ractor::ActorRef;
use tokio::time::{Duration, Instant};

use super::{
    clock::NodeClock,
    role::Role,
    shard::Shard,
    supervisor::{ShardArgs, ShardMessage},
};
use crate::{
    campaign::proto,
    metrics::Metrics,
    settings::{ClusterSettings, Settings, SettingsInForce},
};

/// Grants per entry; the rest waits for the next entry. So below: an entry stays far under its size limit.
const GRANTS_PER_ENTRY: usize = 4_096;
/// Shrinks per entry.
const SHRINKS_PER_ENTRY: usize = 16_384;
/// Checkpoints per entry, of some 1.5 KB each.
const CHECKPOINTS_PER_ENTRY: usize = 1_024;
/// How long the fate of an entry is waited for.
const ENTRY_TIMEOUT: Duration = Duration::from_secs(10);

/// Times an entry of shrinks is sent to a new leader; then closing returns their money.
const FORWARD_TRIES: u32 = 3;
/// First pause after an entry that was not applied; doubles with each one.
const BACKOFF_MIN_MS: u64 = 100;
/// Doublings, at most: more would overflow.
const BACKOFF_DOUBLINGS: u32 = 10;
/// Longest pause.
const BACKOFF_MAX_MS: u64 = 5_000;

/// What became of an entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EntryFate {
    /// Applied.
    Applied,
    /// Surely not applied.
    NotApplied,
    /// Applied, or not, or yet to be.
    Unknown,
    /// Surely not applied: the node's log takes nothing any more.
    Stopping,
}

/// The fate of a tick's entry, with what was in it.
#[derive(Debug)]
pub struct Answer {
    /// When it was sent.
    pub session: u64,
    /// What became of it.
    pub fate: EntryFate,
    /// Grants that actors asked for.
    pub grants: Vec<proto::Grant>,
    /// Grants for cells whose actors come later.
    pub pledges: Vec<proto::Grant>,
    /// Shrinks.
    pub shrinks: Vec<proto::Shrink>,
}

/// Takes the first `count` out of a map.
fn take_first<K: Ord + Copy, V>(map: &mut BTreeMap<K, V>, count: usize) -> BTreeMap<K, V> {
    let rest = map.keys().nth(count).copied().map(|later| map.split_off(&later)).unwrap_or_default();
    std::mem::replace(map, rest)
}

/// What waits for the next entry, and what is on its way.
pub(super) struct Entries {
    shard: Arc<Shard>,
    host: Arc<Host>,
    clock: Arc<NodeClock>,
    settings: Arc<Settings>,
    cluster_settings: SettingsInForce,
    metrics: Arc<Metrics>,
    role: Role,
    session: u64,
    /// Nothing is given back any more: the node stops.
    given_up: bool,
    grants: BTreeMap<u64, proto::Grant>,
    pledges: BTreeMap<u64, proto::Grant>,
    shrinks: BTreeMap<(u64, u32, u32), proto::Shrink>,
    checkpoints: BTreeMap<u64, proto::Checkpoint>,
    /// An entry of this session is on its way, with grants for these campaigns' actors.
    in_flight: Option<Vec<u64>>,
    /// Entries whose answers are still to come, of whatever session.
    unanswered: u32,
    closing_in_flight: bool,
    /// Entries in a row that were not applied.
    failures: u32,
    /// Nothing is proposed before this moment of the monotonic clock.
    retry_at_ms: u64,
    close_due_ms: u64,
    /// Since when this node leads, by the monotonic clock: the grace counts from there.
    leads_since_ms: u64,
}

impl Entries {
    pub(super) fn new(args: &ShardArgs) -> Self {
        Self {
            shard: args.shard.clone(),
            host: args.host.clone(),
            clock: args.clock.clone(),
            settings: args.settings.clone(),
            cluster_settings: args.cluster_settings.clone(),
            metrics: args.metrics.clone(),
            role: Role::Following,
            session: 0,
            given_up: false,
            grants: BTreeMap::new(),
            pledges: BTreeMap::new(),
            shrinks: BTreeMap::new(),
            checkpoints: BTreeMap::new(),
            in_flight: None,
            unanswered: 0,
            closing_in_flight: false,
            failures: 0,
            retry_at_ms: 0,
            close_due_ms: 0,
            leads_since_ms: 0,
        }
    }

    /// This node leads, in a term of its own: a session begins, and a grace for closings. Returns the campaigns whose
    /// actors wait for an entry of the session before.
    pub(super) fn lead(&mut self) -> Vec<u64> {
        self.leads_since_ms = self.clock.monotonic_ms();
        self.begin(Role::Leading)
    }

    /// No quorum answers: nothing is proposed until one does.
    pub(super) fn cut_off(&mut self) {
        self.role = Role::CutOff;
    }

    /// A quorum answers again, in the same term.
    pub(super) fn resume(&mut self) {
        self.role = Role::Leading;
        (self.failures, self.retry_at_ms) = (0, 0);
    }

    /// Another node leads.
    pub(super) fn follow(&mut self) {
        self.begin(Role::Following);
        self.shard.set_time_ahead(false);
        self.grants.clear();
        self.checkpoints.clear();
    }

    fn begin(&mut self, role: Role) -> Vec<u64> {
        self.role = role;
        self.session += 1;
        self.closing_in_flight = false;
        (self.failures, self.retry_at_ms) = (0, 0);
        self.pledges.clear();
        self.in_flight.take().unwrap_or_default()
    }

    /// The node stops and nobody takes what it has to give back: closing returns the money later.
    pub(super) fn give_up(&mut self) {
        self.given_up = true;
        self.shrinks.clear();
        self.checkpoints.clear();
    }

    /// Grants for cells whose actors come later.
    pub(super) fn pledge(&mut self, grants: Vec<proto::Grant>) {
        self.pledges.extend(grants.into_iter().map(|grant| (grant.campaign, grant)));
    }

    pub(super) fn add_grant(&mut self, key: u64, grant: proto::Grant) {
        if self.role.scores() {
            self.grants.insert(key, grant);
        }
    }

    /// An actor that is gone has no use for a grant: nobody else may hand it out.
    pub(super) fn drop_grant(&mut self, key: u64) {
        self.grants.remove(&key);
    }

    pub(super) fn add_shrinks(&mut self, shrinks: Vec<proto::Shrink>) {
        if !self.given_up {
            self.shrinks.extend(shrinks.into_iter().map(|s| ((s.campaign, s.incarnation, s.number), s)));
        }
    }

    pub(super) fn add_checkpoint(&mut self, key: u64, checkpoint: proto::Checkpoint) {
        if self.role.scores() && !self.given_up {
            self.checkpoints.insert(key, checkpoint);
        }
    }

    /// Nothing to give back or to keep waits or is on its way.
    pub(super) fn is_settled(&self) -> bool {
        self.given_up || self.unanswered == 0 && self.shrinks.is_empty() && self.checkpoints.is_empty()
    }

    /// When the next tick is wanted even without traffic.
    pub(super) fn due_ms(&self) -> u64 {
        let pending = !(self.grants.is_empty() && self.pledges.is_empty() && self.shrinks.is_empty());
        let pending = if pending && self.role == Role::Leading { 0 } else { u64::MAX };
        self.close_due_ms.min(pending)
    }

    /// Sends everything wanted as one entry, in id order, unless one is on its way.
    pub(super) fn maybe_propose(&mut self, supervisor: &ActorRef<ShardMessage>) {
        let nothing = self.grants.is_empty() && self.pledges.is_empty() && self.shrinks.is_empty();
        let nothing = nothing && self.checkpoints.is_empty();
        let pause = self.clock.monotonic_ms() < self.retry_at_ms;
        if self.in_flight.is_some() || nothing || pause || self.role == Role::CutOff {
            return;
        }
        let mut grants = take_first(&mut self.grants, GRANTS_PER_ENTRY);
        let pledges = take_first(&mut self.pledges, GRANTS_PER_ENTRY);
        let asked: Vec<_> = grants.values().copied().collect();
        self.in_flight = Some(grants.keys().copied().collect());
        self.unanswered += 1;
        grants.extend(pledges.iter().map(|(key, grant)| (*key, *grant)));
        let shrinks: Vec<_> = take_first(&mut self.shrinks, SHRINKS_PER_ENTRY).into_values().collect();
        let tick = proto::Tick {
            now_ms: self.clock.now_ms(),
            shrinks: shrinks.clone(),
            grants: grants.into_values().collect(),
            checkpoints: take_first(&mut self.checkpoints, CHECKPOINTS_PER_ENTRY).into_values().collect(),
        };
        let (host, shard, metrics) = (self.host.clone(), self.shard.id, self.metrics.clone());
        let (supervisor, session, leading) = (supervisor.clone(), self.session, self.role == Role::Leading);
        let command = proto::Command { kind: Some(proto::command::Kind::Tick(tick)) }.encode_to_vec();
        tokio::spawn(async move {
            let deadline = Instant::now() + ENTRY_TIMEOUT;
            let result = if leading {
                host.propose(shard, command.into(), deadline).await
            } else {
                host.submit(shard, command.into(), deadline).await
            };
            let fate = match result {
                Ok(applied) => {
                    let reply = proto::Reply::decode(applied.reply).expect("the book's own reply decodes");
                    reply.grants.iter().for_each(|grant| metrics.grant(grant.status()));
                    metrics.shrinks.inc_by(shrinks.len() as u64);
                    EntryFate::Applied
                }
                Err(error) => {
                    tracing::warn!(%shard, %error, "a tick's entry was not applied; its wants are tried again");
                    match error {
                        ProposeError::Unknown(_) => EntryFate::Unknown,
                        ProposeError::Stopping => EntryFate::Stopping,
                        _ => EntryFate::NotApplied,
                    }
                }
            };
            let pledges = pledges.into_values().collect();
            let answer = Answer { session, fate, grants: asked, pledges, shrinks };
            // A supervisor that is gone has no use for the answer.
            drop(supervisor.send_message(ShardMessage::Answered(answer)));
        });
    }

    /// An entry's fate is known; says whether it belongs to this session. Shrinks may be repeated, whatever their fate.
    pub(super) fn answered(
        &mut self,
        supervisor: &ActorRef<ShardMessage>,
        session: u64,
        fate: EntryFate,
        shrinks: Vec<proto::Shrink>,
    ) -> bool {
        let current = session == self.session;
        self.unanswered -= 1;
        if current {
            self.in_flight = None;
        }
        if fate == EntryFate::Applied {
            if current {
                (self.failures, self.retry_at_ms) = (0, 0);
            }
            return current;
        }
        self.add_shrinks(shrinks);
        if fate == EntryFate::Stopping {
            self.give_up();
        } else if current {
            let pause_ms = (BACKOFF_MIN_MS << self.failures.min(BACKOFF_DOUBLINGS)).min(BACKOFF_MAX_MS);
            self.failures = self.failures.saturating_add(1);
            self.retry_at_ms = self.clock.monotonic_ms() + pause_ms;
            if self.role == Role::Following && self.failures >= FORWARD_TRIES {
                self.shrinks.clear();
            }
            // A follower has no ticks, nor has a node that is about to stop.
            supervisor.send_after(Duration::from_millis(pause_ms), || ShardMessage::Retry);
        }
        current
    }

    /// Proposes a closing if one is due, the grace is over, the clock is trusted and the cluster's settings are known
    /// for certain. The command carries them: all replicas close by the same ones.
    pub(super) fn maybe_close(&mut self, supervisor: &ActorRef<ShardMessage>, now_ms: u64) {
        let purge_after_ms = self.settings.purge_after_ms;
        // Before they are read: whoever changes them marks what is due afterwards.
        let dirty = self.shard.take_due_dirty();
        let settings = self.cluster_settings.get();
        let ClusterSettings { skew_margin_ms, close_grace_ms, retry_window_ms } = settings;
        if dirty {
            let due_ms = self.shard.book().next_maintenance_due_ms(skew_margin_ms, retry_window_ms, purge_after_ms);
            self.close_due_ms = due_ms.unwrap_or(u64::MAX);
        }
        let leads_for_ms = self.clock.monotonic_ms().saturating_sub(self.leads_since_ms);
        let quiet = self.role != Role::Leading || leads_for_ms < close_grace_ms && !mutant!(GraceSkipped);
        let trusted = self.clock_trusted(now_ms, skew_margin_ms) && self.cluster_settings.confirmed();
        if self.closing_in_flight || quiet || now_ms < self.close_due_ms || !trusted {
            return;
        }
        self.closing_in_flight = true;
        let close = proto::CloseExpired { now_ms, skew_margin_ms, retry_window_ms, purge_after_ms };
        let command = proto::Command { kind: Some(proto::command::Kind::CloseExpired(close)) }.encode_to_vec();
        let (host, shard, metrics) = (self.host.clone(), self.shard.id, self.metrics.clone());
        let (supervisor, session) = (supervisor.clone(), self.session);
        tokio::spawn(async move {
            match host.propose(shard, command.into(), Instant::now() + ENTRY_TIMEOUT).await {
                Ok(applied) => {
                    let reply = proto::Reply::decode(applied.reply).expect("the book's own reply decodes");
                    metrics.allowances_closed.inc_by(reply.closed);
                }
                Err(error) => tracing::warn!(%shard, %error, "a closing was not applied; it is tried again"),
            }
            drop(supervisor.send_message(ShardMessage::Closed { session }));
        });
    }

    /// A closing's fate is known.
    pub(super) fn closed(&mut self, session: u64) {
        self.closing_in_flight &= session != self.session;
    }

    /// The node's clock is trusted and the shard's own time is not ahead of it.
    fn clock_trusted(&self, now_ms: u64, skew_margin_ms: u64) -> bool {
        let ahead = self.shard.book().shard_time_ms() > now_ms + skew_margin_ms;
        self.shard.set_time_ahead(ahead);
        !ahead && self.clock.trusted()
    }
}
