//! The messages this crate keeps on disk or sends, generated from `src/proto/`.

#![allow(missing_docs, unreachable_pub, unused_qualifications, clippy::all)]

include!(concat!(env!("OUT_DIR"), "/andante.cluster.v1.rs"));
