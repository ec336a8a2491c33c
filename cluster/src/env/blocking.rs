//! Threads for work that blocks.

use std::{io, thread};

use tokio::sync::oneshot;

/// Runs work that blocks, off the async threads.
pub trait Blocking: Send + Sync + 'static {
    /// Starts a long-lived worker. It ends by itself when its queue closes.
    fn spawn(&self, name: String, work: Box<dyn FnOnce() + Send>) -> io::Result<()>;

    /// Runs a short blocking task.
    fn run(&self, work: Box<dyn FnOnce() + Send>);
}

impl dyn Blocking {
    /// Runs a short blocking task and waits for its result. `None`: the task panicked, or the runtime is going down.
    pub async fn call<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> Option<T> {
        let (tx, rx) = oneshot::channel();
        self.run(Box::new(move || drop(tx.send(work()))));
        rx.await.ok()
    }
}

/// OS threads and tokio's blocking pool.
#[derive(Debug, Default)]
pub struct OsThreads;

impl Blocking for OsThreads {
    fn spawn(&self, name: String, work: Box<dyn FnOnce() + Send>) -> io::Result<()> {
        thread::Builder::new().name(name).spawn(work).map(drop)
    }

    fn run(&self, work: Box<dyn FnOnce() + Send>) {
        drop(tokio::task::spawn_blocking(work));
    }
}
