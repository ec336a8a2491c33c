//! What is done to nodes from within their processes: actors that die, clocks that an operator confirms.

use std::{
    collections::BTreeMap,
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
    time::Duration,
};

use andante::node::Node;
use parking_lot::Mutex;

use super::clock::true_now_ms;

const LOOK_EVERY: Duration = Duration::from_millis(100);

/// What is to be done, and how often it was. One for all nodes.
#[derive(Debug, Default)]
pub struct Sabotage {
    /// Campaigns whose actors die: `true`: again and again.
    pub campaigns: Mutex<BTreeMap<String, bool>>,
    /// Actors that died of it.
    pub crashed: AtomicU64,
    /// An operator confirms the clocks of nodes that don't trust theirs.
    pub confirms_clocks: AtomicBool,
}

impl Sabotage {
    /// Does it to a node, for as long as it runs.
    pub async fn befall(&self, node: &Node) {
        loop {
            tokio::time::sleep(LOOK_EVERY).await;
            let campaigns = self.campaigns.lock().clone();
            for (campaign, again) in campaigns {
                if node.crash_actor(&campaign).await {
                    self.crashed.fetch_add(1, Ordering::Relaxed);
                    if !again {
                        self.campaigns.lock().remove(&campaign);
                    }
                }
            }
            if self.confirms_clocks.load(Ordering::Relaxed) && !node.clock_trusted() {
                // Whoever can't now is asked again.
                let _ = node.confirm_clock(true_now_ms()).await;
            }
        }
    }
}
