//! Asks all nodes how they are.

use std::collections::BTreeMap;

use andante_cluster::NodeId;
const REPLICATION_FACTOR: usize = 3;
use tokio::time::{Duration, Instant};

use super::Node;
use crate::{
    status::{self, Answer},
    v1,
};

/// A node that does not answer within this counts as down: a probe takes milliseconds, an election about a second.
const NODE_TIMEOUT: Duration = Duration::from_secs(3);

impl Node {
    /// How the cluster is, by what every node says of itself just now.
    pub async fn cluster_status(&self, deadline: Instant) -> v1::GetClusterStatusResponse {
        let deadline = deadline.min(Instant::now() + NODE_TIMEOUT);
        let (reports, catalogs) = tokio::join!(self.host.reports(deadline), self.router.catalog_lags(deadline));
        let answers: BTreeMap<NodeId, Result<Answer, String>> = reports
            .into_iter()
            .map(|(node, report)| {
                let catalog = catalogs.get(&node).copied().unwrap_or_default();
                (node, report.map(|report| Answer { report, catalog }))
            })
            .collect();
        let directory = self.host.directory().borrow().clone();
        let factor = directory.nodes.len().min(REPLICATION_FACTOR) as u32;
        status::judge(&directory, factor, &answers)
    }
}
