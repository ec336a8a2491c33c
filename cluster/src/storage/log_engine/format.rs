//! How a log looks on disk: raft-engine's files, read by our own eyes, and what we put into them.

use raft_engine::Version;

use crate::GroupId;

/// raft-engine's region of the batch counter.
pub(super) const META_REGION: u64 = 0;
/// Key of the batch counter; the first item of every batch puts it.
pub(super) const KEY_BATCH: &[u8] = b"n";
/// Key of a group's vote.
pub(super) const KEY_VOTE: &[u8] = b"v";
/// Key of a group's committed log id.
pub(super) const KEY_COMMITTED: &[u8] = b"c";
/// Key of a group's purged index (8 bytes, big-endian) and log id.
pub(super) const KEY_PURGED: &[u8] = b"p";
/// Key of the mark that a group's log became empty ([`MARK_SET`], else unset). What was cut from a log's end stays on
/// disk for a while; on recovery only a younger entry hides it, and an empty log has none. The mark is overwritten,
/// never deleted, because raft-engine may forget deletions.
pub(super) const KEY_EMPTIED: &[u8] = b"e";
/// Value of a set mark.
pub(super) const MARK_SET: &[u8] = &[1];
/// Value of an unset mark.
pub(super) const MARK_UNSET: &[u8] = &[0];

/// raft-engine's region of a group.
pub(super) fn region(group: GroupId) -> u64 {
    u64::from(group.0) + 1
}

/// The group of a region; `None` for the region of the batch counter and ones we never wrote.
pub(super) fn group(region: u64) -> Option<GroupId> {
    region.checked_sub(1).and_then(|id| u32::try_from(id).ok()).map(GroupId)
}

const FILE_MAGIC: &[u8] = b"RAFT-LOG-FILE-HEADER-9986AB3E47F320B394C8E84916EB0ED5";
const BATCH_HEADER: usize = 16;
const CRC: usize = 4;

/// The length of a valid file header and whether batches are signed with the file's number.
pub(super) fn parse_file_header(bytes: &[u8]) -> Option<(usize, Version)> {
    let rest = bytes.strip_prefix(FILE_MAGIC)?;
    let (version, rest) = rest.split_first_chunk::<8>()?;
    match u64::from_be_bytes(*version) {
        1 => Some((FILE_MAGIC.len() + 8, Version::V1)),
        // The second field is an alignment that is always off.
        2 if u64::from_be_bytes(*rest.first_chunk::<8>()?) == 0 => Some((FILE_MAGIC.len() + 16, Version::V2)),
        _ => None,
    }
}

/// One valid batch.
pub(super) struct BatchBytes<'a> {
    /// Its length in the file.
    pub(super) len: usize,
    items: &'a [u8],
}

/// The batch at the start of `bytes`, if both of its checksums are right. Compression is off, hence a batch that
/// claims to be compressed is not one of ours.
pub(super) fn parse_batch(bytes: &[u8], file: u64, version: Version) -> Option<BatchBytes<'_>> {
    let (head, rest) = bytes.split_first_chunk::<8>()?;
    let head = u64::from_be_bytes(*head);
    let (compression, len) = (head & 0xff, usize::try_from(head >> 8).ok()?);
    let items_at = usize::try_from(u64::from_be_bytes(*rest.first_chunk::<8>()?)).ok()?;
    if compression != 0 || items_at < BATCH_HEADER || len <= items_at.checked_add(CRC)? || len > bytes.len() {
        return None;
    }
    if items_at > BATCH_HEADER {
        checked(&bytes[BATCH_HEADER..items_at], 0)?;
    }
    let signature = if version.has_log_signing() { file as u32 } else { 0 };
    let items = checked(&bytes[items_at..len], signature)?;
    Some(BatchBytes { len, items })
}

fn checked(block: &[u8], signature: u32) -> Option<&[u8]> {
    let (content, crc) = block.split_last_chunk::<CRC>()?;
    (crc32fast::hash(content) ^ signature == u32::from_le_bytes(*crc)).then_some(content)
}

/// An item of a batch, as far as it matters to recovery.
pub(super) enum Item<'a> {
    /// A key was set.
    Put { region: u64, key: &'a [u8], value: &'a [u8] },
    /// A region was removed.
    Clean { region: u64 },
    /// Entries, compactions, deletions.
    Other,
}

impl<'a> BatchBytes<'a> {
    /// Its items; `None` if they are not written in the way we know.
    pub(super) fn items(&self) -> Option<Vec<Item<'a>>> {
        let mut bytes = self.items;
        let count = varint(&mut bytes)?;
        let mut items = Vec::new();
        for _ in 0..count {
            items.push(item(&mut bytes)?);
        }
        bytes.is_empty().then_some(items)
    }
}

fn item<'a>(bytes: &mut &'a [u8]) -> Option<Item<'a>> {
    let region = varint(bytes)?;
    match (byte(bytes)?, bytes) {
        // Entries: count, first index, end offsets.
        (1, bytes) => {
            let count = varint(bytes)?;
            for _ in 0..count + u64::from(count > 0) {
                varint(bytes)?;
            }
            Some(Item::Other)
        }
        // Commands.
        (2, bytes) => match byte(bytes)? {
            1 => Some(Item::Clean { region }),
            2 => varint(bytes).map(|_| Item::Other),
            _ => None,
        },
        // Keys: put and delete.
        (3, bytes) => match byte(bytes)? {
            1 => Some(Item::Put { region, key: block(bytes)?, value: block(bytes)? }),
            2 => block(bytes).map(|_| Item::Other),
            _ => None,
        },
        _ => None,
    }
}

fn byte(bytes: &mut &[u8]) -> Option<u8> {
    let (first, rest) = bytes.split_first()?;
    *bytes = rest;
    Some(*first)
}

fn block<'a>(bytes: &mut &'a [u8]) -> Option<&'a [u8]> {
    let len = usize::try_from(varint(bytes)?).ok()?;
    let (block, rest) = bytes.split_at_checked(len)?;
    *bytes = rest;
    Some(block)
}

fn varint(bytes: &mut &[u8]) -> Option<u64> {
    let mut value = 0u64;
    for shift in (0..64).step_by(7) {
        let next = byte(bytes)?;
        value |= u64::from(next & 0x7f) << shift;
        if next < 0x80 {
            return Some(value);
        }
    }
    None
}
