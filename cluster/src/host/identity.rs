//! What a node knows about itself, and the lock on its data directory.

use std::{
    fs::{self, File, TryLockError},
    io::{self, Write},
    path::{Path, PathBuf},
};

use bytes::Bytes;
use prost::Message;

use super::StartError;
use crate::{NodeId, proto::NodeIdentity, raft::codec::damaged};

/// Newest format of the data directory. Format N is what programs of feature level N and above understand: its number
/// keeps older ones away from logs and records that they would misread.
///
/// - 1: a node alone.
/// - 2: a node that joined or has told the directory that it knows level 2: newer commands may be in its logs.
const FORMAT_VERSION: u32 = 2;

/// The newest format that programs of a feature level read, and that they write once others rely on their level.
pub(crate) fn format_of(feature_level: u32) -> u32 {
    feature_level.clamp(1, FORMAT_VERSION)
}

const LOCK_FILE: &str = "LOCK";
const IDENTITY_FILE: &str = "identity";
const IDENTITY_TEMPORARY: &str = "identity.new";

/// A data directory that is this process's alone until the lock is dropped.
#[derive(Debug)]
pub(crate) struct DataDir {
    path: PathBuf,
    /// Unlocked by closing it.
    _lock: File,
}

impl DataDir {
    /// Creates the directory where needed and locks it.
    pub(crate) fn lock(path: &Path) -> Result<Self, StartError> {
        let failed = |source| StartError::Io { what: "data directory", source };
        fs::create_dir_all(path).map_err(failed)?;
        // Otherwise a power loss might take the whole directory.
        if let Some(parent) = path.canonicalize().map_err(failed)?.parent() {
            File::open(parent).and_then(|parent| parent.sync_all()).map_err(failed)?;
        }
        let lock = File::options().create(true).truncate(false).write(true).open(path.join(LOCK_FILE));
        let lock = lock.map_err(failed)?;
        match lock.try_lock() {
            Ok(()) => Ok(Self { path: path.to_owned(), _lock: lock }),
            Err(TryLockError::WouldBlock) => Err(StartError::Locked { path: path.to_owned() }),
            Err(TryLockError::Error(e)) => Err(failed(e)),
        }
    }

    /// The directory of a part of the data.
    pub(crate) fn part(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    /// Moves a part aside for somebody to look at; nothing if there is no such directory.
    pub(crate) fn quarantine(&self, name: &str, boot_id: u64) -> io::Result<()> {
        let (from, to) = (self.part(name), self.part(&format!("{name}.damaged-{boot_id}")));
        match fs::rename(&from, &to) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(e) => Err(e),
            Ok(()) => {
                tracing::error!(moved_to = %to.display(), "damaged data put into quarantine");
                File::open(&self.path)?.sync_all()
            }
        }
    }

    /// Reads the identity file; `None` before the first start. Refuses data that programs of this level don't know.
    pub(crate) fn read_identity(&self, feature_level: u32) -> Result<Option<NodeIdentity>, StartError> {
        let failed = |source| StartError::Io { what: "identity file", source };
        let bytes = match fs::read(self.path.join(IDENTITY_FILE)) {
            Ok(bytes) => bytes,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(failed(e)),
        };
        let identity = decode(&bytes).map_err(failed)?;
        let known = format_of(feature_level);
        if identity.format_version > known {
            return Err(StartError::FormatTooNew { found: identity.format_version, known });
        }
        Ok(Some(identity))
    }

    /// Writes the identity file, durably and in one step.
    pub(crate) fn write_identity(&self, identity: &NodeIdentity) -> Result<(), StartError> {
        let write = || {
            let temporary = self.path.join(IDENTITY_TEMPORARY);
            let mut file = File::create(&temporary)?;
            file.write_all(&encode(identity))?;
            file.sync_all()?;
            fs::rename(&temporary, self.path.join(IDENTITY_FILE))?;
            File::open(&self.path)?.sync_all()
        };
        write().map_err(|source| StartError::Io { what: "identity file", source })
    }
}

/// The identity of a node that was never started.
pub(crate) fn new_identity(
    node_id: NodeId,
    cluster_id: [u8; 16],
    shard_count: u32,
    feature_level: u32,
) -> NodeIdentity {
    NodeIdentity {
        format_version: format_of(feature_level),
        node_id,
        boot_id: 0,
        cluster_id: cluster_id.to_vec().into(),
        shard_count,
        formed: false,
        joined: false,
        join_nonce: Bytes::new(),
    }
}

/// The identity of a node that wants to join a cluster and knows nothing of it yet.
pub(crate) fn joining_identity(join_nonce: [u8; 16], feature_level: u32) -> NodeIdentity {
    let join_nonce = Bytes::copy_from_slice(&join_nonce);
    NodeIdentity { joined: true, join_nonce, ..new_identity(0, [0; 16], 0, feature_level) }
}

/// A CRC (4 bytes, little-endian), then the message.
fn encode(identity: &NodeIdentity) -> Vec<u8> {
    let message = identity.encode_to_vec();
    [&crc32fast::hash(&message).to_le_bytes()[..], &message].concat()
}

fn decode(bytes: &[u8]) -> io::Result<NodeIdentity> {
    let (crc, message) = bytes.split_first_chunk::<4>().ok_or_else(|| damaged("the identity file is cut off"))?;
    if crc32fast::hash(message) != u32::from_le_bytes(*crc) {
        return Err(damaged("the identity file's checksum is wrong"));
    }
    NodeIdentity::decode(message).map_err(|e| damaged(format_args!("the identity file does not decode: {e}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn older_programs_are_kept_away_from_newer_data() {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let data = DataDir::lock(dir.path()).expect("locks");
        for (written_by, opened_by, opens) in [(1, 1, true), (1, 2, true), (2, 1, false), (2, 2, true), (2, 9, true)] {
            data.write_identity(&new_identity(1, [3; 16], 16, written_by)).expect("writes");
            match data.read_identity(opened_by) {
                Ok(found) => assert!(found.is_some() && opens, "{written_by} {opened_by}"),
                Err(StartError::FormatTooNew { found, known }) => {
                    assert!(!opens && found == written_by && known == opened_by, "{written_by} {opened_by}");
                }
                Err(other) => panic!("{other}"),
            }
        }
    }

    #[test]
    fn every_flipped_byte_of_an_identity_is_found() {
        let identity = NodeIdentity { boot_id: 9, ..new_identity(1, [3; 16], 16, 1) };
        let bytes = encode(&identity);
        assert_eq!(decode(&bytes).expect("decodes"), identity);
        for at in 0..bytes.len() {
            let mut flipped = bytes.clone();
            flipped[at] ^= 0x10;
            assert!(decode(&flipped).is_err(), "byte {at}");
        }
        assert!(decode(&bytes[..3]).is_err());
    }
}
