//! The pure core: what a campaign is, what it may spend, and when to promote.
//!
//! No IO, no async, no clock, no randomness, no global state (a test checks this). Everything is a function of
//! values; time is an argument.
//!
//! - Money: [`ledger`] and [`allowance`] (with its [`bitmap`]) per campaign, all campaigns of a shard in the [`book`].
//!   What comes from outside is checked by [`spec`] against [`limits`]; [`token`]s prove what was handed out;
//!   a change can be made for one [`version`] only.
//! - Delivery: [`score`] with the learned [`quality`], [`merge`] within the [`guardrails`], [`pacing`] over the expected
//!   [`traffic`]; [`explain`] says what stands in the way. [`key_hash`] is for maps by campaign.

pub mod allowance;
pub mod bitmap;
pub mod book;
pub mod explain;
pub mod guardrails;
pub mod key_hash;
pub mod ledger;
pub mod limits;
pub mod merge;
pub mod pacing;
pub mod quality;
pub mod score;
pub mod spec;
pub mod token;
pub mod traffic;
pub mod version;

/// Commands, replies and records (`andante.book.v1`).
#[allow(missing_docs, unreachable_pub, unused_qualifications, clippy::all)]
pub mod proto {
    include!(concat!(env!("OUT_DIR"), "/andante.book.v1.rs"));
}
