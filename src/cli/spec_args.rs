//! A campaign's settings from flags, a file, or both.

use std::{
    collections::BTreeMap,
    io::Read as _,
    path::{Path, PathBuf},
};

use anyhow::Context as _;

use super::{
    failure::Failure,
    json::{Billable, Spec},
    time,
};
use crate::v1;

/// Largest file of one campaign's settings: 500 tracks need some 40 KB.
const FILE_BYTES_MAX: u64 = 1 << 20;

/// Settings; what is not given is as in the file, or the default (create), or stays as it is (update).
#[derive(Debug, Clone, Default, clap::Args)]
pub(super) struct SpecArgs {
    /// JSON file with settings, names as in the .proto file; `-` reads standard input. Flags win over it.
    #[arg(long, short, value_name = "FILE")]
    file: Option<PathBuf>,
    /// Who pays.
    #[arg(long)]
    owner: Option<String>,
    /// A label to filter by; may be repeated.
    #[arg(long = "label", value_name = "KEY=VALUE", value_parser = label)]
    labels: Vec<(String, String)>,
    /// An opted-in track; may be repeated or separated by commas.
    #[arg(long = "track", value_name = "ID", value_delimiter = ',')]
    tracks: Vec<String>,
    /// A surface to promote on (radio, autoplay, mix, ...); may be repeated; without any: all.
    #[arg(long = "surface", value_name = "SURFACE", value_delimiter = ',')]
    surfaces: Vec<String>,
    /// A market to promote in (ISO 3166 alpha-2); may be repeated; without any: all.
    #[arg(long = "market", value_name = "MARKET", value_delimiter = ',')]
    markets: Vec<String>,
    /// Start of the flight: RFC 3339, milliseconds, `now` or an offset like +2h.
    #[arg(long, value_name = "TIME", value_parser = time::parse)]
    start: Option<u64>,
    /// End of the flight, exclusive; written like the start.
    #[arg(long, value_name = "TIME", value_parser = time::parse)]
    end: Option<u64>,
    /// Budget in micros of the cluster's currency.
    #[arg(long, value_name = "MICROS")]
    budget_micros: Option<u64>,
    /// Price of one delivery in micros.
    #[arg(long, value_name = "MICROS")]
    price_micros: Option<u64>,
    /// What bills; fixed at creation.
    #[arg(long, value_enum)]
    billable: Option<Billable>,
    /// Shortest stream that counts, in milliseconds.
    #[arg(long, value_name = "MS")]
    min_stream_ms: Option<u64>,
    /// How long a token is promised to be billable, in milliseconds.
    #[arg(long, value_name = "MS")]
    hold_ms: Option<u64>,
    /// Candidates with a lower organic relevance are not promoted.
    #[arg(long, value_name = "NUMBER")]
    relevance_floor: Option<f64>,
    /// Highest promotion score.
    #[arg(long, value_name = "NUMBER")]
    boost_cap: Option<f64>,
    /// At most this many placements per listener and window; 0: no cap.
    #[arg(long, value_name = "N")]
    frequency_cap: Option<u32>,
    /// Length of the frequency window in milliseconds.
    #[arg(long, value_name = "MS")]
    frequency_window_ms: Option<u64>,
    /// Expected share of placements that become billable.
    #[arg(long, value_name = "SHARE")]
    expected_billable_share: Option<f64>,
}

fn label(text: &str) -> Result<(String, String), String> {
    let (key, value) = text.split_once('=').unwrap_or((text, ""));
    if key.is_empty() { Err("a label is key=value".into()) } else { Ok((key.into(), value.into())) }
}

impl SpecArgs {
    /// The settings, and the names of those that were given.
    pub(super) fn read(self, name: Option<String>) -> anyhow::Result<(v1::CampaignSpec, Vec<String>)> {
        let (mut spec, mut given) = match &self.file {
            Some(path) => read_file(path)?,
            None => (Spec::default(), Vec::new()),
        };
        match name {
            Some(name) if !spec.name.is_empty() && spec.name != name => {
                return Err(Failure::usage(format!("the file is about {:?}, not {name:?}", spec.name)).into());
            }
            Some(name) => spec.name = name,
            None => {}
        }
        let SpecArgs { labels, tracks, surfaces, markets, .. } = self;
        let labels = Some(labels).filter(|l| !l.is_empty()).map(BTreeMap::from_iter);
        let list = |list: Vec<String>| Some(list).filter(|list| !list.is_empty());
        macro_rules! flags {
            ($($field:ident = $value:expr;)*) => {
                $(if let Some(value) = $value {
                    spec.$field = value;
                    given.push(stringify!($field).to_owned());
                })*
            };
        }
        flags! {
            owner = self.owner;
            labels = labels;
            track_ids = list(tracks);
            surfaces = list(surfaces);
            markets = list(markets);
            start_ms = self.start;
            end_ms = self.end;
            budget_micros = self.budget_micros;
            price_micros = self.price_micros;
            billable = self.billable;
            min_stream_ms = self.min_stream_ms;
            hold_ms = self.hold_ms;
            relevance_floor = self.relevance_floor;
            boost_cap = self.boost_cap;
            frequency_cap = self.frequency_cap;
            frequency_window_ms = self.frequency_window_ms;
            expected_billable_share = self.expected_billable_share;
        }
        given.retain(|field| field != "name");
        given.sort();
        given.dedup();
        Ok((spec.into(), given))
    }
}

fn read_file(path: &Path) -> anyhow::Result<(Spec, Vec<String>)> {
    let text = read_bounded(path, FILE_BYTES_MAX)?;
    let bad = |e: serde_json::Error| Failure::usage(format!("{}: {e}", path.display()));
    let value: serde_json::Value = serde_json::from_str(&text).map_err(bad)?;
    let given = value.as_object().map(|o| o.keys().cloned().collect()).unwrap_or_default();
    // From the text again: an error then has its line.
    Ok((serde_json::from_str(&text).map_err(bad)?, given))
}

/// The text of a file, or of standard input for `-`, up to a limit.
pub(super) fn read_bounded(path: &Path, max_bytes: u64) -> anyhow::Result<String> {
    let unreadable = || format!("{} can't be read", path.display());
    let mut text = String::new();
    let read = if path.as_os_str() == "-" {
        std::io::stdin().take(max_bytes + 1).read_to_string(&mut text)
    } else {
        std::fs::File::open(path).with_context(unreadable)?.take(max_bytes + 1).read_to_string(&mut text)
    };
    let bytes = read.with_context(unreadable)?;
    if bytes as u64 > max_bytes {
        return Err(Failure::usage(format!("{} is larger than {max_bytes} bytes", path.display())).into());
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    #[test]
    fn flags_win_over_the_file_and_the_mask_names_what_was_given() {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(br#"{"name": "c", "budget_micros": 5, "price_micros": 1}"#).unwrap();
        let args = SpecArgs {
            file: Some(file.path().to_owned()),
            budget_micros: Some(7),
            tracks: vec!["a".into()],
            ..SpecArgs::default()
        };
        let (spec, given) = args.read(None).unwrap();
        assert_eq!((spec.name.as_str(), spec.budget_micros, spec.price_micros), ("c", 7, 1));
        assert_eq!(spec.track_ids, ["a"]);
        assert_eq!(given, ["budget_micros", "price_micros", "track_ids"]);
    }

    #[test]
    fn a_file_about_another_campaign_is_refused() {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(br#"{"name": "other"}"#).unwrap();
        let args = SpecArgs { file: Some(file.path().to_owned()), ..SpecArgs::default() };
        let error = args.read(Some("c".into())).unwrap_err().to_string();
        assert_eq!(error, "the file is about \"other\", not \"c\"");
    }

    #[test]
    fn a_bad_file_is_named_with_the_line() {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(b"{\n\"budget\": 5}").unwrap();
        let args = SpecArgs { file: Some(file.path().to_owned()), ..SpecArgs::default() };
        let error = args.read(None).unwrap_err().to_string();
        assert!(error.contains("unknown field `budget`") && error.contains("line 2"), "{error}");
    }
}
