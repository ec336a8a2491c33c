//! The authority of a cluster: signs the certificates of its nodes.

use std::fmt;

use rcgen::{Issuer, KeyPair};
use rustls::pki_types::CertificateDer;

use super::SecurityError;
use crate::{NodeId, directory::Directory};

/// The certificate and the key that vouch for the nodes of one cluster.
pub struct Authority {
    cluster_id: [u8; 16],
    certificate: CertificateDer<'static>,
    issuer: Issuer<'static, KeyPair>,
}

impl Authority {
    /// The directory setting it is kept in.
    pub const SETTING: &'static str = "cluster_authority";

    /// Makes the authority of a new cluster. The key comes from the operating system's generator.
    pub fn generate(cluster_id: [u8; 16], now_ms: u64) -> Result<Self, SecurityError> {
        let _ = (cluster_id, now_ms);
        unimplemented!()
    }

    /// As the value of a directory setting. Holds the key: never log it.
    pub fn encode(&self) -> Vec<u8> {
        unimplemented!()
    }

    /// Reads what [`Self::encode`] wrote.
    pub fn decode(value: &[u8]) -> Result<Self, SecurityError> {
        let _ = value;
        unimplemented!()
    }

    /// The authority of the cluster; `None`: it has none (a cluster without TLS).
    pub fn of(directory: &Directory) -> Result<Option<Self>, SecurityError> {
        directory.settings.get(Self::SETTING).map(|setting| Self::decode(&setting.value)).transpose()
    }

    /// The cluster it vouches for.
    pub fn cluster_id(&self) -> [u8; 16] {
        self.cluster_id
    }

    /// Its certificate (DER).
    pub fn certificate_der(&self) -> &[u8] {
        &self.certificate
    }

    /// SHA-256 of its certificate; join tokens carry it.
    pub fn fingerprint(&self) -> [u8; 32] {
        unimplemented!()
    }

    /// Signs the certificate (DER) of a node for the key of a signing request (DER). Nothing but the key is taken
    /// over from the request. `Refused`: it is no signing request, or not signed by its own key.
    pub fn sign(&self, signing_request: &[u8], node_id: NodeId, now_ms: u64) -> Result<Vec<u8>, SecurityError> {
        let _ = (signing_request, node_id, now_ms, &self.issuer);
        unimplemented!()
    }
}

impl fmt::Debug for Authority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Authority").finish_non_exhaustive()
    }
}
