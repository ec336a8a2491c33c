//! How a node is configured: defaults, a TOML file, environment variables and flags, later ones winning.
//!
//! Every value is typed and checked before anything starts; [`Loaded::explain`] tells each value, where it came from
//! and what it means (`andante node --check`).

mod explain;
mod load;

use std::{fmt, net::SocketAddr, path::PathBuf};

use serde::{Deserialize, Serialize};

pub use explain::Explained;
pub use load::{Flag, Loaded, load};

use andante_cluster::directory::MAX_SHARDS;

use crate::settings::Settings;

/// Longest wait for requests under way when a node stops.
const MAX_DRAIN_MS: u64 = 600_000;
/// Most connections one node accepts at once; each costs some 20 KB and up to 1 MiB while a message is read.
const MAX_CONNECTIONS: u32 = 100_000;

/// Most addresses to find a cluster by: one that answers is enough.
const JOIN_ADDRESSES_MAX: usize = 64;

/// A node's configuration.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Everything the node keeps lies here.
    pub data_dir: PathBuf,
    /// Where gRPC listens. There is no TLS yet: anything but a loopback address needs `insecure`.
    pub grpc: SocketAddr,
    /// Where HTTP listens, for metrics and probes.
    pub http: SocketAddr,
    /// Where this node listens for its peers: the other nodes of its cluster. Protected by mutual TLS, unless
    /// `insecure`.
    pub peer: SocketAddr,
    /// `host:port` where its peers reach it; unset: `peer`. Needed where it listens on all addresses.
    pub advertise: Option<String>,
    /// With a new data directory: peer addresses of the cluster to join, separated by commas; unset: a cluster of its
    /// own is formed. A node that belongs to a cluster already uses them only to find it.
    pub join: Option<String>,
    /// With `join`: the join token of the cluster, as `andante access join-token` prints it.
    pub join_token: Option<Secret>,
    /// A file that holds the join token instead.
    pub join_token_file: Option<PathBuf>,
    /// Listen on other addresses than loopback although nothing is encrypted or authenticated.
    pub insecure: bool,
    /// Number of shards, chosen at the first start and fixed from then on; unset: 16, or what is stored.
    pub shards: Option<u32>,
    /// Connections accepted at once; more wait in the listener's queue.
    pub max_connections: u32,
    /// How long requests under way may take to finish when the node stops.
    pub drain_ms: u64,
    /// How log lines look.
    pub log_format: LogFormat,
    /// Which log lines are written, e.g. `info,andante::router=debug`.
    pub log_filter: String,
    /// Where traces are sent (OTLP over gRPC), e.g. `http://127.0.0.1:4317`; unset: nowhere.
    pub otlp_endpoint: Option<String>,
    /// Pacing, allowances and limits.
    pub settings: Settings,
}

/// How log lines look.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            data_dir: PathBuf::from("./andante-data"),
            grpc: SocketAddr::from(([127, 0, 0, 1], 7400)),
            http: SocketAddr::from(([127, 0, 0, 1], 7401)),
            peer: SocketAddr::from(([127, 0, 0, 1], 7402)),
            advertise: None,
            join: None,
            join_token: None,
            join_token_file: None,
            insecure: false,
            shards: None,
            max_connections: 1_024,
            drain_ms: 10_000,
            log_format: LogFormat::Text,
            // What openraft calls a warning is mostly an election taking its course.
            log_filter: "info,openraft=error".to_owned(),
            otlp_endpoint: None,
            settings: Settings::default(),
        }
    }
}

/// Why a configuration can't be used. Nothing was started.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum ConfigError {
    /// A file or a value could not be read.
    #[error("{0}")]
    Unreadable(String),
    /// A value is out of its limits, or does not fit another one.
    #[error("{field}: {reason}")]
    Invalid {
        /// The value's key.
        field: String,
        /// What is wrong and what would be right.
        reason: String,
    },
}

impl Config {
    /// Checks each value and how they fit together; the first problem is told.
    pub fn validate(&self) -> Result<(), ConfigError> {
        fn invalid(field: &str, reason: impl Into<String>) -> Result<(), ConfigError> {
            Err(ConfigError::Invalid { field: field.to_owned(), reason: reason.into() })
        }
        if self.data_dir.as_os_str().is_empty() {
            return invalid("data_dir", "must not be empty");
        }
        for (field, addr) in [("grpc", self.grpc), ("http", self.http)] {
            if !addr.ip().is_loopback() && !self.insecure {
                return invalid(
                    field,
                    format!(
                        "{addr} can be reached from other machines, but Andante has no TLS and no authentication \
                         yet; listen on 127.0.0.1 behind a proxy that has, or set `insecure` (--insecure) if the \
                         network is trusted"
                    ),
                );
            }
        }
        if self.grpc == self.http && self.grpc.port() != 0 {
            return invalid("http", format!("must differ from grpc, which is {} too", self.grpc));
        }
        for (field, addr) in [("grpc", self.grpc), ("http", self.http)] {
            if self.peer == addr && addr.port() != 0 {
                return invalid("peer", format!("must differ from {field}, which is {addr} too"));
            }
        }
        match &self.advertise {
            Some(address) if !is_host_and_port(address) => {
                return invalid("advertise", format!("{address:?} is no address; write host:port"));
            }
            None if self.peer.ip().is_unspecified() => {
                return invalid(
                    "advertise",
                    format!("must be set, since peers can't connect to {}, which stands for all addresses", self.peer),
                );
            }
            _ => {}
        }
        let joins = self.join_addresses();
        if joins.len() > JOIN_ADDRESSES_MAX {
            return invalid("join", format!("must name at most {JOIN_ADDRESSES_MAX} addresses, not {}", joins.len()));
        }
        if let Some(bad) = joins.iter().find(|address| !is_host_and_port(address)) {
            return invalid("join", format!("{bad:?} is no address; write host:port, separated by commas"));
        }
        if self.join_token.is_some() && self.join_token_file.is_some() {
            return invalid("join_token_file", "must not be set together with join_token");
        }
        if let Some(shards) = self.shards
            && !(1..=MAX_SHARDS).contains(&shards)
        {
            return invalid("shards", format!("must lie in 1..={MAX_SHARDS}, is {shards}"));
        }
        if !(1..=MAX_CONNECTIONS).contains(&self.max_connections) {
            return invalid(
                "max_connections",
                format!("must lie in 1..={MAX_CONNECTIONS}, is {}", self.max_connections),
            );
        }
        if self.drain_ms > MAX_DRAIN_MS {
            return invalid("drain_ms", format!("must lie in 0..={MAX_DRAIN_MS}, is {}", self.drain_ms));
        }
        if let Err(e) = tracing_subscriber::EnvFilter::try_new(&self.log_filter) {
            return invalid("log_filter", format!("{:?} is no filter: {e}", self.log_filter));
        }
        if let Some(endpoint) = &self.otlp_endpoint {
            match endpoint.parse::<http::Uri>() {
                Ok(uri) if uri.scheme_str() == Some("http") && uri.host().is_some() => {}
                _ => return invalid("otlp_endpoint", format!("{endpoint:?} is no URL like http://127.0.0.1:4317")),
            }
        }
        self.settings
            .validate()
            .map_err(|e| ConfigError::Invalid { field: format!("settings.{}", e.field), reason: e.reason })
    }
}

impl Config {
    /// The addresses in `join`.
    pub fn join_addresses(&self) -> Vec<String> {
        let join = self.join.iter().flat_map(|join| join.split(','));
        join.map(|address| address.trim().to_owned()).filter(|address| !address.is_empty()).collect()
    }
}

/// A value that nobody is shown.
#[derive(Clone, PartialEq, Eq, Deserialize)]
#[serde(transparent)]
pub struct Secret(String);

impl Secret {
    /// The value itself.
    pub fn reveal(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("(secret)")
    }
}

impl Serialize for Secret {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str("(secret)")
    }
}

/// Whether a text is `host:port`, with any host.
fn is_host_and_port(text: &str) -> bool {
    text.rsplit_once(':').is_some_and(|(host, port)| !host.is_empty() && port.parse::<u16>().is_ok_and(|p| p > 0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_default_configuration_is_valid() {
        assert_eq!(Config::default().validate(), Ok(()));
    }

    #[test]
    fn every_value_out_of_its_limits_is_named() {
        type Change = fn(&mut Config);
        let cases: [(&str, Change); 16] = [
            ("data_dir", |c| c.data_dir = PathBuf::new()),
            ("grpc", |c| c.grpc = "0.0.0.0:7400".parse().unwrap()),
            ("http", |c| c.http = "[::]:7401".parse().unwrap()),
            ("http", |c| c.http = c.grpc),
            ("peer", |c| c.peer = c.grpc),
            ("advertise", |c| c.advertise = Some("here".to_owned())),
            ("advertise", |c| (c.peer, c.insecure) = ("0.0.0.0:7402".parse().unwrap(), true)),
            ("join", |c| c.join = Some("a:1,b".to_owned())),
            ("join", |c| c.join = Some("a:1,".repeat(65))),
            ("join_token_file", |c| {
                c.join_token = Some(Secret("x".to_owned()));
                c.join_token_file = Some("token".into());
            }),
            ("shards", |c| c.shards = Some(0)),
            ("shards", |c| c.shards = Some(1_025)),
            ("max_connections", |c| c.max_connections = 0),
            ("drain_ms", |c| c.drain_ms = 600_001),
            ("log_filter", |c| c.log_filter = "andante=loud".to_owned()),
            ("otlp_endpoint", |c| c.otlp_endpoint = Some("127.0.0.1:4317".to_owned())),
        ];
        for (expected, change) in cases {
            let mut config = Config::default();
            change(&mut config);
            match config.validate() {
                Err(ConfigError::Invalid { field, .. }) => assert_eq!(field, expected),
                other => panic!("{expected}: {other:?}"),
            }
        }
    }

    #[test]
    fn a_setting_out_of_its_limits_is_named_with_its_path() {
        let mut config = Config::default();
        config.settings.tick_ms = 1;
        assert_eq!(config.validate().unwrap_err().to_string(), "settings.tick_ms: must lie in 10..=1000, is 1");
    }

    #[test]
    fn other_addresses_than_loopback_are_accepted_when_insecure_is_set() {
        let config = Config { grpc: "0.0.0.0:7400".parse().unwrap(), insecure: true, ..Config::default() };
        assert_eq!(config.validate(), Ok(()));
    }

    #[test]
    fn the_refusal_of_an_open_address_says_why_and_what_to_do() {
        let config = Config { grpc: "192.0.2.1:7400".parse().unwrap(), ..Config::default() };
        let error = config.validate().unwrap_err().to_string();
        assert!(error.contains("no TLS") && error.contains("--insecure"), "{error}");
    }
}
