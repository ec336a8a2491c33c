//! Renews a node's certificate before it expires.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use tokio::{sync::watch, time::timeout};

use super::{Authority, MutualTls, NodeCertificate, SecurityError};
use crate::{
    NodeId,
    directory::Directory,
    env::{Blocking, Clock},
};

/// How often to look, beside each change of the directory. A certificate is due ten days before its end; an hour
/// matters only to a node whose clock was set right.
const LOOK_EVERY: Duration = Duration::from_secs(60 * 60);
/// How soon to try again what failed.
const RETRY_AFTER: Duration = Duration::from_secs(60);

/// Issues a certificate when there is none, when the one in use is due, and when the directory has another authority;
/// looks every hour and whenever the directory changes. Ends when the directory's sender is gone; dropping the
/// future at any point is safe.
pub async fn keep_fresh(
    mutual: Arc<MutualTls>,
    data_dir: PathBuf,
    mut directory: watch::Receiver<Arc<Directory>>,
    node_id: NodeId,
    clock: Arc<dyn Clock>,
    blocking: Arc<dyn Blocking>,
) {
    loop {
        let current = directory.borrow_and_update().clone();
        let renewed = match is_due(&mutual, &current, clock.now_ms()) {
            true => renew(&mutual, &data_dir, &current, node_id, clock.now_ms(), &*blocking).await,
            false => Ok(()),
        };
        let wait = match renewed {
            Ok(()) => LOOK_EVERY,
            Err(e) => {
                tracing::warn!(error = %e, "the node's certificate could not be renewed; trying again in a minute");
                RETRY_AFTER
            }
        };
        if let Ok(Err(_)) = timeout(wait, directory.changed()).await {
            return;
        }
    }
}

fn is_due(mutual: &MutualTls, directory: &Directory, now_ms: u64) -> bool {
    let Some(authority) = Authority::certificate_of(directory) else {
        return false;
    };
    mutual.certificate().is_none_or(|ours| ours.needs_renewal(now_ms) || ours.authority_der() != authority)
}

async fn renew(
    mutual: &MutualTls,
    data_dir: &Path,
    directory: &Directory,
    node_id: NodeId,
    now_ms: u64,
    blocking: &dyn Blocking,
) -> Result<(), SecurityError> {
    let Some(authority) = Authority::of(directory)? else {
        return Ok(());
    };
    let certificate = NodeCertificate::issue(&authority, node_id, now_ms)?;
    let not_after_ms = certificate.not_after_ms();
    let data_dir = data_dir.to_owned();
    // A node whose disk is full still needs a valid certificate: it is used in any case, and after a restart the
    // directory's authority makes another.
    let saved = blocking.call(move || (certificate.save(&data_dir), certificate)).await;
    let (saved, certificate) =
        saved.ok_or_else(|| SecurityError::unusable("certificate file", "saving it panicked"))?;
    mutual.install(certificate)?;
    match saved {
        Ok(()) => tracing::info!(node_id, not_after_ms, "the node has a new certificate"),
        Err(e) => tracing::warn!(node_id, not_after_ms, error = %e, "the node has a new certificate, not saved"),
    }
    Ok(())
}
