//! Under strace: no Report is answered before what it changed is on the disk.

use std::{path::Path, time::Duration};

use andante::{
    client::ClientConfig,
    v1::{BillableKind, CampaignSpec, Candidate, OutcomeEvent, OutcomeKind, OutcomeStatus, ScoreRequest},
    verify::{Link, MIN_STREAM_MS, Patience},
};

use crate::{
    check::{Verdict, check},
    node::{Home, Node},
    tools::{PATIENCE, skip, strace, until},
};

/// Everything that can carry a request, an answer or a log entry, and the syncs.
const CALLS: &str = "trace=fsync,fdatasync,read,readv,recvfrom,recvmsg,write,writev,sendto,sendmsg,pwrite64,pwritev";
/// Longest string shown; no message of these tests is longer, and the reader refuses one that is cut.
const STRING_BYTES: &str = "16384";
/// Campaigns, so that several shards are concerned.
const CAMPAIGNS: usize = 6;
/// Reports sent one at a time.
const ONE_BY_ONE: usize = 24;
/// Reports sent at once, over one connection: they share syncs.
const AT_ONCE: usize = 24;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_report_is_answered_before_the_sync_that_covers_it_returned() {
    if let Err(why) = strace() {
        return skip("no_report_is_answered_before_the_sync_that_covers_it_returned", &why);
    }
    let scratch = tempfile::tempdir().expect("a temporary folder");
    let home = Home::new(&scratch.path().join("data"), scratch.path());
    let verdict = reports_under_strace(&home, scratch.path()).await.expect("the trace shows every Report");
    assert_eq!(verdict.broken, [""; 0], "{} of the Reports are proven", verdict.proven);
    assert_eq!(verdict.proven, ONE_BY_ONE + AT_ONCE);
}

/// Runs a node under strace, has Reports billed by it, and judges the trace.
pub(crate) async fn reports_under_strace(home: &Home, scratch: &Path) -> Result<Verdict, String> {
    let trace = scratch.join("trace");
    let traced = ["strace", "-D", "-f", "-tt", "-yy", "-xx", "--seccomp-bpf", "-s", STRING_BYTES, "-e", CALLS, "-o"];
    let wrapper: Vec<String> =
        traced.iter().map(ToString::to_string).chain([trace.to_str().expect("text").to_owned()]).collect();
    let node = Node::start_under(home, &wrapper);
    let pid = node.pid();

    let patience = Patience { call: Duration::from_secs(20), outage: PATIENCE };
    let mut link = Link::new(ClientConfig::new([home.grpc.to_string()]), patience).expect("an address");
    let tokens = placements(&mut link, ONE_BY_ONE + AT_ONCE).await;
    for token in &tokens[..ONE_BY_ONE] {
        assert_eq!(report(link.clone(), token.clone()).await, OutcomeStatus::Billed);
    }
    let reports = tokens[ONE_BY_ONE..].iter().map(|token| report(link.clone(), token.clone()));
    assert!(futures::future::join_all(reports).await.iter().all(|status| *status == OutcomeStatus::Billed));

    node.kill();
    let last = format!("{pid} ");
    let trace = until("the end of the trace", || {
        let text = String::from_utf8_lossy(&std::fs::read(&trace).ok()?).into_owned();
        text.lines().rev().find(|line| line.starts_with(&last))?.ends_with("+++ killed by SIGKILL +++").then_some(text)
    });
    check(&trace, &tokens)
}

async fn report(mut link: Link, token: Vec<u8>) -> OutcomeStatus {
    let event = OutcomeEvent { token, kind: OutcomeKind::Stream.into(), stream_ms: MIN_STREAM_MS };
    link.report_events(vec![event]).await.expect("an answer")[0].status
}

/// Tokens of fresh campaigns with ample budgets.
async fn placements(link: &mut Link, count: usize) -> Vec<Vec<u8>> {
    let now_ms = link.server_info().await.expect("the node answers").now_ms;
    let specs: Vec<_> = (0..CAMPAIGNS)
        .map(|i| CampaignSpec {
            name: format!("campaign-{i}"),
            owner: "tests".into(),
            track_ids: vec![format!("track-{i}")],
            start_ms: now_ms,
            end_ms: now_ms + 3_600_000,
            budget_micros: 1_000_000_000_000,
            price_micros: 1_000,
            billable: BillableKind::Stream.into(),
            expected_billable_share: 1.0,
            ..CampaignSpec::default()
        })
        .collect();
    assert_eq!(link.import(&specs).await.expect("an answer").created, CAMPAIGNS as u64);
    let mut tokens = Vec::new();
    let asked = async {
        for i in 0.. {
            let request = ScoreRequest {
                listener_id: format!("listener-{i}"),
                surface: "radio".into(),
                market: "US".into(),
                candidates: vec![Candidate { track_id: format!("track-{}", i % CAMPAIGNS), relevance: 1.0 }],
                slots: 1,
                ..ScoreRequest::default()
            };
            // A campaign's first requests only wake it.
            let Ok(response) = link.score(request).await else { continue };
            tokens.extend(response.placements.into_iter().map(|placement| placement.token));
            if tokens.len() >= count {
                return;
            }
        }
    };
    tokio::time::timeout(PATIENCE, asked).await.expect("enough placements");
    tokens
}
