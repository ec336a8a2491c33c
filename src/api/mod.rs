//! The public API `andante.v1`: gRPC, and HTTP for metrics and probes.

/// Messages, clients and servers of `andante.v1`.
#[allow(missing_docs, unreachable_pub, unused_qualifications, clippy::all)]
pub mod v1 {
    tonic::include_proto!("andante.v1");

    /// For gRPC reflection.
    pub const FILE_DESCRIPTOR_SET: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/andante_v1.fds"));
}
