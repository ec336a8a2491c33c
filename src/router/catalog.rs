//! Track -> campaigns: whom a candidate concerns. A hint, never the truth: cells re-check everything.
//!
//! Shards with a replica here feed it as they apply; for the others it follows a replica elsewhere
//! ([`super::follow`]). Read on the score path without locks.

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
    },
};

use andante_cluster::{ShardId, directory::MAX_SHARDS};
use parking_lot::Mutex;
use tokio::sync::{Notify, mpsc};

use super::shards::{SET_WORDS, ShardSet};
use crate::{
    actor::{Cell, CellObserver},
    campaign::key_hash::KeyState,
    peer::v1::{ListedCampaign, WatchCatalogResponse},
};

/// The campaigns of one track, in the order of their keys.
pub(super) type Entries = Arc<[Entry]>;

/// Changes that wait for a slow follower; beyond it it starts anew.
const CHANGES_WAITING: usize = 256;
/// Campaigns in one part of the whole: about a megabyte with the most tracks they may have.
const PART_CAMPAIGNS: usize = 256;

/// A campaign, as its tracks list it.
#[derive(Clone)]
pub(super) enum Entry {
    /// Its shard has a replica here.
    Here(Arc<Cell>),
    /// It has none.
    There(Arc<Elsewhere>),
}

/// A campaign of a shard without a replica here.
#[derive(Debug)]
pub(super) struct Elsewhere {
    /// Its shard.
    pub(super) shard: ShardId,
    /// Its key.
    pub(super) key: u64,
    /// Its name.
    pub(super) name: String,
}

impl Entry {
    /// The campaign's key.
    pub(super) fn key(&self) -> u64 {
        match self {
            Entry::Here(cell) => cell.key,
            Entry::There(elsewhere) => elsewhere.key,
        }
    }

    /// Its shard.
    pub(super) fn shard(&self) -> ShardId {
        match self {
            Entry::Here(cell) => cell.shard,
            Entry::There(elsewhere) => elsewhere.shard,
        }
    }

    /// Its name.
    pub(super) fn name(&self) -> String {
        match self {
            Entry::Here(cell) => cell.view().settings.name.to_string(),
            Entry::There(elsewhere) => elsewhere.name.clone(),
        }
    }

    fn is(&self, other: &Entry) -> bool {
        match (self, other) {
            (Entry::Here(a), Entry::Here(b)) => Arc::ptr_eq(a, b),
            (Entry::There(a), Entry::There(b)) => Arc::ptr_eq(a, b),
            _ => false,
        }
    }
}

/// The index.
pub struct Catalog {
    by_track: papaya::HashMap<u64, Entries, KeyState>,
    /// Held while `by_track` changes; taken after a shard's own lock.
    changing: Mutex<()>,
    shards: Box<[PerShard]>,
    /// Shards that it is not in step with.
    out_of_step: [AtomicU64; SET_WORDS],
    campaigns: AtomicUsize,
}

#[derive(Default)]
struct PerShard {
    list: Mutex<List>,
    /// Changes wait for the end of the apply that makes them.
    changed: AtomicBool,
    /// What is listed stands for the log up to here, ...
    index: AtomicU64,
    /// ... and this is the last index heard of.
    last_index: AtomicU64,
    /// Woken when it falls out of step.
    fallen: Notify,
    /// Woken when the replica here loses everything.
    emptied: Notify,
    /// The replica here is in step: it may be followed.
    in_step_here: AtomicBool,
}

#[derive(Default)]
struct List {
    campaigns: HashMap<u64, Listed, KeyState>,
    watchers: Vec<mpsc::Sender<WatchCatalogResponse>>,
    change: WatchCatalogResponse,
}

struct Listed {
    entry: Entry,
    /// Sorted.
    tracks: Box<[u64]>,
}

/// The campaigns of a shard, and what changes from then on.
pub(super) struct Watched {
    pub(super) whole: Vec<WatchCatalogResponse>,
    pub(super) changes: mpsc::Receiver<WatchCatalogResponse>,
}

impl Default for Catalog {
    fn default() -> Self {
        Self {
            by_track: papaya::HashMap::default(),
            changing: Mutex::default(),
            shards: (0..MAX_SHARDS).map(|_| PerShard::default()).collect(),
            out_of_step: Default::default(),
            campaigns: AtomicUsize::new(0),
        }
    }
}

impl Catalog {
    /// Pins the index for one request.
    pub fn pin(&self) -> CatalogRef<'_> {
        CatalogRef { by_track: self.by_track.pin() }
    }

    /// Campaigns listed.
    pub fn campaigns(&self) -> usize {
        self.campaigns.load(Ordering::Relaxed)
    }

    /// Tracks listed.
    pub fn tracks(&self) -> usize {
        self.by_track.len()
    }

    /// How many log entries it is known to be behind a shard that it follows elsewhere; `None`: not in step.
    pub fn lag_entries(&self, shard: ShardId) -> Option<u64> {
        let per_shard = &self.shards[shard.0 as usize];
        let lag = || {
            let last = per_shard.last_index.load(Ordering::Relaxed);
            last.saturating_sub(per_shard.index.load(Ordering::Relaxed))
        };
        self.is_in_step(shard).then(lag)
    }

    /// The shards that it is not in step with: their campaigns may be missing.
    pub(super) fn out_of_step(&self) -> ShardSet {
        ShardSet::from_words(std::array::from_fn(|word| self.out_of_step[word].load(Ordering::Acquire)))
    }

    /// Whether it is in step with a shard.
    pub fn is_in_step(&self, shard: ShardId) -> bool {
        self.out_of_step[shard.0 as usize / 64].load(Ordering::Acquire) & (1 << (shard.0 % 64)) == 0
    }

    /// A replica here is in step with its shard: others may follow it, and what was learned elsewhere is not needed any
    /// more.
    pub(super) fn set_in_step_here(&self, shard: ShardId) {
        self.take_whole(shard, Vec::new());
        self.shards[shard.0 as usize].in_step_here.store(true, Ordering::Release);
        self.set_in_step(shard);
    }

    /// Whether a replica here may be followed.
    pub(super) fn is_in_step_here(&self, shard: ShardId) -> bool {
        self.is_in_step(shard) && self.shards[shard.0 as usize].in_step_here.load(Ordering::Acquire)
    }

    /// It is in step with a shard from now on.
    pub(super) fn set_in_step(&self, shard: ShardId) {
        self.out_of_step[shard.0 as usize / 64].fetch_and(!(1 << (shard.0 % 64)), Ordering::AcqRel);
    }

    /// It may lack campaigns of a shard from now on.
    pub(super) fn set_out_of_step(&self, shard: ShardId) {
        self.out_of_step[shard.0 as usize / 64].fetch_or(1 << (shard.0 % 64), Ordering::AcqRel);
        let per_shard = &self.shards[shard.0 as usize];
        per_shard.in_step_here.store(false, Ordering::Release);
        per_shard.fallen.notify_one();
    }

    /// Resolves when the replica here has lost everything, or has since the last call: what it listed until then stood
    /// in the way of what others told.
    pub(super) async fn emptied(&self, shard: ShardId) {
        self.shards[shard.0 as usize].emptied.notified().await;
    }

    /// Resolves when it has fallen out of step with a shard.
    pub(super) async fn fallen(&self, shard: ShardId) {
        while self.is_in_step(shard) {
            self.shards[shard.0 as usize].fallen.notified().await;
        }
    }

    /// Everything a replica here has of its shard, and all changes from then on. The changes end when the follower is
    /// too slow or the replica is replaced as a whole.
    pub(super) fn watch(&self, shard: ShardId) -> Watched {
        let per_shard = &self.shards[shard.0 as usize];
        let mut list = per_shard.list.lock();
        // What is listed is at least as new.
        let index = per_shard.index.load(Ordering::Acquire);
        let here = list.campaigns.values().filter(|listed| matches!(listed.entry, Entry::Here(_)));
        let here: Vec<ListedCampaign> = here
            .map(|listed| ListedCampaign {
                key: listed.entry.key(),
                name: listed.entry.name(),
                tracks: listed.tracks.to_vec(),
            })
            .collect();
        let part = |listed: &[ListedCampaign]| WatchCatalogResponse {
            index,
            snapshot: true,
            listed: listed.to_vec(),
            ..Default::default()
        };
        let mut whole: Vec<_> = here.chunks(PART_CAMPAIGNS).map(part).collect();
        whole.push(WatchCatalogResponse { complete: true, ..part(&[]) });
        let (changes, waiting) = mpsc::channel(CHANGES_WAITING);
        list.watchers.push(changes);
        Watched { whole, changes: waiting }
    }

    /// Takes up all campaigns of a shard as a replica elsewhere has them. What a replica here lists stays.
    pub(super) fn take_whole(&self, shard: ShardId, whole: Vec<ListedCampaign>) {
        let mut list = self.shards[shard.0 as usize].list.lock();
        let mut gone: HashMap<u64, (), KeyState> = list
            .campaigns
            .iter()
            .filter(|(_, listed)| matches!(listed.entry, Entry::There(_)))
            .map(|(key, _)| (*key, ()))
            .collect();
        for campaign in whole {
            gone.remove(&campaign.key);
            self.put_elsewhere(&mut list, shard, campaign);
        }
        for key in gone.into_keys() {
            self.remove_elsewhere(&mut list, key);
        }
    }

    /// Takes up a change of a shard as a replica elsewhere has it.
    pub(super) fn take_change(&self, shard: ShardId, change: WatchCatalogResponse) {
        if change.listed.is_empty() && change.removed.is_empty() {
            return;
        }
        let mut list = self.shards[shard.0 as usize].list.lock();
        for campaign in change.listed {
            self.put_elsewhere(&mut list, shard, campaign);
        }
        for key in change.removed {
            self.remove_elsewhere(&mut list, key);
        }
    }

    /// Where it stands with a shard that it follows elsewhere.
    pub(super) fn set_index(&self, shard: ShardId, index: u64, last_index: u64) {
        let per_shard = &self.shards[shard.0 as usize];
        per_shard.index.store(index, Ordering::Relaxed);
        per_shard.last_index.store(last_index.max(index), Ordering::Relaxed);
    }

    fn put_elsewhere(&self, list: &mut List, shard: ShardId, campaign: ListedCampaign) {
        let ListedCampaign { key, name, mut tracks } = campaign;
        if matches!(list.campaigns.get(&key), Some(Listed { entry: Entry::Here(_), .. })) {
            return;
        }
        tracks.sort_unstable();
        self.put(list, Entry::There(Arc::new(Elsewhere { shard, key, name })), &tracks);
    }

    fn remove_elsewhere(&self, list: &mut List, key: u64) {
        if matches!(list.campaigns.get(&key), Some(Listed { entry: Entry::There(_), .. })) {
            self.take_out(list, key);
        }
    }

    fn put(&self, list: &mut List, entry: Entry, tracks: &[u64]) {
        let before = list.campaigns.insert(entry.key(), Listed { entry: entry.clone(), tracks: tracks.into() });
        let _changing = self.changing.lock();
        let mut kept: &[u64] = &[];
        if let Some(before) = &before {
            for track in before.tracks.iter().filter(|track| tracks.binary_search(track).is_err()) {
                self.unlist(*track, &entry);
            }
            if before.entry.is(&entry) {
                kept = &before.tracks;
            }
        } else {
            self.campaigns.fetch_add(1, Ordering::Relaxed);
        }
        for track in tracks.iter().filter(|track| kept.binary_search(track).is_err()) {
            self.list(*track, &entry);
        }
    }

    fn take_out(&self, list: &mut List, key: u64) {
        if let Some(before) = list.campaigns.remove(&key) {
            let _changing = self.changing.lock();
            before.tracks.iter().for_each(|track| self.unlist(*track, &before.entry));
            self.campaigns.fetch_sub(1, Ordering::Relaxed);
        }
    }

    fn list(&self, track: u64, entry: &Entry) {
        let map = self.by_track.pin();
        let others = map.get(&track).map(|entries| &entries[..]).unwrap_or_default();
        let mut entries: Vec<_> = others.iter().filter(|other| other.key() != entry.key()).cloned().collect();
        entries.push(entry.clone());
        // Equal offers fall to the lower key, whatever the order of arrival was.
        entries.sort_unstable_by_key(Entry::key);
        map.insert(track, entries.into());
    }

    fn unlist(&self, track: u64, entry: &Entry) {
        let map = self.by_track.pin();
        let Some(entries) = map.get(&track) else { return };
        let entries: Vec<_> = entries.iter().filter(|other| other.key() != entry.key()).cloned().collect();
        if entries.is_empty() {
            map.remove(&track);
        } else {
            map.insert(track, entries.into());
        }
    }
}

/// The index, pinned.
pub struct CatalogRef<'a> {
    by_track: papaya::HashMapRef<'a, u64, Entries, KeyState, papaya::LocalGuard<'a>>,
}

impl CatalogRef<'_> {
    /// The campaigns that opted this track in; `None`: none.
    pub(super) fn entries(&self, track: u64) -> Option<&Entries> {
        self.by_track.get(&track)
    }
}

impl CellObserver for Catalog {
    fn published(&self, cell: &Arc<Cell>) {
        let view = cell.view();
        let tracks = &view.settings.tracks;
        let per_shard = &self.shards[cell.shard.0 as usize];
        let mut list = per_shard.list.lock();
        self.put(&mut list, Entry::Here(cell.clone()), tracks);
        if !list.watchers.is_empty() {
            let listed =
                ListedCampaign { key: cell.key, name: view.settings.name.to_string(), tracks: tracks.to_vec() };
            list.change.removed.retain(|key| *key != cell.key);
            list.change.listed.push(listed);
            per_shard.changed.store(true, Ordering::Release);
        }
    }

    fn removed(&self, cell: &Arc<Cell>) {
        let per_shard = &self.shards[cell.shard.0 as usize];
        let mut list = per_shard.list.lock();
        if !matches!(list.campaigns.get(&cell.key), Some(Listed { entry: Entry::Here(here), .. }) if Arc::ptr_eq(here, cell))
        {
            return;
        }
        self.take_out(&mut list, cell.key);
        if !list.watchers.is_empty() {
            list.change.listed.retain(|listed| listed.key != cell.key);
            list.change.removed.push(cell.key);
            per_shard.changed.store(true, Ordering::Release);
        }
    }

    fn applied(&self, shard: ShardId, index: u64) {
        let per_shard = &self.shards[shard.0 as usize];
        per_shard.index.store(index, Ordering::Release);
        if !per_shard.changed.swap(false, Ordering::AcqRel) {
            return;
        }
        let mut list = per_shard.list.lock();
        let change = std::mem::take(&mut list.change);
        list.watchers.retain(|watcher| watcher.try_send(WatchCatalogResponse { index, ..change.clone() }).is_ok());
    }

    fn restored(&self, shard: ShardId, emptied: bool) {
        let per_shard = &self.shards[shard.0 as usize];
        {
            let mut list = per_shard.list.lock();
            list.watchers.clear();
            list.change = WatchCatalogResponse::default();
            per_shard.changed.store(false, Ordering::Release);
        }
        if emptied {
            self.set_out_of_step(shard);
            per_shard.emptied.notify_one();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHARD: ShardId = ShardId(7);

    fn listed(key: u64, tracks: &[u64]) -> ListedCampaign {
        ListedCampaign { key, name: format!("c{key}"), tracks: tracks.to_vec() }
    }

    fn names(catalog: &Catalog, track: u64) -> Vec<String> {
        catalog.pin().entries(track).map_or(Vec::new(), |entries| entries.iter().map(Entry::name).collect())
    }

    #[test]
    fn the_whole_of_a_shard_replaces_what_was_known_of_it() {
        let catalog = Catalog::default();
        catalog.take_whole(SHARD, vec![listed(2, &[10, 11]), listed(1, &[10])]);
        catalog.take_whole(ShardId(8), vec![listed(3, &[10])]);
        assert_eq!(names(&catalog, 10), ["c1", "c2", "c3"]);
        catalog.take_whole(SHARD, vec![listed(2, &[12])]);
        assert_eq!((names(&catalog, 10), names(&catalog, 11)), (vec!["c3".into()], vec![]));
        assert_eq!(names(&catalog, 12), ["c2"]);
        assert_eq!((catalog.campaigns(), catalog.tracks()), (2, 2));
    }

    #[test]
    fn changes_add_move_and_remove() {
        let catalog = Catalog::default();
        catalog.take_whole(SHARD, vec![listed(1, &[10])]);
        let change = WatchCatalogResponse {
            listed: vec![listed(1, &[11]), listed(2, &[10, 11])],
            removed: vec![9],
            ..Default::default()
        };
        catalog.take_change(SHARD, change);
        assert_eq!((names(&catalog, 10), names(&catalog, 11)), (vec!["c2".into()], vec!["c1".into(), "c2".into()]));
        catalog.take_change(SHARD, WatchCatalogResponse { removed: vec![1, 2], ..Default::default() });
        assert_eq!((catalog.campaigns(), catalog.tracks()), (0, 0));
    }

    #[test]
    fn it_says_which_shards_it_is_not_in_step_with() {
        let catalog = Catalog::default();
        catalog.set_out_of_step(SHARD);
        catalog.set_out_of_step(ShardId(255));
        assert_eq!(catalog.lag_entries(SHARD), None);
        catalog.set_in_step(SHARD);
        catalog.set_index(SHARD, 5, 9);
        assert_eq!(catalog.out_of_step().iter().collect::<Vec<_>>(), [ShardId(255)]);
        assert_eq!(catalog.lag_entries(SHARD), Some(4));
    }
}
