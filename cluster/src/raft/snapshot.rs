//! Building and installing snapshot files.

use std::{collections::BTreeSet, fmt, io, sync::Arc};

use openraft::RaftSnapshotBuilder;
use parking_lot::Mutex;
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};

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
pub struct SnapshotPermits(Arc<Admission>);

#[derive(Debug)]
struct Admission {
    builds: Arc<Semaphore>,
    /// Groups whose snapshot was due while others were built.
    deferred: Mutex<BTreeSet<GroupId>>,
    /// A build has ended.
    ended: Notify,
}

/// Admits one build.
#[derive(Debug)]
pub(super) struct BuildPermit {
    permit: Option<OwnedSemaphorePermit>,
    admission: Arc<Admission>,
}

impl Drop for BuildPermit {
    fn drop(&mut self) {
        drop(self.permit.take());
        self.admission.ended.notify_one();
    }
}

impl Default for SnapshotPermits {
    fn default() -> Self {
        let builds = Arc::new(Semaphore::new(CONCURRENT_BUILDS));
        Self(Arc::new(Admission { builds, deferred: Mutex::default(), ended: Notify::new() }))
    }
}

impl SnapshotPermits {
    fn permit(&self, permit: OwnedSemaphorePermit) -> BuildPermit {
        BuildPermit { permit: Some(permit), admission: self.0.clone() }
    }

    /// A permit, if one is free now.
    pub(super) fn try_acquire(&self) -> Option<BuildPermit> {
        self.0.builds.clone().try_acquire_owned().ok().map(|permit| self.permit(permit))
    }

    /// A permit when one is free; none any more once closed.
    async fn acquire(&self) -> io::Result<BuildPermit> {
        let permit = self.0.builds.clone().acquire_owned().await;
        permit.map(|permit| self.permit(permit)).map_err(|_| io::Error::other("the node is stopping"))
    }

    /// A group's snapshot is due and has to wait.
    pub(super) fn defer(&self, group: GroupId) {
        self.0.deferred.lock().insert(group);
    }

    /// Waits until a build has ended and another group waits for its turn. openraft by itself would ask again only
    /// after as many entries as before, and groups that fill up together would starve each other.
    pub async fn next_deferred(&self) -> GroupId {
        loop {
            self.0.ended.notified().await;
            if let Some(group) = self.0.deferred.lock().pop_first() {
                return group;
            }
        }
    }

    /// Admits no more builds and waits for those that run.
    pub async fn close(&self) {
        let _all = self.0.builds.acquire_many(CONCURRENT_BUILDS as u32).await;
        self.0.builds.close();
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
    permit: Option<BuildPermit>,
}

impl SnapshotBuilder {
    /// A builder of the state as of now.
    pub(super) fn new(replica: Arc<Replica>, stores: Arc<GroupStores>, permit: Option<BuildPermit>) -> Self {
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
            Some(permit) => permit,
            None => self.stores.permits.acquire().await?,
        };
        if let Some(last) = picture.applied.last {
            // Never ahead of the flushed log, and the durable records never behind the snapshot: so a restart
            // takes the records, and the file is needed only if they are damaged.
            self.replica.log_flushed(last.index).await?;
            self.replica.flush_records(last.index).await?;
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
