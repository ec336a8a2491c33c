//! Logs to standard error, as text or JSON; traces by OTLP where an endpoint is configured.

use std::io::IsTerminal as _;

use anyhow::Context as _;
use opentelemetry::trace::TracerProvider as _;
use opentelemetry_otlp::{SpanExporter, WithExportConfig as _};
use opentelemetry_sdk::{Resource, trace::SdkTracerProvider};
use tracing_subscriber::{
    EnvFilter, Layer, Registry, filter::filter_fn, fmt, layer::SubscriberExt as _, util::SubscriberInitExt as _,
};

use crate::config::{Config, LogFormat};

/// What must be told to end.
#[derive(Debug, Default)]
#[must_use = "spans not sent yet are lost unless it is shut down"]
pub struct Telemetry {
    traces: Option<SdkTracerProvider>,
}

/// Starts logging for the process; panics are logged too. Call it once, inside the runtime.
///
/// # Errors
/// The filter or the endpoint makes no sense, or logging was started before.
pub fn start(config: &Config) -> anyhow::Result<Telemetry> {
    let filter = EnvFilter::try_new(&config.log_filter).context("log_filter")?;
    // Colours only where somebody sees them.
    let lines = fmt::layer().with_writer(std::io::stderr).with_ansi(std::io::stderr().is_terminal());
    let lines: Box<dyn Layer<Registry> + Send + Sync> = match config.log_format {
        LogFormat::Text => lines.with_filter(filter).boxed(),
        LogFormat::Json => lines.json().with_filter(filter).boxed(),
    };
    let traces = config.otlp_endpoint.as_deref().map(exporter).transpose()?;
    let spans = traces.as_ref().map(|traces| {
        // Our own spans, whatever the log shows; libraries' spans (HTTP/2 frames) would drown them.
        let ours = filter_fn(|metadata| metadata.target().starts_with("andante"));
        tracing_opentelemetry::layer().with_tracer(traces.tracer("andante")).with_filter(ours)
    });
    tracing_subscriber::registry().with(lines).with(spans).try_init().context("logging was started before")?;
    log_panics();
    Ok(Telemetry { traces })
}

fn exporter(endpoint: &str) -> anyhow::Result<SdkTracerProvider> {
    let exporter = SpanExporter::builder()
        .with_tonic()
        .with_endpoint(endpoint)
        .build()
        .with_context(|| format!("otlp_endpoint {endpoint}"))?;
    let resource = Resource::builder().with_service_name("andante").build();
    // Spans wait in a bounded queue; those that find it full are dropped, never a request held up.
    Ok(SdkTracerProvider::builder().with_batch_exporter(exporter).with_resource(resource).build())
}

/// A panic is an event like others, with its place; the usual output on standard error would break JSON logs.
fn log_panics() {
    std::panic::set_hook(Box::new(|panic| {
        let place = panic.location().map(ToString::to_string).unwrap_or_default();
        let message = panic.payload_as_str().unwrap_or("no message");
        let backtrace = std::backtrace::Backtrace::capture();
        tracing::error!(%place, %message, %backtrace, "panic");
    }));
}

impl Telemetry {
    /// Sends what is left.
    pub fn shutdown(self) {
        if let Some(traces) = self.traces
            && let Err(error) = traces.shutdown()
        {
            tracing::warn!(%error, "the last spans could not be sent");
        }
    }
}
