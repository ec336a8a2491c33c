//! One running group: proposals in, leadership out.

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use bytes::Bytes;
use openraft::{
    ServerState,
    async_runtime::watch::WatchReceiver,
    errors::{ClientWriteError, ForwardReason, ForwardToLeader},
};
use tokio::{
    sync::{Semaphore, TryAcquireError, watch},
    time::{Instant, timeout_at},
};

use super::{Fatal, ProposeError, StartError};
use crate::{
    GroupId, NodeId,
    raft::{
        Replica, config,
        log::GroupLog,
        machine::{GroupMachine, GroupStores},
        network::{GroupNetwork, Transport},
        types::{Command, Completion, LeaderId, Member, Raft, TypeConfig},
    },
};

/// Longest command: one log entry is written, sent and decoded in one piece.
pub const MAX_COMMAND_BYTES: usize = 8 << 20;
/// Proposals of one group in flight: as many as one write of the log takes.
pub const MAX_IN_FLIGHT: usize = 4_096;
/// Command bytes of all groups of a node in flight: what a stuck disk may pile up.
pub const MAX_IN_FLIGHT_BYTES: usize = 128 << 20;
/// Bytes behind one permit (semaphores count in `u32`); a command costs at least one.
const BYTES_PER_PERMIT: usize = 1 << 10;

/// Who leads a group, as this node sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Leadership {
    /// This node leads, and has applied an entry of this term: everything acknowledged before is applied here.
    Leader {
        /// The term.
        term: u64,
    },
    /// Another node leads, or nobody does, or this node does not know yet what was acknowledged before.
    Follower {
        /// Who leads, if known.
        leader: Option<NodeId>,
    },
}

/// A command was applied.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Applied {
    /// Its log index.
    pub index: u64,
    /// The machine's reply.
    pub reply: Bytes,
}

/// What the groups of a node share.
pub(super) struct Shared {
    pub(super) node_id: NodeId,
    pub(super) member: Member,
    pub(super) snapshot_every: u64,
    pub(super) transport: Arc<dyn Transport>,
    pub(super) stores: Arc<GroupStores>,
    pub(super) fatal: Fatal,
    pub(super) stopping: AtomicBool,
    /// Admits command bytes.
    pub(super) bytes: Arc<Semaphore>,
}

impl Shared {
    /// Permits for command bytes of a whole node.
    pub(super) fn byte_permits() -> Arc<Semaphore> {
        Arc::new(Semaphore::new(MAX_IN_FLIGHT_BYTES / BYTES_PER_PERMIT))
    }

    fn is_stopping(&self) -> bool {
        self.stopping.load(Ordering::Acquire) || self.fatal.is_set()
    }
}

/// One running group of this node.
pub(super) struct Group {
    pub(super) raft: Raft,
    pub(super) log: GroupLog,
    pub(super) replica: Arc<Replica>,
    pub(super) leadership: watch::Receiver<Leadership>,
    admission: Arc<Semaphore>,
    shared: Arc<Shared>,
    leadership_task: tokio::task::AbortHandle,
}

impl Drop for Group {
    fn drop(&mut self) {
        // The task holds a handle to the core, which would keep it alive.
        self.leadership_task.abort();
    }
}

impl Group {
    /// Starts a group whose state was restored. `formed`: it existed before, so it must have a log.
    pub(super) async fn start(
        shared: &Arc<Shared>,
        replica: Arc<Replica>,
        log: GroupLog,
        formed: bool,
    ) -> Result<Self, StartError> {
        let group = replica.group();
        let failed = |why: &dyn ToString| StartError::Raft { group, why: why.to_string() };
        let pristine = log.is_pristine();
        if pristine && formed {
            return Err(StartError::LostGroup { group });
        }
        let config = config::config(group, shared.snapshot_every).map_err(|e| failed(&e))?;
        let network = GroupNetwork::new(group, shared.transport.clone());
        let machine = GroupMachine::new(replica.clone(), shared.stores.clone());
        let raft = Raft::new(shared.node_id, config, network, log.clone(), machine).await.map_err(|e| failed(&e))?;
        if pristine {
            // Also starts the election.
            let members = BTreeMap::from([(shared.node_id, shared.member.clone())]);
            raft.initialize(members).await.map_err(|e| failed(&e))?;
        } else if is_alone(&replica.applied().membership, shared.node_id) {
            // Nobody else to ask: no need to wait for a timeout.
            raft.trigger().elect(false).await.map_err(|e| failed(&e))?;
        }
        let (tx, leadership) = watch::channel(Leadership::Follower { leader: None });
        let task = tokio::spawn(follow_leadership(raft.clone(), replica.applied_by(), shared.clone(), tx));
        Ok(Self {
            raft,
            log,
            replica,
            leadership,
            admission: Arc::new(Semaphore::new(MAX_IN_FLIGHT)),
            shared: shared.clone(),
            leadership_task: task.abort_handle(),
        })
    }

    pub(super) fn id(&self) -> GroupId {
        self.replica.group()
    }

    /// Proposes a command and waits until it is applied here, until `deadline`.
    pub(super) async fn propose(&self, command: Bytes, deadline: Instant) -> Result<Applied, ProposeError> {
        if self.shared.is_stopping() {
            return Err(ProposeError::Stopping);
        }
        let bytes = command.len();
        if bytes > MAX_COMMAND_BYTES {
            return Err(ProposeError::TooLarge { bytes, max_bytes: MAX_COMMAND_BYTES });
        }
        if Instant::now() >= deadline {
            return Err(ProposeError::Unavailable("the deadline passed before the command was proposed"));
        }
        let refused = |e| match e {
            TryAcquireError::NoPermits => ProposeError::Overloaded,
            TryAcquireError::Closed => ProposeError::Stopping,
        };
        let one = self.admission.clone().try_acquire_owned().map_err(refused)?;
        let byte_permits = 1 + (bytes / BYTES_PER_PERMIT) as u32;
        let bytes = self.shared.bytes.clone().try_acquire_many_owned(byte_permits).map_err(refused)?;
        let (completion, outcome) = Completion::new(vec![one, bytes]);

        let submitted = self.raft.client_write_ff(Command(command), Some(completion));
        match timeout_at(deadline, submitted).await {
            // A send that did not finish has not sent.
            Err(_) => return Err(ProposeError::Unavailable("the deadline passed before the command was taken up")),
            Ok(Err(_stopped)) => return Err(ProposeError::Stopping),
            Ok(Ok(())) => {}
        }
        match timeout_at(deadline, outcome).await {
            Err(_) => Err(ProposeError::Unknown("not applied before the deadline")),
            Ok(Err(_dropped)) => Err(ProposeError::Unknown("the node stopped")),
            Ok(Ok(Ok(done))) => Ok(Applied { index: done.log_id.index, reply: done.data.0 }),
            Ok(Ok(Err(error))) => Err(proposal_error(error)),
        }
    }

    /// Waits until nothing is in flight. Only useful once nothing new is admitted.
    pub(super) async fn drained(&self) {
        // Never closed before.
        let _all = self.admission.acquire_many(MAX_IN_FLIGHT as u32).await;
    }
}

/// What openraft's answer says about the proposal's fate.
fn proposal_error(error: ClientWriteError<TypeConfig>) -> ProposeError {
    match error {
        // Said before an entry was appended only.
        ClientWriteError::ForwardToLeader(ForwardToLeader { leader_id, reason, .. }) => match reason {
            ForwardReason::LeaseExpired => ProposeError::Unavailable("no quorum has answered for a while"),
            _ => ProposeError::NotLeader { leader: leader_id },
        },
        // Appended here, then replaced by another leader's log or a snapshot, which may contain it.
        ClientWriteError::LogEntryDiscarded(_) => ProposeError::Unknown("another leader took over"),
        ClientWriteError::ChangeMembershipError(_) | ClientWriteError::PreconditionFailed(_) => {
            ProposeError::Unknown("consensus gave an answer that is not one to a command")
        }
    }
}

/// Whether this node is the only member.
fn is_alone(membership: &crate::raft::types::StoredMembership, me: NodeId) -> bool {
    let mut members = membership.nodes().map(|(id, _)| *id);
    members.next() == Some(me) && members.next().is_none()
}

/// Follows who leads a group, and stops its clock while it is not needed.
async fn follow_leadership(
    raft: Raft,
    mut applied_by: watch::Receiver<Option<LeaderId>>,
    shared: Arc<Shared>,
    tx: watch::Sender<Leadership>,
) {
    let mut server = raft.server_metrics();
    loop {
        let now = {
            let metrics = server.borrow_watched();
            let leading = metrics.state == ServerState::Leader;
            // A leader without other members needs no heartbeats and no elections: without a clock its group costs
            // nothing while it is idle.
            raft.runtime_config().tick(!(leading && is_alone(&metrics.membership_config, shared.node_id)));
            let term = metrics.vote.leader_id.term;
            let applied = *applied_by.borrow_and_update();
            if leading && applied == Some(LeaderId { term, node_id: shared.node_id }) {
                Leadership::Leader { term }
            } else {
                Leadership::Follower { leader: metrics.current_leader.filter(|id| *id != shared.node_id) }
            }
        };
        tx.send_if_modified(|before| std::mem::replace(before, now) != now);
        let alive = tokio::select! {
            changed = server.changed() => changed.is_ok(),
            changed = applied_by.changed() => changed.is_ok(),
        };
        if !alive {
            break;
        }
    }
    tx.send_replace(Leadership::Follower { leader: None });
    if !shared.is_stopping() {
        let state = raft.metrics().borrow_watched().running_state.clone();
        shared
            .fatal
            .fail(format_args!("consensus has stopped: {}", state.err().map_or_else(String::new, |e| e.to_string())));
    }
}
