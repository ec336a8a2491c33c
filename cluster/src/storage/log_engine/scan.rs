//! Looks at a log before it is opened, changing nothing, and tells a torn tail from damage.
//!
//! Whatever was written is synced before the next batch is: so at most the last batch of a queue may be incomplete.
//! Everything else must be there, in full, with batch numbers without gaps, as far as the witness says.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::{self, OpenOptions},
    io,
    path::{Path, PathBuf},
};

use raft_engine::{
    Version,
    internals::{FileId, FileNameExt, LogQueue},
};

use super::{
    super::durable_files::sync_dir,
    format::{Item, KEY_BATCH, KEY_VOTE, META_REGION, group, parse_batch, parse_file_header},
    witness::Promise,
};
use crate::GroupId;

/// A log that may be opened, after [`Scan::cut`].
pub(super) struct Scan {
    /// Number of the last complete batch.
    pub(super) last_batch: u64,
    /// The last batch in each append file.
    pub(super) batches: BTreeMap<u64, u64>,
    /// End of each rewrite file.
    pub(super) rewrite_ends: BTreeMap<u64, u64>,
    /// The votes found.
    pub(super) votes: BTreeMap<GroupId, Vec<u8>>,
    remove: Vec<PathBuf>,
    /// The last file of each queue and its valid length.
    truncate: Vec<(PathBuf, u64)>,
}

/// Whether a folder holds any log file.
pub(super) fn has_files(dir: &Path) -> io::Result<bool> {
    Ok(!list(dir, LogQueue::Append)?.is_empty() || !list(dir, LogQueue::Rewrite)?.is_empty())
}

/// Verifies all files of a log against themselves and against what was promised.
pub(super) fn scan(dir: &Path, promise: &Promise) -> io::Result<Scan> {
    let mut log = Scanner { promise, found: Found { last_batch: promise.purged_batch, ..Found::default() } };
    let mut scan = Scan {
        last_batch: 0,
        batches: BTreeMap::new(),
        rewrite_ends: BTreeMap::new(),
        votes: BTreeMap::new(),
        remove: Vec::new(),
        truncate: Vec::new(),
    };
    // The rewrite queue holds what is older than anything in the append queue.
    scan.rewrite_ends = log.queue(dir, LogQueue::Rewrite, promise.rewrite_purged, &mut scan)?;
    log.queue(dir, LogQueue::Append, promise.append_purged, &mut scan)?;

    for (file, end) in promise.rewrite_ends.range(promise.rewrite_purged + 1..) {
        if scan.rewrite_ends.get(file).is_none_or(|found| found < end) {
            return Err(damage(format!("rewrite file {file} is shorter than the {end} bytes synced")));
        }
    }
    scan.last_batch = log.found.last_batch;
    scan.batches = log.found.batches;
    if scan.last_batch < promise.batch {
        return Err(damage(format!("the log ends with batch {}, but {} was synced", scan.last_batch, promise.batch)));
    }
    for (group, vote) in &promise.votes {
        let group = GroupId(*group);
        if !log.found.changed_since.contains(&group) && log.found.votes.get(&group) != Some(vote) {
            return Err(damage(format!("the vote of group {group} was lost")));
        }
    }
    scan.votes = log.found.votes;
    Ok(scan)
}

impl Scan {
    /// Removes torn tails and files that were being deleted; syncs what stays, since a predecessor that was killed may
    /// have left it in the page cache only.
    pub(super) fn cut(&self) -> io::Result<()> {
        for path in &self.remove {
            fs::remove_file(path)?;
        }
        for (path, len) in &self.truncate {
            let file = OpenOptions::new().write(true).open(path)?;
            if file.metadata()?.len() > *len {
                tracing::info!(path = %path.display(), len, "cutting the unsynced end of the log");
                file.set_len(*len)?;
            }
            file.sync_all()?;
        }
        if let Some(path) = self.remove.first() {
            sync_dir(path.parent().expect("a file stands in a directory"))?;
        }
        Ok(())
    }
}

struct Scanner<'a> {
    promise: &'a Promise,
    found: Found,
}

#[derive(Default)]
struct Found {
    last_batch: u64,
    /// The last batch in each append file.
    batches: BTreeMap<u64, u64>,
    votes: BTreeMap<GroupId, Vec<u8>>,
    /// Groups whose vote changed after the promise was written.
    changed_since: BTreeSet<GroupId>,
}

impl Scanner<'_> {
    /// Scans the files of a queue in order; returns their ends.
    fn queue(&mut self, dir: &Path, queue: LogQueue, purged: u64, scan: &mut Scan) -> io::Result<BTreeMap<u64, u64>> {
        let mut files = list(dir, queue)?;
        let live = files.split_off(&(purged + 1));
        scan.remove.extend(files.into_values());
        let mut ends = BTreeMap::new();
        let last = live.last_key_value().map(|(file, _)| *file);
        for ((file, path), expected) in live.into_iter().zip(purged + 1..) {
            if file != expected {
                return Err(damage(format!("file {expected} of the {queue:?} queue is missing")));
            }
            let end = self.file(queue, file, &path, last == Some(file))?;
            match end {
                Some(end) => drop(ends.insert(file, end)),
                None => scan.remove.push(path.clone()),
            }
            if let (Some(end), true) = (end, last == Some(file)) {
                scan.truncate.push((path, end));
            }
        }
        Ok(ends)
    }

    /// Scans one file; returns the end of its valid part, `None` if it was torn before its header was written.
    fn file(&mut self, queue: LogQueue, file: u64, path: &Path, last: bool) -> io::Result<Option<u64>> {
        let bytes = fs::read(path)?;
        let damage_at = |what: &str, at: usize| damage(format!("{}: {what} at byte {at}", path.display()));
        let header = parse_file_header(&bytes);
        let mut at = header.map_or(0, |(len, _)| len);
        if let Some((_, version)) = header {
            while let Some(batch) = parse_batch(&bytes[at..], file, version) {
                let items = batch.items().ok_or_else(|| damage_at("an item of an unknown kind", at))?;
                self.batch(queue, file, &items).map_err(|what| damage_at(&what, at))?;
                at += batch.len;
            }
        }
        let rest = &bytes[at..];
        if !rest.is_empty() && !last {
            return Err(damage_at("a bad record before the last file", at));
        }
        let versions = header.map_or(vec![Version::V1, Version::V2], |(_, version)| vec![version]);
        // Space is allocated ahead: mostly the rest is zeros.
        let written = &rest[..rest.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1)];
        if (1..written.len()).any(|i| versions.iter().any(|v| parse_batch(&rest[i..], file, *v).is_some())) {
            return Err(damage_at("a bad record before good ones", at));
        }
        Ok(header.is_some().then_some(at as u64))
    }

    fn batch(&mut self, queue: LogQueue, file: u64, items: &[Item<'_>]) -> Result<(), String> {
        let mut counted = None;
        for (i, item) in items.iter().enumerate() {
            match item {
                Item::Put { region: META_REGION, key: KEY_BATCH, value } if queue == LogQueue::Append && i == 0 => {
                    counted = value.first_chunk().map(|n| u64::from_be_bytes(*n));
                }
                Item::Put { region, key: KEY_VOTE, value } => self.vote(*region, Some(value), counted),
                Item::Clean { region } => self.vote(*region, None, counted),
                Item::Put { .. } | Item::Other => {}
            }
        }
        if queue == LogQueue::Append {
            let number = counted.ok_or("a batch without number")?;
            if number != self.found.last_batch + 1 {
                return Err(format!("batch {number} follows {}", self.found.last_batch));
            }
            self.found.last_batch = number;
            self.found.batches.insert(file, number);
        }
        Ok(())
    }

    fn vote(&mut self, region: u64, vote: Option<&[u8]>, batch: Option<u64>) {
        let Some(group) = group(region) else { return };
        match vote {
            Some(vote) => self.found.votes.insert(group, vote.to_vec()),
            None => self.found.votes.remove(&group),
        };
        if batch.is_some_and(|batch| batch > self.promise.batch) {
            self.found.changed_since.insert(group);
        }
    }
}

fn list(dir: &Path, queue: LogQueue) -> io::Result<BTreeMap<u64, PathBuf>> {
    let mut files = BTreeMap::new();
    let entries = match fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(files),
        Err(e) => return Err(e),
    };
    for entry in entries {
        let path = entry?.path();
        if let Some(file) = path.file_name().and_then(|name| FileId::parse_file_name(name.to_str()?))
            && file.queue == queue
        {
            files.insert(file.seq, path);
        }
    }
    Ok(files)
}

fn damage(what: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("the log is damaged: {what}"))
}
