//! The client library: what a personalization service, or anybody else in Rust, talks to a cluster with.
//!
//! ```no_run
//! use andante::{
//!     client::{BatcherConfig, Client, ClientConfig, OutcomeBatcher},
//!     v1::{Candidate, OutcomeEvent, OutcomeKind, ScoreRequest},
//! };
//!
//! # async fn example() -> Result<(), Box<dyn std::error::Error>> {
//! let client = Client::production(ClientConfig::new(["10.0.0.1:7400", "10.0.0.2:7400", "10.0.0.3:7400"]))?;
//! let reply = client
//!     .score(ScoreRequest {
//!         listener_id: "anna".into(),
//!         surface: "radio".into(),
//!         market: "SE".into(),
//!         candidates: vec![Candidate { track_id: "nl-01".into(), relevance: 0.9 }],
//!         slots: 1,
//!         ..Default::default()
//!     })
//!     .await?;
//!
//! let outcomes = OutcomeBatcher::new(client, BatcherConfig::default());
//! for placement in reply.placements {
//!     let kind = OutcomeKind::Stream as i32;
//!     let receipt = outcomes.send(OutcomeEvent { token: placement.token, kind, stream_ms: 187_000 }).await?;
//!     // Now, later, or in a task of its own: what became of the event.
//!     println!("{:?}", receipt.await?.status);
//! }
//! outcomes.close().await;
//! # Ok(())
//! # }
//! ```
//!
//! # Which node is asked
//! Any node answers everything. Each address has one connection, made at the first call. Nodes that drain get no new
//! calls, nodes that fail are set aside and looked at again; a connection that is refused costs a call nothing but the
//! time to try the next address.
//!
//! # What is tried again
//! Only what is safe, and only until the deadline:
//! - **Score** if it surely reached nobody, or was refused before any work. Or if its reply lacks shards and another may
//!   be complete ([`Incomplete`], bounded by a budget): such a reply is a failure in the eyes of a caller who wants all
//!   campaigns to compete. Asking again hands out new tokens, therefore those of the reply that is not used are released;
//!   the caller gets the most complete reply, never less than the first. An answer that was lost with its connection is
//!   not asked for again if it may have held placements, unless [`ScoreRetries::lost_placements`] says so.
//! - **Report** always: an event counts once per token and kind. Only events whose fate is open are sent again, and
//!   [`Reported::maybe_applied`] says whether a DUPLICATE may be this call's own.
//! - **Reads** always. **Writes** always, with one request id for all tries; the library makes one where the caller
//!   gave none. Changes of the cluster's settings need none: repeated they change nothing.
//!
//! There is no hedging: a second score would hand out tokens for nothing.

mod batch;
mod campaign;
mod channel;
mod config;
mod error;
mod health;
mod outcome;
mod pool;
mod retry;
mod score;
mod tries;

use std::{fmt, sync::Arc};

use andante_cluster::env::Env;
use tokio::sync::Semaphore;
use tokio_util::task::AbortOnDropHandle;

pub use batch::{BatcherConfig, Closed, OutcomeBatcher, Receipt, TrySendError};
pub(crate) use channel::Service;
pub use config::{ADDRESSES_MAX, ClientConfig, ConfigError, Deadlines, Incomplete, ScoreRetries};
pub use error::{CallError, Unreached};
pub use outcome::Reported;

use self::{
    channel::Bearer,
    pool::{Endpoint, Pool},
    retry::Budget,
};

/// Releases of unused placements under way; beyond it they expire by themselves.
const RELEASES_MAX: usize = 64;

/// A client of one cluster. Clones share its connections.
#[derive(Clone)]
pub struct Client {
    shared: Arc<Shared>,
    deadlines: Deadlines,
    fail_fast: bool,
}

struct Shared {
    pool: Pool,
    score_retries: ScoreRetries,
    budget: Budget,
    releases: Arc<Semaphore>,
    /// They end with the client.
    _health: Vec<AbortOnDropHandle<()>>,
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Client").field("addresses", &self.shared.pool.urls()).finish_non_exhaustive()
    }
}

impl Client {
    /// A client over the environment's network, clock and randomness. Connects at the first call; must be called within
    /// a tokio runtime.
    ///
    /// # Errors
    /// The configuration can't work, whatever the nodes do.
    pub fn connect(env: &Env, config: ClientConfig) -> Result<Self, ConfigError> {
        let checked = config::check(&config)?;
        let bearer = Bearer(checked.authorization);
        let endpoints = checked
            .addresses
            .iter()
            .map(|address| {
                let url = address.url();
                let channel = channel::open(&env.network, address, checked.tls.as_ref())
                    .map_err(|why| ConfigError::Address { address: url.clone(), why })?;
                let service = Service::new(channel, bearer.clone());
                Ok(Arc::new(Endpoint::new(url, service, Arc::clone(&env.clock), Arc::clone(&env.rng))))
            })
            .collect::<Result<Vec<_>, ConfigError>>()?;
        // With one address there is no choice that health could change.
        let followed = if endpoints.len() > 1 { endpoints.as_slice() } else { &[] };
        let follow =
            |endpoint: &Arc<Endpoint>| AbortOnDropHandle::new(tokio::spawn(health::follow(Arc::clone(endpoint))));
        let health = followed.iter().map(follow).collect();
        let pool = Pool { endpoints, clock: Arc::clone(&env.clock), rng: Arc::clone(&env.rng) };
        Ok(Self {
            shared: Arc::new(Shared {
                pool,
                score_retries: config.score_retries,
                budget: Budget::default(),
                releases: Arc::new(Semaphore::new(RELEASES_MAX)),
                _health: health,
            }),
            deadlines: config.deadlines,
            fail_fast: config.fail_fast,
        })
    }

    /// A client over this machine's network, clock and randomness. See [`Client::connect`].
    ///
    /// # Errors
    /// The configuration can't work, whatever the nodes do.
    pub fn production(config: ClientConfig) -> Result<Self, ConfigError> {
        Self::connect(&Env::production(), config)
    }

    /// The same client, with the same connections, and other deadlines.
    pub fn with_deadlines(&self, deadlines: Deadlines) -> Self {
        Self { deadlines, ..self.clone() }
    }

    /// The same client, with the same connections, that waits (or not) for addresses that accept no connection. See
    /// [`ClientConfig::fail_fast`].
    pub fn with_fail_fast(&self, fail_fast: bool) -> Self {
        Self { fail_fast, ..self.clone() }
    }

    /// An id for a write whose caller gave none: the same for all its tries.
    fn new_request_id(&self) -> String {
        format!("client-{:016x}", self.shared.pool.rng.u64())
    }
}
