//! Processor time that a command's child processes used.

use std::{
    fs,
    time::{Duration, Instant},
};

/// How many of the kernel's ticks are a second, to programs: 100 on every architecture that we build for.
const TICKS_PER_S: f64 = 100.0;

/// Measures from its making on.
#[derive(Debug)]
pub(super) struct Stopwatch {
    started: Instant,
    ticks: Option<u64>,
}

/// What it took.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Spent {
    pub(super) wall: Duration,
    /// Processor time of child processes that ended, seconds; `None`: this system does not tell.
    pub(super) children_s: Option<f64>,
}

impl Stopwatch {
    pub(super) fn start() -> Self {
        Self { started: Instant::now(), ticks: child_ticks() }
    }

    pub(super) fn spent(&self) -> Spent {
        let ticks = self.ticks.zip(child_ticks()).map(|(before, now)| now.saturating_sub(before));
        Spent { wall: self.started.elapsed(), children_s: ticks.map(|ticks| ticks as f64 / TICKS_PER_S) }
    }
}

fn child_ticks() -> Option<u64> {
    parse(&fs::read_to_string("/proc/self/stat").ok()?)
}

/// `cutime` + `cstime` of a line as in proc(5).
fn parse(stat: &str) -> Option<u64> {
    // The name of the program is in brackets and may hold anything, brackets too.
    let (_, fields) = stat.rsplit_once(')')?;
    // The first field after the name is the third of the line; these are 16 and 17.
    let mut fields = fields.split_ascii_whitespace().skip(13).map(str::parse::<u64>);
    Some(fields.next()?.ok()? + fields.next()?.ok()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn childrens_time_is_read_after_whatever_name() {
        let line = "17 (a) b (c)) S 1 17 17 0 -1 4194560 101 202 0 0 11 12 130 14 20 0 1 0 99 1000 20 0";
        assert_eq!(parse(line), Some(144));
        assert_eq!(parse("17 (x) S 1"), None);
        assert_eq!(parse(""), None);
    }
}
