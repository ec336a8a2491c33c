//! Follows the nodes' health service (`grpc.health.v1`), one task per address.

use std::{sync::Arc, time::Duration};

use tokio::time::{sleep, timeout};
use tonic_health::pb::{HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient};

use super::{
    pool::Endpoint,
    retry::{Failure, MAX_BACKOFF},
};

/// For the first answer.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(2);

/// Why a watch ended.
enum Ended {
    /// The node stops, or could not be asked: ask again soon.
    Away,
    /// It tells its health to nobody: its calls must show it.
    NoSuchService,
}

/// Follows one node for as long as its client lives.
pub(super) async fn follow(endpoint: Arc<Endpoint>) {
    loop {
        match watch(&endpoint).await {
            Ended::Away => sleep(MAX_BACKOFF.min(endpoint.next_look())).await,
            Ended::NoSuchService => return,
        }
    }
}

/// A stream ends with the first bad news: one that stayed open would hold up the node's own end.
async fn watch(endpoint: &Endpoint) -> Ended {
    let mut client = HealthClient::new(endpoint.service.clone());
    let request = HealthCheckRequest { service: String::new() };
    let mut stream = match timeout(ANSWER_TIMEOUT, client.watch(request)).await {
        Ok(Ok(response)) => response.into_inner(),
        // Not known there, or not for us.
        Ok(Err(status)) if Failure::of(&status) == Failure::Final => return Ended::NoSuchService,
        Ok(Err(_)) | Err(_) => {
            endpoint.fails();
            return Ended::Away;
        }
    };
    loop {
        match stream.message().await {
            Ok(Some(health)) if health.status() == ServingStatus::Serving => endpoint.serves(),
            Ok(Some(_)) => {
                endpoint.drains();
                return Ended::Away;
            }
            Ok(None) => return Ended::Away,
            Err(_) => {
                endpoint.fails();
                return Ended::Away;
            }
        }
    }
}
