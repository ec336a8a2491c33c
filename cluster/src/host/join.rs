//! A new node's way into a cluster, and its certificate.

use std::sync::Arc;

use tokio::time::Instant;

use super::{HostConfig, StartError, identity::DataDir, start::check_shards};
use crate::{
    NodeId,
    directory::MAX_SHARDS,
    env::Env,
    peer,
    proto::{JoinRequest, JoinResponse, NodeIdentity},
    security::{JoinToken, MutualTls, NodeCertificate, NodeKey, PeerSecurity, SecurityError},
};

/// What a node that has just been taken up got.
pub(super) struct Welcome {
    /// Where its peers are.
    pub(super) peers: Vec<(NodeId, String)>,
    certificate: Option<NodeCertificate>,
}

/// Asks the cluster to take this node up; the same request as before if it has asked before. Writes down its id.
pub(super) async fn join(
    env: &Env,
    config: &HostConfig,
    data: &DataDir,
    identity: &mut NodeIdentity,
    address: &str,
) -> Result<Welcome, StartError> {
    let join = config.join.as_ref().ok_or(StartError::NotJoined)?;
    let refused = |why: &dyn ToString| StartError::Join(why.to_string());
    let mut request = JoinRequest {
        address: address.to_owned(),
        feature_level: config.feature_level,
        nonce: identity.join_nonce.clone(),
        ..Default::default()
    };
    let secure = if config.plaintext_peers {
        None
    } else {
        let token = JoinToken::parse(&join.token).map_err(|e| refused(&e))?;
        let key = NodeKey::generate().map_err(|e| refused(&e))?;
        request.secret = token.secret.to_vec().into();
        request.signing_request = key.signing_request().map_err(|e| refused(&e))?.into();
        Some((token, key))
    };
    let token = secure.as_ref().map(|(token, _)| token);
    let answer = peer::join(env, join, token, request, Instant::now() + config.join_timeout).await;
    let answer = answer.map_err(|e| refused(&e))?;
    check(&answer, identity).map_err(|e| refused(&e))?;

    let certificate = match secure {
        None => None,
        Some((token, _)) if !token.pins(&answer.authority) => {
            return Err(refused(&"the answer comes from another cluster than the join token is for"));
        }
        Some((_, key)) => {
            let certificate = NodeCertificate::new(key, answer.certificate.to_vec(), answer.authority.to_vec());
            let certificate = certificate.map_err(|e| refused(&e))?;
            if certificate.node_id() != answer.node_id || certificate.cluster_id()[..] != answer.cluster_id[..] {
                return Err(refused(&"the certificate is for another node"));
            }
            Some(certificate)
        }
    };
    let certificate = match certificate {
        None => None,
        Some(certificate) => Some(save(env, config, certificate).await.map_err(|e| refused(&e))?),
    };
    identity.node_id = answer.node_id;
    identity.cluster_id = answer.cluster_id;
    identity.shard_count = answer.shard_count;
    check_shards(identity, config.shards)?;
    data.write_identity(identity)?;
    tracing::info!(node_id = identity.node_id, "this node was taken up by the cluster");
    Ok(Welcome { peers: answer.peers.into_iter().map(|peer| (peer.node_id, peer.address)).collect(), certificate })
}

async fn save(env: &Env, config: &HostConfig, certificate: NodeCertificate) -> Result<NodeCertificate, SecurityError> {
    let dir = config.data_dir.clone();
    let saved = env.blocking.call(move || certificate.save(&dir).map(|()| certificate)).await;
    saved.unwrap_or_else(|| Err(SecurityError::Refused("saving the certificate panicked".into())))
}

/// Whether an answer makes sense; a node that was taken up before stays who it is.
fn check(answer: &JoinResponse, identity: &NodeIdentity) -> Result<(), String> {
    if answer.node_id == 0 || answer.cluster_id.len() != 16 || !(1..=MAX_SHARDS).contains(&answer.shard_count) {
        return Err("the answer lacks node id, cluster id or number of shards".into());
    }
    if identity.node_id != 0 && (identity.node_id != answer.node_id || identity.cluster_id != answer.cluster_id) {
        return Err(format!("this node is node {} of another cluster", identity.node_id));
    }
    Ok(())
}

/// How this node talks to its peers: with the certificate it just got, or the one on disk. Without any it talks to
/// nobody until [`crate::security::keep_fresh`] has made one.
pub(super) async fn security(
    env: &Env,
    config: &HostConfig,
    cluster_id: [u8; 16],
    node_id: NodeId,
    welcome: Option<Welcome>,
) -> Result<PeerSecurity, StartError> {
    if config.plaintext_peers {
        return Ok(PeerSecurity::Plaintext);
    }
    let mutual: Arc<MutualTls> = MutualTls::new(cluster_id, env.clock.clone());
    let certificate = match welcome.and_then(|welcome| welcome.certificate) {
        Some(fresh) => Some(fresh),
        None => {
            let dir = config.data_dir.clone();
            match env.blocking.call(move || NodeCertificate::load(&dir)).await {
                Some(Ok(certificate)) => certificate,
                Some(Err(e)) => {
                    tracing::warn!(error = %e, "the node's certificate can't be used; a new one is made");
                    None
                }
                None => return Err(StartError::Security("reading the certificate panicked".into())),
            }
        }
    };
    if let Some(certificate) = certificate.filter(|certificate| certificate.node_id() == node_id) {
        mutual.install(certificate).map_err(|e| StartError::Security(e.to_string()))?;
    }
    Ok(PeerSecurity::Mutual(mutual))
}
