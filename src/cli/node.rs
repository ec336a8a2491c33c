//! `andante node`.

use std::{collections::HashMap, path::PathBuf, process::ExitCode, sync::Arc, time::Duration};

use andante_cluster::{env::Env, host::Join};
use anyhow::Context as _;
use comfy_table::{Table, presets};
use serde::Serialize;
use tokio::sync::oneshot;

use super::{
    failure::{FATAL, Failure},
    output::Output,
};
use crate::{
    access::{CertificateSource, ServerTls},
    api::{self, Listeners, ServeConfig},
    config::{self, Config, Explained, Flag, Loaded, LogFormat, Switch},
    feature::FEATURE_LEVEL,
    node::{Node, NodeConfig, PeerConfig},
    telemetry,
};

/// Run a node: its data in ./andante-data, gRPC on 127.0.0.1:7400, metrics and probes on 127.0.0.1:7401, its peers on
/// 127.0.0.1:7402. Flags win over environment variables (ANDANTE_GRPC, ANDANTE_SETTINGS__TICK_MS, ...), these over the
/// configuration file. SIGTERM and Ctrl-C drain it.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Configuration file (TOML).
    #[arg(long, env = "ANDANTE_CONFIG", value_name = "FILE")]
    config: Option<PathBuf>,
    /// Everything the node keeps lies here.
    #[arg(long, value_name = "DIR")]
    data_dir: Option<String>,
    /// Where gRPC listens.
    #[arg(long, value_name = "IP:PORT")]
    grpc: Option<String>,
    /// Where HTTP listens, for metrics and probes.
    #[arg(long, value_name = "IP:PORT")]
    http: Option<String>,
    /// Where this node listens for the other nodes of its cluster.
    #[arg(long, value_name = "IP:PORT")]
    peer: Option<String>,
    /// Where its peers reach it, if not where it listens.
    #[arg(long, value_name = "HOST:PORT")]
    advertise: Option<String>,
    /// Join the cluster of these nodes (their peer addresses, separated by commas) at the first start.
    #[arg(long, value_name = "HOST:PORT,...")]
    join: Option<String>,
    /// The cluster's join token; better in ANDANTE_JOIN_TOKEN or in a file, where other users can't see it.
    #[arg(long, value_name = "TOKEN")]
    join_token: Option<String>,
    /// A file that holds the cluster's join token.
    #[arg(long, value_name = "FILE")]
    join_token_file: Option<String>,
    /// Number of shards, chosen at the first start.
    #[arg(long, value_name = "N")]
    shards: Option<u32>,
    /// Whether gRPC is behind TLS; auto: beyond loopback, unless --insecure.
    #[arg(long, value_enum)]
    tls: Option<Switch>,
    /// PEM file with the server's certificate, instead of one issued by the cluster's own authority.
    #[arg(long, value_name = "FILE")]
    tls_cert: Option<String>,
    /// PEM file with the private key of --tls-cert.
    #[arg(long, value_name = "FILE")]
    tls_key: Option<String>,
    /// More host names and IP addresses for the certificate that the cluster issues.
    #[arg(long, value_name = "NAME,...")]
    tls_names: Option<String>,
    /// Whether every call needs an access token; auto: beyond loopback, unless --insecure.
    #[arg(long, value_enum)]
    auth: Option<Switch>,
    /// Listen beyond loopback with neither TLS nor authentication, for clients and for peers.
    #[arg(long)]
    insecure: bool,
    /// Let metrics and probes be read from other machines.
    #[arg(long)]
    insecure_http: bool,
    /// How log lines look.
    #[arg(long, value_enum)]
    log_format: Option<LogFormat>,
    /// Which log lines are written, e.g. `info,andante::router=debug`.
    #[arg(long, value_name = "FILTER")]
    log_filter: Option<String>,
    /// Where traces are sent (OTLP over gRPC).
    #[arg(long, value_name = "URL")]
    otlp_endpoint: Option<String>,
    /// Any other value of the configuration, e.g. `settings.tick_ms=50`; may be repeated.
    #[arg(long = "set", value_name = "KEY=VALUE", value_parser = pair)]
    set: Vec<(String, String)>,
    /// Act as a program of this feature level would, towards the cluster and the data directory. For tests of upgrades.
    #[arg(
        long, hide = true, env = "ANDANTE_FEATURE_LEVEL", value_name = "N", default_value_t = FEATURE_LEVEL,
        value_parser = clap::value_parser!(u32).range(1..=i64::from(FEATURE_LEVEL))
    )]
    feature_level: u32,
    /// Check the configuration, explain every value and where it came from, and start nothing.
    #[arg(long)]
    check: bool,
    /// Write JSON, for scripts.
    #[arg(long)]
    pub(super) json: bool,
}

fn pair(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
        _ => Err("write KEY=VALUE".to_owned()),
    }
}

impl Args {
    fn flags(&self) -> Vec<Flag> {
        let log_format = self.log_format.map(|format| match format {
            LogFormat::Text => "text".to_owned(),
            LogFormat::Json => "json".to_owned(),
        });
        let named = [
            ("data_dir", "--data-dir", self.data_dir.clone()),
            ("grpc", "--grpc", self.grpc.clone()),
            ("http", "--http", self.http.clone()),
            ("peer", "--peer", self.peer.clone()),
            ("advertise", "--advertise", self.advertise.clone()),
            ("join", "--join", self.join.clone()),
            ("join_token", "--join-token", self.join_token.clone()),
            ("join_token_file", "--join-token-file", self.join_token_file.clone()),
            ("shards", "--shards", self.shards.map(|n| n.to_string())),
            ("tls", "--tls", self.tls.map(|switch| switch.name().to_owned())),
            ("tls_cert", "--tls-cert", self.tls_cert.clone()),
            ("tls_key", "--tls-key", self.tls_key.clone()),
            ("tls_names", "--tls-names", self.tls_names.clone()),
            ("auth", "--auth", self.auth.map(|switch| switch.name().to_owned())),
            ("insecure", "--insecure", self.insecure.then(|| "true".to_owned())),
            ("insecure_http", "--insecure-http", self.insecure_http.then(|| "true".to_owned())),
            ("log_format", "--log-format", log_format),
            ("log_filter", "--log-filter", self.log_filter.clone()),
            ("otlp_endpoint", "--otlp-endpoint", self.otlp_endpoint.clone()),
        ];
        let named = named.into_iter().filter_map(|(key, flag, value)| {
            value.map(|value| Flag { key: key.to_owned(), value, flag: flag.to_owned() })
        });
        let set = self.set.iter().map(|(key, value)| Flag {
            key: key.clone(),
            value: value.clone(),
            flag: format!("--set {key}"),
        });
        named.chain(set).collect()
    }
}

pub(super) async fn run(args: Args) -> anyhow::Result<ExitCode> {
    anyhow::ensure!(!cfg!(andante_mutants), "this program has seeded bugs, for tests of tests: it runs no node");
    let output = Output::new(args.json);
    let environment: HashMap<String, String> =
        std::env::vars_os().filter_map(|(k, v)| Some((k.into_string().ok()?, v.into_string().ok()?))).collect();
    let loaded = config::load(args.config.as_deref(), environment, &args.flags())?;
    for warning in &loaded.warnings {
        output.note(format_args!("warning: {warning}"));
    }
    if args.check {
        let valid = loaded.config.validate();
        let checked = Checked {
            valid: valid.is_ok(),
            problem: valid.as_ref().err().map(ToString::to_string),
            values: loaded.explain(),
        };
        output.result(&checked, describe)?;
        return Ok(valid.map(|()| ExitCode::SUCCESS)?);
    }
    loaded.config.validate()?;
    let telemetry = telemetry::start(&loaded.config)?;
    let code = serve(Env::production(), loaded, args.feature_level, output).await;
    telemetry.shutdown();
    code
}

/// How the node finds its peers and is found by them.
fn peer_config(config: &Config) -> anyhow::Result<PeerConfig> {
    let token = match (&config.join_token, &config.join_token_file) {
        (Some(token), _) => token.reveal().to_owned(),
        (None, Some(path)) => std::fs::read_to_string(path)
            .with_context(|| format!("join_token_file: {} can't be read", path.display()))?,
        (None, None) => String::new(),
    };
    let addresses = config.join_addresses();
    let join = (!addresses.is_empty()).then(|| Join { addresses, token: token.trim().to_owned() });
    let (addr, advertise) = (config.peer, config.advertise.clone());
    Ok(PeerConfig { addr, advertise, join, plaintext: config.insecure })
}

/// TLS for clients, if it is on.
async fn server_tls(config: &Config, node: &Node, env: &Env) -> anyhow::Result<Option<ServerTls>> {
    if !config.tls_on() {
        return Ok(None);
    }
    let source = match (config.tls_cert.clone(), config.tls_key.clone()) {
        (Some(certificate), Some(key)) => CertificateSource::Files { certificate, key },
        _ => CertificateSource::Authority { names: config.certificate_names() },
    };
    node.server_tls(source, env).await.map(Some).context("there is no certificate for clients")
}

/// Where a node that runs can be reached.
#[derive(Debug, Serialize)]
struct Running {
    grpc: String,
    http: String,
    peer: String,
    data_dir: PathBuf,
    node_id: u64,
    boot_id: u64,
    shards: u32,
}

async fn serve(env: Env, loaded: Loaded, feature_level: u32, output: Output) -> anyhow::Result<ExitCode> {
    let set_keys = loaded.set_keys();
    let config = loaded.config;
    // Taken addresses are found out before anything is recovered.
    let listeners = Listeners::bind(&env, config.grpc, config.http).await?;
    let (grpc, http) = (listeners.grpc_addr(), listeners.http_addr());
    let node_config = NodeConfig {
        data_dir: config.data_dir.clone(),
        shards: config.shards,
        settings: config.settings.clone(),
        set_keys,
        peers: peer_config(&config)?,
        feature_level,
        observer: None,
    };
    let node = Node::start(env.clone(), node_config)
        .await
        .with_context(|| format!("the node in {} can't start", config.data_dir.display()))?;
    let node = Arc::new(node);
    let info = node.info();
    let (tls, auth) = (server_tls(&config, &node, &env).await?, config.auth_on());
    let scheme = if tls.is_some() { "https" } else { "http" };
    let running = Running {
        grpc: format!("{scheme}://{grpc}"),
        http: format!("http://{http}"),
        peer: node.peer_addr().to_string(),
        data_dir: config.data_dir,
        node_id: info.node_id,
        boot_id: info.boot_id,
        shards: info.shards,
    };
    output.result(&running, |r| {
        let Running { grpc, http, peer, data_dir, node_id, boot_id, shards } = r;
        let data_dir = data_dir.display();
        format!("node {node_id} (boot {boot_id}, {shards} shards, data in {data_dir}) serves gRPC on {grpc}, metrics and probes on {http}, peers on {peer}")
    })?;

    let drain = Duration::from_millis(config.drain_ms);
    let serve_config = ServeConfig { max_connections: config.max_connections, drain, tls, auth };
    // The reason why the node must stop at once, if there is one.
    let (fatal, mut was_fatal) = oneshot::channel();
    let stop = async {
        tokio::select! {
            reason = node.fatal() => drop(fatal.send(reason)),
            signal = signal() => tracing::info!(signal, "stopping: requests under way are finished first"),
        }
    };
    let served = api::serve(Arc::clone(&node), &env, listeners, serve_config, stop).await;
    if let Ok(reason) = was_fatal.try_recv() {
        tracing::error!(%reason, "the node must stop");
        // Nothing is written any more: what was acknowledged is durable, what was not is unknown.
        return Err(Failure::new(FATAL, format!("the node had to stop: {reason}")).into());
    }
    let closed = node.shutdown().await;
    served.and(closed)?;
    tracing::info!("stopped");
    Ok(ExitCode::SUCCESS)
}

/// Waits until somebody wants the process to end.
pub(super) async fn signal() -> &'static str {
    #[cfg(unix)]
    {
        use tokio::signal::unix::{SignalKind, signal};
        match signal(SignalKind::terminate()) {
            Ok(mut terminate) => tokio::select! {
                _ = terminate.recv() => "SIGTERM",
                _ = tokio::signal::ctrl_c() => "SIGINT",
            },
            Err(error) => {
                tracing::warn!(%error, "SIGTERM can't be caught");
                let _ = tokio::signal::ctrl_c().await;
                "SIGINT"
            }
        }
    }
    #[cfg(not(unix))]
    {
        let _ = tokio::signal::ctrl_c().await;
        "Ctrl-C"
    }
}

/// A configuration, checked and explained.
#[derive(Debug, Serialize)]
struct Checked {
    valid: bool,
    problem: Option<String>,
    values: Vec<Explained>,
}

fn describe(checked: &Checked) -> String {
    let mut table = Table::new();
    table.load_style(presets::UTF8_BORDERS_ONLY);
    table.set_header(["value", "is", "from", "meaning"]);
    for Explained { key, value, origin, meaning } in &checked.values {
        let value = match value {
            serde_json::Value::Null => "unset".to_owned(),
            serde_json::Value::String(text) => text.clone(),
            other => other.to_string(),
        };
        table.add_row([(*key).to_owned(), value, origin.clone(), (*meaning).to_owned()]);
    }
    let verdict = match &checked.problem {
        None => "the configuration is valid".to_owned(),
        Some(problem) => format!("the configuration is NOT valid: {problem}"),
    };
    format!("{table}\n{verdict}")
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;

    #[derive(Debug, clap::Parser)]
    struct Node {
        #[command(flatten)]
        args: Args,
    }

    fn flags(args: &[&str]) -> Vec<Flag> {
        Node::try_parse_from(std::iter::once("node").chain(args.iter().copied())).unwrap().args.flags()
    }

    #[test]
    fn flags_become_values_of_the_configuration() {
        let flags = flags(&["--shards", "4", "--insecure", "--log-format", "json", "--set", "settings.tick_ms=50"]);
        let loaded = config::load(None, HashMap::new(), &flags).unwrap();
        assert_eq!(loaded.config.shards, Some(4));
        assert!(loaded.config.insecure);
        assert_eq!(loaded.config.log_format, LogFormat::Json);
        assert_eq!(loaded.config.settings.tick_ms, 50);
    }

    #[test]
    fn without_flags_nothing_is_overridden() {
        assert!(flags(&[]).is_empty());
    }

    #[test]
    fn a_pair_needs_a_key() {
        assert_eq!(pair("a.b=c=d"), Ok(("a.b".into(), "c=d".into())));
        assert!(pair("a").is_err() && pair("=x").is_err());
    }

    #[test]
    fn the_check_says_every_value_and_the_verdict() {
        let flags = flags(&["--grpc", "0.0.0.0:7400", "--tls", "off"]);
        let loaded = config::load(None, HashMap::new(), &flags).unwrap();
        let problem = loaded.config.validate().err().map(|e| e.to_string());
        let text = describe(&Checked { valid: false, problem, values: loaded.explain() });
        assert!(text.contains("flag --grpc") && text.contains("settings.tick_ms"), "{text}");
        assert!(
            text.lines().last().unwrap().starts_with("the configuration is NOT valid: tls: must not be off"),
            "{text}"
        );
    }
}
