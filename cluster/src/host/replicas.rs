//! Opens and closes this node's replicas as the directory says.
//!
//! A replica that is to go must not come back without its memory: a follower that has acknowledged entries and then
//! forgets them breaks consensus. So it is closed to its peers first; then the directory is read linearizably; and
//! only if it still wants the replica gone there is nothing that anybody could count on, and everything is removed.
//!
//! Before that, the records of the directory are made durable: after a restart this node's copy is no older than what
//! it has seen when it removed a log, so a shard that it says we hold and that has no log *was* lost.

use std::{io, sync::Arc, time::Duration};

use tokio::{
    sync::oneshot,
    time::{Instant, sleep},
};

use super::{
    StartError,
    group::{Group, Pristine},
    shared::Shared,
};
use crate::{
    GroupId, ShardId,
    directory::Directory,
    raft::{Replica, codec::Applied, log::GroupLog},
};

/// How long a removal waits for the directory in one go.
const ASK_TIMEOUT: Duration = Duration::from_secs(5);
/// Time between two tries to remove replicas while the directory has no leader.
const TRY_AGAIN: Duration = Duration::from_secs(1);

/// A replica that no peer can reach any more.
struct Closed {
    replica: Arc<Replica>,
    log: GroupLog,
}

/// Whether a shard's replica belongs on this node.
fn belongs_here(shared: &Shared, directory: &Directory, shard: ShardId) -> bool {
    directory.replicas.get(&shard).is_some_and(|replicas| replicas.all().any(|node| node == shared.node_id))
}

/// Whether this node votes in a shard, as its leader has confirmed.
fn votes_here(shared: &Shared, directory: &Directory, shard: ShardId) -> bool {
    directory.replicas.get(&shard).is_some_and(|replicas| replicas.nodes.contains(&shared.node_id))
}

/// Opens what is to be here and removes what is not, for ever. A failure is the node's.
pub(super) async fn follow_directory(shared: Arc<Shared>) {
    let mut directory = shared.directory.clone();
    let mut closed: Vec<Closed> = Vec::new();
    loop {
        let now = directory.borrow_and_update().clone();
        let in_doubt = match step(&shared, &now, &mut closed).await {
            Ok(in_doubt) => in_doubt,
            Err(e) => {
                if !shared.gate.is_stopping() {
                    shared.gate.fatal.fail(format_args!("replicas: {e}"));
                }
                return;
            }
        };
        let alive = tokio::select! {
            changed = directory.changed() => changed.is_ok(),
            () = sleep(TRY_AGAIN), if in_doubt => true,
        };
        if !alive || shared.gate.is_stopping() {
            return;
        }
    }
}

/// Opens and closes. Returns whether something has to wait until the directory can be read linearizably.
async fn step(shared: &Arc<Shared>, directory: &Directory, closed: &mut Vec<Closed>) -> Result<bool, StartError> {
    let mut missing = Vec::new();
    for &shard in directory.replicas.keys() {
        let (group, here) = (shard.group(), shared.groups.get(shard.group()));
        match (belongs_here(shared, directory, shard), here) {
            // It voted, so it had a log. Or this copy of the directory is old, and it has left since.
            (true, None) if votes_here(shared, directory, shard) => missing.push(shard),
            (true, None) if closed.iter().all(|closed| closed.replica.group() != group) => {
                let group = open(shared, shard).await?;
                shared.groups.insert(group);
            }
            (false, Some(here)) => {
                tracing::info!(%shard, "the replica is no longer wanted here");
                shared.groups.remove(group);
                here.stop().await;
                closed.push(Closed { replica: here.replica.clone(), log: here.log.clone() });
            }
            _ => {}
        }
    }
    missing.retain(|shard| closed.iter().all(|closed| closed.replica.group() != shard.group()));
    if closed.is_empty() && missing.is_empty() {
        return Ok(false);
    }
    if shared.read_index(GroupId::DIRECTORY, Instant::now() + ASK_TIMEOUT).await.is_err() {
        return Ok(true);
    }
    let directory = shared.directory.borrow().clone();
    if let Some(lost) = missing.into_iter().find(|shard| votes_here(shared, &directory, *shard)) {
        return Err(StartError::LostGroup { group: lost.group() });
    }
    for Closed { replica, log } in closed.drain(..) {
        let group = replica.group();
        if directory
            .replicas
            .iter()
            .any(|(shard, _)| shard.group() == group && belongs_here(shared, &directory, *shard))
        {
            // It is wanted after all, and remembers everything.
            shared.groups.insert(Group::start(shared, replica, log, Pristine::Wait).await?);
        } else {
            remove(shared, replica).await.map_err(|source| StartError::Io { what: "removing a replica", source })?;
        }
    }
    Ok(false)
}

/// Opens the replica of a shard that was not here before.
async fn open(shared: &Arc<Shared>, shard: ShardId) -> Result<Arc<Group>, StartError> {
    let group = shard.group();
    let failed = |source| StartError::Io { what: "opening a replica", source };
    let on_thread = shared.clone();
    let opened = shared.env.blocking.call(move || {
        let shared = on_thread;
        // What a removal that was cut short has left behind.
        shared.stores.state.remove_group(group)?;
        shared.stores.snapshots.remove_group(group)?;
        let log = GroupLog::open(shared.log.clone(), group, Default::default(), shared.gate.fatal.clone())?;
        io::Result::Ok(((shared.factory)(shard), log))
    });
    let panicked = || failed(io::Error::other("the machine's maker panicked"));
    let (machine, log) = opened.await.ok_or_else(panicked)?.map_err(failed)?;
    let replica = shared.stores.flusher.add(group, machine, Applied::default(), log.gate().clone());
    tracing::info!(%shard, "a replica is opened here");
    Group::start(shared, replica, log, Pristine::Wait).await
}

/// Removes every trace of a replica. The log goes first: without one the rest means nothing.
async fn remove(shared: &Arc<Shared>, replica: Arc<Replica>) -> io::Result<()> {
    let group = replica.group();
    // See the module: the directory's records first.
    shared.stores.flusher.flush().await?;
    shared.stores.flusher.remove(group).await;
    let _publishing = replica.publishing().await;
    let (tx, removed) = oneshot::channel();
    shared.log.remove_group(group, Box::new(move |result| drop(tx.send(result))));
    removed.await.unwrap_or_else(|_| Err(io::Error::other("the log store dropped a removal")))?;
    let on_thread = shared.clone();
    let machine = replica.clone();
    let removed = shared.env.blocking.call(move || {
        on_thread.stores.state.remove_group(group)?;
        on_thread.stores.snapshots.remove_group(group)?;
        // Whoever kept a hold of the machine sees it empty.
        machine.replace(&mut std::iter::empty(), Applied::default())
    });
    removed.await.unwrap_or_else(|| Err(io::Error::other("the removal panicked")))?;
    tracing::info!(%group, "the replica is removed");
    Ok(())
}

#[cfg(test)]
mod tests;
