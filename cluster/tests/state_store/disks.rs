//! Disks for state stores: what can be opened, crashed and opened again.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::Arc,
};

use andante_cluster::{
    GroupId,
    storage::{
        SledState, StateStore,
        memory::{MemoryStateDisk, MemoryStores},
    },
};
use tempfile::TempDir;

use crate::sim_disk::Seeded;

/// Where a state store keeps its data.
pub(crate) trait Disk {
    /// Opens the store; an older one must be closed or dropped.
    fn open(&self) -> Arc<dyn StateStore>;
    /// What an abrupt stop of the process now would leave.
    fn image(&self) -> Box<dyn Disk>;
    /// Another disk of this kind, empty.
    fn empty(&self) -> Box<dyn Disk>;
    /// How many things of a group are stored in whatever form. The store must be open.
    fn entries_of(&self, group: GroupId) -> usize;
}

/// The in-memory twin's.
#[derive(Default)]
pub(crate) struct TwinDisk(MemoryStateDisk);

impl Disk for TwinDisk {
    fn open(&self) -> Arc<dyn StateStore> {
        Arc::new(self.0.open())
    }

    fn image(&self) -> Box<dyn Disk> {
        Box::new(Self(self.0.image()))
    }

    fn empty(&self) -> Box<dyn Disk> {
        Box::new(Self::default())
    }

    fn entries_of(&self, group: GroupId) -> usize {
        let mut entries = 0;
        self.0.image().open().load(group, &mut |_| entries += 1).unwrap();
        entries
    }
}

/// The twin's, which crashes before each opening and in each image, with drawn outcomes.
pub(crate) struct CrashingDisk {
    stores: MemoryStores,
    rng: Arc<Seeded>,
}

impl Default for CrashingDisk {
    fn default() -> Self {
        Self { stores: MemoryStores::default(), rng: Arc::new(Seeded::new(3)) }
    }
}

impl CrashingDisk {
    fn with(&self, state: MemoryStateDisk) -> Self {
        let mut stores = self.stores.clone();
        stores.state = state;
        Self { stores, rng: self.rng.clone() }
    }
}

impl Disk for CrashingDisk {
    fn open(&self) -> Arc<dyn StateStore> {
        self.stores.crash(&*self.rng);
        Arc::new(self.stores.state.open())
    }

    fn image(&self) -> Box<dyn Disk> {
        Box::new(self.with(self.stores.state.image()))
    }

    fn empty(&self) -> Box<dyn Disk> {
        Box::new(self.with(MemoryStateDisk::new()))
    }

    fn entries_of(&self, group: GroupId) -> usize {
        TwinDisk(self.stores.state.clone()).entries_of(group)
    }
}

/// A directory with a sled database.
pub(crate) struct SledDisk(TempDir);

impl Default for SledDisk {
    fn default() -> Self {
        Self(tempfile::tempdir().unwrap())
    }
}

impl SledDisk {
    /// The database's directory.
    pub(crate) fn dir(&self) -> PathBuf {
        self.0.path().join("state")
    }

    /// Does something to the closed database below the store.
    pub(crate) fn raw<T>(&self, call: impl FnOnce(&sled::Db) -> T) -> T {
        let db = sled::Config::new().path(self.dir()).flush_every_ms(None).open().unwrap();
        let result = call(&db);
        db.flush().unwrap();
        drop(db);
        // sled's threads hold its lock a little longer; the next open would fail.
        fs::File::open(self.dir().join("db")).unwrap().lock().unwrap();
        result
    }
}

impl Disk for SledDisk {
    fn open(&self) -> Arc<dyn StateStore> {
        Arc::new(SledState::open(&self.dir()).unwrap())
    }

    /// The files as they are now: what a killed process leaves.
    fn image(&self) -> Box<dyn Disk> {
        let image = Self::default();
        copy_dir(&self.dir(), &image.dir());
        Box::new(image)
    }

    fn empty(&self) -> Box<dyn Disk> {
        Box::new(Self::default())
    }

    fn entries_of(&self, group: GroupId) -> usize {
        let image = Self::default();
        copy_dir(&self.dir(), &image.dir());
        image.raw(|db| db.scan_prefix(group.0.to_be_bytes()).count())
    }
}

/// Copies a directory with all in it.
pub(crate) fn copy_dir(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for file in fs::read_dir(from).unwrap() {
        let file = file.unwrap();
        let target = to.join(file.file_name());
        if file.file_type().unwrap().is_dir() {
            copy_dir(&file.path(), &target);
        } else {
            fs::copy(file.path(), target).unwrap();
        }
    }
}
