//! The campaigns of one run.

use std::{sync::Arc, time::Duration};

use anyhow::{bail, ensure};
use tokio::time::{Instant, sleep};

use crate::{
    replay::{Options, record::Writer},
    v1::{self, BillableKind, CampaignSpec, OutcomeKind},
    verify::{Event, Link, Tally},
};

/// More rows per second than a replay plays: with a budget for so many, no pacing holds a row back.
const AMPLE_ROWS_PER_S: u64 = 50_000;
/// How long to wait until the campaigns can hand out tokens. Then the replay starts anyway: its first rows may not place.
const WARM_UP: Duration = Duration::from_secs(10);
/// Time between two looks.
const WARM_UP_POLL: Duration = Duration::from_millis(25);
/// Looks between two scores: several ticks of a shard, in which a campaign that was scored gets its tokens.
const ROUNDS_PER_SCORE: u32 = 20;
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

/// Creates the campaigns.
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
    Ok(planned)
}

/// Scores each campaign until it has tokens to hand out: only requests that could place make it ask for some.
/// A token that is handed out already is released, and tallied like everything else.
pub(super) async fn wake(
    link: &mut Link,
    planned: &[Planned],
    tallies: &mut [Tally],
    writer: &mut Option<Writer>,
) -> anyhow::Result<()> {
    let started = Instant::now();
    let mut asleep: Vec<usize> = (0..planned.len()).collect();
    for round in 0.. {
        if asleep.is_empty() || started.elapsed() > WARM_UP {
            break;
        }
        if round % ROUNDS_PER_SCORE == 0 {
            for &campaign in &asleep {
                score(link, planned, campaign, tallies, writer).await?;
            }
        }
        sleep(WARM_UP_POLL).await;
        let mut still = Vec::new();
        for campaign in asleep {
            let now = link.campaign(&planned[campaign].name).await?;
            if now.ledger.is_none_or(|ledger| ledger.open_allowances == 0) {
                still.push(campaign);
            }
        }
        asleep = still;
    }
    Ok(())
}

async fn score(
    link: &mut Link,
    planned: &[Planned],
    campaign: usize,
    tallies: &mut [Tally],
    writer: &mut Option<Writer>,
) -> anyhow::Result<()> {
    let request = v1::ScoreRequest {
        listener_id: "warm-up".into(),
        surface: SURFACE.into(),
        market: MARKET.into(),
        candidates: vec![v1::Candidate { track_id: planned[campaign].track.clone(), relevance: 1.0 }],
        slots: 1,
        ..v1::ScoreRequest::default()
    };
    // Whatever goes wrong here goes wrong again when the rows are played.
    let Ok(response) = link.score(request).await else { return Ok(()) };
    for placement in response.placements {
        let event = Event::of(OutcomeKind::NotUsed);
        if let Some(writer) = writer {
            writer.sent(campaign, event.kind, &placement.token)?;
        }
        let fate = link.report(&placement.token, event).await;
        if let Some(writer) = writer {
            writer.done(campaign, event.kind, fate, &placement.token)?;
        }
        tallies[campaign].add(event, fate);
    }
    Ok(())
}
