//! How commands reach a node.

use std::{convert::Infallible, path::PathBuf, time::Duration};

use andante_cluster::env::{Rng as _, SystemRng};

use super::{failure::Failure, spec_args::read_bounded};
use crate::{
    client::{Client, ClientConfig, ConfigError, Deadlines},
    config::Secret,
};

/// Largest file with a token or certificates.
const FILE_BYTES_MAX: u64 = 1 << 20;

/// Where the nodes are, and who is asking.
#[derive(Debug, Clone, clap::Args)]
pub(super) struct Reach {
    /// The nodes, as host:port or URL, separated by commas: any of them answers for the cluster.
    #[arg(
        long,
        env = "ANDANTE_ADDR",
        default_value = "127.0.0.1:7400",
        value_name = "ADDR,...",
        value_delimiter = ','
    )]
    addr: Vec<String>,
    /// Access token; better in ANDANTE_TOKEN or in a file, where other users can't see it.
    #[arg(long, env = "ANDANTE_TOKEN", hide_env_values = true, value_parser = secret)]
    token: Option<Secret>,
    /// A file that holds the access token.
    #[arg(long, env = "ANDANTE_TOKEN_FILE", value_name = "FILE", conflicts_with = "token")]
    token_file: Option<PathBuf>,
    /// The certificate of the authority that vouches for the nodes, as PEM; with it host:port means TLS.
    #[arg(long, env = "ANDANTE_CA", value_name = "FILE")]
    ca: Option<PathBuf>,
}

fn secret(text: &str) -> Result<Secret, Infallible> {
    Ok(Secret::from(text.to_owned()))
}

impl Reach {
    /// What a client needs to know.
    pub(super) fn config(&self) -> anyhow::Result<ClientConfig> {
        let token = match (&self.token, &self.token_file) {
            (Some(token), _) => Some(token.reveal().to_owned()),
            (None, Some(file)) => Some(read_bounded(file, FILE_BYTES_MAX)?.trim().to_owned()),
            (None, None) => None,
        };
        let ca_pem = self.ca.as_ref().map(|file| read_bounded(file, FILE_BYTES_MAX)).transpose()?;
        let ca_pem = ca_pem.map(String::into_bytes);
        Ok(ClientConfig { token, ca_pem, fail_fast: true, ..ClientConfig::new(self.addr.clone()) })
    }
}

impl From<ConfigError> for Failure {
    fn from(error: ConfigError) -> Self {
        let flag = match error {
            ConfigError::AddressCount(_) | ConfigError::Address { .. } => "--addr",
            ConfigError::NoCa(_) | ConfigError::Ca(_) => "--ca",
            ConfigError::Token | ConfigError::TokenInClear(_) => "--token",
            ConfigError::Deadline => "--timeout-ms",
        };
        Failure::usage(format!("{flag}: {error}"))
    }
}

/// What all commands that talk to a node have in common.
#[derive(Debug, Clone, clap::Args)]
pub(super) struct Common {
    #[command(flatten)]
    reach: Reach,
    /// Write JSON, for scripts.
    #[arg(long)]
    pub(super) json: bool,
    /// How long to wait for an answer, in milliseconds.
    #[arg(long, default_value_t = 10_000, value_parser = clap::value_parser!(u64).range(1..=600_000))]
    timeout_ms: u64,
}

impl Common {
    /// A client of the nodes; it connects at its first call.
    pub(super) fn client(&self) -> anyhow::Result<Client> {
        let deadlines = Deadlines::each(Duration::from_millis(self.timeout_ms));
        let config = ClientConfig { deadlines, ..self.reach.config()? };
        Client::production(config).map_err(|error| Failure::from(error).into())
    }
}

/// An id for a write whose caller gave none.
pub(super) fn new_request_id() -> String {
    format!("cli-{:016x}", SystemRng.u64())
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;

    #[derive(Debug, clap::Parser)]
    struct Cli {
        #[command(flatten)]
        common: Common,
    }

    fn parse(args: &[&str]) -> Common {
        Cli::try_parse_from(std::iter::once("cli").chain(args.iter().copied())).unwrap().common
    }

    #[test]
    fn several_addresses_are_taken_apart() {
        let config = parse(&["--addr", "a:1,http://b:2", "--addr", "c:3"]).reach.config().unwrap();
        assert_eq!(config.addresses, ["a:1", "http://b:2", "c:3"]);
    }

    #[tokio::test]
    async fn what_is_wrong_names_its_flag_and_never_shows_the_token() {
        let missing = ["--ca", "/no/such/file"];
        let table: [(&[&str], &str); 5] = [
            (&["--addr", "nowhere"], "--addr: \"nowhere\" is no address"),
            (&["--addr", "https://a:1"], "--ca: https://a:1 needs TLS"),
            (&["--addr", "a:1", "--token", "s3cret"], "--token: the token is not sent to http://a:1"),
            (&["--token", "s3 cret"], "--token: the token has characters"),
            (&missing, "/no/such/file"),
        ];
        for (args, expected) in table {
            let common = parse(args);
            let error = common.client().unwrap_err().to_string();
            assert!(error.contains(expected), "{args:?}: {error}");
            assert!(!error.contains("s3") && !format!("{common:?}").contains("s3"), "{error} {common:?}");
        }
    }

    #[test]
    fn a_token_may_lie_in_a_file() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(&file, "s3cret\n").unwrap();
        let config = parse(&["--token-file", file.path().to_str().unwrap()]).reach.config().unwrap();
        assert_eq!(config.token.as_deref(), Some("s3cret"));
    }
}
