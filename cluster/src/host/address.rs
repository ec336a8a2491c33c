//! Where the nodes are: what the directory says, and what they say themselves.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use futures::future::join_all;
use tokio::time::{Instant, sleep, timeout};
use tonic::Request;

use super::shared::Shared;
use crate::{
    NodeId,
    proto::{AnnounceRequest, PeerAddress, UpdateNode, directory_command, peer_service_client::PeerServiceClient},
};

/// One announcement to one peer.
const ANNOUNCE_TIMEOUT: Duration = Duration::from_secs(2);
/// One try to write this node's address into the directory.
const UPDATE_TIMEOUT: Duration = Duration::from_secs(5);
/// Time between two rounds; peers may be starting too.
const ROUND: Duration = Duration::from_millis(250);
/// Time between two rounds to those that open no link.
const KNOCK: Duration = Duration::from_secs(2);
/// Different reasons for which peers did not listen that are told of, each once: the rounds go on for ever.
const REASONS_TOLD: usize = 32;

/// Keeps the links to exactly the nodes that the directory knows, for ever.
pub(super) async fn follow_addresses(shared: Arc<Shared>) {
    let mut directory = shared.directory.clone();
    loop {
        let now = directory.borrow_and_update().clone();
        // Before the directory has arrived there is what the cluster said when this node joined.
        // A copy without this node is older than that: the log that brings the directory begins long ago.
        if now.nodes.contains_key(&shared.node_id) {
            let addresses = now.nodes.iter().map(|(id, node)| (*id, node.address.clone())).collect();
            let newest = now.cluster.as_ref().map_or(0, |cluster| cluster.last_node_id);
            shared.peers.set_addresses(addresses, newest);
        }
        if directory.changed().await.is_err() {
            return;
        }
    }
}

/// Tells the peers where this node is now, and the directory, if it says something else (or an older feature level).
/// Ends when a majority has heard it and the directory says so too. `hints` are addresses where nodes of the cluster may
/// be: if all have moved, nobody is where the directory says.
pub(super) async fn announce(shared: Arc<Shared>, hints: Vec<String>) {
    let mut heard: BTreeSet<NodeId> = [shared.node_id].into();
    let mut told_why: BTreeSet<(NodeId, String)> = BTreeSet::new();
    for round in 0.. {
        let directory = shared.directory.borrow().clone();
        let known = directory
            .nodes
            .get(&shared.node_id)
            .is_some_and(|node| node.address == shared.member.address && node.feature_level == shared.feature_level);
        if known || shared.gate.is_stopping() {
            return;
        }
        let peers = shared.peers.addresses();
        let unaware = peers.keys().copied().filter(|node| !heard.contains(node));
        let told = join_all(unaware.map(async |node| (node, tell(&shared, node).await))).await;
        for (node, told) in told {
            match told {
                Ok(()) => drop(heard.insert(node)),
                Err(why) if told_why.len() < REASONS_TOLD && told_why.insert((node, why.clone())) => {
                    tracing::warn!(peer = node, why, "a peer did not take this node's address");
                }
                Err(_) => {}
            }
        }
        let lost = directory.nodes.iter().filter(|(node, _)| !heard.contains(node));
        if heard.len() <= directory.nodes.len() / 2 {
            for (place, (node, info)) in lost.enumerate().filter(|_| !hints.is_empty()) {
                // A guess that is wrong finds another node there than it has to be, and fails.
                let guesses: Vec<&String> = hints.iter().chain([&info.address]).collect();
                shared.peers.learn_address(*node, guesses[(round + place) % guesses.len()].clone());
            }
        } else {
            for (node, info) in lost.filter(|_| !hints.is_empty()) {
                // No more guesses: it may come back where it was.
                shared.peers.learn_address(*node, info.address.clone());
            }
            let (node_id, feature_level) = (shared.node_id, shared.feature_level);
            let update = UpdateNode { node_id, address: shared.member.address.clone(), feature_level };
            let command = directory_command::Command::UpdateNode(update);
            match shared.tell_directory(command, Instant::now() + UPDATE_TIMEOUT).await {
                Ok(reply) => tracing::info!(?reply, "told the directory this node's address and feature level"),
                Err(error) => tracing::warn!(%error, "the directory does not know this node's address yet"),
            }
        }
        sleep(ROUND).await;
    }
}

/// Announces this node to peers that should have opened a link and have not, for ever. One that was away while this node
/// joined does not know it, and this node may be the only one that would tell it: the directory's leader.
pub(super) async fn knock(shared: Arc<Shared>) {
    while !shared.gate.is_stopping() {
        sleep(KNOCK).await;
        // Who can't be reached is asked again; it is told of elsewhere that there is no link.
        let _ = join_all(shared.peers.waited_for().into_iter().map(|node| tell(&shared, node))).await;
    }
}

/// Tells one peer, and learns from it where the others are. An error says why it did not listen.
async fn tell(shared: &Shared, node: NodeId) -> Result<(), String> {
    let channel = shared.peers.channel(node).ok_or("there is no way to the node")?;
    let from = PeerAddress { node_id: shared.node_id, address: shared.member.address.clone() };
    let mut request = Request::new(AnnounceRequest {
        cluster_id: shared.cluster_id.to_vec().into(),
        from: Some(from),
        feature_level: shared.feature_level,
    });
    request.set_timeout(ANNOUNCE_TIMEOUT);
    let answer = timeout(ANNOUNCE_TIMEOUT, PeerServiceClient::new(channel).announce(request)).await;
    let answer = answer.map_err(|_| "no answer in time")?.map_err(|status| status.message().to_owned())?;
    let known = shared.peers.addresses();
    for peer in answer.into_inner().peers {
        let news = known.get(&peer.node_id).is_some_and(|address| *address != peer.address);
        // Of itself the peer knows best, and of this node this one does.
        if news && peer.node_id != shared.node_id && peer.node_id != node {
            shared.peers.learn_address(peer.node_id, peer.address);
        }
    }
    Ok(())
}
