//! The directory's part in a start: forming the cluster.

use std::{sync::Arc, time::Duration};

use tokio::time::{Instant, timeout_at};

use super::{Leadership, StartError, follow::is_alone, group::Group, shared::Shared};
use crate::{
    directory::{Cluster, Directory},
    proto::{Bootstrap, ClusterRecord, NodeIdentity, NodeRecord, directory_command, directory_reply},
};

/// How long a start waits for the directory. A single node elects itself within a few fsyncs.
const DIRECTORY_TIMEOUT: Duration = Duration::from_secs(30);

/// Waits until the directory can be read; forms the cluster first if there is none. A node that is not alone waits
/// for no leader: it may be the one that the others need for an election.
pub(super) async fn form(shared: &Shared, directory: &Group, identity: &NodeIdentity) -> Result<Cluster, StartError> {
    let (deadline, feature_level) = (deadline(), shared.feature_level);
    if !identity.formed || is_alone(&directory.replica.applied().membership, shared.node_id) {
        let mut leadership = directory.leadership.clone();
        let leads = leadership.wait_for(|now| matches!(now, Leadership::Leader { .. }));
        if !matches!(timeout_at(deadline, leads).await, Ok(Ok(_))) {
            return Err(no_directory());
        }
    }
    if !identity.formed && shared.directory.borrow().cluster.is_none() {
        let cluster = ClusterRecord {
            cluster_id: identity.cluster_id.clone(),
            incarnation: 1,
            shard_count: identity.shard_count,
            feature_level,
            last_node_id: identity.node_id,
            ..Default::default()
        };
        let (node_id, address) = (identity.node_id, shared.member.address.clone());
        let node = NodeRecord { node_id, address, feature_level, ..Default::default() };
        let bootstrap = Bootstrap { cluster: Some(cluster), node: Some(node) };
        let command = directory_command::Command::Bootstrap(bootstrap);
        let why = match shared.tell_directory(command, deadline).await {
            Ok(directory_reply::Reply::Done(_)) => None,
            Ok(other) => Some(format!("{other:?}")),
            Err(e) => Some(e.to_string()),
        };
        if let Some(why) = why {
            return Err(StartError::Raft { group: directory.id(), why });
        }
    }
    await_directory(shared, deadline, |directory| directory.cluster.is_some()).await
}

/// Waits until the directory has arrived at a node that has just joined, and says that it belongs to the cluster.
pub(super) async fn await_membership(shared: &Shared) -> Result<Cluster, StartError> {
    await_directory(shared, deadline(), |directory| directory.nodes.contains_key(&shared.node_id)).await
}

async fn await_directory(
    shared: &Shared,
    deadline: Instant,
    ready: impl FnMut(&Arc<Directory>) -> bool,
) -> Result<Cluster, StartError> {
    let mut state = shared.directory.clone();
    let formed = timeout_at(deadline, state.wait_for(ready)).await;
    formed.ok().and_then(Result::ok).and_then(|directory| directory.cluster.clone()).ok_or_else(no_directory)
}

/// When a start gives up on the directory.
pub(super) fn deadline() -> Instant {
    Instant::now() + DIRECTORY_TIMEOUT
}

fn no_directory() -> StartError {
    StartError::NoDirectory { waited_s: DIRECTORY_TIMEOUT.as_secs() }
}
