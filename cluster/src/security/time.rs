//! The node's clock, for rustls.

use std::{fmt, sync::Arc, time::Duration};

use rustls::{pki_types::UnixTime, time_provider::TimeProvider};

use crate::env::Clock;

/// Certificates are judged by the node's own clock.
pub(super) struct ClockTime(pub(super) Arc<dyn Clock>);

impl TimeProvider for ClockTime {
    fn current_time(&self) -> Option<UnixTime> {
        Some(UnixTime::since_unix_epoch(Duration::from_millis(self.0.now_ms())))
    }
}

impl fmt::Debug for ClockTime {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ClockTime")
    }
}
