//! Who may do what: access tokens with roles, and the certificate that clients see.
//!
//! - [`AccessToken`]: the text that a caller sends, `andante_<id>_<secret>`. The cluster keeps only a hash of the secret.
//! - [`AccessTable`]: the tokens as the directory has them, parsed; asked on the score path without a lock.
//! - [`Access`]: follows the directory, makes and revokes tokens.
//! - [`Role`], [`Roles`]: what a token allows. Each call needs one role; operators may do everything.
//! - [`ServerTls`]: the server's certificate, from the cluster's authority or from files, replaced while it serves.

mod certificate;
mod first;
mod join;
mod role;
mod store;
mod table;
mod token;

/// Records (`andante.access.v1`).
mod proto {
    #![allow(missing_docs, unreachable_pub, unused_qualifications, clippy::all)]
    include!(concat!(env!("OUT_DIR"), "/andante.access.v1.rs"));
}

pub use certificate::{CertificateSource, ServerTls};
pub use first::OPERATOR_TOKEN_FILE;
pub use role::{Role, Roles};
pub use store::{Access, AccessError, NewToken, TOKEN_NAME_BYTES_MAX, TOKENS_MAX};
pub use table::{AccessTable, Denied, Grant, TokenInfo};
pub use token::{AccessToken, TokenParseError};
pub(crate) use token::{parse_id, show_id};
