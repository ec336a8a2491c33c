//! The bytes of a snapshot file.
//!
//! ```text
//! magic     8 bytes, with the format's version
//! header    u32 length, u32 CRC-32, protobuf: group, meta
//! records   each: u32 length, protobuf: key, value
//! trailer   u64 number of records, u64 length of the whole file, u64 XXH3-64 of everything before
//! ```
//! Integers are little-endian. The header has a checksum of its own because [`read_info`] reads nothing else; the
//! records are covered by the hash of the whole file, which is checked before any of them is used.

use std::io::{self, Read, Seek, Write};

use bytes::Bytes;
use prost::Message;
use xxhash_rust::xxh3::Xxh3;

use super::{SnapshotInfo, check_ascending, invalid_data};
use crate::{GroupId, Record};

/// Names the format; another layout gets another digit.
const MAGIC: [u8; 8] = *b"andsnap1";

/// Bytes of the trailer.
const TRAILER_BYTES: u64 = 24;

/// Most bytes of a header: log id, membership and snapshot id need far less. Keeps a damaged length from allocating.
const MAX_HEADER_BYTES: u32 = 1 << 20;

/// Bytes hashed at a time when a file is verified.
const VERIFY_BUFFER_BYTES: usize = 64 << 10;

#[derive(Clone, PartialEq, Message)]
struct StoredHeader {
    #[prost(uint32, tag = "1")]
    group: u32,
    #[prost(bytes = "bytes", tag = "2")]
    meta: Bytes,
}

#[derive(Clone, PartialEq, Message)]
struct StoredRecord {
    #[prost(bytes = "vec", tag = "1")]
    key: Vec<u8>,
    #[prost(bytes = "vec", tag = "2")]
    value: Vec<u8>,
}

/// Counts and hashes what passes.
struct Hashing<'a> {
    out: &'a mut dyn Write,
    hash: Xxh3,
    length: u64,
}

impl Hashing<'_> {
    fn put(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.hash.update(bytes);
        self.length += bytes.len() as u64;
        self.out.write_all(bytes)
    }
}

/// Writes a whole snapshot to `out`, which the caller buffers, flushes and syncs. Keys that are too long
/// or out of order and records beyond 4 GiB are `InvalidInput`.
pub(super) fn write(
    out: &mut dyn Write,
    group: GroupId,
    meta: &[u8],
    records: &mut dyn Iterator<Item = Record>,
) -> io::Result<SnapshotInfo> {
    let too_big = |_| io::Error::new(io::ErrorKind::InvalidInput, "too big for a snapshot file");
    let meta = Bytes::copy_from_slice(meta);
    let header = StoredHeader { group: group.0, meta: meta.clone() }.encode_to_vec();
    let header_length = u32::try_from(header.len()).map_err(too_big)?;
    if header_length > MAX_HEADER_BYTES {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "the meta data of a snapshot is too big"));
    }

    let mut out = Hashing { out, hash: Xxh3::new(), length: 0 };
    out.put(&MAGIC)?;
    out.put(&header_length.to_le_bytes())?;
    out.put(&crc32fast::hash(&header).to_le_bytes())?;
    out.put(&header)?;

    let mut count = 0u64;
    let mut encoded = Vec::new();
    let mut last_key = Vec::new();
    for Record { key, value } in records {
        check_ascending(&last_key, &key)?;
        encoded.clear();
        let record = StoredRecord { key, value };
        record.encode(&mut encoded).expect("a vector grows as needed");
        out.put(&u32::try_from(encoded.len()).map_err(too_big)?.to_le_bytes())?;
        out.put(&encoded)?;
        count += 1;
        last_key = record.key;
    }

    let size_bytes = out.length + TRAILER_BYTES;
    out.put(&count.to_le_bytes())?;
    out.put(&size_bytes.to_le_bytes())?;
    let hash = out.hash.digest();
    out.put(&hash.to_le_bytes())?;
    Ok(SnapshotInfo { meta, size_bytes })
}

/// Reads and checks the header alone. `size_bytes` is the file's length. Leaves the reader at the first record.
pub(super) fn read_info(file: &mut dyn Read, size_bytes: u64, group: GroupId) -> io::Result<SnapshotInfo> {
    let mut start = [0; 16];
    read_exactly(file, &mut start)?;
    if start[..8] != MAGIC {
        return Err(invalid_data("not a snapshot file of this format"));
    }
    let length = le_u32(&start[8..12]);
    if length > MAX_HEADER_BYTES {
        return Err(invalid_data("the header of the snapshot file is damaged"));
    }
    let mut header = vec![0; length as usize];
    read_exactly(file, &mut header)?;
    if crc32fast::hash(&header) != le_u32(&start[12..16]) {
        return Err(invalid_data("the header of the snapshot file is damaged"));
    }
    let header = StoredHeader::decode(&header[..]).map_err(|e| invalid_data(format!("snapshot header: {e}")))?;
    if header.group != group.0 {
        return Err(invalid_data(format!("a snapshot of {}, not of {group}", GroupId(header.group))));
    }
    Ok(SnapshotInfo { meta: header.meta, size_bytes })
}

/// Checks the whole file without using any of it.
pub(super) fn verify<F: Read + Seek>(file: &mut F, size_bytes: u64, group: GroupId) -> io::Result<SnapshotInfo> {
    check_trailer(file, size_bytes)?;
    file.rewind()?;
    read_info(file, size_bytes, group)
}

/// Verifies the whole file, then gives all its records to `each`, in the order of writing.
pub(super) fn load<F: Read + Seek>(
    file: &mut F,
    size_bytes: u64,
    group: GroupId,
    each: &mut dyn FnMut(Record),
) -> io::Result<SnapshotInfo> {
    let count = check_trailer(file, size_bytes)?;
    file.rewind()?;
    let info = read_info(file, size_bytes, group)?;
    let mut left = size_bytes - TRAILER_BYTES - file.stream_position()?;
    let mut encoded = Vec::new();
    for _ in 0..count {
        let mut length = [0; 4];
        read_exactly(file, &mut length)?;
        let length = u32::from_le_bytes(length);
        // The hash was right, so this can only be a writer's mistake; it must not lead to a huge allocation.
        left = left.checked_sub(4 + u64::from(length)).ok_or_else(|| invalid_data("a snapshot record is too long"))?;
        encoded.resize(length as usize, 0);
        read_exactly(file, &mut encoded)?;
        let record = StoredRecord::decode(&encoded[..]).map_err(|e| invalid_data(format!("snapshot record: {e}")))?;
        each(Record { key: record.key, value: record.value });
    }
    if left != 0 {
        return Err(invalid_data("the snapshot file has bytes after its last record"));
    }
    Ok(info)
}

/// Hashes the file and compares length and hash with the trailer. Gives the number of records.
fn check_trailer<F: Read + Seek>(file: &mut F, size_bytes: u64) -> io::Result<u64> {
    file.rewind()?;
    let hashed = size_bytes.checked_sub(8).ok_or_else(|| invalid_data("the snapshot file is cut off"))?;
    let mut hash = Xxh3::new();
    let mut buffer = vec![0; VERIFY_BUFFER_BYTES];
    let mut trailer = [0; TRAILER_BYTES as usize];
    let mut done = 0;
    while done < hashed {
        let n = (hashed - done).min(buffer.len() as u64) as usize;
        read_exactly(file, &mut buffer[..n])?;
        hash.update(&buffer[..n]);
        keep_tail(&mut trailer[..16], &buffer[..n]);
        done += n as u64;
    }
    read_exactly(file, &mut trailer[16..])?;
    if le_u64(&trailer[16..]) != hash.digest() {
        return Err(invalid_data("the snapshot file is damaged or cut off: its hash is wrong"));
    }
    if le_u64(&trailer[8..16]) != size_bytes {
        return Err(invalid_data("the snapshot file has a wrong length"));
    }
    Ok(le_u64(&trailer[..8]))
}

/// Keeps the last bytes of a stream: `tail` afterwards ends with the end of `new`.
fn keep_tail(tail: &mut [u8], new: &[u8]) {
    let kept = tail.len().saturating_sub(new.len());
    let taken = tail.len() - kept;
    tail.copy_within(taken.., 0);
    tail[kept..].copy_from_slice(&new[new.len() - taken..]);
}

/// A file that ends too early is damage, not an IO error.
fn read_exactly(file: &mut dyn Read, out: &mut [u8]) -> io::Result<()> {
    file.read_exact(out).map_err(|error| match error.kind() {
        io::ErrorKind::UnexpectedEof => invalid_data("the snapshot file is cut off"),
        _ => error,
    })
}

fn le_u32(bytes: &[u8]) -> u32 {
    u32::from_le_bytes(bytes.try_into().expect("four bytes"))
}

fn le_u64(bytes: &[u8]) -> u64 {
    u64::from_le_bytes(bytes.try_into().expect("eight bytes"))
}
