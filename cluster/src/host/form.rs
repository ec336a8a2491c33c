//! The directory's part in a start: forming the cluster, talking to it.

use std::{sync::Arc, time::Duration};

use prost::Message;
use tokio::{
    sync::watch,
    time::{Instant, timeout_at},
};

use super::{Leadership, ProposeError, StartError, group::Group};
use crate::{
    directory::{Cluster, Directory},
    proto::{
        Bootstrap, ClusterRecord, DirectoryCommand, DirectoryReply, NodeIdentity, NodeRecord, directory_command,
        directory_reply,
    },
};

/// How long a start waits for the directory's leader. A single node elects itself within a few fsyncs.
const DIRECTORY_TIMEOUT: Duration = Duration::from_secs(30);

/// Waits until the directory can be read; forms the cluster first if there is none.
pub(super) async fn form(
    directory: &Group,
    state: &watch::Receiver<Arc<Directory>>,
    identity: &NodeIdentity,
    address: &str,
    feature_level: u32,
) -> Result<Cluster, StartError> {
    let no_directory = StartError::NoDirectory { waited_s: DIRECTORY_TIMEOUT.as_secs() };
    let deadline = Instant::now() + DIRECTORY_TIMEOUT;
    let mut leadership = directory.leadership.clone();
    let leads = leadership.wait_for(|now| matches!(now, Leadership::Leader { .. }));
    if !matches!(timeout_at(deadline, leads).await, Ok(Ok(_))) {
        return Err(no_directory);
    }
    if state.borrow().cluster.is_none() {
        let cluster = ClusterRecord {
            cluster_id: identity.cluster_id.clone(),
            incarnation: 1,
            shard_count: identity.shard_count,
            feature_level,
            last_node_id: identity.node_id,
            ..Default::default()
        };
        let (node_id, address) = (identity.node_id, address.to_owned());
        let node = NodeRecord { node_id, address, feature_level, ..Default::default() };
        let bootstrap = Bootstrap { cluster: Some(cluster), node: Some(node) };
        let command = directory_command::Command::Bootstrap(bootstrap);
        let why = match tell_directory(directory, command, deadline).await {
            Ok(directory_reply::Reply::Done(_)) => None,
            Ok(other) => Some(format!("{other:?}")),
            Err(e) => Some(e.to_string()),
        };
        if let Some(why) = why {
            return Err(StartError::Raft { group: directory.id(), why });
        }
    }
    let cluster = state.borrow().cluster.clone();
    cluster.ok_or(no_directory)
}

/// Proposes a command to the directory.
pub(super) async fn tell_directory(
    directory: &Group,
    command: directory_command::Command,
    deadline: Instant,
) -> Result<directory_reply::Reply, ProposeError> {
    let command = DirectoryCommand { command: Some(command) }.encode_to_vec();
    let applied = directory.propose(command.into(), deadline).await?;
    let reply = DirectoryReply::decode(applied.reply).ok().and_then(|reply| reply.reply);
    reply.ok_or(ProposeError::Unknown("the directory's reply does not decode"))
}
