//! The directory's commands about nodes, replicas and the feature level.

use std::{collections::BTreeSet, sync::Arc};

use super::{
    machine::{DirectoryMachine, done},
    state::{Cluster, Key, NodeInfo, same_nodes},
};
use crate::{
    NodeId, ShardId,
    proto::{self, AddNode, ConfirmReplicas, DirectoryDone, SetTargets, UpdateNode, directory_reply::Reply},
};

/// Most nodes: each of them has a replica of the directory.
pub const MAX_NODES: usize = 64;
/// Longest address of a node.
const MAX_ADDRESS_BYTES: usize = 255;
/// Bytes of a join nonce.
const JOIN_NONCE_BYTES: usize = 16;

fn check_address(address: &str) -> Result<(), String> {
    if address.is_empty() || address.len() > MAX_ADDRESS_BYTES {
        return Err(format!("a node's address must have 1 to {MAX_ADDRESS_BYTES} bytes"));
    }
    Ok(())
}

impl DirectoryMachine {
    fn cluster(&self) -> Result<&Cluster, String> {
        self.state.cluster.as_ref().ok_or_else(|| "there is no cluster yet".into())
    }

    /// A node must know at least what may be proposed already.
    fn check_level(&self, feature_level: u32) -> Result<(), String> {
        let level = self.cluster()?.feature_level;
        if feature_level < level {
            return Err(format!("the cluster has feature level {level}, the node knows {feature_level} only"));
        }
        Ok(())
    }

    fn check_known(&self, node: NodeId) -> Result<(), String> {
        if !self.state.nodes.contains_key(&node) {
            return Err(format!("there is no node {node}"));
        }
        Ok(())
    }

    fn check_nodes(&self, shard: u32, node_ids: &[NodeId]) -> Result<(), String> {
        let distinct: BTreeSet<_> = node_ids.iter().collect();
        if node_ids.is_empty() || distinct.len() != node_ids.len() {
            return Err(format!("shard {shard}: it is on one node at least, and on none twice"));
        }
        let known = node_ids.iter().try_for_each(|node| self.check_known(*node));
        known.map_err(|why| format!("shard {shard}: {why}"))
    }

    pub(super) fn add_node(&mut self, index: u64, command: AddNode) -> Result<Reply, String> {
        let AddNode { address, feature_level, join_nonce } = command;
        if join_nonce.len() != JOIN_NONCE_BYTES {
            return Err(format!("the join nonce must have {JOIN_NONCE_BYTES} bytes"));
        }
        let known = self.state.nodes.iter().find(|(_, node)| node.join_nonce == join_nonce).map(|(id, _)| *id);
        if let Some(node_id) = known {
            // It did not hear the answer, and may be somewhere else by now.
            self.update_node(index, UpdateNode { node_id, address, feature_level })?;
            return Ok(Reply::Done(DirectoryDone { revision: index, node_id }));
        }
        check_address(&address)?;
        self.check_level(feature_level)?;
        if self.state.nodes.len() >= MAX_NODES {
            return Err(format!("there are {MAX_NODES} nodes already"));
        }
        let state = Arc::make_mut(&mut self.state);
        let cluster = state.cluster.as_mut().ok_or("there is no cluster yet")?;
        cluster.last_node_id += 1;
        cluster.placement_generation += 1;
        let node_id = cluster.last_node_id;
        state.nodes.insert(node_id, NodeInfo { address, feature_level, join_nonce });
        self.changed.extend([Key::Cluster, Key::Node(node_id)]);
        Ok(Reply::Done(DirectoryDone { revision: index, node_id }))
    }

    pub(super) fn update_node(&mut self, index: u64, command: UpdateNode) -> Result<Reply, String> {
        let UpdateNode { node_id, address, feature_level } = command;
        check_address(&address)?;
        self.check_level(feature_level)?;
        self.check_known(node_id)?;
        if let Some(node) = Arc::make_mut(&mut self.state).nodes.get_mut(&node_id) {
            (node.address, node.feature_level) = (address, feature_level);
            self.changed.insert(Key::Node(node_id));
        }
        Ok(done(index))
    }

    pub(super) fn set_targets(&mut self, index: u64, command: SetTargets) -> Result<Reply, String> {
        let SetTargets { targets, placement_generation } = command;
        let generation = self.cluster()?.placement_generation;
        if placement_generation != generation {
            return Err(format!("planned from generation {placement_generation}, it is {generation} by now"));
        }
        let shards: BTreeSet<_> = targets.iter().map(|target| target.shard).collect();
        if targets.is_empty() || shards.len() != targets.len() {
            return Err("a plan is about one shard at least, and about none twice".into());
        }
        for proto::Target { shard, node_ids } in &targets {
            let replicas = self.state.replicas.get(&ShardId(*shard));
            let replicas = replicas.ok_or_else(|| format!("there is no shard {shard}"))?;
            self.check_nodes(*shard, node_ids)?;
            // Another order is another preferred leader: nothing has to be copied for that.
            if !replicas.settled() && !same_nodes(&replicas.target, node_ids) {
                return Err(format!("shard {shard} is on its way to {:?}", replicas.target));
            }
        }
        let state = Arc::make_mut(&mut self.state);
        if let Some(cluster) = &mut state.cluster {
            cluster.placement_generation += 1;
            self.changed.insert(Key::Cluster);
        }
        for proto::Target { shard, node_ids } in targets {
            if let Some(replicas) = state.replicas.get_mut(&ShardId(shard)) {
                replicas.target = node_ids;
                self.changed.insert(Key::Replicas(ShardId(shard)));
            }
        }
        Ok(done(index))
    }

    pub(super) fn confirm_replicas(&mut self, index: u64, command: ConfirmReplicas) -> Result<Reply, String> {
        let ConfirmReplicas { shard, node_ids, membership_index } = command;
        self.check_nodes(shard, &node_ids)?;
        let state = Arc::make_mut(&mut self.state);
        let replicas = state.replicas.get_mut(&ShardId(shard)).ok_or_else(|| format!("there is no shard {shard}"))?;
        // What a former leader has said arrives late: believed, it would bring back replicas that are gone.
        if membership_index < replicas.membership_index {
            return Err(format!("shard {shard}: a later membership is known, of index {}", replicas.membership_index));
        }
        (replicas.nodes, replicas.membership_index) = (node_ids, membership_index);
        self.changed.insert(Key::Replicas(ShardId(shard)));
        Ok(done(index))
    }

    pub(super) fn raise_feature_level(&mut self, index: u64, level: u32) -> Result<Reply, String> {
        let now = self.cluster()?.feature_level;
        if level < now {
            return Err(format!("the cluster has feature level {now} already"));
        }
        if let Some((id, node)) = self.state.nodes.iter().find(|(_, node)| node.feature_level < level) {
            return Err(format!("node {id} knows feature level {} only", node.feature_level));
        }
        if let Some(cluster) = &mut Arc::make_mut(&mut self.state).cluster {
            cluster.feature_level = level;
            self.changed.insert(Key::Cluster);
        }
        Ok(done(index))
    }
}
