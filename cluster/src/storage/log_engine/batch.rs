//! Queued writes as one raft-engine batch.

use std::io;

use protobuf::well_known_types::BytesValue;
use raft_engine::{Command, LogBatch, MessageExt};

use super::{
    super::LogEntry,
    format::{KEY_BATCH, KEY_COMMITTED, KEY_EMPTIED, KEY_PURGED, KEY_VOTE, MARK_SET, MARK_UNSET, META_REGION, region},
    queue::Queued,
    view::Write,
};

/// How entries are written: raft-engine asks for a protobuf message, and wants to know its index. The index takes the
/// first bytes of the value.
pub(super) struct Framed;

pub(super) const INDEX_BYTES: usize = 8;

impl MessageExt for Framed {
    type Entry = BytesValue;

    fn index(entry: &BytesValue) -> u64 {
        // Only ever called for entries whose checksum was right.
        u64::from_be_bytes(*entry.value.first_chunk().expect("an entry starts with its index"))
    }
}

/// Builds batches; keeps its memory from one to the next.
#[derive(Default)]
pub(super) struct BatchBuilder {
    pub(super) batch: LogBatch,
    framed: Vec<BytesValue>,
    /// Votes changed by this batch.
    pub(super) votes: Vec<(u32, Option<Vec<u8>>)>,
    pub(super) entries: u64,
}

impl BatchBuilder {
    /// Starts the batch with its number.
    pub(super) fn start(&mut self, number: u64) -> io::Result<()> {
        self.votes.clear();
        self.entries = 0;
        put(&mut self.batch, META_REGION, KEY_BATCH, number.to_be_bytes().to_vec())
    }

    /// Adds a write. `read` gives the data of an older entry.
    pub(super) fn add(&mut self, queued: &Queued, read: impl Fn(u64) -> io::Result<Vec<u8>>) -> io::Result<()> {
        let group = queued.group;
        let region = region(group);
        match &queued.write {
            Write::Nothing => Ok(()),
            Write::Append { entries, clear_to, unmark, .. } => {
                if let Some(index) = *clear_to {
                    self.batch.add_command(region, Command::Compact { index });
                }
                if *unmark {
                    put(&mut self.batch, region, KEY_EMPTIED, MARK_UNSET.to_vec())?;
                }
                self.entries += entries.len() as u64;
                self.append(region, entries.iter().map(|LogEntry { index, data }| (*index, data.as_ref())))
            }
            Write::Vote(vote) => {
                self.votes.push((group.0, Some(vote.to_vec())));
                put(&mut self.batch, region, KEY_VOTE, vote.to_vec())
            }
            Write::Committed(committed) => put(&mut self.batch, region, KEY_COMMITTED, committed.to_vec()),
            // raft-engine drops what follows an entry that is written again.
            Write::KeepTo { index, data: Some(data) } => self.append(region, [(*index, data.as_ref())].into_iter()),
            Write::KeepTo { index, data: None } => {
                let data = read(*index)?;
                self.append(region, [(*index, data.as_slice())].into_iter())
            }
            Write::Empty { end } => {
                self.batch.add_command(region, Command::Compact { index: *end });
                put(&mut self.batch, region, KEY_EMPTIED, MARK_SET.to_vec())
            }
            Write::Purge { index, purged, mark } => {
                if *mark {
                    put(&mut self.batch, region, KEY_EMPTIED, MARK_SET.to_vec())?;
                }
                self.batch.add_command(region, Command::Compact { index: index + 1 });
                let mut value = Vec::with_capacity(INDEX_BYTES + purged.len());
                value.extend(index.to_be_bytes());
                value.extend(purged.as_ref());
                put(&mut self.batch, region, KEY_PURGED, value)
            }
            Write::Remove => {
                self.votes.push((group.0, None));
                self.batch.add_command(region, Command::Clean);
                Ok(())
            }
        }
    }

    fn append<'a>(&mut self, region: u64, entries: impl Iterator<Item = (u64, &'a [u8])>) -> io::Result<()> {
        let mut count = 0;
        for (index, data) in entries {
            if count == self.framed.len() {
                self.framed.push(BytesValue::new());
            }
            let value = &mut self.framed[count].value;
            value.clear();
            value.extend(index.to_be_bytes());
            value.extend(data);
            count += 1;
        }
        let result = self.batch.add_entries::<Framed>(region, &self.framed[..count]).map_err(into_io);
        // One huge append must not be remembered for ever.
        self.framed.truncate(MAX_KEPT_FRAMES);
        for frame in &mut self.framed {
            frame.value.shrink_to(MAX_KEPT_FRAME_BYTES);
        }
        result
    }
}

/// Memory of entries that is used again: at most 4 MiB.
const MAX_KEPT_FRAMES: usize = 1024;
const MAX_KEPT_FRAME_BYTES: usize = 4096;

fn put(batch: &mut LogBatch, region: u64, key: &[u8], value: Vec<u8>) -> io::Result<()> {
    batch.put(region, key.to_vec(), value).map_err(into_io)
}

/// raft-engine's errors as the disk's. What it calls corruption is damage.
pub(super) fn into_io(error: raft_engine::Error) -> io::Error {
    match error {
        raft_engine::Error::Io(e) => e,
        raft_engine::Error::Corruption(what) => io::Error::new(io::ErrorKind::InvalidData, what),
        other => io::Error::other(other.to_string()),
    }
}
