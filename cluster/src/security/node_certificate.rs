//! A node's own key and certificate, and the file that keeps them.

use std::{fmt, path::Path};

use rcgen::KeyPair;
use rustls::pki_types::CertificateDer;

use super::{Authority, SecurityError};
use crate::NodeId;

/// A node's private key.
pub struct NodeKey(KeyPair);

impl NodeKey {
    /// A new key from the operating system's generator.
    pub fn generate() -> Result<Self, SecurityError> {
        unimplemented!()
    }

    /// A request (DER) to sign a certificate for this key.
    pub fn signing_request(&self) -> Result<Vec<u8>, SecurityError> {
        let _ = &self.0;
        unimplemented!()
    }
}

/// A node's key and certificate, with the certificate of the authority that signed it.
pub struct NodeCertificate {
    node_id: NodeId,
    cluster_id: [u8; 16],
    key: NodeKey,
    certificate: CertificateDer<'static>,
    authority: CertificateDer<'static>,
    not_before_ms: u64,
    not_after_ms: u64,
}

impl NodeCertificate {
    /// Puts a key and what was signed for it together (both DER). `Unusable`: they do not belong together.
    pub fn new(key: NodeKey, certificate: Vec<u8>, authority: Vec<u8>) -> Result<Self, SecurityError> {
        let _ = (key, certificate, authority);
        unimplemented!()
    }

    /// A new key and certificate, where the authority is at hand.
    pub fn issue(authority: &Authority, node_id: NodeId, now_ms: u64) -> Result<Self, SecurityError> {
        let key = NodeKey::generate()?;
        let certificate = authority.sign(&key.signing_request()?, node_id, now_ms)?;
        Self::new(key, certificate, authority.certificate_der().to_vec())
    }

    /// Reads it from `<data_dir>/tls/`; `None`: there is none. Blocks.
    pub fn load(data_dir: &Path) -> Result<Option<Self>, SecurityError> {
        let _ = data_dir;
        unimplemented!()
    }

    /// Writes it to `<data_dir>/tls/`, durably and in one step. Blocks.
    pub fn save(&self, data_dir: &Path) -> Result<(), SecurityError> {
        let _ = (data_dir, &self.key, &self.certificate);
        unimplemented!()
    }

    /// The node it is for.
    pub fn node_id(&self) -> NodeId {
        self.node_id
    }

    /// The cluster it is for.
    pub fn cluster_id(&self) -> [u8; 16] {
        self.cluster_id
    }

    /// The certificate (DER) of the authority that signed it.
    pub fn authority_der(&self) -> &[u8] {
        &self.authority
    }

    /// The end of its life.
    pub fn not_after_ms(&self) -> u64 {
        self.not_after_ms
    }

    /// Whether a new one should replace it: less than a third of its life is left, or it has not begun.
    pub fn needs_renewal(&self, now_ms: u64) -> bool {
        let _ = (now_ms, self.not_before_ms);
        unimplemented!()
    }
}

impl fmt::Debug for NodeKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("NodeKey(..)")
    }
}

impl fmt::Debug for NodeCertificate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("NodeCertificate")
            .field("node_id", &self.node_id)
            .field("not_after_ms", &self.not_after_ms)
            .finish_non_exhaustive()
    }
}
