//! The seam upward: what a shard replicates.

use bytes::Bytes;

/// One record of a machine's state: what the state store and snapshots keep. Keys are unique within a shard and
/// ordered bytewise; the first byte of a key is the record's kind.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    /// At most 128 bytes.
    pub key: Vec<u8>,
    /// Any length; stores split what is too long for them.
    pub value: Vec<u8>,
}

/// A record that changed since the last [`Machine::take_changes`]: `None` means deleted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RecordChange {
    /// The record's key.
    pub key: Vec<u8>,
    /// Its value now.
    pub value: Option<Vec<u8>>,
}

/// Why records could not be restored: the state is damaged or of an unknown version.
#[derive(Debug, thiserror::Error)]
#[error("state can't be restored: {0}")]
pub struct MachineError(pub String);

/// A deterministic replicated state machine: the state of one shard.
///
/// The same commands in the same order give the same state, replies and digest on every replica, on every machine,
/// for ever: no clock, no randomness, no hash-map order. Time enters as a field of a command.
/// A machine that finds its own invariants broken panics: the host stops the process.
pub trait Machine: Send + 'static {
    /// Applies one command (an encoded message of the layer above) at a log index; indexes only grow, with gaps.
    /// Returns the encoded reply. A command that can't be decoded or is not allowed changes nothing and says so in
    /// its reply.
    fn apply(&mut self, index: u64, command: &Bytes) -> Bytes;

    /// The records that changed since the last call, each once, with their values now. Called between two applies;
    /// together with the index applied last they form one atomic batch of the state store.
    fn take_changes(&mut self) -> Vec<RecordChange>;

    /// All records, in key order, as of now. The iterator is consumed on another thread while `apply` goes on, so
    /// it holds a cheap copy (shared, copy-on-write) of the state.
    fn snapshot(&self) -> Box<dyn Iterator<Item = Record> + Send>;

    /// Replaces the whole state by `records` (in key order); an empty iterator gives the initial state.
    /// On error the machine is unusable until another restore succeeds.
    fn restore(&mut self, records: &mut dyn Iterator<Item = Record>) -> Result<(), MachineError>;

    /// A hash over the complete state: equal at equal applied index on every replica.
    fn digest(&self) -> u64;
}
