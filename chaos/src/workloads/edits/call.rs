//! One edit: its calls, until its fate is known, and what the answers come to.

use std::time::Duration;

use andante::{
    api::reason,
    v1::{self, campaign_service_client::CampaignServiceClient},
};
use prost_types::FieldMask;
use tonic::Status;
use tonic_types::StatusExt as _;

use super::super::campaigns;
use crate::{
    linearizability::{Action, Attempts, Operation, Outcome, Refusal, Seen, State, Version},
    oracles::Told,
    world::client::{Client, Stage},
};

const DEADLINE: Duration = Duration::from_secs(3);
/// Mean pause before an edit of unknown fate is repeated.
const RETRY_MS: u64 = 500;
/// Calls for one edit, at most; all are over within a minute.
const TRIES_MAX: u32 = 12;

/// What is asked of a campaign.
pub(super) struct Edit {
    /// Its name.
    pub(super) name: String,
    /// What; the expected version is that of the etag.
    pub(super) action: Action,
    /// Of a read, or empty.
    pub(super) etag: String,
    /// Makes it safe to repeat; may be empty.
    pub(super) request_id: String,
}

/// What a call was answered.
struct Answer {
    at_ms: u64,
    outcome: Outcome,
    /// Of what was shown.
    etag: String,
    /// Another call may have more luck.
    try_again: bool,
}

/// When an edit of unknown fate is given up.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Patience {
    /// After some calls.
    Bounded,
    /// When nothing new is wanted any more.
    UntilQuiet,
}

/// Asks until the fate is known, or it is given up. Tells the witness. What became of it, and the etag of what was
/// shown.
pub(super) async fn make(client: &Client, edit: &Edit, patience: Patience) -> (Outcome, String) {
    let repeats = !edit.request_id.is_empty();
    let (who, name) = (client.position as u32 + 1, edit.name.clone());
    let mut attempts = match repeats {
        true => Attempts::new(who, name, edit.action),
        false => Attempts::without_request_id(who, name, edit.action),
    };
    let mut others = Vec::new();
    let mut last = (Outcome::Unknown, String::new());
    for tries in 1_u32.. {
        let called = client.true_ms();
        attempts.called(called);
        let mut answers = if repeats && client.dice.chance(client.plan.load.duplicated) {
            let (one, two) = tokio::join!(ask(client, edit), ask(client, edit));
            vec![one, two]
        } else {
            vec![ask(client, edit).await]
        };
        // That of two calls which was applied counts; if neither was said to be, one that leaves it open.
        answers.sort_by_key(|answer| match answer.outcome {
            Outcome::Shown(_) | Outcome::Gone => (0, answer.at_ms),
            Outcome::Unknown => (1, answer.at_ms),
            Outcome::Refused(_) => (2, answer.at_ms),
        });
        let mut answers = answers.into_iter();
        let Some(first) = answers.next() else { break };
        others.extend(answers.filter_map(|answer| other(who, edit, called, &answer)));
        if first.outcome != Outcome::Unknown {
            attempts.answered(first.at_ms, first.outcome);
        }
        last = (first.outcome, first.etag);
        let patient = match patience {
            Patience::Bounded => tries < TRIES_MAX,
            Patience::UntilQuiet => client.stage.now() < Stage::Quiet,
        };
        if !first.try_again || !repeats || !patient {
            break;
        }
        client.pause(RETRY_MS).await;
    }
    for operation in attempts.into_operations().into_iter().chain(others) {
        client.witness.told(&Told::Operation(&operation));
    }
    last
}

/// What the answer to the second one of two equal calls tells: what it was shown was there, what it was refused for
/// was so.
fn other(client: u32, edit: &Edit, called: u64, answer: &Answer) -> Option<Operation> {
    let action = match answer.outcome {
        Outcome::Shown(_) => Action::Read,
        Outcome::Refused(_) => edit.action,
        Outcome::Gone | Outcome::Unknown => return None,
    };
    let (campaign, outcome) = (edit.name.clone(), answer.outcome);
    let returned = Some(answer.at_ms);
    Some(Operation { client, campaign, called, returned, action, outcome, has_request_id: action != Action::Read })
}

async fn ask(client: &Client, edit: &Edit) -> Answer {
    let answer = call(client, edit).await;
    let at_ms = client.true_ms();
    let (outcome, etag, try_again) = match answer {
        Ok(Some(campaign)) => match seen(&campaign) {
            Some(seen) => (Outcome::Shown(seen), campaign.etag, false),
            None => {
                client.witness.broken("linearizable", format!("an answer makes no sense: {campaign:?}"), at_ms);
                (Outcome::Unknown, String::new(), false)
            }
        },
        Ok(None) => (Outcome::Gone, String::new(), false),
        Err(status) => {
            let (outcome, try_again) = refused(&status);
            (outcome, String::new(), try_again)
        }
    };
    Answer { at_ms, outcome, etag, try_again }
}

/// The outcome of an error, and whether another call may have more luck.
fn refused(status: &Status) -> (Outcome, bool) {
    let info = status.get_details_error_info();
    let Some(info) = info else { return (Outcome::Unknown, true) };
    match info.reason.as_str() {
        // It was done, some time before.
        reason::GONE => (Outcome::Unknown, false),
        reason::NOT_FOUND => (Outcome::Refused(Refusal::NotFound), false),
        reason::ALREADY_EXISTS => (Outcome::Refused(Refusal::AlreadyExists), false),
        reason::STALE_ETAG => (Outcome::Refused(Refusal::StaleEtag), false),
        reason::WRONG_STATE => (Outcome::Refused(Refusal::WrongState), false),
        reason::UNAVAILABLE | reason::DRAINING | reason::OVERLOADED | reason::DEADLINE => {
            (Outcome::Refused(Refusal::Other), true)
        }
        reason::UNKNOWN_FATE | reason::INTERNAL | reason::BROKEN_CALL => (Outcome::Unknown, true),
        _ => (Outcome::Refused(Refusal::Other), false),
    }
}

fn seen(campaign: &v1::Campaign) -> Option<Seen> {
    let version = Version::from_wire(campaign.incarnation, &campaign.etag)?;
    let spec = campaign.spec.as_ref()?;
    let state = match campaign.state() {
        v1::CampaignState::Active => State::Active,
        v1::CampaignState::Paused => State::Paused,
        v1::CampaignState::Ended => State::Ended,
        v1::CampaignState::Deleting => State::Deleting,
        v1::CampaignState::Unspecified => return None,
    };
    Some(Seen { version, budget_micros: spec.budget_micros, price_micros: spec.price_micros, state })
}

/// The campaign as it was answered; `None`: it is gone.
async fn call(client: &Client, edit: &Edit) -> Result<Option<v1::Campaign>, Status> {
    let mut service = CampaignServiceClient::new(client.channel(client.any_node()));
    let Edit { name, action, etag, request_id } = edit;
    let (name, etag, request_id) = (name.clone(), etag.clone(), request_id.clone());
    let answer = match *action {
        Action::Create { budget_micros, price_micros } => {
            let spec = v1::CampaignSpec { budget_micros, price_micros, ..campaigns::spec(client, &name, 1) };
            let request = v1::CreateCampaignRequest { request_id, spec: Some(spec) };
            let answer = client.call(DEADLINE, request, async |request| service.create_campaign(request).await).await;
            answer?.campaign
        }
        Action::Read => {
            let request = v1::GetCampaignRequest { name };
            let answer = client.call(DEADLINE, request, async |request| service.get_campaign(request).await).await;
            answer?.campaign
        }
        Action::Update { budget_micros, price_micros, .. } => {
            let named = [("budget_micros", budget_micros), ("price_micros", price_micros)];
            let paths = named.iter().filter(|(_, micros)| micros.is_some()).map(|(path, _)| (*path).to_owned());
            let request = v1::UpdateCampaignRequest {
                request_id,
                spec: Some(v1::CampaignSpec {
                    name,
                    budget_micros: budget_micros.unwrap_or_default(),
                    price_micros: price_micros.unwrap_or_default(),
                    ..Default::default()
                }),
                update_mask: Some(FieldMask { paths: paths.collect() }),
                etag,
            };
            let answer = client.call(DEADLINE, request, async |request| service.update_campaign(request).await).await;
            answer?.campaign
        }
        Action::Pause { .. } => {
            let request = v1::PauseCampaignRequest { name, etag, request_id };
            let answer = client.call(DEADLINE, request, async |request| service.pause_campaign(request).await).await;
            answer?.campaign
        }
        Action::Resume { .. } => {
            let request = v1::ResumeCampaignRequest { name, etag, request_id };
            let answer = client.call(DEADLINE, request, async |request| service.resume_campaign(request).await).await;
            answer?.campaign
        }
        Action::End { .. } => {
            let request = v1::EndCampaignRequest { name, etag, request_id };
            let answer = client.call(DEADLINE, request, async |request| service.end_campaign(request).await).await;
            answer?.campaign
        }
        Action::Delete { .. } => {
            let request = v1::DeleteCampaignRequest { name, etag, request_id };
            let answer = client.call(DEADLINE, request, async |request| service.delete_campaign(request).await).await;
            answer?.campaign
        }
    };
    Ok(answer)
}
