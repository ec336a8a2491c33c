//! A new leader closes nothing for a while: what the one before it took up in time and lost can be reported again.

use std::collections::BTreeMap;

use andante::campaign::proto::{self, command::Kind};
use andante_cluster::{
    GroupId,
    raft::{codec, types::LeaderId},
    storage::{LogEntry, memory::LogOp},
};
use openraft::EntryPayload;
use prost::Message as _;

use super::{Found, Oracle, Stored, Write};
use crate::{plan::Plan, world::World};

/// The grace of new leaders.
pub(super) struct Grace {
    grace_ms: u64,
    /// When the first entry of each leader's term was written.
    led_since_ms: BTreeMap<(GroupId, u64, u64), u64>,
    now_ms: u64,
}

impl Grace {
    pub(super) fn new(plan: &Plan) -> Self {
        Self { grace_ms: plan.settings.close_grace_ms, led_since_ms: BTreeMap::new(), now_ms: 0 }
    }

    fn logged(&mut self, group: GroupId, entry: &LogEntry) -> Found {
        // What can't be read is another oracle's find.
        let Ok(entry) = codec::decode_entry(entry.data.clone()) else { return Ok(()) };
        let LeaderId { term, node_id } = entry.log_id.leader_id;
        let since_ms = *self.led_since_ms.entry((group, term, node_id)).or_insert(self.now_ms);
        let EntryPayload::Normal(command) = &entry.payload else { return Ok(()) };
        // Its node counts from a later moment, by a clock that does not drift: when that entry was applied.
        if group == GroupId::DIRECTORY || self.now_ms >= since_ms + self.grace_ms {
            return Ok(());
        }
        match proto::Command::decode(&*command.0) {
            Ok(proto::Command { kind: Some(Kind::CloseExpired(_)) }) => Err(format!(
                "{group}: node {node_id} leads since {since_ms} ms and has a closing in the log at {} ms; its grace is {} ms",
                self.now_ms, self.grace_ms
            )),
            _ => Ok(()),
        }
    }
}

impl Oracle for Grace {
    fn name(&self) -> &'static str {
        "grace"
    }

    fn stored(&mut self, stored: &Stored<'_>) -> Found {
        let Write::Log(LogOp::Append(entries)) = &stored.write else { return Ok(()) };
        entries.iter().try_for_each(|entry| self.logged(stored.group, entry))
    }

    fn look(&mut self, world: &World) -> Found {
        self.now_ms = world.now_ms();
        Ok(())
    }
}
