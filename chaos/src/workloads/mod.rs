//! What clients do. One file each; a new one is a file and a line in [`run`].

pub mod campaigns;
mod edits;
mod forger;
mod fresh;
mod listeners;

use std::sync::Arc;

pub use self::edits::are_all_told;
use crate::world::client::Client;

/// A client's process: all workloads at once, for ever.
///
/// # Errors
/// None: what goes wrong for a client is told to the witness.
pub async fn run(client: Arc<Client>) -> turmoil::Result {
    tokio::join!(
        campaigns::create(client.clone()),
        listeners::score(client.clone()),
        forger::forge(client.clone()),
        edits::edit(client.clone()),
        fresh::serve_all_shards(client.clone()),
        std::future::pending::<()>(),
    );
    Ok(())
}
