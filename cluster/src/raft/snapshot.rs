//! Building and installing snapshot files.

use std::{fmt, io, sync::Arc};

use openraft::RaftSnapshotBuilder;
use parking_lot::Mutex;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::{
    codec::{self, Applied},
    machine::GroupStores,
    replica::{Picture, Replica},
    types::{Snapshot, SnapshotMeta, TypeConfig},
};
use crate::{
    GroupId,
    storage::{SnapshotInstall, SnapshotReader, SnapshotStore},
};

/// Snapshots built at once on a node: each writes and reads as fast as the disk goes, and the log shares that disk.
const CONCURRENT_BUILDS: usize = 1;

/// Bytes copied in one go from one snapshot file to another.
const COPY_BYTES: usize = 1 << 20;

/// Admits snapshot builds of all groups of a node.
#[derive(Debug, Clone)]
pub struct SnapshotPermits(Arc<Semaphore>);

impl Default for SnapshotPermits {
    fn default() -> Self {
        Self(Arc::new(Semaphore::new(CONCURRENT_BUILDS)))
    }
}

impl SnapshotPermits {
    /// A permit, if one is free now.
    pub(super) fn try_acquire(&self) -> Option<OwnedSemaphorePermit> {
        self.0.clone().try_acquire_owned().ok()
    }

    async fn acquire(&self) -> Option<OwnedSemaphorePermit> {
        // Never closed.
        self.0.clone().acquire_owned().await.ok()
    }
}

/// A snapshot's raw file.
pub enum SnapshotData {
    /// One that a node has published.
    Published(Arc<dyn SnapshotReader>),
    /// One that arrived from a peer and is not published yet.
    Received(Box<dyn SnapshotInstall>),
}

impl fmt::Debug for SnapshotData {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Published(reader) => write!(f, "published, {} bytes", reader.info().size_bytes),
            Self::Received(install) => write!(f, "received, {} bytes", install.received_bytes()),
        }
    }
}

pub(super) fn meta_of(applied: Applied) -> SnapshotMeta {
    SnapshotMeta { last_log_id: applied.last, last_membership: applied.membership }
}

/// The group's published snapshot.
pub(super) fn current(store: &dyn SnapshotStore, group: GroupId) -> io::Result<Option<Snapshot>> {
    let Some(reader) = store.open_reader(group)? else { return Ok(None) };
    let meta = meta_of(codec::decode_applied(reader.info().meta.clone())?);
    Ok(Some(Snapshot { meta, snapshot: SnapshotData::Published(reader.into()) }))
}

/// Builds one snapshot of a group from a picture of its machine.
pub struct SnapshotBuilder {
    replica: Arc<Replica>,
    stores: Arc<GroupStores>,
    // The iterator in it is not `Sync`.
    picture: Mutex<Option<io::Result<Picture>>>,
    permit: Option<OwnedSemaphorePermit>,
}

impl SnapshotBuilder {
    /// A builder of the state as of now.
    pub(super) fn new(replica: Arc<Replica>, stores: Arc<GroupStores>, permit: Option<OwnedSemaphorePermit>) -> Self {
        let picture = Mutex::new(Some(replica.picture()));
        Self { replica, stores, picture, permit }
    }
}

impl RaftSnapshotBuilder<TypeConfig> for SnapshotBuilder {
    type SnapshotData = SnapshotData;

    async fn build_snapshot(&mut self) -> io::Result<Snapshot> {
        let picture = self.picture.lock().take();
        let mut picture = picture.ok_or_else(|| io::Error::other("a builder builds once"))??;
        let _permit = match self.permit.take() {
            Some(permit) => Some(permit),
            None => self.stores.permits.acquire().await,
        };
        if let Some(last) = picture.applied.last {
            // Never ahead of the flushed log, and the durable records never behind the snapshot: so a restart
            // takes the records, and the file is needed only if they are damaged.
            self.replica.gate().wait(last.index).await;
            self.replica.flush_records(last.index).await;
        }
        let _publishing = self.replica.publishing.lock().await;
        let (stores, group) = (self.stores.clone(), self.replica.group());
        let built = self.stores.blocking.call(move || {
            let store = &*stores.snapshots;
            if let Some(newer) = current(store, group)?.filter(|s| s.meta.last_log_id > picture.applied.last) {
                // One was installed meanwhile.
                return Ok(newer);
            }
            store.publish(group, &codec::encode_applied(&picture.applied), &mut picture.records)?;
            current(store, group)?.ok_or_else(|| codec::damaged(format_args!("{group}: the snapshot is gone")))
        });
        built.await.unwrap_or_else(|| Err(io::Error::other("the build panicked or was given up")))
    }
}

/// Publishes `data` (unless it is published already), then replaces the machine's state and the durable records.
pub(super) async fn install(
    replica: Arc<Replica>,
    stores: Arc<GroupStores>,
    meta: &SnapshotMeta,
    data: SnapshotData,
) -> io::Result<()> {
    let applied = Applied { last: meta.last_log_id, membership: meta.last_membership.clone() };
    let _publishing = replica.publishing.lock().await;
    let _pass = stores.flusher.pause().await;
    let (on_thread, blocking) = ((replica.clone(), stores.clone()), stores.blocking.clone());
    let installed = blocking.call(move || {
        let (replica, stores) = on_thread;
        let (store, group) = (&*stores.snapshots, replica.group());
        let marker = codec::encode_applied(&applied);
        match data {
            SnapshotData::Received(install) => drop(install.publish()?),
            SnapshotData::Published(reader) => {
                let here = store.current(group)?;
                if here.is_none_or(|info| info.meta != marker) {
                    copy(&*reader, store, group)?;
                }
            }
        }
        let mut records = Vec::new();
        let info = store.load(group, &mut |record| records.push(record))?;
        if info.is_none_or(|info| info.meta != marker) {
            return Err(codec::damaged(format_args!("{group}: the snapshot stands for something else than announced")));
        }
        // First the machine: it finds out whether it understands the records before the old ones are dropped.
        replica.replace(&mut records.iter().cloned(), applied.clone())?;
        stores.state.replace(group, &mut records.into_iter(), &marker)?;
        replica.set_durable(&applied);
        io::Result::Ok(())
    });
    installed.await.unwrap_or_else(|| Err(io::Error::other("the installation panicked or was given up")))
}

/// Takes over another node's published file.
fn copy(from: &dyn SnapshotReader, to: &dyn SnapshotStore, group: GroupId) -> io::Result<()> {
    let mut install = to.begin_install(group)?;
    loop {
        let chunk = from.read_chunk(install.received_bytes(), COPY_BYTES)?;
        if chunk.is_empty() {
            return install.publish().map(drop);
        }
        install.write_chunk(&chunk)?;
    }
}
