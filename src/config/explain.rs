//! What every value means, for `andante node --check`.

use serde_json::Value;

use super::{Loaded, load::keys_of};

/// Key and meaning, in the order of the explanation.
const MEANINGS: [(&str, &str); 38] = [
    ("data_dir", "Everything the node keeps lies here"),
    ("grpc", "Where gRPC listens"),
    ("http", "Where HTTP listens, for metrics and probes"),
    ("peer", "Where this node listens for the other nodes of its cluster"),
    ("advertise", "host:port where its peers reach it; unset: as `peer`"),
    ("join", "Peer addresses of the cluster to join at the first start; unset: form one"),
    ("join_token", "The cluster's join token"),
    ("join_token_file", "A file that holds the join token"),
    ("tls", "Whether gRPC is behind TLS: auto (beyond loopback, unless insecure), on or off"),
    ("tls_cert", "PEM file with the server's certificate; unset: one issued by the cluster's own authority"),
    ("tls_key", "PEM file with the private key of `tls_cert`"),
    ("tls_names", "More host names and IP addresses for the certificate that the cluster issues"),
    ("auth", "Whether every call needs an access token: auto (beyond loopback, unless insecure), on or off"),
    ("insecure", "Listen beyond loopback with neither TLS nor authentication, for clients and for peers"),
    ("insecure_http", "Let metrics and probes be read from other machines; they have neither TLS nor authentication"),
    ("shards", "Number of shards, fixed at the first start; unset: 16, or what is stored"),
    ("max_connections", "Connections accepted at once; more wait in the listener's queue"),
    ("drain_ms", "How long requests under way may take to finish when the node stops"),
    ("log_format", "How log lines look: text or json"),
    ("log_filter", "Which log lines are written"),
    ("otlp_endpoint", "Where traces are sent (OTLP over gRPC); unset: nowhere"),
    ("settings.tick_ms", "Time between a shard's ticks; shorter reacts sooner and writes more"),
    (
        "settings.skew_margin_ms",
        "Clocks may differ by this much; longer keeps unused money set aside for longer. For a cluster that has no such \
         setting yet: then the cluster's holds (andante cluster settings)",
    ),
    (
        "settings.close_grace_ms",
        "A new leader closes nothing for this long. For a cluster that has no such setting yet: then the cluster's holds",
    ),
    (
        "settings.retry_window_ms",
        "Closed allowances answer retries exactly for this long. For a cluster that has no such setting yet: then the \
         cluster's holds",
    ),
    (
        "settings.allowance_life_max_ms",
        "No allowance's tokens are handed out for longer than this, however seldom its campaign delivers",
    ),
    ("settings.purge_after_ms", "Ended campaigns are purged after this long"),
    ("settings.promoted_share", "At most this share of a reply's candidates is promoted"),
    ("settings.max_campaigns", "Campaigns this node accepts"),
    ("settings.max_scores_in_flight", "Score requests in flight before new ones are refused"),
    ("settings.max_events_in_flight", "Outcome events in flight before new ones are refused"),
    ("settings.max_restarts", "A campaign whose actor fails this often within the window is quarantined"),
    ("settings.restart_window_ms", "The window for max_restarts"),
    (
        "settings.snapshot_every_entries",
        "Log entries of a shard after which its snapshot is written and its log cut; fewer write more often",
    ),
    ("settings.min_free_bytes", "New campaigns are refused while the disk has less space free; 0: never"),
    (
        "settings.token_key_rotation_ms",
        "Time between rotations of the keys of delivery tokens; at least twice as long as an old key is kept",
    ),
    ("settings.score_deadline_ms", "Deadline of Score where the caller sets none"),
    ("settings.report_deadline_ms", "Deadline of every other call where the caller sets none"),
];

/// One value, explained.
#[derive(Debug, Clone, PartialEq, serde::Serialize)]
pub struct Explained {
    /// Key as in the file.
    pub key: &'static str,
    /// Value; null if unset.
    pub value: Value,
    /// Where it came from.
    pub origin: String,
    /// What it means.
    pub meaning: &'static str,
}

impl Loaded {
    /// Every value, where it came from and what it means.
    pub fn explain(&self) -> Vec<Explained> {
        let mut values = keys_of(&self.config);
        MEANINGS
            .into_iter()
            .map(|(key, meaning)| Explained {
                key,
                value: values.remove(key).unwrap_or(Value::Null),
                origin: self.origins.get(key).cloned().unwrap_or_else(|| "default".to_owned()),
                meaning,
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeSet, HashMap};

    use super::*;
    use crate::config::{Config, Flag, load};

    #[test]
    fn every_value_has_a_meaning_and_no_meaning_is_left_over() {
        let keys: BTreeSet<String> = keys_of(&Config::default()).into_keys().collect();
        let meanings: BTreeSet<String> = MEANINGS.iter().map(|(key, _)| (*key).to_owned()).collect();
        assert_eq!(keys, meanings);
    }

    #[test]
    fn the_explanation_says_where_a_value_came_from() {
        let flags = [Flag { key: "shards".to_owned(), value: "2".to_owned(), flag: "--shards".to_owned() }];
        let explained = load(None, HashMap::new(), &flags).unwrap().explain();
        let shards = explained.iter().find(|e| e.key == "shards").unwrap();
        assert_eq!((shards.value.clone(), shards.origin.as_str()), (Value::from(2), "flag --shards"));
        let grpc = explained.iter().find(|e| e.key == "grpc").unwrap();
        assert_eq!((grpc.value.clone(), grpc.origin.as_str()), (Value::from("127.0.0.1:7400"), "default"));
    }
}
