//! A sceptical caller, as replay and demo play it: reports outcomes until their fate is known, keeps its own
//! record of what was acknowledged, and holds the ledgers against it.
//!
//! Nothing here trusts the server: what the record says was acknowledged must be in the ledgers, exactly once.

mod audit;
mod findings;
mod link;
mod outcome;
mod tally;

pub use audit::{Audit, compare_ledgers, repeat_tokens};
pub use findings::Findings;
pub use link::{Link, Patience, fate};
pub use outcome::{Event, Fate, Judgement, MIN_STREAM_MS, judge};
pub use tally::{Count, Tally};
