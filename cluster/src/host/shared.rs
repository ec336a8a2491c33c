//! What all parts of a host see.

use std::sync::{
    Arc, OnceLock,
    atomic::{AtomicBool, Ordering},
};

use tokio::sync::{Semaphore, watch};

use super::{Answerer, Fatal, MachineFactory, leaders::LeaderTable, table::GroupTable};
use crate::{
    NodeId,
    directory::Directory,
    env::Env,
    peer::Peers,
    raft::{machine::GroupStores, network::Transport, types::Member},
    storage::LogStore,
};

/// Command bytes of all groups of a node in flight: what a stuck disk may pile up.
pub const MAX_IN_FLIGHT_BYTES: usize = 128 << 20;
/// Bytes behind one permit (semaphores count in `u32`); a command costs at least one.
pub(super) const BYTES_PER_PERMIT: usize = 1 << 10;

/// Admits the work of all groups of a node, and ends it.
pub(super) struct Gate {
    pub(super) fatal: Fatal,
    stopping: AtomicBool,
    /// Admits command bytes.
    pub(super) bytes: Arc<Semaphore>,
}

impl Gate {
    pub(super) fn new(fatal: Fatal) -> Self {
        let bytes = Arc::new(Semaphore::new(MAX_IN_FLIGHT_BYTES / BYTES_PER_PERMIT));
        Self { fatal, stopping: AtomicBool::new(false), bytes }
    }

    /// Nothing new is admitted any more.
    pub(super) fn stop(&self) {
        self.stopping.store(true, Ordering::Release);
    }

    pub(super) fn is_stopping(&self) -> bool {
        self.stopping.load(Ordering::Acquire) || self.fatal.is_set()
    }
}

/// What all parts of a host see. Groups and peers hold parts of it only, so that nothing holds itself.
pub(super) struct Shared {
    pub(super) env: Env,
    pub(super) node_id: NodeId,
    pub(super) member: Member,
    pub(super) snapshot_every: u64,
    pub(super) factory: MachineFactory,
    pub(super) cluster_id: [u8; 16],
    /// Highest feature level of the layer above.
    pub(super) feature_level: u32,
    /// Whether nodes show certificates to each other.
    pub(super) is_secure: bool,
    pub(super) peers: Arc<Peers>,
    pub(super) transport: Arc<dyn Transport>,
    pub(super) stores: Arc<GroupStores>,
    pub(super) log: Arc<dyn LogStore>,
    pub(super) gate: Arc<Gate>,
    /// The replicas on this node.
    pub(super) groups: GroupTable,
    /// Who leads what, replica here or not.
    pub(super) leaders: Arc<LeaderTable>,
    /// Answers questions of other nodes' layers above.
    pub(super) answerer: OnceLock<Box<dyn Answerer>>,
    /// This node's copy of the directory.
    pub(super) directory: watch::Receiver<Arc<Directory>>,
}
