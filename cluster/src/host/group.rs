//! One running group: proposals in, leadership out.

use std::{collections::BTreeMap, sync::Arc};

use bytes::Bytes;
use openraft::errors::{ClientWriteError, ForwardReason, ForwardToLeader};
use tokio::{
    sync::{Semaphore, TryAcquireError, watch},
    task::JoinHandle,
    time::{Instant, timeout_at},
};

use super::{
    ProposeError, StartError,
    follow::{follow_leadership, is_alone},
    report::Probe,
    shared::{BYTES_PER_PERMIT, Gate, Shared},
};
use crate::{
    GroupId, NodeId,
    raft::{
        Replica, config,
        log::GroupLog,
        machine::GroupMachine,
        network::GroupNetwork,
        types::{Command, Completion, Raft, TypeConfig},
    },
};

/// Longest command: one log entry is written, sent and decoded in one piece.
pub const MAX_COMMAND_BYTES: usize = 8 << 20;
/// Proposals of one group in flight: as many as one write of the log takes.
pub const MAX_IN_FLIGHT: usize = 4_096;

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

impl Default for Leadership {
    fn default() -> Self {
        Self::Follower { leader: None }
    }
}

/// A command was applied.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Applied {
    /// Its log index.
    pub index: u64,
    /// The machine's reply.
    pub reply: Bytes,
}

/// One running group of this node.
pub(super) struct Group {
    pub(super) raft: Raft,
    pub(super) log: GroupLog,
    pub(super) replica: Arc<Replica>,
    pub(super) leadership: watch::Receiver<Leadership>,
    /// The last replicated write that was made to see whether one is possible.
    pub(super) probe: Arc<tokio::sync::Mutex<Option<Probe>>>,
    admission: Arc<Semaphore>,
    gate: Arc<Gate>,
    leadership_task: tokio::sync::Mutex<JoinHandle<()>>,
}

impl Drop for Group {
    fn drop(&mut self) {
        // The task holds a handle to the core, which would keep it alive.
        self.leadership_task.get_mut().abort();
    }
}

/// What to do with a group whose log was never written to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Pristine {
    /// Make this node its first and only member.
    Form,
    /// Wait until its leader sends something.
    Wait,
}

impl Group {
    /// Starts a group whose state was restored.
    pub(super) async fn start(
        shared: &Shared,
        replica: Arc<Replica>,
        log: GroupLog,
        pristine: Pristine,
    ) -> Result<Arc<Self>, StartError> {
        let group = replica.group();
        let failed = |why: &dyn ToString| StartError::Raft { group, why: why.to_string() };
        let leadership = shared.leaders.watch(group).ok_or_else(|| failed(&"there is no such group"))?;
        let is_pristine = log.is_pristine();
        let config = config::config(group, shared.snapshot_every).map_err(|e| failed(&e))?;
        let network = GroupNetwork::new(group, shared.transport.clone());
        let machine = GroupMachine::new(replica.clone(), shared.stores.clone());
        let raft = Raft::new(shared.node_id, config, network, log.clone(), machine).await.map_err(|e| failed(&e))?;
        if is_pristine && pristine == Pristine::Form {
            // Also starts the election.
            let members = BTreeMap::from([(shared.node_id, shared.member.clone())]);
            raft.initialize(members).await.map_err(|e| failed(&e))?;
        } else if is_alone(&replica.applied().membership, shared.node_id) {
            // Nobody else to ask: no need to wait for a timeout.
            raft.trigger().elect(false).await.map_err(|e| failed(&e))?;
        }
        let follow = follow_leadership(shared, group, raft.clone(), replica.applied_by());
        Ok(Arc::new(Self {
            raft,
            log,
            replica,
            leadership,
            probe: Arc::default(),
            admission: Arc::new(Semaphore::new(MAX_IN_FLIGHT)),
            gate: shared.gate.clone(),
            leadership_task: tokio::sync::Mutex::new(tokio::spawn(follow)),
        }))
    }

    pub(super) fn id(&self) -> GroupId {
        self.replica.group()
    }

    /// Proposes a command and waits until it is applied here, until `deadline`.
    pub(super) async fn propose(&self, command: Bytes, deadline: Instant) -> Result<Applied, ProposeError> {
        if self.gate.is_stopping() {
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
        let bytes = self.gate.bytes.clone().try_acquire_many_owned(byte_permits).map_err(refused)?;
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

    /// Ends consensus and all that follows it: nothing is written for this group any more. Repeatable.
    pub(super) async fn stop(&self) {
        // It has panicked at worst: it is as stopped as can be.
        let _ = self.raft.shutdown().await;
        let mut task = self.leadership_task.lock().await;
        if !task.is_finished() {
            let _ = (&mut *task).await;
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
