//! Andante: promotion scores for music personalization, with budgets paced by a replicated actor cluster.
//!
//! # The parts, from the inside out
//! - [`campaign`]: the pure core. Ledger, allowances, tokens, pacing, score, guardrails, the book of a shard.
//!   No IO, no async, no clock, no randomness, no global state.
//! - `actor`: one supervised actor per campaign; cells that the score path reads without messages.
//! - `router`: catalog, fan-out, merge.
//! - [`api`]: gRPC, and HTTP for metrics and probes.
//! - [`trace`]: recorded traces, for the backtest and the replay.
//! - `cli`: the command line.

pub mod api;
pub mod campaign;
pub mod trace;
