//! Certificates for the port that clients use, from the cluster's own authority.

use std::{fmt, net::IpAddr};

use rcgen::{ExtendedKeyUsagePurpose, SanType};
use rustls::{
    pki_types::{CertificateDer, ServerName},
    sign::CertifiedKey,
};

use super::{
    Authority, NodeKey, SecurityError,
    authority::dns_name,
    name::{Contents, parse_node_name},
    node_certificate::renew_at_ms,
    tls::provider,
};

/// Names that every certificate is for.
const LOOPBACK: [&str; 3] = ["localhost", "127.0.0.1", "::1"];
/// Most names of a certificate beside those.
const MAX_NAMES: usize = 64;

/// A server's key and certificate, for clients to see.
pub struct ClientPortCertificate {
    key: NodeKey,
    certificate: CertificateDer<'static>,
    not_before_ms: u64,
    not_after_ms: u64,
}

/// A new key and a certificate for servers, good for these DNS names and IP addresses and for the loopback's. Clients
/// trust it by [`Authority::certificate_pem`]. Lives as long as a node's own; nothing keeps or renews it here.
/// `Refused`: a name is neither, or a node's.
pub fn client_port_certificate(
    authority: &Authority,
    names: &[String],
    now_ms: u64,
) -> Result<ClientPortCertificate, SecurityError> {
    if names.len() > MAX_NAMES {
        return Err(SecurityError::Refused(format!("{} names for one certificate: at most {MAX_NAMES}", names.len())));
    }
    let mut sans: Vec<SanType> = Vec::new();
    for name in names.iter().map(String::as_str).chain(LOOPBACK) {
        let san = san(name)?;
        if !sans.contains(&san) {
            sans.push(san);
        }
    }
    let key = NodeKey::generate()?;
    let usages = [ExtendedKeyUsagePurpose::ServerAuth];
    let certificate = authority.issue("andante server", key.pair(), sans, &usages, now_ms)?;
    let Contents { not_before_ms, not_after_ms, .. } = Contents::read(&certificate)?;
    Ok(ClientPortCertificate { key, certificate: certificate.into(), not_before_ms, not_after_ms })
}

fn san(name: &str) -> Result<SanType, SecurityError> {
    if let Ok(address) = name.parse::<IpAddr>() {
        return Ok(SanType::IpAddress(address));
    }
    // As clients compare it.
    let plain = name.trim_end_matches('.').to_ascii_lowercase();
    if ServerName::try_from(plain.as_str()).is_err() {
        return Err(SecurityError::Refused(format!("{name:?} is neither a host name nor an IP address")));
    }
    // Nodes know each other by such a name.
    if parse_node_name(&plain).is_some() {
        return Err(SecurityError::Refused(format!("{name:?} is the name of a node: choose another")));
    }
    dns_name(&plain)
}

impl ClientPortCertificate {
    /// For a rustls server with the ring provider.
    pub fn certified_key(&self) -> Result<CertifiedKey, SecurityError> {
        let key = CertifiedKey::from_der(vec![self.certificate.clone()], self.key.private_key(), &provider());
        key.map_err(|e| SecurityError::unusable("client port certificate", e))
    }

    /// When a new one should replace it.
    pub fn renew_at_ms(&self) -> u64 {
        renew_at_ms(self.not_before_ms, self.not_after_ms)
    }
}

impl fmt::Debug for ClientPortCertificate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ClientPortCertificate").field("not_after_ms", &self.not_after_ms).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use rustls::{
        CertificateError, Error, RootCertStore,
        client::{WebPkiServerVerifier, danger::ServerCertVerifier},
        pki_types::UnixTime,
        server::WebPkiClientVerifier,
    };

    use super::*;
    use crate::security::name::node_name;

    const NOW_MS: u64 = 1_800_000_000_000;

    fn issue(names: &[&str]) -> Result<(Authority, ClientPortCertificate), SecurityError> {
        let authority = Authority::generate([5; 16], NOW_MS)?;
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        client_port_certificate(&authority, &names, NOW_MS).map(|certificate| (authority, certificate))
    }

    fn roots(authority: &Authority) -> Arc<RootCertStore> {
        let mut roots = RootCertStore::empty();
        roots.add(authority.certificate_der().to_vec().into()).expect("root");
        Arc::new(roots)
    }

    #[test]
    fn clients_find_the_server_by_each_of_its_names() {
        let (authority, certificate) =
            issue(&["Scores.example.", "host.andante", "10.1.2.3", "localhost", "fd00::7"]).expect("issued");
        let verifier = WebPkiServerVerifier::builder_with_provider(roots(&authority), provider()).build();
        let verifier = verifier.expect("verifier");
        let now = UnixTime::since_unix_epoch(std::time::Duration::from_millis(NOW_MS));
        let leaf = &certificate.certified_key().expect("key").cert[0];
        let verify = |name: &'static str| {
            let name = ServerName::try_from(name).expect("name");
            verifier.verify_server_cert(leaf, &[], &name, &[], now)
        };
        for name in ["scores.example", "host.andante", "10.1.2.3", "fd00::7", "localhost", "127.0.0.1", "::1"] {
            assert!(verify(name).is_ok(), "{name}");
        }
        for name in ["other.example", "10.1.2.4", "scores.example.org"] {
            assert!(verify(name).is_err(), "{name}");
        }
    }

    #[test]
    fn it_is_good_for_no_node() {
        let (authority, certificate) = issue(&[]).expect("issued");
        let verifier = WebPkiClientVerifier::builder_with_provider(roots(&authority), provider()).build();
        let now = UnixTime::since_unix_epoch(std::time::Duration::from_millis(NOW_MS));
        let leaf = &certificate.certified_key().expect("key").cert[0];
        let refused = verifier.expect("verifier").verify_client_cert(leaf, &[], now).expect_err("refused");
        assert!(
            matches!(refused, Error::InvalidCertificate(CertificateError::InvalidPurposeContext { .. })),
            "{refused}"
        );
        assert!(Contents::read(leaf).expect("reads").node().is_err());
    }

    #[test]
    fn names_that_are_none_and_those_of_nodes_are_refused() {
        let node = node_name([5; 16], 1);
        let (shouted, dotted, any) = (node.to_uppercase(), format!("{node}."), format!("*{}", &node[6..]));
        for name in [&node, &shouted, &dotted, &any, "with space", "", "10.1.2.3:80", "*", "ümlaut.example"] {
            assert!(matches!(issue(&[name]), Err(SecurityError::Refused(_))), "{name}");
        }
        let many = vec!["a.example"; MAX_NAMES + 1];
        assert!(matches!(issue(&many), Err(SecurityError::Refused(_))));
    }
}
