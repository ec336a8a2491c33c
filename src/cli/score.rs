//! `andante score`.

use std::{path::PathBuf, process::ExitCode};

use comfy_table::{Table, presets};
use serde::{Deserialize, Serialize};

use super::{
    connect::{Common, new_request_id},
    failure::Failure,
    json::token_to_text,
    output::Output,
    spec_args::read_bounded,
    time,
};
use crate::v1;

/// Largest request file.
const FILE_BYTES_MAX: u64 = 1 << 20;

/// Ask for promotion scores.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// The listener's stable pseudonymous id.
    #[arg(long, required_unless_present = "file")]
    listener: Option<String>,
    /// Where the tracks will appear: radio, autoplay, mix, ...
    #[arg(long, default_value = "radio")]
    surface: String,
    /// Market of the listener, ISO 3166 alpha-2.
    #[arg(long, required_unless_present = "file")]
    market: Option<String>,
    /// A track with its organic relevance; may be repeated.
    #[arg(long = "candidate", value_name = "TRACK:RELEVANCE", value_parser = candidate, required_unless_present = "file")]
    candidates: Vec<Candidate>,
    /// How many promoted placements will really be used; 0: scores only.
    #[arg(long, default_value_t = 0)]
    slots: u32,
    /// A shorter hold time for the tokens, in milliseconds; 0: the campaign's.
    #[arg(long, default_value_t = 0)]
    hold_ms: u64,
    /// Read the whole request from a JSON file instead, names as in the .proto file; `-` reads standard input.
    #[arg(long, short, conflicts_with_all = ["listener", "market", "candidates"])]
    file: Option<PathBuf>,
    #[command(flatten)]
    pub(super) common: Common,
}

#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
struct Candidate {
    track_id: String,
    relevance: f64,
}

fn candidate(text: &str) -> Result<Candidate, String> {
    // The last colon: ids like spotify:track:x have some of their own.
    let (track_id, relevance) = text.rsplit_once(':').ok_or("write TRACK:RELEVANCE, like t1:0.8")?;
    let relevance = relevance.parse().map_err(|_| format!("{relevance:?} is no number"))?;
    Ok(Candidate { track_id: track_id.to_owned(), relevance })
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct RequestFile {
    request_id: String,
    listener_id: String,
    surface: String,
    market: String,
    candidates: Vec<Candidate>,
    slots: u32,
    hold_ms: u64,
}

#[derive(Debug, Serialize)]
struct Response {
    scores: Vec<Score>,
    placements: Vec<Placement>,
    coverage: Coverage,
}

#[derive(Debug, Serialize)]
struct Score {
    track_id: String,
    score: f64,
    campaign: String,
}

#[derive(Debug, Serialize)]
struct Placement {
    track_id: String,
    campaign: String,
    score: f64,
    token: String,
    expires_ms: u64,
}

#[derive(Debug, Serialize)]
struct Coverage {
    shards_asked: u32,
    shards_answered: u32,
    missing: Vec<Missing>,
}

#[derive(Debug, Serialize)]
struct Missing {
    shard: u32,
    reason: &'static str,
}

pub(super) async fn run(args: Args) -> anyhow::Result<ExitCode> {
    let output = Output::new(args.common.json);
    let message = args.request()?;
    let answer = args.common.client()?.score(message).await?;
    output.result(&Response::from(answer), describe)?;
    Ok(ExitCode::SUCCESS)
}

impl Args {
    fn request(&self) -> anyhow::Result<v1::ScoreRequest> {
        let request = match &self.file {
            Some(path) => serde_json::from_str(&read_bounded(path, FILE_BYTES_MAX)?)
                .map_err(|e| Failure::usage(format!("{}: {e}", path.display())))?,
            None => RequestFile {
                request_id: new_request_id(),
                listener_id: self.listener.clone().unwrap_or_default(),
                surface: self.surface.clone(),
                market: self.market.clone().unwrap_or_default(),
                candidates: self.candidates.clone(),
                slots: self.slots,
                hold_ms: self.hold_ms,
            },
        };
        let candidates = request.candidates.into_iter();
        Ok(v1::ScoreRequest {
            request_id: request.request_id,
            listener_id: request.listener_id,
            surface: request.surface,
            market: request.market,
            candidates: candidates
                .map(|Candidate { track_id, relevance }| v1::Candidate { track_id, relevance })
                .collect(),
            slots: request.slots,
            hold_ms: request.hold_ms,
        })
    }
}

impl From<v1::ScoreResponse> for Response {
    fn from(answer: v1::ScoreResponse) -> Self {
        let coverage = answer.coverage.unwrap_or_default();
        let scores = answer.scores.into_iter();
        let placements = answer.placements.into_iter();
        let missing = coverage.missing.iter();
        Response {
            scores: scores.map(|s| Score { track_id: s.track_id, score: s.score, campaign: s.campaign }).collect(),
            placements: placements
                .map(|p| Placement {
                    token: token_to_text(&p.token),
                    track_id: p.track_id,
                    campaign: p.campaign,
                    score: p.score,
                    expires_ms: p.expires_ms,
                })
                .collect(),
            coverage: Coverage {
                shards_asked: coverage.shards_asked,
                shards_answered: coverage.shards_answered,
                missing: missing.map(|m| Missing { shard: m.shard, reason: reason(m.reason()) }).collect(),
            },
        }
    }
}

fn reason(reason: v1::MissingReason) -> &'static str {
    let name = reason.as_str_name();
    name.strip_prefix("MISSING_REASON_").unwrap_or(name)
}

fn describe(response: &Response) -> String {
    let mut table = Table::new();
    table.load_style(presets::UTF8_BORDERS_ONLY);
    table.set_header(["track", "score", "campaign"]);
    for score in &response.scores {
        table.add_row([score.track_id.clone(), format!("{:.4}", score.score), score.campaign.clone()]);
    }
    let mut lines = vec![table.to_string()];
    for p in &response.placements {
        lines.push(format!(
            "placement {} by {} until {}\n  token {}",
            p.track_id,
            p.campaign,
            time::show(p.expires_ms),
            p.token
        ));
    }
    let Coverage { shards_asked, shards_answered, missing } = &response.coverage;
    lines.push(format!("{shards_answered} of {shards_asked} shards answered"));
    lines.extend(missing.iter().map(|m| format!("  shard {}: {}", m.shard, m.reason)));
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_candidate_is_a_track_and_its_relevance() {
        let of = |track: &str, relevance| Candidate { track_id: track.into(), relevance };
        assert_eq!(candidate("t1:0.5"), Ok(of("t1", 0.5)));
        assert_eq!(candidate("spotify:track:x:2"), Ok(of("spotify:track:x", 2.0)));
        assert!(candidate("t1").is_err() && candidate("t1:high").is_err());
    }

    #[test]
    fn an_answer_is_described_with_its_coverage() {
        let answer = v1::ScoreResponse {
            scores: vec![v1::CandidateScore { track_id: "t1".into(), score: 0.25, campaign: "c".into() }],
            placements: vec![v1::Placement {
                track_id: "t1".into(),
                campaign: "c".into(),
                score: 0.25,
                token: vec![1, 2, 3],
                expires_ms: 0,
            }],
            coverage: Some(v1::Coverage {
                shards_asked: 2,
                shards_answered: 1,
                missing: vec![v1::MissingShard { shard: 4, reason: v1::MissingReason::Deadline as i32 }],
            }),
        };
        insta::assert_snapshot!(describe(&answer.into()), @"
        ┌───────────────────────────┐
        │ track   score    campaign │
        ╞═══════════════════════════╡
        │ t1      0.2500   c        │
        └───────────────────────────┘
        placement t1 by c until 1970-01-01T00:00:00Z
          token AQID
        1 of 2 shards answered
          shard 4: DEADLINE
        ");
    }
}
