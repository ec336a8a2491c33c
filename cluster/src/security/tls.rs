//! Mutual TLS 1.3 between nodes.

use std::{io, sync::Arc};

use super::{NodeCertificate, SecurityError};
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
            Self::Mutual(_) => unimplemented!(),
        }
    }

    /// The client's side of a connection; the other end must be exactly this node of this cluster. That the other
    /// end refuses *us* shows only in the first read (TLS 1.3). Waits for the other end without limit.
    pub async fn connect(&self, io: Box<dyn Io>, node: NodeId) -> io::Result<Box<dyn Io>> {
        let _ = node;
        match self {
            Self::Plaintext => Ok(io),
            Self::Mutual(_) => unimplemented!(),
        }
    }
}

/// The certificate a node uses towards its peers. Refuses every connection until there is one.
#[derive(Debug)]
pub struct MutualTls {
    cluster_id: [u8; 16],
}

impl MutualTls {
    /// Without a certificate.
    pub fn new(cluster_id: [u8; 16], clock: Arc<dyn Clock>) -> Arc<Self> {
        let _ = clock;
        Arc::new(Self { cluster_id })
    }

    /// New connections use this certificate; those there are go on. `Unusable`: it is for another cluster.
    pub fn install(&self, certificate: NodeCertificate) -> Result<(), SecurityError> {
        let _ = (certificate, self.cluster_id);
        unimplemented!()
    }

    /// The certificate in use.
    pub fn certificate(&self) -> Option<Arc<NodeCertificate>> {
        unimplemented!()
    }
}
