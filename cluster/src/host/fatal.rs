//! The node's one-way street: a failed disk or a broken invariant stops it.

use std::fmt::Display;

use tokio::sync::watch;

/// Set once, by whoever finds out that this node can't go on. Clones share it.
#[derive(Debug, Clone)]
pub struct Fatal(watch::Sender<Option<String>>);

impl Default for Fatal {
    fn default() -> Self {
        Self(watch::Sender::new(None))
    }
}

impl Fatal {
    /// The node can't go on. The first reason stays.
    pub fn fail(&self, why: impl Display) {
        let why = why.to_string();
        tracing::error!(%why, "this node can't go on");
        self.0.send_if_modified(|reason| {
            let first = reason.is_none();
            if first {
                *reason = Some(why);
            }
            first
        });
    }

    /// Why the node can't go on.
    pub fn reason(&self) -> Option<String> {
        self.0.borrow().clone()
    }

    /// Whether the node can't go on.
    pub fn is_set(&self) -> bool {
        self.0.borrow().is_some()
    }

    /// Becomes `Some` when the node can't go on.
    pub fn watch(&self) -> watch::Receiver<Option<String>> {
        self.0.subscribe()
    }
}
