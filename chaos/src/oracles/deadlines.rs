//! Whoever runs answers a score by its deadline, whatever other nodes do: for what they don't answer, it says so.

use std::collections::BTreeMap;

use super::{Found, Life, Oracle, Told};
use crate::{plan::Plan, world::World};

/// A connection that died in a disturbance is found dead within keepalive's time and made anew.
const RECONNECTED_MS: u64 = 8_000;

/// A node answers so long before the deadline; the request's way there and the answer's way back are shorter in most plans.
const RESERVE_MS: u64 = 25;

/// Deadlines that are kept.
pub(super) struct Deadlines {
    /// Whether an answer that is sent in time arrives in time.
    is_near: bool,
    /// Since when nodes run, by position.
    running: BTreeMap<usize, u64>,
    /// Since when messages have been neither late nor lost.
    sound_ms: u64,
    now_ms: u64,
}

impl Deadlines {
    pub(super) fn new(plan: &Plan) -> Self {
        Self { is_near: 2 * plan.latency_ms.1 < RESERVE_MS, running: BTreeMap::new(), sound_ms: 0, now_ms: 0 }
    }
}

impl Oracle for Deadlines {
    fn name(&self) -> &'static str {
        "deadlines"
    }

    fn told(&mut self, told: &Told<'_>) -> Found {
        let Told::Unanswered { node, asked_ms, told_ms } = told else { return Ok(()) };
        let Some(since_ms) = self.running.get(node) else { return Ok(()) };
        if self.is_near && since_ms.max(&self.sound_ms) + RECONNECTED_MS < *asked_ms {
            let node = node + 1;
            return Err(format!(
                "node-{node}, which runs since {since_ms} ms, was asked for a score at {asked_ms} ms and has not answered \
                 it by its deadline, at {told_ms} ms; messages have come through since {} ms",
                self.sound_ms
            ));
        }
        Ok(())
    }

    fn life(&mut self, node: usize, life: &Life) -> Found {
        match life {
            Life::Started { .. } => drop(self.running.insert(node, self.now_ms)),
            Life::Ended(_) | Life::Crashed(_) | Life::DiskLost => drop(self.running.remove(&node)),
        }
        Ok(())
    }

    fn look(&mut self, world: &World) -> Found {
        self.now_ms = world.now_ms();
        self.sound_ms = world.network_sound_since_ms();
        Ok(())
    }
}
