//! What is persisted: the book as records, the changes since the last look, and back again.
//!
//! | key | value |
//! |---|---|
//! | 1 | `ShardMeta` |
//! | 2, campaign | `Spec` |
//! | 3, campaign | `Campaign` without settings and pacing state |
//! | 4, campaign | `Control`, once there was a checkpoint |
//! | 5, campaign, incarnation, number | `Allowance` |
//! | 6, campaign, incarnation | `Deletion`, from feature level 2 on |
//!
//! Numbers in keys are big-endian, so that records are ordered as numbers are. Settings and pacing state are records of
//! their own because they are long and seldom change, and the ledger changes with every outcome.

use std::{
    collections::{BTreeMap, BTreeSet},
    mem,
    sync::Arc,
};

use andante_cluster::{Record, RecordChange};
use prost::Message;
use xxhash_rust::xxh3::Xxh3Default;

use super::{
    super::{
        allowance::Allowance,
        ledger::Ledger,
        limits::TIME_MAX_MS,
        proto::{self, Control, Deletion, ShardMeta, Spec},
        spec::check_safe,
        token::campaign_key,
    },
    Book, CampaignState,
    delete::{DeletionKey, Deletions},
};

#[cfg(andante_mutants)]
use super::{super::bitmap::Bitmap, Due};

/// Meaning of the records below; another one is refused.
const FORMAT: u32 = 1;

const META: u8 = 1;
const SETTINGS: u8 = 2;
const LEDGER: u8 = 3;
const CONTROL: u8 = 4;
const ALLOWANCE: u8 = 5;
const DELETION: u8 = 6;

/// Why records are not a book: damaged, or of an unknown format.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct RestoreError(pub String);

/// A record of a campaign.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Part {
    Settings,
    Ledger,
    Control,
}

/// What changed since the last [`Book::take_changes`].
#[derive(Debug)]
pub(super) struct Changes {
    /// Grows with each look; marks of earlier generations are void.
    generation: u64,
    pub(super) meta: bool,
    /// Places of changed campaigns, in the order of their first change.
    slots: Vec<u32>,
    /// Keys of records that are gone; one that is back again is among the changed ones too.
    removed: BTreeSet<Vec<u8>>,
}

/// What changed of one campaign, as of one generation.
#[derive(Debug, Default)]
pub(super) struct DirtyCampaign {
    generation: u64,
    settings: bool,
    ledger: bool,
    control: bool,
    allowances: Vec<u32>,
}

impl Changes {
    /// Of an empty book: its meta record is still to be written.
    pub(super) fn new() -> Self {
        Self { generation: 1, meta: true, slots: Vec::new(), removed: BTreeSet::new() }
    }

    pub(super) fn remove_campaign(&mut self, state: &CampaignState) {
        for kind in [SETTINGS, LEDGER, CONTROL] {
            self.removed.insert(campaign_record_key(kind, state.key));
        }
        for number in state.closed.keys() {
            self.remove_allowance(state.key, state.incarnation, *number);
        }
    }

    pub(super) fn remove_allowance(&mut self, campaign: u64, incarnation: u32, number: u32) {
        self.removed.insert(allowance_record_key(campaign, incarnation, number));
    }
}

impl Book {
    /// Marks a record of a campaign as changed.
    pub(super) fn mark(&mut self, at: u32, part: Part) {
        let dirty = self.dirty(at);
        match part {
            Part::Settings => dirty.settings = true,
            Part::Ledger => dirty.ledger = true,
            Part::Control => dirty.control = true,
        }
    }

    /// Marks an allowance that was changed, and the ledger with it.
    pub(super) fn mark_allowance(&mut self, at: u32, number: u32) {
        let generation = self.changes.generation;
        let state = self.slot_mut(at).state_mut();
        let allowances = if state.open.contains_key(&number) { &mut state.open } else { &mut state.closed };
        let allowance = Arc::make_mut(allowances.get_mut(&number).expect("it was just changed"));
        let fresh = mem::replace(&mut allowance.dirty_in, generation) != generation;
        let dirty = self.dirty(at);
        dirty.ledger = true;
        if fresh {
            dirty.allowances.push(number);
        }
    }

    fn dirty(&mut self, at: u32) -> &mut DirtyCampaign {
        let generation = self.changes.generation;
        let dirty = &mut self.slots[at as usize].as_mut().expect("indexes point at campaigns").dirty;
        if dirty.generation != generation {
            *dirty = DirtyCampaign { generation, allowances: mem::take(&mut dirty.allowances), ..Default::default() };
            dirty.allowances.clear();
            self.changes.slots.push(at);
        }
        dirty
    }

    /// The records that changed since the last call, in key order, with their values now.
    pub fn take_changes(&mut self) -> Vec<RecordChange> {
        let mut changes: BTreeMap<Vec<u8>, Option<Vec<u8>>> =
            mem::take(&mut self.changes.removed).into_iter().map(|key| (key, None)).collect();
        if mem::take(&mut self.changes.meta) {
            changes.insert(vec![META], Some(self.meta().encode_to_vec()));
        }
        let generation = self.changes.generation;
        self.changes.generation += 1;
        for at in mem::take(&mut self.changes.slots) {
            // The campaign may be gone, or another one may have its place (and then is listed again).
            let Some(slot) = self.slots[at as usize].as_ref().filter(|slot| slot.dirty.generation == generation) else {
                continue;
            };
            let (state, dirty) = (&*slot.state, &slot.dirty);
            let parts = [(dirty.settings, SETTINGS), (dirty.ledger, LEDGER), (dirty.control, CONTROL)];
            for (_, kind) in parts.into_iter().filter(|(is_dirty, _)| *is_dirty) {
                changes.extend(campaign_record(kind, state).map(|record| (record.key, Some(record.value))));
            }
            for number in &dirty.allowances {
                // One that is neither was forgotten, and is among the removed.
                if let Some(allowance) = state.open.get(number).or_else(|| state.closed.get(number)) {
                    let record = allowance_record(state, allowance);
                    changes.insert(record.key, Some(record.value));
                }
            }
        }
        for (key, deletion) in self.deletions.take_changes() {
            changes.insert(deletion_record_key(key), deletion.map(|deletion| deletion.encode_to_vec()));
        }
        changes.into_iter().map(|(key, value)| RecordChange { key, value }).collect()
    }

    /// All records in key order, as of now. Costs one reference per campaign; later commands copy what they change.
    pub fn snapshot(&self) -> impl Iterator<Item = Record> + Send + 'static {
        let meta = Record { key: vec![META], value: self.meta().encode_to_vec() };
        let campaigns: Vec<Arc<CampaignState>> = self.slots.iter().flatten().map(|slot| slot.state.clone()).collect();
        let deletions = self
            .deletions
            .shared()
            .into_iter()
            .map(|(key, deletion)| Record { key: deletion_record_key(key), value: deletion.encode_to_vec() });
        // Sorted when it is read, on the reader's thread.
        let records = std::iter::once(campaigns).flat_map(|mut campaigns| {
            campaigns.sort_unstable_by_key(|state| state.key);
            let campaigns: Arc<[Arc<CampaignState>]> = campaigns.into();
            let parts = [SETTINGS, LEDGER, CONTROL].into_iter().flat_map({
                let campaigns = campaigns.clone();
                move |kind| {
                    let campaigns = campaigns.clone();
                    (0..campaigns.len()).filter_map(move |i| campaign_record(kind, &campaigns[i]))
                }
            });
            let allowances = (0..campaigns.len()).flat_map(move |i| {
                let state = campaigns[i].clone();
                let numbers: BTreeSet<u32> = state.open.keys().chain(state.closed.keys()).copied().collect();
                numbers.into_iter().map(move |number| {
                    let allowance = state.open.get(&number).or_else(|| state.closed.get(&number));
                    allowance_record(&state, allowance.expect("numbers come from there"))
                })
            });
            parts.chain(allowances)
        });
        std::iter::once(meta).chain(records).chain(deletions)
    }

    /// A hash over the complete state: over all records. Costs as much as reading a snapshot.
    pub fn digest(&self) -> u64 {
        let mut hash = Xxh3Default::new();
        for record in self.snapshot() {
            for part in [record.key, record.value] {
                hash.update(&(part.len() as u64).to_le_bytes());
                hash.update(&part);
            }
        }
        hash.digest()
    }

    /// The book of these records, in key order; an empty one if there are none.
    ///
    /// # Errors
    /// When they are damaged, incomplete, of an unknown format, or break an invariant.
    pub fn restore(records: impl IntoIterator<Item = Record>) -> Result<Self, RestoreError> {
        let mut records = records.into_iter().peekable();
        if records.peek().is_none() {
            return Ok(Self::new());
        }
        let mut reader = Reader::default();
        for record in records {
            reader.read(&record).map_err(|reason| {
                let key: String = record.key.iter().map(|byte| format!("{byte:02x}")).collect();
                RestoreError(format!("record {key}: {reason}"))
            })?;
        }
        reader.finish().map_err(RestoreError)
    }

    /// A record in which as many tokens of an allowance are settled, but the first ones.
    #[cfg(andante_mutants)]
    pub(crate) fn forget_which_settled(record: Record) -> Record {
        let Ok(mut allowance) = proto::Allowance::decode(&record.value[..]) else { return record };
        if record.key[0] != ALLOWANCE {
            return record;
        }
        let [settled, released] = [allowance.settled, allowance.released.clone()].map(Bitmap::from_bytes);
        let mut first = Bitmap::default();
        for i in (0..).filter(|i| !released.get(*i)).take(settled.count() as usize) {
            first.set(i);
        }
        allowance.settled = first.as_bytes().to_vec();
        Record { value: allowance.encode_to_vec(), ..record }
    }

    /// This book with what another one has beyond it: campaigns that are gone, allowances that are forgotten.
    #[cfg(andante_mutants)]
    pub(crate) fn merged_with(mut self, other: &Self) -> Self {
        for state in other.campaigns() {
            let Some(at) = self.by_key.get(&state.key).copied() else {
                self.insert(state.clone());
                continue;
            };
            let (key, mut forgettings) = (state.key, Vec::new());
            let own = self.slot_mut(at).state_mut();
            for (number, allowance) in state.closed.iter().filter(|_| own.incarnation == state.incarnation) {
                if !own.open.contains_key(number) && !own.closed.contains_key(number) {
                    own.closed.insert(*number, allowance.clone());
                    forgettings.push(Due::forgetting(key, allowance));
                }
            }
            self.forgettings.extend(forgettings);
        }
        self
    }

    fn meta(&self) -> ShardMeta {
        ShardMeta { shard_time_ms: self.shard_time_ms, next_incarnation: self.next_incarnation, format: FORMAT }
    }
}

/// Records read so far.
#[derive(Default)]
struct Reader {
    meta: Option<ShardMeta>,
    settings: BTreeMap<u64, Spec>,
    campaigns: BTreeMap<u64, CampaignState>,
    deletions: Deletions,
}

impl Reader {
    fn read(&mut self, record: &Record) -> Result<(), String> {
        let (kind, id) = record.key.split_first().ok_or("it has no key")?;
        match *kind {
            META if id.is_empty() => self.meta = Some(decode(&record.value)?),
            SETTINGS => {
                let spec: Spec = decode(&record.value)?;
                let key = campaign_id(id)?;
                if campaign_key(&spec.name) != key {
                    return Err("its name has another hash".into());
                }
                self.settings.insert(key, spec);
            }
            LEDGER => {
                let key = campaign_id(id)?;
                let spec = self.settings.remove(&key).ok_or("the campaign has no settings")?;
                self.campaigns.insert(key, campaign_state(key, spec, decode(&record.value)?)?);
            }
            CONTROL => {
                let control: Control = decode(&record.value)?;
                let state = self.campaigns.get_mut(&campaign_id(id)?).ok_or("the campaign is missing")?;
                state.control = Some(Arc::new(control));
            }
            ALLOWANCE => {
                let record: proto::Allowance = decode(&record.value)?;
                if id != &allowance_record_key(record.campaign, record.incarnation, record.number)[1..] {
                    return Err("key and value don't match".into());
                }
                let state = self.campaigns.get_mut(&record.campaign).ok_or("the campaign is missing")?;
                if state.incarnation != record.incarnation {
                    return Err("it is of another incarnation".into());
                }
                let allowance = Allowance::from_proto(record)?;
                let allowances = if allowance.is_open() { &mut state.open } else { &mut state.closed };
                allowances.insert(allowance.number, Arc::new(allowance));
            }
            DELETION => {
                let deletion: Deletion = decode(&record.value)?;
                let key = (deletion.campaign, deletion.incarnation);
                if record.key != deletion_record_key(key) {
                    return Err("key and value don't match".into());
                }
                self.deletions.insert(deletion);
            }
            _ => return Err("its kind is unknown".into()),
        }
        Ok(())
    }

    fn finish(self) -> Result<Book, String> {
        let meta = self.meta.ok_or("the meta record is missing")?;
        if meta.format != FORMAT {
            return Err(format!("format {} is unknown", meta.format));
        }
        if let Some(key) = self.settings.keys().next() {
            return Err(format!("campaign {key:016x} has settings but no ledger"));
        }
        let mut book = Book {
            shard_time_ms: meta.shard_time_ms,
            next_incarnation: meta.next_incarnation,
            deletions: self.deletions,
            ..Book::new()
        };
        for state in self.campaigns.into_values() {
            book.insert(state);
        }
        book.changes.meta = false;
        book.check()?;
        Ok(book)
    }
}

fn campaign_state(key: u64, spec: Spec, record: proto::Campaign) -> Result<CampaignState, String> {
    check_safe(&spec).map_err(|field| format!("its {field} is invalid"))?;
    if record.key != key {
        return Err("key and value don't match".into());
    }
    if record.ended_ms > TIME_MAX_MS {
        return Err("it ended too late".into());
    }
    let ledger = Ledger::restore(spec.budget_micros, record.settled_micros, record.open_micros);
    Ok(CampaignState {
        key,
        incarnation: record.incarnation,
        revision: record.revision,
        state: record.state(),
        created_ms: record.created_ms,
        updated_ms: record.updated_ms,
        ended_ms: record.ended_ms,
        ledger: ledger.ok_or("it is overspent")?,
        next_allowance: record.next_allowance,
        counters: record.counters.unwrap_or_default(),
        control: None,
        open: BTreeMap::new(),
        closed: BTreeMap::new(),
        requests: Arc::new(record.requests),
        deleted_once: record.deleted_once,
        spec: Arc::new(spec),
    })
}

/// A record of a campaign; `None` if it has none of that kind.
fn campaign_record(kind: u8, state: &CampaignState) -> Option<Record> {
    let value = match kind {
        SETTINGS => state.spec.encode_to_vec(),
        LEDGER => state.to_record().encode_to_vec(),
        _ => state.control.as_ref()?.encode_to_vec(),
    };
    Some(Record { key: campaign_record_key(kind, state.key), value })
}

fn allowance_record(state: &CampaignState, allowance: &Allowance) -> Record {
    Record {
        key: allowance_record_key(state.key, state.incarnation, allowance.number),
        value: allowance.to_proto(state.key, state.incarnation).encode_to_vec(),
    }
}

fn campaign_record_key(kind: u8, campaign: u64) -> Vec<u8> {
    [&[kind], campaign.to_be_bytes().as_slice()].concat()
}

fn allowance_record_key(campaign: u64, incarnation: u32, number: u32) -> Vec<u8> {
    [&[ALLOWANCE], &campaign.to_be_bytes()[..], &incarnation.to_be_bytes(), &number.to_be_bytes()].concat()
}

fn deletion_record_key((campaign, incarnation): DeletionKey) -> Vec<u8> {
    [&[DELETION], &campaign.to_be_bytes()[..], &incarnation.to_be_bytes()].concat()
}

fn campaign_id(id: &[u8]) -> Result<u64, String> {
    Ok(u64::from_be_bytes(id.try_into().map_err(|_| "its key has the wrong length")?))
}

fn decode<M: Message + Default>(bytes: &[u8]) -> Result<M, String> {
    M::decode(bytes).map_err(|e| format!("it can't be decoded: {e}"))
}
