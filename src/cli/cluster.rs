//! `andante cluster`.

use std::{process::ExitCode, time::Duration};

use clap::Subcommand;
use comfy_table::{Table, presets};
use serde::Serialize;

use super::{cluster_settings, connect::Common, failure::Failure, output::Output};
use crate::{
    client::Client,
    v1::{self, ClusterHealth},
};

/// Every shard answers, but something is missing, behind or on its way.
const DEGRADED: u8 = 10;
/// A shard does not answer.
const SHARDS_UNAVAILABLE: u8 = 11;

/// Look at the cluster as a whole, and at the settings on which its nodes agree.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Show nodes, shards, leaders and how far everything is behind, with a verdict. Exit code 0: healthy, 10: degraded,
    /// 11: a shard does not answer.
    Status(Status),
    /// Show the settings on which all nodes agree, or change some of them: they are in force at once, everywhere.
    Settings(cluster_settings::Args),
}

#[derive(Debug, clap::Args)]
struct Status {
    /// Show it again and again, until Ctrl-C; the exit code is the last one's.
    #[arg(long)]
    watch: bool,
    /// With --watch: time between two looks, in milliseconds.
    #[arg(long, default_value_t = 2_000, value_parser = clap::value_parser!(u64).range(1_000..=60_000))]
    every_ms: u64,
    #[command(flatten)]
    common: Common,
}

impl Args {
    pub(super) fn json(&self) -> bool {
        match &self.command {
            Command::Status(args) => args.common.json,
            Command::Settings(args) => args.common.json,
        }
    }
}

pub(super) async fn run(args: Args) -> anyhow::Result<ExitCode> {
    match args.command {
        Command::Status(args) => status(args).await,
        Command::Settings(args) => cluster_settings::run(args).await,
    }
}

async fn status(args: Status) -> anyhow::Result<ExitCode> {
    let output = Output::new(args.common.json);
    let client = args.common.client()?;
    let mut interrupt = std::pin::pin!(super::node::signal());
    let mut exit;
    loop {
        match ask(&client).await {
            Ok(status) => {
                exit = exit_code(status.health());
                output.result(&Shown::from(status), |shown| describe(shown, args.watch))?;
            }
            // Somebody who watches wants to see it come back.
            Err(failure) if args.watch => {
                exit = ExitCode::from(SHARDS_UNAVAILABLE);
                output.failure(&failure);
            }
            Err(failure) => return Err(failure.into()),
        }
        if !args.watch {
            return Ok(exit);
        }
        tokio::select! {
            _ = &mut interrupt => return Ok(exit),
            () = tokio::time::sleep(Duration::from_millis(args.every_ms)) => {}
        }
    }
}

async fn ask(client: &Client) -> Result<v1::GetClusterStatusResponse, Failure> {
    Ok(client.cluster_status().await?)
}

fn exit_code(health: ClusterHealth) -> ExitCode {
    match health {
        ClusterHealth::Healthy => ExitCode::SUCCESS,
        ClusterHealth::Degraded => ExitCode::from(DEGRADED),
        ClusterHealth::Unavailable | ClusterHealth::Unspecified => ExitCode::from(SHARDS_UNAVAILABLE),
    }
}

#[derive(Debug, Serialize)]
struct Shown {
    health: &'static str,
    verdict: String,
    survives: u32,
    replication_factor: u32,
    feature_level: u32,
    nodes: Vec<ShownNode>,
    shards: Vec<ShownShard>,
    directory: ShownShard,
}

#[derive(Debug, Serialize)]
struct ShownNode {
    node: u64,
    address: String,
    up: bool,
    error: String,
    leads: u32,
    replicas: u32,
    feature_level: u32,
    catalog_shards_behind: u32,
    catalog_lag_entries: u64,
}

#[derive(Debug, Serialize)]
struct ShownShard {
    shard: u32,
    /// 0: nobody who is known.
    leader: u64,
    term: u64,
    last_log: u64,
    probe_micros: u64,
    probe_error: String,
    under_replicated: bool,
    target: Vec<u64>,
    replicas: Vec<ShownReplica>,
}

#[derive(Debug, Serialize)]
struct ShownReplica {
    node: u64,
    voter: bool,
    lag_entries: u64,
    follows: bool,
}

impl From<v1::GetClusterStatusResponse> for Shown {
    fn from(status: v1::GetClusterStatusResponse) -> Self {
        Shown {
            health: match status.health() {
                ClusterHealth::Healthy => "healthy",
                ClusterHealth::Degraded => "degraded",
                ClusterHealth::Unavailable | ClusterHealth::Unspecified => "unavailable",
            },
            verdict: status.verdict,
            survives: status.survives,
            replication_factor: status.replication_factor,
            feature_level: status.feature_level,
            nodes: status.nodes.into_iter().map(ShownNode::from).collect(),
            shards: status.shards.into_iter().map(ShownShard::from).collect(),
            directory: status.directory.unwrap_or_default().into(),
        }
    }
}

impl From<v1::NodeStatus> for ShownNode {
    fn from(node: v1::NodeStatus) -> Self {
        ShownNode {
            node: node.node_id,
            address: node.address,
            up: node.error.is_empty(),
            error: node.error,
            leads: node.leads,
            replicas: node.replicas,
            feature_level: node.feature_level,
            catalog_shards_behind: node.catalog_shards_behind,
            catalog_lag_entries: node.catalog_lag_entries,
        }
    }
}

impl From<v1::ShardStatus> for ShownShard {
    fn from(shard: v1::ShardStatus) -> Self {
        let replica = |replica: v1::ReplicaStatus| ShownReplica {
            node: replica.node_id,
            voter: replica.voter,
            lag_entries: replica.lag_entries,
            follows: replica.follows,
        };
        ShownShard {
            shard: shard.shard,
            leader: shard.leader,
            term: shard.term,
            last_log: shard.last_log,
            probe_micros: shard.probe_micros,
            probe_error: shard.probe_error,
            under_replicated: shard.under_replicated,
            target: shard.target,
            replicas: shard.replicas.into_iter().map(replica).collect(),
        }
    }
}

fn describe(shown: &Shown, again: bool) -> String {
    let mut nodes = table(["node", "address", "leads", "replicas", "catalog", "is"]);
    for node in &shown.nodes {
        let catalog = match node.catalog_shards_behind {
            0 => "in step".to_owned(),
            shards => format!("{shards} shards, {} entries behind", node.catalog_lag_entries),
        };
        let is = if node.up { "up".to_owned() } else { format!("DOWN: {}", node.error) };
        let counts = [node.leads.to_string(), node.replicas.to_string()];
        let [leads, replicas] = counts;
        nodes.add_row([node.node.to_string(), node.address.clone(), leads, replicas, catalog, is]);
    }
    let mut shards = table(["shard", "leader", "replicas (entries behind)", "probe", "remarks"]);
    let named = shown.shards.iter().map(|shard| (shard.shard.to_string(), shard));
    for (name, shard) in named.chain([("directory".to_owned(), &shown.directory)]) {
        shards.add_row([name, leader(shard), replicas(shard), probe(shard), remarks(shard)]);
    }
    // Above the last picture, as other watching programs do.
    let clear = if again { "\x1b[2J\x1b[H" } else { "" };
    format!("{clear}{nodes}\n{shards}\n{}: {}", shown.health, shown.verdict)
}

fn table<const N: usize>(header: [&str; N]) -> Table {
    let mut table = Table::new();
    table.load_style(presets::UTF8_BORDERS_ONLY);
    table.set_header(header);
    table
}

fn leader(shard: &ShownShard) -> String {
    if shard.leader == 0 { "none".to_owned() } else { format!("{} (term {})", shard.leader, shard.term) }
}

fn replicas(shard: &ShownShard) -> String {
    let replica = |replica: &ShownReplica| {
        let lag = if replica.follows { replica.lag_entries.to_string() } else { "silent".to_owned() };
        let learns = if replica.voter { "" } else { ", learns" };
        format!("{} ({lag}{learns})", replica.node)
    };
    shard.replicas.iter().map(replica).collect::<Vec<_>>().join(" ")
}

fn probe(shard: &ShownShard) -> String {
    if shard.probe_error.is_empty() {
        format!("{:.1} ms", shard.probe_micros as f64 / 1_000.0)
    } else {
        format!("FAILED: {}", shard.probe_error)
    }
}

fn remarks(shard: &ShownShard) -> String {
    let mut remarks = Vec::new();
    if shard.under_replicated {
        remarks.push("under-replicated".to_owned());
    }
    let voters: Vec<u64> = shard.replicas.iter().filter(|replica| replica.voter).map(|replica| replica.node).collect();
    if !shard.target.is_empty() && !shard.target.iter().all(|node| voters.contains(node)) {
        remarks.push(format!("on its way to {:?}", shard.target));
    }
    remarks.join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status() -> v1::GetClusterStatusResponse {
        let replica = |node_id, lag_entries, follows| v1::ReplicaStatus { node_id, voter: true, lag_entries, follows };
        let shard = v1::ShardStatus {
            shard: 0,
            leader: 1,
            term: 4,
            last_log: 120,
            replicas: vec![replica(1, 0, true), replica(2, 3, true), replica(3, 120, false)],
            target: vec![1, 2, 3],
            probe_micros: 1_234,
            probe_error: String::new(),
            under_replicated: true,
        };
        v1::GetClusterStatusResponse {
            health: ClusterHealth::Degraded.into(),
            verdict: "every shard answers, but node 3 does not answer; survives no further failure".into(),
            nodes: vec![v1::NodeStatus {
                node_id: 3,
                address: "c:7402".into(),
                error: "connection refused".into(),
                ..Default::default()
            }],
            shards: vec![shard],
            ..Default::default()
        }
    }

    #[test]
    fn people_see_what_is_wrong_and_the_verdict_last() {
        let text = describe(&Shown::from(status()), false);
        for part in ["DOWN: connection refused", "1 (0) 2 (3) 3 (silent)", "1.2 ms", "under-replicated", "1 (term 4)"] {
            assert!(text.contains(part), "{part} is not in\n{text}");
        }
        assert!(text.lines().last().is_some_and(|line| line.starts_with("degraded: every shard answers")), "{text}");
    }

    #[test]
    fn scripts_see_the_same() {
        let json = serde_json::to_value(Shown::from(status())).expect("serializes");
        assert_eq!(json["health"], "degraded");
        assert_eq!(json["nodes"][0]["up"], false);
        assert_eq!(json["shards"][0]["replicas"][2]["follows"], false);
    }
}
