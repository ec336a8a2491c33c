//! Track -> campaigns: which cells a candidate concerns. A hint, never the truth: cells re-check everything.
//!
//! Fed by the shards as they apply; read on the score path without locks.

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use parking_lot::Mutex;

use crate::{
    actor::{Cell, CellObserver},
    campaign::key_hash::KeyState,
};

type Cells = Arc<[Arc<Cell>]>;

/// The index.
#[derive(Default)]
pub struct Catalog {
    by_track: papaya::HashMap<u64, Cells, KeyState>,
    /// The tracks each campaign is listed under, by (shard, key). One writer at a time.
    listed: Mutex<HashMap<(u32, u64), Listed>>,
    campaigns: AtomicUsize,
}

struct Listed {
    incarnation: u32,
    tracks: Vec<u64>,
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

    fn list(&self, track: u64, cell: &Arc<Cell>) {
        let map = self.by_track.pin();
        let others = map.get(&track).map(|cells| &cells[..]).unwrap_or_default();
        let mut cells: Vec<_> = others.iter().filter(|c| !same(c, cell)).cloned().collect();
        cells.push(cell.clone());
        // Equal offers fall to the lower key, whatever the order of arrival was.
        cells.sort_unstable_by_key(|cell| cell.key);
        map.insert(track, cells.into());
    }

    fn unlist(&self, track: u64, cell: &Cell) {
        let map = self.by_track.pin();
        let Some(cells) = map.get(&track) else { return };
        let cells: Vec<_> = cells.iter().filter(|c| !same(c, cell)).cloned().collect();
        if cells.is_empty() {
            map.remove(&track);
        } else {
            map.insert(track, cells.into());
        }
    }
}

fn same(a: &Cell, b: &Cell) -> bool {
    a.shard == b.shard && a.key == b.key
}

/// The index, pinned.
pub struct CatalogRef<'a> {
    by_track: papaya::HashMapRef<'a, u64, Cells, KeyState, papaya::LocalGuard<'a>>,
}

impl CatalogRef<'_> {
    /// The cells of campaigns that opted this track in.
    pub fn cells(&self, track: u64) -> &[Arc<Cell>] {
        self.by_track.get(&track).map(|cells| &cells[..]).unwrap_or_default()
    }
}

impl CellObserver for Catalog {
    fn published(&self, cell: &Arc<Cell>) {
        let view = cell.view();
        let tracks = &view.settings.tracks;
        let mut listed = self.listed.lock();
        let id = (cell.shard.0, cell.key);
        let before = match listed.remove(&id) {
            Some(before) => {
                for track in before.tracks.iter().filter(|track| tracks.binary_search(track).is_err()) {
                    self.unlist(*track, cell);
                }
                if before.incarnation == cell.incarnation { before.tracks } else { Vec::new() }
            }
            None => Vec::new(),
        };
        for track in tracks.iter().filter(|track| before.binary_search(track).is_err()) {
            self.list(*track, cell);
        }
        listed.insert(id, Listed { incarnation: cell.incarnation, tracks: tracks.to_vec() });
        self.campaigns.store(listed.len(), Ordering::Relaxed);
    }

    fn removed(&self, cell: &Arc<Cell>) {
        let mut listed = self.listed.lock();
        if let Some(before) = listed.remove(&(cell.shard.0, cell.key)) {
            for track in before.tracks {
                self.unlist(track, cell);
            }
        }
        self.campaigns.store(listed.len(), Ordering::Relaxed);
    }
}
