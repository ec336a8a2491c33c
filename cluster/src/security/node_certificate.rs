//! A node's own key and certificate, and the file that keeps them.

use std::{
    fmt,
    fs::{self, DirBuilder, File, OpenOptions, Permissions},
    io::{self, Write},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt},
    path::Path,
};

use prost::Message;
use rcgen::{CertificateParams, KeyPair, PKCS_ECDSA_P256_SHA256, PublicKeyData};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use x509_parser::parse_x509_certificate;

use super::{Authority, SecurityError, name::Contents};
use crate::{NodeId, proto::NodeCertificateRecord};

/// Folder of the data directory that keeps it.
const FOLDER: &str = "tls";
const FILE: &str = "node";
const TEMPORARY: &str = "node.new";
/// For the owner alone.
const FOLDER_MODE: u32 = 0o700;
const FILE_MODE: u32 = 0o600;

/// A node's private key.
pub struct NodeKey(KeyPair);

impl NodeKey {
    /// A new key (ECDSA, P-256) from the operating system's generator.
    pub fn generate() -> Result<Self, SecurityError> {
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256);
        key.map(Self).map_err(|e| SecurityError::unusable("new key", e))
    }

    /// A request (DER) to sign a certificate for this key. It names nobody: the authority decides for whom.
    pub fn signing_request(&self) -> Result<Vec<u8>, SecurityError> {
        let request = CertificateParams::default().serialize_request(&self.0);
        Ok(request.map_err(|e| SecurityError::unusable("signing request", e))?.der().to_vec())
    }

    /// For rustls.
    pub(super) fn private_key(&self) -> PrivateKeyDer<'static> {
        PrivatePkcs8KeyDer::from(self.0.serialize_der()).into()
    }

    pub(super) fn pair(&self) -> &KeyPair {
        &self.0
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
        let unusable = |why: &dyn ToString| SecurityError::unusable("node certificate", why.to_string());
        let contents = Contents::read(&certificate)?;
        let (cluster_id, node_id) = contents.node()?;
        if contents.public_key != key.0.subject_public_key_info() {
            return Err(unusable(&"it is for another key"));
        }
        let (_, root) = parse_x509_certificate(&authority).map_err(|e| unusable(&e))?;
        let (_, leaf) = parse_x509_certificate(&certificate).map_err(|e| unusable(&e))?;
        leaf.verify_signature(Some(root.public_key())).map_err(|_| unusable(&"another authority signed it"))?;
        let (not_before_ms, not_after_ms) = (contents.not_before_ms, contents.not_after_ms);
        let (certificate, authority) = (certificate.into(), authority.into());
        Ok(Self { node_id, cluster_id, key, certificate, authority, not_before_ms, not_after_ms })
    }

    /// A new key and certificate, where the authority is at hand.
    pub fn issue(authority: &Authority, node_id: NodeId, now_ms: u64) -> Result<Self, SecurityError> {
        let key = NodeKey::generate()?;
        let certificate = authority.sign(&key.signing_request()?, node_id, now_ms)?;
        Self::new(key, certificate, authority.certificate_der().to_vec())
    }

    /// Reads it from `<data_dir>/tls/`; `None`: there is none. Blocks. An unusable one can be issued anew wherever
    /// the authority is known.
    pub fn load(data_dir: &Path) -> Result<Option<Self>, SecurityError> {
        let path = data_dir.join(FOLDER).join(FILE);
        let bytes = match read_private(&path) {
            Ok(bytes) => bytes,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(source) => return Err(SecurityError::Io { what: "certificate file", source }),
        };
        let damaged = |why: &dyn ToString| SecurityError::unusable("certificate file", why.to_string());
        let (crc, record) = bytes.split_first_chunk::<4>().ok_or_else(|| damaged(&"cut off"))?;
        if crc32fast::hash(record) != u32::from_le_bytes(*crc) {
            return Err(damaged(&"its checksum is wrong"));
        }
        let record = NodeCertificateRecord::decode(record).map_err(|e| damaged(&e))?;
        let key = NodeKey(KeyPair::try_from(record.key.as_ref()).map_err(|e| damaged(&e))?);
        Self::new(key, record.certificate.to_vec(), record.authority.to_vec()).map(Some)
    }

    /// Writes it to `<data_dir>/tls/`, durably and in one step, for the owner's eyes alone. Blocks.
    pub fn save(&self, data_dir: &Path) -> Result<(), SecurityError> {
        let record = NodeCertificateRecord {
            key: self.key.0.serialize_der().into(),
            certificate: self.certificate.to_vec().into(),
            authority: self.authority.to_vec().into(),
        };
        let record = record.encode_to_vec();
        // As in the identity file: a CRC (4 bytes, little-endian), then the message.
        let bytes = [&crc32fast::hash(&record).to_le_bytes()[..], &record].concat();
        write_private(data_dir, &bytes).map_err(|source| SecurityError::Io { what: "certificate file", source })
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
        now_ms < self.not_before_ms || now_ms > renew_at_ms(self.not_before_ms, self.not_after_ms)
    }

    /// What a node shows: its certificate, and the authority's for those who only know its fingerprint.
    pub(super) fn chain(&self) -> Vec<CertificateDer<'static>> {
        vec![self.certificate.clone(), self.authority.clone()]
    }

    pub(super) fn key(&self) -> &NodeKey {
        &self.key
    }
}

/// When a third of a life is left.
pub(super) fn renew_at_ms(not_before_ms: u64, not_after_ms: u64) -> u64 {
    not_after_ms - not_after_ms.saturating_sub(not_before_ms) / 3
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
            .field("not_before_ms", &self.not_before_ms)
            .field("not_after_ms", &self.not_after_ms)
            .finish_non_exhaustive()
    }
}

/// Reads a file that only its owner should be able to read; sees to it where somebody (a restored backup) let go.
fn read_private(path: &Path) -> io::Result<Vec<u8>> {
    if fs::metadata(path)?.permissions().mode() & 0o077 != 0 {
        tracing::warn!(path = %path.display(), "the node's key could be read by others: now it is its owner's alone");
        fs::set_permissions(path, Permissions::from_mode(FILE_MODE))?;
    }
    fs::read(path)
}

fn write_private(data_dir: &Path, bytes: &[u8]) -> io::Result<()> {
    let folder = data_dir.join(FOLDER);
    DirBuilder::new().recursive(true).mode(FOLDER_MODE).create(&folder)?;
    fs::set_permissions(&folder, Permissions::from_mode(FOLDER_MODE))?;
    File::open(data_dir)?.sync_all()?;
    let temporary = folder.join(TEMPORARY);
    // One left over by a crash could have any mode.
    match fs::remove_file(&temporary) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
        _ => {}
    }
    let mut file = OpenOptions::new().write(true).create_new(true).mode(FILE_MODE).open(&temporary)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    fs::rename(&temporary, folder.join(FILE))?;
    File::open(&folder)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW_MS: u64 = 1_800_000_000_000;
    const DAY_MS: u64 = 24 * 60 * 60 * 1_000;

    fn issued() -> NodeCertificate {
        let authority = Authority::generate([5; 16], NOW_MS).expect("authority");
        NodeCertificate::issue(&authority, 3, NOW_MS).expect("certificate")
    }

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).expect("metadata").permissions().mode() & 0o777
    }

    #[test]
    fn a_saved_certificate_comes_back_and_is_its_owners_alone() {
        let dir = tempfile::tempdir().expect("dir");
        assert!(NodeCertificate::load(dir.path()).expect("no file").is_none());
        let certificate = issued();
        let folder = dir.path().join(FOLDER);
        // Left over by a crash, and open to everybody.
        fs::create_dir(&folder).expect("folder");
        fs::write(folder.join(TEMPORARY), "half").expect("file");
        certificate.save(dir.path()).expect("saved");
        assert_eq!((mode(&folder), mode(&folder.join(FILE))), (0o700, 0o600));
        assert!(!folder.join(TEMPORARY).exists());
        let loaded = NodeCertificate::load(dir.path()).expect("loads").expect("there");
        assert_eq!((loaded.node_id(), loaded.cluster_id()), (3, [5; 16]));
        assert_eq!(
            (loaded.chain(), loaded.key().private_key()),
            (certificate.chain(), certificate.key().private_key())
        );
        assert_eq!(loaded.authority_der(), certificate.authority_der());
        issued().save(dir.path()).expect("saved over it");
        assert_ne!(NodeCertificate::load(dir.path()).expect("loads").expect("there").chain(), loaded.chain());
    }

    #[test]
    fn a_file_that_others_could_read_is_closed_to_them() {
        let dir = tempfile::tempdir().expect("dir");
        issued().save(dir.path()).expect("saved");
        let file = dir.path().join(FOLDER).join(FILE);
        fs::set_permissions(&file, Permissions::from_mode(0o644)).expect("mode");
        assert!(NodeCertificate::load(dir.path()).expect("loads").is_some());
        assert_eq!(mode(&file), 0o600);
    }

    #[test]
    fn a_damaged_file_is_told() {
        let dir = tempfile::tempdir().expect("dir");
        issued().save(dir.path()).expect("saved");
        let file = dir.path().join(FOLDER).join(FILE);
        let good = fs::read(&file).expect("reads");
        let mut flipped = good.clone();
        flipped[good.len() / 2] ^= 1;
        for bytes in [&good[..3], &good[..good.len() - 1], &flipped] {
            fs::write(&file, bytes).expect("written");
            assert!(matches!(NodeCertificate::load(dir.path()), Err(SecurityError::Unusable { .. })));
        }
    }

    #[test]
    fn key_certificate_and_authority_must_belong_together() {
        let (ours, theirs) = (Authority::generate([5; 16], NOW_MS), Authority::generate([5; 16], NOW_MS));
        let (ours, theirs) = (ours.expect("authority"), theirs.expect("authority"));
        let request = |key: &NodeKey| key.signing_request().expect("request");
        let (one, other) = (NodeKey::generate().expect("key"), NodeKey::generate().expect("key"));
        let signed = ours.sign(&request(&one), 3, NOW_MS).expect("signed");
        assert!(NodeCertificate::new(other, signed.clone(), ours.certificate_der().to_vec()).is_err());
        assert!(NodeCertificate::new(one, signed, theirs.certificate_der().to_vec()).is_err());
        let key = NodeKey::generate().expect("key");
        assert!(NodeCertificate::new(key, vec![1, 2], ours.certificate_der().to_vec()).is_err());
    }

    #[test]
    fn renewal_is_due_in_the_last_third_of_a_life_and_before_it() {
        let certificate = issued();
        let life_ms = 31 * DAY_MS;
        assert!(!certificate.needs_renewal(NOW_MS));
        assert!(!certificate.needs_renewal(certificate.not_after_ms() - life_ms / 3));
        assert!(certificate.needs_renewal(certificate.not_after_ms() - life_ms / 3 + 1));
        assert!(certificate.needs_renewal(certificate.not_after_ms() + DAY_MS));
        assert!(certificate.needs_renewal(NOW_MS - DAY_MS - 1), "a clock that was set back");
    }
}
