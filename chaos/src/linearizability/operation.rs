//! What clients asked of a campaign and what they were answered.

use std::fmt;

/// One request of a client, from its first call to its answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Operation {
    /// Who asked: for the explanation only. A client may have several operations under way.
    pub client: u32,
    /// The campaign's name.
    pub campaign: String,
    /// When it was asked, on one clock for all clients, in any unit.
    pub called: u64,
    /// When the answer came; `None` if none came. It tells nothing if the outcome is [`Outcome::Unknown`].
    pub returned: Option<u64>,
    /// What was asked.
    pub action: Action,
    /// What was answered.
    pub outcome: Outcome,
    /// It had a request id. A server that repeats such a write answers with the campaign as it is by then, which may
    /// be a later version than the write made; without an id the answer shows exactly what the write made.
    pub has_request_id: bool,
}

/// What a client asks of a campaign.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// Creates it.
    Create {
        /// Its budget.
        budget_micros: u64,
        /// The price of one delivery.
        price_micros: u64,
    },
    /// Reads it. One campaign's part of a list is a read as well.
    Read,
    /// Changes the settings that are named.
    Update {
        /// The new budget.
        budget_micros: Option<u64>,
        /// The new price.
        price_micros: Option<u64>,
        /// Only if the campaign is as it was read before.
        expected: Option<Version>,
    },
    /// Pauses it.
    Pause {
        /// As for [`Action::Update`].
        expected: Option<Version>,
    },
    /// Lets it go on.
    Resume {
        /// As for [`Action::Update`].
        expected: Option<Version>,
    },
    /// Ends it for good.
    End {
        /// As for [`Action::Update`].
        expected: Option<Version>,
    },
    /// Deletes it: at once, or when its last allowance has closed.
    Delete {
        /// As for [`Action::Update`].
        expected: Option<Version>,
    },
}

/// What a client was answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// The campaign: what a read found, or how it is after a write that was applied.
    Shown(Seen),
    /// The campaign was deleted and is gone.
    Gone,
    /// Nothing was changed.
    Refused(Refusal),
    /// No answer, or one that leaves open whether the write was or will be applied.
    Unknown,
}

/// Why nothing was changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refusal {
    /// There is no campaign of this name; also of a read.
    NotFound,
    /// There is a campaign of this name.
    AlreadyExists,
    /// The campaign is of another version than expected.
    StaleEtag,
    /// The campaign is over.
    WrongState,
    /// Anything else that leaves no doubt that nothing was changed: a budget too low, an overloaded server.
    Other,
}

/// What clients see of a campaign, but for the ledger: that changes without them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Seen {
    /// Which version of which campaign of this name.
    pub version: Version,
    /// Its budget.
    pub budget_micros: u64,
    /// The price of one delivery.
    pub price_micros: u64,
    /// Where it stands.
    pub state: State,
}

/// One version of one campaign. Versions of campaigns of one name are ordered by time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Version {
    /// Tells campaigns of the same name apart; a later one has a higher number.
    pub incarnation: u32,
    /// Counts the changes of settings and state, from 1.
    pub revision: u64,
}

/// Where a campaign stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum State {
    /// Delivers.
    Active,
    /// Paused.
    Paused,
    /// Over for good.
    Ended,
    /// Goes by itself, some time later.
    Deleting,
}

impl Version {
    /// Of a campaign on the wire. Its etag is the incarnation and the revision in decimal digits: the revision is unique
    /// within an incarnation, and in the order of the changes. `None` if it is not.
    pub fn from_wire(incarnation: u32, etag: &str) -> Option<Self> {
        let (named, revision) = etag.split_once('-')?;
        let revision = revision.parse().ok().filter(|revision| *revision > 0)?;
        (named.parse() == Ok(incarnation)).then_some(Self { incarnation, revision })
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "#{}.{}", self.incarnation, self.revision)
    }
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            State::Active => "active",
            State::Paused => "paused",
            State::Ended => "ended",
            State::Deleting => "deleting",
        })
    }
}

impl fmt::Display for Seen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { version, budget_micros, price_micros, state } = self;
        write!(f, "{version} {state} budget={budget_micros} price={price_micros}")
    }
}

impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (word, expected) = match self {
            Action::Create { budget_micros, price_micros } => {
                return write!(f, "create budget={budget_micros} price={price_micros}");
            }
            Action::Read => ("read", &None),
            Action::Update { budget_micros, price_micros, expected } => {
                f.write_str("update")?;
                budget_micros.map_or(Ok(()), |micros| write!(f, " budget={micros}"))?;
                price_micros.map_or(Ok(()), |micros| write!(f, " price={micros}"))?;
                ("", expected)
            }
            Action::Pause { expected } => ("pause", expected),
            Action::Resume { expected } => ("resume", expected),
            Action::End { expected } => ("end", expected),
            Action::Delete { expected } => ("delete", expected),
        };
        f.write_str(word)?;
        expected.map_or(Ok(()), |version| write!(f, " if {version}"))
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Outcome::Shown(seen) => seen.fmt(f),
            Outcome::Gone => f.write_str("gone"),
            Outcome::Refused(Refusal::NotFound) => f.write_str("not found"),
            Outcome::Refused(Refusal::AlreadyExists) => f.write_str("already exists"),
            Outcome::Refused(Refusal::StaleEtag) => f.write_str("stale etag"),
            Outcome::Refused(Refusal::WrongState) => f.write_str("wrong state"),
            Outcome::Refused(Refusal::Other) => f.write_str("refused"),
            Outcome::Unknown => f.write_str("unknown"),
        }
    }
}

impl fmt::Display for Operation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { client, called, action, outcome, .. } = self;
        match self.returned {
            Some(returned) => write!(f, "[{called}..{returned}] ")?,
            None => write!(f, "[{called}..] ")?,
        }
        write!(f, "client {client}: {action} -> {outcome}")
    }
}
