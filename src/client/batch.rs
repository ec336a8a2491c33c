//! Outcomes in batches: few calls for many events, within a bound of memory.

use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot},
    task::{self, JoinHandle, JoinSet},
    time::{Instant, sleep_until},
};

use super::{Client, Reported, config::Deadlines, error::CallError};
use crate::{
    api::EVENTS_MAX,
    v1::{OutcomeEvent, OutcomeStatus},
};

/// What an event costs beside its token, in bytes: itself, its receipt, its places in queues. An estimate.
const OVERHEAD_BYTES: usize = 256;

/// How outcomes are gathered. Values out of range are cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BatcherConfig {
    /// Events of a batch; at most 1,000.
    pub batch_events: usize,
    /// Longest time an event waits for others to come along.
    pub max_age: Duration,
    /// Batches in flight at once.
    pub batches_in_flight: usize,
    /// Events taken and not settled, at most: waiting and in flight. With it [`OutcomeBatcher::send`] waits.
    pub pending_events: usize,
    /// The same in bytes.
    pub pending_bytes: usize,
    /// How long an event is tried, its calls all together: longer than a restart takes.
    pub deadline: Duration,
}

impl Default for BatcherConfig {
    fn default() -> Self {
        Self {
            batch_events: 500,
            max_age: Duration::from_millis(10),
            batches_in_flight: 4,
            pending_events: 10_000,
            pending_bytes: 8 << 20,
            deadline: Duration::from_secs(60),
        }
    }
}

/// The batcher is closed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the batcher is closed")]
pub struct Closed;

/// Why an event was not taken at once. It comes back.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum TrySendError {
    /// As much is pending as may be.
    #[error("too many outcomes are pending")]
    Full(OutcomeEvent),
    /// The batcher is closed.
    #[error("the batcher is closed")]
    Closed(OutcomeEvent),
}

/// What becomes of one event: resolves once that is known, or the deadline has passed (see [`Reported::open`]). May be
/// dropped; the event is reported all the same.
#[derive(Debug)]
pub struct Receipt(oneshot::Receiver<Result<Reported, CallError>>);

impl Future for Receipt {
    type Output = Result<Reported, CallError>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        Pin::new(&mut self.0).poll(cx).map(|fate| {
            // The runtime ended under it: nobody learned what became of the event.
            fate.unwrap_or_else(|_| {
                let detail = "the batcher's task ended".to_owned();
                Ok(Reported { status: OutcomeStatus::Unknown, detail, maybe_applied: true, tries: 0 })
            })
        })
    }
}

/// One event with its place in the bounds.
struct Item {
    event: OutcomeEvent,
    fate: oneshot::Sender<Result<Reported, CallError>>,
    _place: (OwnedSemaphorePermit, OwnedSemaphorePermit),
}

enum Message {
    Item(Item),
    /// Answered once everything before it is settled.
    Flush(oneshot::Sender<()>),
}

/// Gathers outcomes, reports them in batches, and tells what became of each. Never drops one silently: an event is
/// taken, or refused, or waits; what is taken is reported until its fate is known or its deadline has passed.
///
/// Shared by reference or in an `Arc`. If it is dropped without [`OutcomeBatcher::close`], what is pending is still
/// reported, as long as the runtime lives.
pub struct OutcomeBatcher {
    queue: mpsc::UnboundedSender<Message>,
    events: Arc<Semaphore>,
    bytes: Arc<Semaphore>,
    events_max: usize,
    bytes_max: u32,
    worker: JoinHandle<()>,
}

impl OutcomeBatcher {
    /// Starts the task that reports; must be called within a tokio runtime.
    pub fn new(client: Client, config: BatcherConfig) -> Self {
        let config = BatcherConfig {
            batch_events: config.batch_events.clamp(1, EVENTS_MAX),
            batches_in_flight: config.batches_in_flight.max(1),
            pending_events: config.pending_events.clamp(1, Semaphore::MAX_PERMITS),
            pending_bytes: config.pending_bytes.clamp(1, u32::MAX as usize),
            ..config
        };
        let deadline = config.deadline.max(Duration::from_millis(1));
        let client = client.with_deadlines(Deadlines { report: deadline, ..client.deadlines });
        // Bounded by the two semaphores.
        let (queue, taken) = mpsc::unbounded_channel();
        let worker = Worker {
            client,
            config,
            waiting: Vec::new(),
            due: Instant::now(),
            next_batch: 0,
            in_flight: Vec::new(),
            flushes: Vec::new(),
            calls: JoinSet::new(),
        };
        Self {
            queue,
            events: Arc::new(Semaphore::new(config.pending_events)),
            bytes: Arc::new(Semaphore::new(config.pending_bytes)),
            events_max: config.pending_events,
            bytes_max: config.pending_bytes as u32,
            worker: tokio::spawn(worker.run(taken)),
        }
    }

    /// Hands over an event, waiting for room where there is none.
    ///
    /// # Errors
    /// The batcher is closed.
    pub async fn send(&self, event: OutcomeEvent) -> Result<Receipt, Closed> {
        let cost = self.cost(&event);
        let bytes = Arc::clone(&self.bytes).acquire_many_owned(cost).await.map_err(|_| Closed)?;
        let one = Arc::clone(&self.events).acquire_owned().await.map_err(|_| Closed)?;
        self.enqueue(event, (one, bytes)).map_err(|_| Closed)
    }

    /// Hands over an event if there is room for it now.
    ///
    /// # Errors
    /// There is none, or the batcher is closed; the event comes back.
    pub fn try_send(&self, event: OutcomeEvent) -> Result<Receipt, TrySendError> {
        if self.queue.is_closed() {
            return Err(TrySendError::Closed(event));
        }
        let cost = self.cost(&event);
        let bytes = Arc::clone(&self.bytes).try_acquire_many_owned(cost);
        let one = Arc::clone(&self.events).try_acquire_owned();
        match (one, bytes) {
            (Ok(one), Ok(bytes)) => self.enqueue(event, (one, bytes)).map_err(TrySendError::Closed),
            _ => Err(TrySendError::Full(event)),
        }
    }

    /// Reports what waits, and returns when everything that was handed over before is settled.
    pub async fn flush(&self) {
        let (done, settled) = oneshot::channel();
        if self.queue.send(Message::Flush(done)).is_ok() {
            // An error means that the worker is gone, and with it everything that could be waited for.
            let _gone = settled.await;
        }
    }

    /// Takes nothing more, and returns when everything is settled.
    pub async fn close(self) {
        let Self { queue, worker, .. } = self;
        drop(queue);
        // It ends by itself; a panic in it has told every receipt.
        let _ended = worker.await;
    }

    /// Events that are taken and not settled.
    pub fn pending_events(&self) -> usize {
        self.events_max - self.events.available_permits()
    }

    /// A token larger than all the room takes all the room.
    fn cost(&self, event: &OutcomeEvent) -> u32 {
        u32::try_from(event.token.len() + OVERHEAD_BYTES).unwrap_or(u32::MAX).min(self.bytes_max)
    }

    fn enqueue(
        &self,
        event: OutcomeEvent,
        place: (OwnedSemaphorePermit, OwnedSemaphorePermit),
    ) -> Result<Receipt, OutcomeEvent> {
        let (fate, receipt) = oneshot::channel();
        match self.queue.send(Message::Item(Item { event, fate, _place: place })) {
            Ok(()) => Ok(Receipt(receipt)),
            Err(mpsc::error::SendError(Message::Item(item))) => Err(item.event),
            Err(mpsc::error::SendError(Message::Flush(_))) => unreachable!("an item was sent"),
        }
    }
}

/// The task that reports.
struct Worker {
    client: Client,
    config: BatcherConfig,
    /// The next batch.
    waiting: Vec<Item>,
    /// When it goes, full or not.
    due: Instant,
    next_batch: u64,
    /// Batches under way, by their tasks.
    in_flight: Vec<(task::Id, u64)>,
    /// Who waits for the batches below a number.
    flushes: Vec<(u64, oneshot::Sender<()>)>,
    calls: JoinSet<()>,
}

impl Worker {
    async fn run(mut self, mut taken: mpsc::UnboundedReceiver<Message>) {
        let mut open = true;
        loop {
            self.dispatch(open);
            self.answer_flushes();
            if !open && self.waiting.is_empty() && self.calls.is_empty() {
                return;
            }
            let room = self.waiting.len() < self.config.batch_events;
            let free = self.calls.len() < self.config.batches_in_flight;
            tokio::select! {
                message = taken.recv(), if open && room => match message {
                    Some(message) => self.take(message, &mut taken),
                    None => open = false,
                },
                Some(done) = self.calls.join_next_with_id(), if !self.calls.is_empty() => {
                    // A call that panicked has told its receipts by dropping them.
                    let ended = done.map_or_else(|error| error.id(), |(id, ())| id);
                    self.in_flight.retain(|(id, _)| *id != ended);
                }
                () = sleep_until(self.due), if free && room && !self.waiting.is_empty() => {}
            }
        }
    }

    /// Takes over a message and those behind it, up to a full batch.
    fn take(&mut self, message: Message, taken: &mut mpsc::UnboundedReceiver<Message>) {
        let mut next = Some(message);
        while let Some(message) = next {
            match message {
                Message::Item(item) => {
                    if self.waiting.is_empty() {
                        self.due = Instant::now() + self.config.max_age;
                    }
                    self.waiting.push(item);
                }
                Message::Flush(done) => {
                    self.flushes.push((self.next_batch + u64::from(!self.waiting.is_empty()), done));
                }
            }
            next = if self.waiting.len() < self.config.batch_events { taken.try_recv().ok() } else { None };
        }
    }

    /// Sends the waiting batch if it is full, old or wanted, and there is room for it.
    fn dispatch(&mut self, open: bool) {
        let wanted = !open
            || self.waiting.len() >= self.config.batch_events
            || self.due <= Instant::now()
            || self.flushes.iter().any(|(below, _)| *below > self.next_batch);
        if self.waiting.is_empty() || !wanted || self.calls.len() >= self.config.batches_in_flight {
            return;
        }
        let items = std::mem::take(&mut self.waiting);
        let call = self.calls.spawn(report(self.client.clone(), items));
        self.in_flight.push((call.id(), self.next_batch));
        self.next_batch += 1;
    }

    fn answer_flushes(&mut self) {
        let oldest = self.in_flight.iter().map(|(_, batch)| *batch).min().unwrap_or(self.next_batch);
        for (_, done) in self.flushes.extract_if(.., |(below, _)| *below <= oldest) {
            // Whoever asked may have gone.
            let _gone = done.send(());
        }
    }
}

/// One batch.
async fn report(client: Client, items: Vec<Item>) {
    let events = items.iter().map(|item| item.event.clone()).collect();
    let answers: Vec<Result<Reported, CallError>> = match client.report(events).await {
        Ok(results) => results.into_iter().map(Ok).collect(),
        Err(error) => items.iter().map(|_| Err(error.clone())).collect(),
    };
    for (item, answer) in items.into_iter().zip(answers) {
        // Whoever handed it over may not want to know.
        let _gone = item.fate.send(answer);
    }
}
