//! Which seeds are played.

use std::{fmt, str::FromStr};

use xxhash_rust::xxh3::xxh3_64;

/// Seeds in a row: `A..B` without B, or `A..` as many as time allows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Seeds {
    pub(super) first: u64,
    /// Not played itself; `None`: no end.
    pub(super) end: Option<u64>,
}

impl Seeds {
    /// How many; `None`: no end.
    pub(super) fn count(self) -> Option<u64> {
        self.end.map(|end| end - self.first)
    }

    pub(super) fn iter(self) -> impl Iterator<Item = u64> {
        self.first..self.end.unwrap_or(u64::MAX)
    }
}

impl FromStr for Seeds {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (first, end) =
            text.split_once("..").ok_or("seeds are a range: 1..21 (without 21), or 1.. without an end")?;
        let number = |text: &str| text.parse::<u64>().map_err(|_| format!("\"{text}\" is no seed"));
        let end = if end.is_empty() { None } else { Some(number(end)?) };
        let seeds = Self { first: number(first)?, end };
        if seeds.end.is_some_and(|end| end <= seeds.first) { Err(format!("no seed in {text}")) } else { Ok(seeds) }
    }
}

impl fmt::Display for Seeds {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}..", self.first)?;
        self.end.map_or(Ok(()), |end| write!(f, "{end}"))
    }
}

/// The seeds of a source tree, by its hash: nobody chose them, and anyone can play the very same ones.
///
/// 48 bits each, because programs that read JSON know integers up to 53.
pub(super) fn of_tree(tree: &str) -> impl Iterator<Item = u64> {
    let tree = tree.to_owned();
    (0_u64..).map(move |position| xxh3_64(format!("{tree} {position}").as_bytes()) >> 16)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_read_as_rust_reads_them() {
        let table = [
            ("1..21", Ok(Seeds { first: 1, end: Some(21) })),
            ("7..8", Ok(Seeds { first: 7, end: Some(8) })),
            ("5..", Ok(Seeds { first: 5, end: None })),
            ("5..5", Err("no seed in 5..5".to_owned())),
            ("9..3", Err("no seed in 9..3".to_owned())),
            ("..3", Err("\"\" is no seed".to_owned())),
            ("a..3", Err("\"a\" is no seed".to_owned())),
            ("1..=3", Err("\"=3\" is no seed".to_owned())),
        ];
        for (text, expected) in table {
            assert_eq!(text.parse(), expected, "{text}");
        }
        assert!("12".parse::<Seeds>().is_err());
        assert_eq!("1..21".parse::<Seeds>().unwrap().count(), Some(20));
    }

    #[test]
    fn a_trees_seeds_never_change() {
        let seeds: Vec<u64> = of_tree("4b825dc642cb6eb9a060e54bf8d69288fbee4904").take(3).collect();
        assert_eq!(seeds, of_tree("4b825dc642cb6eb9a060e54bf8d69288fbee4904").take(3).collect::<Vec<_>>());
        assert_ne!(seeds, of_tree("4b825dc642cb6eb9a060e54bf8d69288fbee4905").take(3).collect::<Vec<_>>());
        assert!(seeds.iter().all(|seed| *seed < 1 << 48));
        assert_eq!(seeds, PINNED);
    }

    /// Written down: another hash or another mixing would make other seeds of the same tree.
    const PINNED: [u64; 3] = [207_330_473_878_012, 106_069_348_059_974, 242_798_093_368_971];
}
