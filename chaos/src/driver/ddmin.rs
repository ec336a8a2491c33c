//! The smallest part of a list that still shows a failure: Zeller and Hildebrandt's delta debugging ("Simplifying and
//! Isolating Failure-Inducing Input", 2002). It only decides what to try next; who tries it is the caller's, so that a
//! round's candidates can be tried at once.

/// A list that shows the failure, and what to try to make it shorter.
///
/// Rounds: ask for `candidates`, try them, and say with `took` or `none` which was the first that shows the failure.
/// When there are no candidates, no single item can be left out.
#[derive(Debug, Clone)]
pub(super) struct Ddmin<T> {
    items: Vec<T>,
    stage: Stage,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    /// The failure may need nothing at all.
    Nothing,
    /// So many parts of nearly equal length.
    Parts(usize),
    Done,
}

impl<T: Clone> Ddmin<T> {
    /// Starts from a list that shows the failure.
    pub(super) fn new(items: Vec<T>) -> Self {
        let stage = if items.is_empty() { Stage::Done } else { Stage::Nothing };
        Self { items, stage }
    }

    /// The shortest list so far that shows the failure.
    pub(super) fn smallest(&self) -> &[T] {
        &self.items
    }

    /// Shorter lists to try, the most promising first; empty: done.
    pub(super) fn candidates(&self) -> Vec<Vec<T>> {
        match self.stage {
            Stage::Nothing => vec![Vec::new()],
            Stage::Done => Vec::new(),
            Stage::Parts(count) => {
                let parts = self.parts(count);
                let alone = parts.iter().map(|part| self.items[part.clone()].to_vec());
                let without = parts.iter().map(|part| {
                    let (before, after) = (&self.items[..part.start], &self.items[part.end..]);
                    [before, after].concat()
                });
                // Two halves are each other's rest.
                if count == 2 { alone.collect() } else { alone.chain(without).collect() }
            }
        }
    }

    /// That candidate, by its position, is the first that shows the failure.
    pub(super) fn took(&mut self, candidate: usize) {
        let candidates = self.candidates();
        let next = match self.stage {
            // One part alone starts afresh; after leaving one out, the others keep their size.
            Stage::Parts(count) if candidate >= count => count - 1,
            _ => 2,
        };
        self.items = candidates[candidate].clone();
        self.stage = self.parts_at_least_two(next);
    }

    /// No candidate shows the failure.
    pub(super) fn none(&mut self) {
        self.stage = match self.stage {
            Stage::Nothing => self.parts_at_least_two(2),
            Stage::Parts(count) if count < self.items.len() => Stage::Parts((2 * count).min(self.items.len())),
            Stage::Parts(_) | Stage::Done => Stage::Done,
        };
    }

    fn parts_at_least_two(&self, count: usize) -> Stage {
        // That nothing at all does not show it is known by now, so a single item can't be left out.
        if self.items.len() < 2 { Stage::Done } else { Stage::Parts(count.clamp(2, self.items.len())) }
    }

    fn parts(&self, count: usize) -> Vec<std::ops::Range<usize>> {
        let len = self.items.len();
        (0..count).map(|part| part * len / count..(part + 1) * len / count).collect()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Runs to the end; returns the smallest list and how many lists were tried.
    fn shrink(items: Vec<u8>, fails: impl Fn(&[u8]) -> bool) -> (Vec<u8>, usize) {
        let mut search = Ddmin::new(items);
        let mut tries = 0;
        loop {
            let candidates = search.candidates();
            if candidates.is_empty() {
                return (search.smallest().to_vec(), tries);
            }
            let first = candidates.iter().position(|candidate| fails(candidate));
            tries += first.map_or(candidates.len(), |first| first + 1);
            match first {
                Some(first) => search.took(first),
                None => search.none(),
            }
        }
    }

    #[test]
    fn a_failure_that_needs_nothing_shrinks_to_nothing() {
        assert_eq!(shrink((0..50).collect(), |_| true), (vec![], 1));
        assert_eq!(shrink(vec![], |_| true), (vec![], 0));
    }

    #[test]
    fn a_single_cause_is_found_in_logarithmic_time() {
        let (smallest, tries) = shrink((0..128).collect(), |items| items.contains(&77));
        assert_eq!(smallest, [77]);
        assert!(tries <= 20, "{tries} tries");
    }

    #[test]
    fn causes_far_apart_are_found_together() {
        let (smallest, _) = shrink((0..100).collect(), |items| [3, 50, 98].iter().all(|cause| items.contains(cause)));
        assert_eq!(smallest, [3, 50, 98]);
    }

    proptest! {
        #[test]
        fn exactly_the_causes_remain(len in 1_u8..60, causes in proptest::collection::btree_set(0_u8..60, 0..6)) {
            let causes: Vec<u8> = causes.into_iter().filter(|cause| *cause < len).collect();
            let (smallest, _) = shrink((0..len).collect(), |items| causes.iter().all(|cause| items.contains(cause)));
            prop_assert_eq!(smallest, causes);
        }

        /// Whatever the failure is: the result shows it, in the old order, and nothing more can be left out.
        #[test]
        fn nothing_can_be_left_out_of_the_result(len in 1_u8..40, salt: u64, share in 1_u64..8) {
            let all: Vec<u8> = (0..len).collect();
            let fails = |items: &[u8]| {
                items.len() == usize::from(len) || xxhash_rust::xxh3::xxh3_64_with_seed(items, salt) % 8 < share
            };
            let (smallest, tries) = shrink(all.clone(), fails);
            prop_assert!(fails(&smallest));
            prop_assert!(smallest.is_sorted());
            for left_out in 0..smallest.len() {
                let mut shorter = smallest.clone();
                shorter.remove(left_out);
                prop_assert!(!fails(&shorter), "{smallest:?} without its {left_out}");
            }
            let len = usize::from(len);
            prop_assert!(tries <= len * len + 3 * len + 1, "the paper's bound, and the empty list");
        }
    }
}
