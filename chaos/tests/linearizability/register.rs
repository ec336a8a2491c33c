//! Jepsen's histories of one etcd register.

use std::collections::HashMap;

use andante_chaos::linearizability::wgl::{Call, Specification};

/// The register; `None`: never written.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub(crate) struct Register(pub(crate) Option<u32>);

/// What was called, with its answer. What has none is as if it would be applied; the search may leave it out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Access {
    Read(Option<u32>),
    Write(u32),
    Swap { from: u32, to: u32 },
    SwapRefused { from: u32 },
}

impl Specification for Register {
    type Operation = Access;
    type Age = ();

    fn apply(&self, access: &Access) -> Option<Self> {
        match *access {
            Access::Read(seen) => (seen == self.0).then_some(*self),
            Access::Write(value) => Some(Self(Some(value))),
            Access::Swap { from, to } => (self.0 == Some(from)).then_some(Self(Some(to))),
            Access::SwapRefused { from } => (self.0 != Some(from)).then_some(*self),
        }
    }

    fn age(&self) {}

    fn age_max(_: &Access) -> Option<()> {
        None
    }

    fn only_tells(access: &Access) -> bool {
        access.written().is_none()
    }
}

impl Access {
    /// What the register is after this, if it was applied.
    pub(crate) fn written(&self) -> Option<u32> {
        match *self {
            Access::Write(to) | Access::Swap { to, .. } => Some(to),
            Access::Read(_) | Access::SwapRefused { .. } => None,
        }
    }
}

/// Parses a log; times are the numbers of its lines. A line is `... - PROCESS :TYPE :FUNCTION VALUE`.
pub(crate) fn parse(log: &str) -> Vec<Call<Access>> {
    let mut calls: Vec<Call<Access>> = Vec::new();
    let mut open: HashMap<&str, usize> = HashMap::new();
    for (time, line) in (1..).zip(log.lines()) {
        let Some((_, event)) = line.split_once(" - ") else { continue };
        let words: Vec<&str> = event.split_whitespace().collect();
        let [process, kind, function, value @ ..] = &words[..] else { continue };
        let numbers = value.iter().filter_map(|word| word.trim_matches(['[', ']']).parse().ok());
        let numbers: Vec<u32> = numbers.collect();
        if *kind == ":invoke" {
            let operation = match (*function, &numbers[..]) {
                (":read", []) => Access::Read(None),
                (":write", [value]) => Access::Write(*value),
                (":cas", [from, to]) => Access::Swap { from: *from, to: *to },
                _ => panic!("{line}"),
            };
            open.insert(process, calls.len());
            calls.push(Call { called: time, returned: None, after: None, operation });
        } else if [":ok", ":fail"].contains(kind) && *value != [":timed-out"] {
            let call = &mut calls[open.remove(process).expect("what ends was begun")];
            call.returned = Some(time);
            match &mut call.operation {
                Access::Read(seen) => *seen = numbers.first().copied(),
                Access::Swap { from, .. } if *kind == ":fail" => call.operation = Access::SwapRefused { from: *from },
                _ => assert_eq!(*kind, ":ok", "{line}"),
            }
        }
    }
    calls.retain(|call| call.returned.is_some() || call.operation.written().is_some());
    calls
}
