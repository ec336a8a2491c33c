//! `ImportCampaigns`: many campaigns, some at a time; safe to repeat.

use futures::StreamExt as _;
use tokio::time::{Duration, Instant};
use tonic::{Status, Streaming};

use super::{call::Api, campaign::new_spec, error::ApiError, spec};
use crate::{campaign::proto, router::WriteError, v1};

/// Creates in flight: enough to share the log's syncs, few enough to leave room for others.
const IN_FLIGHT: usize = 64;
/// Failures told one by one.
const FAILURES_MAX: usize = 100;
/// Tries per campaign where the node says that it is surely not applied, and the longest wait before the next.
const TRIES: u32 = 8;
const WAIT_MAX: Duration = Duration::from_millis(500);

/// What became of one campaign.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Fate {
    Created,
    Unchanged,
    Failed(String),
}

pub(super) async fn run(
    api: &Api,
    requests: Streaming<v1::ImportCampaignsRequest>,
    deadline: Instant,
) -> Result<v1::ImportCampaignsResponse, ApiError> {
    let mut response = v1::ImportCampaignsResponse::default();
    let mut fates = requests
        .enumerate()
        .map(|(index, request)| async move {
            let wire = request?.spec.unwrap_or_default();
            let fate = import(api, &wire, deadline).await;
            Ok::<_, Status>((index, wire.name, fate))
        })
        .buffer_unordered(IN_FLIGHT);
    while let Some(fate) = fates.next().await {
        // The caller broke off, or sent what is no message: what was created stays, and repeating is safe.
        let (index, name, fate) = fate.map_err(|status| ApiError::invalid("stream", status.message()))?;
        count(&mut response, index as u64, name, fate);
    }
    response.failures.sort_by_key(|failure| failure.index);
    Ok(response)
}

fn count(response: &mut v1::ImportCampaignsResponse, index: u64, name: String, fate: Fate) {
    match fate {
        Fate::Created => response.created += 1,
        Fate::Unchanged => response.unchanged += 1,
        Fate::Failed(reason) => {
            response.failed += 1;
            if response.failures.len() < FAILURES_MAX {
                response.failures.push(v1::ImportFailure { index, name, reason });
            }
        }
    }
}

async fn import(api: &Api, wire: &v1::CampaignSpec, deadline: Instant) -> Fate {
    let router = api.node.router();
    let default = Duration::from_millis(api.node.settings().report_deadline_ms);
    let now_ms = api.node.now_ms();
    // Before the settings are checked: the flight of one that is there may be over already.
    match router.campaign(&wire.name, deadline.min(Instant::now() + default)).await {
        Ok(Some(view)) => return compare(wire, view.campaign.spec.as_ref(), now_ms),
        Ok(None) => {}
        Err(error) => return failed(error.into()),
    }
    let spec = match new_spec(wire, now_ms) {
        Ok(spec) => spec,
        Err(error) => return failed(error),
    };
    // A write of unknown fate is simply made again.
    let request_id = api.node.new_request_id();
    let mut tries = 0;
    loop {
        tries += 1;
        let until = deadline.min(Instant::now() + default);
        let wait_ms = match router.create(&request_id, spec.clone(), until).await {
            Ok(_) => return Fate::Created,
            Err(WriteError::Refused { refusal: proto::Refusal::AlreadyExists, campaign, .. }) => {
                return compare(wire, campaign.as_ref().and_then(|c| c.spec.as_ref()), now_ms);
            }
            Err(WriteError::Unknown) if tries < TRIES => 0,
            Err(WriteError::Unavailable { retry_after_ms, .. } | WriteError::Overloaded { retry_after_ms })
                if tries < TRIES =>
            {
                retry_after_ms
            }
            Err(error) => return failed(error.into()),
        };
        if Instant::now() >= deadline {
            return failed(ApiError::Deadline { writes: true });
        }
        tokio::time::sleep(Duration::from_millis(wait_ms).min(WAIT_MAX)).await;
    }
}

/// Whether the campaign that is there is the one to import. A start that was left to the server stays as it was.
fn compare(wire: &v1::CampaignSpec, there: Option<&proto::Spec>, now_ms: u64) -> Fate {
    let mut wire = wire.clone();
    if wire.start_ms == 0 {
        wire.start_ms = there.map_or(0, |spec| spec.start_ms);
    }
    match spec::from_wire(&wire, now_ms) {
        Ok(spec) if Some(&spec) == there => Fate::Unchanged,
        Ok(_) => Fate::Failed("a campaign of this name exists with other settings".into()),
        Err(violations) => failed(ApiError::Invalid(violations)),
    }
}

fn failed(error: ApiError) -> Fate {
    Fate::Failed(Status::from(error).message().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wire() -> v1::CampaignSpec {
        v1::CampaignSpec {
            name: "c".into(),
            owner: "o".into(),
            track_ids: vec!["t".into()],
            end_ms: 900,
            budget_micros: 10,
            price_micros: 1,
            ..Default::default()
        }
    }

    #[test]
    fn an_equal_campaign_is_unchanged_even_if_its_start_was_left_to_the_server() {
        let there = spec::from_wire(&wire(), 100).unwrap();
        assert_eq!(compare(&wire(), Some(&there), 200), Fate::Unchanged);
        assert_eq!(compare(&v1::CampaignSpec { start_ms: 100, ..wire() }, Some(&there), 200), Fate::Unchanged);
    }

    #[test]
    fn another_campaign_of_the_same_name_is_a_failure() {
        let there = spec::from_wire(&wire(), 100).unwrap();
        for other in [
            v1::CampaignSpec { budget_micros: 11, ..wire() },
            v1::CampaignSpec { start_ms: 101, ..wire() },
            v1::CampaignSpec { billable: 9, ..wire() },
        ] {
            assert!(matches!(compare(&other, Some(&there), 200), Fate::Failed(_)), "{other:?}");
        }
    }

    #[test]
    fn failures_are_all_counted_and_the_first_hundred_told() {
        let mut response = v1::ImportCampaignsResponse::default();
        count(&mut response, 0, "a".into(), Fate::Created);
        count(&mut response, 1, "b".into(), Fate::Unchanged);
        for index in 2..202 {
            count(&mut response, index, "c".into(), Fate::Failed("why".into()));
        }
        assert_eq!((response.created, response.unchanged, response.failed), (1, 1, 200));
        assert_eq!(response.failures.len(), FAILURES_MAX);
        assert_eq!(response.failures[0].index, 2);
    }
}
