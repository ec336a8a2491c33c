//! The certificate that clients see: issued by the cluster's authority, or read from files; replaced while the server
//! runs, before it ends.

use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::Arc,
};

use andante_cluster::{
    env::{Blocking, Clock, Env},
    host::Host,
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
use tokio::{task::AbortHandle, time::Duration};
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
    pub async fn start(source: CertificateSource, host: Arc<Host>, env: &Env) -> anyhow::Result<Self> {
        let provider = Arc::new(ring::default_provider());
        let mut keeper = Keeper {
            source,
            host,
            clock: Arc::clone(&env.clock),
            blocking: Arc::clone(&env.blocking),
            provider: Arc::clone(&provider),
            seen: None,
        };
        let first = keeper.look().await?.context("there is no certificate")?;
        let current = Arc::new(Current(ArcSwap::new(first)));
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
                        current.0.store(new);
                        tracing::info!("clients are shown a new certificate from now on");
                    }
                    Ok(None) => {}
                    Err(error) => {
                        tracing::warn!(error = format!("{error:#}"), "the server's certificate stays as it is")
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

/// What the certificate in use was made from.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Seen {
    /// SHA-256 of the files' bytes.
    Files { certificate: [u8; 32], key: [u8; 32] },
    /// The authority's revision in the directory, and when the certificate is due.
    Issued { revision: u64, renew_at_ms: u64 },
}

/// Looks for another certificate.
struct Keeper {
    source: CertificateSource,
    host: Arc<Host>,
    clock: Arc<dyn Clock>,
    blocking: Arc<dyn Blocking>,
    provider: Arc<CryptoProvider>,
    seen: Option<Seen>,
}

impl Keeper {
    /// Another certificate than last time, if there is one.
    async fn look(&mut self) -> anyhow::Result<Option<Arc<CertifiedKey>>> {
        match self.source.clone() {
            CertificateSource::Files { certificate, key } => self.read(certificate, key).await,
            CertificateSource::Authority { names } => self.issue(&names).await,
        }
    }

    async fn read(&mut self, certificate: PathBuf, key: PathBuf) -> anyhow::Result<Option<Arc<CertifiedKey>>> {
        let (seen, provider) = (self.seen.clone(), Arc::clone(&self.provider));
        let read = move || -> anyhow::Result<Option<(Seen, CertifiedKey)>> {
            let (chain, secret) = (read_file(&certificate)?, read_file(&key)?);
            let hash = |bytes: &[u8]| Sha256::digest(bytes).into();
            let now = Seen::Files { certificate: hash(&chain), key: hash(&secret) };
            if seen.as_ref() == Some(&now) {
                return Ok(None);
            }
            let certified = certified(&chain, &secret, &provider)
                .with_context(|| format!("tls_cert {}, tls_key {}", certificate.display(), key.display()))?;
            Ok(Some((now, certified)))
        };
        let read = self.blocking.call(read).await.context("reading the certificate was broken off")??;
        Ok(read.map(|(seen, certified)| {
            self.seen = Some(seen);
            Arc::new(certified)
        }))
    }

    async fn issue(&mut self, names: &[String]) -> anyhow::Result<Option<Arc<CertifiedKey>>> {
        let _ = (names, &self.host, &self.clock);
        anyhow::bail!("the cluster has no authority")
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
