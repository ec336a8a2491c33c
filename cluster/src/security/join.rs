//! The connection of a node that has a join token and no certificate yet.

use std::{io, sync::Arc};

use super::JoinToken;
use crate::env::{Clock, Io};

/// Makes sure that the other end is a node of the cluster whose authority the token pins; any of its nodes will do.
/// Waits for the other end without limit.
pub async fn connect_for_join(io: Box<dyn Io>, token: &JoinToken, clock: &Arc<dyn Clock>) -> io::Result<Box<dyn Io>> {
    let _ = (io, token, clock);
    unimplemented!()
}
