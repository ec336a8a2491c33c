//! What the nodes of a cluster log, at their most talkative, gives nobody a secret.

#[path = "api/served.rs"]
#[allow(dead_code)] // other tests use the rest
mod served;

use std::{
    collections::HashMap,
    io::Write,
    path::Path,
    sync::{Arc, Mutex},
};

use andante::{
    access::{CertificateSource, OPERATOR_TOKEN_FILE},
    node::{Node, NodeConfig, PeerConfig},
    v1::{self, OutcomeKind, access_service_client::AccessServiceClient},
};
use andante_cluster::{
    env::{Env, OsThreads, SystemClock, SystemRng, TcpNetwork},
    host::Join,
    security::JoinToken,
    storage::memory::MemoryStores,
};
use base64::{
    Engine as _,
    engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD},
};
use served::{PATIENCE, Served, Setup, fields, spec, why};
use tracing_subscriber::{EnvFilter, fmt::MakeWriter};

/// A node's private key, with what stands before it in the file of its certificate.
const KEY_BYTES: usize = 140;

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

/// Looks for many spellings at once: the logs are long.
struct Search {
    /// The first two bytes of what is looked for.
    starts: Vec<bool>,
    /// What is looked for and what it is, by its first bytes.
    wanted: HashMap<[u8; 4], Vec<(String, String)>>,
}

impl Search {
    fn new() -> Self {
        Self { starts: vec![false; 1 << 16], wanted: HashMap::new() }
    }

    /// Adds a text.
    fn text(&mut self, what: &str, text: String) {
        let start: [u8; 4] = *text.as_bytes().first_chunk().expect("long enough to be a secret");
        self.starts[usize::from(u16::from_be_bytes([start[0], start[1]]))] = true;
        self.wanted.entry(start).or_default().push((text, what.to_owned()));
    }

    /// Adds bytes, in every spelling.
    fn bytes(&mut self, what: &str, bytes: &[u8]) {
        spellings(bytes).into_iter().for_each(|spelling| self.text(what, spelling));
    }

    /// The first of them in a log: what it is and how it is spelt.
    fn find_in(&self, log: &str) -> Option<(&str, &str)> {
        let log = log.as_bytes();
        for (at, start) in log.windows(4).enumerate() {
            if self.starts[usize::from(u16::from_be_bytes([start[0], start[1]]))]
                && let Some(wanted) = self.wanted.get(start)
                && let Some((text, what)) = wanted.iter().find(|(text, _)| log[at..].starts_with(text.as_bytes()))
            {
                return Some((what, text));
            }
        }
        None
    }
}

#[test]
fn a_secret_in_a_log_would_be_found() {
    let secret: Vec<u8> = (200..232).collect();
    let hex: String = secret.iter().map(|b| format!("{b:02x}")).collect();
    let lines = [hex, format!("{secret:?}"), STANDARD.encode(&secret), URL_SAFE_NO_PAD.encode(&secret)];
    for line in lines.into_iter().chain([format!("b\"{}\"", secret.escape_ascii())]) {
        let mut search = Search::new();
        search.bytes("a secret", &secret);
        let log = format!("a line\nanother line {line} and its end");
        assert_eq!(search.find_in(&log).map(|(what, _)| what), Some("a secret"), "{line}");
        assert_eq!(search.find_in(&log[..20]), None);
    }
}

/// One more node of a cluster, over TLS.
async fn join(dir: &Path, seed: &Node, token: &JoinToken) -> anyhow::Result<Node> {
    let env = Env {
        clock: Arc::new(SystemClock::default()),
        network: Arc::new(TcpNetwork),
        rng: Arc::new(SystemRng),
        blocking: Arc::new(OsThreads),
        stores: Arc::new(MemoryStores::default()),
    };
    let join = Join { addresses: vec![seed.peer_addr().to_string()], token: token.encode() };
    let peers = PeerConfig { join: Some(join), ..PeerConfig::default() };
    Node::start(env, NodeConfig { peers, ..NodeConfig::new(dir) }).await
}

/// Waits until the shards are on so many nodes.
async fn spread(node: &Node, nodes: usize) {
    let mut directory = node.host().directory();
    let spread =
        directory.wait_for(|now| now.replicas.values().all(|here| here.settled() && here.nodes.len() == nodes));
    tokio::time::timeout(PATIENCE, spread).await.expect("spreads").expect("runs");
}

#[tokio::test(flavor = "multi_thread")]
async fn no_secret_appears_in_a_log() {
    let log = Log::default();
    // The libraries' debug lines, and every line of our own.
    let filter = EnvFilter::new("debug,andante=trace,andante_cluster=trace");
    let lines = tracing_subscriber::fmt().with_env_filter(filter).with_writer(log.clone()).with_ansi(false).finish();
    tracing::subscriber::set_global_default(lines).expect("the only one of this process");
    let served = Served::start_as(Setup { auth: true, ..Setup::default() }).await;
    let env = Env::production();
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
    let made_to_join = access.create_join_token(v1::CreateJoinTokenRequest { ttl_ms: 0 }).await.expect("is made");
    let made_to_join = made_to_join.into_inner().join_token;
    let join_token = JoinToken::parse(&made_to_join).expect("is one");
    let dirs = [(); 3].map(|()| tempfile::tempdir().expect("a temporary folder"));
    let second = join(dirs[0].path(), &served.node, &join_token).await.expect("joins");
    let third = join(dirs[1].path(), &served.node, &join_token).await.expect("joins");
    spread(&served.node, 3).await;
    let mut forged = join_token.clone();
    forged.secret[0] ^= 1;
    let not_joined = join(dirs[2].path(), &served.node, &forged).await.err().expect("is refused").to_string();
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

    // One is lost without a word; the others go on.
    second.halt().await.expect("halts");
    let again = v1::ListCampaignsRequest::default();
    assert_eq!(campaign.list_campaigns(again).await.expect("lists").into_inner().campaigns.len(), 1);

    let secrets = [
        ("a join token's secret", join_token.secret.to_vec()),
        ("a wrong join token's secret", forged.secret.to_vec()),
        ("a delivery token's proof", placement.token[42..].to_vec()),
    ];
    // The keys that the directory keeps stand somewhere in these settings; each run of 16 bytes is looked for.
    let directory = served.node.host().directory().borrow().clone();
    // The key of a node's certificate stands at the beginning of its file.
    let nodes = [served.dir.path(), dirs[0].path(), dirs[1].path()];
    let keys = nodes.map(|dir| {
        let file = std::fs::read(dir.join("tls/node")).expect("is there");
        ("a node's certificate", file[..KEY_BYTES].to_vec())
    });
    drop(tls);
    served.stop().await;
    third.halt().await.expect("halts");

    let log = log.text();
    for heard in ["access token made", "turned away", "linked", "no link"] {
        assert!(log.contains(heard), "it was listened to: {heard}");
    }
    let mut search = Search::new();
    for text in [&operator, &made.token, &made_to_join, &forged.encode()] {
        // The end of it is secret in all of them.
        search.text("a token's text", text[text.len() - 30..].to_owned());
    }
    assert_eq!(search.find_in(&not_joined), None, "an error tells nothing either");
    for (what, secret) in &secrets {
        search.bytes(what, secret);
    }
    // The keys stand somewhere in these; each run of 16 bytes is looked for.
    let settings = ["token_keys", "cluster_authority"].map(|name| (name, directory.settings[name].value.to_vec()));
    for (name, value) in settings.into_iter().chain(keys) {
        for at in (0..value.len().saturating_sub(16)).step_by(8) {
            search.bytes(&format!("bytes {at} of {name}"), &value[at..at + 16]);
        }
    }
    assert_eq!(search.find_in(&log), None);
}
