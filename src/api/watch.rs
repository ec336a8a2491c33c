//! `WatchPacing`: spend against plan, again and again.

use std::sync::Arc;

use futures::{Stream, stream};
use tokio::{
    sync::OwnedSemaphorePermit,
    time::{Duration, Instant, Interval, MissedTickBehavior, interval, sleep_until},
};
use tonic::{Status, metadata::MetadataMap};

use super::{
    call::{Api, grpc_timeout},
    error::ApiError,
    spec, validate,
};
use crate::{campaign::proto, router::PacingView, v1};

struct Watch {
    api: Arc<Api>,
    name: String,
    ticks: Interval,
    ends: Option<Instant>,
    /// Set after the last message.
    over: bool,
    _room: OwnedSemaphorePermit,
}

/// A stream that ends with the campaign, the server, or at the caller's deadline if there is one.
pub(super) async fn start(
    api: Arc<Api>,
    request: v1::WatchPacingRequest,
    metadata: &MetadataMap,
    deadline: Instant,
) -> Result<impl Stream<Item = Result<v1::WatchPacingResponse, Status>> + Send + use<>, ApiError> {
    let interval_ms = validate::watch(&request).map_err(ApiError::Invalid)?;
    if *api.draining.borrow() {
        return Err(ApiError::Draining);
    }
    let room = Arc::clone(&api.watches).try_acquire_owned().map_err(|_| ApiError::Overloaded("pacing watches"))?;
    if api.node.router().campaign(&request.name, deadline).await?.is_none() {
        return Err(ApiError::NotFound(request.name));
    }
    let ends = grpc_timeout(metadata)?.map(|timeout| Instant::now() + timeout);
    let mut ticks = interval(Duration::from_millis(interval_ms));
    // A slow reader gets the present, not a backlog.
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let watch = Watch { api, name: request.name, ticks, ends, over: false, _room: room };
    Ok(stream::unfold(watch, |mut watch| async move {
        let item = watch.next().await?;
        watch.over |= item.is_err();
        Some((item, watch))
    }))
}

impl Watch {
    async fn next(&mut self) -> Option<Result<v1::WatchPacingResponse, Status>> {
        if self.over {
            return None;
        }
        let mut draining = self.api.draining.clone();
        tokio::select! {
            _ = self.ticks.tick() => {}
            () = at(self.ends) => return Some(Err(ApiError::Deadline { writes: false }.into())),
            // An error means that the server is gone altogether.
            _ = draining.wait_for(|draining| *draining) => return Some(Err(ApiError::Draining.into())),
        }
        let deadline = Instant::now() + Duration::from_millis(self.api.node.settings().report_deadline_ms);
        let pacing = match self.api.node.router().pacing(&self.name, deadline).await {
            Ok(Some(pacing)) => pacing,
            // A campaign that is gone ends the stream in peace.
            Ok(None) => return None,
            Err(error) => return Some(Err(ApiError::from(error).into())),
        };
        self.over = is_over(&pacing.view.campaign, pacing.now_ms);
        Some(Ok(message(&pacing)))
    }
}

async fn at(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => sleep_until(deadline).await,
        None => std::future::pending().await,
    }
}

/// Nothing will change any more: it is over and nothing is set aside.
fn is_over(campaign: &proto::Campaign, now_ms: u64) -> bool {
    let ended = matches!(campaign.state(), proto::State::Ended | proto::State::Deleting);
    let flown = campaign.spec.as_ref().is_some_and(|spec| now_ms >= spec.end_ms);
    (ended || flown) && campaign.open_micros == 0
}

fn message(pacing: &PacingView) -> v1::WatchPacingResponse {
    let campaign = &pacing.view.campaign;
    v1::WatchPacingResponse {
        now_ms: pacing.now_ms,
        settled_micros: campaign.settled_micros,
        open_micros: campaign.open_micros,
        planned_micros: pacing.planned_micros,
        budget_micros: campaign.spec.as_ref().map_or(0, |spec| spec.budget_micros),
        mu: pacing.mu,
        billable_share: pacing.billable_share,
        stranded_micros: pacing.stranded_micros,
        state: spec::state_to_wire(campaign.state()) as i32,
        explanation: pacing.view.explanation.clone(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_watch_ends_when_nothing_will_change_any_more() {
        let campaign = |state: proto::State, open_micros| proto::Campaign {
            state: state as i32,
            open_micros,
            spec: Some(proto::Spec { end_ms: 100, ..Default::default() }),
            ..Default::default()
        };
        assert!(!is_over(&campaign(proto::State::Active, 0), 99));
        assert!(!is_over(&campaign(proto::State::Paused, 0), 99));
        assert!(!is_over(&campaign(proto::State::Active, 5), 100), "outcomes may still come");
        assert!(is_over(&campaign(proto::State::Active, 0), 100));
        assert!(is_over(&campaign(proto::State::Ended, 0), 1));
    }
}
