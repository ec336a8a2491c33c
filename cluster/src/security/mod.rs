//! Who may talk to whom: mutual TLS between the nodes of a cluster, and tokens to join it.
//!
//! ```text
//! Authority             made when the cluster is formed; kept in the directory, hence on every node
//!   .sign(request, id)  certificate of one node: its name says which node of which cluster it is
//! NodeCertificate       key and certificate of this node, in <data_dir>/tls/
//! MutualTls             the certificate in use; replaced while connections go on
//! PeerSecurity          .accept(io) / .connect(io, node): a connection whose other end is known
//! JoinToken             pins the authority and carries a secret; JoinSecrets remembers the secret's hash
//! client_port_certificate   a certificate for clients to see, by the same authority; never good for a node
//! connect_for_join      a connection to any node of the cluster whose authority the token pins
//! ```
//!
//! # Duties of the caller
//! 1. Bound each handshake in time; nothing here does.
//! 2. Serve nothing but Join to a connection that came without a certificate.
//! 3. Check that a verified node still belongs to the directory: a certificate outlives its node's removal.
//!
//! Keys come from the operating system's generator (ring asks it itself), not from [`Env::rng`](crate::env::Env):
//! the simulation runs with [`PeerSecurity::Plaintext`].

mod authority;
mod client_port;
mod error;
mod explain;
mod join;
mod join_secrets;
mod join_token;
mod keep_fresh;
mod name;
mod node_certificate;
#[cfg(test)]
mod tests;
mod time;
mod tls;

pub use authority::Authority;
pub use client_port::{ClientPortCertificate, client_port_certificate};
pub use error::SecurityError;
pub use join::connect_for_join;
pub use join_secrets::{JoinRefused, JoinSecrets};
pub use join_token::{JoinToken, TokenError};
pub use keep_fresh::keep_fresh;
pub use node_certificate::{NodeCertificate, NodeKey};
pub use tls::{MutualTls, PeerSecurity};
