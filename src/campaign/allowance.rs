//! One allowance: a numbered block of tokens whose money is set aside, with what became of each token.
//!
//! The bitmaps are exact: settling and releasing are idempotent by sequence number, without a window.

use super::{
    bitmap::Bitmap,
    limits::*,
    proto::{self, Holder},
};

/// A block of tokens. The book changes it; everybody else reads.
#[derive(Debug, Clone, PartialEq)]
pub struct Allowance {
    /// From 1, per campaign and incarnation, never reused.
    pub number: u32,
    /// Tokens; sequence numbers are below it. Only a shrink lowers it.
    pub n: u32,
    /// Price of each, frozen.
    pub price_micros: u64,
    /// Hold time, frozen.
    pub hold_ms: u64,
    /// The only one who hands them out.
    pub holder: Holder,
    /// When it was granted.
    pub granted_ms: u64,
    /// Last moment at which tokens may be handed out.
    pub issue_until_ms: u64,
    /// Shard time of its closing; 0 while it is open.
    pub closed_ms: u64,
    /// How many tokens were settled.
    pub settled_count: u32,
    /// How many tokens were released.
    pub released_count: u32,
    settled: Bitmap,
    released: Bitmap,
    notes: [Bitmap; Note::COUNT],
    /// The book's generation of changes it was last written in; not part of the state.
    pub(super) dirty_in: u64,
}

/// What is noted about a token beside its money, once each.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Note {
    Impression,
    Stream,
    ShortStream,
    Skip,
    Save,
}

impl Note {
    const COUNT: usize = 5;
}

/// Where the money of one token stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum TokenState {
    Outstanding,
    Settled,
    Released,
}

impl Allowance {
    /// A fresh one.
    pub(super) fn new(number: u32, n: u32, price_micros: u64, hold_ms: u64, holder: Holder, times: Times) -> Self {
        Self {
            number,
            n,
            price_micros,
            hold_ms,
            holder,
            granted_ms: times.granted_ms,
            issue_until_ms: times.issue_until_ms,
            closed_ms: 0,
            settled_count: 0,
            released_count: 0,
            settled: Bitmap::default(),
            released: Bitmap::default(),
            notes: Default::default(),
            dirty_in: 0,
        }
    }

    /// Whether it may still settle.
    pub fn is_open(&self) -> bool {
        self.closed_ms == 0
    }

    /// Tokens neither settled nor released.
    pub fn outstanding(&self) -> u32 {
        self.n - self.settled_count - self.released_count
    }

    /// Money of the outstanding tokens.
    pub fn outstanding_micros(&self) -> u64 {
        u64::from(self.outstanding()) * self.price_micros
    }

    /// When the last promise made with it has passed, without any margin.
    pub fn promised_until_ms(&self) -> u64 {
        self.issue_until_ms + self.hold_ms
    }

    /// From when on it is forgotten, without margin and retry window. An allowance that closed early stays until its
    /// regular end at least: a save may come long after the stream that completed it.
    pub(super) fn kept_until_ms(&self) -> u64 {
        self.promised_until_ms().max(self.closed_ms)
    }

    /// Where the money of one of its tokens stands.
    pub(super) fn token(&self, sequence: u32) -> TokenState {
        if self.settled.get(sequence) {
            TokenState::Settled
        } else if self.released.get(sequence) {
            TokenState::Released
        } else {
            TokenState::Outstanding
        }
    }

    /// Whether a token was settled.
    pub fn is_settled(&self, sequence: u32) -> bool {
        self.settled.get(sequence)
    }

    /// Marks an outstanding token as settled.
    pub(super) fn settle(&mut self, sequence: u32) {
        assert!(self.is_open() && sequence < self.n, "only tokens of open allowances settle");
        assert!(self.token(sequence) == TokenState::Outstanding && self.settled.set(sequence), "a token settles once");
        self.settled_count += 1;
    }

    /// Marks an outstanding token as released.
    pub(super) fn release(&mut self, sequence: u32) {
        assert!(self.is_open() && sequence < self.n, "only tokens of open allowances are released");
        assert!(self.token(sequence) == TokenState::Outstanding && self.released.set(sequence), "released once");
        self.released_count += 1;
    }

    /// Notes something about a token; false if it was noted before.
    pub(super) fn note(&mut self, note: Note, sequence: u32) -> bool {
        assert!(sequence < self.n, "only tokens that exist are noted");
        self.notes[note as usize].set(sequence)
    }

    /// Lowers n to `issued`, but never below a token that has come back in whatever way: that one was evidently handed
    /// out. Returns how many outstanding tokens are gone.
    pub(super) fn shrink(&mut self, issued: u32) -> u32 {
        let seen = self.bitmaps().map(Bitmap::end).max().unwrap_or(0);
        let n = issued.max(seen).min(self.n);
        let gone = self.n - n;
        self.n = n;
        gone
    }

    /// All bitmaps, in the order of the record.
    fn bitmaps(&self) -> impl Iterator<Item = &Bitmap> {
        [&self.settled, &self.released].into_iter().chain(&self.notes)
    }

    /// Its record, and what replies carry.
    pub fn to_proto(&self, campaign: u64, incarnation: u32) -> proto::Allowance {
        let note = |note: Note| self.notes[note as usize].as_bytes().to_vec();
        proto::Allowance {
            campaign,
            incarnation,
            number: self.number,
            n: self.n,
            price_micros: self.price_micros,
            hold_ms: self.hold_ms,
            holder: Some(self.holder),
            granted_ms: self.granted_ms,
            issue_until_ms: self.issue_until_ms,
            closed_ms: self.closed_ms,
            settled: self.settled.as_bytes().to_vec(),
            released: self.released.as_bytes().to_vec(),
            impressions: note(Note::Impression),
            streams: note(Note::Stream),
            short_streams: note(Note::ShortStream),
            skips: note(Note::Skip),
            saves: note(Note::Save),
        }
    }

    /// From its record.
    ///
    /// # Errors
    /// What is wrong with the record.
    pub(super) fn from_proto(record: proto::Allowance) -> Result<Self, String> {
        let settled = Bitmap::from_bytes(record.settled);
        let released = Bitmap::from_bytes(record.released);
        let allowance = Self {
            number: record.number,
            n: record.n,
            price_micros: record.price_micros,
            hold_ms: record.hold_ms,
            holder: record.holder.ok_or("an allowance has no holder")?,
            granted_ms: record.granted_ms,
            issue_until_ms: record.issue_until_ms,
            closed_ms: record.closed_ms,
            settled_count: settled.count(),
            released_count: released.count(),
            settled,
            released,
            notes: [record.impressions, record.streams, record.short_streams, record.skips, record.saves]
                .map(Bitmap::from_bytes),
            dirty_in: 0,
        };
        allowance.check()?;
        Ok(allowance)
    }

    /// Its own invariants.
    ///
    /// # Errors
    /// The one that is broken.
    pub(super) fn check(&self) -> Result<(), String> {
        let number = self.number;
        let held = self.settled_count.checked_add(self.released_count);
        for (holds, broken) in [
            (number >= 1, "a number from 1"),
            (self.n <= ALLOWANCE_TOKENS_MAX, "not too many tokens"),
            (self.bitmaps().all(|bitmap| bitmap.end() <= self.n), "no bit beyond n"),
            (self.settled.count() == self.settled_count, "as many settled bits as counted"),
            (self.released.count() == self.released_count, "as many released bits as counted"),
            (self.settled.is_disjoint(&self.released), "no token both settled and released"),
            (held.is_some_and(|held| held <= self.n), "not more settled and released than n"),
            (!self.is_open() || held != Some(self.n), "an open one has something outstanding"),
            (self.price_micros >= 1 && self.price_micros <= MICROS_MAX, "a price"),
            (self.price_micros.saturating_mul(u64::from(self.n)) <= MICROS_MAX, "not worth more than any budget"),
            (self.closed_ms <= TIME_MAX_MS, "a sane time of closing"),
            (self.issue_until_ms <= TIME_MAX_MS && self.hold_ms <= HOLD_MAX_MS, "sane times"),
        ] {
            if !holds {
                return Err(format!("allowance {number}: {broken}"));
            }
        }
        Ok(())
    }
}

/// When an allowance was granted, and until when its tokens may be handed out.
#[derive(Debug, Clone, Copy)]
pub(super) struct Times {
    pub(super) granted_ms: u64,
    pub(super) issue_until_ms: u64,
}

/// How many tokens to ask for: never more than half of what is free (what a lost process can strand), except for the
/// last one; 0 if nothing is free now. `pace_share_tokens` is what the pace lets one allowance's life hand out.
pub fn grant_size(free_micros: u64, price_micros: u64, pace_share_tokens: u64) -> u32 {
    let affordable = free_micros.checked_div(price_micros).unwrap_or(0);
    let n = affordable.min(pace_share_tokens.min(affordable / 2).max(1));
    n.min(u64::from(ALLOWANCE_TOKENS_MAX)) as u32
}

/// How long an allowance's tokens are handed out: long enough for some takes and not to rotate all the time, short
/// against the hold, since both strand money.
pub fn allowance_life_ms(hold_ms: u64, mean_time_between_takes_ms: u64) -> u64 {
    (hold_ms / 8).max(mean_time_between_takes_ms.saturating_mul(10)).clamp(ALLOWANCE_LIFE_MIN_MS, ALLOWANCE_LIFE_MAX_MS)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn allowance(n: u32) -> Allowance {
        Allowance::new(1, n, 10, 60_000, Holder::default(), Times { granted_ms: 0, issue_until_ms: 5_000 })
    }

    #[test]
    fn grants_leave_half_of_what_is_free() {
        let table = [
            // free, price, pace share, n
            (0, 10, 5, 0),
            (9, 10, 5, 0),
            (10, 10, 5, 1),
            (19, 10, 0, 1),
            (30, 10, 5, 1),
            (40, 10, 5, 2),
            (1_000, 10, 5, 5),
            (1_000, 10, 500, 50),
            (1_000, 10, 0, 1),
            (MICROS_MAX, 1, u64::MAX, ALLOWANCE_TOKENS_MAX),
            (MICROS_MAX, MICROS_MAX, u64::MAX, 1),
            (10, 0, 5, 0),
        ];
        for (free, price, share, n) in table {
            assert_eq!(grant_size(free, price, share), n, "free {free}, price {price}, share {share}");
        }
    }

    #[test]
    fn lives_are_an_eighth_of_the_hold_or_ten_takes() {
        for (hold, takes, life) in [
            (10_000, 0, 5_000),
            (300_000, 100, 37_500),
            (300_000, 10_000, 100_000),
            (3_600_000, 0, 450_000),
            (300_000, u64::MAX, 3_600_000),
        ] {
            assert_eq!(allowance_life_ms(hold, takes), life, "hold {hold}, takes {takes}");
        }
    }

    #[test]
    fn a_shrink_never_goes_below_a_token_that_came_back() {
        let mut a = allowance(100);
        a.settle(3);
        assert!(a.note(Note::Skip, 40));
        assert_eq!(a.shrink(10), 59);
        assert_eq!((a.n, a.outstanding()), (41, 40));
        assert_eq!(a.shrink(80), 0, "never raised");
        assert_eq!(a.check(), Ok(()));
    }

    #[test]
    fn a_record_restores_it() {
        let mut a = allowance(20);
        a.settle(19);
        a.release(2);
        assert!(a.note(Note::Save, 5) && !a.note(Note::Save, 5));
        assert_eq!(Allowance::from_proto(a.to_proto(7, 1)), Ok(a));
    }

    #[test]
    fn a_damaged_record_is_refused() {
        let good = allowance(8).to_proto(7, 1);
        assert!(Allowance::from_proto(good.clone()).is_ok());
        for bad in [
            proto::Allowance { holder: None, ..good.clone() },
            proto::Allowance { settled: vec![1], released: vec![1], ..good.clone() },
            proto::Allowance { saves: vec![0, 1], ..good.clone() },
            proto::Allowance { settled: vec![255], ..good.clone() },
            proto::Allowance { number: 0, ..good.clone() },
            proto::Allowance { issue_until_ms: u64::MAX, ..good },
        ] {
            assert!(Allowance::from_proto(bad).is_err());
        }
    }

    #[test]
    #[should_panic(expected = "a token settles once")]
    fn settling_a_released_token_stops_the_process() {
        let mut a = allowance(2);
        a.release(1);
        a.settle(1);
    }
}
