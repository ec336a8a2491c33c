//! The replay against a node that keeps, or breaks, its promises.

mod support;

use std::{
    path::PathBuf,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use andante::{
    client::ClientConfig,
    replay::{self, Options, Progress, Record, Summary},
    trace::Row,
    verify::{Link, Patience},
};
use support::fake_node::{FakeNode, Fault};
use tokio_util::sync::CancellationToken;

fn rows(n: u64) -> Vec<Row> {
    (0..n)
        .map(|index| Row {
            index,
            click: index.is_multiple_of(5),
            price_micros: 1,
            pctr: 0.001 * (1 + index % 7) as f64,
            hour: None,
        })
        .collect()
}

fn options(addr: String, record: Option<PathBuf>) -> Options {
    Options {
        client: ClientConfig::new([addr]),
        prefix: "test".into(),
        connections: 2,
        in_flight: 16,
        campaigns: 4,
        candidates: 2,
        price_micros: 1_000,
        deliveries: None,
        flight: Duration::from_secs(60),
        patience: Patience::default(),
        record,
        stop: CancellationToken::new(),
    }
}

async fn replay(fault: Fault, n: u64) -> Summary {
    let (addr, _serving) = FakeNode::start(fault).await;
    replay::run(&rows(n), &options(addr.to_string(), None), Arc::new(Progress::default())).await.unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_honest_node_passes_and_every_row_is_accounted_for() {
    let summary = replay(Fault::None, 1_000).await;
    assert!(summary.ok, "{summary}");
    assert_eq!((summary.rows, summary.placed, summary.billed, summary.impressions), (1_000, 1_000, 1_000, 1_000));
    assert_eq!((summary.saves, summary.billed_unknown, summary.audited), (200, 0, 1_000));
    assert!(summary.repeated > 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_whose_answers_get_lost_passes_when_it_bills_once_all_the_same() {
    let summary = replay(Fault::Flaky, 300).await;
    assert!(summary.ok, "{summary}");
    assert_eq!(summary.billed, 300);
    assert!(summary.retries > 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_forgotten_billing_is_found() {
    let summary = replay(Fault::Loses, 1_000).await;
    assert!(!summary.ok && summary.findings.lost_outcomes > 0, "{summary}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_double_billing_is_found() {
    for fault in [Fault::BillsTwice, Fault::ForgetsTokens] {
        let summary = replay(fault, 1_000).await;
        assert!(!summary.ok && summary.findings.double_billed > 0, "{fault:?}: {summary}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn overspend_and_a_wrong_price_are_found() {
    let summary = replay(Fault::Overspends, 100).await;
    assert!(!summary.ok && summary.findings.overspend_micros > 0, "{summary}");
    let summary = replay(Fault::WrongPrice, 1_000).await;
    assert!(!summary.ok && summary.findings.wrong_answers > 0, "{summary}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_written_record_can_be_held_against_the_node_later() {
    for (fault, clean) in [(Fault::None, true), (Fault::Loses, false)] {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("record");
        let (addr, _serving) = FakeNode::start(fault).await;
        let options = options(addr.to_string(), Some(path.clone()));
        replay::run(&rows(500), &options, Arc::new(Progress::default())).await.unwrap();

        let record = Record::read(&path).unwrap();
        assert_eq!(record.counted.len(), 500);
        let mut link = Link::new(ClientConfig::new([addr.to_string()]), Patience::default()).unwrap();
        let (findings, checked) = replay::verify(&record, &mut link).await.unwrap();
        assert_eq!((findings.clean(), checked), (clean, 500), "{fault:?}: {findings:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stopped_replay_finishes_what_is_under_way_and_judges_it() {
    let (addr, _serving) = FakeNode::start(Fault::None).await;
    let options = options(addr.to_string(), None);
    let (stop, progress) = (options.stop.clone(), Arc::new(Progress::default()));
    let seen = progress.clone();
    let stopping = async {
        while seen.rows.load(Ordering::Relaxed) < 100 {
            tokio::task::yield_now().await;
        }
        stop.cancel();
    };
    let rows = rows(1_000_000);
    let (summary, ()) = tokio::join!(replay::run(&rows, &options, progress), stopping);
    let summary = summary.unwrap();
    assert!(summary.ok, "{summary}");
    assert!((100..1_000_000).contains(&summary.rows), "{summary}");
    assert_eq!((summary.placed, summary.billed, summary.audited), (summary.rows, summary.rows, summary.rows));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_is_not_there_is_an_error_after_the_patience_not_a_hang() {
    let mut options = options("127.0.0.1:1".into(), None);
    options.patience = Patience { call: Duration::from_millis(50), outage: Duration::from_millis(100) };
    let error = replay::run(&rows(1), &options, Arc::new(Progress::default())).await.unwrap_err();
    assert!(error.to_string().contains("no node answers at http://127.0.0.1:1"), "{error}");
}
