//! The API of a whole node over real connections: what is refused and how, what is promised and kept.

#[path = "api/served.rs"]
mod served;

use std::time::Duration;

use andante::{
    api::reason,
    settings::Settings,
    v1::{self, CampaignState, OutcomeKind, OutcomeStatus, cluster_service_client::ClusterServiceClient},
};
use served::{PATIENCE, Served, fields, score_request, spec, why};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tonic::{Code, Request};
use tonic_types::StatusExt as _;

#[tokio::test(flavor = "multi_thread")]
async fn a_placement_comes_back_as_an_outcome_and_is_billed_once() {
    let served = Served::start().await;
    served.create(spec("c1")).await;
    let placement = served.place("track-c1").await;
    assert!(placement.token.len() <= 64 && placement.campaign == "c1");
    let event = |token: &[u8], kind: OutcomeKind, stream_ms| v1::OutcomeEvent {
        token: token.to_vec(),
        kind: kind as i32,
        stream_ms,
    };
    let mut flipped = placement.token.clone();
    flipped[9] ^= 1;
    let events = vec![
        event(&placement.token, OutcomeKind::Impression, 0),
        event(&placement.token, OutcomeKind::Stream, 45_000),
        event(&placement.token, OutcomeKind::Stream, 45_000),
        event(&flipped, OutcomeKind::Stream, 45_000),
        event(&[], OutcomeKind::Stream, 45_000),
        event(&placement.token, OutcomeKind::Unspecified, 0),
        v1::OutcomeEvent { token: placement.token.clone(), kind: 77, stream_ms: 0 },
    ];
    let answer = served.outcome().report(v1::ReportRequest { events }).await.unwrap().into_inner();
    let statuses: Vec<OutcomeStatus> = answer.results.iter().map(v1::OutcomeResult::status).collect();
    assert_eq!(
        statuses,
        [
            OutcomeStatus::Recorded,
            OutcomeStatus::Billed,
            OutcomeStatus::Duplicate,
            OutcomeStatus::InvalidToken,
            OutcomeStatus::InvalidToken,
            OutcomeStatus::InvalidEvent,
            OutcomeStatus::InvalidEvent,
        ]
    );
    let request = v1::GetCampaignRequest { name: "c1".into() };
    let campaign = served.campaign().get_campaign(request).await.unwrap().into_inner().campaign.unwrap();
    let ledger = campaign.ledger.unwrap();
    assert_eq!((ledger.settled_micros, ledger.billed, ledger.impressions), (1_000, 1, 1));
    served.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn bad_input_is_refused_with_every_bad_field_and_changes_nothing() {
    let served = Served::start().await;
    let mut score = score_request("t", 5);
    score.listener_id.clear();
    score.candidates[0].relevance = f64::NAN;
    assert_eq!(fields(served.score().score(score).await), ["listener_id", "slots", "candidates[0].relevance"]);

    assert_eq!(fields(served.outcome().report(v1::ReportRequest { events: vec![] }).await), ["events"]);
    let events = vec![v1::OutcomeEvent::default(); 1_001];
    assert_eq!(fields(served.outcome().report(v1::ReportRequest { events }).await), ["events"]);

    type Change = fn(&mut v1::CampaignSpec);
    let table: &[(&str, Change)] = &[
        ("spec.name", |s| s.name = "No".into()),
        ("spec.price_micros", |s| s.price_micros = 0),
        ("spec.end_ms", |s| s.end_ms = 1),
        ("spec.budget_micros", |s| s.budget_micros = 999),
        ("spec.track_ids[1]", |s| s.track_ids.push(s.track_ids[0].clone())),
        ("spec.billable", |s| s.billable = 9),
        ("spec.boost_cap", |s| s.boost_cap = f64::NAN),
    ];
    for (field, change) in table {
        let mut bad = spec("c1");
        change(&mut bad);
        let request = v1::CreateCampaignRequest { request_id: "r".into(), spec: Some(bad) };
        let named = fields(served.campaign().create_campaign(request).await);
        assert!(named.iter().any(|name| name == field), "{field} in {named:?}");
    }
    let all = served.campaign().list_campaigns(v1::ListCampaignsRequest::default()).await.unwrap().into_inner();
    assert!(all.campaigns.is_empty());
    served.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn writes_are_guarded_by_etags_masks_and_states() {
    let served = Served::start().await;
    let mut client = served.campaign();
    let created = served.create(spec("c1")).await;
    let again = served.create(spec("c1")).await;
    assert_eq!(created.incarnation, again.incarnation, "a retry answers the same campaign");
    let other = v1::CreateCampaignRequest { request_id: "other".into(), spec: Some(spec("c1")) };
    assert_eq!(why(client.create_campaign(other).await), (Code::AlreadyExists, reason::ALREADY_EXISTS.into()));

    let update = |budget_micros, paths: &[&str], etag: &str| v1::UpdateCampaignRequest {
        spec: Some(v1::CampaignSpec { name: "c1".into(), budget_micros, ..Default::default() }),
        update_mask: Some(prost_types::FieldMask { paths: paths.iter().map(|p| (*p).to_owned()).collect() }),
        etag: etag.into(),
        ..Default::default()
    };
    assert_eq!(fields(client.update_campaign(update(1, &[], "")).await), ["update_mask"]);
    assert_eq!(fields(client.update_campaign(update(1, &["name"], "")).await), ["update_mask.paths[0]"]);
    assert_eq!(fields(client.update_campaign(update(1, &["budget_micros"], "")).await), ["spec.budget_micros"]);
    let changed = client.update_campaign(update(200_000_000, &["budget_micros"], &created.etag)).await.unwrap();
    let changed = changed.into_inner().campaign.unwrap();
    assert_eq!(changed.spec.as_ref().map(|s| (s.budget_micros, s.price_micros)), Some((200_000_000, 1_000)));
    let stale = client.update_campaign(update(300_000_000, &["budget_micros"], &created.etag)).await.unwrap_err();
    assert_eq!(stale.get_details_error_info().unwrap().metadata["etag"], changed.etag);
    assert_eq!(why::<()>(Err(stale)), (Code::Aborted, reason::STALE_ETAG.into()));

    let end = v1::EndCampaignRequest { name: "c1".into(), ..Default::default() };
    let ended = client.end_campaign(end).await.unwrap().into_inner().campaign.unwrap();
    assert_eq!(ended.state(), CampaignState::Ended);
    let resume = v1::ResumeCampaignRequest { name: "c1".into(), ..Default::default() };
    assert_eq!(why(client.resume_campaign(resume).await), (Code::FailedPrecondition, reason::WRONG_STATE.into()));
    let missing = v1::PauseCampaignRequest { name: "nobody".into(), ..Default::default() };
    assert_eq!(why(client.pause_campaign(missing).await), (Code::NotFound, reason::NOT_FOUND.into()));
    let missing = v1::GetCampaignRequest { name: "nobody".into() };
    assert_eq!(why(client.get_campaign(missing).await), (Code::NotFound, reason::NOT_FOUND.into()));
    served.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_etag_of_a_deleted_campaign_fits_no_later_one_of_its_name() {
    let served = Served::start().await;
    let mut client = served.campaign();
    let old = served.create(spec("c1")).await;
    let delete = v1::DeleteCampaignRequest { name: "c1".into(), ..Default::default() };
    assert_eq!(client.delete_campaign(delete).await.unwrap().into_inner().campaign, None);
    let create = v1::CreateCampaignRequest { request_id: "anew".into(), spec: Some(spec("c1")) };
    let new = client.create_campaign(create).await.unwrap().into_inner().campaign.unwrap();
    assert_ne!(new.etag, old.etag);

    let (name, etag) = (String::from("c1"), old.etag);
    let update = v1::UpdateCampaignRequest {
        spec: Some(v1::CampaignSpec { name: name.clone(), budget_micros: 200_000_000, ..Default::default() }),
        update_mask: Some(prost_types::FieldMask { paths: vec!["budget_micros".into()] }),
        etag: etag.clone(),
        ..Default::default()
    };
    let stale = client.update_campaign(update).await.unwrap_err();
    assert_eq!(stale.get_details_error_info().unwrap().metadata["etag"], new.etag);
    assert_eq!(why::<()>(Err(stale)), (Code::Aborted, reason::STALE_ETAG.into()));
    let pause = v1::PauseCampaignRequest { name: name.clone(), etag: etag.clone(), ..Default::default() };
    assert_eq!(why(client.pause_campaign(pause).await), (Code::Aborted, reason::STALE_ETAG.into()));
    let delete = v1::DeleteCampaignRequest { name: name.clone(), etag, ..Default::default() };
    assert_eq!(why(client.delete_campaign(delete).await), (Code::Aborted, reason::STALE_ETAG.into()));
    // An etag as it was before incarnations were in it: no guess is made at what it meant.
    let pause = v1::PauseCampaignRequest { name: name.clone(), etag: "1".into(), ..Default::default() };
    assert_eq!(fields(client.pause_campaign(pause).await), ["etag"]);
    let there = client.get_campaign(v1::GetCampaignRequest { name }).await.unwrap().into_inner().campaign;
    assert_eq!(there, Some(new));
    served.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_budget_below_what_is_set_aside_is_refused_with_the_lowest_possible() {
    let served = Served::start().await;
    served.create(spec("c1")).await;
    served.place("track-c1").await;
    let request = v1::UpdateCampaignRequest {
        spec: Some(v1::CampaignSpec { name: "c1".into(), budget_micros: 1_000, ..Default::default() }),
        update_mask: Some(prost_types::FieldMask { paths: vec!["budget_micros".into()] }),
        ..Default::default()
    };
    // An allowance of one token may be all there is: then this budget is possible.
    match served.campaign().update_campaign(request).await {
        Ok(changed) => {
            let ledger = changed.into_inner().campaign.unwrap().ledger.unwrap();
            assert!(ledger.settled_micros + ledger.open_micros <= 1_000);
        }
        Err(status) => {
            let lowest = status.get_details_error_info().unwrap().metadata["lowest_budget_micros"].clone();
            assert!(lowest.parse::<u64>().unwrap() > 1_000);
            assert_eq!(why::<()>(Err(status)), (Code::FailedPrecondition, reason::BUDGET_TOO_LOW.into()));
        }
    }
    served.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_import_can_be_repeated_and_pages_lead_through_everything() {
    let served = Served::start().await;
    let mut specs: Vec<v1::CampaignSpec> = (0..25).map(|i| spec(&format!("c{i:02}"))).collect();
    specs.push(v1::CampaignSpec { price_micros: 0, ..spec("bad") });
    let import = || {
        let requests: Vec<_> =
            specs.iter().map(|spec| v1::ImportCampaignsRequest { spec: Some(spec.clone()) }).collect();
        async { served.campaign().import_campaigns(tokio_stream::iter(requests)).await.unwrap().into_inner() }
    };
    let first = import().await;
    assert_eq!((first.created, first.unchanged, first.failed), (25, 0, 1));
    assert_eq!((first.failures[0].index, first.failures[0].name.as_str()), (25, "bad"));
    let second = import().await;
    assert_eq!((second.created, second.unchanged, second.failed), (0, 25, 1));

    let mut names = Vec::new();
    let mut page_token = String::new();
    loop {
        let request = v1::ListCampaignsRequest { page_size: 7, page_token, ..Default::default() };
        let page = served.campaign().list_campaigns(request).await.unwrap().into_inner();
        names.extend(page.campaigns.into_iter().map(|c| c.spec.unwrap().name));
        page_token = page.next_page_token;
        if page_token.is_empty() {
            break;
        }
    }
    let expected: Vec<String> = (0..25).map(|i| format!("c{i:02}")).collect();
    assert_eq!(names, expected);
    let forged = v1::ListCampaignsRequest { page_token: "forged".into(), ..Default::default() };
    assert_eq!(fields(served.campaign().list_campaigns(forged).await), ["page_token"]);
    served.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_transport_refuses_has_an_error_info_too() {
    let served = Served::start().await;
    let mut large = score_request("t", 0);
    large.listener_id = "x".repeat(2 << 20);
    let (code, reason) = why(served.score().score(large).await);
    assert_eq!((code, reason.as_str()), (Code::OutOfRange, reason::MESSAGE_TOO_LARGE));

    let mut grpc = tonic::client::Grpc::new(served.channel.clone());
    grpc.ready().await.unwrap();
    let codec = tonic_prost::ProstCodec::<v1::GetServerInfoRequest, v1::GetServerInfoResponse>::default();
    let path = http::uri::PathAndQuery::from_static("/andante.v1.ServerService/NoSuchMethod");
    let answer = grpc.unary(Request::new(v1::GetServerInfoRequest {}), path, codec).await;
    assert_eq!(why(answer), (Code::Unimplemented, reason::NO_SUCH_METHOD.into()));

    let mut request = Request::new(score_request("t", 0));
    request.metadata_mut().insert("grpc-timeout", "soon".parse().unwrap());
    assert_eq!(fields(served.score().score(request).await), ["grpc-timeout"]);
    served.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn more_than_fits_is_refused_at_once_and_says_when_to_retry() {
    let settings = Settings { max_events_in_flight: 1_000, ..Settings::default() };
    let served = Served::start_with(settings).await;
    let events = vec![v1::OutcomeEvent { kind: 1, ..Default::default() }; 1_000];
    // With room for one such report, of many at once some find it taken: until one does, more are sent.
    let refused = async {
        loop {
            let reports = (0..8).map(|_| {
                let (mut client, events) = (served.outcome(), events.clone());
                async move { client.report(v1::ReportRequest { events }).await }
            });
            let refused = futures::future::join_all(reports).await.into_iter().find_map(Result::err);
            if let Some(status) = refused {
                return status;
            }
        }
    };
    let status = tokio::time::timeout(PATIENCE, refused).await.expect("some find no room");
    assert!(status.get_details_retry_info().is_some_and(|retry| retry.retry_delay.is_some()));
    assert_eq!(why::<()>(Err(status)), (Code::ResourceExhausted, reason::OVERLOADED.into()));
    served.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_watch_tells_spend_against_plan_and_ends_with_the_campaign() {
    let served = Served::start().await;
    served.create(spec("c1")).await;
    let request = v1::WatchPacingRequest { name: "c1".into(), interval_ms: 100 };
    let mut watch = served.campaign().watch_pacing(request).await.unwrap().into_inner();
    let first = watch.message().await.unwrap().expect("a message");
    assert_eq!((first.budget_micros, first.state()), (100_000_000, CampaignState::Active));
    let end = v1::EndCampaignRequest { name: "c1".into(), ..Default::default() };
    served.campaign().end_campaign(end).await.unwrap();
    let ended = async {
        let mut last = first;
        while let Some(message) = watch.message().await.unwrap() {
            last = message;
        }
        last
    };
    let last = tokio::time::timeout(PATIENCE, ended).await.expect("the stream ends");
    assert_eq!(last.state(), CampaignState::Ended);
    let missing = v1::WatchPacingRequest { name: "nobody".into(), interval_ms: 0 };
    assert_eq!(why(served.campaign().watch_pacing(missing).await), (Code::NotFound, reason::NOT_FOUND.into()));
    served.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_watch_does_not_hold_up_a_server_that_stops() {
    let served = Served::start().await;
    served.create(spec("c1")).await;
    let request = v1::WatchPacingRequest { name: "c1".into(), interval_ms: 60_000 };
    let mut watch = served.campaign().watch_pacing(request).await.unwrap().into_inner();
    watch.message().await.unwrap().expect("a first message at once");
    let stopping = tokio::spawn(served.stop());
    let (code, reason) = why(watch.message().await);
    assert_eq!((code, reason.as_str()), (Code::Unavailable, reason::DRAINING));
    drop(watch);
    stopping.await.expect("stops");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_server_tells_its_limits_and_keeps_its_clock() {
    let served = Served::start().await;
    let info = served.server().get_server_info(v1::GetServerInfoRequest {}).await.unwrap().into_inner();
    assert_eq!((info.cluster_id.len(), info.shards, info.clock_trusted), (32, 2, true));
    assert_eq!(info.limits.as_ref().map(|l| (l.candidates, l.events)), Some((500, 1_000)));
    let right = v1::ConfirmClockRequest { expected_now_ms: info.now_ms };
    assert!(served.server().confirm_clock(right).await.is_ok());
    let wrong = v1::ConfirmClockRequest { expected_now_ms: info.now_ms + 86_400_000 };
    let (code, reason) = why(served.server().confirm_clock(wrong).await);
    assert_eq!((code, reason.as_str()), (Code::FailedPrecondition, reason::CLOCK_DIFFERS));
    served.stop().await;
}

async fn get(served: &Served, path: &str) -> String {
    let mut stream = tokio::net::TcpStream::connect(served.http).await.expect("connects");
    let request = format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.expect("writes");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.expect("reads");
    answer
}

#[tokio::test(flavor = "multi_thread")]
async fn metrics_and_probes_answer_over_http() {
    let served = Served::start().await;
    let _ = served.score().score(v1::ScoreRequest::default()).await.unwrap_err();
    assert!(get(&served, "/livez").await.starts_with("HTTP/1.1 200"));
    assert!(get(&served, "/readyz").await.starts_with("HTTP/1.1 200"));
    let metrics = get(&served, "/metrics").await;
    let counted = "andante_rpc_requests_total{method=\"Score\",code=\"INVALID_ARGUMENT\"} 1";
    assert!(metrics.contains(counted) && metrics.contains("openmetrics-text"), "{metrics}");
    served.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn health_and_reflection_tell_what_is_served() {
    use tonic_health::pb::{HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient};
    use tonic_reflection::pb::v1::{
        ServerReflectionRequest, server_reflection_client::ServerReflectionClient,
        server_reflection_request::MessageRequest, server_reflection_response::MessageResponse,
    };
    let served = Served::start().await;
    for service in ["", "andante.v1.ScoreService", "andante.v1.CampaignService"] {
        let request = HealthCheckRequest { service: service.into() };
        let answer = HealthClient::new(served.channel.clone()).check(request).await.unwrap().into_inner();
        assert_eq!(answer.status(), ServingStatus::Serving, "{service}");
    }
    let request = ServerReflectionRequest {
        message_request: Some(MessageRequest::ListServices(String::new())),
        ..Default::default()
    };
    let mut client = ServerReflectionClient::new(served.channel.clone());
    let mut answers = client.server_reflection_info(tokio_stream::once(request)).await.unwrap().into_inner();
    let answer = answers.message().await.unwrap().expect("an answer").message_response;
    let Some(MessageResponse::ListServicesResponse(list)) = answer else { panic!("{answer:?}") };
    let names: Vec<String> = list.service.into_iter().map(|s| s.name).collect();
    for service in ["Score", "Outcome", "Campaign", "Server"] {
        assert!(names.contains(&format!("andante.v1.{service}Service")), "{names:?}");
    }
    drop(answers);
    served.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_beyond_the_limit_wait_for_their_turn() {
    let served = Served::start().await;
    let mut idle = Vec::new();
    for _ in 0..16 {
        idle.push(tokio::net::TcpStream::connect(served.grpc).await.expect("connects"));
    }
    let waiting = tokio::spawn({
        let mut client = served.server();
        async move { client.get_server_info(v1::GetServerInfoRequest {}).await }
    });
    let open = served.node.metrics().grpc_connections.clone();
    let full = async {
        while open.get() < 16 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    tokio::time::timeout(PATIENCE, full).await.expect("all places are taken");
    assert!(!waiting.is_finished());
    drop(idle);
    let answer = tokio::time::timeout(PATIENCE, waiting).await.expect("a place gets free").expect("does not panic");
    assert!(answer.is_ok());
    served.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_clusters_settings_change_together_by_field_and_version_or_not_at_all() {
    let settings = Settings { retry_window_ms: 700_000, ..Settings::default() };
    let served = Served::start_with(settings).await;
    let mut client = ClusterServiceClient::new(served.channel.clone());
    let read = client.get_cluster_settings(v1::GetClusterSettingsRequest {}).await.expect("reads").into_inner();
    let formed = v1::ClusterSettings { skew_margin_ms: 5_000, close_grace_ms: 30_000, retry_window_ms: 700_000 };
    assert_eq!(read.settings, Some(formed), "those of the node that formed the cluster");

    let update = |settings, paths: &[&str], etag: &str| v1::UpdateClusterSettingsRequest {
        settings: Some(settings),
        update_mask: Some(prost_types::FieldMask { paths: paths.iter().map(|p| (*p).to_owned()).collect() }),
        etag: etag.into(),
    };
    let beyond = v1::ClusterSettings { skew_margin_ms: 60_001, close_grace_ms: 1, retry_window_ms: 999 };
    let all = ["skew_margin_ms", "close_grace_ms", "retry_window_ms"];
    let refused = client.update_cluster_settings(update(beyond, &all, "")).await.expect_err("is refused");
    assert!(refused.message().contains("settings.skew_margin_ms: must lie in 100..=60000, is 60001"), "{refused}");
    assert_eq!(fields::<()>(Err(refused)), ["settings.skew_margin_ms", "settings.retry_window_ms"]);
    assert_eq!(
        fields(client.update_cluster_settings(update(beyond, &["tick_ms"], "x")).await),
        ["etag", "update_mask.paths[0]"]
    );
    let again = client.get_cluster_settings(v1::GetClusterSettingsRequest {}).await.expect("reads").into_inner();
    assert_eq!(again, read, "nothing changed");

    let wanted = v1::ClusterSettings { skew_margin_ms: 8_000, close_grace_ms: 0, retry_window_ms: 1 };
    let change = update(wanted, &["skew_margin_ms", "close_grace_ms"], &read.etag);
    let changed = client.update_cluster_settings(change.clone()).await.expect("changes").into_inner();
    let expected = v1::ClusterSettings { skew_margin_ms: 8_000, close_grace_ms: 0, retry_window_ms: 700_000 };
    assert_eq!(changed.settings, Some(expected));
    assert_ne!(changed.etag, read.etag);
    let here = served.node.cluster_settings();
    assert_eq!((here.skew_margin_ms, here.close_grace_ms), (8_000, 0), "in force when it is answered");
    let metrics = served.node.metrics().encode();
    assert!(metrics.contains("andante_skew_margin_ms 8000\n"), "{metrics}");

    let repeated = client.update_cluster_settings(change).await.expect("is done").into_inner();
    assert_eq!(repeated.settings, Some(expected), "what holds is done, whatever the etag");
    let stale = client.update_cluster_settings(update(formed, &["close_grace_ms"], &read.etag)).await;
    assert_eq!(why(stale), (Code::Aborted, reason::STALE_ETAG.into()));
    served.stop().await;
}
