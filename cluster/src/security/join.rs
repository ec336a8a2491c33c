//! The connection of a node that has a join token and no certificate yet.

use std::{io, sync::Arc};

use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, Error, RootCertStore, SignatureScheme,
    client::{
        Resumption, WebPkiServerVerifier,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    },
    crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature},
    pki_types::{CertificateDer, ServerName, UnixTime},
    version::TLS13,
};
use tokio_rustls::TlsConnector;

use super::{
    JoinToken,
    authority::fingerprint,
    explain::{explain, refusal},
    name::{Contents, node_name},
    time::ClockTime,
    tls::provider,
};
use crate::env::{Clock, Io};

/// Makes sure that the other end is a node of the cluster whose authority the token pins; any of its nodes will do.
/// Waits for the other end without limit.
pub async fn connect_for_join(io: Box<dyn Io>, token: &JoinToken, clock: &Arc<dyn Clock>) -> io::Result<Box<dyn Io>> {
    let (provider, time) = (provider(), Arc::new(ClockTime(clock.clone())));
    let pinned = Pinned { authority_fingerprint: token.authority_fingerprint, provider: provider.clone() };
    let builder = ClientConfig::builder_with_details(provider, time).with_protocol_versions(&[&TLS13]);
    let builder = builder.map_err(io::Error::other)?.dangerous().with_custom_certificate_verifier(Arc::new(pinned));
    let mut config = builder.with_no_client_auth();
    config.resumption = Resumption::disabled();
    config.enable_sni = false;
    // rustls wants a name; which node answers shows in its certificate.
    let name = ServerName::try_from("any-node.andante").map_err(io::Error::other)?;
    match TlsConnector::from(Arc::new(config)).connect(name, io).await {
        Ok(stream) => Ok(Box::new(stream)),
        Err(e) if is_unknown_issuer(&e) => {
            Err(refusal("the node at this address belongs to another cluster than the join token"))
        }
        Err(e) => Err(explain(e, "the node at this address")),
    }
}

fn is_unknown_issuer(error: &io::Error) -> bool {
    let cause = error.get_ref().and_then(|cause| cause.downcast_ref::<Error>());
    matches!(cause, Some(Error::InvalidCertificate(CertificateError::UnknownIssuer)))
}

/// Trusts one authority that it knows by its fingerprint only: the server sends its certificate.
#[derive(Debug)]
struct Pinned {
    authority_fingerprint: [u8; 32],
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for Pinned {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let authority = intermediates.iter().find(|shown| fingerprint(shown) == self.authority_fingerprint);
        let authority = authority.ok_or(CertificateError::UnknownIssuer)?;
        let mut roots = RootCertStore::empty();
        roots.add(authority.clone().into_owned())?;
        let verifier = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), self.provider.clone()).build();
        let verifier = verifier.map_err(|e| Error::General(e.to_string()))?;
        // Only nodes are asked to let somebody join, not whatever else the authority may have signed.
        let node = Contents::read(end_entity).and_then(|contents| contents.node());
        let (cluster_id, node_id) = node.map_err(|e| Error::General(e.to_string()))?;
        let name = ServerName::try_from(node_name(cluster_id, node_id)).map_err(|e| Error::General(e.to_string()))?;
        verifier.verify_server_cert(end_entity, intermediates, &name, ocsp_response, now)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(message, cert, dss, &self.provider.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, cert, dss, &self.provider.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}
