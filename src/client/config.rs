//! Where the nodes are, who is asking, and how long to wait.

use std::{fmt, net::IpAddr, sync::Arc, time::Duration};

use rustls::pki_types::{CertificateDer, ServerName, pem::PemObject as _};
use tonic::metadata::{Ascii, MetadataValue};

/// Addresses of one client. More than a cluster's nodes make no sense; each costs a connection.
pub const ADDRESSES_MAX: usize = 64;

/// How a [`Client`](super::Client) is set up.
#[derive(Clone, Default)]
pub struct ClientConfig {
    /// Where the nodes are: `host:port` (TLS if there is a CA) or a URL with `http` or `https`. 1 to 64; any node
    /// answers everything, so a part of the cluster is enough.
    pub addresses: Vec<String>,
    /// The bearer token sent with every call. Only over TLS, or to this very machine.
    pub token: Option<String>,
    /// The authorities that may vouch for the nodes, as PEM. Needed for TLS.
    pub ca_pem: Option<Vec<u8>>,
    /// How long calls may take.
    pub deadlines: Deadlines,
    /// When a score is asked for once more.
    pub score_retries: ScoreRetries,
    /// While no address accepts a connection: give up after each was tried once, instead of trying on until the
    /// deadline. For people who wait at a terminal.
    pub fail_fast: bool,
}

impl ClientConfig {
    /// These addresses, everything else at its default.
    pub fn new<A: Into<String>>(addresses: impl IntoIterator<Item = A>) -> Self {
        Self { addresses: addresses.into_iter().map(Into::into).collect(), ..Self::default() }
    }
}

/// Never shows the token.
impl fmt::Debug for ClientConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ClientConfig")
            .field("addresses", &self.addresses)
            .field("token", &self.token.as_ref().map(|_| "hidden"))
            .field("ca_pem_bytes", &self.ca_pem.as_ref().map(Vec::len))
            .field("deadlines", &self.deadlines)
            .field("score_retries", &self.score_retries)
            .field("fail_fast", &self.fail_fast)
            .finish()
    }
}

/// How long calls may take, all tries together. Sent to the server, and kept here whether it answers or not.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Deadlines {
    /// Score.
    pub score: Duration,
    /// Report.
    pub report: Duration,
    /// Everything about campaigns and the server.
    pub campaigns: Duration,
    /// An import as a whole.
    pub import: Duration,
}

impl Default for Deadlines {
    fn default() -> Self {
        Self {
            score: Duration::from_millis(250),
            report: Duration::from_secs(5),
            campaigns: Duration::from_secs(10),
            // A million campaigns at some thousands a second.
            import: Duration::from_secs(600),
        }
    }
}

impl Deadlines {
    /// The same for each call but an import, which keeps its own.
    pub fn each(deadline: Duration) -> Self {
        Self { score: deadline, report: deadline, campaigns: deadline, ..Self::default() }
    }
}

/// When a score is asked for once more although a server may have begun to answer it. (One that surely reached nobody,
/// or that was refused before any work, is always asked for again while the deadline allows.)
///
/// A score that is asked for again hands out new tokens. Those of the answer that is not used stay set aside until
/// they are released or expire: that costs no money, but a listener's frequency caps count them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ScoreRetries {
    /// What to do with a reply whose coverage lacks shards.
    pub incomplete: Incomplete,
    /// Ask again when a connection broke before the answer came, although placements may have been handed out. The
    /// caller can't release what it never saw: up to `slots` tokens stay set aside until they expire.
    pub lost_placements: bool,
}

impl Default for ScoreRetries {
    fn default() -> Self {
        Self { incomplete: Incomplete::RetryAndRelease, lost_placements: false }
    }
}

/// What to do with a score reply whose coverage lacks shards: one whose leader is just moving, say.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Incomplete {
    /// Use it.
    Accept,
    /// Ask again if it has no placements: nothing is lost.
    RetryUnplaced,
    /// Ask again in any case. The most complete reply is used; the placements of the others are released (NOT_USED)
    /// behind the caller's back. A reply is never lost by that: if no better one comes in time, the first is used.
    RetryAndRelease,
}

/// Why a client can't be built. Change the configuration.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    /// None, or far too many.
    #[error("give 1 to {ADDRESSES_MAX} addresses, not {0}")]
    AddressCount(usize),
    /// It can't be read.
    #[error("{address:?} is no address like 127.0.0.1:7400 or https://node-1.example:7400: {why}")]
    Address {
        /// As given.
        address: String,
        /// What is wrong with it.
        why: &'static str,
    },
    /// TLS without anybody to trust.
    #[error("{0} needs TLS: give the authority's certificate (PEM)")]
    NoCa(String),
    /// The PEM holds no usable certificate.
    #[error("the authority's certificate can't be used: {0}")]
    Ca(String),
    /// It has characters that can't be sent.
    #[error("the token has characters that can't be sent; tokens are printable ASCII without blanks")]
    Token,
    /// It would be readable on its way.
    #[error("the token is not sent to {0} without TLS, where others could read it; use https")]
    TokenInClear(String),
    /// Zero.
    #[error("deadlines must be longer than nothing")]
    Deadline,
}

/// One node's address, taken apart.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Address {
    /// Without brackets.
    pub(super) host: String,
    pub(super) port: u16,
    pub(super) tls: bool,
}

impl Address {
    fn parse(text: &str, has_ca: bool) -> Result<Self, ConfigError> {
        let wrong = |why| ConfigError::Address { address: text.to_owned(), why };
        let (scheme, rest) = text.split_once("://").map_or((None, text), |(scheme, rest)| (Some(scheme), rest));
        let (tls, default_port) = match scheme {
            None => (has_ca, None),
            Some("http") => (false, Some(80)),
            Some("https") => (true, Some(443)),
            Some(_) => return Err(wrong("the scheme is neither http nor https")),
        };
        let authority = if scheme.is_some() { rest.strip_suffix('/').unwrap_or(rest) } else { rest };
        let authority: http::uri::Authority = authority.parse().map_err(|_| wrong("that is no host and port"))?;
        if authority.as_str().contains('@') {
            return Err(wrong("names and passwords have no place in it"));
        }
        let port = authority.port_u16().or(default_port).ok_or_else(|| wrong("the port is missing"))?;
        let host = authority.host().trim_start_matches('[').trim_end_matches(']').to_owned();
        if host.is_empty() || port == 0 {
            return Err(wrong("that is no host and port"));
        }
        Ok(Self { host, port, tls })
    }

    /// As sockets and URLs have it.
    pub(super) fn authority(&self) -> String {
        if self.host.contains(':') {
            format!("[{}]:{}", self.host, self.port)
        } else {
            format!("{}:{}", self.host, self.port)
        }
    }

    /// As people know it.
    pub(super) fn url(&self) -> String {
        format!("{}://{}", if self.tls { "https" } else { "http" }, self.authority())
    }

    /// Whether nobody else can listen in.
    fn is_this_machine(&self) -> bool {
        self.host == "localhost" || self.host.parse().is_ok_and(|ip: IpAddr| ip.is_loopback())
    }
}

/// A configuration that can be used.
pub(super) struct Checked {
    pub(super) addresses: Vec<Address>,
    /// With [`Address::tls`] only.
    pub(super) tls: Option<Arc<rustls::ClientConfig>>,
    /// The header, marked as sensitive.
    pub(super) authorization: Option<MetadataValue<Ascii>>,
}

pub(super) fn check(config: &ClientConfig) -> Result<Checked, ConfigError> {
    let count = config.addresses.len();
    if count == 0 || count > ADDRESSES_MAX {
        return Err(ConfigError::AddressCount(count));
    }
    let parse = |text: &String| Address::parse(text.trim(), config.ca_pem.is_some());
    let addresses = config.addresses.iter().map(parse).collect::<Result<Vec<_>, _>>()?;
    let Deadlines { score, report, campaigns, import } = config.deadlines;
    if [score, report, campaigns, import].iter().any(Duration::is_zero) {
        return Err(ConfigError::Deadline);
    }
    let tls = match (addresses.iter().find(|a| a.tls), &config.ca_pem) {
        (Some(first), None) => return Err(ConfigError::NoCa(first.url())),
        (Some(_), Some(pem)) => Some(tls(pem)?),
        (None, _) => None,
    };
    for address in addresses.iter().filter(|a| a.tls) {
        if ServerName::try_from(address.host.as_str()).is_err() {
            return Err(ConfigError::Address { address: address.url(), why: "certificates have no such names" });
        }
    }
    let authorization = match &config.token {
        None => None,
        Some(token) => {
            if let Some(clear) = addresses.iter().find(|a| !a.tls && !a.is_this_machine()) {
                return Err(ConfigError::TokenInClear(clear.url()));
            }
            if token.is_empty() || !token.bytes().all(|b| b.is_ascii_graphic()) {
                return Err(ConfigError::Token);
            }
            let mut value: MetadataValue<Ascii> = format!("Bearer {token}").parse().map_err(|_| ConfigError::Token)?;
            value.set_sensitive(true);
            Some(value)
        }
    };
    Ok(Checked { addresses, tls, authorization })
}

fn tls(pem: &[u8]) -> Result<Arc<rustls::ClientConfig>, ConfigError> {
    let unusable = |why: &dyn fmt::Display| ConfigError::Ca(why.to_string());
    let mut roots = rustls::RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(pem) {
        let certificate = certificate.map_err(|e| unusable(&e))?;
        roots.add(certificate).map_err(|e| unusable(&e))?;
    }
    if roots.is_empty() {
        return Err(ConfigError::Ca("there is none in it".into()));
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|e| unusable(&e))?
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = vec![b"h2".to_vec()];
    Ok(Arc::new(config))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(config: &ClientConfig) -> ConfigError {
        check(config).err().expect("is refused")
    }

    #[test]
    fn addresses_come_with_and_without_scheme() {
        let of = |host: &str, port, tls| Ok(Address { host: host.into(), port, tls });
        let table = [
            ("127.0.0.1:7400", false, of("127.0.0.1", 7400, false)),
            ("node-1:7400", true, of("node-1", 7400, true)),
            ("http://node-1:7400", true, of("node-1", 7400, false)),
            ("https://node-1/", true, of("node-1", 443, true)),
            ("[::1]:7400", false, of("::1", 7400, false)),
        ];
        for (text, has_ca, expected) in table {
            assert_eq!(Address::parse(text, has_ca), expected, "{text}");
        }
        assert_eq!(Address::parse("[::1]:7400", false).unwrap().url(), "http://[::1]:7400");
        for text in ["", "node-1", "node-1:port", "ftp://node-1:1", "http://a:1/path", "user@node:1", "http://", "a:0"]
        {
            assert!(matches!(Address::parse(text, false), Err(ConfigError::Address { .. })), "{text}");
        }
    }

    #[test]
    fn a_token_travels_only_where_nobody_listens_in() {
        let with = |address: &str| ClientConfig { token: Some("s3cret".into()), ..ClientConfig::new([address]) };
        assert!(check(&with("127.0.0.1:1")).is_ok() && check(&with("[::1]:1")).is_ok());
        assert_eq!(refused(&with("node-1:1")), ConfigError::TokenInClear("http://node-1:1".into()));
        let blank = ClientConfig { token: Some("a b".into()), ..ClientConfig::new(["127.0.0.1:1"]) };
        assert_eq!(refused(&blank), ConfigError::Token);
    }

    #[test]
    fn no_token_shows_when_something_is_debugged() {
        let config = ClientConfig { token: Some("s3cret".into()), ..ClientConfig::new(["127.0.0.1:1"]) };
        assert!(!format!("{config:?}").contains("s3cret"));
        let header = check(&config).ok().unwrap().authorization.unwrap();
        assert!(!format!("{header:?}").contains("s3cret"));
    }

    #[test]
    fn what_can_not_work_is_refused_at_once() {
        assert_eq!(refused(&ClientConfig::default()), ConfigError::AddressCount(0));
        assert_eq!(refused(&ClientConfig::new(vec!["a:1"; 65])), ConfigError::AddressCount(65));
        assert_eq!(refused(&ClientConfig::new(["https://a:1"])), ConfigError::NoCa("https://a:1".into()));
        let empty = ClientConfig { ca_pem: Some(b"nothing".to_vec()), ..ClientConfig::new(["a:1"]) };
        assert!(matches!(refused(&empty), ConfigError::Ca(_)));
        let hasty = ClientConfig { deadlines: Deadlines::each(Duration::ZERO), ..ClientConfig::new(["a:1"]) };
        assert_eq!(refused(&hasty), ConfigError::Deadline);
    }
}
