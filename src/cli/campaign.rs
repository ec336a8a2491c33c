//! `andante campaign`.

use std::process::ExitCode;

use clap::{Subcommand, ValueEnum};
use comfy_table::{CellAlignment, Table, presets};
use serde::Serialize;

use super::{
    connect::Common,
    failure::Failure,
    import,
    json::{Campaign, money, state_name},
    output::Output,
    spec_args::SpecArgs,
    time,
};
use crate::v1;

/// Campaigns read per page of a list.
const PAGE_SIZE: u32 = 500;

/// Create, change and watch campaigns.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Create a campaign from flags, a JSON file, or both.
    Create(Create),
    /// Show a campaign with its ledger.
    Get(Named),
    /// List campaigns in the order of their names.
    List(List),
    /// Change the settings that are given; the others stay.
    Update(Update),
    /// Stop handing out tokens until resumed. Tokens already handed out stay billable.
    Pause(Change),
    /// Go on after a pause.
    Resume(Change),
    /// End a campaign for good. Tokens already handed out stay billable.
    End(Change),
    /// Remove a campaign once its last allowance has closed.
    Delete(Change),
    /// Create many campaigns from a file. Safe to repeat.
    Import(import::Args),
    /// Follow spend against plan until the campaign's end or Ctrl-C.
    Watch(Watch),
}

#[derive(Debug, clap::Args)]
struct Create {
    /// Unique name; may stand in the file instead.
    name: Option<String>,
    #[command(flatten)]
    spec: SpecArgs,
    /// Id of this request: repeated with the same id, it is applied at most once. Default: a new one.
    #[arg(long)]
    request_id: Option<String>,
    #[command(flatten)]
    common: Common,
}

#[derive(Debug, clap::Args)]
struct Named {
    /// The campaign.
    name: String,
    #[command(flatten)]
    common: Common,
}

#[derive(Debug, clap::Args)]
struct List {
    /// Only this owner's.
    #[arg(long, default_value = "", hide_default_value = true)]
    owner: String,
    /// Only those with this label: `key` or `key=value`.
    #[arg(long, default_value = "", hide_default_value = true)]
    label: String,
    /// Only those in this state.
    #[arg(long, value_enum)]
    state: Option<State>,
    /// At most so many.
    #[arg(long, default_value_t = 1_000)]
    limit: usize,
    #[command(flatten)]
    common: Common,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum State {
    /// Delivers during its flight.
    Active,
    /// Paused.
    Paused,
    /// Over for good.
    Ended,
    /// To be removed once its last allowance has closed.
    Deleting,
}

#[derive(Debug, clap::Args)]
struct Update {
    /// The campaign; may stand in the file instead.
    name: Option<String>,
    #[command(flatten)]
    spec: SpecArgs,
    /// Only if the campaign is still as it was read; default: whatever is there.
    #[arg(long, default_value = "", hide_default_value = true)]
    etag: String,
    /// Id of this request: repeated with the same id, it is applied at most once.
    #[arg(long, default_value = "", hide_default_value = true)]
    request_id: String,
    #[command(flatten)]
    common: Common,
}

#[derive(Debug, clap::Args)]
struct Change {
    /// The campaign.
    name: String,
    /// Only if the campaign is still as it was read; default: whatever is there.
    #[arg(long, default_value = "", hide_default_value = true)]
    etag: String,
    /// Id of this request: repeated with the same id, it is applied at most once.
    #[arg(long, default_value = "", hide_default_value = true)]
    request_id: String,
    #[command(flatten)]
    common: Common,
}

#[derive(Debug, clap::Args)]
struct Watch {
    /// The campaign.
    name: String,
    /// Time between two lines, in milliseconds.
    #[arg(long, default_value_t = 1_000, value_parser = clap::value_parser!(u64).range(100..=60_000))]
    interval_ms: u64,
    /// Stop after so many lines.
    #[arg(long)]
    count: Option<u64>,
    #[command(flatten)]
    common: Common,
}

impl Args {
    pub(super) fn json(&self) -> bool {
        let common = match &self.command {
            Command::Create(args) => &args.common,
            Command::Get(args) => &args.common,
            Command::List(args) => &args.common,
            Command::Update(args) => &args.common,
            Command::Pause(args) | Command::Resume(args) | Command::End(args) | Command::Delete(args) => &args.common,
            Command::Import(args) => &args.common,
            Command::Watch(args) => &args.common,
        };
        common.json
    }
}

/// Runs it.
pub(super) async fn run(args: Args) -> anyhow::Result<ExitCode> {
    let output = Output::new(args.json());
    match args.command {
        Command::Create(args) => create(args, output).await?,
        Command::Get(args) => {
            show(output, Some(args.common.client()?.get_campaign(&args.name).await?))?;
        }
        Command::List(args) => list(args, output).await?,
        Command::Update(args) => update(args, output).await?,
        Command::Pause(Change { name, etag, request_id, common }) => {
            let request = v1::PauseCampaignRequest { name, etag, request_id };
            show(output, common.client()?.pause_campaign(request).await?.campaign)?;
        }
        Command::Resume(Change { name, etag, request_id, common }) => {
            let request = v1::ResumeCampaignRequest { name, etag, request_id };
            show(output, common.client()?.resume_campaign(request).await?.campaign)?;
        }
        Command::End(Change { name, etag, request_id, common }) => {
            let request = v1::EndCampaignRequest { name, etag, request_id };
            show(output, common.client()?.end_campaign(request).await?.campaign)?;
        }
        Command::Delete(Change { name, etag, request_id, common }) => {
            let request = v1::DeleteCampaignRequest { name, etag, request_id };
            show(output, common.client()?.delete_campaign(request).await?.campaign)?;
        }
        Command::Import(args) => return import::run(args, output).await,
        Command::Watch(args) => watch(args, output).await?,
    }
    Ok(ExitCode::SUCCESS)
}

async fn create(args: Create, output: Output) -> anyhow::Result<()> {
    let (spec, _) = args.spec.read(args.name)?;
    if spec.name.is_empty() {
        return Err(Failure::usage("which campaign? give a name, on the command line or in the file").into());
    }
    let request_id = args.request_id.unwrap_or_else(super::connect::new_request_id);
    output.note(format_args!("request id {request_id}"));
    let request = v1::CreateCampaignRequest { request_id, spec: Some(spec) };
    let answer = args.common.client()?.create_campaign(request).await?;
    written(output, answer.campaign, answer.warnings)
}

async fn update(args: Update, output: Output) -> anyhow::Result<()> {
    let (spec, paths) = args.spec.read(args.name)?;
    if paths.is_empty() {
        return Err(Failure::usage("nothing to change: give at least one setting").into());
    }
    let request = v1::UpdateCampaignRequest {
        request_id: args.request_id,
        spec: Some(spec),
        update_mask: Some(prost_types::FieldMask { paths }),
        etag: args.etag,
    };
    let answer = args.common.client()?.update_campaign(request).await?;
    written(output, answer.campaign, answer.warnings)
}

/// A campaign as it was written, with what looks unwise about it.
#[derive(Debug, Serialize)]
struct Written {
    campaign: Option<Campaign>,
    warnings: Vec<String>,
}

fn written(output: Output, campaign: Option<v1::Campaign>, warnings: Vec<String>) -> anyhow::Result<()> {
    for warning in &warnings {
        output.note(format_args!("warning: {warning}"));
    }
    let written = Written { campaign: campaign.map(Campaign::from), warnings };
    output.result(&written, |w| w.campaign.as_ref().map_or_else(String::new, describe))
}

fn show(output: Output, campaign: Option<v1::Campaign>) -> anyhow::Result<()> {
    #[derive(Serialize)]
    struct Shown {
        campaign: Option<Campaign>,
    }
    output.result(&Shown { campaign: campaign.map(Campaign::from) }, |shown| {
        shown.campaign.as_ref().map_or_else(|| "it is gone".to_owned(), describe)
    })
}

async fn list(args: List, output: Output) -> anyhow::Result<()> {
    let state = match args.state {
        None => v1::CampaignState::Unspecified,
        Some(State::Active) => v1::CampaignState::Active,
        Some(State::Paused) => v1::CampaignState::Paused,
        Some(State::Ended) => v1::CampaignState::Ended,
        Some(State::Deleting) => v1::CampaignState::Deleting,
    };
    let client = args.common.client()?;
    let mut campaigns = Vec::new();
    let mut page_token = String::new();
    let more = loop {
        let left = args.limit.saturating_sub(campaigns.len());
        if left == 0 {
            break !page_token.is_empty();
        }
        let request = v1::ListCampaignsRequest {
            page_size: PAGE_SIZE.min(u32::try_from(left).unwrap_or(PAGE_SIZE)),
            page_token,
            owner: args.owner.clone(),
            label: args.label.clone(),
            state: state as i32,
        };
        let page = client.list_campaigns(request).await?;
        campaigns.extend(page.campaigns.into_iter().map(Campaign::from));
        page_token = page.next_page_token;
        if page_token.is_empty() {
            break false;
        }
    };
    if more {
        output.note(format_args!("there are more; --limit {} shows twice as many", args.limit.saturating_mul(2)));
    }
    #[derive(Serialize)]
    struct Listed {
        campaigns: Vec<Campaign>,
        more: bool,
    }
    output.result(&Listed { campaigns, more }, |listed| table(&listed.campaigns))
}

fn table(campaigns: &[Campaign]) -> String {
    let mut table = Table::new();
    table.load_style(presets::UTF8_BORDERS_ONLY);
    table.set_header(["name", "owner", "state", "budget", "settled", "open", "billed", "flight ends"]);
    for Campaign { spec, state, ledger, .. } in campaigns {
        table.add_row([
            spec.name.clone(),
            spec.owner.clone(),
            (*state).to_owned(),
            money(spec.budget_micros),
            money(ledger.settled_micros),
            money(ledger.open_micros),
            ledger.billed.to_string(),
            time::show(spec.end_ms),
        ]);
    }
    for column in 3..=6 {
        if let Some(column) = table.column_mut(column) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    table.to_string()
}

fn describe(campaign: &Campaign) -> String {
    let Campaign { spec, ledger, .. } = campaign;
    let join = |list: &[String], none: &str| if list.is_empty() { none.to_owned() } else { list.join(", ") };
    let labels: Vec<String> = spec.labels.iter().map(|(k, v)| format!("{k}={v}")).collect();
    let cap = match spec.frequency_cap {
        0 => "none".to_owned(),
        n => format!("{n} per {} s", spec.frequency_window_ms / 1_000),
    };
    let mut rows = vec![
        ("name", spec.name.clone()),
        ("owner", spec.owner.clone()),
        ("labels", join(&labels, "none")),
        ("state", campaign.state.to_owned()),
        ("flight", format!("{} to {}", time::show(spec.start_ms), time::show(spec.end_ms))),
        ("tracks", spec.track_ids.len().to_string()),
        ("surfaces", join(&spec.surfaces, "all")),
        ("markets", join(&spec.markets, "all")),
        ("budget", money(spec.budget_micros)),
        ("settled", money(ledger.settled_micros)),
        ("set aside", format!("{} in {} allowances", money(ledger.open_micros), ledger.open_allowances)),
        ("price", format!("{} per {:?}", money(spec.price_micros), spec.billable).to_lowercase()),
        ("billed", ledger.billed.to_string()),
        (
            "outcomes",
            format!(
                "{} impressions, {} streams, {} short streams, {} skips, {} saves",
                ledger.impressions, ledger.streams, ledger.short_streams, ledger.skips, ledger.saves
            ),
        ),
        (
            "tokens back",
            format!("{} released, {} expired, {} too late", ledger.released, ledger.expired, ledger.refused_closed),
        ),
        ("hold time", format!("{} s", spec.hold_ms / 1_000)),
        ("frequency cap", cap),
        ("etag", campaign.etag.clone()),
    ];
    if !campaign.explanation.is_empty() {
        rows.push(("explanation", campaign.explanation.clone()));
    }
    let width = rows.iter().map(|(key, _)| key.len()).max().unwrap_or(0);
    let lines: Vec<String> =
        rows.iter().map(|(key, value)| format!("{key:width$}  {value}").trim_end().into()).collect();
    lines.join("\n")
}

/// Spend against plan, now.
#[derive(Debug, Serialize)]
struct Pacing {
    now_ms: u64,
    settled_micros: u64,
    open_micros: u64,
    planned_micros: u64,
    budget_micros: u64,
    mu: f64,
    billable_share: f64,
    stranded_micros: u64,
    state: &'static str,
    explanation: String,
}

async fn watch(args: Watch, output: Output) -> anyhow::Result<()> {
    let request = v1::WatchPacingRequest { name: args.name, interval_ms: args.interval_ms };
    let mut stream = args.common.client()?.watch_pacing(request).await?;
    output.note(format_args!(
        "{:<24} {:>14} {:>14} {:>14} {:>14} {:>9}  {:<8} explanation",
        "time", "settled", "planned", "set aside", "budget", "mu", "state"
    ));
    let mut left = args.count.unwrap_or(u64::MAX);
    while left > 0 {
        let message = tokio::select! {
            message = stream.message() => message?,
            _ = tokio::signal::ctrl_c() => None,
        };
        let Some(message) = message else { break };
        left -= 1;
        let state = state_name(message.state());
        let pacing = Pacing {
            now_ms: message.now_ms,
            settled_micros: message.settled_micros,
            open_micros: message.open_micros,
            planned_micros: message.planned_micros,
            budget_micros: message.budget_micros,
            mu: message.mu,
            billable_share: message.billable_share,
            stranded_micros: message.stranded_micros,
            state,
            explanation: message.explanation,
        };
        output.result(&pacing, |p| {
            format!(
                "{:<24} {:>14} {:>14} {:>14} {:>14} {:>9.4}  {:<8} {}",
                time::show(p.now_ms),
                money(p.settled_micros),
                money(p.planned_micros),
                money(p.open_micros),
                money(p.budget_micros),
                p.mu,
                p.state,
                p.explanation
            )
            .trim_end()
            .to_owned()
        })?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn campaign() -> Campaign {
        let spec = v1::CampaignSpec {
            name: "summer-hit".into(),
            owner: "label".into(),
            track_ids: vec!["t1".into(), "t2".into()],
            markets: vec!["SE".into(), "DE".into()],
            start_ms: 1_767_225_600_000,
            end_ms: 1_767_312_000_000,
            budget_micros: 50_000_000,
            price_micros: 20_000,
            hold_ms: 300_000,
            frequency_cap: 2,
            frequency_window_ms: 86_400_000,
            ..Default::default()
        };
        let ledger = v1::Ledger {
            settled_micros: 1_240_000,
            open_micros: 260_000,
            billed: 62,
            open_allowances: 2,
            ..Default::default()
        };
        Campaign::from(v1::Campaign {
            spec: Some(spec),
            etag: "3".into(),
            state: v1::CampaignState::Active as i32,
            ledger: Some(ledger),
            explanation: "few requests".into(),
            ..Default::default()
        })
    }

    #[test]
    fn a_campaign_is_described_for_people() {
        insta::assert_snapshot!(describe(&campaign()), @"
        name           summer-hit
        owner          label
        labels         none
        state          ACTIVE
        flight         2026-01-01T00:00:00Z to 2026-01-02T00:00:00Z
        tracks         2
        surfaces       all
        markets        SE, DE
        budget         50.00
        settled        1.24
        set aside      0.26 in 2 allowances
        price          0.02 per stream
        billed         62
        outcomes       0 impressions, 0 streams, 0 short streams, 0 skips, 0 saves
        tokens back    0 released, 0 expired, 0 too late
        hold time      300 s
        frequency cap  2 per 86400 s
        etag           3
        explanation    few requests
        ");
    }

    #[test]
    fn campaigns_are_listed_in_a_table() {
        insta::assert_snapshot!(table(&[campaign()]), @"
        ┌───────────────────────────────────────────────────────────────────────────────────────┐
        │ name         owner   state    budget   settled   open   billed   flight ends          │
        ╞═══════════════════════════════════════════════════════════════════════════════════════╡
        │ summer-hit   label   ACTIVE    50.00      1.24   0.26       62   2026-01-02T00:00:00Z │
        └───────────────────────────────────────────────────────────────────────────────────────┘
        ");
    }
}
