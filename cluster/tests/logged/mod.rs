//! What operators read: the warnings that this thread logs, without those of consensus, as nodes do by default.

use std::{io, sync::Arc};

use parking_lot::Mutex;
use tracing::subscriber::DefaultGuard;
use tracing_subscriber::{EnvFilter, fmt::MakeWriter};

/// Listens while it is there.
pub(crate) struct Logged {
    text: Text,
    _listening: DefaultGuard,
}

#[derive(Clone, Default)]
struct Text(Arc<Mutex<Vec<u8>>>);

impl Logged {
    pub(crate) fn start() -> Self {
        let text = Text::default();
        let filter = EnvFilter::new("warn,openraft=error");
        let lines = tracing_subscriber::fmt().with_env_filter(filter).with_ansi(false).with_writer(text.clone());
        Self { text, _listening: tracing::subscriber::set_default(lines.finish()) }
    }

    /// The lines since the last time.
    pub(crate) fn take(&self) -> Vec<String> {
        let text = std::mem::take(&mut *self.text.0.lock());
        String::from_utf8_lossy(&text).lines().map(str::to_owned).collect()
    }
}

impl io::Write for Text {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl<'a> MakeWriter<'a> for Text {
    type Writer = Self;

    fn make_writer(&'a self) -> Self {
        self.clone()
    }
}
