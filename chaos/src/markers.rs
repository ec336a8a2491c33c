//! Situations that a sweep must have met: a fault that never hurts and a race that never happens prove nothing.

use std::collections::BTreeMap;

use parking_lot::Mutex;

/// Every situation, by name, with what it means.
pub const ALL: &[(&str, &str)] = &[
    ("leader-changed-with-open-allowances", "a shard got another leader while allowances were open"),
    ("snapshot-installed-after-purge", "a follower got a snapshot because the log it missed was purged"),
    ("crash-during-snapshot", "a machine stopped right after a snapshot was written, or while one was taken in"),
    ("retry-met-open-bitmap", "a token reported again was answered by the bitmap of an open allowance"),
    ("retry-met-closed-bitmap", "a token reported again was answered by the bitmap of a closed allowance"),
    ("torn-tail-cut", "a log's torn tail was cut at the start"),
    ("settled-on-later-leader", "a token settled under a later leader than the one that handed it out"),
    ("close-raced-settle", "a token was reported within a second of its allowance's closing"),
    ("shrink-raced-take", "an allowance shrank within a second of a token being taken from it"),
    ("sync-error-stopped-node", "a failed sync stopped a node"),
    ("full-disk-stopped-node", "a write that found no space stopped a node"),
    ("disk-lost-and-rejoined", "a node lost its disk and came back as a new one"),
    ("unsynced-write-lost", "a crash lost writes that were not synced"),
    ("unacknowledged-write-survived", "a write that was never acknowledged survived a crash"),
    ("unknown-fate-told", "a client was told that it can't be known what became of its call"),
    ("unknown-settle-had-billed", "an outcome of unknown fate turned out to be billed when it was reported again"),
    ("refused-after-closing", "an outcome came after its allowance had closed and was refused"),
    ("forged-token-refused", "a forged token was refused"),
    ("token-of-deleted-campaign", "a token came back after its campaign was deleted and created anew"),
    ("budget-cut-refused", "a budget below what is billed and set aside was refused"),
    ("shard-missing-told", "a score reply named a shard that did not answer"),
    ("actor-quarantined", "a campaign's actor failed so often that it was quarantined"),
    ("stranded-money-returned", "an allowance whose holder was gone closed, and its money came back"),
    ("clock-not-trusted", "a node did not trust its clock"),
    ("stale-update-refused", "an update from an old read was refused"),
];

/// Situations that are counted when they come up; no sweep needs to meet them.
const OTHERS: &[(&str, &str)] =
    &[("history-not-decided", "no order of the operations on a name was found in time, nor that there is none")];

/// Counts situations.
#[derive(Debug, Default)]
pub struct Markers(Mutex<BTreeMap<&'static str, u64>>);

impl Markers {
    /// A situation came up.
    ///
    /// # Panics
    /// If nobody said what it means.
    pub fn hit(&self, name: &'static str) {
        assert!(ALL.iter().chain(OTHERS).any(|(known, _)| *known == name), "{name} is no marker");
        *self.0.lock().entry(name).or_default() += 1;
    }

    /// All of them, those that never came up too.
    pub fn counts(&self) -> BTreeMap<String, u64> {
        let hits = self.0.lock();
        let others = OTHERS.iter().filter(|(name, _)| hits.contains_key(name));
        let names = ALL.iter().chain(others).map(|(name, _)| *name);
        names.map(|name| (name.to_owned(), hits.get(name).copied().unwrap_or_default())).collect()
    }
}
