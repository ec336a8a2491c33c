//! What a seed draws: the cluster, its load and its faults. A plan is all there is to a run: it can be written down,
//! edited and played again.

use std::path::Path;

use andante::settings::Settings;
use anyhow::Context as _;
use serde::{Deserialize, Serialize};

/// One run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Plan {
    /// Draws everything that is not written here: latencies, what clients do, what nodes draw.
    pub seed: u64,
    /// Nodes, 1 to 7.
    pub nodes: u32,
    /// Shards, 1 to 16.
    pub shards: u32,
    /// Of all nodes.
    pub settings: Settings,
    /// Shortest and longest time of a message on its way, milliseconds.
    pub latency_ms: (u64, u64),
    /// Shortest and longest time of a log's sync, microseconds.
    pub sync_micros: (u64, u64),
    /// Shortest and longest time of other work that blocks, microseconds.
    pub blocking_micros: (u64, u64),
    /// How far each host's clock is off from the start, milliseconds: the nodes', then the clients'.
    pub skews_ms: Vec<i64>,
    /// What clients do.
    pub load: Load,
    /// How long faults come, milliseconds.
    pub faults_ms: u64,
    /// More may be destroyed than the shards can survive: refusals are fine, wrong answers are not.
    pub beyond: bool,
    /// The faults, by the time they begin.
    pub schedule: Vec<Injection>,
}

/// What clients do.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Load {
    /// Client processes.
    pub clients: u32,
    /// Campaigns that are there all the time.
    pub campaigns: u32,
    /// Hold time of their tokens, milliseconds.
    pub hold_ms: u64,
    /// Mean pause between two score requests of a client, milliseconds.
    pub pause_ms: u64,
    /// Placements asked for at once.
    pub slots: u32,
    /// Deliveries that a campaign's budget pays for; few exhaust it.
    pub deliveries: u64,
    /// Share of all requests that ask for the same campaign.
    pub hot: f64,
    /// Share of calls that are sent twice.
    pub duplicated: f64,
    /// Share of tokens reported as not used.
    pub not_used: f64,
    /// Share of tokens whose outcome comes late: around or after their expiry.
    pub late: f64,
    /// Share of tokens that never come back.
    pub lost: f64,
    /// Mean pause between two changes of campaigns by a client, milliseconds.
    pub edit_pause_ms: u64,
}

/// One fault.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Injection {
    /// Its name; see `faults`.
    pub fault: String,
    /// When it begins: after the first fault may come, milliseconds.
    pub at_ms: u64,
    /// How long it lasts, milliseconds.
    pub for_ms: u64,
    /// Whom it befalls: positions of hosts, nodes first.
    pub on: Vec<u32>,
    /// How much of it; what that means is the fault's.
    pub amount: i64,
}

impl Plan {
    /// Reads a plan that was written down.
    ///
    /// # Errors
    /// The file can't be read or is no plan.
    pub fn read(path: &Path) -> anyhow::Result<Self> {
        let text = std::fs::read_to_string(path).with_context(|| format!("{} can't be read", path.display()))?;
        serde_json::from_str(&text).with_context(|| format!("{} is no plan", path.display()))
    }
}
