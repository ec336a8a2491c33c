//! Renews a node's certificate before it expires.

use std::{path::PathBuf, sync::Arc};

use tokio::sync::watch;

use super::MutualTls;
use crate::{
    NodeId,
    directory::Directory,
    env::{Blocking, Clock},
};

/// Issues a certificate when there is none, when the one in use is due, and when the directory has another authority;
/// looks every hour and whenever the directory changes. Ends when the directory's sender is gone; dropping the
/// future at any point is safe.
pub async fn keep_fresh(
    mutual: Arc<MutualTls>,
    data_dir: PathBuf,
    directory: watch::Receiver<Arc<Directory>>,
    node_id: NodeId,
    clock: Arc<dyn Clock>,
    blocking: Arc<dyn Blocking>,
) {
    let _ = (mutual, data_dir, directory, node_id, clock, blocking);
    unimplemented!()
}
