//! Growing bitmaps, one bit per token of an allowance.

/// Bits that are set and never cleared. As long as its highest set bit needs, hence equal sets are equal bytes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Bitmap {
    bytes: Vec<u8>,
}

impl Bitmap {
    /// Bit `i` is bit `i % 8` of byte `i / 8`; trailing zero bytes are cut.
    pub fn from_bytes(mut bytes: Vec<u8>) -> Self {
        while bytes.last() == Some(&0) {
            bytes.pop();
        }
        Self { bytes }
    }

    /// The bytes, without trailing zeros.
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Whether bit `i` is set.
    pub fn get(&self, i: u32) -> bool {
        self.bytes.get(i as usize / 8).is_some_and(|byte| byte & (1 << (i % 8)) != 0)
    }

    /// Sets bit `i`; false if it was set before.
    pub fn set(&mut self, i: u32) -> bool {
        let at = i as usize / 8;
        if at >= self.bytes.len() {
            self.bytes.resize(at + 1, 0);
        }
        let bit = 1 << (i % 8);
        let fresh = self.bytes[at] & bit == 0;
        self.bytes[at] |= bit;
        fresh
    }

    /// How many bits are set.
    pub fn count(&self) -> u32 {
        self.bytes.iter().map(|byte| byte.count_ones()).sum()
    }

    /// One more than the highest bit set; 0 if none is.
    pub fn end(&self) -> u32 {
        match self.bytes.last() {
            Some(byte) => self.bytes.len() as u32 * 8 - byte.leading_zeros(),
            None => 0,
        }
    }

    /// Whether no bit is set in both.
    pub fn is_disjoint(&self, other: &Self) -> bool {
        self.bytes.iter().zip(&other.bytes).all(|(a, b)| a & b == 0)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn behaves_like_a_set(a in prop::collection::vec(0..70_000u32, 0..60), b in prop::collection::vec(0..200u32, 0..9)) {
            let mut set = BTreeSet::new();
            let mut bitmap = Bitmap::default();
            for i in a {
                prop_assert_eq!(bitmap.set(i), set.insert(i));
                prop_assert!(bitmap.get(i));
                prop_assert_eq!(bitmap.end(), set.last().unwrap() + 1);
            }
            prop_assert_eq!(bitmap.count() as usize, set.len());
            let other: BTreeSet<u32> = b.iter().copied().collect();
            let mut other_bitmap = Bitmap::default();
            for i in b {
                prop_assert_eq!(bitmap.get(i), set.contains(&i));
                other_bitmap.set(i);
            }
            prop_assert_eq!(bitmap.is_disjoint(&other_bitmap), set.is_disjoint(&other));
            prop_assert_eq!(&Bitmap::from_bytes([bitmap.as_bytes(), &[0, 0]].concat()), &bitmap);
        }
    }

    #[test]
    fn an_empty_one_has_no_bytes() {
        assert_eq!(Bitmap::from_bytes(vec![0, 0]), Bitmap::default());
        assert_eq!(Bitmap::default().end(), 0);
        assert!(!Bitmap::default().get(0));
    }
}
