//! The wire contract `andante.v1` as Rust types: messages, clients, servers.
#![allow(missing_docs, unreachable_pub, unused_qualifications, clippy::all)]

tonic::include_proto!("andante.v1");

/// For gRPC reflection.
pub const FILE_DESCRIPTOR_SET: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/andante_v1.fds"));
