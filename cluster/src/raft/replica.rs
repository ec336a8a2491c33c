//! One group's machine on this node.

use std::{
    any::Any,
    io,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
};

use openraft::EntryPayload;
use parking_lot::Mutex;
use tokio::sync::{Notify, watch};

use super::{
    codec::{self, Applied},
    log::FlushGate,
    types::{Entry, LeaderId, LogId, Reply, StoredMembership},
};
use crate::{GroupId, Machine, Record, RecordChange, host::Fatal};

/// Applies after which changed records are made durable at once: bounds what a restart has to apply again and the
/// size of one batch, while a hot record is still written once for thousands of changes.
const FLUSH_AFTER_APPLIES: u64 = 20_000;

/// Wakes the flushing task.
#[derive(Debug)]
pub(super) struct FlushSignals {
    /// Something is to be flushed, some time.
    pub(super) dirty: Notify,
    /// Do it now.
    pub(super) now: Notify,
    /// Nothing will be flushed any more.
    pub(super) stopped: watch::Sender<bool>,
}

impl Default for FlushSignals {
    fn default() -> Self {
        Self { dirty: Notify::new(), now: Notify::new(), stopped: watch::Sender::new(false) }
    }
}

impl FlushSignals {
    /// Waits for something on disk, but not longer than there is somebody to put it there.
    pub(super) async fn or_stopped(&self, on_disk: impl Future<Output = ()>) -> io::Result<()> {
        let mut stopped = self.stopped.subscribe();
        tokio::select! {
            () = on_disk => Ok(()),
            // The sender lives in `self`.
            _ = stopped.wait_for(|stopped| *stopped) => Err(io::Error::other("the node is stopping")),
        }
    }
}

struct Core {
    machine: Box<dyn Machine>,
    applied: Applied,
    /// The entry the last cut was made at.
    cut_at: Option<LogId>,
    applies_since_cut: u64,
    /// A panic left the machine half way through something.
    broken: bool,
}

/// What changed since the last cut, and what the records stand for together with it.
pub(super) struct Cut {
    pub(super) changes: Vec<RecordChange>,
    pub(super) applied: Applied,
}

/// A consistent picture of a machine.
pub(super) struct Picture {
    pub(super) records: Box<dyn Iterator<Item = Record> + Send>,
    pub(super) applied: Applied,
}

/// One group's machine, and what it stands for. All that looks at the machine does so between two applies.
pub struct Replica {
    group: GroupId,
    core: Mutex<Core>,
    gate: FlushGate,
    signals: Arc<FlushSignals>,
    /// The index the durable records stand for.
    durable: watch::Sender<Option<u64>>,
    /// Who proposed the entry applied last.
    applied_by: watch::Sender<Option<LeaderId>>,
    /// Publications of this group's snapshot go one after the other.
    pub(super) publishing: tokio::sync::Mutex<()>,
    fatal: Fatal,
}

impl Replica {
    /// A replica whose machine and durable records stand for `applied`.
    pub(super) fn new(
        group: GroupId,
        machine: Box<dyn Machine>,
        applied: Applied,
        gate: FlushGate,
        signals: Arc<FlushSignals>,
        fatal: Fatal,
    ) -> Self {
        let last = applied.last;
        Self {
            group,
            core: Mutex::new(Core { machine, applied, cut_at: last, applies_since_cut: 0, broken: false }),
            gate,
            signals,
            durable: watch::Sender::new(last.map(|id| id.index)),
            applied_by: watch::Sender::new(last.map(|id| id.leader_id)),
            publishing: tokio::sync::Mutex::default(),
            fatal,
        }
    }

    /// The group.
    pub fn group(&self) -> GroupId {
        self.group
    }

    /// The entry applied last and the configuration in force.
    pub fn applied(&self) -> Applied {
        self.core.lock().applied.clone()
    }

    /// The index applied last and the machine's digest, taken together. `None` in place of the index: nothing was
    /// applied yet.
    pub fn digest(&self) -> io::Result<(Option<u64>, u64)> {
        self.with_core(|core| (core.applied.last.map(|id| id.index), core.machine.digest()))
    }

    /// The index the durable records stand for.
    pub fn durable(&self) -> Option<u64> {
        *self.durable.borrow()
    }

    /// Who proposed the entry applied last; changes with the term only.
    pub fn applied_by(&self) -> watch::Receiver<Option<LeaderId>> {
        self.applied_by.subscribe()
    }

    /// Keeps snapshots of this group from being published.
    pub(crate) async fn publishing(&self) -> tokio::sync::MutexGuard<'_, ()> {
        self.publishing.lock().await
    }

    /// Waits until the log is flushed up to `index`.
    ///
    /// # Errors
    /// The node stops before.
    pub(super) async fn log_flushed(&self, index: u64) -> io::Result<()> {
        self.signals.or_stopped(self.gate.wait(index)).await
    }

    /// Runs `work` between two applies. A panic of the machine stops the node: its invariants are broken.
    fn with_core<T>(&self, work: impl FnOnce(&mut Core) -> T) -> io::Result<T> {
        let mut core = self.core.lock();
        if core.broken {
            return Err(io::Error::other(format!("the machine of {} is broken", self.group)));
        }
        catch_unwind(AssertUnwindSafe(|| work(&mut core))).map_err(|panic| {
            core.broken = true;
            let what = format!("the machine of {} panicked: {}", self.group, panic_text(&*panic));
            self.fatal.fail(&what);
            io::Error::other(what)
        })
    }

    /// Applies one entry.
    pub(super) fn apply(&self, entry: Entry) -> io::Result<Reply> {
        let id = entry.log_id;
        let (reply, applies, new_leader) = self.with_core(|core| {
            let reply = match entry.payload {
                EntryPayload::Blank => Reply::default(),
                EntryPayload::Normal(command) => Reply(core.machine.apply(id.index, &command.0)),
                EntryPayload::Membership(membership) => {
                    core.applied.membership = StoredMembership::new(Some(id), membership);
                    Reply::default()
                }
            };
            let new_leader = core.applied.last.map(|last| last.leader_id) != Some(id.leader_id);
            core.applied.last = Some(id);
            core.applies_since_cut += 1;
            (reply, core.applies_since_cut, new_leader)
        })?;
        if new_leader {
            self.applied_by.send_replace(Some(id.leader_id));
        }
        if applies == 1 {
            self.signals.dirty.notify_one();
        } else if applies == FLUSH_AFTER_APPLIES {
            self.signals.now.notify_one();
        }
        Ok(reply)
    }

    /// Cuts between two applies: what changed since the last cut. `None`: nothing was applied since.
    pub(super) fn cut(&self) -> io::Result<Option<Cut>> {
        self.with_core(|core| {
            if core.cut_at == core.applied.last {
                return None;
            }
            core.cut_at = core.applied.last;
            core.applies_since_cut = 0;
            Some(Cut { changes: core.machine.take_changes(), applied: core.applied.clone() })
        })
    }

    /// The records of a cut are durable.
    pub(super) fn set_durable(&self, applied: &Applied) {
        self.durable.send_replace(applied.last.map(|id| id.index));
    }

    /// Has the records that `index` changed made durable, and waits for it.
    ///
    /// # Errors
    /// The node stops before.
    pub(super) async fn flush_records(&self, index: u64) -> io::Result<()> {
        let mut durable = self.durable.subscribe();
        if *durable.borrow_and_update() >= Some(index) {
            return Ok(());
        }
        self.signals.dirty.notify_one();
        self.signals.now.notify_one();
        // The sender lives in `self`.
        let flushed = async { drop(durable.wait_for(|durable| *durable >= Some(index)).await) };
        self.signals.or_stopped(flushed).await
    }

    /// A picture of the machine, taken between two applies.
    pub(super) fn picture(&self) -> io::Result<Picture> {
        self.with_core(|core| Picture { records: core.machine.snapshot(), applied: core.applied.clone() })
    }

    /// Replaces the machine's state. The caller replaces the durable records with the same.
    pub(crate) fn replace(&self, records: &mut dyn Iterator<Item = Record>, applied: Applied) -> io::Result<()> {
        let last = applied.last;
        self.with_core(|core| {
            core.machine.restore(records).map_err(codec::damaged)?;
            // What was restored is what the store holds.
            drop(core.machine.take_changes());
            core.cut_at = last;
            core.applied = applied;
            core.applies_since_cut = 0;
            io::Result::Ok(())
        })??;
        self.applied_by.send_replace(last.map(|id| id.leader_id));
        Ok(())
    }
}

/// The message of a panic.
fn panic_text(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<&str>().copied();
    text.or_else(|| panic.downcast_ref::<String>().map(String::as_str)).unwrap_or("no message")
}
