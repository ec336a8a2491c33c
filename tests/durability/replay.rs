//! A replay in a process of its own, and what its record says.

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

use andante::client::ClientConfig;
use andante::verify::Link;
use serde_json::Value;

use crate::{
    node::{ANDANTE, Home, log_file, terminate},
    tools::{PATIENCE, until},
};

/// Rows of the trace; no replay here comes to its end: a test stops it when it has seen enough. (After a restart
/// thousands of rows pass without a placement, until the campaigns are awake again.)
const ROWS: usize = 200_000;
/// Streams acknowledged until a replay is stopped.
pub(crate) const ENOUGH: usize = 2_000;
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
}

impl Replay {
    /// Plays against the node until [`Self::finish`], with trace, record and output in `scratch`.
    pub(crate) fn start(home: &Home, scratch: &Path) -> Self {
        let mut text = "price_micros,pctr,click\n".to_owned();
        for row in 0..ROWS {
            let (pctr, click) = (0.001 * (1 + row % 7) as f64, u8::from(row % CLICK_EVERY == 0));
            writeln!(text, "1,{pctr},{click}").expect("strings grow");
        }
        let (trace, record, output) = (scratch.join("rows.csv"), scratch.join("record"), scratch.join("replay.json"));
        std::fs::write(&trace, text).expect("the trace can be written");
        let output_file = log_file(&output);
        let child = Command::new(ANDANTE)
            .args(["replay", "--json", "--format", "csv", "--addr", &home.grpc.to_string(), "--trace"])
            .arg(trace)
            .arg("--record")
            .arg(&record)
            .args(["--campaigns", "12", "--in-flight", "24", "--price-micros", &PRICE_MICROS.to_string()])
            .args(["--wait-restart-ms", &PATIENCE.as_millis().to_string()])
            .stdin(Stdio::null())
            .stdout(output_file.try_clone().expect("a second handle"))
            .stderr(output_file)
            .spawn()
            .expect("the replay starts");
        Self { child, record, output }
    }

    /// Waits until that many streams were acknowledged.
    pub(crate) fn wait_until_billed(&mut self, streams: usize) {
        until(&format!("{streams} acknowledged streams in the record of the replay"), || {
            if let Some(status) = self.child.try_wait().expect("it is our child") {
                let said = std::fs::read_to_string(&self.output).unwrap_or_default();
                panic!("the replay ended with {status} before {streams} streams were acknowledged: {said}");
            }
            let text = std::fs::read_to_string(&self.record).ok()?;
            let counted = |line: &&str| line.starts_with("done ") && line.contains(" stream counted ");
            (text.lines().filter(counted).count() >= streams).then_some(())
        });
    }

    /// Has it end now, and returns its verdict.
    ///
    /// # Errors
    /// It can't judge: the node does not even know the campaigns. With what it said.
    pub(crate) fn finish(&mut self) -> Result<Value, String> {
        // It may have ended by itself, for the reason that is returned.
        if self.child.try_wait().expect("it is our child").is_none() {
            terminate(&self.child);
        }
        let status = until("the replay to end", || self.child.try_wait().expect("it is our child"));
        let said = std::fs::read_to_string(&self.output).expect("its output is there");
        said.lines()
            .find_map(|line| serde_json::from_str(line).ok().filter(|value: &Value| value["rows"].is_u64()))
            .ok_or_else(|| format!("the replay ended with {status} and said `{}`", said.trim()))
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
    replay.wait_until_billed(ENOUGH);
    let verdict = replay.finish().expect("a verdict");
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
    let mut link = Link::new(ClientConfig::new([home.grpc.to_string()]), andante::verify::Patience::default())
        .expect("an address");
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
