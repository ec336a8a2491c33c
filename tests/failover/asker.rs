//! The client library with its defaults, and what the tests here ask besides.

use std::{ops::Range, time::Duration};

use andante::{
    campaign::token::campaign_key,
    client::{Client, ClientConfig, Reported, ScoreRetries},
    v1::{self, OutcomeStatus},
};
use andante_cluster::{BUCKETS, bucket_of};

use crate::{
    SHARDS,
    cluster::PATIENCE,
    workload::{name, request},
};

/// Time between two tries of what is waited for.
const TRY_EVERY: Duration = Duration::from_millis(20);

/// A client.
#[derive(Clone)]
pub(crate) struct Asker(Client);

impl Asker {
    pub(crate) fn new(addresses: Vec<String>) -> Self {
        Self(Client::production(ClientConfig::new(addresses)).expect("a client"))
    }

    /// One that asks again when its connection broke, whatever tokens the lost answer may have held: what a killed
    /// node had in hand is gone with it.
    pub(crate) fn insisting(addresses: Vec<String>) -> Self {
        let score_retries = ScoreRetries { lost_placements: true, ..ScoreRetries::default() };
        let config = ClientConfig { score_retries, ..ClientConfig::new(addresses) };
        Self(Client::production(config).expect("a client"))
    }

    pub(crate) async fn import(&self, specs: Vec<v1::CampaignSpec>) {
        let imported = self.0.import_campaigns(specs.into(), |_| {}).await.expect("imports");
        assert_eq!(imported.failed, 0, "{:?}", imported.failures);
    }

    pub(crate) async fn score(&self, request: v1::ScoreRequest) -> Result<v1::ScoreResponse, String> {
        self.0.score(request).await.map_err(|error| error.to_string())
    }

    pub(crate) async fn report(&self, events: Vec<v1::OutcomeEvent>) -> Result<Vec<Reported>, String> {
        self.0.report(events).await.map_err(|error| error.to_string())
    }

    /// Reports again what was acknowledged before.
    pub(crate) async fn report_again(&self, events: Vec<v1::OutcomeEvent>) -> Vec<OutcomeStatus> {
        let reported = self.0.report(events).await.expect("answers");
        reported.into_iter().map(|reported| reported.status).collect()
    }

    pub(crate) async fn campaign(&self, name: &str) -> v1::Campaign {
        self.0.get_campaign(name).await.expect("answers")
    }

    /// One of these campaigns for each shard.
    pub(crate) fn campaign_of_each_shard(campaigns: Range<usize>) -> Vec<usize> {
        let shard_of = |i: usize| u32::from(bucket_of(campaign_key(&name(i)))) * SHARDS / u32::from(BUCKETS);
        let of = |shard: u32| campaigns.clone().find(|i| shard_of(*i) == shard).expect("enough campaigns");
        (0..SHARDS).map(of).collect()
    }

    /// Waits until each of these campaigns hands out tokens: the first requests only wake them.
    pub(crate) async fn until_placing(&self, campaigns: &[usize]) {
        let placing = async {
            for campaign in campaigns {
                loop {
                    let reply = self.score(request("waker".into(), [*campaign].into_iter(), 1)).await;
                    if reply.is_ok_and(|reply| !reply.placements.is_empty()) {
                        break;
                    }
                    tokio::time::sleep(TRY_EVERY).await;
                }
            }
        };
        tokio::time::timeout(PATIENCE, placing).await.expect("placements");
    }
}
