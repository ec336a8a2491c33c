//! `RaftStateMachine` over a replica, the state store and the snapshot store.

use std::{io, sync::Arc};

use futures::{Stream, StreamExt};
use openraft::{
    OptionalSend,
    storage::{EntryResponder, RaftStateMachine},
};

use super::{
    flush::Flusher,
    replica::Replica,
    snapshot::{self, SnapshotBuilder, SnapshotData, SnapshotPermits},
    types::{LogId, Snapshot, SnapshotMeta, StoredMembership, TypeConfig},
};
use crate::{
    env::Blocking,
    storage::{SnapshotStore, StateStore},
};

/// What all groups of a node share.
pub struct GroupStores {
    /// Records.
    pub state: Arc<dyn StateStore>,
    /// Snapshot files.
    pub snapshots: Arc<dyn SnapshotStore>,
    /// Threads for work that blocks.
    pub blocking: Arc<dyn Blocking>,
    /// Makes changed records durable.
    pub flusher: Arc<Flusher>,
    /// Admits snapshot builds.
    pub permits: SnapshotPermits,
}

/// One group's state machine, as openraft drives it.
pub struct GroupMachine {
    replica: Arc<Replica>,
    stores: Arc<GroupStores>,
}

impl GroupMachine {
    /// The machine of a replica.
    pub fn new(replica: Arc<Replica>, stores: Arc<GroupStores>) -> Self {
        Self { replica, stores }
    }
}

impl RaftStateMachine<TypeConfig> for GroupMachine {
    type SnapshotData = SnapshotData;
    type SnapshotBuilder = SnapshotBuilder;

    async fn applied_state(&mut self) -> io::Result<(Option<LogId>, StoredMembership)> {
        let applied = self.replica.applied();
        Ok((applied.last, applied.membership))
    }

    async fn apply<Strm>(&mut self, mut entries: Strm) -> io::Result<()>
    where
        Strm: Stream<Item = io::Result<EntryResponder<TypeConfig>>> + Unpin + OptionalSend,
    {
        while let Some(next) = entries.next().await {
            let (entry, responder) = next?;
            let reply = self.replica.apply(entry)?;
            if let Some(responder) = responder {
                responder.send(reply);
            }
        }
        Ok(())
    }

    async fn try_create_snapshot_builder(&mut self, force: bool) -> Option<SnapshotBuilder> {
        let permit = self.stores.permits.try_acquire();
        if permit.is_none() && !force {
            // Another group is at it.
            self.stores.permits.defer(self.replica.group());
            return None;
        }
        Some(SnapshotBuilder::new(self.replica.clone(), self.stores.clone(), permit))
    }

    async fn get_snapshot_builder(&mut self) -> SnapshotBuilder {
        SnapshotBuilder::new(self.replica.clone(), self.stores.clone(), None)
    }

    async fn install_snapshot(&mut self, meta: &SnapshotMeta, data: SnapshotData) -> io::Result<()> {
        snapshot::install(self.replica.clone(), self.stores.clone(), meta, data).await
    }

    async fn get_current_snapshot(&mut self) -> io::Result<Option<Snapshot>> {
        let (stores, group) = (self.stores.clone(), self.replica.group());
        let found = self.stores.blocking.call(move || snapshot::current(&*stores.snapshots, group));
        found.await.unwrap_or_else(|| Err(io::Error::other("reading the snapshot was given up")))
    }
}
