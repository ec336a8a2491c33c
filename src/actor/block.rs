//! The tokens of one allowance, handed out by one atomic operation each.

use std::sync::atomic::{AtomicU64, Ordering};

use andante_cluster::mutant;

#[cfg(andante_mutants)]
use crate::campaign::proto;
use crate::campaign::{allowance::Allowance, proto::Holder};

/// Set for good when the allowance was sealed; shares the word with the next sequence number, so that reading the
/// number after sealing is final.
const SEALED: u64 = 1 << 63;

/// An applied allowance in the hands of its holder.
#[derive(Debug)]
pub struct Block {
    /// Its number.
    pub number: u32,
    /// Tokens in it.
    pub n: u32,
    /// Price of each, micros.
    pub price_micros: u64,
    /// Hold time of its tokens.
    pub hold_ms: u64,
    /// Nothing is handed out after this moment.
    pub issue_until_ms: u64,
    /// Who hands it out.
    pub holder: Holder,
    word: AtomicU64,
}

impl Block {
    /// Only for allowances that were applied with this node's holder.
    pub fn new(allowance: &Allowance) -> Self {
        Self {
            number: allowance.number,
            n: allowance.n,
            price_micros: allowance.price_micros,
            hold_ms: allowance.hold_ms,
            issue_until_ms: allowance.issue_until_ms,
            holder: allowance.holder,
            word: AtomicU64::new(0),
        }
    }

    /// One that may never be granted.
    #[cfg(andante_mutants)]
    pub fn proposed(grant: &proto::Grant, spec: &proto::Spec) -> Self {
        Self {
            number: grant.number,
            n: grant.n,
            price_micros: spec.price_micros,
            hold_ms: spec.hold_ms,
            issue_until_ms: grant.issue_until_ms.min(spec.end_ms),
            holder: grant.holder.unwrap_or_default(),
            word: AtomicU64::new(0),
        }
    }

    /// A block that belongs to no allowance, for the holder of epoch 1.
    #[cfg(test)]
    pub(crate) fn with_tokens(n: u32) -> Self {
        Self {
            number: 1,
            n,
            price_micros: 5,
            hold_ms: 10,
            issue_until_ms: 100,
            holder: Holder { cell_epoch: 1, ..Holder::default() },
            word: AtomicU64::new(0),
        }
    }

    /// The same for another holder.
    #[cfg(test)]
    pub(crate) fn held_by(mut self, cell_epoch: u64) -> Self {
        self.holder.cell_epoch = cell_epoch;
        self
    }

    /// Takes the next sequence number; `None` when sealed, used up or past its time. No number is given twice.
    pub fn take(&self, now_ms: u64) -> Option<u32> {
        if now_ms > self.issue_until_ms || !self.has_left() {
            return None;
        }
        // The look above keeps the word from running away: at most one step too far per thread.
        let word = next(self.word.fetch_add(1, Ordering::AcqRel));
        (word < u64::from(self.n)).then_some(word as u32)
    }

    /// Whether a token is left.
    pub fn has_left(&self) -> bool {
        next(self.word.load(Ordering::Acquire)) < u64::from(self.n)
    }

    /// Tokens left to hand out.
    pub fn left(&self) -> u32 {
        let word = self.word.load(Ordering::Acquire);
        if word & SEALED != 0 { 0 } else { self.n.saturating_sub(word as u32) }
    }

    /// Stops handing out for good and returns how many tokens were handed out at most: exactly, but for a taker that
    /// is refused in this very moment. Sealing again hands out nothing either.
    pub fn seal(&self) -> u32 {
        let word = self.word.fetch_or(SEALED, Ordering::AcqRel);
        ((word & !SEALED).min(u64::from(self.n))) as u32
    }

    /// Whether it was sealed.
    pub fn is_sealed(&self) -> bool {
        self.word.load(Ordering::Acquire) & SEALED != 0
    }
}

/// The sequence number that a word would give out next: beyond any allowance once it is sealed.
fn next(word: u64) -> u64 {
    if word & SEALED != 0 && mutant!(SealIgnored) { word & !SEALED } else { word }
}

#[cfg(test)]
mod tests {
    use std::{
        collections::BTreeSet,
        sync::{Arc, Mutex},
    };

    use super::*;

    #[test]
    fn sequence_numbers_are_given_once_and_in_order() {
        let block = Block::with_tokens(3);
        assert_eq!([0; 5].map(|_| block.take(100)), [Some(0), Some(1), Some(2), None, None]);
        assert_eq!(block.left(), 0);
    }

    #[test]
    fn nothing_is_handed_out_after_its_time() {
        assert_eq!(Block::with_tokens(3).take(101), None);
    }

    #[test]
    fn a_sealed_block_hands_out_nothing_and_says_how_many_it_did() {
        let block = Block::with_tokens(3);
        block.take(0);
        assert_eq!(block.seal(), 1);
        assert_eq!(block.take(0), None);
        assert_eq!(block.seal(), 1, "sealing again changes nothing");
        assert_eq!(block.left(), 0);
    }

    #[test]
    fn takers_and_a_sealer_on_many_threads_agree_on_what_was_handed_out() {
        let block = Arc::new(Block::with_tokens(10_000));
        let taken = Arc::new(Mutex::new(BTreeSet::new()));
        let issued = std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    while let Some(sequence) = block.take(0) {
                        assert!(taken.lock().unwrap().insert(sequence), "{sequence} was given twice");
                    }
                });
            }
            while block.left() > 5_000 {
                std::hint::spin_loop();
            }
            block.seal()
        });
        let taken = taken.lock().unwrap();
        assert_eq!(taken.len() as u32, issued);
        assert_eq!(taken.last().map(|last| last + 1), Some(issued));
    }
}
