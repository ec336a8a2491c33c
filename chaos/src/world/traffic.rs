//! Who sends what to whom.

use std::{collections::BTreeMap, sync::Arc};

use parking_lot::Mutex;

use super::clock::true_elapsed;
use crate::trace::Trace;

/// From one host to another.
type Way = (Arc<str>, Arc<str>);

/// Counts what is sent between each two hosts, and hands what arrives to the trace.
pub struct Traffic {
    trace: Arc<Trace>,
    sent: Mutex<BTreeMap<Way, u64>>,
}

impl Traffic {
    /// Nothing sent yet.
    pub fn new(trace: Arc<Trace>) -> Self {
        Self { trace, sent: Mutex::default() }
    }

    /// A host has sent something to another one; whether it arrives is up to the network.
    pub fn sent(&self, from: &Arc<str>, to: &Arc<str>) {
        *self.sent.lock().entry((from.clone(), to.clone())).or_default() += 1;
    }

    /// Bytes have arrived.
    pub fn arrived(&self, from: &str, to: &str, bytes: &[u8]) {
        self.trace.add(from, to, true_elapsed().as_micros() as u64, bytes);
    }

    /// How often one host has sent something to another one.
    pub fn count(&self, from: &Arc<str>, to: &Arc<str>) -> u64 {
        self.sent.lock().get(&(from.clone(), to.clone())).copied().unwrap_or_default()
    }
}
