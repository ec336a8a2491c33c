//! What a cell counts between two ticks of its actor.

use std::sync::atomic::{AtomicU64, Ordering};

/// Why an opportunity that the multiplier wanted came to nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lost {
    /// No token to hand out, or no actor to stand behind it.
    Unserved,
    /// The listener has had enough.
    FrequencyCap,
    /// Other offers took the slots.
    Slot,
    /// The reply had its share of promoted tracks.
    PromotedShare,
}

/// Counters on the score path; relaxed, since only their sums matter.
#[derive(Debug, Default)]
pub struct Traffic {
    opportunities: AtomicU64,
    relevance_sum_bits: AtomicU64,
    price_sum_micros: AtomicU64,
    takes: AtomicU64,
    taken_micros: AtomicU64,
    unserved: AtomicU64,
    frequency_cap: AtomicU64,
    slot: AtomicU64,
    promoted_share: AtomicU64,
    below_floor: AtomicU64,
}

/// The counts of one tick.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Counts {
    /// Candidates on target and at or above the relevance floor, in requests for placements.
    pub opportunities: u64,
    /// Sum of their relevance.
    pub relevance_sum: f64,
    /// Sum of their prices, micros.
    pub price_sum_micros: u64,
    /// Tokens taken.
    pub takes: u64,
    /// Their prices, micros.
    pub taken_micros: u64,
    /// [`Lost::Unserved`]
    pub unserved: u64,
    /// [`Lost::FrequencyCap`]
    pub frequency_cap: u64,
    /// [`Lost::Slot`]
    pub slot: u64,
    /// [`Lost::PromotedShare`]
    pub promoted_share: u64,
    /// Candidates on target but below the relevance floor: no opportunities.
    pub below_floor: u64,
}

fn add_f64(bits: &AtomicU64, x: f64) {
    let mut old = bits.load(Ordering::Relaxed);
    loop {
        let new = (f64::from_bits(old) + x).to_bits();
        match bits.compare_exchange_weak(old, new, Ordering::Relaxed, Ordering::Relaxed) {
            Ok(_) => return,
            Err(seen) => old = seen,
        }
    }
}

impl Traffic {
    /// An opportunity.
    pub fn opportunity(&self, relevance: f64, price_micros: u64) {
        self.opportunities.fetch_add(1, Ordering::Relaxed);
        add_f64(&self.relevance_sum_bits, relevance);
        self.price_sum_micros.fetch_add(price_micros, Ordering::Relaxed);
    }

    /// A token was taken.
    pub fn taken(&self, price_micros: u64) {
        self.takes.fetch_add(1, Ordering::Relaxed);
        self.taken_micros.fetch_add(price_micros, Ordering::Relaxed);
    }

    /// An opportunity that the multiplier wanted came to nothing.
    pub fn lost(&self, to: Lost) {
        self.lost_many(to, 1);
    }

    /// So many of them did.
    pub fn lost_many(&self, to: Lost, count: u32) {
        let counter = match to {
            Lost::Unserved => &self.unserved,
            Lost::FrequencyCap => &self.frequency_cap,
            Lost::Slot => &self.slot,
            Lost::PromotedShare => &self.promoted_share,
        };
        counter.fetch_add(count.into(), Ordering::Relaxed);
    }

    /// A candidate was below the floor.
    pub fn below_floor(&self) {
        self.below_floor.fetch_add(1, Ordering::Relaxed);
    }

    /// Reads the counts and starts anew. Counts of a request under way may fall into either tick.
    pub fn drain(&self) -> Counts {
        let take = |counter: &AtomicU64| counter.swap(0, Ordering::Relaxed);
        Counts {
            opportunities: take(&self.opportunities),
            relevance_sum: f64::from_bits(take(&self.relevance_sum_bits)),
            price_sum_micros: take(&self.price_sum_micros),
            takes: take(&self.takes),
            taken_micros: take(&self.taken_micros),
            unserved: take(&self.unserved),
            frequency_cap: take(&self.frequency_cap),
            slot: take(&self.slot),
            promoted_share: take(&self.promoted_share),
            below_floor: take(&self.below_floor),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn draining_reads_everything_once() {
        let traffic = Traffic::default();
        traffic.opportunity(1.5, 2);
        traffic.opportunity(0.25, 2);
        traffic.taken(7);
        traffic.lost(Lost::Slot);
        let counts = traffic.drain();
        assert_eq!((counts.opportunities, counts.relevance_sum, counts.price_sum_micros), (2, 1.75, 4));
        assert_eq!((counts.takes, counts.taken_micros, counts.slot), (1, 7, 1));
        assert_eq!(traffic.drain(), Counts::default());
    }
}
