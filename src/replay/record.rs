//! The replay's own record of what was sent and acknowledged, as a file that outlives everybody.
//!
//! Lines of text, appended with one write each before anything depends on them:
//! - `andante-record 1`
//! - `campaign INDEX NAME PRICE_MICROS`
//! - `sent INDEX KIND TOKEN`: before the first try
//! - `done INDEX KIND FATE TOKEN`: when the fate is known, before it is counted

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::{File, OpenOptions},
    io::{BufRead, BufReader, Write},
    path::Path,
};

use anyhow::{Context, anyhow, bail};

use crate::{
    replay::campaigns::Planned,
    v1::OutcomeKind,
    verify::{Event, Fate, MIN_STREAM_MS, Tally},
};

const HEADER: &str = "andante-record 1";

/// A record read back.
#[derive(Debug, Default)]
pub struct Record {
    /// One per campaign.
    pub tallies: Vec<Tally>,
    /// Tokens whose billable stream was acknowledged.
    pub counted: Vec<Vec<u8>>,
}

/// Starts a record; an existing file is replaced.
pub(super) fn begin(path: &Path, planned: &[Planned]) -> anyhow::Result<()> {
    let mut text = format!("{HEADER}\n");
    for (i, campaign) in planned.iter().enumerate() {
        text += &format!("campaign {i} {} {}\n", campaign.name, campaign.price_micros);
    }
    std::fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))
}

/// Appends to a record. Each lane has its own; the system keeps appended lines whole.
pub(super) struct Writer {
    file: File,
}

impl Writer {
    pub(super) fn open(path: &Path) -> anyhow::Result<Self> {
        let file = OpenOptions::new().append(true).open(path);
        Ok(Writer { file: file.with_context(|| format!("cannot append to {}", path.display()))? })
    }

    pub(super) fn sent(&mut self, campaign: usize, kind: OutcomeKind, token: &[u8]) -> std::io::Result<()> {
        self.file.write_all(format!("sent {campaign} {} {}\n", kind_name(kind), hex(token)).as_bytes())
    }

    pub(super) fn done(&mut self, campaign: usize, kind: OutcomeKind, fate: Fate, token: &[u8]) -> std::io::Result<()> {
        let fate = match fate {
            Fate::Counted => "counted",
            Fate::Unknown => "unknown",
            Fate::TooLate | Fate::NotApplied | Fate::Wrong(_) => "not-counted",
        };
        self.file.write_all(format!("done {campaign} {} {fate} {}\n", kind_name(kind), hex(token)).as_bytes())
    }
}

impl Record {
    /// Reads a record. What was sent and never answered is unknown; a last line cut short is ignored.
    pub fn read(path: &Path) -> anyhow::Result<Self> {
        let file = File::open(path).with_context(|| format!("cannot read {}", path.display()))?;
        let mut record = Record::default();
        let mut open: BTreeMap<(String, &'static str), usize> = BTreeMap::new();
        let mut tokens = BTreeSet::new();
        let mut input = BufReader::new(file);
        let mut line = String::new();
        for number in 1.. {
            line.clear();
            if input.read_line(&mut line)? == 0 || !line.ends_with('\n') {
                break;
            }
            let bad = || anyhow!("{}, line {number}: `{}` is no line of a record", path.display(), line.trim_end());
            let fields: Vec<&str> = line.split_ascii_whitespace().collect();
            match fields.as_slice() {
                ["andante-record", "1"] if number == 1 => {}
                _ if number == 1 => bail!("{} is no record of a replay", path.display()),
                ["campaign", index, name, price] => {
                    if index.parse() != Ok(record.tallies.len()) {
                        return Err(bad());
                    }
                    record.tallies.push(Tally::new(name, price.parse().map_err(|_| bad())?));
                }
                ["sent", index, kind, token] => {
                    let index: usize = index.parse().ok().filter(|i| *i < record.tallies.len()).ok_or_else(bad)?;
                    let kind = event_of(kind).ok_or_else(bad)?.1;
                    if kind != "not-used" && tokens.insert((*token).to_owned()) {
                        record.tallies[index].placed += 1;
                    }
                    open.insert(((*token).to_owned(), kind), index);
                }
                ["done", index, kind, fate, token] => {
                    let index: usize = index.parse().ok().filter(|i| *i < record.tallies.len()).ok_or_else(bad)?;
                    let (event, kind) = event_of(kind).ok_or_else(bad)?;
                    let fate = match *fate {
                        "counted" => Fate::Counted,
                        "unknown" => Fate::Unknown,
                        "not-counted" => Fate::NotApplied,
                        _ => return Err(bad()),
                    };
                    open.remove(&((*token).to_owned(), kind));
                    record.tallies[index].add(event, fate);
                    if event.kind == OutcomeKind::Stream && fate == Fate::Counted {
                        record.counted.push(unhex(token).ok_or_else(bad)?);
                    }
                }
                _ => return Err(bad()),
            }
        }
        for ((_, kind), index) in open {
            let (event, _) = event_of(kind).expect("kinds were read by the same function");
            record.tallies[index].add(event, Fate::Unknown);
        }
        Ok(record)
    }
}

/// The kinds a replay reports.
fn kind_name(kind: OutcomeKind) -> &'static str {
    match kind {
        OutcomeKind::Impression => "impression",
        OutcomeKind::Save => "save",
        OutcomeKind::NotUsed => "not-used",
        _ => "stream",
    }
}

fn event_of(name: &str) -> Option<(Event, &'static str)> {
    match name {
        "impression" => Some((Event::of(OutcomeKind::Impression), "impression")),
        "save" => Some((Event::of(OutcomeKind::Save), "save")),
        "not-used" => Some((Event::of(OutcomeKind::NotUsed), "not-used")),
        "stream" => Some((Event::stream(MIN_STREAM_MS), "stream")),
        _ => None,
    }
}

fn hex(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    bytes.iter().flat_map(|b| [DIGITS[usize::from(b >> 4)], DIGITS[usize::from(b & 15)]]).map(char::from).collect()
}

fn unhex(text: &str) -> Option<Vec<u8>> {
    let digits: Vec<u8> = text.chars().map(|c| c.to_digit(16).map(|d| d as u8)).collect::<Option<_>>()?;
    digits.chunks(2).map(|pair| Some(pair[0] << 4 | pair.get(1)?)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::verify::Count;

    fn planned() -> Vec<Planned> {
        vec![Planned { name: "a".into(), track: "t".into(), price_micros: 7 }]
    }

    #[test]
    fn a_record_reads_back_and_what_was_never_answered_is_unknown() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("r");
        begin(&path, &planned()).unwrap();
        let mut writer = Writer::open(&path).unwrap();
        for token in [[1, 0xab], [2, 0xcd]] {
            writer.sent(0, OutcomeKind::Stream, &token).unwrap();
            writer.sent(0, OutcomeKind::Impression, &token).unwrap();
        }
        writer.done(0, OutcomeKind::Stream, Fate::Counted, &[1, 0xab]).unwrap();
        writer.done(0, OutcomeKind::Impression, Fate::NotApplied, &[1, 0xab]).unwrap();
        writer.file.write_all(b"done 0 stream coun").unwrap();

        let record = Record::read(&path).unwrap();
        assert_eq!(record.counted, [vec![1, 0xab]]);
        let tally = &record.tallies[0];
        assert_eq!((tally.price_micros, tally.placed), (7, 2));
        assert_eq!(tally.billed, Count { acked: 1, unknown: 1 });
        assert_eq!(tally.impressions, Count { acked: 0, unknown: 1 });
    }

    #[test]
    fn what_is_no_record_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("r");
        for text in ["hello\n", "andante-record 1\nsent 0 stream 00\n", "andante-record 1\ncampaign 0 a x\n"] {
            std::fs::write(&path, text).unwrap();
            assert!(Record::read(&path).is_err(), "{text}");
        }
    }
}
