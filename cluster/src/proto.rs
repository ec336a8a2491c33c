//! The messages this crate keeps on disk or sends, generated from `src/proto/`.

#![allow(missing_docs, unreachable_pub, unused_qualifications, clippy::all)]

use std::fmt;

include!(concat!(env!("OUT_DIR"), "/andante.cluster.v1.rs"));

/// Formats messages without what may be secret in them.
macro_rules! formatted_without_secrets {
    ($($message:ident { $($shown:ident),* })*) => {$(
        impl fmt::Debug for $message {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.debug_struct(stringify!($message))$(.field(stringify!($shown), &self.$shown))*.finish_non_exhaustive()
            }
        }
    )*};
}

formatted_without_secrets! {
    AppendCall { vote, prev_log_id, leader_commit }
    AuthorityRecord {}
    Entry { term, node_id, index }
    InstallSnapshotRequest { head }
    JoinRequest { address, feature_level, nonce }
    NodeCertificateRecord {}
    ProposeRequest { group }
    PutSetting { name, expected_revision }
    SettingRecord { name, revision }
}
