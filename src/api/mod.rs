//! The public API `andante.v1`: gRPC, and HTTP for metrics and probes. Thin: it validates, maps errors, calls the
//! router.
//!
//! - [`Listeners`], [`serve`]: what a node runs.
//! - `validate`, `spec`, `mask`, `page`: requests, as pure functions.
//! - `call`: what every RPC has in common: deadline, admission, metrics, span, panics. `shed`: when none is admitted.
//! - `auth`: who may call what.
//! - `score`, `outcome`, `campaign`, `import`, `watch`, `server`, `cluster`, `access`: one handler each.
//! - `error`, `details`: the one place that speaks gRPC status.

mod access;
mod auth;
mod call;
mod campaign;
mod cluster;
mod details;
mod error;
mod import;
mod incoming;
mod mask;
mod outcome;
mod page;
mod score;
mod serve;
mod server;
mod shed;
mod spec;
mod validate;
mod warnings;
mod watch;

pub mod http;

pub use error::{DOMAIN, reason};
pub use serve::{Listeners, ServeConfig, serve};

/// Largest request message. 500 candidates or 1,000 events with the longest ids have a tenth of it.
pub const MESSAGE_BYTES_MAX: usize = 1 << 20;
/// Candidates per Score.
pub const CANDIDATES_MAX: usize = 500;
/// Events per Report.
pub const EVENTS_MAX: usize = 1_000;
/// Campaigns per page of a list.
pub const PAGE_SIZE_MAX: u32 = 1_000;
/// Campaigns per page where the caller does not say.
pub const PAGE_SIZE_DEFAULT: u32 = 100;
