//! What one node does for all: the one that leads the directory.

use std::{sync::Arc, time::Duration};

use tokio::time::{Instant, sleep};

use super::{Leadership, shared::Shared};
use crate::{
    GroupId,
    directory::Directory,
    placement::{feature, spread},
    proto::{RaiseFeatureLevel, SetTargets, Target, directory_command, directory_reply},
};

/// Time for a command of the directory.
const COMMAND_TIMEOUT: Duration = Duration::from_secs(5);
/// Wait after a failure, doubled each time.
const FIRST_WAIT: Duration = Duration::from_millis(50);
const LONGEST_WAIT: Duration = Duration::from_secs(5);

/// Says where shards are to be, and raises the feature level, whenever something has changed. Runs for ever.
pub(super) async fn coordinate(shared: Arc<Shared>) {
    let Some(mut leadership) = shared.leaders.watch(GroupId::DIRECTORY) else { return };
    let mut directory = shared.directory.clone();
    let mut wait = FIRST_WAIT;
    while !shared.gate.is_stopping() {
        let leads = matches!(*leadership.borrow_and_update(), Leadership::Leader { .. });
        let now = directory.borrow_and_update().clone();
        let next = if leads { next(&now) } else { None };
        match next {
            Some(command) => {
                let done = shared.tell_directory(command, Instant::now() + COMMAND_TIMEOUT).await;
                let why = match done {
                    Ok(directory_reply::Reply::Done(_)) => {
                        wait = FIRST_WAIT;
                        continue;
                    }
                    // Something has changed in between: there is another plan by now.
                    Ok(directory_reply::Reply::Refused(why)) => why,
                    Ok(other) => format!("{other:?}"),
                    Err(e) => e.to_string(),
                };
                if wait > FIRST_WAIT {
                    tracing::warn!(why, "the directory took no plan; it is made anew");
                }
                sleep(wait).await;
                wait = (2 * wait).min(LONGEST_WAIT);
            }
            None => {
                let alive = tokio::select! {
                    changed = leadership.changed() => changed.is_ok(),
                    changed = directory.changed() => changed.is_ok(),
                };
                if !alive {
                    return;
                }
            }
        }
    }
}

/// What is to be said next, if anything.
fn next(directory: &Directory) -> Option<directory_command::Command> {
    let cluster = directory.cluster.as_ref()?;
    let levels = directory.nodes.values().map(|node| node.feature_level);
    if let Some(feature_level) = feature::raise(cluster.feature_level, levels) {
        tracing::info!(
            from = cluster.feature_level,
            to = feature_level,
            "raises the feature level: every node knows it"
        );
        return Some(directory_command::Command::RaiseFeatureLevel(RaiseFeatureLevel { feature_level }));
    }
    let steps = spread::plan(&directory.nodes.keys().copied().collect(), &directory.replicas);
    if steps.is_empty() {
        return None;
    }
    for spread::Step { shard, target, why } in &steps {
        tracing::info!(%shard, ?target, why, "plans");
    }
    let targets = steps.into_iter().map(|step| Target { shard: step.shard.0, node_ids: step.target }).collect();
    let placement_generation = cluster.placement_generation;
    Some(directory_command::Command::SetTargets(SetTargets { targets, placement_generation }))
}
