//! Listening: score requests, and what becomes of each placement.

use std::{sync::Arc, time::Duration};

use andante::v1::{
    self, OutcomeKind, OutcomeStatus, outcome_service_client::OutcomeServiceClient,
    score_service_client::ScoreServiceClient,
};
use tonic::Code;

use super::{campaigns, edits};
use crate::{
    oracles::Told,
    world::client::{Client, Stage},
};

const SCORE_DEADLINE: Duration = Duration::from_millis(400);
const REPORT_DEADLINE: Duration = Duration::from_secs(2);
/// Mean pause before a report of unknown fate is repeated.
const RETRY_MS: u64 = 600;
/// Reports of one event, at most, until it is given up.
const TRIES_MAX: u32 = 8;
const LISTENERS: u64 = 500;
/// Of the tokens of campaigns that come and go, one in so many is kept and reported so often, in pauses of this mean.
const KEPT_ONE_IN: u64 = 12;
const KEPT_TRIES: u32 = 25;
const KEPT_MS: u64 = 2_500;
/// A stream of this length counts.
const LONG_MS: u64 = 31_000;

/// Asks for scores, and follows every placement up.
pub(super) async fn score(client: Arc<Client>) {
    let load = &client.plan.load;
    loop {
        client.pause(load.pause_ms).await;
        if matches!(client.stage.now(), Stage::Faults | Stage::Healed) {
            let (client, under_way) = (client.clone(), client.begin());
            tokio::spawn(async move {
                let _under_way = under_way;
                ask(&client).await;
            });
        }
    }
}

/// One request, or the same one twice.
async fn ask(client: &Arc<Client>) {
    let request = request(client);
    if client.dice.chance(client.plan.load.duplicated) {
        tokio::join!(ask_node(client, &request), ask_node(client, &request));
    } else {
        ask_node(client, &request).await;
    }
}

async fn ask_node(client: &Arc<Client>, request: &v1::ScoreRequest) {
    let (node, call, asked_ms) = (client.any_node(), client.next_call(), client.true_ms());
    let mut service = ScoreServiceClient::new(client.channel(node));
    let answer = client.call(SCORE_DEADLINE, request.clone(), async |request| service.score(request).await).await;
    let told_ms = client.true_ms();
    let reply = match answer {
        Ok(reply) => reply,
        Err(status) => {
            // A node that stops cancels calls, too, but at once.
            let waited_ms = u128::from(told_ms - asked_ms);
            if matches!(status.code(), Code::DeadlineExceeded | Code::Cancelled)
                && waited_ms >= SCORE_DEADLINE.as_millis() / 2
            {
                client.witness.told(&Told::Unanswered { node, asked_ms, told_ms });
            }
            return;
        }
    };
    client.witness.told(&Told::Scored { node, request, call, reply: &reply, asked_ms, told_ms });
    for placement in reply.placements {
        let (client, under_way) = (client.clone(), client.begin());
        tokio::spawn(async move {
            let _under_way = under_way;
            follow_up(&client, &placement).await;
        });
    }
}

fn request(client: &Client) -> v1::ScoreRequest {
    let (dice, load) = (&client.dice, &client.plan.load);
    let mut campaigns: Vec<u32> = dice.several(&(0..load.campaigns).collect::<Vec<_>>(), dice.within(1..=8) as usize);
    if dice.chance(load.hot) && !campaigns.contains(&0) {
        campaigns.push(0);
    }
    let mut candidates: Vec<_> = campaigns
        .iter()
        .map(|number| v1::Candidate {
            track_id: campaigns::track(&campaigns::name(*number), dice.within(0..=9)),
            relevance: dice.unit(),
        })
        .collect();
    if dice.one_in(3) {
        candidates.push(v1::Candidate { track_id: edits::track(dice), relevance: dice.unit() });
    }
    candidates.push(v1::Candidate { track_id: format!("nobody-{}", dice.within(0..=99)), relevance: dice.unit() });
    v1::ScoreRequest {
        request_id: String::new(),
        listener_id: format!("listener-{}", dice.within(1..=LISTENERS)),
        surface: dice.pick(&["radio", "autoplay", "mix"]).to_string(),
        market: dice.pick(&["DE", "SE", "BR"]).to_string(),
        slots: load.slots.min(candidates.len() as u32),
        candidates,
        hold_ms: if dice.one_in(10) { 2_000 } else { 0 },
    }
}

/// What becomes of a placement.
async fn follow_up(client: &Client, placement: &v1::Placement) {
    let (dice, load) = (&client.dice, &client.plan.load);
    if edits::are_all_told(&placement.campaign) && dice.one_in(KEPT_ONE_IN) {
        return keep(client, &placement.token).await;
    }
    if dice.chance(load.lost) {
        return;
    }
    let token = &placement.token;
    if dice.chance(load.late) {
        // Around the expiry, as the client's clock sees it, or long after.
        let around_ms = placement.expires_ms.saturating_sub(client.now_ms()).min(load.hold_ms);
        let wait_ms =
            if dice.one_in(3) { around_ms + dice.within(5_000..=90_000) } else { around_ms.saturating_sub(500) };
        tokio::time::sleep(Duration::from_millis(wait_ms + dice.within(0..=1_000))).await;
    } else {
        client.pause(700).await;
    }
    if dice.chance(load.not_used) {
        report(client, token, OutcomeKind::NotUsed, 0).await;
        // Some change their mind: released is released.
        if dice.one_in(4) {
            report(client, token, OutcomeKind::Stream, LONG_MS).await;
        }
        return;
    }
    report(client, token, OutcomeKind::Impression, 0).await;
    match dice.within(0..=9) {
        0 => drop(report(client, token, OutcomeKind::Skip, 0).await),
        1 => drop(report(client, token, OutcomeKind::Stream, 5_000).await),
        _ => {
            let billed = report(client, token, OutcomeKind::Stream, LONG_MS).await;
            if dice.one_in(8) {
                report(client, token, OutcomeKind::Save, 0).await;
            }
            if billed && dice.one_in(6) {
                client.pause(if dice.one_in(2) { 1_000 } else { 60_000 }).await;
                report(client, token, OutcomeKind::Stream, LONG_MS).await;
            }
        }
    }
}

/// Somebody keeps a token of a campaign that comes and goes, and tries it again and again: it must not bill a later one.
async fn keep(client: &Client, token: &[u8]) {
    for _ in 0..KEPT_TRIES {
        if client.stage.now() == Stage::Quiet {
            return;
        }
        report(client, token, OutcomeKind::Stream, LONG_MS).await;
        client.pause(KEPT_MS).await;
    }
}

/// Reports an event until its fate is known, sometimes to two nodes at once. Whether it was billed.
async fn report(client: &Client, token: &[u8], kind: OutcomeKind, stream_ms: u64) -> bool {
    let event = v1::OutcomeEvent { token: token.to_vec(), kind: kind.into(), stream_ms };
    client.witness.told(&Told::Reporting(&event));
    for _ in 0..TRIES_MAX {
        let status = if client.dice.chance(client.plan.load.duplicated) {
            tokio::join!(report_once(client, &event), report_once(client, &event)).0
        } else {
            report_once(client, &event).await
        };
        match status {
            None | Some(OutcomeStatus::Unknown | OutcomeStatus::Unavailable) => client.pause(RETRY_MS).await,
            Some(status) => return status == OutcomeStatus::Billed,
        }
    }
    false
}

/// One call. `None`: no answer.
pub(super) async fn report_once(client: &Client, event: &v1::OutcomeEvent) -> Option<OutcomeStatus> {
    let asked_ms = client.true_ms();
    let mut service = OutcomeServiceClient::new(client.channel(client.any_node()));
    let request = v1::ReportRequest { events: vec![event.clone()] };
    let answer = client.call(REPORT_DEADLINE, request, async |request| service.report(request).await).await;
    let result = answer.ok().and_then(|reply| reply.results.into_iter().next());
    let told = Told::Reported { event, result: result.as_ref(), asked_ms, told_ms: client.true_ms() };
    client.witness.told(&told);
    let status = result.map(|result| result.status());
    if status == Some(OutcomeStatus::Billed) {
        client.witness.settles.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        client.count("listeners");
    }
    status
}
