//! What a node logs, at its most talkative, gives nobody a secret.

#[path = "api/served.rs"]
#[allow(dead_code)] // other tests use the rest
mod served;

use std::{
    io::Write,
    sync::{Arc, Mutex},
};

use andante::{
    access::{CertificateSource, OPERATOR_TOKEN_FILE},
    v1::{self, OutcomeKind, access_service_client::AccessServiceClient},
};
use andante_cluster::security::JoinToken;
use base64::{
    Engine as _,
    engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD},
};
use served::{PATIENCE, Served, Setup, fields, spec, why};
use tracing_subscriber::{EnvFilter, fmt::MakeWriter};

/// All that was logged.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl Log {
    fn text(&self) -> String {
        String::from_utf8_lossy(&self.0.lock().expect("nobody panicked")).into_owned()
    }
}

impl Write for Log {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().expect("nobody panicked").extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl<'a> MakeWriter<'a> for Log {
    type Writer = Self;

    fn make_writer(&'a self) -> Self {
        self.clone()
    }
}

/// The ways in which bytes show up in a log: as text, hexadecimal, base64, or a list of numbers.
fn spellings(secret: &[u8]) -> Vec<String> {
    // A part of it is enough to find it, wherever it was cut; base64 needs a multiple of three.
    let part = &secret[..secret.len().min(15)];
    let hex = |digits: fn(&u8) -> String| part.iter().map(digits).collect::<String>();
    let list = format!("{part:?}");
    let escaped = part.escape_ascii().to_string();
    vec![
        hex(|b| format!("{b:02x}")),
        hex(|b| format!("{b:02X}")),
        STANDARD.encode(part),
        URL_SAFE_NO_PAD.encode(part),
        list.trim_matches(['[', ']']).to_owned(),
        escaped,
    ]
}

#[test]
fn a_secret_in_a_log_would_be_found() {
    let secret: Vec<u8> = (200..232).collect();
    let hex: String = secret.iter().map(|b| format!("{b:02x}")).collect();
    let lines = [hex, format!("{secret:?}"), STANDARD.encode(&secret), URL_SAFE_NO_PAD.encode(&secret)];
    for line in lines.into_iter().chain([format!("b\"{}\"", secret.escape_ascii())]) {
        assert!(spellings(&secret).iter().any(|spelling| line.contains(spelling)), "{line}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn no_secret_appears_in_a_log() {
    let log = Log::default();
    // The libraries' debug lines, and every line of our own.
    let filter = EnvFilter::new("debug,andante=trace,andante_cluster=trace");
    let lines = tracing_subscriber::fmt().with_env_filter(filter).with_writer(log.clone()).with_ansi(false).finish();
    tracing::subscriber::set_global_default(lines).expect("the only one of this process");
    let served = Served::start_as(Setup { auth: true, ..Setup::default() }).await;
    let env = andante_cluster::env::Env::production();
    let tls =
        served.node.server_tls(CertificateSource::Authority { names: vec![] }, &env).await.expect("a certificate");
    let operator = std::fs::read_to_string(served.dir.path().join(OPERATOR_TOKEN_FILE)).expect("is there");
    let operator = operator.trim().to_owned();
    let with = |token: &str| format!("Bearer {token}").parse().expect("is ASCII");
    let mut access = AccessServiceClient::with_interceptor(served.channel.clone(), {
        let authorization: tonic::metadata::MetadataValue<_> = with(&operator);
        move |mut request: tonic::Request<()>| {
            request.metadata_mut().insert("authorization", authorization.clone());
            Ok(request)
        }
    });

    let roles = [v1::Role::Score, v1::Role::Outcome, v1::Role::Campaign].map(Into::into).to_vec();
    let request = v1::CreateTokenRequest { name: "radio".into(), roles, ttl_ms: 0 };
    let made = access.create_token(request).await.expect("is made").into_inner();
    let join = access.create_join_token(v1::CreateJoinTokenRequest { ttl_ms: 0 }).await.expect("is made").into_inner();
    access.rotate_token_keys(v1::RotateTokenKeysRequest {}).await.expect("rotates");

    // A day in the life of a token, and mistakes with it.
    let mut flawed = made.token.clone();
    flawed.truncate(flawed.len() - 1);
    let mut request = tonic::Request::new(v1::ListCampaignsRequest::default());
    request.metadata_mut().insert("authorization", with(&flawed));
    let refused = why(served.campaign().list_campaigns(request).await);
    assert_eq!(refused.0, tonic::Code::Unauthenticated);
    let mut request = tonic::Request::new(v1::ConfirmClockRequest { expected_now_ms: 1 });
    request.metadata_mut().insert("authorization", with(&made.token));
    assert_eq!(why(served.server().confirm_clock(request).await).0, tonic::Code::PermissionDenied);
    let authorize = |mut request: tonic::Request<()>| {
        request.metadata_mut().insert("authorization", with(&made.token));
        Ok(request)
    };
    let mut campaign =
        v1::campaign_service_client::CampaignServiceClient::with_interceptor(served.channel.clone(), authorize);
    let request = v1::CreateCampaignRequest { request_id: "r".into(), spec: Some(spec("c1")) };
    campaign.create_campaign(request.clone()).await.expect("creates");
    let bad = v1::CreateCampaignRequest { spec: None, ..request };
    assert!(!fields(campaign.create_campaign(bad).await).is_empty());
    let mut score = v1::score_service_client::ScoreServiceClient::with_interceptor(served.channel.clone(), authorize);
    let placed = async {
        loop {
            let answer = score.score(served::score_request("track-c1", 1)).await.expect("scores").into_inner();
            if let Some(placement) = answer.placements.into_iter().next() {
                return placement;
            }
        }
    };
    let placement = tokio::time::timeout(PATIENCE, placed).await.expect("a placement");
    let mut outcome =
        v1::outcome_service_client::OutcomeServiceClient::with_interceptor(served.channel.clone(), authorize);
    let kind = OutcomeKind::Stream as i32;
    let event = v1::OutcomeEvent { token: placement.token.clone(), kind, stream_ms: 45_000 };
    let damaged = v1::OutcomeEvent { token: placement.token[..40].to_vec(), ..event.clone() };
    outcome.report(v1::ReportRequest { events: vec![event, damaged] }).await.expect("reports");

    let mut secrets: Vec<(&str, Vec<u8>)> = Vec::new();
    let join_token = JoinToken::parse(&join.join_token).expect("is one");
    secrets.push(("a join token's secret", join_token.secret.to_vec()));
    secrets.push(("a delivery token's proof", placement.token[42..].to_vec()));
    // The keys that the directory keeps stand somewhere in these settings; each run of 16 bytes is looked for.
    let directory = served.node.host().directory().borrow().clone();
    drop(tls);
    served.stop().await;

    let log = log.text();
    assert!(log.contains("access token made") && log.contains("turned away"), "it was listened to");
    for text in [&operator, &made.token, &join.join_token] {
        // The end of it is secret in all of them.
        let secret = &text[text.len() - 30..];
        assert!(!log.contains(secret), "a token's text is in the log");
    }
    for (what, secret) in &secrets {
        for spelling in spellings(secret) {
            assert!(!log.contains(&spelling), "{what} is in the log");
        }
    }
    for name in ["token_keys", "cluster_authority"] {
        let value = &directory.settings[name].value;
        for at in (0..value.len().saturating_sub(16)).step_by(8) {
            for spelling in spellings(&value[at..at + 16]) {
                assert!(!log.contains(&spelling), "bytes {at} of the setting {name} are in the log as {spelling}");
            }
        }
    }
}
