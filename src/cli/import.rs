//! `andante campaign import`.

use std::{io::IsTerminal as _, path::PathBuf, process::ExitCode};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde::Serialize;

use super::{
    connect::Common,
    failure::{Failure, REFUSED},
    json::Spec,
    output::Output,
    spec_args::read_bounded,
};
use crate::v1;

/// Largest file: a million campaigns with some tracks.
const FILE_BYTES_MAX: u64 = 1 << 30;

/// Create many campaigns from a file. Safe to repeat: what is there with the same settings stays as it is.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// JSON lines or a JSON array of settings, names as in the .proto file; `-` reads standard input.
    file: PathBuf,
    #[command(flatten)]
    pub(super) common: Common,
}

#[derive(Debug, Serialize)]
struct Imported {
    created: u64,
    unchanged: u64,
    failed: u64,
    failures: Vec<ImportFailure>,
}

#[derive(Debug, Serialize)]
struct ImportFailure {
    index: u64,
    name: String,
    reason: String,
}

pub(super) async fn run(args: Args, output: Output) -> anyhow::Result<ExitCode> {
    let path = args.file.clone();
    let specs = tokio::task::spawn_blocking(move || {
        let text = read_bounded(&path, FILE_BYTES_MAX)?;
        parse(&text).map_err(|e| anyhow::Error::new(Failure::usage(format!("{}: {e}", path.display()))))
    })
    .await??;
    let client = args.common.client()?;
    let bar = bar(specs.len() as u64, args.common.json);
    let shown = bar.clone();
    // Sent again after an interruption, they are not more than before.
    let sent = move |count: usize| shown.set_position(count as u64);
    let answer = client.import_campaigns(specs.into(), sent).await;
    bar.finish_and_clear();
    let answer = answer?;
    let failures = answer.failures.into_iter();
    let imported = Imported {
        created: answer.created,
        unchanged: answer.unchanged,
        failed: answer.failed,
        failures: failures.map(|f| ImportFailure { index: f.index, name: f.name, reason: f.reason }).collect(),
    };
    output.result(&imported, describe)?;
    Ok(if imported.failed == 0 { ExitCode::SUCCESS } else { ExitCode::from(REFUSED) })
}

fn describe(imported: &Imported) -> String {
    let Imported { created, unchanged, failed, failures } = imported;
    let mut lines = vec![format!("{created} created, {unchanged} unchanged, {failed} failed")];
    lines.extend(failures.iter().map(|f| format!("  #{} {}: {}", f.index, f.name, f.reason)));
    lines.join("\n")
}

/// A JSON array, or a JSON object per line.
fn parse(text: &str) -> Result<Vec<v1::CampaignSpec>, String> {
    if text.trim_start().starts_with('[') {
        let specs: Vec<Spec> = serde_json::from_str(text).map_err(|e| e.to_string())?;
        return Ok(specs.into_iter().map(v1::CampaignSpec::from).collect());
    }
    let lines = text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty());
    lines
        .map(|(i, line)| {
            let spec: Spec = serde_json::from_str(line).map_err(|e| format!("line {}: {e}", i + 1))?;
            Ok(spec.into())
        })
        .collect()
}

/// A bar on a terminal, nothing elsewhere.
fn bar(campaigns: u64, json: bool) -> ProgressBar {
    let hidden = json || !std::io::stderr().is_terminal();
    let target = if hidden { ProgressDrawTarget::hidden() } else { ProgressDrawTarget::stderr() };
    let style = ProgressStyle::with_template("{bar:40} {pos}/{len} campaigns {per_sec} {eta}")
        .unwrap_or_else(|_| ProgressStyle::default_bar());
    ProgressBar::with_draw_target(Some(campaigns), target).with_style(style)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(text: &str) -> Result<Vec<String>, String> {
        parse(text).map(|specs| specs.into_iter().map(|spec| spec.name).collect())
    }

    #[test]
    fn lines_and_arrays_are_read() {
        assert_eq!(names("{\"name\": \"a\"}\n\n{\"name\": \"b\"}\n"), Ok(vec!["a".into(), "b".into()]));
        assert_eq!(names(" [{\"name\": \"a\"}, {\"name\": \"b\"}]"), Ok(vec!["a".into(), "b".into()]));
        assert_eq!(names(""), Ok(vec![]));
    }

    #[test]
    fn a_bad_line_is_named() {
        let error = names("{\"name\": \"a\"}\n{\"nam\": \"b\"}\n").unwrap_err();
        assert!(error.starts_with("line 2: unknown field `nam`"), "{error}");
    }

    #[test]
    fn the_summary_names_failures() {
        let failures = vec![ImportFailure { index: 4, name: "x".into(), reason: "no".into() }];
        let imported = Imported { created: 2, unchanged: 1, failed: 1, failures };
        assert_eq!(describe(&imported), "2 created, 1 unchanged, 1 failed\n  #4 x: no");
    }
}
