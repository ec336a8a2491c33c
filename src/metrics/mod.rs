//! Everything a node counts, for Prometheus. The list with units and meanings is `src/metrics/metrics.md`; a test
//! compares it with what is registered.
//!
//! One [`Metrics`] per node, made at start and shared by `Arc`. All fields count without locks unless their doc says
//! otherwise. Labels have few values, all known beforehand, with one exception that is bounded
//! ([`Metrics::set_campaign_stranded`]).

mod histogram;
mod peer;
mod rpc;
mod transport;

use std::{fmt::Write as _, sync::Arc};

use parking_lot::Mutex;
use prometheus_client::{
    encoding::text,
    metrics::{counter::Counter, family::Family, gauge::Gauge},
    registry::{Metric, Registry, Unit},
};

pub use histogram::DurationHistogram;
pub use peer::{PeerCall, PeerGuard, PeerMetrics, PeerOutcome};
pub use rpc::{Method, RpcGuard, RpcMetrics, code_name};
pub use transport::TransportMetrics;

use crate::{campaign::proto, settings::ClusterSettings, v1};

/// Campaigns whose stranded money is shown one by one: enough to act on, few enough for every scrape.
pub const TOP_STRANDED: usize = 20;

/// A label with one name and few values.
type Label<V> = [(&'static str, V); 1];

/// What a metric is, for the documentation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Description {
    /// Complete name, as scraped (without `_bucket`, `_sum`, `_count`).
    pub name: String,
    /// `counter`, `gauge` or `histogram`.
    pub kind: &'static str,
    /// Its unit.
    pub unit: String,
    /// Its meaning.
    pub help: &'static str,
}

/// All metrics of a node.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    descriptions: Vec<Description>,

    /// RPCs by method and status code.
    pub rpc: RpcMetrics,
    /// Calls to other nodes.
    pub peer: PeerMetrics,
    /// The transport between nodes.
    pub transport: TransportMetrics,
    /// Shards that were asked for at a node that did not lead them any more.
    pub stale_routes: Counter,
    /// Open gRPC connections.
    pub grpc_connections: Gauge,
    /// gRPC connections closed because their TLS handshake failed or took too long.
    pub failed_handshakes: Counter,

    /// How late a task runs that wants to run at a certain time.
    pub queue: DurationHistogram,

    /// Candidates scored.
    pub candidates: Counter,
    /// Candidates with a promotion score above 0.
    pub promotable: Counter,
    /// Tokens handed out.
    pub placements: Counter,
    /// Winners whose token could not be taken; the next best was tried.
    pub takes_refused: Counter,
    missing_shards: [Counter; 6],

    outcomes: [Counter; 12],
    /// Outcome events that wait for their log entry.
    pub outcomes_in_flight: Gauge,

    grants: [Counter; 7],
    /// Allowances cut down to what was handed out, so that the rest is free again.
    pub shrinks: Counter,
    /// Allowances closed.
    pub allowances_closed: Counter,

    /// Ticks of all shards.
    pub ticks: Counter,
    /// How much later than planned a tick began.
    pub tick_lag: DurationHistogram,

    /// Campaigns with a running actor.
    pub actors_alive: Gauge,
    /// Campaigns quarantined after too many failures of their actors.
    pub actors_quarantined: Gauge,
    /// Restarts of campaigns' actors after a failure.
    pub actor_restarts: Counter,
    /// Cells published to the score path.
    pub cells: Gauge,
    /// Cells that suspended themselves because their actor hung.
    pub cells_suspended: Counter,

    /// Batches written to the log, one fdatasync each.
    pub log_batches: Counter,
    /// Entries in these batches.
    pub log_entries: Counter,
    /// Bytes in these batches.
    pub log_bytes: Counter,
    /// Syncs of any file of the log.
    pub log_syncs: Counter,
    /// Time spent in them.
    pub log_sync_micros: Counter,
    /// Time from proposing a command until its reply.
    pub propose: DurationHistogram,
    /// Time until the node that leads a shard answers what became of outcomes.
    pub settle_elsewhere: DurationHistogram,

    /// Campaigns in the catalog.
    pub catalog_campaigns: Gauge,
    /// Tracks in the catalog.
    pub catalog_tracks: Gauge,
    /// Times the catalog took up a whole shard from a replica elsewhere.
    pub catalog_snapshots: Counter,

    /// 1 if the wall clock is trusted.
    pub clock_trusted: Gauge,
    /// 1 if new work is refused because the disk is nearly full.
    pub disk_low: Gauge,

    skew_margin_ms: Gauge,
    close_grace_ms: Gauge,
    retry_window_ms: Gauge,

    catalog_lag_entries: Family<Label<u32>, Gauge>,
    settled_micros: Family<Label<u32>, Gauge>,
    open_micros: Family<Label<u32>, Gauge>,
    stranded_micros: Family<Label<u32>, Gauge>,
    campaign_stranded_micros: Family<Label<String>, Gauge>,
    campaign_stranded_shown: Mutex<Vec<String>>,
}

/// Money of a shard's campaigns, micros.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ShardMoney {
    /// Billed.
    pub settled_micros: u64,
    /// Set aside in open allowances.
    pub open_micros: u64,
    /// The part of it that is not expected to be billed.
    pub stranded_micros: u64,
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

impl Metrics {
    /// Registers everything, all at 0.
    pub fn new() -> Self {
        let mut book = Registrar::new();
        let rpc = RpcMetrics::register(&mut book);
        let peer = PeerMetrics::register(&mut book);
        let transport = TransportMetrics::register(&mut book);
        Self {
            rpc,
            peer,
            transport,
            stale_routes: book.counter(
                "router_stale",
                "routes",
                "Shards asked for at a node that did not lead them any more, by score requests",
            ),
            grpc_connections: book.gauge("grpc_open", "connections", "Open gRPC connections"),
            failed_handshakes: book.counter(
                "grpc_failed",
                "handshakes",
                "gRPC connections closed because their TLS handshake failed or took too long",
            ),

            queue: book.duration(
                "queue",
                "How long a task waits until it runs, by a probe; if too long, new requests are refused",
            ),

            candidates: book.counter("score_asked", "candidates", "Candidates in score requests"),
            promotable: book.counter("score_promotable", "candidates", "Candidates with a promotion score above 0"),
            placements: book.counter("score_handed_out", "placements", "Placements handed out with a token"),
            takes_refused: book.counter(
                "score_refused",
                "takes",
                "Winners whose token could not be taken, so that the next best was tried",
            ),
            missing_shards: book.counters(
                "score_missing",
                "shards",
                "Shards that did not answer a score request, by reason",
                "reason",
                |i| Some(lowercase(v1::MissingReason::try_from(i).ok()?.as_str_name(), "MISSING_REASON_")),
            ),

            outcomes: book.counters("outcome", "events", "Outcome events answered, by status", "status", |i| {
                Some(lowercase(v1::OutcomeStatus::try_from(i).ok()?.as_str_name(), "OUTCOME_STATUS_"))
            }),
            outcomes_in_flight: book.gauge("outcome_in_flight", "events", "Outcome events not answered yet"),

            grants: book.counters("allowance", "grants", "Grants applied or refused, by status", "status", |i| {
                Some(lowercase(proto::GrantStatus::try_from(i).ok()?.as_str_name(), "GRANT_STATUS_"))
            }),
            shrinks: book.counter(
                "allowance",
                "shrinks",
                "Allowances cut down to what was handed out, so that the rest of their money is free again",
            ),
            allowances_closed: book.counter("allowance", "closings", "Allowances closed at their due time"),

            ticks: book.counter("shard", "ticks", "Ticks of the shards led by this node"),
            tick_lag: book.duration("shard_tick_lag", "How much later than planned a shard's tick began"),

            actors_alive: book.gauge("running", "actors", "Campaigns with a running actor"),
            actors_quarantined: book.gauge(
                "quarantined",
                "actors",
                "Campaigns that hand out nothing because their actor failed too often",
            ),
            actor_restarts: book.counter("actor", "restarts", "Restarts of campaigns' actors after a failure"),
            cells: book.gauge("published", "cells", "Campaigns published to the score path"),
            cells_suspended: book.counter(
                "cell",
                "suspensions",
                "Times a cell stopped handing out because its actor did not refresh it in time",
            ),

            log_batches: book.counter("log", "batches", "Batches written to the log, one sync each"),
            log_entries: book.counter("log", "entries", "Entries written to the log"),
            log_bytes: book.counter("log_written", "bytes", "Bytes of the entries written to the log"),
            log_syncs: book.counter("log", "syncs", "Syncs of any file of the log, housekeeping included"),
            log_sync_micros: book.counter("log_sync", "micros", "Time spent in syncs of the log"),
            propose: book.duration("propose", "Time from proposing a command to its applied reply"),
            settle_elsewhere: book
                .duration("settle_elsewhere", "Time until the node that leads a shard answers what became of outcomes"),

            catalog_campaigns: book.gauge("catalog", "campaigns", "Campaigns in the catalog"),
            catalog_tracks: book.gauge("catalog", "tracks", "Tracks in the catalog"),
            catalog_snapshots: book.counter(
                "catalog",
                "snapshots",
                "Times the catalog took up a whole shard from a replica on another node",
            ),
            catalog_lag_entries: book.family(
                "catalog_lag",
                "entries",
                "Log entries that the catalog is known to be behind, by shard; -1 if it is not in step at all",
            ),

            clock_trusted: book.gauge(
                "clock_trusted",
                "bool",
                "1 if the wall clock is trusted; at 0 nothing is closed until an operator confirms it",
            ),
            disk_low: book.gauge("disk_low", "bool", "1 if new work is refused because the disk is nearly full"),

            skew_margin_ms: book.gauge("skew_margin", "ms", "Skew margin of the cluster in force on this node"),
            close_grace_ms: book.gauge("close_grace", "ms", "Close grace of the cluster in force on this node"),
            retry_window_ms: book.gauge("retry_window", "ms", "Retry window of the cluster in force on this node"),

            settled_micros: book.family("settled", "micros", "Money billed, by shard"),
            open_micros: book.family("open", "micros", "Money set aside in open allowances, by shard"),
            stranded_micros: book.family(
                "stranded",
                "micros",
                "Money set aside that is not expected to be billed and comes back at closing, by shard",
            ),
            campaign_stranded_micros: book.family(
                "campaign_stranded",
                "micros",
                "Money set aside that is not expected to be billed, of the 20 campaigns with most of it",
            ),
            campaign_stranded_shown: Mutex::default(),
            registry: book.registry,
            descriptions: book.descriptions,
        }
    }

    /// All metrics in the text format of OpenMetrics.
    pub fn encode(&self) -> String {
        let mut out = String::new();
        // Writing to a String can't fail; an encoder that does is a broken invariant.
        text::encode(&mut out, &self.registry).expect("encoding metrics to a string failed");
        out
    }

    /// What there is, in the order of registration.
    pub fn descriptions(&self) -> &[Description] {
        &self.descriptions
    }

    /// The table for the documentation.
    pub fn markdown(&self) -> String {
        let mut out = String::from("| metric | kind | unit | meaning |\n|---|---|---|---|\n");
        for Description { name, kind, unit, help } in &self.descriptions {
            writeln!(out, "| `{name}` | {kind} | {unit} | {help} |").expect("writing to a string failed");
        }
        out
    }

    /// Counts the answer to one outcome event.
    pub fn outcome(&self, status: v1::OutcomeStatus) {
        self.outcomes[status as usize].inc();
    }

    /// Counts the answer to one grant.
    pub fn grant(&self, status: proto::GrantStatus) {
        self.grants[status as usize].inc();
    }

    /// Counts a shard that did not answer a score request.
    pub fn missing_shard(&self, reason: v1::MissingReason) {
        self.missing_shards[reason as usize].inc();
    }

    /// Shows the cluster's settings in force on this node.
    pub fn set_cluster_settings(&self, settings: &ClusterSettings) {
        let ClusterSettings { skew_margin_ms, close_grace_ms, retry_window_ms } = *settings;
        self.skew_margin_ms.set(gauge_value(skew_margin_ms));
        self.close_grace_ms.set(gauge_value(close_grace_ms));
        self.retry_window_ms.set(gauge_value(retry_window_ms));
    }

    /// Shows how far the catalog is behind a shard; `None`: not in step. Takes a lock: for ticks, not for requests.
    pub fn set_catalog_lag(&self, shard: u32, entries: Option<u64>) {
        self.catalog_lag_entries.get_or_create(&[("shard", shard)]).set(entries.map_or(-1, gauge_value));
    }

    /// Shows a shard's money. Takes a lock: for ticks, not for requests.
    pub fn set_shard_money(&self, shard: u32, money: ShardMoney) {
        let label = [("shard", shard)];
        self.settled_micros.get_or_create(&label).set(gauge_value(money.settled_micros));
        self.open_micros.get_or_create(&label).set(gauge_value(money.open_micros));
        self.stranded_micros.get_or_create(&label).set(gauge_value(money.stranded_micros));
    }

    /// Shows the campaigns with the most stranded money, largest first; at most [`TOP_STRANDED`] are kept, whatever
    /// was shown before goes. Takes a lock: for ticks, not for requests.
    pub fn set_campaign_stranded(&self, top: &[(String, u64)]) {
        let top = &top[..top.len().min(TOP_STRANDED)];
        let mut shown = self.campaign_stranded_shown.lock();
        for name in shown.iter().filter(|old| !top.iter().any(|(new, _)| new == *old)) {
            self.campaign_stranded_micros.remove(&[("campaign", name.clone())]);
        }
        for (name, micros) in top {
            self.campaign_stranded_micros.get_or_create(&[("campaign", name.clone())]).set(gauge_value(*micros));
        }
        *shown = top.iter().map(|(name, _)| name.clone()).collect();
    }
}

/// Money is at most 2^53-1 per campaign, but a shard's sum may be more than a gauge holds.
fn gauge_value(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

/// `OUTCOME_STATUS_BILLED` is the label value `billed`.
fn lowercase(name: &str, prefix: &str) -> String {
    name.trim_start_matches(prefix).to_ascii_lowercase()
}

/// Registers metrics and keeps what is said about them.
struct Registrar {
    registry: Registry,
    descriptions: Vec<Description>,
}

impl Registrar {
    fn new() -> Self {
        Self { registry: Registry::with_prefix("andante"), descriptions: Vec::new() }
    }

    fn add(&mut self, name: &'static str, unit: Unit, help: &'static str, metric: impl Metric) {
        let kind = metric.metric_type();
        let suffix = if kind.as_str() == "counter" { "_total" } else { "" };
        self.descriptions.push(Description {
            name: format!("andante_{name}_{}{suffix}", unit.as_str()),
            kind: match kind.as_str() {
                "counter" => "counter",
                "histogram" => "histogram",
                _ => "gauge",
            },
            unit: unit.as_str().to_owned(),
            help,
        });
        self.registry.register_with_unit(name, help, unit, metric);
    }

    fn counter(&mut self, name: &'static str, unit: &'static str, help: &'static str) -> Counter {
        let counter = Counter::default();
        self.add(name, Unit::Other(unit.to_owned()), help, counter.clone());
        counter
    }

    fn gauge(&mut self, name: &'static str, unit: &'static str, help: &'static str) -> Gauge {
        let gauge = Gauge::default();
        self.add(name, Unit::Other(unit.to_owned()), help, gauge.clone());
        gauge
    }

    fn duration(&mut self, name: &'static str, help: &'static str) -> DurationHistogram {
        let histogram = DurationHistogram::default();
        self.add(name, Unit::Seconds, help, histogram.clone());
        histogram
    }

    fn family<V>(&mut self, name: &'static str, unit: &'static str, help: &'static str) -> Family<Label<V>, Gauge>
    where
        Label<V>: prometheus_client::encoding::EncodeLabelSet,
        V: Clone + std::fmt::Debug + std::hash::Hash + Eq + Send + Sync + 'static,
    {
        let family = Family::default();
        self.add(name, Unit::Other(unit.to_owned()), help, family.clone());
        family
    }

    /// One counter per value of a label, found by the value's number (an enum's), without a lookup.
    fn counters<const N: usize>(
        &mut self,
        name: &'static str,
        unit: &'static str,
        help: &'static str,
        label: &'static str,
        value: impl Fn(i32) -> Option<String>,
    ) -> [Counter; N] {
        let family = Family::<Label<String>, Counter>::default();
        self.add(name, Unit::Other(unit.to_owned()), help, family.clone());
        let number = |i: usize| i32::try_from(i).expect("an enum has few values");
        assert!(value(number(N)).is_none(), "{name}: the enum has more than {N} values");
        std::array::from_fn(|i| {
            let value = value(number(i)).expect("the enum has fewer values than counters");
            family.get_or_create(&[(label, value)]).clone()
        })
    }
}

/// What most parts hold.
pub type SharedMetrics = Arc<Metrics>;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_documentation_lists_exactly_what_is_registered() {
        let documented = include_str!("metrics.md");
        let table = documented.split_once("\n\n").expect("a headline, then the table").1;
        assert_eq!(table.trim_end(), Metrics::new().markdown().trim_end(), "update src/metrics/metrics.md");
    }

    #[test]
    fn every_metric_has_a_unit_a_sentence_and_a_unique_name() {
        let metrics = Metrics::new();
        // Families without a member are not scraped.
        metrics.rpc.begin(Method::Score).finish(tonic::Code::Ok, 1);
        metrics.peer.in_flight(1).set(0);
        metrics.set_catalog_lag(0, Some(0));
        metrics.set_shard_money(0, ShardMoney::default());
        metrics.set_campaign_stranded(&[("c".to_owned(), 1)]);
        let text = metrics.encode();
        let mut names = std::collections::BTreeSet::new();
        for Description { name, unit, help, .. } in metrics.descriptions() {
            assert!(names.insert(name.clone()), "{name} is registered twice");
            assert!(help.len() > 15, "{name}: {help}");
            let family = name.trim_end_matches("_total");
            assert!(text.contains(&format!("# UNIT {family} {unit}\n")), "{name} has no unit");
            assert!(text.contains(&format!("# HELP {family} {help}")), "{name} has no help");
        }
    }

    #[test]
    fn outcomes_are_counted_by_status() {
        let metrics = Metrics::new();
        metrics.outcome(v1::OutcomeStatus::Billed);
        metrics.outcome(v1::OutcomeStatus::Billed);
        metrics.outcome(v1::OutcomeStatus::RefusedClosed);
        let text = metrics.encode();
        assert!(text.contains("andante_outcome_events_total{status=\"billed\"} 2\n"), "{text}");
        assert!(text.contains("andante_outcome_events_total{status=\"refused_closed\"} 1\n"), "{text}");
        assert!(text.contains("andante_outcome_events_total{status=\"unknown\"} 0\n"), "{text}");
    }

    #[test]
    fn an_rpc_counts_once_with_its_code_whatever_way_it_ends() {
        let metrics = Metrics::new();
        let guard = metrics.rpc.begin(Method::Score);
        assert!(metrics.encode().contains("andante_rpc_in_flight_requests{method=\"Score\"} 1\n"));
        guard.finish(tonic::Code::Ok, 120);
        drop(metrics.rpc.begin(Method::Score)); // the caller hung up
        let text = metrics.encode();
        assert!(text.contains("andante_rpc_in_flight_requests{method=\"Score\"} 0\n"), "{text}");
        assert!(text.contains("andante_rpc_requests_total{method=\"Score\",code=\"OK\"} 1\n"), "{text}");
        assert!(text.contains("andante_rpc_requests_total{method=\"Score\",code=\"CANCELLED\"} 1\n"), "{text}");
        assert!(text.contains("andante_rpc_duration_seconds_count{method=\"Score\"} 1\n"), "{text}");
    }

    #[test]
    fn stranded_money_of_campaigns_is_bounded_and_forgets_the_old() {
        let metrics = Metrics::new();
        let many: Vec<(String, u64)> = (0..50).map(|i| (format!("c{i}"), 1_000 - i)).collect();
        metrics.set_campaign_stranded(&many);
        metrics.set_campaign_stranded(&many[1..]);
        let text = metrics.encode();
        let shown = text.lines().filter(|l| l.starts_with("andante_campaign_stranded_micros{")).count();
        assert_eq!(shown, TOP_STRANDED);
        assert!(!text.contains("campaign=\"c0\""), "{text}");
        assert!(text.contains("andante_campaign_stranded_micros{campaign=\"c20\"} 980\n"), "{text}");
    }

    #[test]
    fn a_shards_money_is_shown() {
        let metrics = Metrics::new();
        metrics.set_shard_money(3, ShardMoney { settled_micros: 5, open_micros: 7, stranded_micros: 2 });
        let text = metrics.encode();
        assert!(text.contains("andante_settled_micros{shard=\"3\"} 5\n"), "{text}");
        assert!(text.contains("andante_stranded_micros{shard=\"3\"} 2\n"), "{text}");
    }
}
