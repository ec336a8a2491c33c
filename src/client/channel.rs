//! One node's connection: made at the first call, and again whenever it is lost.

use std::{io, sync::Arc, time::Duration};

use andante_cluster::env::{Io, Network};
use hyper_util::rt::TokioIo;
use rustls::pki_types::ServerName;
use tokio_rustls::TlsConnector;
use tonic::{
    Request, Status,
    metadata::{Ascii, MetadataValue},
    service::{Interceptor, interceptor::InterceptedService},
    transport::{Channel, Endpoint, Uri},
};

use super::config::Address;

/// Waiting longer for a connection only hides that nobody is there.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
/// HTTP/2 windows. Replies are small; many are in flight.
const WINDOW_BYTES: u32 = 4 << 20;
/// A silent node is asked whether it is there; a call that waits for one that is not fails after both.
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(5);
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(3);

/// A connection that says who is calling. Clones share it.
pub(crate) type Service = InterceptedService<Channel, Bearer>;

/// Adds the token to each call.
#[derive(Clone)]
pub(crate) struct Bearer(pub(super) Option<MetadataValue<Ascii>>);

impl Interceptor for Bearer {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        if let Some(authorization) = &self.0 {
            request.metadata_mut().insert("authorization", authorization.clone());
        }
        Ok(request)
    }
}

/// A channel to `address` over `network`; nothing is connected yet.
pub(super) fn open(
    network: &Arc<dyn Network>,
    address: &Address,
    tls: Option<&Arc<rustls::ClientConfig>>,
) -> Result<Channel, &'static str> {
    let uri = |text: String| text.parse::<Uri>().map_err(|_| "that is no host and port");
    // The connector below does TLS itself; the origin is what the server is told.
    let endpoint = Endpoint::from_shared(format!("http://{}", address.authority()))
        .map_err(|_| "that is no host and port")?
        .origin(uri(address.url())?)
        .connect_timeout(CONNECT_TIMEOUT)
        .http2_keep_alive_interval(KEEPALIVE_INTERVAL)
        .keep_alive_timeout(KEEPALIVE_TIMEOUT)
        .initial_stream_window_size(WINDOW_BYTES)
        .initial_connection_window_size(WINDOW_BYTES);
    let tls = match (address.tls, tls) {
        (true, Some(config)) => {
            let name = ServerName::try_from(address.host.clone()).map_err(|_| "certificates have no such names")?;
            Some((TlsConnector::from(Arc::clone(config)), name))
        }
        _ => None,
    };
    let (network, authority) = (Arc::clone(network), address.authority());
    Ok(endpoint.connect_with_connector_lazy(tower::service_fn(move |_: Uri| {
        let (network, authority, tls) = (Arc::clone(&network), authority.clone(), tls.clone());
        async move {
            let io = network.connect(&authority).await?;
            let io: Box<dyn Io> = match tls {
                None => io,
                // Checks that the certificate is one for this host.
                Some((connector, name)) => Box::new(connector.connect(name, io).await?),
            };
            Ok::<_, io::Error>(TokioIo::new(io))
        }
    })))
}
