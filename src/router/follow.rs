//! Keeps the router's tables in step: who leads each shard, and which tracks its campaigns promote.
//!
//! A shard with a replica here is in step once that replica has applied everything acknowledged before a moment (by
//! ReadIndex); from then on each apply feeds the catalog. For another one a replica elsewhere is watched: everything
//! first, then what changes; a gap, a slow reader or a broken connection means everything again.

use std::{collections::BTreeSet, sync::Arc};

use andante_cluster::{NodeId, ShardId};
use futures::future::join_all;
use tokio::{
    task::JoinSet,
    time::{Duration, Instant, sleep, timeout},
};

use super::{Router, serve::WATCH_SIGN};
use crate::peer::v1::{ListedCampaign, WatchCatalogResponse};

/// How long one ReadIndex for the first sync may take, and a watch's first word.
const TRY: Duration = Duration::from_secs(5);
/// Clocks are compared this often, a few times before a reading is too old.
const CLOCKS_EVERY: Duration = Duration::from_secs(2);
/// Pauses between tries.
const PAUSE_FIRST: Duration = Duration::from_millis(20);
const PAUSE_MAX: Duration = Duration::from_secs(1);
/// A replica here is given this long before others are asked for the same: after a start it is nearly in step.
const HERE_FIRST: Duration = Duration::from_secs(2);
/// A watch without a sign of life for so long is dead.
const SILENCE_MAX: Duration = Duration::from_secs(5);
/// Without any replica to follow for so long the catalog does not claim to be in step any more.
const STALE_AFTER: Duration = Duration::from_secs(10);
/// Whether there is a replica here is looked at again this often; most changes are noticed at once.
const LOOK_AGAIN: Duration = Duration::from_secs(1);
/// Campaigns of a shard, at most: what a confused replica may make this node remember.
const CAMPAIGNS_MAX: usize = 10_000_000;

/// Starts following all shards; ends when the set is dropped.
pub fn start(router: &Arc<Router>) -> JoinSet<()> {
    let mut tasks = JoinSet::new();
    for shard in (0..router.shards.count() as u32).map(ShardId) {
        tasks.spawn(follow_leader(router.clone(), shard));
        tasks.spawn(follow_catalog(router.clone(), shard));
    }
    tasks.spawn(follow_clocks(router.clone()));
    tasks
}

/// The clocks of the other nodes, for this one's to be held against.
async fn follow_clocks(router: Arc<Router>) {
    loop {
        let nodes = router.host.directory().borrow().nodes.keys().copied().collect::<BTreeSet<_>>();
        let others: BTreeSet<_> = nodes.into_iter().filter(|node| *node != router.me).collect();
        router.clock.set_others(&others);
        join_all(others.into_iter().map(|node| {
            let router = &router;
            async move {
                let asked_ms = router.clock.monotonic_ms();
                if let Ok(vitals) = router.links.vitals(node, Instant::now() + CLOCKS_EVERY).await {
                    router.clock.heard(node, vitals.wall_ms, asked_ms);
                }
            }
        }))
        .await;
        sleep(CLOCKS_EVERY).await;
    }
}

async fn follow_leader(router: Arc<Router>, shard: ShardId) {
    let mut leadership = router.host.leadership(shard);
    loop {
        let now = *leadership.borrow_and_update();
        router.shards.set_leader(shard, router.me, now);
        if leadership.changed().await.is_err() {
            return;
        }
    }
}

async fn follow_catalog(router: Arc<Router>, shard: ShardId) {
    loop {
        tokio::select! {
            () = watch_elsewhere(&router, shard) => {}
            () = sync_here(&router, shard) => {
                router.catalog.set_in_step_here(shard);
                router.first_sync();
                until_gone(&router, shard).await;
            }
        }
    }
}

/// Resolves once a replica here has applied everything that was acknowledged before.
async fn sync_here(router: &Router, shard: ShardId) {
    loop {
        if router.host.has_replica(shard) {
            match router.host.read_index(shard, Instant::now() + TRY).await {
                Ok(()) => return,
                Err(error) => tracing::debug!(%shard, %error, "the replica here is not in step yet"),
            }
            sleep(PAUSE_FIRST).await;
        } else {
            sleep(LOOK_AGAIN).await;
        }
    }
}

/// Resolves when the replica here is gone; the catalog is out of step then.
async fn until_gone(router: &Router, shard: ShardId) {
    loop {
        // The replica says so when it goes; but an empty one has nothing to say.
        let fallen = timeout(LOOK_AGAIN, router.catalog.fallen(shard)).await.is_ok();
        if fallen || !router.host.has_replica(shard) {
            router.catalog.set_out_of_step(shard);
            return;
        }
    }
}

/// Watches replicas elsewhere, one after the other, for ever.
async fn watch_elsewhere(router: &Router, shard: ShardId) {
    if router.host.has_replica(shard) {
        sleep(HERE_FIRST).await;
    }
    let mut pause = PAUSE_FIRST;
    let mut heard = Instant::now();
    for attempt in 0_usize.. {
        if let Some(node) = pick(router, shard, attempt) {
            match watch_at(router, shard, node).await {
                Watched::Told => (pause, heard) = (PAUSE_FIRST, Instant::now()),
                Watched::Nothing => {}
            }
        }
        if heard.elapsed() >= STALE_AFTER && router.catalog.is_in_step(shard) {
            tracing::warn!(%shard, "no replica of the shard can be followed: answers say that it is missing");
            router.catalog.set_out_of_step(shard);
        }
        sleep(pause).await;
        pause = (pause * 2).min(PAUSE_MAX);
    }
}

/// The replica to watch: the leader's first, it is never behind; then one after the other.
fn pick(router: &Router, shard: ShardId, attempt: usize) -> Option<NodeId> {
    let directory = router.host.directory();
    let directory = directory.borrow();
    let nodes = directory.replicas.get(&shard).map_or(&[][..], |replicas| &replicas.nodes);
    let mut others: Vec<NodeId> = nodes.iter().copied().filter(|node| *node != router.me).collect();
    let leader = router.shards.leader(shard);
    others.sort_unstable_by_key(|node| (leader != Some(*node), *node));
    (!others.is_empty()).then(|| others[attempt % others.len()])
}

enum Watched {
    /// It was in step for a while.
    Told,
    /// It never was.
    Nothing,
}

/// Follows one replica until the watch ends.
async fn watch_at(router: &Router, shard: ShardId, node: NodeId) -> Watched {
    let Ok(mut stream) = router.links.watch(node, shard.0, Instant::now() + TRY).await else {
        return Watched::Nothing;
    };
    let catalog = &router.catalog;
    let mut follower = Follower::default();
    let mut told = Watched::Nothing;
    // Signs of life come every `WATCH_SIGN`.
    const { assert!(SILENCE_MAX.as_millis() > 2 * WATCH_SIGN.as_millis()) };
    loop {
        let message = tokio::select! {
            biased;
            // What it had was in the way of what is told here: begin anew.
            () = catalog.emptied(shard) => break,
            message = timeout(SILENCE_MAX, stream.message()) => message,
        };
        let Ok(Ok(Some(message))) = message else { break };
        let (index, last_index) = (message.index, message.last_index);
        match follower.take(message) {
            Step::More => continue,
            Step::Whole(whole) => {
                router.metrics.catalog_snapshots.inc();
                catalog.take_whole(shard, whole);
                catalog.set_in_step(shard);
                router.first_sync();
                told = Watched::Told;
            }
            Step::Change(change) => catalog.take_change(shard, change),
            Step::Gap => break,
        }
        catalog.set_index(shard, index, last_index);
    }
    told
}

/// What a watch has told so far.
#[derive(Default)]
struct Follower {
    whole: Vec<ListedCampaign>,
    complete: bool,
    index: u64,
}

/// What to do after a message.
#[derive(Debug, PartialEq)]
enum Step {
    /// Wait for more.
    More,
    /// Replace everything.
    Whole(Vec<ListedCampaign>),
    /// Change this.
    Change(WatchCatalogResponse),
    /// Something is missing, or makes no sense: begin anew.
    Gap,
}

impl Follower {
    fn take(&mut self, message: WatchCatalogResponse) -> Step {
        if message.snapshot && !self.complete {
            if self.whole.len() + message.listed.len() > CAMPAIGNS_MAX {
                return Step::Gap;
            }
            self.whole.extend(message.listed);
            self.index = message.index;
            self.complete = message.complete;
            return if self.complete { Step::Whole(std::mem::take(&mut self.whole)) } else { Step::More };
        }
        if message.snapshot || !self.complete || message.previous_index != self.index {
            return Step::Gap;
        }
        self.index = message.index;
        Step::Change(message)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn part(index: u64, keys: &[u64], complete: bool) -> WatchCatalogResponse {
        let listed = keys.iter().map(|key| ListedCampaign { key: *key, ..Default::default() }).collect();
        WatchCatalogResponse { index, snapshot: true, complete, listed, ..Default::default() }
    }

    fn change(previous_index: u64, index: u64) -> WatchCatalogResponse {
        WatchCatalogResponse { index, previous_index, removed: vec![1], ..Default::default() }
    }

    #[test]
    fn the_whole_comes_in_parts_and_changes_follow_it() {
        let mut follower = Follower::default();
        assert_eq!(follower.take(part(5, &[1, 2], false)), Step::More);
        let Step::Whole(whole) = follower.take(part(5, &[3], true)) else { panic!("it is complete") };
        assert_eq!(whole.iter().map(|listed| listed.key).collect::<Vec<_>>(), [1, 2, 3]);
        assert_eq!(follower.take(change(5, 9)), Step::Change(change(5, 9)));
        assert_eq!(follower.take(change(9, 9)), Step::Change(change(9, 9)));
    }

    #[test]
    fn a_gap_a_change_before_the_whole_and_a_second_whole_mean_to_begin_anew() {
        assert_eq!(Follower::default().take(change(0, 1)), Step::Gap);
        for message in [change(6, 9), change(4, 9), part(5, &[], true)] {
            let mut follower = Follower::default();
            follower.take(part(5, &[], true));
            assert_eq!(follower.take(message.clone()), Step::Gap, "{message:?}");
        }
    }
}
