//! What waits to be sent to one peer.

use std::collections::VecDeque;

use crate::proto::{Frame, frame::Body};

/// Bytes of frames that wait for one peer: what a slow network may pile up. Many times what a link of 10 Gbit/s has
/// under way.
const MAX_BYTES: usize = 64 << 20;
/// Frames that wait for one peer: every group may have all its calls and answers there.
const MAX_FRAMES: usize = 64 << 10;
/// Bytes of frames in one message: enough to spread what a message costs, little enough that a vote that comes just
/// after it goes out soon.
pub(super) const BATCH_BYTES: usize = 256 << 10;
/// Estimate of what a frame takes beside its entries.
const FRAME_BYTES: usize = 64;

/// The queue is full.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Full;

/// Frames in the order they are to be sent: votes, heartbeats and answers first, then entries.
#[derive(Default)]
pub(super) struct Outbox {
    urgent: VecDeque<Frame>,
    bulk: VecDeque<Frame>,
    bytes: usize,
}

impl Outbox {
    pub(super) fn push(&mut self, frame: Frame, urgent: bool) -> Result<(), Full> {
        let bytes = size(&frame);
        // One that alone is too big must still be sent some time.
        if self.len() >= MAX_FRAMES || (self.bytes > 0 && self.bytes + bytes > MAX_BYTES) {
            return Err(Full);
        }
        self.bytes += bytes;
        if urgent {
            self.urgent.push_back(frame)
        } else {
            self.bulk.push_back(frame)
        }
        Ok(())
    }

    /// The next message: frames of up to [`BATCH_BYTES`], or a single bigger one. Empty: nothing waits.
    pub(super) fn next_batch(&mut self) -> Vec<Frame> {
        let (mut batch, mut bytes) = (Vec::new(), 0);
        loop {
            let queue = if self.urgent.is_empty() { &mut self.bulk } else { &mut self.urgent };
            let Some(next) = queue.front().map(size) else { break };
            if bytes > 0 && bytes + next > BATCH_BYTES {
                break;
            }
            batch.extend(queue.pop_front());
            bytes += next;
        }
        self.bytes -= bytes;
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
        assert_eq!(calls(&outbox.next_batch()), [10, 11, 12, 0, 1, 2]);
        assert!(outbox.next_batch().is_empty());
        assert_eq!(outbox.bytes, 0);
    }

    #[test]
    fn a_message_is_bounded_and_a_bigger_frame_goes_alone() {
        let mut outbox = Outbox::default();
        for (call, bytes) in [(0, 200 << 10), (1, 100 << 10), (2, 1 << 20), (3, 10)] {
            outbox.push(entries(call, bytes), false).expect("room");
        }
        let batches: Vec<_> = std::iter::repeat_with(|| calls(&outbox.next_batch())).take(4).collect();
        assert_eq!(batches, [vec![0], vec![1], vec![2], vec![3]]);
    }

    #[test]
    fn what_waits_is_bounded_in_bytes_and_frames() {
        let mut outbox = Outbox::default();
        outbox.push(entries(0, MAX_BYTES), false).expect("one is always taken");
        assert_eq!(outbox.push(entries(1, 1), false), Err(Full));
        outbox.clear();
        for call in 0..MAX_FRAMES as u64 {
            outbox.push(answer(call), true).expect("room");
        }
        assert_eq!(outbox.push(answer(0), true), Err(Full));
    }
}
