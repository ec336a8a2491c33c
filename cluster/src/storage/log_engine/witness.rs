//! The second, small file: what the log has promised, so that its damage can be told from a torn tail.
//!
//! A torn tail and a damaged last batch look the same from within the log. The witness remembers how far the log was
//! synced: exactly for votes (it is written before a vote is acknowledged), about a second late for the rest.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::{self, Write},
    path::PathBuf,
};

use parking_lot::Mutex;
use prost::Message;
use raft_engine::internals::LogQueue;

use super::super::durable_files::sync_dir;

/// What was synced when this was written.
#[derive(Clone, PartialEq, Message)]
pub(super) struct Promise {
    /// Number of the last synced batch.
    #[prost(uint64, tag = "1")]
    pub(super) batch: u64,
    /// Number of the last batch in append files that may be gone: the first one left is the next.
    #[prost(uint64, tag = "2")]
    pub(super) purged_batch: u64,
    /// Append files up to this one may be gone: nothing in them is needed any more.
    #[prost(uint64, tag = "3")]
    pub(super) append_purged: u64,
    /// The same for rewrite files.
    #[prost(uint64, tag = "4")]
    pub(super) rewrite_purged: u64,
    /// For each rewrite file, the offset up to which it was synced.
    #[prost(btree_map = "uint64, uint64", tag = "5")]
    pub(super) rewrite_ends: BTreeMap<u64, u64>,
    /// The vote of each group.
    #[prost(btree_map = "uint32, bytes", tag = "6")]
    pub(super) votes: BTreeMap<u32, Vec<u8>>,
}

/// The file and its next content.
pub(super) struct Witness {
    path: PathBuf,
    next: Mutex<Next>,
}

struct Next {
    promise: Promise,
    /// The last batch in each append file.
    batches: BTreeMap<u64, u64>,
    /// Whether the file lags behind.
    stale: bool,
}

const CRC_BYTES: usize = 4;

impl Witness {
    /// Reads what a file promises; `None` if there is none. A file that can't be read is `InvalidData`: it is replaced
    /// by renaming, never torn.
    pub(super) fn read(path: &PathBuf) -> io::Result<Option<Promise>> {
        let bytes = match fs::read(path) {
            Ok(bytes) => bytes,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(e),
        };
        let damaged = || io::Error::new(io::ErrorKind::InvalidData, format!("{} is damaged", path.display()));
        let (crc, body) = bytes.split_first_chunk::<CRC_BYTES>().ok_or_else(damaged)?;
        if crc32fast::hash(body) != u32::from_le_bytes(*crc) {
            return Err(damaged());
        }
        Promise::decode(body).map(Some).map_err(|_| damaged())
    }

    /// Writes go to `path` from now on. `batches`: the last batch in each append file.
    pub(super) fn new(path: PathBuf, promise: Promise, batches: BTreeMap<u64, u64>) -> Self {
        Self { path, next: Mutex::new(Next { promise, batches, stale: true }) }
    }

    /// A batch was synced; `votes` are those it changed (`None`: the group was removed). True if the witness must be
    /// stored before the batch is acknowledged.
    pub(super) fn synced(&self, batch: u64, file: u64, votes: &[(u32, Option<Vec<u8>>)]) -> bool {
        let mut next = self.next.lock();
        next.promise.batch = batch;
        next.batches.insert(file, batch);
        for (group, vote) in votes {
            match vote {
                Some(vote) => next.promise.votes.insert(*group, vote.clone()),
                None => next.promise.votes.remove(group),
            };
        }
        next.stale = true;
        !votes.is_empty()
    }

    /// A rewrite file was synced up to `end`.
    pub(super) fn rewritten(&self, file: u64, end: u64) {
        let mut next = self.next.lock();
        next.promise.rewrite_ends.insert(file, end);
        next.stale = true;
    }

    /// Files up to this one are about to be deleted: stored before that happens, since what took their place must not
    /// be forgotten.
    pub(super) fn deleting(&self, queue: LogQueue, file: u64) -> io::Result<()> {
        let mut next = self.next.lock();
        let Next { promise, batches, .. } = &mut *next;
        match queue {
            LogQueue::Append => {
                promise.append_purged = promise.append_purged.max(file);
                let left = batches.split_off(&(file + 1));
                if let Some((_, batch)) = std::mem::replace(batches, left).last_key_value() {
                    promise.purged_batch = promise.purged_batch.max(*batch);
                }
            }
            LogQueue::Rewrite => {
                promise.rewrite_purged = promise.rewrite_purged.max(file);
                promise.rewrite_ends = promise.rewrite_ends.split_off(&(promise.rewrite_purged + 1));
            }
        }
        next.stale = true;
        self.write(&mut next)
    }

    /// Whether [`Witness::store`] has something to do.
    pub(super) fn stale(&self) -> bool {
        self.next.lock().stale
    }

    /// Makes the file say what was promised so far; durable on return.
    pub(super) fn store(&self) -> io::Result<()> {
        let mut next = self.next.lock();
        if next.stale { self.write(&mut next) } else { Ok(()) }
    }

    fn write(&self, next: &mut Next) -> io::Result<()> {
        let mut bytes = vec![0; CRC_BYTES];
        next.promise.encode(&mut bytes).expect("a vector grows");
        let crc = crc32fast::hash(&bytes[CRC_BYTES..]);
        bytes[..CRC_BYTES].copy_from_slice(&crc.to_le_bytes());

        // Always the same name, so that a crash leaves nothing behind that the next write does not replace.
        let temporary = self.path.with_extension("new");
        let mut file = File::create(&temporary)?;
        file.write_all(&bytes)?;
        file.sync_all()?;
        fs::rename(&temporary, &self.path)?;
        sync_dir(self.path.parent().expect("a file stands in a directory"))?;
        next.stale = false;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_flipped_bit_and_every_cut_of_the_file_is_noticed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("witness");
        assert_eq!(Witness::read(&path).unwrap(), None);
        let witness = Witness::new(path.clone(), Promise::default(), BTreeMap::new());
        assert!(witness.synced(7, 1, &[(3, Some(b"vote".to_vec()))]));
        witness.rewritten(2, 99);
        witness.store().unwrap();
        let promise = Witness::read(&path).unwrap().unwrap();
        assert_eq!((promise.batch, promise.rewrite_ends[&2]), (7, 99));

        let good = fs::read(&path).unwrap();
        for bit in 0..good.len() * 8 {
            let mut bad = good.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            fs::write(&path, bad).unwrap();
            assert_eq!(Witness::read(&path).unwrap_err().kind(), io::ErrorKind::InvalidData, "bit {bit}");
        }
        for len in 0..good.len() {
            fs::write(&path, &good[..len]).unwrap();
            assert_eq!(Witness::read(&path).unwrap_err().kind(), io::ErrorKind::InvalidData, "cut to {len}");
        }
    }
}
