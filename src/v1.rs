//! The wire contract `andante.v1` as Rust types: messages, clients, servers.
#![allow(missing_docs, unreachable_pub, unused_qualifications, clippy::all)]

tonic::include_proto!("andante.v1");

/// For gRPC reflection.
pub const FILE_DESCRIPTOR_SET: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/andante_v1.fds"));

/// Never shows the token.
impl std::fmt::Debug for CreateTokenResponse {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("CreateTokenResponse").field("access_token", &self.access_token).finish_non_exhaustive()
    }
}

/// Never shows the token.
impl std::fmt::Debug for CreateJoinTokenResponse {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("CreateJoinTokenResponse").field("expires_ms", &self.expires_ms).finish_non_exhaustive()
    }
}
