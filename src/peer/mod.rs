//! What the routers of a cluster's nodes ask each other (`andante.peer.v1`): the messages, and the asking side.
//!
//! The answering side is the router's own (`router::serve`). Both sides are of one cluster, of builds at most one
//! feature level apart; how they are protected is the host's business.

mod links;

pub use links::{CallError, Dial, Links};

/// Messages, client and server of `andante.peer.v1`.
#[allow(missing_docs, unreachable_pub, unused_qualifications, clippy::all)]
pub mod v1 {
    tonic::include_proto!("andante.peer.v1");
}
