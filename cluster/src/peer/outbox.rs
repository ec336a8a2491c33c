//! What waits to be sent to one peer.

use std::collections::VecDeque;

use crate::proto::{Frame, frame::Body};

/// Bytes of entries and questions that wait for one peer: what a slow network may pile up. Half a second of 1 Gbit/s.
const MAX_BYTES: usize = 64 << 20;
/// Frames of each urgency that wait for one peer: every group may have all its calls and answers there.
const MAX_FRAMES: usize = 64 << 10;
/// Bytes of frames in one message: enough to spread what a message costs, little enough that a vote that comes just
/// after it goes out soon.
pub(super) const BATCH_BYTES: usize = 256 << 10;
/// Estimate of what a frame takes beside its entries.
const FRAME_BYTES: usize = 64;

/// The queue is full.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Full;

/// Frames in the order they are to be sent: votes, heartbeats and answers first, then entries and questions.
#[derive(Default)]
pub(super) struct Outbox {
    urgent: VecDeque<Frame>,
    bulk: VecDeque<Frame>,
    /// Bytes of `bulk`.
    bytes: usize,
}

impl Outbox {
    pub(super) fn push(&mut self, frame: Frame, urgent: bool) -> Result<(), Full> {
        let queue = if urgent { &mut self.urgent } else { &mut self.bulk };
        if queue.len() >= MAX_FRAMES {
            return Err(Full);
        }
        if !urgent {
            let bytes = size(&frame);
            // One that alone is too big must still be sent some time.
            if self.bytes > 0 && self.bytes + bytes > MAX_BYTES {
                return Err(Full);
            }
            self.bytes += bytes;
        }
        queue.push_back(frame);
        Ok(())
    }

    /// The next message: frames of up to [`BATCH_BYTES`], or a single bigger one. Empty: nothing waits. Entries that
    /// are not `wanted` any more, by their call, are left out: on a slow link they would be sent again and again.
    pub(super) fn next_batch(&mut self, wanted: impl Fn(u64) -> bool) -> Vec<Frame> {
        let (mut batch, mut bytes) = (Vec::new(), 0);
        while let Some(next) = self.urgent.front().map(size)
            && (bytes == 0 || bytes + next <= BATCH_BYTES)
        {
            batch.extend(self.urgent.pop_front());
            bytes += next;
        }
        while self.urgent.is_empty()
            && let Some((call, next)) = self.bulk.front().map(|frame| (frame.call, size(frame)))
            && (bytes == 0 || bytes + next <= BATCH_BYTES)
        {
            let frame = self.bulk.pop_front();
            self.bytes -= next;
            if wanted(call) {
                batch.extend(frame);
                bytes += next;
            }
        }
        batch
    }

    pub(super) fn len(&self) -> usize {
        self.urgent.len() + self.bulk.len()
    }

    pub(super) fn clear(&mut self) {
        *self = Self::default();
    }
}

fn size(frame: &Frame) -> usize {
    let entries = match &frame.body {
        Some(Body::Append(append)) => append.entries.iter().map(|entry| entry.len() + 8).sum(),
        Some(Body::Leads(leads)) => leads.groups.len() * 16,
        Some(Body::Failed(why)) => why.len(),
        Some(Body::Question(bytes) | Body::Reply(bytes)) => bytes.len(),
        _ => 0,
    };
    FRAME_BYTES + entries
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::proto::{AppendCall, TransferLeaderAnswer};

    fn entries(call: u64, bytes: usize) -> Frame {
        let entries = vec![Bytes::from(vec![0; bytes])];
        let append = AppendCall { entries, ..AppendCall::default() };
        Frame { group: 1, call, body: Some(Body::Append(append)) }
    }

    fn answer(call: u64) -> Frame {
        Frame { group: 1, call, body: Some(Body::TransferLeaderAnswer(TransferLeaderAnswer::default())) }
    }

    fn calls(batch: &[Frame]) -> Vec<u64> {
        batch.iter().map(|frame| frame.call).collect()
    }

    #[test]
    fn what_is_urgent_goes_first_and_each_kind_keeps_its_order() {
        let mut outbox = Outbox::default();
        for call in 0..3 {
            outbox.push(entries(call, 10), false).expect("room");
            outbox.push(answer(10 + call), true).expect("room");
        }
        assert_eq!(calls(&outbox.next_batch(|_| true)), [10, 11, 12, 0, 1, 2]);
        assert!(outbox.next_batch(|_| true).is_empty());
        assert_eq!(outbox.bytes, 0);
    }

    #[test]
    fn a_message_is_bounded_and_a_bigger_frame_goes_alone() {
        let mut outbox = Outbox::default();
        for (call, bytes) in [(0, 200 << 10), (1, 100 << 10), (2, 1 << 20), (3, 10)] {
            outbox.push(entries(call, bytes), false).expect("room");
        }
        let batches: Vec<_> = std::iter::repeat_with(|| calls(&outbox.next_batch(|_| true))).take(4).collect();
        assert_eq!(batches, [vec![0], vec![1], vec![2], vec![3]]);
    }

    #[test]
    fn entries_that_nobody_waits_for_any_more_are_not_sent() {
        let mut outbox = Outbox::default();
        for call in 0..4 {
            outbox.push(entries(call, 1_000), false).expect("room");
        }
        outbox.push(answer(9), true).expect("room");
        assert_eq!(calls(&outbox.next_batch(|call| call % 2 == 1)), [9, 1, 3]);
        assert_eq!((outbox.len(), outbox.bytes), (0, 0));
    }

    #[test]
    fn what_waits_is_bounded_in_bytes_and_frames() {
        let mut outbox = Outbox::default();
        outbox.push(entries(0, MAX_BYTES), false).expect("one is always taken");
        assert_eq!(outbox.push(entries(1, 1), false), Err(Full));
        outbox.push(answer(2), true).expect("entries never keep out a vote");
        outbox.clear();
        for call in 0..MAX_FRAMES as u64 {
            outbox.push(answer(call), true).expect("room");
        }
        assert_eq!(outbox.push(answer(0), true), Err(Full));
    }
}
