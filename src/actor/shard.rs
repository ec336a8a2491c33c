//! What a shard's machine, actors and readers share: the book, the cells, what is due.

use std::{
    collections::BTreeMap,
    fmt,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering},
    },
};

#[cfg(andante_mutants)]
use andante_cluster::mutant;
use andante_cluster::{Machine, MachineError, Record, RecordChange, ShardId};
use bytes::Bytes;
use parking_lot::{Mutex, RwLock, RwLockReadGuard};
use prost::Message;
use tokio::sync::watch;

use super::{
    cell::{Cell, TouchList},
    role::Role,
};
use crate::campaign::{
    book::{Book, CampaignState, Effect},
    key_hash::KeyState,
    pacing::{self, Pacer},
    proto,
    traffic::Shape,
};

/// Follows the cells of all shards; the router's catalog.
pub trait CellObserver: Send + Sync + 'static {
    /// A cell is new or has new settings.
    fn published(&self, cell: &Arc<Cell>);
    /// A cell's campaign is gone.
    fn removed(&self, cell: &Arc<Cell>);
    /// The log was applied up to an index, with everything told before.
    fn applied(&self, shard: ShardId, index: u64);
    /// The state was replaced as a whole. `emptied`: by nothing, since the replica is about to go.
    fn restored(&self, shard: ShardId, emptied: bool);
}

/// Sees every change of a node's books as it happens, on the path of each command: for simulations and audits that hold
/// a node to its promises.
pub trait BookObserver: fmt::Debug + Send + Sync + 'static {
    /// A command was applied at a log index, with this reply; the book is as it left it.
    fn applied(&self, shard: ShardId, index: u64, command: &proto::Command, reply: &proto::Reply, book: &Book);
    /// The book was replaced as a whole: the replica opened with what was on disk, or a snapshot was installed.
    fn restored(&self, shard: ShardId, book: &Book);
}

/// The shards of a cluster on one node, whether or not it has a replica of them.
pub struct ShardTable {
    shards: Mutex<BTreeMap<ShardId, Arc<Shard>>>,
    tick_ms: u64,
    observer: Arc<dyn CellObserver>,
    books: Option<Arc<dyn BookObserver>>,
}

impl ShardTable {
    /// A table without shards.
    pub fn new(tick_ms: u64, observer: Arc<dyn CellObserver>, books: Option<Arc<dyn BookObserver>>) -> Self {
        Self { shards: Mutex::default(), tick_ms, observer, books }
    }

    /// The shard of this id; an empty one if it was not asked for before.
    pub fn get(&self, id: ShardId) -> Arc<Shard> {
        let new = || Shard::new(id, self.tick_ms, self.observer.clone());
        self.shards.lock().entry(id).or_insert_with(new).clone()
    }

    /// A machine for a replica of this shard that opens.
    pub fn machine(&self, id: ShardId) -> BookMachine {
        BookMachine::new(self.get(id), self.books.clone())
    }
}

/// One shard on this node: empty where there is no replica of it.
pub struct Shard {
    /// Which one.
    pub id: ShardId,
    book: RwLock<Book>,
    cells: papaya::HashMap<u64, Arc<Cell>, KeyState>,
    touch_list: Arc<TouchList>,
    /// The book changed: what is due next must be looked up again.
    due_dirty: AtomicBool,
    /// When the supervisor wants its next tick even without traffic; node time.
    next_due_ms: AtomicU64,
    /// Shard time is ahead of the node's clock by more than the skew margin.
    time_ahead: AtomicBool,
    /// An operator set shard time: all holders start anew.
    time_set: AtomicBool,
    /// Starts of actors in this boot.
    epoch: AtomicU64,
    /// What this node does for it; a copy of `roles` for the score path.
    role: AtomicU8,
    roles: watch::Sender<Role>,
    tick_ms: u64,
    /// What is known of a week's traffic before a campaign learned its own.
    shape: Arc<Shape>,
    observer: Arc<dyn CellObserver>,
    /// What nothing but a mutant may read: `apply` has no clock.
    #[cfg(andante_mutants)]
    pub(crate) own_clock: std::sync::OnceLock<Arc<dyn andante_cluster::env::Clock>>,
}

impl Shard {
    /// An empty shard.
    pub fn new(id: ShardId, tick_ms: u64, observer: Arc<dyn CellObserver>) -> Arc<Self> {
        Arc::new(Self {
            id,
            book: RwLock::default(),
            cells: papaya::HashMap::default(),
            touch_list: Arc::default(),
            due_dirty: AtomicBool::new(true),
            next_due_ms: AtomicU64::new(0),
            time_ahead: AtomicBool::new(false),
            time_set: AtomicBool::new(false),
            epoch: AtomicU64::new(0),
            role: AtomicU8::new(Role::Following as u8),
            roles: watch::Sender::new(Role::Following),
            tick_ms,
            shape: Arc::new(Shape::flat()),
            observer,
            #[cfg(andante_mutants)]
            own_clock: std::sync::OnceLock::new(),
        })
    }

    #[cfg(andante_mutants)]
    fn at_own_time(&self, mut command: proto::Command) -> proto::Command {
        use proto::command::Kind;
        if let (
            Some(Kind::Tick(proto::Tick { now_ms, .. }) | Kind::CloseExpired(proto::CloseExpired { now_ms, .. })),
            Some(clock),
        ) = (&mut command.kind, self.own_clock.get())
            && mutant!(ClockInApply)
        {
            *now_ms = clock.now_ms();
        }
        command
    }

    /// The book, for a short read. Never held across an await.
    pub fn book(&self) -> RwLockReadGuard<'_, Book> {
        self.book.read()
    }

    /// A campaign's cell.
    pub fn cell(&self, key: u64) -> Option<Arc<Cell>> {
        self.cells.pin().get(&key).cloned()
    }

    /// All cells.
    pub fn cells(&self) -> Vec<Arc<Cell>> {
        self.cells.pin().values().cloned().collect()
    }

    /// Takes the keys of cells that saw traffic since the last call.
    pub fn drain_touched(&self) -> Vec<u64> {
        std::mem::take(&mut *self.touch_list.lock())
    }

    /// Whether cells saw traffic.
    pub fn has_touched(&self) -> bool {
        !self.touch_list.lock().is_empty()
    }

    /// Whether the book changed since the last call, so that what is due must be looked up again.
    pub fn take_due_dirty(&self) -> bool {
        self.due_dirty.swap(false, Ordering::AcqRel)
    }

    /// Whether [`Shard::take_due_dirty`] would say so.
    pub fn is_due_dirty(&self) -> bool {
        self.due_dirty.load(Ordering::Acquire)
    }

    /// What is due changed other than by the log: it must be looked up again.
    pub(crate) fn mark_due_dirty(&self) {
        self.due_dirty.store(true, Ordering::Release);
    }

    /// When the supervisor wants its next tick even without traffic.
    pub fn next_due_ms(&self) -> u64 {
        self.next_due_ms.load(Ordering::Acquire)
    }

    /// Sets [`Shard::next_due_ms`].
    pub fn set_next_due(&self, at_ms: u64) {
        self.next_due_ms.store(at_ms, Ordering::Release);
    }

    /// Whether shard time is ahead of the node's clock by more than the margin: nothing is closed until an operator
    /// confirms the clock.
    pub fn time_ahead(&self) -> bool {
        self.time_ahead.load(Ordering::Relaxed)
    }

    /// Sets [`Shard::time_ahead`].
    pub fn set_time_ahead(&self, ahead: bool) {
        self.time_ahead.store(ahead, Ordering::Relaxed);
    }

    /// Whether an operator set shard time since the last call.
    pub fn take_time_set(&self) -> bool {
        self.time_set.swap(false, Ordering::AcqRel)
    }

    /// What this node does for it.
    pub fn role(&self) -> Role {
        Role::from_u8(self.role.load(Ordering::Acquire))
    }

    /// Whether its cells hand out tokens on this node.
    pub fn scores(&self) -> bool {
        self.role().scores()
    }

    /// [`Shard::role`], to wait for.
    pub fn roles(&self) -> watch::Receiver<Role> {
        self.roles.subscribe()
    }

    pub(super) fn set_role(&self, role: Role) {
        self.role.store(role as u8, Ordering::Release);
        self.roles.send_replace(role);
    }

    /// A cell epoch that was not used before in this boot, not even by an earlier supervisor.
    pub fn next_epoch(&self) -> u64 {
        self.epoch.fetch_add(1, Ordering::Relaxed) + 1
    }

    /// A campaign's pacer as its latest checkpoint left it, with the quality its outcomes show.
    pub fn pacer(&self, campaign: &CampaignState) -> Pacer {
        let settings = pacing::Settings::from(&*campaign.spec);
        let mut pacer = match &campaign.control {
            Some(control) => Pacer::restore(settings, self.shape.clone(), control),
            None => Pacer::new(settings, self.shape.clone()),
        };
        pacer.learn_quality(&campaign.counters);
        pacer
    }

    /// Forgets everything: the replica is gone, or another one opens.
    fn clear(&self) {
        *self.book.write() = Book::new();
        let cells = self.cells();
        cells.iter().for_each(|cell| self.remove(cell.key));
        self.observer.restored(self.id, !cells.is_empty());
        self.mark_due_dirty();
    }

    fn publish(&self, campaign: &CampaignState) {
        if let Some(cell) = self.cell(campaign.key)
            && cell.incarnation == campaign.incarnation
        {
            cell.publish_settings(campaign);
            self.observer.published(&cell);
            if !cell.view().settings.active && cell.block().is_some() {
                // What is not handed out comes back at the next tick instead of at closing.
                cell.seal();
                cell.touch();
            }
            return;
        }
        self.remove(campaign.key);
        let weights = self.pacer(campaign).weights();
        let cell = Arc::new(Cell::new(self.id, campaign, weights, self.tick_ms, self.touch_list.clone()));
        self.cells.pin().insert(campaign.key, cell.clone());
        self.observer.published(&cell);
    }

    fn remove(&self, key: u64) {
        let removed = self.cells.pin().remove(&key).cloned();
        if let Some(cell) = removed {
            cell.seal();
            self.observer.removed(&cell);
        }
    }
}

/// The book behind the cluster's seam. Cells and catalog follow each applied command at once, so a campaign can be
/// scored, or no longer, as soon as the write that said so is answered.
pub struct BookMachine {
    shard: Arc<Shard>,
    observer: Option<Arc<dyn BookObserver>>,
}

impl BookMachine {
    /// The machine of a replica that opens: in its initial state, whatever an earlier replica left behind.
    pub fn new(shard: Arc<Shard>, observer: Option<Arc<dyn BookObserver>>) -> Self {
        shard.clear();
        Self { shard, observer }
    }
}

impl Machine for BookMachine {
    fn apply(&mut self, index: u64, command: &Bytes) -> Bytes {
        let shard = &self.shard;
        let reply = match proto::Command::decode(command.clone()) {
            Ok(command) => {
                #[cfg(andante_mutants)]
                let command = shard.at_own_time(command);
                let mut book = shard.book.write();
                let reply = book.apply(&command);
                for effect in &book.last_effects().events {
                    match effect {
                        Effect::Changed { key, .. } => {
                            if let Some(campaign) = book.campaign(*key) {
                                shard.publish(campaign);
                            }
                        }
                        Effect::Removed { key, .. } => shard.remove(*key),
                        // Allowances may end earlier now than their cells believe: what is set aside stays so, but
                        // nothing more is handed out of them.
                        Effect::TimeSet => {
                            shard.cells().iter().for_each(|cell| cell.seal());
                            shard.time_set.store(true, Ordering::Release);
                        }
                        Effect::Granted { .. } | Effect::Shrunk { .. } | Effect::Closed { .. } => {}
                    }
                }
                if let Some(observer) = &self.observer {
                    observer.applied(shard.id, index, &command, &reply, &book);
                }
                reply
            }
            Err(error) => proto::Reply {
                refusal: proto::Refusal::UnknownCommand.into(),
                detail: format!("the command can't be decoded: {error}"),
                ..Default::default()
            },
        };
        shard.due_dirty.store(true, Ordering::Release);
        shard.observer.applied(shard.id, index);
        reply.encode_to_vec().into()
    }

    fn take_changes(&mut self) -> Vec<RecordChange> {
        self.shard.book.write().take_changes()
    }

    fn snapshot(&self) -> Box<dyn Iterator<Item = Record> + Send> {
        let records = self.shard.book.read().snapshot();
        #[cfg(andante_mutants)]
        if mutant!(BitmapNotInSnapshot) {
            return Box::new(records.map(Book::forget_which_settled));
        }
        Box::new(records)
    }

    fn restore(&mut self, records: &mut dyn Iterator<Item = Record>) -> Result<(), MachineError> {
        let shard = &self.shard;
        let mut records = records.peekable();
        let emptied = records.peek().is_none() && !shard.cells.is_empty();
        let mut book = shard.book.write();
        let restored = Book::restore(&mut records).map_err(|error| MachineError(error.to_string()))?;
        #[cfg(andante_mutants)]
        let restored = if !book.is_empty() && mutant!(SnapshotMerged) { restored.merged_with(&book) } else { restored };
        *book = restored;
        for cell in shard.cells() {
            if book.campaign(cell.key).is_none() {
                shard.remove(cell.key);
            }
        }
        for campaign in book.campaigns() {
            shard.publish(campaign);
        }
        if let Some(observer) = &self.observer {
            observer.restored(shard.id, &book);
        }
        shard.due_dirty.store(true, Ordering::Release);
        shard.observer.restored(shard.id, emptied);
        Ok(())
    }

    fn digest(&self) -> u64 {
        self.shard.book.read().digest()
    }
}
