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
/// Most names in a certificate: it travels in every handshake.
const TLS_NAMES_MAX: usize = 32;

/// A node's configuration.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Everything the node keeps lies here.
    pub data_dir: PathBuf,
    /// Where gRPC listens. Beyond loopback it has TLS and authentication, unless `insecure`.
    pub grpc: SocketAddr,
    /// Where HTTP listens, for metrics and probes. It has neither TLS nor authentication: beyond loopback it needs
    /// `insecure_http`.
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
    /// Whether gRPC is behind TLS; auto: beyond loopback, unless `insecure`.
    pub tls: Switch,
    /// PEM file with the server's certificate (and the chain up to its authority); unset: one issued by the cluster's
    /// own authority. Read again when it changes.
    pub tls_cert: Option<PathBuf>,
    /// PEM file with the private key of `tls_cert`.
    pub tls_key: Option<PathBuf>,
    /// More names and IP addresses, separated by commas, for the certificate that the cluster issues: those by which
    /// clients reach this node, besides the addresses in this configuration.
    pub tls_names: Option<String>,
    /// Whether every call needs an access token; auto: beyond loopback, unless `insecure`.
    pub auth: Switch,
    /// Listen beyond loopback with neither TLS nor authentication, for clients and for peers: for trusted networks.
    pub insecure: bool,
    /// Let `http` listen beyond loopback: whoever reaches it can read metrics, names of campaigns among them.
    pub insecure_http: bool,
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

/// On, off, or as the rest of the configuration suggests.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Switch {
    /// On beyond loopback, unless `insecure`.
    Auto,
    /// On.
    On,
    /// Off.
    Off,
}

impl Switch {
    /// As it is written.
    pub fn name(self) -> &'static str {
        match self {
            Switch::Auto => "auto",
            Switch::On => "on",
            Switch::Off => "off",
        }
    }
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
            tls: Switch::Auto,
            tls_cert: None,
            tls_key: None,
            tls_names: None,
            auth: Switch::Auto,
            insecure: false,
            insecure_http: false,
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
        if self.data_dir.as_os_str().is_empty() {
            return invalid("data_dir", "must not be empty");
        }
        self.validate_security()?;
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

/// A value that can't be used.
fn invalid(field: &str, reason: impl Into<String>) -> Result<(), ConfigError> {
    Err(ConfigError::Invalid { field: field.to_owned(), reason: reason.into() })
}

/// Who may reach what, and how it is protected.
impl Config {
    /// Whether gRPC is behind TLS.
    pub fn tls_on(&self) -> bool {
        self.resolve(self.tls)
    }

    /// Whether every call needs an access token.
    pub fn auth_on(&self) -> bool {
        self.resolve(self.auth)
    }

    fn resolve(&self, switch: Switch) -> bool {
        match switch {
            Switch::On => true,
            Switch::Off => false,
            Switch::Auto => !self.grpc.ip().is_loopback() && !self.insecure,
        }
    }

    /// Names and addresses by which clients reach this node, for its certificate.
    pub fn certificate_names(&self) -> Vec<String> {
        let mut names = vec!["localhost".to_owned(), "127.0.0.1".to_owned(), "::1".to_owned()];
        if !self.grpc.ip().is_unspecified() {
            names.push(self.grpc.ip().to_string());
        }
        let advertised = self.advertise.iter().filter_map(|address| address.rsplit_once(':'));
        names.extend(advertised.map(|(host, _)| host.trim_matches(['[', ']']).to_owned()));
        names.extend(self.tls_names());
        let mut seen = std::collections::HashSet::new();
        names.retain(|name| seen.insert(name.clone()));
        names
    }

    fn tls_names(&self) -> impl Iterator<Item = String> + '_ {
        let names = self.tls_names.iter().flat_map(|names| names.split(','));
        names.map(|name| name.trim().to_owned()).filter(|name| !name.is_empty())
    }

    fn validate_security(&self) -> Result<(), ConfigError> {
        if !self.insecure {
            let grpc = self.grpc;
            let exposed = !grpc.ip().is_loopback();
            for (field, what, on) in [("tls", "TLS", self.tls_on()), ("auth", "authentication", self.auth_on())] {
                if exposed && !on {
                    return invalid(
                        field,
                        format!(
                            "must not be off: grpc {grpc} can be reached from other machines; listen on 127.0.0.1, or \
                             set `insecure` (--insecure) to go without {what} in a network that is trusted"
                        ),
                    );
                }
            }
            if !self.http.ip().is_loopback() && !self.insecure_http {
                return invalid(
                    "http",
                    format!(
                        "{} can be reached from other machines, but metrics and probes have no TLS and no \
                         authentication; listen on 127.0.0.1, or set `insecure_http` (--insecure-http) if whoever \
                         reaches it may read them",
                        self.http
                    ),
                );
            }
        }
        match (&self.tls_cert, &self.tls_key) {
            (Some(_), None) => return invalid("tls_key", "must be set together with tls_cert"),
            (None, Some(_)) => return invalid("tls_cert", "must be set together with tls_key"),
            (Some(_), Some(_)) if !self.tls_on() => {
                return invalid("tls_cert", "is of no use without TLS; set `tls = \"on\"` (--tls on)");
            }
            (None, None) if self.insecure && self.tls_on() => {
                return invalid(
                    "tls_cert",
                    "must be set with tls_key: a cluster whose nodes talk without TLS (`insecure`) has no authority",
                );
            }
            _ => {}
        }
        let names: Vec<String> = self.tls_names().collect();
        if names.len() > TLS_NAMES_MAX {
            return invalid("tls_names", format!("must be at most {TLS_NAMES_MAX}, not {}", names.len()));
        }
        let is_name = |name: &String| rustls::pki_types::ServerName::try_from(name.as_str()).is_ok();
        match names.iter().find(|name| !is_name(name)) {
            Some(bad) => invalid("tls_names", format!("{bad:?} is neither a host name nor an IP address")),
            None => Ok(()),
        }
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

impl From<String> for Secret {
    fn from(value: String) -> Self {
        Secret(value)
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
        let cases: [(&str, Change); 23] = [
            ("tls_cert", |c| (c.tls, c.insecure) = (Switch::On, true)),
            ("data_dir", |c| c.data_dir = PathBuf::new()),
            ("tls", |c| (c.grpc, c.tls) = ("0.0.0.0:7400".parse().unwrap(), Switch::Off)),
            ("auth", |c| (c.grpc, c.auth) = ("0.0.0.0:7400".parse().unwrap(), Switch::Off)),
            ("tls_key", |c| (c.tls, c.tls_cert) = (Switch::On, Some("c".into()))),
            ("tls_cert", |c| (c.tls, c.tls_key) = (Switch::On, Some("k".into()))),
            ("tls_cert", |c| (c.tls_cert, c.tls_key) = (Some("c".into()), Some("k".into()))),
            ("tls_names", |c| c.tls_names = Some("a.example, b c".to_owned())),
            ("tls_names", |c| c.tls_names = Some("a,".repeat(33))),
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
    fn beyond_loopback_clients_need_tls_and_a_token_unless_somebody_insists() {
        let of = |grpc: &str, insecure| {
            let config = Config { grpc: grpc.parse().unwrap(), insecure, ..Config::default() };
            assert_eq!(config.validate(), Ok(()));
            (config.tls_on(), config.auth_on())
        };
        assert_eq!(of("127.0.0.1:7400", false), (false, false));
        assert_eq!(of("[::1]:7400", false), (false, false));
        assert_eq!(of("0.0.0.0:7400", false), (true, true));
        assert_eq!(of("192.0.2.1:7400", false), (true, true));
        assert_eq!(of("192.0.2.1:7400", true), (false, false));
        let asked = Config { tls: Switch::On, auth: Switch::On, ..Config::default() };
        assert_eq!((asked.validate(), asked.tls_on(), asked.auth_on()), (Ok(()), true, true));
    }

    #[test]
    fn metrics_beyond_loopback_need_a_word_of_their_own() {
        let config = Config { http: "0.0.0.0:7401".parse().unwrap(), ..Config::default() };
        assert!(config.validate().unwrap_err().to_string().contains("--insecure-http"));
        assert_eq!(Config { insecure_http: true, ..config }.validate(), Ok(()));
    }

    #[test]
    fn the_refusal_of_an_open_address_says_why_and_what_to_do() {
        let config = Config { grpc: "192.0.2.1:7400".parse().unwrap(), tls: Switch::Off, ..Config::default() };
        let error = config.validate().unwrap_err().to_string();
        assert!(error.contains("other machines") && error.contains("--insecure"), "{error}");
    }

    #[test]
    fn a_certificate_names_whatever_clients_may_call_the_node() {
        let config = Config {
            grpc: "192.0.2.1:7400".parse().unwrap(),
            advertise: Some("[2001:db8::1]:7402".to_owned()),
            tls_names: Some("andante.example.org, 127.0.0.1".to_owned()),
            ..Config::default()
        };
        let names = ["localhost", "127.0.0.1", "::1", "192.0.2.1", "2001:db8::1", "andante.example.org"];
        assert_eq!(config.certificate_names(), names);
        let all = Config { grpc: "0.0.0.0:7400".parse().unwrap(), ..Config::default() };
        assert!(!all.certificate_names().contains(&"0.0.0.0".to_owned()));
    }
}
