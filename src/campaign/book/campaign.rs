//! The state of one campaign.

use std::{collections::BTreeMap, sync::Arc};

use andante_cluster::mutant;

use super::super::{
    allowance::Allowance,
    ledger::Ledger,
    limits::REQUESTS_REMEMBERED,
    proto::{self, Control, Counters, Operation, Request, Spec, State},
};

/// A campaign with its ledger and allowances. The book changes it; everybody else reads.
#[derive(Debug, Clone)]
pub struct CampaignState {
    /// Settings.
    pub spec: Arc<Spec>,
    /// Hash of the name.
    pub key: u64,
    /// Unique per shard, never reused.
    pub incarnation: u32,
    /// Grows with each change of settings or state.
    pub revision: u64,
    /// By the owner's will.
    pub state: State,
    /// Creation.
    pub created_ms: u64,
    /// Latest change of settings or state, or request to delete it.
    pub updated_ms: u64,
    /// When it was ended; 0 before.
    pub ended_ms: u64,
    /// Money.
    pub ledger: Ledger,
    /// Number the next allowance gets, from 1.
    pub next_allowance: u32,
    /// Counts.
    pub counters: Counters,
    /// Pacing state, once there was a checkpoint.
    pub control: Option<Arc<Control>>,
    /// Open allowances by number.
    pub open: BTreeMap<u32, Arc<Allowance>>,
    /// Closed ones whose bitmaps are still kept, by number.
    pub closed: BTreeMap<u32, Arc<Allowance>>,
    /// Whether its requests are remembered when it is gone.
    pub(super) deleted_once: bool,
    /// The latest write requests, oldest first.
    pub(super) requests: Arc<Vec<Request>>,
}

impl CampaignState {
    /// Whether its flight is on.
    pub fn is_in_flight(&self, now_ms: u64) -> bool {
        (self.spec.start_ms..self.spec.end_ms).contains(&now_ms)
    }

    /// Whether it may get allowances.
    pub fn is_eligible(&self, now_ms: u64) -> bool {
        self.state == State::Active && self.is_in_flight(now_ms)
    }

    /// Whether nothing is left to hand out and nothing can come back: less than one delivery free, nothing open.
    pub fn is_exhausted(&self) -> bool {
        self.open.is_empty() && self.ledger.free_micros() < self.spec.price_micros
    }

    /// The purge age counts from here: the day it was ended, or else its flight's end.
    pub fn over_since_ms(&self) -> u64 {
        if self.ended_ms > 0 { self.ended_ms } else { self.spec.end_ms }
    }

    /// Whether this write request was applied before.
    pub(super) fn remembers(&self, id: &str, operation: Operation) -> bool {
        let remembered = !id.is_empty() && self.requests.iter().any(|r| r.id == id && r.operation == operation as i32);
        remembered && !mutant!(RequestForgotten)
    }

    /// Counts a change of settings or state, and remembers the request that made it.
    pub(super) fn changed(&mut self, id: &str, operation: Operation, now_ms: u64) {
        self.revision += 1;
        self.updated_ms = now_ms;
        self.remember(id, operation);
    }

    /// Remembers a request that was applied, unless it has no id.
    pub(super) fn remember(&mut self, id: &str, operation: Operation) {
        if !id.is_empty() {
            let requests = Arc::make_mut(&mut self.requests);
            if requests.len() >= REQUESTS_REMEMBERED {
                requests.remove(0);
            }
            requests.push(Request { id: id.into(), revision: self.revision, operation: operation as i32 });
        }
    }

    /// What replies carry: everything but allowances and pacing state.
    pub fn to_proto(&self) -> proto::Campaign {
        proto::Campaign { spec: Some((*self.spec).clone()), ..self.to_record() }
    }

    /// Its record, which lacks what is in records of its own.
    pub(super) fn to_record(&self) -> proto::Campaign {
        proto::Campaign {
            spec: None,
            key: self.key,
            incarnation: self.incarnation,
            revision: self.revision,
            state: self.state as i32,
            created_ms: self.created_ms,
            updated_ms: self.updated_ms,
            ended_ms: self.ended_ms,
            settled_micros: self.ledger.settled_micros(),
            open_micros: self.ledger.open_micros(),
            next_allowance: self.next_allowance,
            counters: Some(self.counters),
            control: None,
            requests: self.requests.to_vec(),
            deleted_once: self.deleted_once,
        }
    }
}

/// A campaign's place in the book, with what is not part of its state.
#[derive(Debug)]
pub(super) struct Slot {
    pub(super) state: Arc<CampaignState>,
    /// Where the latest command's outcome counts of this campaign are: (command, position in the effects).
    pub(super) delta: (u64, u32),
    /// Records to be written, as of a generation of changes.
    pub(super) dirty: super::records::DirtyCampaign,
}

impl Slot {
    pub(super) fn new(state: CampaignState) -> Self {
        Self { state: Arc::new(state), delta: (0, 0), dirty: Default::default() }
    }

    /// The state, to change. Copies it if a snapshot still holds it.
    pub(super) fn state_mut(&mut self) -> &mut CampaignState {
        Arc::make_mut(&mut self.state)
    }
}
