//! A day of listening, made from a seed: who asks when for what, and the campaigns that would like to be heard.

use rand::{Rng, RngExt, SeedableRng, rngs::StdRng};

use crate::{
    demo::profile,
    v1::{BillableKind, CampaignSpec},
};

/// Campaigns.
const CAMPAIGNS: usize = 240;
/// Tracks of the catalogue.
const TRACKS: usize = 16_000;
/// Tracks of a campaign: fewest and most.
const CAMPAIGN_TRACKS: (usize, usize) = (4, 12);
/// Candidates per request: fewest and most.
const CANDIDATES: (usize, usize) = (30, 50);
/// Promoted placements a request uses at most.
pub(super) const SLOTS: u32 = 2;
/// Sessions going on at once.
const SESSIONS: usize = 2_000;
/// Prices of a delivery in micros: lowest and highest.
const PRICES_MICROS: (u64, u64) = (500, 20_000);
/// Share of a campaign's opportunities that its budget wants as placements: lowest and highest. Owners guess, so they
/// differ; the mean leaves pacing room to choose.
const WANTED_SHARE: (f64, f64) = (0.15, 0.45);
/// Spread of the logarithm of relevance.
const RELEVANCE_SPREAD: f64 = 0.5;
/// Share of the campaigns that name markets.
const SHARE_WITH_MARKETS: f64 = 0.2;
/// Share of the campaigns with a frequency cap, and the cap.
const FREQUENCY_CAP: (f64, u32) = (0.25, 6);
/// Surfaces, each with its share of the requests.
const SURFACES: [(&str, f64); 3] = [("radio", 0.5), ("autoplay", 0.3), ("mix", 0.2)];
/// Share of placements that the caller does not use after all.
pub(super) const SHARE_NOT_USED: f64 = 0.05;
/// Shortest hold time there is.
const HOLD_MS: u64 = 10_000;

/// One request of the day.
#[derive(Debug, Clone)]
pub(super) struct Request {
    /// When, as a share of the day.
    pub(super) at: f64,
    pub(super) listener: u32,
    pub(super) market: &'static str,
    pub(super) surface: &'static str,
    /// Tracks by rank, with their relevance.
    pub(super) candidates: Vec<(u32, f32)>,
}

/// One campaign of the day.
#[derive(Debug, Clone)]
pub(super) struct Planned {
    pub(super) spec: CampaignSpec,
    /// Candidates of the day that it may be placed with.
    pub(super) opportunities: u64,
}

/// The whole day. Times are set when it starts.
#[derive(Debug, Clone)]
pub(super) struct Day {
    pub(super) requests: Vec<Request>,
    pub(super) campaigns: Vec<Planned>,
}

/// A track's id.
pub(super) fn track_id(rank: u32) -> String {
    format!("track-{rank:05}")
}

impl Day {
    /// Makes a day of so many requests.
    pub(super) fn new(seed: u64, count: usize) -> Self {
        let mut rng = StdRng::seed_from_u64(seed);
        let (mut campaigns, owner) = campaigns(&mut rng);
        let requests = requests(&mut rng, count);
        for request in &requests {
            for (track, _) in &request.candidates {
                if let Some(campaign) = owner[*track as usize].map(|i| &mut campaigns[i])
                    && (campaign.spec.markets.is_empty() || campaign.spec.markets.iter().any(|m| m == request.market))
                {
                    campaign.opportunities += 1;
                }
            }
        }
        for campaign in &mut campaigns {
            let wanted = rng.random_range(WANTED_SHARE.0..WANTED_SHARE.1);
            let deliveries = campaign.opportunities as f64 * wanted * billable_share();
            // At least one delivery, or it would be no campaign.
            campaign.spec.budget_micros = (deliveries as u64).max(1) * campaign.spec.price_micros;
        }
        Day { requests, campaigns }
    }
}

/// Share of placements that end in a billable stream.
pub(super) fn billable_share() -> f64 {
    (1.0 - profile::SHARE_UNDER_30_S) * (1.0 - SHARE_NOT_USED)
}

/// Campaigns, and the owner of each track.
fn campaigns(rng: &mut StdRng) -> (Vec<Planned>, Vec<Option<usize>>) {
    let mut owner = vec![None; TRACKS];
    let campaigns = (0..CAMPAIGNS)
        .map(|i| {
            let count = rng.random_range(CAMPAIGN_TRACKS.0..=CAMPAIGN_TRACKS.1);
            let mut tracks = Vec::with_capacity(count);
            while tracks.len() < count {
                let track = rng.random_range(0..TRACKS);
                if owner[track].is_none() {
                    owner[track] = Some(i);
                    tracks.push(track_id(track as u32));
                }
            }
            let (low, high) = PRICES_MICROS;
            let price_micros = (low as f64 * (high as f64 / low as f64).powf(rng.random())) as u64;
            let mut markets = Vec::new();
            if rng.random::<f64>() < SHARE_WITH_MARKETS {
                markets.extend(profile::MARKETS[..5].iter().map(|(market, _)| (*market).to_owned()));
            }
            let capped = rng.random::<f64>() < FREQUENCY_CAP.0;
            let spec = CampaignSpec {
                name: format!("demo-{i:03}"),
                owner: format!("label-{:02}", i % 17),
                track_ids: tracks,
                markets,
                price_micros,
                billable: BillableKind::Stream as i32,
                hold_ms: HOLD_MS,
                frequency_cap: if capped { FREQUENCY_CAP.1 } else { 0 },
                expected_billable_share: billable_share(),
                ..CampaignSpec::default()
            };
            Planned { spec, opportunities: 0 }
        })
        .collect();
    (campaigns, owner)
}

/// A session that goes on.
struct Session {
    listener: u32,
    market: &'static str,
    surface: &'static str,
    plays_left: u32,
}

impl Session {
    fn begin(rng: &mut StdRng, listener: u32) -> Self {
        let mut left: f64 = rng.random();
        let surface = SURFACES.iter().find(|(_, share)| {
            left -= share;
            left <= 0.0
        });
        Session {
            listener,
            market: profile::market(rng),
            surface: surface.map_or(SURFACES[0].0, |(surface, _)| surface),
            plays_left: profile::session_plays(rng),
        }
    }
}

fn requests(rng: &mut StdRng, count: usize) -> Vec<Request> {
    let mut listeners = 0..;
    let mut session = |rng: &mut StdRng| Session::begin(rng, listeners.next().unwrap_or(0));
    let mut sessions: Vec<Session> = (0..SESSIONS.min(count.max(1))).map(|_| session(rng)).collect();
    (0..count)
        .map(|i| {
            let at = rng.random_range(0..sessions.len());
            let one = &mut sessions[at];
            let request = Request {
                at: profile::time_of_day((i as f64 + 0.5) / count as f64),
                listener: one.listener,
                market: one.market,
                surface: one.surface,
                candidates: candidates(rng),
            };
            one.plays_left = one.plays_left.saturating_sub(1);
            if one.plays_left == 0 {
                sessions[at] = session(rng);
            }
            request
        })
        .collect()
}

/// Distinct tracks, popular ones more often, each with a relevance around 1.
fn candidates(rng: &mut StdRng) -> Vec<(u32, f32)> {
    let count = rng.random_range(CANDIDATES.0..=CANDIDATES.1);
    let mut tracks: Vec<u32> = Vec::with_capacity(count);
    while tracks.len() < count {
        let track = profile::track(rng, TRACKS) as u32;
        if !tracks.contains(&track) {
            tracks.push(track);
        }
    }
    tracks.into_iter().map(|track| (track, (RELEVANCE_SPREAD * normal(rng)).exp() as f32)).collect()
}

/// A normally distributed number (Box-Muller).
fn normal(rng: &mut impl Rng) -> f64 {
    let u: f64 = 1.0 - rng.random::<f64>();
    (-2.0 * u.ln()).sqrt() * (std::f64::consts::TAU * rng.random::<f64>()).cos()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_makes_the_same_day_again() {
        let (a, b) = (Day::new(7, 500), Day::new(7, 500));
        assert_eq!(format!("{a:?}"), format!("{b:?}"));
    }

    #[test]
    fn budgets_ask_for_a_healthy_share_of_the_requests() {
        let day = Day::new(1, 8_000);
        assert_eq!(day.requests.len(), 8_000);
        let deliveries: u64 = day.campaigns.iter().map(|c| c.spec.budget_micros / c.spec.price_micros).sum();
        let placements = deliveries as f64 / billable_share();
        let per_request = placements / day.requests.len() as f64;
        assert!((0.5..1.6).contains(&per_request), "{per_request} of {SLOTS} slots");
        assert!(day.requests.iter().all(|r| r.candidates.len() >= 30));
        assert!(day.requests.is_sorted_by(|a, b| a.at <= b.at));
    }
}
