//! The campaigns of one run.

use std::{sync::Arc, time::Duration};

use anyhow::{bail, ensure};
use tokio::time::{Instant, sleep};

use crate::{
    client::Link,
    replay::Options,
    v1::{self, BillableKind, CampaignSpec},
};

/// More rows per second than a replay plays: with a budget for so many, no pacing holds a row back.
const AMPLE_ROWS_PER_S: u64 = 50_000;
/// How long to wait until the campaigns can hand out tokens. Then the replay starts anyway: its first rows may not place.
const WARM_UP: Duration = Duration::from_secs(10);
/// Time between two looks.
const WARM_UP_POLL: Duration = Duration::from_millis(20);
/// Where the replay plays.
pub(super) const SURFACE: &str = "radio";
/// The market of all its listeners.
pub(super) const MARKET: &str = "US";
/// Largest budget of a campaign.
const MAX_BUDGET_MICROS: u64 = (1 << 53) - 1;

/// A campaign of the run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Planned {
    pub(super) name: String,
    pub(super) track: String,
    pub(super) price_micros: u64,
}

/// Creates the campaigns and wakes them.
pub(super) async fn create(link: &mut Link, options: &Options) -> anyhow::Result<Arc<[Planned]>> {
    let now_ms = link.server_info().await?.now_ms;
    let flight_ms = options.flight.as_millis() as u64;
    let deliveries = options.deliveries.unwrap_or((flight_ms / 1000).max(1).saturating_mul(AMPLE_ROWS_PER_S));
    let budget_micros = deliveries.saturating_mul(options.price_micros).min(MAX_BUDGET_MICROS);
    let planned: Arc<[Planned]> = (0..options.campaigns)
        .map(|i| {
            let name = format!("{}-{i:04}", options.prefix);
            Planned { track: format!("track-{name}"), name, price_micros: options.price_micros }
        })
        .collect();
    let specs: Vec<CampaignSpec> = planned
        .iter()
        .map(|campaign| CampaignSpec {
            name: campaign.name.clone(),
            owner: "replay".into(),
            track_ids: vec![campaign.track.clone()],
            start_ms: now_ms,
            end_ms: now_ms + flight_ms,
            budget_micros,
            price_micros: campaign.price_micros,
            billable: BillableKind::Stream as i32,
            // Every placement is streamed.
            expected_billable_share: 1.0,
            ..CampaignSpec::default()
        })
        .collect();
    let import = link.import(&specs).await?;
    if let Some(failure) = import.failures.first() {
        bail!("campaign {} was refused: {}", failure.name, failure.reason);
    }
    ensure!(import.created + import.unchanged == planned.len() as u64, "not all campaigns were created: {import:?}");
    wake(link, &planned).await?;
    Ok(planned)
}

/// Scores each campaign without taking anything until it has tokens to hand out.
async fn wake(link: &mut Link, planned: &[Planned]) -> anyhow::Result<()> {
    let until = Instant::now() + WARM_UP;
    for campaign in planned {
        while Instant::now() < until {
            let request = v1::ScoreRequest {
                listener_id: "warm-up".into(),
                surface: SURFACE.into(),
                market: MARKET.into(),
                candidates: vec![v1::Candidate { track_id: campaign.track.clone(), relevance: 1.0 }],
                ..v1::ScoreRequest::default()
            };
            let _scores = link.score(request).await;
            let now = link.campaign(&campaign.name).await?;
            if now.ledger.is_some_and(|ledger| ledger.open_allowances > 0) {
                break;
            }
            sleep(WARM_UP_POLL).await;
        }
    }
    Ok(())
}
