//! Deleting a campaign so that a retry learns its fate: what was asked of a campaign that is gone is remembered for a
//! retry window, also when there is another campaign of that name by then.
//!
//! `SetState` to DELETING, which feature level 1 has instead, forgets its requests together with the campaign.

use std::{
    collections::{BTreeMap, BTreeSet},
    mem,
    sync::Arc,
};

use andante_cluster::mutant;

use super::{
    super::{
        limits::{DELETIONS_REMEMBERED, REQUEST_ID_BYTES_MAX, REQUESTS_REMEMBERED, TIME_MAX_MS},
        proto::{Delete, Deletion, Operation, Reply, Request, State},
        version::Version,
    },
    Book, CampaignState,
    records::Part,
};

/// A campaign's key and the incarnation that is gone.
pub(super) type DeletionKey = (u64, u32);

/// The deletions that are remembered.
#[derive(Debug, Default)]
pub(super) struct Deletions {
    kept: BTreeMap<DeletionKey, Arc<Deletion>>,
    /// By the time from which their retry window counts.
    by_age: BTreeSet<(u64, DeletionKey)>,
    /// Changed since the last [`Deletions::take_changes`].
    changed: BTreeSet<DeletionKey>,
}

impl Book {
    pub(super) fn delete(&mut self, delete: &Delete) -> Reply {
        let Delete { request_id, name, expected_revision, expected_incarnation, now_ms } = delete;
        // A retry of what began as a SetState, before the feature level was raised.
        let had_begun = self.campaign_by_name(name).is_some_and(|state| state.remembers(request_id, Operation::Delete));
        let expected = Version { incarnation: *expected_incarnation, revision: *expected_revision };
        let expected = if had_begun { Version::ANY } else { expected };
        self.owner_command(name, request_id, Operation::DeleteOnce, expected, |book, at| {
            let now_ms = book.time(*now_ms);
            if book.slot(at).state.state != State::Deleting {
                book.change_owned(at, |state| {
                    state.state = State::Deleting;
                    state.deleted_once = true;
                    state.changed(request_id, Operation::DeleteOnce, now_ms);
                });
            } else {
                let state = book.slot_mut(at).state_mut();
                state.deleted_once = true;
                state.updated_ms = now_ms;
                state.remember(request_id, Operation::DeleteOnce);
                book.mark(at, Part::Ledger);
            }
            Ok(())
        })
    }
}

impl Deletions {
    /// Whether this request was applied to a campaign of this key that is gone.
    pub(super) fn remembers(&self, campaign: u64, request_id: &str, operation: Operation) -> bool {
        let mut incarnations = self.kept.range((campaign, 0)..=(campaign, u32::MAX));
        // What began with SetState is the same request.
        let same = |kept| kept == operation || kept == Operation::Delete && operation == Operation::DeleteOnce;
        let is_it = |request: &Request| request.id == request_id && same(request.operation());
        incarnations.any(|(_, deletion)| deletion.requests.iter().any(is_it)) && !mutant!(RequestForgotten)
    }

    /// Remembers what was asked of a campaign that goes now.
    pub(super) fn campaign_gone(&mut self, state: &CampaignState, shard_time_ms: u64) {
        if !state.deleted_once || state.requests.is_empty() {
            return;
        }
        let requests = state.requests.to_vec();
        // Shard time stands still while nothing is due, so that the request may be the later one.
        let at_ms = state.updated_ms.max(shard_time_ms).min(TIME_MAX_MS);
        let (campaign, incarnation) = (state.key, state.incarnation);
        self.insert(Deletion { campaign, incarnation, requests, at_ms });
        self.changed.insert((campaign, incarnation));
        while self.kept.len() > DELETIONS_REMEMBERED {
            self.forget_oldest();
        }
    }

    /// The oldest one's time.
    pub(super) fn oldest_ms(&self) -> Option<u64> {
        self.by_age.first().map(|(at_ms, _)| *at_ms)
    }

    /// Forgets those whose time is due.
    pub(super) fn forget(&mut self, is_due: impl Fn(u64) -> bool) {
        while self.oldest_ms().is_some_and(&is_due) {
            self.forget_oldest();
        }
    }

    fn forget_oldest(&mut self) {
        if let Some((_, key)) = self.by_age.pop_first() {
            self.kept.remove(&key);
            self.changed.insert(key);
        }
    }

    /// Times that came from a clock that was ahead move back to now.
    pub(super) fn move_back(&mut self, now_ms: u64) {
        for (_, key) in self.by_age.split_off(&(now_ms.saturating_add(1), (0, 0))) {
            if let Some(deletion) = self.kept.get_mut(&key) {
                Arc::make_mut(deletion).at_ms = now_ms;
            }
            self.by_age.insert((now_ms, key));
            self.changed.insert(key);
        }
    }

    /// In the order of their keys.
    pub(super) fn iter(&self) -> impl Iterator<Item = &Deletion> {
        self.kept.values().map(|deletion| &**deletion)
    }

    /// All as they are now, in the order of their keys.
    pub(super) fn shared(&self) -> Vec<(DeletionKey, Arc<Deletion>)> {
        self.kept.iter().map(|(key, deletion)| (*key, Arc::clone(deletion))).collect()
    }

    /// What changed since the last call; `None`: forgotten.
    pub(super) fn take_changes(&mut self) -> Vec<(DeletionKey, Option<Arc<Deletion>>)> {
        let changed = mem::take(&mut self.changed).into_iter();
        changed.map(|key| (key, self.kept.get(&key).cloned())).collect()
    }

    /// Takes one up; that alone is no change to be stored.
    pub(super) fn insert(&mut self, deletion: Deletion) {
        let key = (deletion.campaign, deletion.incarnation);
        self.by_age.insert((deletion.at_ms, key));
        self.kept.insert(key, Arc::new(deletion));
    }

    pub(super) fn check(&self) -> Result<(), String> {
        for (key, deletion) in &self.kept {
            let Deletion { campaign, incarnation, requests, at_ms } = &**deletion;
            let ids_hold = (1..=REQUESTS_REMEMBERED).contains(&requests.len())
                && requests.iter().all(|request| (1..=REQUEST_ID_BYTES_MAX).contains(&request.id.len()));
            let is_indexed = *key == (*campaign, *incarnation) && self.by_age.contains(&(*at_ms, *key));
            if !ids_hold || !is_indexed || *at_ms > TIME_MAX_MS {
                return Err(format!("campaign {campaign:016x}: the deletion of incarnation {incarnation} is broken"));
            }
        }
        let (kept, indexed) = (self.kept.len(), self.by_age.len());
        if kept != indexed || kept > DELETIONS_REMEMBERED {
            return Err(format!("{kept} deletions are kept, {indexed} of them by age, at most {DELETIONS_REMEMBERED}"));
        }
        Ok(())
    }
}
