//! The certificate that clients see: issued by the cluster's authority, or read from files; replaced while the server
//! runs, before it ends.

use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::Arc,
};

use andante_cluster::{
    directory::Directory,
    env::{Blocking, Clock, Env},
    host::Host,
    security::{Authority, client_port_certificate},
};
use anyhow::Context as _;
use arc_swap::ArcSwap;
use rustls::{
    ServerConfig,
    crypto::{CryptoProvider, ring},
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _},
    server::{ClientHello, ResolvesServerCert},
    sign::CertifiedKey,
};
use sha2::{Digest as _, Sha256};
use tokio::{sync::watch, task::AbortHandle, time::Duration};
use tokio_rustls::TlsAcceptor;

/// How often to look whether another certificate is due: whoever replaces files waits no longer than that.
const LOOK_EVERY: Duration = Duration::from_secs(60);
/// Certificates in a file: chains are short.
const CHAIN_MAX: usize = 16;
/// Bytes of a certificate or key file.
const FILE_BYTES_MAX: u64 = 1 << 20;

/// Where the certificate comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CertificateSource {
    /// PEM files, read again whenever they change.
    Files {
        /// The chain, the server's own certificate first.
        certificate: PathBuf,
        /// Its private key.
        key: PathBuf,
    },
    /// The cluster's own authority, for these names and addresses. Clients trust it by `andante access ca`.
    Authority {
        /// Host names and IP addresses by which clients reach the node; those of the loopback are always added.
        names: Vec<String>,
    },
}

/// TLS of a listening socket.
pub struct ServerTls {
    config: Arc<ServerConfig>,
    renewer: AbortHandle,
}

impl Drop for ServerTls {
    fn drop(&mut self) {
        self.renewer.abort();
    }
}

impl ServerTls {
    /// Gets the first certificate and keeps it fresh from now on.
    ///
    /// # Errors
    /// A file can't be read, certificate and key don't fit, or the cluster has no authority.
    pub async fn start(source: CertificateSource, host: &Host, env: &Env) -> anyhow::Result<Self> {
        let provider = Arc::new(ring::default_provider());
        let mut keeper = match source {
            CertificateSource::Files { certificate, key } => Keeper::Files(Files {
                certificate,
                key,
                seen: None,
                blocking: Arc::clone(&env.blocking),
                provider: Arc::clone(&provider),
            }),
            CertificateSource::Authority { names } => {
                Keeper::Issued(Issued { names, directory: host.directory(), seen: None, clock: Arc::clone(&env.clock) })
            }
        };
        let first = keeper.look().await?.context("there is no certificate")?;
        let current = Arc::new(Current(ArcSwap::from_pointee(first)));
        let mut config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .with_no_client_auth()
            .with_cert_resolver(Arc::clone(&current) as Arc<dyn ResolvesServerCert>);
        config.alpn_protocols = vec![b"h2".to_vec()];
        let renewer = tokio::spawn(async move {
            loop {
                tokio::time::sleep(LOOK_EVERY).await;
                match keeper.look().await {
                    Ok(Some(new)) => {
                        current.0.store(Arc::new(new));
                        tracing::info!("clients are shown a new certificate from now on");
                    }
                    Ok(None) => {}
                    Err(error) => {
                        tracing::warn!(error = format!("{error:#}"), "the certificate for clients stays as it is");
                    }
                }
            }
        });
        Ok(Self { config: Arc::new(config), renewer: renewer.abort_handle() })
    }

    /// Does handshakes.
    pub fn acceptor(&self) -> TlsAcceptor {
        Arc::clone(&self.config).into()
    }
}

/// Answers each handshake with the certificate of the moment.
#[derive(Debug)]
struct Current(ArcSwap<CertifiedKey>);

impl ResolvesServerCert for Current {
    fn resolve(&self, _hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.0.load_full())
    }
}

/// Looks for another certificate than the one in use.
enum Keeper {
    Files(Files),
    Issued(Issued),
}

impl Keeper {
    async fn look(&mut self) -> anyhow::Result<Option<CertifiedKey>> {
        match self {
            Self::Files(files) => files.look().await,
            Self::Issued(issued) => issued.look(),
        }
    }
}

/// Reads files, again when their bytes have changed.
struct Files {
    certificate: PathBuf,
    key: PathBuf,
    /// SHA-256 of both.
    seen: Option<[[u8; 32]; 2]>,
    blocking: Arc<dyn Blocking>,
    provider: Arc<CryptoProvider>,
}

impl Files {
    async fn look(&mut self) -> anyhow::Result<Option<CertifiedKey>> {
        let (certificate, key) = (self.certificate.clone(), self.key.clone());
        let read = move || anyhow::Ok((read_file(&certificate)?, read_file(&key)?));
        let (chain, secret) = self.blocking.call(read).await.context("reading the files was broken off")??;
        let hashes = [Sha256::digest(&chain).into(), Sha256::digest(&secret).into()];
        if self.seen == Some(hashes) {
            return Ok(None);
        }
        let certified = certified(&chain, &secret, &self.provider);
        let certified = certified
            .with_context(|| format!("tls_cert {}, tls_key {}", self.certificate.display(), self.key.display()))?;
        self.seen = Some(hashes);
        Ok(Some(certified))
    }
}

/// Has certificates issued by the cluster's authority: a new one when the old one is due, or the authority another.
struct Issued {
    names: Vec<String>,
    directory: watch::Receiver<Arc<Directory>>,
    /// The authority's revision in the directory, and when the certificate is due.
    seen: Option<(u64, u64)>,
    clock: Arc<dyn Clock>,
}

impl Issued {
    fn look(&mut self) -> anyhow::Result<Option<CertifiedKey>> {
        let now_ms = self.clock.now_ms();
        let directory = self.directory.borrow_and_update().clone();
        let setting = directory.settings.get(Authority::SETTING).context("the cluster has no authority")?;
        if self.seen.is_some_and(|(revision, renew_at_ms)| revision == setting.revision && now_ms < renew_at_ms) {
            return Ok(None);
        }
        let authority = Authority::decode(&setting.value)?;
        let issued = client_port_certificate(&authority, &self.names, now_ms)?;
        self.seen = Some((setting.revision, issued.renew_at_ms()));
        Ok(Some(issued.certified_key()?))
    }
}

fn read_file(path: &Path) -> anyhow::Result<Vec<u8>> {
    let read = || {
        let file = fs::File::open(path)?;
        if file.metadata()?.len() > FILE_BYTES_MAX {
            return Err(io::Error::other(format!("is larger than {FILE_BYTES_MAX} bytes")));
        }
        fs::read(path)
    };
    read().with_context(|| format!("{} can't be read", path.display()))
}

/// A chain and its key, checked to belong together.
fn certified(chain: &[u8], key: &[u8], provider: &CryptoProvider) -> anyhow::Result<CertifiedKey> {
    let chain: Vec<_> = CertificateDer::pem_slice_iter(chain).take(CHAIN_MAX + 1).collect::<Result<_, _>>()?;
    anyhow::ensure!(!chain.is_empty(), "the certificate file has no certificate in PEM");
    anyhow::ensure!(chain.len() <= CHAIN_MAX, "the certificate file has more than {CHAIN_MAX} certificates");
    let key = PrivateKeyDer::from_pem_slice(key).context("the key file has no private key in PEM")?;
    Ok(CertifiedKey::from_der(chain, key, provider)?)
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering};

    use andante_cluster::{directory::Setting, env::OsThreads};

    use super::*;

    #[derive(Default)]
    struct Hand(AtomicU64);

    impl Clock for Hand {
        fn now_ms(&self) -> u64 {
            self.0.load(Ordering::SeqCst)
        }

        fn monotonic_micros(&self) -> u64 {
            self.now_ms() * 1_000
        }
    }

    #[test]
    fn an_issued_certificate_is_replaced_before_it_ends_and_when_the_authority_is_another() {
        let day_ms = 24 * 3_600_000;
        let clock = Arc::new(Hand::default());
        clock.0.store(1_800_000_000_000, Ordering::SeqCst);
        let with = |revision| {
            let value = Authority::generate([7; 16], clock.now_ms()).unwrap().encode().into();
            let mut directory = Directory::default();
            directory.settings.insert(Authority::SETTING.to_owned(), Setting { value, revision });
            Arc::new(directory)
        };
        let (published, directory) = watch::channel(Arc::default());
        let names = vec!["scores.example".to_owned()];
        let mut issued = Issued { names, directory, seen: None, clock: clock.clone() };
        assert!(issued.look().expect_err("nobody issues").to_string().contains("no authority"));

        published.send_replace(with(1));
        let first = issued.look().unwrap().expect("is new").cert;
        clock.0.fetch_add(day_ms, Ordering::SeqCst);
        assert!(issued.look().unwrap().is_none(), "good for long");
        clock.0.fetch_add(25 * day_ms, Ordering::SeqCst);
        let second = issued.look().unwrap().expect("is due").cert;
        assert_ne!(first, second);
        assert!(issued.look().unwrap().is_none());
        published.send_replace(with(2));
        assert!(issued.look().unwrap().is_some(), "another authority");
    }

    fn write(dir: &Path, of: &rcgen::CertifiedKey<rcgen::KeyPair>, with: &rcgen::CertifiedKey<rcgen::KeyPair>) {
        fs::write(dir.join("cert.pem"), of.cert.pem()).unwrap();
        fs::write(dir.join("key.pem"), with.signing_key.serialize_pem()).unwrap();
    }

    #[tokio::test]
    async fn files_are_taken_over_when_they_change_and_fit_and_stay_otherwise() {
        let dir = tempfile::tempdir().unwrap();
        let mut files = Files {
            certificate: dir.path().join("cert.pem"),
            key: dir.path().join("key.pem"),
            seen: None,
            blocking: Arc::new(OsThreads),
            provider: Arc::new(ring::default_provider()),
        };
        let error = format!("{:#}", files.look().await.expect_err("there is none"));
        assert!(error.contains("cert.pem can't be read"), "{error}");

        let make = || rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
        let (first, second) = (make(), make());
        write(dir.path(), &first, &first);
        let found = files.look().await.unwrap().expect("is new");
        assert_eq!(found.cert, [first.cert.der().clone()]);
        assert!(files.look().await.unwrap().is_none(), "nothing changed");

        write(dir.path(), &second, &first);
        let error = format!("{:#}", files.look().await.expect_err("they do not fit"));
        assert!(error.contains("tls_cert") && error.contains("key.pem"), "{error}");
        write(dir.path(), &second, &second);
        assert_eq!(files.look().await.unwrap().expect("is new").cert, [second.cert.der().clone()]);
    }

    #[test]
    fn files_without_what_they_should_hold_are_told() {
        let provider = ring::default_provider();
        let certified_key = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
        let (chain, key) = (certified_key.cert.pem(), certified_key.signing_key.serialize_pem());
        let error = |chain: &str, key: &str| {
            certified(chain.as_bytes(), key.as_bytes(), &provider).expect_err("is refused").to_string()
        };
        assert!(error("", &key).contains("no certificate"));
        assert!(error(&chain.repeat(17), &key).contains("more than 16"));
        assert!(error(&chain, &chain).contains("no private key"));
    }
}
