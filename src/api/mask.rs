//! Update masks: which settings an update changes.

use tonic_types::FieldViolation;

use super::validate::Violations;
use crate::v1::CampaignSpec;

/// Copies a field from the first to the second.
type Copy = fn(&CampaignSpec, &mut CampaignSpec);

/// The fields an update may name.
const FIELDS: [(&str, Copy); 16] = [
    ("owner", |from, to| to.owner.clone_from(&from.owner)),
    ("labels", |from, to| to.labels.clone_from(&from.labels)),
    ("track_ids", |from, to| to.track_ids.clone_from(&from.track_ids)),
    ("surfaces", |from, to| to.surfaces.clone_from(&from.surfaces)),
    ("markets", |from, to| to.markets.clone_from(&from.markets)),
    ("start_ms", |from, to| to.start_ms = from.start_ms),
    ("end_ms", |from, to| to.end_ms = from.end_ms),
    ("budget_micros", |from, to| to.budget_micros = from.budget_micros),
    ("price_micros", |from, to| to.price_micros = from.price_micros),
    ("min_stream_ms", |from, to| to.min_stream_ms = from.min_stream_ms),
    ("hold_ms", |from, to| to.hold_ms = from.hold_ms),
    ("relevance_floor", |from, to| to.relevance_floor = from.relevance_floor),
    ("boost_cap", |from, to| to.boost_cap = from.boost_cap),
    ("frequency_cap", |from, to| to.frequency_cap = from.frequency_cap),
    ("frequency_window_ms", |from, to| to.frequency_window_ms = from.frequency_window_ms),
    ("expected_billable_share", |from, to| to.expected_billable_share = from.expected_billable_share),
];
/// What is fixed at creation.
const FIXED: [&str; 2] = ["name", "billable"];

/// Checks a mask.
///
/// # Errors
/// It is empty, or names what is unknown, nested or fixed.
pub(crate) fn check(paths: &[String]) -> Result<(), Vec<FieldViolation>> {
    let mut bad = Violations::default();
    bad.check(!paths.is_empty(), || "update_mask".into(), || "must name at least one field to change".into());
    for (i, path) in paths.iter().enumerate() {
        let known = FIELDS.iter().any(|(name, _)| name == path);
        let fixed = FIXED.contains(&path.as_str());
        bad.check(
            known,
            || format!("update_mask.paths[{i}]"),
            || {
                if fixed {
                    format!("{path} is fixed at creation")
                } else {
                    let shown: String = path.chars().take(80).collect();
                    let names: Vec<&str> = FIELDS.iter().map(|(name, _)| *name).collect();
                    format!("{shown:?} can't be changed; there are {}", names.join(", "))
                }
            },
        );
    }
    bad.finish()
}

/// `current` with the fields of a checked mask from `new`.
pub(crate) fn merge(mut current: CampaignSpec, new: &CampaignSpec, paths: &[String]) -> CampaignSpec {
    for (name, copy) in FIELDS {
        if paths.iter().any(|path| path == name) {
            copy(new, &mut current);
        }
    }
    current
}

#[cfg(test)]
mod tests {
    use prost::Message as _;

    use super::*;
    use crate::v1;

    fn paths(names: &[&str]) -> Vec<String> {
        names.iter().map(|n| (*n).to_owned()).collect()
    }

    #[test]
    fn a_mask_names_what_is_there_and_may_change() {
        assert!(check(&paths(&["budget_micros", "labels"])).is_ok());
        for bad in
            [&[][..], &["name"], &["billable"], &["tracks"], &["spec.budget_micros"], &["*"], &["labels.a"], &[""]]
        {
            assert!(check(&paths(bad)).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn only_named_fields_change() {
        let current = CampaignSpec { budget_micros: 1, price_micros: 2, ..Default::default() };
        let new = CampaignSpec { budget_micros: 10, price_micros: 20, ..Default::default() };
        let merged = merge(current, &new, &paths(&["budget_micros"]));
        assert_eq!((merged.budget_micros, merged.price_micros), (10, 2));
    }

    #[test]
    fn every_field_of_the_contract_is_either_changeable_or_fixed() {
        let files = prost_types::FileDescriptorSet::decode(v1::FILE_DESCRIPTOR_SET).unwrap();
        let spec = files
            .file
            .iter()
            .flat_map(|file| &file.message_type)
            .find(|message| message.name() == "CampaignSpec")
            .expect("CampaignSpec is in the contract");
        for field in &spec.field {
            let changeable = FIELDS.iter().any(|(name, _)| *name == field.name());
            let fixed = FIXED.contains(&field.name());
            assert!(changeable != fixed, "{}", field.name());
        }
        assert_eq!(spec.field.len(), FIELDS.len() + FIXED.len());
    }
}
