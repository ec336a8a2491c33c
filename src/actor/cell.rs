//! What a campaign shows to the score path: read without messages, locks or log writes.
//!
//! | part | written by | read by |
//! |---|---|---|
//! | settings | `apply`, through [`super::shard::Shard`]: a pause holds even while the actor hangs | scores, takes |
//! | weights, block, refresh | the campaign's actor | scores, takes |
//! | traffic | scores, takes | the actor, at its next tick |
//!
//! A take is one atomic operation on the block. No actor, no placement: a cell whose actor died is sealed by the
//! actor's guard; one whose actor hangs suspends itself two ticks after its oldest take since the last refresh.

use std::sync::{
    Arc,
    atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering},
};

use andante_cluster::ShardId;
#[cfg(andante_mutants)]
use andante_cluster::mutant;
use arc_swap::{ArcSwap, ArcSwapOption};
use parking_lot::Mutex;

use super::{
    block::Block,
    traffic::{Lost, Traffic},
};
use crate::campaign::{
    book::CampaignState,
    guardrails::{FrequencyFilter, FrequencyLimit},
    proto::State,
    score::{Verdict, Weights},
    token,
};

/// Settings of a campaign in the form the score path wants them.
#[derive(Debug)]
pub struct CellSettings {
    /// The campaign's name.
    pub name: Arc<str>,
    /// Hashes of its tracks, sorted.
    pub tracks: Box<[u64]>,
    /// Hashes of its surfaces, sorted; empty: all.
    pub surfaces: Box<[u16]>,
    /// Its markets, sorted; empty: all.
    pub markets: Box<[[u8; 2]]>,
    /// Start of the flight.
    pub start_ms: u64,
    /// End of the flight, exclusive.
    pub end_ms: u64,
    /// Price of the next allowance's deliveries, micros.
    pub price_micros: u64,
    /// Frequency cap.
    pub frequency: FrequencyLimit,
    /// Whether the owner wants it to deliver.
    pub active: bool,
}

impl CellSettings {
    /// From the campaign's state in the book.
    pub fn new(campaign: &CampaignState) -> Self {
        let spec = &campaign.spec;
        let mut tracks: Vec<u64> = spec.tracks.iter().map(|track| track_key(track)).collect();
        tracks.sort_unstable();
        let mut surfaces: Vec<u16> = spec.surfaces.iter().map(|surface| token::surface_hash(surface)).collect();
        surfaces.sort_unstable();
        let markets = spec.markets.iter().filter_map(|market| market.as_bytes().try_into().ok()).collect();
        let frequency = FrequencyLimit { cap: spec.frequency_cap, window_ms: spec.frequency_window_ms };
        Self {
            name: spec.name.as_str().into(),
            tracks: tracks.into(),
            surfaces: surfaces.into(),
            markets,
            start_ms: spec.start_ms,
            end_ms: spec.end_ms,
            price_micros: spec.price_micros,
            frequency,
            active: campaign.state == State::Active,
        }
    }
}

/// The key of a track in catalog and cells.
pub fn track_key(track_id: &str) -> u64 {
    xxhash_rust::xxh3::xxh3_64(track_id.as_bytes())
}

/// What a score request looks for, hashed once.
#[derive(Debug, Clone, Copy)]
pub struct Ask {
    /// Node time.
    pub now_ms: u64,
    /// Monotonic time.
    pub monotonic_ms: u64,
    /// Hash of the listener.
    pub listener: u64,
    /// Hash of the surface.
    pub surface: u16,
    /// The market.
    pub market: [u8; 2],
    /// Whether placements are asked for; if not, nothing is counted as traffic.
    pub placing: bool,
}

/// A token taken from a cell.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Taken {
    /// The allowance.
    pub number: u32,
    /// Sequence number within it.
    pub sequence: u32,
    /// Hold time promised at most.
    pub hold_ms: u64,
}

/// Why a take was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TakeRefused {
    /// Paused, ended, out of its flight, or its actor is dead, hung or quarantined.
    NotServing,
    /// The listener has had enough.
    FrequencyCap,
    /// No token is left in the current allowance.
    NoAllowance,
}

/// Whether the campaign's actor stands behind its cell.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Life {
    /// No actor, none needed.
    Dormant = 0,
    /// An actor refreshes it.
    Live = 1,
    /// Its actor failed; a restart is due.
    Failed = 2,
    /// Its actor failed too often.
    Quarantined = 3,
}

/// Settings and weights, read together.
#[derive(Debug)]
pub struct View {
    /// From the book.
    pub settings: Arc<CellSettings>,
    /// From the actor.
    pub weights: Weights,
}

/// What people are told about a campaign's pacing; published by its actor every tick.
#[derive(Debug, Clone, Default)]
pub struct PacingStatus {
    /// The multiplier.
    pub mu: f64,
    /// Learned probability that a placement becomes billable.
    pub billable_share: f64,
    /// Escrow not expected to be billed, micros.
    pub stranded_micros: u64,
    /// What keeps it from its plan, in words; empty if nothing.
    pub explanation: String,
}

/// One campaign's cell.
pub struct Cell {
    /// The campaign's key.
    pub key: u64,
    /// Its incarnation.
    pub incarnation: u32,
    /// The shard that owns it.
    pub shard: ShardId,
    view: ArcSwap<View>,
    block: ArcSwapOption<Block>,
    life: AtomicU8,
    /// Monotonic time of the oldest take since the actor's last refresh; 0: none.
    oldest_take_ms: AtomicU64,
    /// Two ticks.
    patience_ms: u64,
    touched: AtomicBool,
    touch_list: Arc<TouchList>,
    frequency: Mutex<FrequencyFilter>,
    /// Counted since the last tick.
    pub traffic: Traffic,
    status: Mutex<PacingStatus>,
    /// Sealed allowances whose unissued tokens are still to be given back.
    leftovers: Mutex<Vec<Arc<Block>>>,
    /// Epoch of the holder that stands, or stood last, behind the cell.
    epoch: Mutex<u64>,
    /// The newest allowance that came here to be handed out: its holder's epoch and its number.
    installed: Mutex<(u64, u32)>,
}

/// Cells that saw traffic since their shard's last tick.
pub type TouchList = Mutex<Vec<u64>>;

impl Cell {
    /// A dormant cell.
    pub fn new(
        shard: ShardId,
        campaign: &CampaignState,
        weights: Weights,
        tick_ms: u64,
        touch_list: Arc<TouchList>,
    ) -> Self {
        let settings = Arc::new(CellSettings::new(campaign));
        let frequency = settings.frequency;
        Self {
            key: campaign.key,
            incarnation: campaign.incarnation,
            shard,
            view: ArcSwap::from_pointee(View { settings, weights }),
            block: ArcSwapOption::empty(),
            life: AtomicU8::new(Life::Dormant as u8),
            oldest_take_ms: AtomicU64::new(0),
            patience_ms: 2 * tick_ms,
            touched: AtomicBool::new(false),
            touch_list,
            frequency: Mutex::new(FrequencyFilter::new(frequency)),
            traffic: Traffic::default(),
            status: Mutex::default(),
            leftovers: Mutex::default(),
            epoch: Mutex::new(0),
            installed: Mutex::new((0, 0)),
        }
    }

    /// Settings and weights now.
    pub fn view(&self) -> arc_swap::Guard<Arc<View>> {
        self.view.load()
    }

    /// The score this campaign offers for one candidate; 0: none. Re-checks everything, whatever the catalog said.
    pub fn offer(&self, ask: &Ask, track: u64, relevance: f64) -> f64 {
        let view = self.view.load();
        let settings = &*view.settings;
        let eligible = settings.active
            && (settings.start_ms..settings.end_ms).contains(&ask.now_ms)
            && (settings.surfaces.is_empty() || settings.surfaces.binary_search(&ask.surface).is_ok())
            && (settings.markets.is_empty() || settings.markets.binary_search(&ask.market).is_ok())
            && settings.tracks.binary_search(&track).is_ok();
        if !eligible || self.life() == Life::Quarantined {
            return 0.0;
        }
        if ask.placing {
            self.touch();
        }
        let score = match view.weights.evaluate(relevance, settings.price_micros) {
            Verdict::Promote(score) => score,
            Verdict::NotWorthIt => 0.0,
            Verdict::BelowFloor => {
                if ask.placing {
                    self.traffic.below_floor();
                }
                return 0.0;
            }
        };
        if ask.placing {
            self.traffic.opportunity(relevance, settings.price_micros);
        }
        if score == 0.0 {
            return 0.0;
        }
        if settings.frequency.cap > 0 && !self.frequency.lock().allows(ask.listener, ask.now_ms) {
            if ask.placing {
                self.traffic.lost(Lost::FrequencyCap);
            }
            return 0.0;
        }
        if ask.placing {
            let served = self.serving(ask.monotonic_ms) && self.block.load().as_ref().is_some_and(|b| b.has_left());
            if !served {
                self.traffic.lost(Lost::Unserved);
                return 0.0;
            }
        }
        score
    }

    /// Takes one token for the listener.
    pub fn take(&self, ask: &Ask) -> Result<Taken, TakeRefused> {
        let view = self.view.load();
        let settings = &*view.settings;
        if !settings.active || ask.now_ms >= settings.end_ms || !self.serving(ask.monotonic_ms) {
            return Err(TakeRefused::NotServing);
        }
        let block = self.block.load();
        let block = block.as_ref().ok_or(TakeRefused::NoAllowance)?;
        let sequence = if settings.frequency.cap == 0 {
            block.take(ask.now_ms)
        } else {
            // Under the filter's lock, so that a listener's count and tokens can't part.
            let mut filter = self.frequency.lock();
            if !filter.allows(ask.listener, ask.now_ms) {
                return Err(TakeRefused::FrequencyCap);
            }
            block.take(ask.now_ms).inspect(|_| {
                filter.admit(ask.listener, ask.now_ms);
            })
        };
        let sequence = sequence.ok_or(TakeRefused::NoAllowance)?;
        if self.oldest_take_ms.load(Ordering::Relaxed) == 0 {
            // Two takers may race here; either time is right to within their distance.
            self.oldest_take_ms.store(ask.monotonic_ms.max(1), Ordering::Relaxed);
            // A tick may have come between the offer and this take: the take asks for the next one.
            self.touch();
        }
        self.traffic.taken(block.price_micros);
        Ok(Taken { number: block.number, sequence, hold_ms: block.hold_ms })
    }

    /// Whether an actor stands behind the cell and has looked after it lately.
    fn serving(&self, monotonic_ms: u64) -> bool {
        let oldest = self.oldest_take_ms.load(Ordering::Relaxed);
        self.life() == Life::Live && (oldest == 0 || monotonic_ms <= oldest + self.patience_ms)
    }

    /// Asks for the next tick.
    pub(super) fn touch(&self) {
        if !self.touched.load(Ordering::Relaxed) && !self.touched.swap(true, Ordering::AcqRel) {
            self.touch_list.lock().push(self.key);
        }
    }

    /// Whether the campaign's actor is there.
    pub fn life(&self) -> Life {
        match self.life.load(Ordering::Acquire) {
            1 => Life::Live,
            2 => Life::Failed,
            3 => Life::Quarantined,
            _ => Life::Dormant,
        }
    }

    // ---- for the shard and its actors ----

    /// New settings from the book. They lift a quarantine: whoever changed the campaign wants it tried again.
    pub fn publish_settings(&self, campaign: &CampaignState) {
        let settings = Arc::new(CellSettings::new(campaign));
        self.frequency.lock().set_limit(settings.frequency);
        self.view.rcu(|view| View { settings: settings.clone(), weights: view.weights });
        if self.life() == Life::Quarantined {
            self.set_life(Life::Failed);
        }
    }

    /// New weights from the actor.
    pub fn publish_weights(&self, weights: Weights) {
        self.view.rcu(|view| View { settings: view.settings.clone(), weights });
    }

    /// The actor looked after the cell: it serves on. Says whether the cell had suspended itself.
    pub fn refresh(&self, monotonic_ms: u64) -> bool {
        let oldest = self.oldest_take_ms.swap(0, Ordering::Relaxed);
        oldest != 0 && monotonic_ms > oldest + self.patience_ms
    }

    /// The next score touches it again. Called by the shard when it took the cell off the touch list.
    pub fn untouch(&self) {
        self.touched.store(false, Ordering::Release);
    }

    /// An actor takes over, with an epoch of its own. What an earlier one left is sealed.
    pub fn begin(&self, epoch: u64) {
        let mut current = self.epoch.lock();
        *current = epoch;
        self.seal();
        self.oldest_take_ms.store(0, Ordering::Relaxed);
        self.life.store(Life::Live as u8, Ordering::Release);
    }

    /// The actor of this epoch ended: nothing more is handed out. Without effect once another has taken over, however
    /// late the end of the earlier one is noticed.
    pub fn end(&self, epoch: u64, life: Life) {
        let current = self.epoch.lock();
        if *current == epoch {
            // Whoever noticed the end first has said how it is to be seen.
            if self.life() == Life::Live {
                self.life.store(life as u8, Ordering::Release);
            }
            self.seal();
        }
    }

    /// Whether the cell hands out for the holder of this epoch.
    pub fn is_held_by(&self, epoch: u64) -> bool {
        *self.epoch.lock() == epoch && self.life() == Life::Live
    }

    /// Whether an allowance of this holder was not and will never be handed out: it did not come here before the holder
    /// had gone. `false` too where that is not known any more.
    pub fn missed(&self, epoch: u64, number: u32) -> bool {
        let current = self.epoch.lock();
        let held = *current == epoch && self.life() == Life::Live;
        !held && *self.installed.lock() < (epoch, number)
    }

    /// Changes how the end of the last actor is seen: a failure is overdue for a restart, or quarantined.
    pub fn set_life(&self, life: Life) {
        let _current = self.epoch.lock();
        if self.life() != Life::Live {
            self.life.store(life as u8, Ordering::Release);
        }
    }

    /// Forgets listeners whose frequency windows have lapsed. Takes as long as there are listeners: now and then.
    pub fn forget_lapsed(&self, now_ms: u64) {
        self.frequency.lock().sweep(now_ms);
    }

    /// The allowance being handed out.
    pub fn block(&self) -> Option<Arc<Block>> {
        self.block.load_full()
    }

    /// Hands out an applied allowance from now on; the one before is sealed. One whose holder does not stand behind the
    /// cell (any more) is sealed and given back itself.
    pub fn install(&self, block: Block) {
        let block = Arc::new(block);
        let current = self.epoch.lock();
        let newest = (block.holder.cell_epoch, block.number);
        let mut installed = self.installed.lock();
        *installed = newest.max(*installed);
        drop(installed);
        if *current == block.holder.cell_epoch && self.life() == Life::Live {
            self.retire(self.block.swap(Some(block)));
        } else {
            self.retire(Some(block));
        }
    }

    /// Stops handing out, for good as far as the current allowance is concerned.
    pub fn seal(&self) {
        #[cfg(andante_mutants)]
        if let Some(block) = self.block()
            && mutant!(SealIgnored)
        {
            return self.retire(Some(block).filter(|block| !block.is_sealed()));
        }
        self.retire(self.block.swap(None));
    }

    fn retire(&self, block: Option<Arc<Block>>) {
        if let Some(block) = block
            && block.seal() < block.n
        {
            self.leftovers.lock().push(block);
        }
    }

    /// Sealed allowances with unissued tokens, each given once.
    pub fn drain_leftovers(&self) -> Vec<Arc<Block>> {
        std::mem::take(&mut *self.leftovers.lock())
    }

    /// Publishes what people are told.
    pub fn publish_status(&self, status: PacingStatus) {
        *self.status.lock() = status;
    }

    /// What people are told.
    pub fn status(&self) -> PacingStatus {
        self.status.lock().clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::campaign::{book::Book, proto};

    const TICK_MS: u64 = 100;

    fn cell(frequency_cap: u32) -> Cell {
        let spec = proto::Spec {
            name: "c1".into(),
            owner: "label".into(),
            tracks: vec!["track".into()],
            end_ms: 1_000_000,
            budget_micros: 1_000,
            price_micros: 1,
            billable: proto::Kind::Stream.into(),
            min_stream_ms: 30_000,
            hold_ms: 10_000,
            boost_cap: 1.0,
            frequency_cap,
            frequency_window_ms: 60_000,
            expected_billable_share: 1.0,
            ..Default::default()
        };
        let mut book = Book::new();
        let create = proto::Create { request_id: "r".into(), spec: Some(spec), now_ms: 1 };
        let reply = book.apply(&proto::Command { kind: Some(proto::command::Kind::Create(create)) });
        assert_eq!(reply.refusal(), proto::Refusal::Unspecified, "{}", reply.detail);
        let campaign = book.campaigns().next().expect("it was created");
        let weights = Weights { mu: 0.5, value_scale: 1.0, price_scale: 1.0, boost_cap: 1.0, relevance_floor: 0.25 };
        Cell::new(ShardId(0), campaign, weights, TICK_MS, Arc::default())
    }

    fn served(frequency_cap: u32) -> Cell {
        let cell = cell(frequency_cap);
        cell.begin(1);
        cell.install(Block::with_tokens(3));
        cell
    }

    fn ask(monotonic_ms: u64) -> Ask {
        Ask { now_ms: 50, monotonic_ms, listener: 7, surface: 0, market: *b"DE", placing: true }
    }

    #[test]
    fn a_hung_actors_cell_suspends_itself_two_ticks_after_the_oldest_take_and_resumes_at_the_refresh() {
        let cell = served(0);
        assert!(cell.take(&ask(1_000)).is_ok());
        assert!(cell.take(&ask(1_000 + 2 * TICK_MS)).is_ok());
        assert_eq!(cell.take(&ask(1_001 + 2 * TICK_MS)), Err(TakeRefused::NotServing));
        assert_eq!(cell.offer(&ask(1_001 + 2 * TICK_MS), track_key("track"), 1.0), 0.0);
        assert!(cell.refresh(1_001 + 2 * TICK_MS), "it had suspended itself");
        assert!(cell.take(&ask(1_002 + 2 * TICK_MS)).is_ok());
        assert!(!cell.refresh(1_003 + 2 * TICK_MS));
    }

    #[test]
    fn without_an_actor_nothing_is_handed_out() {
        let cell = served(0);
        cell.end(1, Life::Failed);
        assert_eq!(cell.take(&ask(0)), Err(TakeRefused::NotServing));
        assert_eq!(cell.drain_leftovers().len(), 1, "what was not handed out is given back");
        assert!(cell.drain_leftovers().is_empty(), "once");
    }

    #[test]
    fn the_late_end_of_an_earlier_actor_does_not_touch_its_successor() {
        let cell = served(0);
        cell.begin(2);
        cell.install(Block::with_tokens(3).held_by(2));
        cell.end(1, Life::Failed);
        assert_eq!(cell.life(), Life::Live);
        assert!(cell.take(&ask(0)).is_ok());
    }

    #[test]
    fn an_allowance_of_another_holder_is_given_back_unused() {
        let cell = served(0);
        cell.install(Block::with_tokens(5).held_by(2));
        assert_eq!(cell.block().expect("there is one").n, 3);
        cell.end(1, Life::Dormant);
        cell.install(Block::with_tokens(7));
        assert!(cell.block().is_none(), "nobody stands behind it");
        let mut leftovers = cell.drain_leftovers();
        leftovers.sort_by_key(|block| block.n);
        assert!(leftovers.iter().all(|block| block.is_sealed()));
        assert_eq!(leftovers.iter().map(|block| block.n).collect::<Vec<_>>(), [3, 5, 7]);
    }

    #[test]
    fn an_allowance_that_came_too_late_is_known_to_be_untouched() {
        let cell = served(0);
        assert!(!cell.missed(1, 2), "its holder is there");
        cell.end(1, Life::Dormant);
        assert!(!cell.missed(1, 1), "it was handed out");
        assert!(cell.missed(1, 2));
        cell.begin(2);
        assert!(cell.missed(1, 2));
        cell.install(Block::with_tokens(3).held_by(2));
        assert!(!cell.missed(1, 2), "nobody knows any more");
    }

    #[test]
    fn a_replaced_allowance_hands_out_nothing_more() {
        let cell = served(0);
        let before = cell.block().expect("there is one");
        cell.install(Block::with_tokens(5));
        assert!(before.is_sealed());
        assert_eq!(cell.drain_leftovers().iter().map(|block| block.n).collect::<Vec<_>>(), [3]);
    }

    #[test]
    fn a_capped_listener_costs_no_token() {
        let cell = served(1);
        assert!(cell.take(&ask(0)).is_ok());
        assert_eq!(cell.take(&ask(0)), Err(TakeRefused::FrequencyCap));
        assert_eq!(cell.block().expect("there is one").left(), 2);
        assert!(cell.take(&Ask { listener: 8, ..ask(0) }).is_ok());
    }

    #[test]
    fn only_requests_for_placements_count_as_traffic_and_wake() {
        let cell = served(0);
        let track = track_key("track");
        assert!(cell.offer(&Ask { placing: false, ..ask(0) }, track, 1.0) > 0.0);
        assert_eq!(cell.traffic.drain(), crate::actor::traffic::Counts::default());
        assert!(cell.touch_list.lock().is_empty());
        assert!(cell.offer(&ask(0), track, 1.0) > 0.0);
        assert_eq!(cell.offer(&ask(0), track, 0.2), 0.0, "below the floor");
        assert_eq!(cell.offer(&ask(0), track_key("another"), 1.0), 0.0);
        let counts = cell.traffic.drain();
        assert_eq!((counts.opportunities, counts.below_floor), (1, 1));
        assert_eq!(*cell.touch_list.lock(), [cell.key], "once, however often it was scored");
    }
}
