//! How commands reach a node.

use std::time::Duration;

use andante_cluster::env::{Rng as _, SystemRng};
use tonic::{
    Request,
    transport::{Channel, Endpoint},
};

use super::failure::{Failure, UNAVAILABLE};

/// Waiting longer for a connection only hides that nobody is there.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// What all commands that talk to a node have in common.
#[derive(Debug, Clone, clap::Args)]
pub(super) struct Common {
    /// The node, as URL or host:port.
    #[arg(long, env = "ANDANTE_ADDR", default_value = "http://127.0.0.1:7400", value_name = "URL")]
    pub(super) addr: String,
    /// Write JSON, for scripts.
    #[arg(long)]
    pub(super) json: bool,
    /// How long to wait for an answer, in milliseconds.
    #[arg(long, default_value_t = 10_000, value_parser = clap::value_parser!(u64).range(1..=600_000))]
    pub(super) timeout_ms: u64,
}

impl Common {
    /// Connects to the node.
    pub(super) async fn connect(&self) -> Result<Channel, Failure> {
        let url = if self.addr.contains("://") { self.addr.clone() } else { format!("http://{}", self.addr) };
        let endpoint = Endpoint::from_shared(url.clone())
            .map_err(|_| Failure::usage(format!("--addr: {:?} is no address like http://127.0.0.1:7400", self.addr)))?;
        endpoint.connect_timeout(CONNECT_TIMEOUT).tcp_nodelay(true).connect().await.map_err(|error| {
            let mut cause: &dyn std::error::Error = &error;
            while let Some(deeper) = cause.source() {
                cause = deeper;
            }
            Failure::new(UNAVAILABLE, format!("no node answers at {url} ({cause}); is `andante node` running there?"))
        })
    }

    /// A request with the deadline.
    pub(super) fn request<T>(&self, message: T) -> Request<T> {
        let mut request = Request::new(message);
        request.set_timeout(Duration::from_millis(self.timeout_ms));
        request
    }
}

/// An id for a write whose caller gave none.
pub(super) fn new_request_id() -> String {
    format!("cli-{:016x}", SystemRng.u64())
}
