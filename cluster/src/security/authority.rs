//! The authority of a cluster: signs the certificates of its nodes.

use std::{fmt, time::Duration};

use base64::{Engine, engine::general_purpose::STANDARD};
use bytes::Bytes;
use prost::Message;
use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, DistinguishedName, DnType,
    ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose, PKCS_ECDSA_P256_SHA256, PublicKeyData, SanType,
    SerialNumber,
};
use rustls::pki_types::CertificateDer;
use sha2::{Digest, Sha256};
use time::OffsetDateTime;

use super::{
    SecurityError,
    name::{Contents, hex, node_name},
};
use crate::{NodeId, directory::Directory, proto::AuthorityRecord};

const DAY: Duration = Duration::from_secs(24 * 60 * 60);

/// Life of the authority. Nothing renews it, so it must outlive every cluster; nodes do not even look at it (a trust
/// anchor is its key), but the TLS libraries of clients do.
const AUTHORITY_LIFE: Duration = DAY.saturating_mul(20 * 365);
/// Life of what it signs. Long enough for a node that was off for a month less the renewal margin, short enough
/// that a stolen disk is worth little.
const CERTIFICATE_LIFE: Duration = DAY.saturating_mul(30);
/// Certificates are valid this long before they are made: clocks that far behind still accept them.
const BACKDATED: Duration = DAY;

/// Longest signing request; one for our kind of key has about 250 bytes.
const MAX_SIGNING_REQUEST_BYTES: usize = 4 << 10;
/// Bytes of an uncompressed P-256 point.
const P256_KEY_BYTES: usize = 65;

/// The certificate and the key that vouch for the nodes of one cluster.
pub struct Authority {
    cluster_id: [u8; 16],
    certificate: CertificateDer<'static>,
    issuer: Issuer<'static, KeyPair>,
}

impl Authority {
    /// The directory setting it is kept in.
    pub const SETTING: &'static str = "cluster_authority";

    /// Makes the authority of a new cluster (ECDSA, P-256). The key comes from the operating system's generator.
    pub fn generate(cluster_id: [u8; 16], now_ms: u64) -> Result<Self, SecurityError> {
        let failed = |e: rcgen::Error| SecurityError::unusable("new authority", e);
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(failed)?;
        let mut params = params(&format!("andante cluster {}", hex(cluster_id)), now_ms, AUTHORITY_LIFE)?;
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let certificate = params.self_signed(&key).map_err(failed)?.der().clone();
        Ok(Self { cluster_id, certificate, issuer: Issuer::new(params, key) })
    }

    /// As the value of a directory setting. Holds the key: never log it.
    pub fn encode(&self) -> Vec<u8> {
        let record = AuthorityRecord {
            cluster_id: self.cluster_id.to_vec().into(),
            certificate: self.certificate.to_vec().into(),
            key: self.issuer.key().serialize_der().into(),
        };
        record.encode_to_vec()
    }

    /// Reads what [`Self::encode`] wrote.
    pub fn decode(value: &[u8]) -> Result<Self, SecurityError> {
        let unusable = |why: &dyn ToString| SecurityError::unusable("cluster authority", why.to_string());
        let record = AuthorityRecord::decode(value).map_err(|e| unusable(&e))?;
        let cluster_id = record.cluster_id.as_ref().try_into().map_err(|_| unusable(&"no cluster id"))?;
        let certificate = CertificateDer::from(record.certificate.to_vec());
        let key = KeyPair::try_from(record.key.as_ref()).map_err(|e| unusable(&e))?;
        if Contents::read(&certificate)?.public_key != key.subject_public_key_info() {
            return Err(unusable(&"certificate and key do not belong together"));
        }
        let issuer = Issuer::from_ca_cert_der(&certificate, key).map_err(|e| unusable(&e))?;
        Ok(Self { cluster_id, certificate, issuer })
    }

    /// The authority of the cluster; `None`: it has none (a cluster without TLS).
    pub fn of(directory: &Directory) -> Result<Option<Self>, SecurityError> {
        directory.settings.get(Self::SETTING).map(|setting| Self::decode(&setting.value)).transpose()
    }

    /// The certificate (DER) of the cluster's authority, without a look at its key.
    pub(super) fn certificate_of(directory: &Directory) -> Option<Bytes> {
        let setting = directory.settings.get(Self::SETTING)?;
        Some(AuthorityRecord::decode(setting.value.clone()).ok()?.certificate)
    }

    /// The cluster it vouches for.
    pub fn cluster_id(&self) -> [u8; 16] {
        self.cluster_id
    }

    /// Its certificate (DER).
    pub fn certificate_der(&self) -> &[u8] {
        &self.certificate
    }

    /// Its certificate as text, for clients that are to trust the cluster.
    pub fn certificate_pem(&self) -> String {
        let text = STANDARD.encode(&self.certificate);
        let mut pem = String::from("-----BEGIN CERTIFICATE-----\n");
        let mut rest = text.as_str();
        while !rest.is_empty() {
            let (line, behind) = rest.split_at(rest.len().min(64));
            pem.push_str(line);
            pem.push('\n');
            rest = behind;
        }
        pem.push_str("-----END CERTIFICATE-----\n");
        pem
    }

    /// SHA-256 of its certificate; join tokens carry it.
    pub fn fingerprint(&self) -> [u8; 32] {
        fingerprint(&self.certificate)
    }

    /// Signs the certificate (DER) of a node for the key of a signing request (DER). Nothing but the key is taken
    /// over from the request. `Refused`: it is no signing request, or not signed by its own key.
    pub fn sign(&self, signing_request: &[u8], node_id: NodeId, now_ms: u64) -> Result<Vec<u8>, SecurityError> {
        let refused = |why: &dyn fmt::Display| SecurityError::Refused(format!("signing request: {why}"));
        if signing_request.len() > MAX_SIGNING_REQUEST_BYTES {
            return Err(refused(&format_args!("more than {MAX_SIGNING_REQUEST_BYTES} bytes")));
        }
        let request = CertificateSigningRequestParams::from_der(&signing_request.into()).map_err(|e| refused(&e))?;
        let key = &request.public_key;
        // The request's algorithm is that of its signature; the curve shows in the key alone.
        if *key.algorithm() != PKCS_ECDSA_P256_SHA256 || key.der_bytes().len() != P256_KEY_BYTES {
            return Err(refused(&"its key must be ECDSA, P-256"));
        }
        let name = node_name(self.cluster_id, node_id);
        let usages = [ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        self.issue("andante node", key, vec![dns_name(&name)?], &usages, now_ms)
    }

    /// Signs a certificate (DER) for these names and uses.
    pub(super) fn issue(
        &self,
        common_name: &str,
        key: &impl PublicKeyData,
        names: Vec<SanType>,
        usages: &[ExtendedKeyUsagePurpose],
        now_ms: u64,
    ) -> Result<Vec<u8>, SecurityError> {
        let mut params = params(common_name, now_ms, CERTIFICATE_LIFE)?;
        params.is_ca = IsCa::ExplicitNoCa;
        params.subject_alt_names = names;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = usages.to_vec();
        params.use_authority_key_identifier_extension = true;
        // The same key may be signed again later: the serial number must differ then.
        let digest = Sha256::new().chain_update(key.der_bytes()).chain_update(now_ms.to_be_bytes()).finalize();
        let mut serial: [u8; 16] = std::array::from_fn(|at| digest[at]);
        // Positive, and without leading zeros.
        serial[0] = serial[0] & 0x7f | 0x40;
        params.serial_number = Some(SerialNumber::from_slice(&serial));
        let certificate = params.signed_by(key, &self.issuer);
        Ok(certificate.map_err(|e| SecurityError::unusable("new certificate", e))?.der().to_vec())
    }
}

impl fmt::Debug for Authority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Authority").field("cluster_id", &hex(self.cluster_id)).finish_non_exhaustive()
    }
}

pub(super) fn fingerprint(certificate: &[u8]) -> [u8; 32] {
    Sha256::digest(certificate).into()
}

pub(super) fn dns_name(name: &str) -> Result<SanType, SecurityError> {
    let name = name.try_into().map_err(|e: rcgen::Error| SecurityError::Refused(format!("name {name:?}: {e}")))?;
    Ok(SanType::DnsName(name))
}

fn params(common_name: &str, now_ms: u64, life: Duration) -> Result<CertificateParams, SecurityError> {
    let at = |ms: u64| {
        let seconds = i64::try_from(ms / 1_000).unwrap_or(i64::MAX);
        OffsetDateTime::from_unix_timestamp(seconds)
            .map_err(|_| SecurityError::unusable("this node's clock", format_args!("{now_ms} ms is no date")))
    };
    let mut params = CertificateParams::default();
    params.not_before = at(now_ms.saturating_sub(BACKDATED.as_millis() as u64))?;
    params.not_after = at(now_ms.saturating_add(life.as_millis() as u64))?;
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, common_name);
    Ok(params)
}

#[cfg(test)]
mod tests {
    use x509_parser::parse_x509_certificate;

    use super::*;
    use crate::security::NodeKey;

    const NOW_MS: u64 = 1_800_000_000_000;
    const DAY_MS: u64 = 24 * 60 * 60 * 1_000;

    #[test]
    fn an_authority_that_was_kept_signs_as_before() {
        let authority = Authority::generate([5; 16], NOW_MS).expect("authority");
        let kept = Authority::decode(&authority.encode()).expect("decodes");
        assert_eq!((kept.cluster_id(), kept.fingerprint()), ([5; 16], authority.fingerprint()));
        let request = NodeKey::generate().expect("key").signing_request().expect("request");
        let signed = kept.sign(&request, 3, NOW_MS).expect("signed");
        let (_, root) = parse_x509_certificate(authority.certificate_der()).expect("parses");
        let (_, leaf) = parse_x509_certificate(&signed).expect("parses");
        leaf.verify_signature(Some(root.public_key())).expect("signed by the authority");
        assert_eq!(leaf.issuer(), root.subject());
        assert!(root.is_ca() && !leaf.is_ca());
        assert_eq!(Contents::read(&signed).expect("reads").node().expect("node"), ([5; 16], 3));
        let again = kept.sign(&request, 3, NOW_MS + 1).expect("signed");
        assert_ne!(parse_x509_certificate(&again).expect("parses").1.serial, leaf.serial);
    }

    #[test]
    fn certificates_hold_from_a_day_ago_for_a_month() {
        let authority = Authority::generate([5; 16], NOW_MS).expect("authority");
        let request = NodeKey::generate().expect("key").signing_request().expect("request");
        let signed = Contents::read(&authority.sign(&request, 3, NOW_MS).expect("signed")).expect("reads");
        assert_eq!((signed.not_before_ms, signed.not_after_ms), (NOW_MS - DAY_MS, NOW_MS + 30 * DAY_MS));
        let root = Contents::read(authority.certificate_der()).expect("reads");
        assert!(root.not_after_ms > NOW_MS + 10 * 365 * DAY_MS);
        // A clock at its zero, or beyond all dates.
        assert!(authority.sign(&request, 3, 0).is_ok());
        assert!(matches!(authority.sign(&request, 3, u64::MAX), Err(SecurityError::Unusable { .. })));
    }

    #[test]
    fn only_the_key_of_a_request_counts() {
        let authority = Authority::generate([5; 16], NOW_MS).expect("authority");
        let key = KeyPair::generate().expect("key");
        let mut params = CertificateParams::new(["node-1.other.andante".to_owned()]).expect("name");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let request = params.serialize_request(&key).expect("request").der().to_vec();
        let signed = authority.sign(&request, 9, NOW_MS).expect("signed");
        assert_eq!(Contents::read(&signed).expect("reads").names, [node_name([5; 16], 9)]);
        assert!(!parse_x509_certificate(&signed).expect("parses").1.is_ca());
    }

    #[test]
    fn bad_requests_are_refused() {
        let authority = Authority::generate([5; 16], NOW_MS).expect("authority");
        let good = NodeKey::generate().expect("key").signing_request().expect("request");
        let mut forged = good.clone();
        *forged.last_mut().expect("bytes") ^= 1;
        let p384 = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P384_SHA384).expect("key");
        let p384 = CertificateParams::default().serialize_request(&p384).expect("request").der().to_vec();
        let cut = good[..good.len() / 2].to_vec();
        for (what, request) in
            [("empty", vec![]), ("cut", cut), ("forged", forged), ("P-384", p384), ("long", vec![0x30; 5_000])]
        {
            assert!(matches!(authority.sign(&request, 1, NOW_MS), Err(SecurityError::Refused(_))), "{what}");
        }
    }

    #[test]
    fn a_damaged_authority_is_not_used() {
        let (one, other) = (Authority::generate([5; 16], NOW_MS), Authority::generate([5; 16], NOW_MS));
        let record = |authority: Result<Authority, _>| {
            AuthorityRecord::decode(authority.expect("authority").encode().as_slice()).expect("decodes")
        };
        let (one, other) = (record(one), record(other));
        let mixed = AuthorityRecord { key: other.key, ..one.clone() };
        let nameless = AuthorityRecord { cluster_id: Bytes::new(), ..one };
        for value in [mixed.encode_to_vec(), nameless.encode_to_vec(), vec![], vec![0xff; 40]] {
            assert!(Authority::decode(&value).is_err());
        }
    }
}
