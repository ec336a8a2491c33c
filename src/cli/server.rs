//! `andante server`.

use std::process::ExitCode;

use andante_cluster::env::{Clock as _, SystemClock};
use clap::Subcommand;
use serde::Serialize;

use super::{connect::Common, output::Output, time};
use crate::v1;

/// Ask a node about itself, or confirm its clock.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Show version, cluster and limits.
    Info(Info),
    /// Confirm that the node's clock is right after it stepped; until then nothing is closed.
    ConfirmClock(ConfirmClock),
}

#[derive(Debug, clap::Args)]
struct Info {
    #[command(flatten)]
    common: Common,
}

#[derive(Debug, clap::Args)]
struct ConfirmClock {
    /// The time by your own clock; default: this machine's.
    #[arg(long, value_name = "TIME", value_parser = time::parse)]
    now: Option<u64>,
    #[command(flatten)]
    common: Common,
}

#[derive(Debug, Serialize)]
struct Described {
    version: String,
    cluster_id: String,
    incarnation: u32,
    node_id: u64,
    boot_id: u64,
    shards: u32,
    clock_trusted: bool,
    now_ms: u64,
    limits: Limits,
}

#[derive(Debug, Serialize)]
struct Limits {
    candidates: u32,
    events: u32,
    message_bytes: u64,
    tracks_per_campaign: u32,
    campaigns: u64,
    hold_min_ms: u64,
    hold_max_ms: u64,
    budget_max_micros: u64,
    page_size: u32,
    score_deadline_ms: u64,
    report_deadline_ms: u64,
}

#[derive(Debug, Serialize)]
struct Confirmed {
    now_ms: u64,
}

impl Args {
    pub(super) fn json(&self) -> bool {
        match &self.command {
            Command::Info(args) => args.common.json,
            Command::ConfirmClock(args) => args.common.json,
        }
    }
}

pub(super) async fn run(args: Args) -> anyhow::Result<ExitCode> {
    let output = Output::new(args.json());
    match args.command {
        Command::Info(Info { common }) => {
            let info = common.client()?.server_info().await?;
            output.result(&Described::from(info), describe)?;
        }
        Command::ConfirmClock(ConfirmClock { now, common }) => {
            let expected_now_ms = now.unwrap_or_else(|| SystemClock::default().now_ms());
            let now_ms = common.client()?.confirm_clock(expected_now_ms).await?.now_ms;
            output.result(&Confirmed { now_ms }, |c| {
                format!("the node's time is {}, and trusted", time::show(c.now_ms))
            })?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

impl From<v1::GetServerInfoResponse> for Described {
    fn from(info: v1::GetServerInfoResponse) -> Self {
        let limits = info.limits.unwrap_or_default();
        Described {
            version: info.version,
            cluster_id: info.cluster_id,
            incarnation: info.incarnation,
            node_id: info.node_id,
            boot_id: info.boot_id,
            shards: info.shards,
            clock_trusted: info.clock_trusted,
            now_ms: info.now_ms,
            limits: Limits {
                candidates: limits.candidates,
                events: limits.events,
                message_bytes: limits.message_bytes,
                tracks_per_campaign: limits.tracks_per_campaign,
                campaigns: limits.campaigns,
                hold_min_ms: limits.hold_min_ms,
                hold_max_ms: limits.hold_max_ms,
                budget_max_micros: limits.budget_max_micros,
                page_size: limits.page_size,
                score_deadline_ms: limits.score_deadline_ms,
                report_deadline_ms: limits.report_deadline_ms,
            },
        }
    }
}

fn describe(info: &Described) -> String {
    let Described { version, cluster_id, incarnation, node_id, boot_id, shards, clock_trusted, now_ms, limits } = info;
    let clock = if *clock_trusted { "trusted" } else { "NOT trusted: nothing is closed until `confirm-clock`" };
    format!(
        "version   {version}\ncluster   {cluster_id}, incarnation {incarnation}\nnode      {node_id}, boot {boot_id}, \
         {shards} shards\nclock     {}, {clock}\nlimits    {} candidates, {} events, {} bytes a message, {} campaigns",
        time::show(*now_ms),
        limits.candidates,
        limits.events,
        limits.message_bytes,
        limits.campaigns,
    )
}
