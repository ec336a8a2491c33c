//! What a node keeps in the directory (`andante.node.v1`).
#![allow(missing_docs, unreachable_pub, unused_qualifications, clippy::all)]

include!(concat!(env!("OUT_DIR"), "/andante.node.v1.rs"));

/// Never shows the key.
impl std::fmt::Debug for TokenKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let TokenKey { id, published_ms, retired_ms, .. } = self;
        write!(f, "TokenKey({id}, published {published_ms}, retired {retired_ms})")
    }
}
