//! `andante outcome`.

use std::{path::PathBuf, process::ExitCode};

use clap::ValueEnum;
use serde::{Deserialize, Serialize};

use super::{
    connect::Common,
    failure::{Failure, REFUSED, UNAVAILABLE, UNKNOWN_FATE},
    json::token_from_text,
    output::Output,
    spec_args::read_bounded,
};
use crate::{
    client,
    v1::{self, OutcomeStatus},
};

/// Largest file of events.
const FILE_BYTES_MAX: u64 = 64 << 20;

/// Report what became of placements. Safe to repeat.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Tokens of the placements, as `andante score` shows them.
    #[arg(required_unless_present = "file", value_name = "TOKEN")]
    tokens: Vec<String>,
    /// What happened.
    #[arg(long, value_enum, required_unless_present = "file")]
    kind: Option<Kind>,
    /// With a stream: how long it was played, in milliseconds.
    #[arg(long, required_if_eq("kind", "stream"))]
    stream_ms: Option<u64>,
    /// Read events from a file instead: JSON lines with token, kind and stream_ms; `-` reads standard input.
    #[arg(long, short, conflicts_with_all = ["tokens", "kind", "stream_ms"])]
    file: Option<PathBuf>,
    #[command(flatten)]
    pub(super) common: Common,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
enum Kind {
    /// It was shown or started.
    Impression,
    /// It was played for some time.
    Stream,
    /// It was skipped.
    Skip,
    /// It was saved.
    Save,
    /// It will not be used: its money is free again.
    NotUsed,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Event {
    token: String,
    kind: Kind,
    #[serde(default)]
    stream_ms: u64,
}

impl Event {
    fn to_wire(&self) -> Result<v1::OutcomeEvent, String> {
        let kind = match self.kind {
            Kind::Impression => v1::OutcomeKind::Impression,
            Kind::Stream => v1::OutcomeKind::Stream,
            Kind::Skip => v1::OutcomeKind::Skip,
            Kind::Save => v1::OutcomeKind::Save,
            Kind::NotUsed => v1::OutcomeKind::NotUsed,
        };
        Ok(v1::OutcomeEvent { token: token_from_text(&self.token)?, kind: kind as i32, stream_ms: self.stream_ms })
    }
}

#[derive(Debug, Serialize)]
struct Reported {
    results: Vec<Answer>,
}

#[derive(Debug, Serialize)]
struct Answer {
    status: &'static str,
    detail: String,
}

pub(super) async fn run(args: Args) -> anyhow::Result<ExitCode> {
    let output = Output::new(args.common.json);
    let events = args.events()?;
    let reported = args.common.client()?.report(events).await?;
    let exit = reported.iter().map(|result| exit_code(result.status)).max().unwrap_or(0);
    let answer = |result: client::Reported| Answer { status: status_name(result.status), detail: result.detail };
    let results = reported.into_iter().map(answer).collect();
    output.result(&Reported { results }, |reported| {
        let line = |r: &Answer| format!("{} {}", r.status, r.detail).trim_end().to_owned();
        reported.results.iter().map(line).collect::<Vec<_>>().join("\n")
    })?;
    Ok(ExitCode::from(exit))
}

impl Args {
    fn events(&self) -> anyhow::Result<Vec<v1::OutcomeEvent>> {
        let events: Result<Vec<_>, String> = match (&self.file, self.kind) {
            (Some(path), _) => {
                let text = read_bounded(path, FILE_BYTES_MAX)?;
                let lines = text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty());
                lines
                    .map(|(i, line)| {
                        let event = serde_json::from_str::<Event>(line).map_err(|e| e.to_string());
                        let place = |e| format!("{}, line {}: {e}", path.display(), i + 1);
                        event.and_then(|event| event.to_wire()).map_err(place)
                    })
                    .collect()
            }
            (None, Some(kind)) => {
                let stream_ms = self.stream_ms.unwrap_or(0);
                self.tokens.iter().map(|token| Event { token: token.clone(), kind, stream_ms }.to_wire()).collect()
            }
            (None, None) => Err("what happened? give --kind".to_owned()),
        };
        events.map_err(|e| Failure::usage(e).into())
    }
}

fn status_name(status: OutcomeStatus) -> &'static str {
    let name = status.as_str_name();
    name.strip_prefix("OUTCOME_STATUS_").unwrap_or(name)
}

/// The worst of a report's answers decides.
fn exit_code(status: OutcomeStatus) -> u8 {
    match status {
        OutcomeStatus::Billed | OutcomeStatus::Recorded | OutcomeStatus::Duplicate | OutcomeStatus::Released => 0,
        OutcomeStatus::RefusedClosed
        | OutcomeStatus::ClosedUnknown
        | OutcomeStatus::InvalidToken
        | OutcomeStatus::UnknownCampaign
        | OutcomeStatus::InvalidEvent => REFUSED,
        OutcomeStatus::Unavailable => UNAVAILABLE,
        OutcomeStatus::Unknown | OutcomeStatus::Unspecified => UNKNOWN_FATE,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_are_read_from_json_lines() {
        let event: Event = serde_json::from_str(r#"{"token": "AQID", "kind": "NOT_USED"}"#).unwrap();
        let wire = event.to_wire().unwrap();
        assert_eq!((wire.token, wire.kind), (vec![1, 2, 3], v1::OutcomeKind::NotUsed as i32));
        assert!(serde_json::from_str::<Event>(r#"{"token": "AQID", "kind": "BOUGHT"}"#).is_err());
    }

    #[test]
    fn the_exit_code_says_whether_to_repeat() {
        assert_eq!(exit_code(OutcomeStatus::Billed), 0);
        assert_eq!(exit_code(OutcomeStatus::Duplicate), 0);
        assert_eq!(exit_code(OutcomeStatus::InvalidToken), REFUSED);
        assert_eq!(exit_code(OutcomeStatus::Unavailable), UNAVAILABLE);
        assert_eq!(exit_code(OutcomeStatus::Unknown), UNKNOWN_FATE);
    }
}
