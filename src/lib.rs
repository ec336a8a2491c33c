//! Andante: promotion scores for music personalization, with budgets paced by a replicated actor cluster.
//!
//! # The parts, from the inside out
//! - [`campaign`]: the pure core. Ledger, allowances, tokens, pacing, score, guardrails, the book of a shard.
//!   No IO, no async, no clock, no randomness, no global state.
//! - [`actor`]: one supervised actor per campaign; cells that the score path reads without messages.
//! - [`access`]: who may do what: access tokens with roles, the certificate clients see.
//! - [`peer`]: what nodes' routers ask each other. [`router`]: catalog, fan-out, merge.
//! - [`node`]: puts host, actors and router together.
//! - [`v1`]: the wire contract. [`api`]: its handlers, and HTTP for metrics and probes.
//! - [`trace`]: recorded traffic, for backtests and replays. [`backtest`]: the pacing code, offline.
//! - [`client`]: the client library: several addresses, safe retries, outcomes in batches.
//! - [`verify`]: a sceptical caller: reports, keeps a record, holds ledgers against it. [`replay`] plays a recorded
//!   trace with it, [`demo`] a synthetic day against a node of its own.
//! - [`status`]: how a cluster is, judged from what its nodes say.
//! - `directory_setting`: changing what all nodes read in the directory.
//! - [`feature`]: what each feature level brought, and when a cluster may use it.
//! - [`settings`], [`config`]: what may be tuned. [`metrics`], [`telemetry`]: what a node counts and logs.
//! - [`cli`]: the command line.
//!
//! # The flows
//! - **Score:** api -> router (catalog) -> cells, here and by one call per node elsewhere -> campaign (score, merge) ->
//!   take -> reply. No log write, no message.
//! - **Outcome:** api -> router (token, shard) -> proposer -> log -> apply -> reply. Needs no actor; the actor learns of
//!   it at its next tick.
//! - **Grant:** a tick finds an allowance running low -> the shard's entry -> log -> apply -> the actor takes it over
//!   into its cell.
//! - **Settings:** api -> router -> log -> apply -> cell and catalog, at once -> reply.

pub mod access;
pub mod actor;
pub mod api;
pub mod backtest;
pub mod campaign;
pub mod cli;
pub mod client;
pub mod config;
pub mod demo;
mod directory_setting;
pub mod feature;
pub mod metrics;
pub mod node;
pub mod peer;
pub mod replay;
pub mod router;
pub mod settings;
pub mod status;
pub mod telemetry;
pub mod trace;
pub mod v1;
pub mod verify;

/// The README's examples must compile.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
