//! The stores of a real node.

use std::{io, path::Path, sync::Arc};

use super::{EngineLogStore, LogEngineConfig, LogStore, SledState, SnapshotFiles, SnapshotStore, StateStore, Stores};
use crate::env::{Blocking, Clock};

/// raft-engine, sled and plain files.
pub struct DiskStores {
    clock: Arc<dyn Clock>,
    log: LogEngineConfig,
}

impl DiskStores {
    /// `clock` measures syncs and tells when to write the log's second file.
    pub fn new(clock: Arc<dyn Clock>, log: LogEngineConfig) -> Self {
        Self { clock, log }
    }
}

impl Stores for DiskStores {
    fn open_log(&self, dir: &Path, blocking: &dyn Blocking) -> io::Result<Arc<dyn LogStore>> {
        Ok(Arc::new(EngineLogStore::open(dir, &self.log, self.clock.clone(), blocking)?))
    }

    fn open_state(&self, dir: &Path, _blocking: &dyn Blocking) -> io::Result<Arc<dyn StateStore>> {
        Ok(Arc::new(SledState::open(dir)?))
    }

    fn open_snapshots(&self, dir: &Path, _blocking: &dyn Blocking) -> io::Result<Arc<dyn SnapshotStore>> {
        Ok(Arc::new(SnapshotFiles::open(dir)?))
    }

    fn free_bytes(&self, dir: &Path) -> io::Result<u64> {
        let disk = rustix::fs::statvfs(dir)?;
        // What is left for us, without what is reserved for root.
        Ok(disk.f_bavail.saturating_mul(disk.f_frsize))
    }
}

#[cfg(test)]
mod tests {
    use crate::env::Env;

    #[test]
    fn a_production_environment_opens_all_stores_and_sees_free_space() {
        let dir = tempfile::tempdir().unwrap();
        let env = Env::production();
        env.stores.open_log(&dir.path().join("log"), &*env.blocking).unwrap().close().unwrap();
        env.stores.open_state(&dir.path().join("state"), &*env.blocking).unwrap().close().unwrap();
        env.stores.open_snapshots(&dir.path().join("snapshots"), &*env.blocking).unwrap();
        assert!(env.stores.free_bytes(dir.path()).unwrap() > 0);
        assert!(env.stores.free_bytes(&dir.path().join("missing")).is_err());
    }
}
