//! `andante-chaos gate`: the same seed makes the same run.

use std::fmt::Write as _;

use futures::StreamExt as _;
use serde::Serialize;
use serde_json::Value;

use super::{
    args,
    failure::{FAILED, Failure},
    player::{Run, Source},
    queue::in_order,
    seeds::Seeds,
};

/// Differences told of a seed; the first one is where to look.
const DIFFERENCES_MAX: usize = 10;

/// Plays each seed twice, in two processes, and fails unless both tell the very same: trace, number of events, timeline,
/// everything, byte for byte.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Seeds: 1..5 is 1 to 4.
    #[arg(long, value_name = "A..B")]
    seeds: Seeds,
    #[command(flatten)]
    pub(super) common: args::Common,
}

#[derive(Debug, Serialize)]
struct Gate {
    /// Seeds that were played twice.
    seeds: u64,
    /// Events in the traces of all of them.
    events: u64,
    /// Seeds whose two runs differ.
    differing: Vec<Differing>,
    /// Seeds that broke a promise, twice alike.
    broken: Vec<u64>,
}

#[derive(Debug, Serialize)]
struct Differing {
    seed: u64,
    differences: Vec<String>,
}

pub(super) async fn run(args: Args) -> anyhow::Result<u8> {
    let Some(count) = args.seeds.count() else { return Err(Failure::usage("the gate's seeds need an end").into()) };
    let (player, output) = (args.common.player()?, args.common.output());
    let progress = output.progress(Some(2 * count), "runs");
    let twice = args.seeds.iter().flat_map(|seed| {
        let run = Run { source: Source::Seed(seed), mutant: None, timeline: true };
        [(seed, run.clone()), (seed, run)]
    });
    let mut gate = Gate { seeds: 0, events: 0, differing: Vec::new(), broken: Vec::new() };
    {
        let mut played = std::pin::pin!(in_order(&player, &progress, twice, None));
        while let (Some((seed, first)), Some((_, second))) = (played.next().await, played.next().await) {
            let (first, second) = (first.map_err(Failure::from)?, second.map_err(Failure::from)?);
            gate.seeds += 1;
            gate.events += first.report.events;
            let differences = differences(&first.line, &second.line);
            if !differences.is_empty() {
                progress.note(format!("seed {seed} differs: {}", differences[0]));
                gate.differing.push(Differing { seed, differences });
            } else if first.report.violation.is_some() {
                gate.broken.push(seed);
            }
        }
    }
    drop(progress);
    output.result(&gate, text)?;
    Ok(if gate.differing.is_empty() && gate.broken.is_empty() { 0 } else { FAILED })
}

fn text(gate: &Gate) -> String {
    let mut text = String::new();
    for Differing { seed, differences } in &gate.differing {
        let _ = writeln!(text, "seed {seed} differs:\n  {}", differences.join("\n  "));
    }
    for seed in &gate.broken {
        let _ = writeln!(text, "seed {seed} broke a promise: andante-chaos replay --seed {seed}");
    }
    let (seeds, events) = (gate.seeds, gate.events);
    let alike = seeds - gate.differing.len() as u64;
    let _ = write!(text, "{alike} of {seeds} seeds made the same run twice ({events} events)");
    text
}

/// Where two reports differ; empty: they are equal byte for byte.
fn differences(first: &str, second: &str) -> Vec<String> {
    if first == second {
        return Vec::new();
    }
    let mut found = Vec::new();
    if let (Ok(first), Ok(second)) = (serde_json::from_str(first), serde_json::from_str(second)) {
        compare("", &first, &second, &mut found);
    }
    if found.is_empty() {
        found.push("the same values, written differently".to_owned());
    }
    found
}

fn compare(at: &str, first: &Value, second: &Value, found: &mut Vec<String>) {
    if first == second || found.len() >= DIFFERENCES_MAX {
        return;
    }
    match (first, second) {
        (Value::Object(first), Value::Object(second)) => {
            let names = first.keys().chain(second.keys().filter(|name| !first.contains_key(*name)));
            for name in names {
                let of = |object: &serde_json::Map<String, Value>| object.get(name).cloned().unwrap_or_default();
                compare(&format!("{at}.{name}"), &of(first), &of(second), found);
            }
        }
        (Value::Array(first), Value::Array(second)) => {
            // What comes after the first different element differs because of it.
            let same = first.iter().zip(second).take_while(|(first, second)| first == second).count();
            let of = |array: &[Value]| array.get(same).cloned().unwrap_or_default();
            compare(&format!("{at}[{same}]"), &of(first), &of(second), found);
        }
        _ => found.push(format!("{}: {first} and {second}", at.trim_start_matches('.'))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn differences_are_told_by_where_they_are() {
        let table = [
            (r#"{"a":1}"#, r#"{"a":1}"#, vec![]),
            (r#"{"trace":"0a"}"#, r#"{"trace":"0b"}"#, vec![r#"trace: "0a" and "0b""#]),
            (
                r#"{"events":4,"faults":{"crash":{"seen":1}}}"#,
                r#"{"events":5,"faults":{"crash":{"seen":2}}}"#,
                vec!["events: 4 and 5", "faults.crash.seen: 1 and 2"],
            ),
            (r#"{"timeline":["a","b","c"]}"#, r#"{"timeline":["a","x","y"]}"#, vec![r#"timeline[1]: "b" and "x""#]),
            (r#"{"timeline":["a"]}"#, r#"{"timeline":["a","b"]}"#, vec![r#"timeline[1]: null and "b""#]),
            (r#"{"a":null}"#, r#"{"a":0}"#, vec!["a: null and 0"]),
            (r#"{"a":1}"#, r#"{ "a":1}"#, vec!["the same values, written differently"]),
        ];
        for (first, second, expected) in table {
            assert_eq!(differences(first, second), expected, "{first} {second}");
        }
    }
}
