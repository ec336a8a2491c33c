//! JSON as scripts read and write it: the .proto files' names in snake_case, enums as their short names, tokens as
//! URL-safe base64.

use std::collections::BTreeMap;

use base64::{
    Engine as _,
    alphabet::URL_SAFE,
    engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig},
};
use serde::{Deserialize, Deserializer, Serialize, de::Error as _};

use super::time;
use crate::v1;

const BASE64: GeneralPurpose = GeneralPurpose::new(
    &URL_SAFE,
    GeneralPurposeConfig::new().with_encode_padding(false).with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// A token as text.
pub(super) fn token_to_text(token: &[u8]) -> String {
    BASE64.encode(token)
}

/// A token from text; standard base64 is understood as well.
pub(super) fn token_from_text(text: &str) -> Result<Vec<u8>, String> {
    BASE64.decode(text.replace('+', "-").replace('/', "_")).map_err(|e| format!("{text:?} is no token: {e}"))
}

/// Settings of a campaign. What is left out has the default of the .proto file.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct Spec {
    pub(super) name: String,
    pub(super) owner: String,
    pub(super) labels: BTreeMap<String, String>,
    pub(super) track_ids: Vec<String>,
    pub(super) surfaces: Vec<String>,
    pub(super) markets: Vec<String>,
    #[serde(deserialize_with = "time_ms")]
    pub(super) start_ms: u64,
    #[serde(deserialize_with = "time_ms")]
    pub(super) end_ms: u64,
    pub(super) budget_micros: u64,
    pub(super) price_micros: u64,
    pub(super) billable: Billable,
    pub(super) min_stream_ms: u64,
    pub(super) hold_ms: u64,
    pub(super) relevance_floor: f64,
    pub(super) boost_cap: f64,
    pub(super) frequency_cap: u32,
    pub(super) frequency_window_ms: u64,
    pub(super) expected_billable_share: f64,
}

/// What bills.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "UPPERCASE")]
pub(super) enum Billable {
    /// Each impression.
    Impression,
    /// Each stream of at least the minimum length.
    #[default]
    Stream,
}

/// A time in a file: milliseconds, or text as on the command line.
fn time_ms<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u64, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Time {
        Millis(u64),
        Text(String),
    }
    match Time::deserialize(deserializer)? {
        Time::Millis(ms) => Ok(ms),
        Time::Text(text) => time::parse(&text).map_err(D::Error::custom),
    }
}

impl From<Spec> for v1::CampaignSpec {
    fn from(spec: Spec) -> Self {
        let billable = match spec.billable {
            Billable::Impression => v1::BillableKind::Impression,
            Billable::Stream => v1::BillableKind::Stream,
        };
        v1::CampaignSpec {
            name: spec.name,
            owner: spec.owner,
            labels: spec.labels,
            track_ids: spec.track_ids,
            surfaces: spec.surfaces,
            markets: spec.markets,
            start_ms: spec.start_ms,
            end_ms: spec.end_ms,
            budget_micros: spec.budget_micros,
            price_micros: spec.price_micros,
            billable: billable as i32,
            min_stream_ms: spec.min_stream_ms,
            hold_ms: spec.hold_ms,
            relevance_floor: spec.relevance_floor,
            boost_cap: spec.boost_cap,
            frequency_cap: spec.frequency_cap,
            frequency_window_ms: spec.frequency_window_ms,
            expected_billable_share: spec.expected_billable_share,
        }
    }
}

impl From<v1::CampaignSpec> for Spec {
    fn from(spec: v1::CampaignSpec) -> Self {
        let billable = match spec.billable() {
            v1::BillableKind::Impression => Billable::Impression,
            v1::BillableKind::Stream | v1::BillableKind::Unspecified => Billable::Stream,
        };
        Spec {
            name: spec.name,
            owner: spec.owner,
            labels: spec.labels,
            track_ids: spec.track_ids,
            surfaces: spec.surfaces,
            markets: spec.markets,
            start_ms: spec.start_ms,
            end_ms: spec.end_ms,
            budget_micros: spec.budget_micros,
            price_micros: spec.price_micros,
            billable,
            min_stream_ms: spec.min_stream_ms,
            hold_ms: spec.hold_ms,
            relevance_floor: spec.relevance_floor,
            boost_cap: spec.boost_cap,
            frequency_cap: spec.frequency_cap,
            frequency_window_ms: spec.frequency_window_ms,
            expected_billable_share: spec.expected_billable_share,
        }
    }
}

/// A campaign with its ledger.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(super) struct Campaign {
    pub(super) spec: Spec,
    pub(super) etag: String,
    pub(super) state: &'static str,
    pub(super) incarnation: u32,
    pub(super) created_ms: u64,
    pub(super) updated_ms: u64,
    pub(super) ledger: Ledger,
    pub(super) explanation: String,
}

/// Money and counts.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub(super) struct Ledger {
    pub(super) settled_micros: u64,
    pub(super) open_micros: u64,
    pub(super) billed: u64,
    pub(super) impressions: u64,
    pub(super) streams: u64,
    pub(super) short_streams: u64,
    pub(super) skips: u64,
    pub(super) saves: u64,
    pub(super) released: u64,
    pub(super) expired: u64,
    pub(super) refused_closed: u64,
    pub(super) open_allowances: u32,
}

/// `CAMPAIGN_STATE_ACTIVE` is `ACTIVE`.
pub(super) fn state_name(state: v1::CampaignState) -> &'static str {
    let name = state.as_str_name();
    name.strip_prefix("CAMPAIGN_STATE_").unwrap_or(name)
}

impl From<v1::Campaign> for Campaign {
    fn from(campaign: v1::Campaign) -> Self {
        let state = state_name(campaign.state());
        let ledger = campaign.ledger.unwrap_or_default();
        Campaign {
            spec: campaign.spec.unwrap_or_default().into(),
            etag: campaign.etag,
            state,
            incarnation: campaign.incarnation,
            created_ms: campaign.created_ms,
            updated_ms: campaign.updated_ms,
            ledger: Ledger {
                settled_micros: ledger.settled_micros,
                open_micros: ledger.open_micros,
                billed: ledger.billed,
                impressions: ledger.impressions,
                streams: ledger.streams,
                short_streams: ledger.short_streams,
                skips: ledger.skips,
                saves: ledger.saves,
                released: ledger.released,
                expired: ledger.expired,
                refused_closed: ledger.refused_closed,
                open_allowances: ledger.open_allowances,
            },
            explanation: campaign.explanation,
        }
    }
}

/// Money for people: units of the currency.
pub(super) fn money(micros: u64) -> String {
    const UNIT: u64 = 1_000_000;
    let text = format!("{}.{:06}", micros / UNIT, micros % UNIT);
    // At least two decimals, as money has.
    let keep = text.len() - 4 + text[text.len() - 4..].trim_end_matches('0').len();
    text[..keep].to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_are_read_with_the_names_of_the_contract() {
        let spec: Spec = serde_json::from_str(
            r#"{"name": "c", "track_ids": ["t"], "end_ms": "2026-01-01T00:00:00Z", "start_ms": 5, "billable": "IMPRESSION"}"#,
        )
        .unwrap();
        assert_eq!((spec.end_ms, spec.start_ms, spec.billable), (1_767_225_600_000, 5, Billable::Impression));
    }

    #[test]
    fn an_unknown_field_is_an_error_that_names_it() {
        let error = serde_json::from_str::<Spec>(r#"{"budget": 3}"#).unwrap_err().to_string();
        assert!(error.contains("`budget`") && error.contains("budget_micros"), "{error}");
    }

    #[test]
    fn settings_survive_the_way_to_the_wire_and_back() {
        let spec =
            Spec { name: "c".into(), hold_ms: 9, billable: Billable::Impression, boost_cap: 0.5, ..Spec::default() };
        assert_eq!(Spec::from(v1::CampaignSpec::from(spec.clone())), spec);
    }

    #[test]
    fn every_field_of_the_contract_is_there() {
        use prost::Message as _;
        let files = prost_types::FileDescriptorSet::decode(v1::FILE_DESCRIPTOR_SET).unwrap();
        let names = |message: &str| -> Vec<String> {
            let messages = files.file.iter().flat_map(|file| &file.message_type);
            let found = messages.into_iter().find(|m| m.name() == message).expect("it is in the contract");
            found.field.iter().map(|field| field.name().to_owned()).collect()
        };
        let keys = |value: serde_json::Value| -> Vec<String> { value.as_object().unwrap().keys().cloned().collect() };
        let sorted = |mut names: Vec<String>| {
            names.sort();
            names
        };
        let campaign = serde_json::to_value(Campaign::from(v1::Campaign::default())).unwrap();
        assert_eq!(sorted(keys(campaign["spec"].clone())), sorted(names("CampaignSpec")));
        assert_eq!(sorted(keys(campaign["ledger"].clone())), sorted(names("Ledger")));
        assert_eq!(sorted(keys(campaign)), sorted(names("Campaign")));
    }

    #[test]
    fn tokens_survive_as_text_in_both_alphabets() {
        let token = [0xfb, 0xff, 0x00, 0x01];
        assert_eq!(token_to_text(&token), "-_8AAQ");
        for text in ["-_8AAQ", "+/8AAQ==", "-_8AAQ=="] {
            assert_eq!(token_from_text(text).unwrap(), token, "{text}");
        }
        assert!(token_from_text("!").is_err());
    }

    #[test]
    fn money_is_shown_in_units() {
        for (micros, text) in
            [(0, "0.00"), (1, "0.000001"), (1_500_000, "1.50"), (12_345_600, "12.3456"), (10_000_000, "10.00")]
        {
            assert_eq!(money(micros), text);
        }
    }
}
