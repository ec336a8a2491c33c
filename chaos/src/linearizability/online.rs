//! The cheap check: nobody is shown less than what was known before they asked.

use std::collections::{BTreeMap, HashMap};

use super::{Action, Operation, Outcome, Refusal, Seen, Version};

/// What is kept of a campaign's past, in answers and in versions. Of what began longer ago less is checked; nothing is
/// held against it wrongly.
const REMEMBERED_MAX: usize = 1_024;

/// Checks answers as they come. Of a violation of linearizability it finds only this:
///
/// - an answer older than one that had come before it was asked, among them a campaign that was gone;
/// - a write that was applied and made no newer version than one that had been seen before it was asked;
/// - one version with two contents.
///
/// Memory is bounded for each campaign, and grows with the number of names.
#[derive(Debug, Clone, Default)]
pub struct Online {
    campaigns: HashMap<String, Past>,
}

#[derive(Debug, Clone, Default)]
struct Past {
    /// The newest version that was known at a time, wherever that changed.
    newest: BTreeMap<u64, Version>,
    /// The contents of the newest versions.
    contents: BTreeMap<Version, Seen>,
}

impl Online {
    /// Takes an operation in the order of the answers. Those without an answer, or with one that shows no version, are
    /// of no use to it.
    ///
    /// # Errors
    /// What is wrong with the answer, in words.
    pub fn observe(&mut self, operation: &Operation) -> Result<(), String> {
        let Some(returned) = operation.returned else { return Ok(()) };
        let shown = match operation.outcome {
            Outcome::Shown(seen) => Some(seen),
            Outcome::Refused(Refusal::NotFound) => None,
            // That it is gone does not tell which one is: a repetition hears it while there is a later one.
            Outcome::Gone | Outcome::Refused(_) | Outcome::Unknown => return Ok(()),
        };
        let past = self.campaigns.entry(operation.campaign.clone()).or_default();
        let known = past.known_before(operation.called);
        let Some(seen) = shown else {
            // All that were known when it was asked are gone.
            if let Some(known) = known {
                past.learn(returned, Version { revision: u64::MAX, ..known });
            }
            return Ok(());
        };
        if let Some(known) = known {
            let is_new = match operation.action {
                Action::Create { .. } => seen.version.incarnation > known.incarnation,
                Action::Update { .. } => seen.version > known,
                _ => seen.version >= known,
            };
            if !is_new {
                let what = match known.revision {
                    u64::MAX => format!("campaign #{} was gone before", known.incarnation),
                    _ => format!("{known} was there before"),
                };
                return Err(wrong(operation, &what));
            }
        }
        let first = *past.contents.entry(seen.version).or_insert(seen);
        if first != seen {
            return Err(wrong(operation, &format!("this version was {first} before")));
        }
        if past.contents.len() > REMEMBERED_MAX {
            past.contents.pop_first();
        }
        past.learn(returned, seen.version);
        Ok(())
    }
}

impl Past {
    /// The newest version that had been shown before this time.
    fn known_before(&self, called: u64) -> Option<Version> {
        self.newest.range(..called).next_back().map(|(_, version)| *version)
    }

    fn learn(&mut self, returned: u64, version: Version) {
        if self.newest.range(..=returned).next_back().is_some_and(|(_, known)| *known >= version) {
            return;
        }
        self.newest.insert(returned, version);
        if self.newest.len() > REMEMBERED_MAX {
            self.newest.pop_first();
        }
    }
}

fn wrong(operation: &Operation, what: &str) -> String {
    format!("campaign {}: {operation}: {what}", operation.campaign)
}
