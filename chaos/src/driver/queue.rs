//! Many runs at once, their results in the order they were asked for: what a command finds first does not depend on how
//! many processors the machine has, nor on which run ends first.

use std::time::Instant;

use futures::{Stream, StreamExt as _, future, stream};
use tokio::sync::Semaphore;

use super::{
    output::Progress,
    player::{Played, Player, Run, Trouble},
};

/// Runs that may have ended before an earlier one that still goes on, for each that plays at the same time. Lengths
/// differ by a factor of six or so.
const AHEAD_MAX: usize = 8;

/// Plays runs, `player.jobs` at once, each with what the caller wants to know it by. None starts after `until`; then the
/// stream ends. Dropped, it kills those that play.
pub(super) fn in_order<'a, K: 'a>(
    player: &'a Player,
    progress: &'a Progress,
    runs: impl Iterator<Item = (K, Run)> + 'a,
    until: Option<Instant>,
) -> impl Stream<Item = (K, Result<Played, Trouble>)> + 'a {
    // Fair, so that runs start in their order and those not started are the last ones.
    let free = std::sync::Arc::new(Semaphore::new(player.jobs));
    stream::iter(runs)
        .map(move |(key, run)| {
            let free = free.clone();
            async move {
                let _turn = free.acquire().await.ok()?;
                if until.is_some_and(|until| Instant::now() >= until) {
                    return None;
                }
                let played = player.play(&run).await;
                progress.ended();
                Some((key, played))
            }
        })
        .buffered(player.jobs * AHEAD_MAX)
        .take_while(|result| future::ready(result.is_some()))
        .filter_map(future::ready)
}
