//! What one campaign name does when one operation comes after the other.
//!
//! A campaign that is being deleted goes by itself. That needs no step of its own: it is taken to be there as long as
//! an answer shows it, and gone when an answer needs that.

use super::{
    operation::{Action, Operation, Outcome, Refusal, Seen, State, Version},
    wgl::{Call, Specification},
};

/// What is known of a name: its campaign, and what came before that.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub(super) struct CampaignModel {
    /// The lowest number that the latest campaign that is gone can have had; 0: there was none.
    last_incarnation: u32,
    campaign: Option<Campaign>,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Campaign {
    /// `None`: created without an answer, and not seen since.
    incarnation: Option<u32>,
    revision: u64,
    budget_micros: u64,
    price_micros: u64,
    state: State,
}

/// What an operation did to the name, or told of it.
#[derive(Debug, Clone, Copy)]
pub(super) enum Step {
    /// It was applied, and the answer shows what it made.
    Made(Action, Seen),
    /// It was applied to the campaign of `seen`, which is no older than what it made.
    MadeBefore(Action, Seen),
    /// It was applied, or will be.
    Applied(Action),
    /// The campaign is this.
    Shown(Seen),
    /// A campaign that was being deleted is gone.
    Vanished,
    /// It was not applied, for this reason.
    Refused(Action, Refusal),
    /// An answer that this action never has.
    Nonsense,
}

impl Step {
    /// The steps of an operation, the second one after the first. None if it tells nothing: reads without an answer,
    /// and refusals for reasons that are not modelled.
    pub(super) fn of(operation: &Operation) -> Vec<Self> {
        let action = operation.action;
        let is_delete = matches!(action, Action::Delete { .. });
        match operation.outcome {
            Outcome::Unknown if action == Action::Read => vec![],
            Outcome::Unknown => vec![Step::Applied(action)],
            Outcome::Refused(Refusal::Other) => vec![],
            Outcome::Refused(refusal) => vec![Step::Refused(action, refusal)],
            Outcome::Shown(seen) if action == Action::Read => vec![Step::Shown(seen)],
            Outcome::Shown(seen) if operation.has_request_id => {
                vec![Step::MadeBefore(action, seen), Step::Shown(seen)]
            }
            Outcome::Shown(seen) => vec![Step::Made(action, seen)],
            // A repetition is told that what the first try deleted is gone, whatever is there by then.
            Outcome::Gone if is_delete => vec![Step::Applied(action), Step::Vanished],
            Outcome::Gone => vec![Step::Nonsense],
        }
    }

    /// The calls of an operation for the search, which number `first`, `first + 1`...
    pub(super) fn calls(operation: &Operation, first: usize) -> impl Iterator<Item = Call<Self>> {
        let called = operation.called;
        let returned = operation.returned.filter(|_| operation.outcome != Outcome::Unknown);
        Self::of(operation).into_iter().enumerate().map(move |(index, step)| {
            let after = (index > 0).then(|| first + index - 1);
            Call { called, returned, after, operation: step }
        })
    }
}

impl Specification for CampaignModel {
    type Operation = Step;
    type Age = Version;

    fn apply(&self, step: &Step) -> Option<Self> {
        match step {
            Step::Made(action, seen) => self.written(action, Some(seen.version.incarnation))?.shown(seen),
            Step::MadeBefore(action, seen) => {
                let next = self.written(action, Some(seen.version.incarnation))?;
                let next = next.is_incarnation(seen.version.incarnation)?;
                let made = next.campaign.as_ref()?.revision;
                if made == seen.version.revision {
                    next.shown(seen)
                } else {
                    (made < seen.version.revision).then_some(next)
                }
            }
            Step::Applied(action) => self.written(action, None),
            Step::Shown(seen) => self.shown(seen),
            Step::Vanished => self.vanished(),
            Step::Refused(action, refusal) => self.refused(action, *refusal),
            Step::Nonsense => None,
        }
    }

    fn age(&self) -> Version {
        match &self.campaign {
            Some(Campaign { incarnation, revision, .. }) => {
                Version { incarnation: incarnation.unwrap_or(self.last_incarnation + 1), revision: *revision }
            }
            None => Version { incarnation: self.last_incarnation, revision: u64::MAX },
        }
    }

    fn age_max(step: &Step) -> Option<Version> {
        match step {
            Step::Made(_, seen) | Step::MadeBefore(_, seen) | Step::Shown(seen) => Some(seen.version),
            Step::Applied(_) | Step::Vanished | Step::Refused(..) | Step::Nonsense => None,
        }
    }

    fn only_tells(step: &Step) -> bool {
        match step {
            Step::Made(..) | Step::MadeBefore(..) | Step::Applied(_) => false,
            Step::Shown(_) | Step::Vanished | Step::Refused(..) | Step::Nonsense => true,
        }
    }
}

impl CampaignModel {
    /// After a write that is applied here; `None` if it can't be. What is created has the `incarnation`.
    fn written(&self, action: &Action, incarnation: Option<u32>) -> Option<Self> {
        match *action {
            Action::Read => None,
            Action::Create { budget_micros, price_micros } => {
                let gone = self.vanished()?;
                let state = State::Active;
                let campaign = Campaign { incarnation, revision: 1, budget_micros, price_micros, state };
                let is_new = incarnation.is_none_or(|number| number > gone.last_incarnation);
                is_new.then_some(Self { campaign: Some(campaign), ..gone })
            }
            Action::Update { budget_micros, price_micros, expected } => self.changed(expected, |campaign| {
                campaign.budget_micros = budget_micros.unwrap_or(campaign.budget_micros);
                campaign.price_micros = price_micros.unwrap_or(campaign.price_micros);
                campaign.revision += 1;
                campaign.state.can_deliver()
            }),
            Action::Pause { expected } => self.moved(expected, State::Paused),
            Action::Resume { expected } => self.moved(expected, State::Active),
            Action::End { expected } => self.moved(expected, State::Ended),
            Action::Delete { expected } => self.moved(expected, State::Deleting),
        }
    }

    /// After a change of state, which counts as one only if it is to another state.
    fn moved(&self, expected: Option<Version>, to: State) -> Option<Self> {
        self.changed(expected, |campaign| {
            let from = campaign.state;
            campaign.revision += u64::from(from != to);
            campaign.state = to;
            from == to || to == State::Deleting || from.can_deliver()
        })
    }

    /// After a change of the campaign that answers whether it is allowed.
    fn changed(&self, expected: Option<Version>, change: impl FnOnce(&mut Campaign) -> bool) -> Option<Self> {
        let mut next = match expected {
            Some(version) => self.is_version(version)?,
            None => self.clone(),
        };
        change(next.campaign.as_mut()?).then_some(next)
    }

    /// If there is nothing, or nothing that could not be gone by now.
    fn vanished(&self) -> Option<Self> {
        let Some(campaign) = &self.campaign else { return Some(self.clone()) };
        let last_incarnation = campaign.incarnation.unwrap_or(self.last_incarnation + 1);
        (campaign.state == State::Deleting).then_some(Self { last_incarnation, campaign: None })
    }

    /// If the campaign can be what was seen.
    fn shown(&self, seen: &Seen) -> Option<Self> {
        let Seen { version, budget_micros, price_micros, state } = *seen;
        let next = self.is_version(version)?;
        let campaign = next.campaign.as_ref()?;
        let there = (campaign.budget_micros, campaign.price_micros, campaign.state);
        (there == (budget_micros, price_micros, state)).then_some(next)
    }

    fn is_version(&self, version: Version) -> Option<Self> {
        let next = self.is_incarnation(version.incarnation)?;
        (next.campaign.as_ref()?.revision == version.revision).then_some(next)
    }

    /// If the campaign can have this number, which it has from then on.
    fn is_incarnation(&self, incarnation: u32) -> Option<Self> {
        let mut next = self.clone();
        let campaign = next.campaign.as_mut()?;
        match campaign.incarnation {
            Some(known) => known == incarnation,
            None => {
                campaign.incarnation = Some(incarnation);
                incarnation > self.last_incarnation
            }
        }
        .then_some(next)
    }

    /// If there is reason for this refusal.
    fn refused(&self, action: &Action, refusal: Refusal) -> Option<Self> {
        let state = self.campaign.as_ref().map(|campaign| campaign.state);
        let may = match refusal {
            Refusal::NotFound => return self.vanished().filter(|_| !matches!(action, Action::Create { .. })),
            Refusal::AlreadyExists => matches!(action, Action::Create { .. }) && state.is_some(),
            Refusal::StaleEtag => match action.expected() {
                Some(version) => state.is_some() && self.is_version(version).is_none(),
                // The server makes it conditional by itself, and gives up after some tries.
                None => state.is_some() && matches!(action, Action::Update { .. }),
            },
            Refusal::WrongState => {
                return self.changed(action.expected(), |campaign| action.comes_too_late(campaign.state));
            }
            Refusal::Other => true,
        };
        may.then(|| self.clone())
    }

    /// In words, for the explanation of a violation.
    pub(super) fn describe(&self) -> String {
        let Some(Campaign { incarnation, revision, budget_micros, price_micros, state }) = self.campaign else {
            return "absent".into();
        };
        let incarnation = incarnation.map_or("?".into(), |number| number.to_string());
        format!("#{incarnation}.{revision} {state} budget={budget_micros} price={price_micros}")
    }
}

impl State {
    /// Neither ended nor deleting: it can be changed.
    fn can_deliver(self) -> bool {
        matches!(self, State::Active | State::Paused)
    }
}

impl Action {
    /// It is refused in this state.
    fn comes_too_late(&self, state: State) -> bool {
        match self {
            Action::Update { .. } | Action::Pause { .. } | Action::Resume { .. } => !state.can_deliver(),
            Action::End { .. } => state == State::Deleting,
            Action::Create { .. } | Action::Read | Action::Delete { .. } => false,
        }
    }

    /// The version that a conditional write expects.
    pub fn expected(&self) -> Option<Version> {
        match self {
            Action::Create { .. } | Action::Read => None,
            Action::Update { expected, .. }
            | Action::Pause { expected }
            | Action::Resume { expected }
            | Action::End { expected }
            | Action::Delete { expected } => *expected,
        }
    }
}
