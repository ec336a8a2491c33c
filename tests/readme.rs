//! The README tells the truth where a test can know it.

use std::{collections::HashMap, io::Cursor, path::Path};

use andante::{
    config,
    trace::{Format, Reader},
};

const README: &str = include_str!("../README.md");

#[test]
fn the_list_of_metrics_is_the_one_the_node_serves() {
    let table = include_str!("../src/metrics/metrics.md").split_once("\n\n").unwrap().1.trim_end();
    assert!(README.contains(table), "copy the table of src/metrics/metrics.md into README.md");
}

#[test]
fn every_configuration_key_is_there_with_its_default() {
    let loaded = config::load(None, HashMap::new(), &[]).unwrap();
    for explained in loaded.explain() {
        let row = README.lines().find(|line| line.starts_with(&format!("| `{}` |", explained.key)));
        let row = row.unwrap_or_else(|| panic!("{} is missing in the README", explained.key));
        let default = match &explained.value {
            serde_json::Value::Null => continue,
            serde_json::Value::String(text) => text.clone(),
            other => other.to_string(),
        };
        assert!(row.contains(&default), "{}: the default is {default}, the README says {row}", explained.key);
    }
}

#[test]
fn the_example_trace_is_one() {
    let example = README.split_once("```csv\n").unwrap().1.split_once("```").unwrap().0;
    let input = Box::new(Cursor::new(example.as_bytes().to_vec()));
    let rows: Vec<_> = Reader::new(Path::new("README.md"), input, Format::Csv).unwrap().map(Result::unwrap).collect();
    assert_eq!(rows.len(), 3);
    assert!(rows[2].click && rows[2].hour == Some(15));
}
