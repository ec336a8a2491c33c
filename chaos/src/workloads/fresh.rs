//! After the healing, every shard serves new work: a new campaign is created in it, placed, and billed.

use std::{sync::Arc, time::Duration};

use andante::v1::{
    self, OutcomeKind, OutcomeStatus, campaign_service_client::CampaignServiceClient,
    score_service_client::ScoreServiceClient,
};

use super::{campaigns, listeners::report_once};
use crate::{
    oracles::Told,
    world::client::{Client, Stage},
};

const LOOK_EVERY_MS: u64 = 200;
const DEADLINE: Duration = Duration::from_secs(3);
const DELIVERIES: u64 = 100_000;

/// The first client's duty.
pub(super) async fn serve_all_shards(client: Arc<Client>) {
    if client.position > 0 {
        return;
    }
    while client.stage.now() != Stage::Healed {
        client.pause(LOOK_EVERY_MS).await;
    }
    let shards = (0..client.plan.shards).map(|shard| serve(&client, shard));
    futures::future::join_all(shards).await;
}

async fn serve(client: &Client, shard: u32) {
    let mut names = (0..).map(|number: u32| format!("fresh-{shard}-{number}"));
    let name = names.find(|name| campaigns::shard_of(name, client.plan.shards) == shard).unwrap_or_default();
    let spec = Some(campaigns::spec(client, &name, DELIVERIES));
    let request = v1::CreateCampaignRequest { request_id: name.clone(), spec };
    loop {
        let mut service = CampaignServiceClient::new(client.channel(client.any_node()));
        let answer = client.call(DEADLINE, request.clone(), async |request| service.create_campaign(request).await);
        if answer.await.is_ok() {
            break;
        }
        client.pause(LOOK_EVERY_MS).await;
    }
    while !place_and_bill(client, &name).await {
        client.pause(LOOK_EVERY_MS).await;
    }
    client.count("fresh");
}

async fn place_and_bill(client: &Client, name: &str) -> bool {
    let (node, call, asked_ms) = (client.any_node(), client.next_call(), client.true_ms());
    let request = v1::ScoreRequest {
        listener_id: format!("listener-{call}"),
        surface: "radio".to_owned(),
        market: "DE".to_owned(),
        candidates: vec![v1::Candidate { track_id: campaigns::track(name, 0), relevance: 1.0 }],
        slots: 1,
        ..Default::default()
    };
    let mut service = ScoreServiceClient::new(client.channel(node));
    let answer = client.call(DEADLINE, request.clone(), async |request| service.score(request).await).await;
    let Ok(reply) = answer else { return false };
    let told_ms = client.true_ms();
    client.witness.told(&Told::Scored { node, request: &request, call, reply: &reply, asked_ms, told_ms });
    let Some(placement) = reply.placements.into_iter().next() else { return false };
    let kind = OutcomeKind::Stream.into();
    let event = v1::OutcomeEvent { token: placement.token, kind, stream_ms: 60_000 };
    client.witness.told(&Told::Reporting(&event));
    report_once(client, &event).await == Some(OutcomeStatus::Billed)
}
