//! Opening a log: look, cut, open, look again.

use std::{
    collections::BTreeMap,
    fs::{self, File, OpenOptions, TryLockError},
    io,
    path::{Path, PathBuf},
    sync::Arc,
};

use bytes::Bytes;
use raft_engine::{
    Command, Config, ReadableSize, RecoveryMode,
    env::FileSystem,
    internals::{EventListener, FilePipeLog},
};

use super::{
    super::{RecoveredGroup, durable_files::sync_dir},
    LogEngineConfig,
    batch::{BatchBuilder, INDEX_BYTES, into_io},
    files::{Positions, Watch, WatchedFiles},
    format::{KEY_BATCH, KEY_COMMITTED, KEY_EMPTIED, KEY_PURGED, KEY_VOTE, MARK_SET, META_REGION, group, region},
    scan,
    view::GroupView,
    witness::{Promise, Witness},
};
use crate::{GroupId, env::Clock};

/// raft-engine on watched files.
pub(super) type Engine<F> = raft_engine::Engine<WatchedFiles<F>, FilePipeLog<WatchedFiles<F>>>;

/// An open log.
pub(super) struct Opened<F: FileSystem> {
    pub(super) engine: Arc<Engine<F>>,
    pub(super) watch: Arc<Watch>,
    /// Held while the log is open.
    pub(super) lock: File,
    pub(super) last_batch: u64,
    pub(super) builder: BatchBuilder,
    pub(super) views: BTreeMap<GroupId, GroupView>,
    pub(super) recovered: BTreeMap<GroupId, RecoveredGroup>,
}

/// Opens or creates a log.
pub(super) fn open<F: FileSystem + 'static>(
    dir: &Path,
    config: &LogEngineConfig,
    clock: Arc<dyn Clock>,
    files: F,
) -> io::Result<Opened<F>> {
    fs::create_dir_all(dir)?;
    let lock = lock(&dir.join("lock"))?;
    let engine_dir = dir.join("engine");
    let (mut promise, found) = look(dir, &engine_dir)?;
    found.cut()?;
    promise.batch = promise.batch.max(found.last_batch);
    promise.rewrite_ends = found.rewrite_ends;
    promise.votes = found.votes.iter().map(|(group, vote)| (group.0, vote.clone())).collect();
    let witness = Witness::new(witness_path(dir), promise, found.batches);
    // Before the first file of the log: a log without a witness has lost it.
    witness.store()?;

    let watch = Arc::new(Watch::new(clock, witness));
    let engine = raft_engine::Engine::open_with(
        engine_config(&engine_dir, config)?,
        Arc::new(WatchedFiles::new(files, watch.clone())),
        vec![Arc::new(Positions(watch.clone())) as Arc<dyn EventListener>],
    )
    .map_err(into_io)?;
    sync_dir(&engine_dir)?;
    sync_dir(dir)?;
    if let Some(parent) = dir.parent().filter(|parent| !parent.as_os_str().is_empty()) {
        sync_dir(parent)?;
    }

    let mut opened = Opened {
        engine: Arc::new(engine),
        watch,
        lock,
        last_batch: found.last_batch,
        builder: BatchBuilder::default(),
        views: BTreeMap::new(),
        recovered: BTreeMap::new(),
    };
    opened.load(&found.votes)?;
    Ok(opened)
}

fn witness_path(dir: &Path) -> PathBuf {
    dir.join("witness")
}

fn lock(path: &Path) -> io::Result<File> {
    let file = OpenOptions::new().create(true).truncate(false).write(true).open(path)?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => {
            Err(io::Error::new(io::ErrorKind::ResourceBusy, format!("{} is used by another process", path.display())))
        }
        Err(TryLockError::Error(e)) => Err(e),
    }
}

/// Verifies what is there against what was promised; changes nothing.
fn look(dir: &Path, engine_dir: &Path) -> io::Result<(Promise, scan::Scan)> {
    let promise = match Witness::read(&witness_path(dir))? {
        Some(promise) => promise,
        None if scan::has_files(engine_dir)? => {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "the log's witness file is missing"));
        }
        None => Promise::default(),
    };
    let found = scan::scan(engine_dir, &promise)?;
    Ok((promise, found))
}

fn engine_config(dir: &Path, config: &LogEngineConfig) -> io::Result<Config> {
    let dir = dir.to_str().ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "the log's path is not UTF-8"))?;
    Ok(Config {
        dir: dir.to_owned(),
        // Tails were cut before, by stricter rules: what is bad now is damage.
        recovery_mode: RecoveryMode::AbsoluteConsistency,
        // Settles are random bytes mostly; and the type of compression is outside of all checksums.
        batch_compression_threshold: ReadableSize(0),
        // An old record in a recycled file could be taken for a new one.
        enable_log_recycle: false,
        target_file_size: ReadableSize(config.target_file_bytes),
        purge_threshold: ReadableSize(config.purge_threshold_bytes.max(config.target_file_bytes)),
        ..Config::default()
    })
}

impl<F: FileSystem + 'static> Opened<F> {
    /// Loads all groups and writes the first batch, which brings raft-engine's view of them in line with ours.
    fn load(&mut self, votes: &BTreeMap<GroupId, Vec<u8>>) -> io::Result<()> {
        let last_batch = self.last_batch + 1;
        self.builder.start(last_batch)?;
        for region in self.engine.raft_groups() {
            match group(region) {
                Some(group) => self.load_group(group),
                None => self.check_batch(region)?,
            }
        }
        for (group, vote) in votes {
            if self.recovered.get(group).and_then(|found| found.vote.as_ref()).is_none_or(|found| found != vote) {
                return Err(damage(&format!("the vote of group {group} reads back wrong")));
            }
        }
        self.engine.write(&mut self.builder.batch, true).map_err(into_io)?;
        self.watch.check()?;
        self.last_batch = last_batch;
        self.watch.witness.synced(last_batch, self.watch.append_file(), &[]);
        self.watch.witness.store()
    }

    fn load_group(&mut self, group: GroupId) {
        let region = region(group);
        let purged = self.engine.get(region, KEY_PURGED).and_then(|value| {
            let index = u64::from_be_bytes(*value.first_chunk()?);
            Some((index, Bytes::from(value).slice(INDEX_BYTES..)))
        });
        let purged_index = purged.as_ref().map(|(index, _)| *index);
        let emptied = self.engine.get(region, KEY_EMPTIED).is_some_and(|mark| mark == MARK_SET);
        let first = self.engine.first_index(region).unwrap_or(0);
        let end = self.engine.last_index(region).map_or(0, |last| last + 1);
        // Entries that were rewritten once can be back after their compaction was forgotten.
        let start = if emptied { end } else { first.max(purged_index.map_or(0, |index| index + 1)) };
        let entries = if start < end { start..end } else { 0..0 };
        if first < end && entries != (first..end) {
            self.builder.batch.add_command(region, Command::Compact { index: start.min(end) });
        }
        let found = RecoveredGroup {
            vote: self.engine.get(region, KEY_VOTE).map(Bytes::from),
            committed: self.engine.get(region, KEY_COMMITTED).map(Bytes::from),
            purged: purged.map(|(_, id)| id),
            entries: entries.clone(),
        };
        if found != RecoveredGroup::default() {
            self.recovered.insert(group, found);
        }
        self.views.insert(group, GroupView::recovered(entries, purged_index, emptied));
    }

    /// raft-engine must have recovered what the scan saw.
    fn check_batch(&self, region: u64) -> io::Result<()> {
        let counted = self.engine.get(region, KEY_BATCH).and_then(|n| n.first_chunk().copied().map(u64::from_be_bytes));
        if region == META_REGION && counted == Some(self.last_batch) {
            return Ok(());
        }
        Err(damage(&format!("batch {counted:?} was recovered instead of {}", self.last_batch)))
    }
}

fn damage(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("the log is damaged: {what}"))
}
