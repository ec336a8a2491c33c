//! The one task per node that makes changed records durable: one sync serves all groups.

use std::{io, sync::Arc, time::Duration};

use parking_lot::Mutex;

use super::{
    codec::{self, Applied},
    log::FlushGate,
    replica::{Cut, FlushSignals, Replica},
};
use crate::{GroupId, Machine, env::Blocking, host::Fatal, storage::StateStore};

/// Time from the first change to the batch that makes it durable. Nothing is lost when it is long (the log has it
/// all), a restart just has more to apply again; shorter means more syncs beside the log's.
const FLUSH_INTERVAL: Duration = Duration::from_secs(1);

/// Makes the changed records of all groups of a node durable.
pub struct Flusher {
    state: Arc<dyn StateStore>,
    blocking: Arc<dyn Blocking>,
    signals: Arc<FlushSignals>,
    replicas: Mutex<Vec<Arc<Replica>>>,
    /// One pass at a time. Whoever replaces a group's records holds it too, so that no batch cut before lands on
    /// top of them.
    pass: tokio::sync::Mutex<()>,
    fatal: Fatal,
}

impl Flusher {
    /// A flusher without groups. [`Flusher::run`] does its work.
    pub fn new(state: Arc<dyn StateStore>, blocking: Arc<dyn Blocking>, fatal: Fatal) -> Arc<Self> {
        Arc::new(Self {
            state,
            blocking,
            signals: Arc::default(),
            replicas: Mutex::default(),
            pass: tokio::sync::Mutex::default(),
            fatal,
        })
    }

    /// Adds a group whose machine and durable records stand for `applied`.
    pub fn add(&self, group: GroupId, machine: Box<dyn Machine>, applied: Applied, gate: FlushGate) -> Arc<Replica> {
        let replica = Replica::new(group, machine, applied, gate, self.signals.clone(), self.fatal.clone());
        let replica = Arc::new(replica);
        self.replicas.lock().push(replica.clone());
        replica
    }

    /// Lets go of a group. No batch of it is written any more.
    pub(crate) async fn remove(&self, group: GroupId) {
        let _pass = self.pass.lock().await;
        self.replicas.lock().retain(|replica| replica.group() != group);
    }

    /// Flushes some time after something changed, sooner when a lot did. Costs nothing while nothing changes.
    /// Returns when stopped, or after a failure, which is reported as the node's.
    pub async fn run(self: Arc<Self>) {
        loop {
            self.signals.dirty.notified().await;
            tokio::select! {
                () = self.signals.now.notified() => {}
                () = tokio::time::sleep(FLUSH_INTERVAL) => {}
            }
            if let Err(e) = self.flush().await {
                if !*self.signals.stopped.borrow() {
                    self.fatal.fail(format_args!("state store: {e}"));
                    self.stop();
                }
                return;
            }
        }
    }

    /// Makes everything applied so far durable, never ahead of the groups' flushed logs.
    ///
    /// # Errors
    /// The state store's (final, since what was cut is lost with it), or the node stops before the log is flushed.
    pub async fn flush(&self) -> io::Result<()> {
        let _pass = self.pass.lock().await;
        let replicas = self.replicas.lock().clone();
        let mut cuts: Vec<(Arc<Replica>, Cut)> = Vec::new();
        for replica in replicas {
            if let Some(cut) = replica.cut()? {
                cuts.push((replica, cut));
            }
        }
        if cuts.is_empty() {
            return Ok(());
        }
        for (replica, cut) in &cuts {
            if let Some(last) = cut.applied.last {
                replica.log_flushed(last.index).await?;
            }
        }
        let state = self.state.clone();
        let written = self.blocking.call(move || {
            for (replica, cut) in &cuts {
                state.write(replica.group(), &cut.changes, &codec::encode_applied(&cut.applied))?;
            }
            state.sync()?;
            for (replica, cut) in &cuts {
                replica.set_durable(&cut.applied);
            }
            io::Result::Ok(())
        });
        written.await.unwrap_or_else(|| Err(io::Error::other("the write was given up")))
    }

    /// Ends all waiting for the disk: nothing will be flushed any more.
    pub fn stop(&self) {
        self.signals.stopped.send_replace(true);
    }

    /// Keeps passes out while a group's records are replaced.
    pub(super) async fn pause(&self) -> tokio::sync::MutexGuard<'_, ()> {
        self.pass.lock().await
    }
}
