//! What a shard puts into its log beside outcomes: one entry per tick with everything its actors want, and closings.

use std::{collections::BTreeMap, sync::Arc};

use andante_cluster::host::Host;
use prost::Message;
use ractor::ActorRef;
use tokio::time::{Duration, Instant};

use super::{
    clock::NodeClock,
    shard::Shard,
    supervisor::{ShardArgs, ShardMessage},
};
use crate::{campaign::proto, metrics::Metrics, settings::Settings};

/// Grants per entry; the rest waits for the next entry. So below: an entry stays far under its size limit.
const GRANTS_PER_ENTRY: usize = 4_096;
/// Shrinks per entry.
const SHRINKS_PER_ENTRY: usize = 16_384;
/// Checkpoints per entry, of some 1.5 KB each.
const CHECKPOINTS_PER_ENTRY: usize = 1_024;
/// How long the fate of an entry is waited for.
const ENTRY_TIMEOUT: Duration = Duration::from_secs(10);

/// What became of a tick's entry.
#[derive(Debug)]
pub struct Answer {
    /// Whether it was surely applied.
    pub applied: bool,
    /// Campaigns with grants in it.
    pub grants: Vec<u64>,
    /// Its shrinks, proposed again unless it was applied.
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
    metrics: Arc<Metrics>,
    grants: BTreeMap<u64, proto::Grant>,
    shrinks: BTreeMap<(u64, u32, u32), proto::Shrink>,
    checkpoints: BTreeMap<u64, proto::Checkpoint>,
    in_flight: bool,
    closing_in_flight: bool,
    close_due_ms: u64,
    /// Nothing is closed before this moment of the monotonic clock.
    grace_until_ms: u64,
}

impl Entries {
    pub(super) fn new(args: &ShardArgs) -> Self {
        Self {
            shard: args.shard.clone(),
            host: args.host.clone(),
            clock: args.clock.clone(),
            settings: args.settings.clone(),
            metrics: args.metrics.clone(),
            grants: BTreeMap::new(),
            shrinks: BTreeMap::new(),
            checkpoints: BTreeMap::new(),
            in_flight: false,
            closing_in_flight: false,
            close_due_ms: 0,
            grace_until_ms: args.clock.monotonic_ms() + args.settings.close_grace_ms,
        }
    }

    pub(super) fn add_grant(&mut self, key: u64, grant: proto::Grant) {
        self.grants.insert(key, grant);
    }

    /// An actor that is gone has no use for a grant: nobody else may hand it out.
    pub(super) fn drop_grant(&mut self, key: u64) {
        self.grants.remove(&key);
    }

    pub(super) fn add_shrinks(&mut self, shrinks: Vec<proto::Shrink>) {
        self.shrinks.extend(shrinks.into_iter().map(|s| ((s.campaign, s.incarnation, s.number), s)));
    }

    pub(super) fn add_checkpoint(&mut self, key: u64, checkpoint: proto::Checkpoint) {
        self.checkpoints.insert(key, checkpoint);
    }

    /// Nothing to give back or to keep waits or is on its way.
    pub(super) fn is_settled(&self) -> bool {
        !self.in_flight && self.shrinks.is_empty() && self.checkpoints.is_empty()
    }

    /// When the next tick is wanted even without traffic.
    pub(super) fn due_ms(&self) -> u64 {
        let pending = if self.grants.is_empty() && self.shrinks.is_empty() { u64::MAX } else { 0 };
        self.close_due_ms.min(pending)
    }

    /// Proposes everything wanted as one entry, in id order, unless one is on its way.
    pub(super) fn maybe_propose(&mut self, supervisor: &ActorRef<ShardMessage>) {
        let nothing = self.grants.is_empty() && self.shrinks.is_empty() && self.checkpoints.is_empty();
        if self.in_flight || nothing {
            return;
        }
        let grants = take_first(&mut self.grants, GRANTS_PER_ENTRY);
        let keys: Vec<u64> = grants.keys().copied().collect();
        let shrinks: Vec<_> = take_first(&mut self.shrinks, SHRINKS_PER_ENTRY).into_values().collect();
        let tick = proto::Tick {
            now_ms: self.clock.now_ms(),
            shrinks: shrinks.clone(),
            grants: grants.into_values().collect(),
            checkpoints: take_first(&mut self.checkpoints, CHECKPOINTS_PER_ENTRY).into_values().collect(),
        };
        self.in_flight = true;
        let (host, shard, metrics) = (self.host.clone(), self.shard.id, self.metrics.clone());
        let (supervisor, shrunk) = (supervisor.clone(), shrinks.len() as u64);
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
            drop(supervisor.send_message(ShardMessage::Answered(Answer { applied, grants: keys, shrinks })));
        });
    }

    /// An entry's fate is known. `draining`: what was not applied is not tried again.
    pub(super) fn answered(&mut self, applied: bool, shrinks: Vec<proto::Shrink>, draining: bool) {
        self.in_flight = false;
        if applied {
            return;
        }
        self.add_shrinks(shrinks);
        if draining {
            // The node is stopping and its log does not take entries any more: closing returns the money later.
            self.shrinks.clear();
            self.checkpoints.clear();
        }
    }

    /// Proposes a closing if one is due, the grace is over and the clock is trusted.
    pub(super) fn maybe_close(&mut self, supervisor: &ActorRef<ShardMessage>, now_ms: u64) {
        let settings = &self.settings;
        if self.shard.take_due_dirty() {
            let due_ms = self.shard.book().next_maintenance_due_ms(
                settings.skew_margin_ms,
                settings.retry_window_ms,
                settings.purge_after_ms,
            );
            self.close_due_ms = due_ms.unwrap_or(u64::MAX);
        }
        let in_grace = self.clock.monotonic_ms() < self.grace_until_ms;
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
        let (host, shard, metrics) = (self.host.clone(), self.shard.id, self.metrics.clone());
        let supervisor = supervisor.clone();
        tokio::spawn(async move {
            match host.propose(shard, command.into(), Instant::now() + ENTRY_TIMEOUT).await {
                Ok(applied) => {
                    let reply = proto::Reply::decode(applied.reply).expect("the book's own reply decodes");
                    metrics.allowances_closed.inc_by(reply.closed);
                }
                Err(error) => tracing::warn!(%shard, %error, "a closing was not applied; it is tried again"),
            }
            drop(supervisor.send_message(ShardMessage::Closed));
        });
    }

    /// A closing's fate is known.
    pub(super) fn closed(&mut self) {
        self.closing_in_flight = false;
    }

    /// The node's clock is trusted and the shard's own time is not ahead of it.
    fn clock_trusted(&self, now_ms: u64) -> bool {
        let ahead = self.shard.book().shard_time_ms() > now_ms + self.settings.skew_margin_ms;
        self.shard.set_time_ahead(ahead);
        !ahead && self.clock.trusted()
    }
}
