//! `andante cluster settings`.

use std::process::ExitCode;

use comfy_table::{Table, presets};
use serde::Serialize;

use super::{connect::Common, failure::Failure, output::Output};
use crate::{settings::ClusterSettings, v1};

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Change a setting for all nodes, e.g. `skew_margin_ms=8000`; may be repeated, and all are changed or none.
    #[arg(long = "set", value_name = "KEY=VALUE", value_parser = pair)]
    set: Vec<(&'static str, u64)>,
    #[command(flatten)]
    pub(super) common: Common,
}

/// A key that there is, and a number. What the number may be says the server.
fn pair(text: &str) -> Result<(&'static str, u64), String> {
    let (key, value) = text.split_once('=').ok_or("write KEY=VALUE")?;
    let keys = ClusterSettings::default().fields().map(|(key, _)| key);
    let key = keys.into_iter().find(|known| *known == key);
    let key = key.ok_or_else(|| format!("there is no such key; there are {}", keys.join(", ")))?;
    let value = value.parse().map_err(|_| format!("{key}: {value:?} is no whole number of milliseconds"))?;
    Ok((key, value))
}

#[derive(Debug, Serialize)]
struct Shown {
    #[serde(flatten)]
    settings: ClusterSettings,
    etag: String,
}

impl Shown {
    fn new(settings: Option<v1::ClusterSettings>, etag: String) -> Self {
        let v1::ClusterSettings { skew_margin_ms, close_grace_ms, retry_window_ms } = settings.unwrap_or_default();
        Shown { settings: ClusterSettings { skew_margin_ms, close_grace_ms, retry_window_ms }, etag }
    }
}

pub(super) async fn run(args: Args) -> anyhow::Result<ExitCode> {
    let output = Output::new(args.common.json);
    let request = change(&args.set)?;
    let client = args.common.client()?;
    let shown = match request {
        Some(request) => {
            let changed = client.update_cluster_settings(request).await?;
            Shown::new(changed.settings, changed.etag)
        }
        None => {
            let read = client.cluster_settings().await?;
            Shown::new(read.settings, read.etag)
        }
    };
    output.result(&shown, describe)?;
    Ok(ExitCode::SUCCESS)
}

/// What is to be changed; `None`: nothing.
fn change(set: &[(&'static str, u64)]) -> anyhow::Result<Option<v1::UpdateClusterSettingsRequest>> {
    if set.is_empty() {
        return Ok(None);
    }
    let mut asked = ClusterSettings::default();
    let mut paths = Vec::new();
    for (key, value) in set {
        if paths.iter().any(|path| path == key) {
            return Err(Failure::usage(format!("--set: {key} is set twice")).into());
        }
        paths.push((*key).to_owned());
        asked.set(key, *value);
    }
    let ClusterSettings { skew_margin_ms, close_grace_ms, retry_window_ms } = asked;
    Ok(Some(v1::UpdateClusterSettingsRequest {
        settings: Some(v1::ClusterSettings { skew_margin_ms, close_grace_ms, retry_window_ms }),
        update_mask: Some(prost_types::FieldMask { paths }),
        etag: String::new(),
    }))
}

fn describe(shown: &Shown) -> String {
    let mut table = Table::new();
    table.load_style(presets::UTF8_BORDERS_ONLY);
    table.set_header(["setting", "value", "meaning"]);
    let meanings = [
        "clocks may differ by this much",
        "a new leader closes nothing for this long",
        "closed allowances answer retries exactly for this long",
    ];
    for ((key, value), meaning) in shown.settings.fields().into_iter().zip(meanings) {
        table.add_row([key, &value.to_string(), meaning]);
    }
    table.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn several_settings_are_one_change() {
        let set: Vec<_> = ["close_grace_ms=0", "skew_margin_ms=8000"].map(|text| pair(text).expect("is right")).into();
        let request = change(&set).expect("is right").expect("changes something");
        assert_eq!(request.update_mask.expect("names fields").paths, ["close_grace_ms", "skew_margin_ms"]);
        let settings = request.settings.expect("has values");
        assert_eq!((settings.close_grace_ms, settings.skew_margin_ms), (0, 8_000));
        assert!(change(&[]).expect("nothing is right").is_none());
    }

    #[test]
    fn what_is_no_change_says_why() {
        for (text, why) in [
            ("skew_margin_ms", "KEY=VALUE"),
            ("tick_ms=5", "there are skew_margin_ms, close_grace_ms, retry_window_ms"),
            ("settings.skew_margin_ms=5", "no such key"),
            ("skew_margin_ms=5s", "skew_margin_ms: \"5s\" is no whole number"),
            ("skew_margin_ms=-1", "no whole number"),
        ] {
            let error = pair(text).expect_err("is wrong");
            assert!(error.contains(why), "{text}: {error}");
        }
        let twice = change(&[("close_grace_ms", 1), ("close_grace_ms", 2)]).expect_err("is wrong").to_string();
        assert_eq!(twice, "--set: close_grace_ms is set twice");
    }

    #[test]
    fn people_and_scripts_see_every_value() {
        let settings = v1::ClusterSettings { skew_margin_ms: 8_000, close_grace_ms: 0, retry_window_ms: 600_000 };
        let shown = Shown::new(Some(settings), "7".into());
        let text = describe(&shown);
        assert!(text.contains("8000") && text.contains("retry_window_ms"), "{text}");
        let json = serde_json::to_value(&shown).expect("serializes");
        let expected = serde_json::json!({
            "skew_margin_ms": 8_000, "close_grace_ms": 0, "retry_window_ms": 600_000, "etag": "7"
        });
        assert_eq!(json, expected);
    }
}
