//! Keys and values of the state store in sled's one tree.
//!
//! ```text
//! group u32 | 0                      marker   u64 hash of the rest | protobuf StoredMarker
//! group u32 | 1 | key                head     u64 hash | u32 length of the value | its beginning
//! group u32 | 2 | key | number u32   chunk    the next part of a long value
//! ```
//! Integers in keys are big-endian, so a group's records stand together and in the order of their keys; in values they
//! are little-endian. A record's hash covers its tree key (group and key) and its whole value.
//!
//! The marker carries the number of the group's records and the sum of their hashes. Each record's own hash finds
//! flipped bits; the sum finds what no single hash can: a record that is missing, too many, or an older version of
//! itself, as an abrupt stop could leave behind when pages reach the disk in another order than they were written.

use std::{io, iter};

use bytes::Bytes;
use prost::Message;
use xxhash_rust::xxh3::{Xxh3, xxh3_64};

use super::super::invalid_data;
use crate::GroupId;

/// Longest value stored under one key of the tree. Leaves hold up to 17 of them and must stay below sled's limit for
/// pages (128 KiB), beyond which they become files of their own that are never synced.
const MAX_STORED_BYTES: usize = 4_000;

/// Bytes before a value's beginning in its head.
const HEAD_BYTES: usize = 12;

/// Bytes of the value that fit into its head.
pub(super) const IN_HEAD_BYTES: usize = MAX_STORED_BYTES - HEAD_BYTES;

/// The layout described above; another one gets another number.
const FORMAT: u32 = 1;

const MARKER: u8 = 0;
const HEAD: u8 = 1;
const CHUNK: u8 = 2;

/// What a group's records amount to, without the records.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Totals {
    records: u64,
    hashes: u64,
}

impl Totals {
    /// Counts a record in.
    pub(super) fn add(&mut self, hash: u64) {
        self.records += 1;
        self.hashes = self.hashes.wrapping_add(hash);
    }

    /// Counts a record out. Fails if there is none to count out: the marker and the records disagree.
    pub(super) fn remove(&mut self, hash: u64) -> io::Result<()> {
        self.records = self.records.checked_sub(1).ok_or_else(|| invalid_data("more records than the marker says"))?;
        self.hashes = self.hashes.wrapping_sub(hash);
        Ok(())
    }
}

/// The marker of a group: what its records stand for, and their totals.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Marker {
    pub(super) applied: Bytes,
    pub(super) totals: Totals,
}

#[derive(Clone, PartialEq, Message)]
struct StoredMarker {
    #[prost(uint32, tag = "1")]
    format: u32,
    #[prost(bytes = "bytes", tag = "2")]
    applied: Bytes,
    #[prost(fixed64, tag = "3")]
    records: u64,
    #[prost(fixed64, tag = "4")]
    hashes: u64,
}

impl Marker {
    pub(super) fn encode(&self) -> Vec<u8> {
        let Totals { records, hashes } = self.totals;
        let stored = StoredMarker { format: FORMAT, applied: self.applied.clone(), records, hashes };
        let message = stored.encode_to_vec();
        let mut value = xxh3_64(&message).to_le_bytes().to_vec();
        value.extend_from_slice(&message);
        value
    }

    pub(super) fn decode(value: &[u8]) -> io::Result<Self> {
        let (hash, message) = value.split_first_chunk().ok_or_else(|| invalid_data("a marker is cut off"))?;
        if u64::from_le_bytes(*hash) != xxh3_64(message) {
            return Err(invalid_data("a marker is damaged"));
        }
        let stored = StoredMarker::decode(message).map_err(|error| invalid_data(format!("a marker: {error}")))?;
        if stored.format != FORMAT {
            return Err(invalid_data(format!("state of format {}, this is {FORMAT}", stored.format)));
        }
        let totals = Totals { records: stored.records, hashes: stored.hashes };
        Ok(Self { applied: stored.applied, totals })
    }
}

/// What a record's head says, before its value is whole.
#[derive(Debug, Clone, Copy)]
pub(super) struct Head<'a> {
    pub(super) hash: u64,
    pub(super) length: usize,
    pub(super) beginning: &'a [u8],
}

impl<'a> Head<'a> {
    pub(super) fn decode(value: &'a [u8]) -> io::Result<Self> {
        let cut_off = || invalid_data("a record is cut off");
        let (hash, rest) = value.split_first_chunk().ok_or_else(cut_off)?;
        let (length, beginning) = rest.split_first_chunk().ok_or_else(cut_off)?;
        let (hash, length) = (u64::from_le_bytes(*hash), u32::from_le_bytes(*length) as usize);
        if beginning.len() != length.min(IN_HEAD_BYTES) {
            return Err(invalid_data("a record's length is damaged"));
        }
        Ok(Self { hash, length, beginning })
    }

    /// How many further chunks the value has.
    pub(super) fn chunks(&self) -> u32 {
        chunks(self.length)
    }
}

/// A record's hash; `head_key` names group and key.
pub(super) fn record_hash(head_key: &[u8], value: &[u8]) -> u64 {
    let mut hash = Xxh3::new();
    hash.update(&(head_key.len() as u64).to_le_bytes());
    hash.update(head_key);
    hash.update(value);
    hash.digest()
}

/// The head of a record with this hash and value. Values of 4 GiB and more are refused.
pub(super) fn head(hash: u64, value: &[u8]) -> io::Result<Vec<u8>> {
    let too_long = |_| io::Error::new(io::ErrorKind::InvalidInput, "a record's value is 4 GiB or longer");
    let length = u32::try_from(value.len()).map_err(too_long)?;
    let beginning = &value[..value.len().min(IN_HEAD_BYTES)];
    let mut head = Vec::with_capacity(HEAD_BYTES + beginning.len());
    head.extend_from_slice(&hash.to_le_bytes());
    head.extend_from_slice(&length.to_le_bytes());
    head.extend_from_slice(beginning);
    Ok(head)
}

/// The parts of a value that follow its head, in order.
pub(super) fn following(value: &[u8]) -> impl Iterator<Item = &[u8]> {
    let mut rest = value.get(IN_HEAD_BYTES..).unwrap_or_default();
    iter::from_fn(move || {
        let (chunk, after) = rest.split_at(rest.len().min(MAX_STORED_BYTES));
        rest = after;
        (!chunk.is_empty()).then_some(chunk)
    })
}

/// How many chunks follow the head of a value.
fn chunks(length_bytes: usize) -> u32 {
    length_bytes.saturating_sub(IN_HEAD_BYTES).div_ceil(MAX_STORED_BYTES) as u32
}

/// Prefix of everything a group has.
pub(super) fn group_prefix(group: GroupId) -> [u8; 4] {
    group.0.to_be_bytes()
}

/// Prefix of a group's heads.
pub(super) fn heads_prefix(group: GroupId) -> [u8; 5] {
    prefix(group, HEAD)
}

/// Key of a group's marker.
pub(super) fn marker_key(group: GroupId) -> [u8; 5] {
    prefix(group, MARKER)
}

/// Key of a record's head.
pub(super) fn head_key(group: GroupId, key: &[u8]) -> Vec<u8> {
    let mut tree_key = prefix(group, HEAD).to_vec();
    tree_key.extend_from_slice(key);
    tree_key
}

/// A record's key, from its head's.
pub(super) fn key_of(head_key: &[u8]) -> &[u8] {
    &head_key[5..]
}

/// Key of one of a record's chunks, counted from 0. The number has a fixed length, so no two chunks share a key.
pub(super) fn chunk_key(head_key: &[u8], number: u32) -> Vec<u8> {
    let mut tree_key = head_key.to_vec();
    tree_key[4] = CHUNK;
    tree_key.extend_from_slice(&number.to_be_bytes());
    tree_key
}

fn prefix(group: GroupId, space: u8) -> [u8; 5] {
    let [a, b, c, d] = group_prefix(group);
    [a, b, c, d, space]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_is_cut_into_parts_that_make_it_whole_again() {
        let sizes = [0, 1, IN_HEAD_BYTES - 1, IN_HEAD_BYTES, IN_HEAD_BYTES + 1];
        let more = [IN_HEAD_BYTES + MAX_STORED_BYTES, IN_HEAD_BYTES + MAX_STORED_BYTES + 1, 100_000];
        for size in sizes.into_iter().chain(more) {
            let value: Vec<u8> = (0..size).map(|i| (i % 251) as u8).collect();
            let stored = head(7, &value).unwrap();
            let read = Head::decode(&stored).unwrap();
            let parts: Vec<&[u8]> = following(&value).collect();
            assert_eq!((read.hash, read.length, read.chunks() as usize), (7, size, parts.len()), "{size}");
            assert!(stored.len() <= MAX_STORED_BYTES && parts.iter().all(|part| part.len() <= MAX_STORED_BYTES));
            assert_eq!([read.beginning, &parts.concat()].concat(), value, "{size}");
        }
    }

    #[test]
    fn damaged_heads_and_markers_are_invalid_data() {
        let marker = Marker { applied: Bytes::from_static(b"id"), totals: Totals { records: 3, hashes: 9 } };
        let stored = marker.encode();
        assert_eq!(Marker::decode(&stored).unwrap(), marker);
        for byte in 0..stored.len() {
            let mut damaged = stored.clone();
            damaged[byte] ^= 4;
            assert_eq!(Marker::decode(&damaged).unwrap_err().kind(), io::ErrorKind::InvalidData, "byte {byte}");
            assert_eq!(Marker::decode(&stored[..byte]).unwrap_err().kind(), io::ErrorKind::InvalidData);
        }
        let stored = head(1, b"value").unwrap();
        for length in 0..stored.len() {
            assert_eq!(Head::decode(&stored[..length]).unwrap_err().kind(), io::ErrorKind::InvalidData);
        }
    }

    #[test]
    fn keys_keep_groups_and_records_apart_and_in_order() {
        let keys = [
            marker_key(GroupId(1)).to_vec(),
            head_key(GroupId(1), b"a"),
            head_key(GroupId(1), b"a\0"),
            head_key(GroupId(1), b"b"),
            chunk_key(&head_key(GroupId(1), b"a"), 0),
            chunk_key(&head_key(GroupId(1), b"a"), 300),
            marker_key(GroupId(256)).to_vec(),
        ];
        assert!(keys.is_sorted_by(|a, b| a < b));
        assert_eq!(key_of(&keys[1]), b"a");
    }
}
