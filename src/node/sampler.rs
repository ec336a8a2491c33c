//! Copies what parts of the node count for themselves into its metrics, once a second.

use std::sync::Arc;

use andante_cluster::{host::Host, storage::LogStats};
use tokio::{
    task::JoinHandle,
    time::{Duration, MissedTickBehavior, interval},
};

use crate::{
    actor::Life,
    metrics::{Metrics, ShardMoney, TOP_STRANDED},
    router::Router,
};

const EVERY: Duration = Duration::from_secs(1);

/// Starts sampling; ends when the task is aborted.
pub(super) fn start(host: Arc<Host>, router: Arc<Router>, metrics: Arc<Metrics>) -> JoinHandle<()> {
    tokio::spawn(async move {
        let mut times = interval(EVERY);
        times.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut before = LogStats::default();
        loop {
            times.tick().await;
            let now = host.log_stats();
            log(&metrics, &before, &now);
            before = now;
            metrics.transport.follow(&host.peer_stats());
            metrics.disk_low.set(host.disk_low().into());
            metrics.catalog_campaigns.set(router.catalog.campaigns() as i64);
            metrics.catalog_tracks.set(router.catalog.tracks() as i64);
            lag(&router, &metrics);
            money(&router, &metrics);
        }
    })
}

fn log(metrics: &Metrics, before: &LogStats, now: &LogStats) {
    metrics.log_batches.inc_by(now.batches - before.batches);
    metrics.log_entries.inc_by(now.entries - before.entries);
    metrics.log_bytes.inc_by(now.bytes - before.bytes);
    metrics.log_syncs.inc_by(now.syncs - before.syncs);
    metrics.log_sync_micros.inc_by(now.sync_micros - before.sync_micros);
}

fn lag(router: &Router, metrics: &Metrics) {
    for (shard, lag) in router.catalog_lag() {
        metrics.set_catalog_lag(shard.0, lag);
    }
}

/// Walks all campaigns of a shard under its read lock: some 10 ns each.
fn money(router: &Router, metrics: &Metrics) {
    let mut stranded = Vec::new();
    let mut cells = 0;
    for shard in router.shards.iter() {
        let mut money = ShardMoney::default();
        for cell in shard.cells() {
            cells += 1;
            if cell.life() == Life::Live {
                let micros = cell.status().stranded_micros;
                money.stranded_micros += micros;
                stranded.push((micros, cell));
            }
        }
        for campaign in shard.book().campaigns() {
            money.settled_micros = money.settled_micros.saturating_add(campaign.ledger.settled_micros());
            money.open_micros = money.open_micros.saturating_add(campaign.ledger.open_micros());
        }
        metrics.set_shard_money(shard.id.0, money);
    }
    metrics.cells.set(cells);
    stranded.sort_by_key(|(micros, _)| std::cmp::Reverse(*micros));
    let name = |(micros, cell): &(u64, Arc<crate::actor::Cell>)| (cell.view().settings.name.to_string(), *micros);
    let top: Vec<_> = stranded.iter().take(TOP_STRANDED).filter(|(micros, _)| *micros > 0).map(name).collect();
    metrics.set_campaign_stranded(&top);
}
