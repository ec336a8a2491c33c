//! What nodes log, with simulated time and host, for whoever looks into a run. It makes no map and draws nothing: a run
//! with logs is the same run.

use std::{
    fmt::{self, Write as _},
    io::Write as _,
};

use parking_lot::Mutex;
use tracing::{
    Event, Level, Metadata, Subscriber,
    field::{Field, Visit},
    span,
};

use crate::world::clock::true_elapsed;

/// Writes the events of our own code to standard error.
pub struct Logs {
    /// Up to this level.
    level: Level,
    /// The host whose turn it is: turmoil opens a span before each.
    host: Mutex<String>,
}

impl Logs {
    /// Writes events up to a level.
    pub fn new(level: Level) -> Self {
        Self { level, host: Mutex::default() }
    }
}

struct Line(String);

impl Visit for Line {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        // Writing to a string can't fail.
        let _ = match field.name() {
            "message" => write!(self.0, " {value:?}"),
            name => write!(self.0, " {name}={value:?}"),
        };
    }
}

impl Subscriber for Logs {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        let ours = metadata.is_event() && metadata.target().starts_with("andante");
        ours && *metadata.level() <= self.level || metadata.is_span() && metadata.target().starts_with("turmoil")
    }

    fn new_span(&self, span: &span::Attributes<'_>) -> span::Id {
        let mut host = Line(String::new());
        span.record(&mut host);
        *self.host.lock() = host.0;
        span::Id::from_u64(1)
    }

    fn record(&self, _span: &span::Id, _values: &span::Record<'_>) {}

    fn record_follows_from(&self, _span: &span::Id, _follows: &span::Id) {}

    fn event(&self, event: &Event<'_>) {
        let (at, metadata) = (true_elapsed(), event.metadata());
        let host = self.host.lock();
        let mut line = Line(format!("{:>8.3} s{host} {} {}:", at.as_secs_f64(), metadata.level(), metadata.target()));
        event.record(&mut line);
        // Nowhere is left to say that it failed.
        let _ = writeln!(std::io::stderr(), "{}", line.0);
    }

    fn enter(&self, _span: &span::Id) {}

    fn exit(&self, _span: &span::Id) {}
}
