//! Campaigns that are there all the time: each client creates its share of them.

use std::{sync::Arc, time::Duration};

use andante::{
    campaign::token::campaign_key,
    v1::{self, campaign_service_client::CampaignServiceClient},
};
use andante_cluster::{BUCKETS, bucket_of};
use tonic::Code;

use crate::world::client::Client;

/// What all deliveries cost, micros.
pub const PRICE_MICROS: u64 = 1_000;
/// Tracks of a campaign.
pub const TRACKS: u64 = 3;
const DEADLINE: Duration = Duration::from_secs(3);
const RETRY_MS: u64 = 500;

const PREFIX: &str = "campaign-";

/// The name of a campaign that is there all the time.
pub fn name(number: u32) -> String {
    format!("{PREFIX}{number}")
}

/// A track of a campaign.
pub fn track(campaign: &str, number: u64) -> String {
    format!("{campaign}-track-{}", number % TRACKS)
}

/// The campaign that is there all the time and has this track.
pub fn of_track(track: &str) -> Option<&str> {
    let (campaign, _) = track.rsplit_once("-track-")?;
    is_standing(campaign).then_some(campaign)
}

/// Whether a campaign of this name is there all the time.
pub fn is_standing(name: &str) -> bool {
    name.starts_with(PREFIX)
}

/// The shard of a campaign: neighbouring buckets go to one.
pub fn shard_of(campaign: &str, shards: u32) -> u32 {
    u32::from(bucket_of(campaign_key(campaign))) * shards / u32::from(BUCKETS)
}

/// The settings of a campaign.
pub fn spec(client: &Client, name: &str, deliveries: u64) -> v1::CampaignSpec {
    v1::CampaignSpec {
        name: name.to_owned(),
        owner: "label".to_owned(),
        track_ids: (0..TRACKS).map(|number| track(name, number)).collect(),
        end_ms: client.flight_end_ms(),
        budget_micros: deliveries * PRICE_MICROS,
        price_micros: PRICE_MICROS,
        billable: v1::BillableKind::Stream.into(),
        hold_ms: client.plan.load.hold_ms,
        expected_billable_share: 0.8,
        ..Default::default()
    }
}

/// Creates every so manieth campaign, until all are there.
pub(super) async fn create(client: Arc<Client>) {
    let load = &client.plan.load;
    for number in (0..load.campaigns).filter(|number| *number as usize % load.clients as usize == client.position) {
        let name = name(number);
        // Some can hardly deliver anything.
        let deliveries = if client.dice.one_in(5) { client.dice.within(3..=40) } else { load.deliveries };
        let request = v1::CreateCampaignRequest {
            request_id: format!("create-{name}"),
            spec: Some(spec(&client, &name, deliveries)),
        };
        loop {
            let mut service = CampaignServiceClient::new(client.channel(client.any_node()));
            let answer = client.call(DEADLINE, request.clone(), async |request| service.create_campaign(request).await);
            match answer.await {
                Ok(_) => break,
                Err(status) if status.code() == Code::AlreadyExists => break,
                Err(_) => client.pause(RETRY_MS).await,
            }
        }
        client.count("campaigns");
    }
}
