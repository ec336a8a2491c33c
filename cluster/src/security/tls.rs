//! Mutual TLS 1.3 between nodes.

use std::{fmt, io, sync::Arc};

use arc_swap::ArcSwapOption;
use rustls::{
    ClientConfig, RootCertStore, ServerConfig,
    client::{Resumption, WebPkiServerVerifier},
    crypto::CryptoProvider,
    pki_types::ServerName,
    server::WebPkiClientVerifier,
    version::TLS13,
};
use tokio_rustls::{TlsAcceptor, TlsConnector};

use super::{
    NodeCertificate, SecurityError,
    explain::{explain, explain_connecting, refusal},
    name::{Contents, node_name},
    time::ClockTime,
};
use crate::{
    NodeId,
    env::{Clock, Io},
};

/// How connections between nodes are secured.
#[derive(Clone, Debug)]
pub enum PeerSecurity {
    /// Not at all: loopback, trusted networks, the simulation.
    Plaintext,
    /// Both ends show a certificate of the cluster.
    Mutual(Arc<MutualTls>),
}

impl PeerSecurity {
    /// The server's side of a connection. `Some`: the node at the other end, verified. `None`: it showed no
    /// certificate (it may only join), or nothing is secured. Waits for the other end without limit.
    pub async fn accept(&self, io: Box<dyn Io>) -> io::Result<(Box<dyn Io>, Option<NodeId>)> {
        match self {
            Self::Plaintext => Ok((io, None)),
            Self::Mutual(mutual) => mutual.accept(io).await,
        }
    }

    /// The client's side of a connection; the other end must be exactly this node of this cluster. That the other
    /// end refuses *us* shows only in the first read (TLS 1.3). Waits for the other end without limit.
    pub async fn connect(&self, io: Box<dyn Io>, node: NodeId) -> io::Result<Box<dyn Io>> {
        match self {
            Self::Plaintext => Ok(io),
            Self::Mutual(mutual) => mutual.connect(io, node).await,
        }
    }
}

/// The certificate a node uses towards its peers. Refuses every connection until there is one.
pub struct MutualTls {
    cluster_id: [u8; 16],
    time: Arc<ClockTime>,
    in_use: ArcSwapOption<InUse>,
}

struct InUse {
    certificate: Arc<NodeCertificate>,
    server: Arc<ServerConfig>,
    client: Arc<ClientConfig>,
}

impl MutualTls {
    /// Without a certificate.
    pub fn new(cluster_id: [u8; 16], clock: Arc<dyn Clock>) -> Arc<Self> {
        let time = Arc::new(ClockTime(clock));
        Arc::new(Self { cluster_id, time, in_use: ArcSwapOption::empty() })
    }

    /// New connections use this certificate; those there are go on. `Unusable`: it is for another cluster.
    pub fn install(&self, certificate: NodeCertificate) -> Result<(), SecurityError> {
        if certificate.cluster_id() != self.cluster_id {
            return Err(SecurityError::unusable("node certificate", "it is for another cluster"));
        }
        let unusable = |why: &dyn ToString| SecurityError::unusable("node certificate", why.to_string());
        let mut roots = RootCertStore::empty();
        roots.add(certificate.authority_der().to_vec().into()).map_err(|e| unusable(&e))?;
        let (roots, provider) = (Arc::new(roots), provider());
        let (chain, key) = (certificate.chain(), || certificate.key().private_key());

        let clients = WebPkiClientVerifier::builder_with_provider(roots.clone(), provider.clone())
            .allow_unauthenticated()
            .build()
            .map_err(|e| unusable(&e))?;
        let mut server = ServerConfig::builder_with_details(provider.clone(), self.time.clone())
            .with_protocol_versions(&[&TLS13])
            .and_then(|builder| builder.with_client_cert_verifier(clients).with_single_cert(chain.clone(), key()))
            .map_err(|e| unusable(&e))?;
        // A resumed session would not look at certificates again, and links are too few to gain from one.
        server.send_tls13_tickets = 0;

        let servers = WebPkiServerVerifier::builder_with_provider(roots, provider.clone()).build();
        let servers = servers.map_err(|e| unusable(&e))?;
        let mut client = ClientConfig::builder_with_details(provider, self.time.clone())
            .with_protocol_versions(&[&TLS13])
            .and_then(|builder| builder.with_webpki_verifier(servers).with_client_auth_cert(chain, key()))
            .map_err(|e| unusable(&e))?;
        client.resumption = Resumption::disabled();
        // It would travel in the clear, and the server has one certificate only.
        client.enable_sni = false;

        let (server, client) = (Arc::new(server), Arc::new(client));
        self.in_use.store(Some(Arc::new(InUse { certificate: Arc::new(certificate), server, client })));
        Ok(())
    }

    /// The certificate in use.
    pub fn certificate(&self) -> Option<Arc<NodeCertificate>> {
        self.in_use.load().as_ref().map(|in_use| in_use.certificate.clone())
    }

    fn in_use(&self) -> io::Result<Arc<InUse>> {
        let none = || io::Error::new(io::ErrorKind::NotConnected, "this node has no certificate of its cluster yet");
        self.in_use.load_full().ok_or_else(none)
    }

    async fn accept(&self, io: Box<dyn Io>) -> io::Result<(Box<dyn Io>, Option<NodeId>)> {
        let whose = "the connecting node";
        let accepted = TlsAcceptor::from(self.in_use()?.server.clone()).accept(io).await;
        let stream = accepted.map_err(|e| explain(e, whose))?;
        let Some(certificate) = stream.get_ref().1.peer_certificates().and_then(<[_]>::first) else {
            return Ok((Box::new(stream), None));
        };
        let node = Contents::read(certificate).and_then(|contents| contents.node());
        match node.map_err(|e| refusal(format_args!("{whose}: {e}")))? {
            (cluster_id, node_id) if cluster_id == self.cluster_id => Ok((Box::new(stream), Some(node_id))),
            _ => Err(refusal(format_args!("{whose} belongs to another cluster"))),
        }
    }

    async fn connect(&self, io: Box<dyn Io>, node: NodeId) -> io::Result<Box<dyn Io>> {
        let name = ServerName::try_from(node_name(self.cluster_id, node)).map_err(io::Error::other)?;
        let connected = TlsConnector::from(self.in_use()?.client.clone()).connect(name, io).await;
        Ok(Box::new(connected.map_err(|e| explain_connecting(e, &format!("node {node}")))?))
    }
}

impl fmt::Debug for MutualTls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MutualTls").field("certificate", &self.certificate()).finish_non_exhaustive()
    }
}

pub(super) fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}
