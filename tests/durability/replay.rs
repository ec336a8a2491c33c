//! A replay in a process of its own, and what its record says.

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

use andante::client::Link;
use serde_json::Value;

use crate::{
    node::{ANDANTE, Home, log_file},
    tools::{PATIENCE, until},
};

/// Every so many rows somebody clicks, which adds an event.
const CLICK_EVERY: usize = 5;
/// What a delivery costs.
const PRICE_MICROS: u64 = 1_000;

/// A replay that plays; killed when dropped.
#[derive(Debug)]
pub(crate) struct Replay {
    child: Child,
    record: PathBuf,
    output: PathBuf,
    /// Lines the record has at the end if each row is placed.
    lines: usize,
}

impl Replay {
    /// Plays `rows` rows against the node, with trace, record and output in `scratch`.
    pub(crate) fn start(home: &Home, scratch: &Path, rows: usize) -> Self {
        let mut text = "price_micros,pctr,click\n".to_owned();
        for row in 0..rows {
            let (pctr, click) = (0.001 * (1 + row % 7) as f64, u8::from(row % CLICK_EVERY == 0));
            writeln!(text, "1,{pctr},{click}").expect("strings grow");
        }
        let (trace, record, output) = (scratch.join("rows.csv"), scratch.join("record"), scratch.join("replay.json"));
        std::fs::write(&trace, text).expect("the trace can be written");
        let child = Command::new(ANDANTE)
            .args(["replay", "--json", "--format", "csv", "--addr", &home.grpc.to_string(), "--trace"])
            .arg(trace)
            .arg("--record")
            .arg(&record)
            .args(["--campaigns", "12", "--in-flight", "24", "--price-micros", &PRICE_MICROS.to_string()])
            .args(["--wait-restart-ms", &PATIENCE.as_millis().to_string()])
            .stdin(Stdio::null())
            .stdout(log_file(&output))
            .spawn()
            .expect("the replay starts");
        // An impression and a stream for each row, a save for some; each is sent and done.
        Self { child, record, output, lines: 4 * rows + 2 * rows.div_ceil(CLICK_EVERY) }
    }

    /// Waits until a share of the replay is played, in thousandths.
    pub(crate) fn wait_until_played(&mut self, thousandths: usize) {
        let wanted = self.lines * thousandths / 1000;
        until(&format!("{wanted} lines in the record of the replay"), || {
            if self.child.try_wait().expect("it is our child").is_some() {
                panic!("the replay ended before {thousandths} thousandths were played: {}", self.finish());
            }
            let lines = std::fs::read(&self.record).ok()?.iter().filter(|byte| **byte == b'\n').count();
            (lines >= wanted).then_some(())
        });
    }

    /// Waits for its end and returns its verdict.
    pub(crate) fn finish(&mut self) -> Value {
        let status = until("the replay to end", || self.child.try_wait().expect("it is our child"));
        let text = std::fs::read_to_string(&self.output).expect("the replay said something");
        serde_json::from_str(&text).unwrap_or_else(|e| panic!("the replay ended with {status} and said `{text}`: {e}"))
    }
}

impl Drop for Replay {
    fn drop(&mut self) {
        // Both fail when it has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Waits for the end of a replay that met outages, and holds every promise: its own verdict, everything acknowledged
/// reported once more, and an audit that shares no code with it.
pub(crate) async fn must_be_kept(home: &Home, replay: &mut Replay) {
    let verdict = replay.finish();
    assert_eq!(verdict["ok"], true, "{verdict}");
    assert!(verdict["retries"].as_u64() > Some(0), "the outages were noticed: {verdict}");
    let again = verify(home, &replay.record);
    assert_eq!(again["ok"], true, "{again}");
    assert_eq!(Some(audit(home, &replay.record).await), verdict["billed"].as_u64(), "{verdict}");
}

/// Holds a record against the node by `andante replay --verify`, which reports everything acknowledged once more.
fn verify(home: &Home, record: &Path) -> Value {
    let output = Command::new(ANDANTE)
        .args(["replay", "--json", "--addr", &home.grpc.to_string(), "--verify"])
        .arg(record)
        .output()
        .expect("the verification runs");
    serde_json::from_slice(&output.stdout)
        .unwrap_or_else(|e| panic!("{e}: {}", String::from_utf8_lossy(&[output.stdout, output.stderr].concat())))
}

/// Streams of one campaign, as its lines in the record tell.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
struct Streams {
    name: String,
    sent: u64,
    acknowledged: u64,
    refused: u64,
}

/// Reads a record by itself and holds the ledgers against it, without any of the replay's code: what was acknowledged
/// is billed, nothing is billed that was not sent, each costs its price, and no budget is exceeded. Returns how many
/// streams were acknowledged.
async fn audit(home: &Home, record: &Path) -> u64 {
    let text = std::fs::read_to_string(record).expect("there is a record");
    let mut campaigns: BTreeMap<&str, Streams> = BTreeMap::new();
    for line in text.lines() {
        match line.split(' ').collect::<Vec<_>>().as_slice() {
            ["campaign", index, name, _] => campaigns.entry(*index).or_default().name = (*name).to_owned(),
            ["sent", index, "stream", _] => campaigns.entry(*index).or_default().sent += 1,
            ["done", index, "stream", "counted", _] => campaigns.entry(*index).or_default().acknowledged += 1,
            ["done", index, "stream", "not-counted", _] => campaigns.entry(*index).or_default().refused += 1,
            _ => {}
        }
    }
    let mut link = Link::new(&home.grpc.to_string(), andante::client::Patience::default()).expect("an address");
    for streams in campaigns.values() {
        let campaign = link.campaign(&streams.name).await.expect("the campaign is there");
        let (ledger, spec) = (campaign.ledger.expect("a ledger"), campaign.spec.expect("settings"));
        let possible = streams.acknowledged..=streams.sent - streams.refused;
        assert!(possible.contains(&ledger.billed), "{streams:?}, but the ledger has billed {}", ledger.billed);
        assert_eq!(ledger.settled_micros, ledger.billed * PRICE_MICROS, "{streams:?}");
        assert!(ledger.settled_micros + ledger.open_micros <= spec.budget_micros, "{streams:?}: {ledger:?}");
    }
    campaigns.values().map(|streams| streams.acknowledged).sum()
}
