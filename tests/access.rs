//! Who may do what: tokens and roles over real connections, TLS, and the rotation of keys.

#[path = "api/served.rs"]
mod served;
mod support;

use std::{
    path::Path,
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use andante::{
    access::{AccessToken, CertificateSource, NewToken, OPERATOR_TOKEN_FILE, Role, Roles},
    api::reason,
    campaign::proto,
    settings::Settings,
    v1::{self, OutcomeKind, OutcomeStatus, access_service_client::AccessServiceClient},
};
use andante_cluster::{
    directory::Directory,
    env::{Clock, SystemClock, SystemRng},
};
use hyper_util::rt::TokioIo;
use prost::Message as _;
use rustls::pki_types::{CertificateDer, ServerName, pem::PemObject as _};
use serde_json::Value;
use served::{PATIENCE, Served, Setup, spec, why};
use support::trio::{self, NODES, Trio, streamed};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tonic::{
    Code, Request, Status,
    client::Grpc,
    transport::{Channel, Endpoint, Uri},
};

const HOUR_MS: u64 = 3_600_000;

/// Real time, moved by tests.
#[derive(Default)]
struct MovedClock {
    real: SystemClock,
    passed_ms: AtomicU64,
}

impl MovedClock {
    fn pass(&self, ms: u64) {
        self.passed_ms.fetch_add(ms, Ordering::SeqCst);
    }
}

impl Clock for MovedClock {
    fn now_ms(&self) -> u64 {
        self.real.now_ms() + self.passed_ms.load(Ordering::SeqCst)
    }

    fn monotonic_micros(&self) -> u64 {
        self.real.monotonic_micros() + self.passed_ms.load(Ordering::SeqCst) * 1_000
    }
}

async fn guarded() -> (Served, Arc<MovedClock>) {
    let clock = Arc::new(MovedClock::default());
    let setup = Setup { auth: true, clock: clock.clone(), ..Setup::default() };
    (Served::start_as(setup).await, clock)
}

/// The text that the first start left in a file.
fn operator(dir: &Path) -> String {
    std::fs::read_to_string(dir.join(OPERATOR_TOKEN_FILE)).expect("the first operator's token").trim().to_owned()
}

fn with<T>(token: &str, message: T) -> Request<T> {
    let mut request = Request::new(message);
    request.metadata_mut().insert("authorization", format!("Bearer {token}").parse().expect("is ASCII"));
    request
}

async fn make(served: &Served, name: &str, roles: &[Role], ttl_ms: u64) -> v1::CreateTokenResponse {
    let roles = roles.iter().map(|role| *role as i32 + 1).collect();
    let request = v1::CreateTokenRequest { name: name.into(), roles, ttl_ms };
    let mut client = AccessServiceClient::new(served.channel.clone());
    client.create_token(with(&operator(served.dir.path()), request)).await.expect("makes a token").into_inner()
}

/// Calls any method with an empty message.
async fn call(channel: &Channel, path: &str, token: Option<&str>) -> Result<(), Status> {
    let mut client = Grpc::new(channel.clone());
    client.ready().await.expect("connects");
    let request = match token {
        Some(token) => with(token, ()),
        None => Request::new(()),
    };
    let codec = tonic_prost::ProstCodec::<(), ()>::default();
    client.unary(request, path.parse().expect("a path"), codec).await.map(drop)
}

/// Which roles may call which method; `*`: every token.
const TABLE: &[(&str, &str)] = &[
    ("ScoreService/Score", "score"),
    ("OutcomeService/Report", "outcome"),
    ("CampaignService/CreateCampaign", "campaign"),
    ("CampaignService/GetCampaign", "campaign"),
    ("CampaignService/ListCampaigns", "campaign"),
    ("CampaignService/UpdateCampaign", "campaign"),
    ("CampaignService/PauseCampaign", "campaign"),
    ("CampaignService/ResumeCampaign", "campaign"),
    ("CampaignService/EndCampaign", "campaign"),
    ("CampaignService/DeleteCampaign", "campaign"),
    ("CampaignService/ImportCampaigns", "campaign"),
    ("CampaignService/WatchPacing", "campaign"),
    ("ServerService/GetServerInfo", "*"),
    ("ServerService/ConfirmClock", "operator"),
    ("ClusterService/GetClusterStatus", "*"),
    ("ClusterService/GetClusterSettings", "operator"),
    ("ClusterService/UpdateClusterSettings", "operator"),
    ("AccessService/CreateToken", "operator"),
    ("AccessService/ListTokens", "operator"),
    ("AccessService/RevokeToken", "operator"),
    ("AccessService/CreateJoinToken", "operator"),
    ("AccessService/GetAuthority", "operator"),
    ("AccessService/RotateTokenKeys", "operator"),
];

#[tokio::test(flavor = "multi_thread")]
async fn each_call_needs_its_role_and_operators_may_do_everything() {
    let (served, _) = guarded().await;
    let files = prost_types::FileDescriptorSet::decode(v1::FILE_DESCRIPTOR_SET).expect("decodes");
    let services = files.file.iter().filter(|file| file.package() == "andante.v1").flat_map(|file| &file.service);
    let rpcs: usize = services.map(|service| service.method.len()).sum();
    assert_eq!(TABLE.len(), rpcs, "the table has every RPC");

    let mut tokens = Vec::new();
    for role in Role::ALL {
        tokens.push((role.name(), make(&served, role.name(), &[role], 0).await.token));
    }
    for (method, needed) in TABLE {
        let path = format!("/andante.v1.{method}");
        let unknown = why(call(&served.channel, &path, None).await);
        assert_eq!(unknown, (Code::Unauthenticated, reason::UNAUTHENTICATED.into()), "{method} without a token");
        for (role, token) in &tokens {
            let refused = match call(&served.channel, &path, Some(token)).await {
                Err(status) if status.code() == Code::PermissionDenied => {
                    assert!(status.message().contains(needed), "{method}: {}", status.message());
                    true
                }
                Err(status) => {
                    assert_ne!(status.code(), Code::Unauthenticated, "{method} as {role}");
                    false
                }
                Ok(()) => false,
            };
            let allowed = [*role, "*"].contains(needed) || *role == "operator";
            assert_eq!(refused, !allowed, "{method} as {role}");
        }
    }
    let metrics = served.node.metrics().encode();
    assert!(metrics.contains("andante_rpc_requests_total{method=\"Score\",code=\"UNAUTHENTICATED\"} 1"), "{metrics}");
    served.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn health_is_open_and_what_shows_the_contract_is_not() {
    let (served, _) = guarded().await;
    call(&served.channel, "/grpc.health.v1.Health/Check", None).await.expect("is healthy");
    assert_ne!(served.http, served.grpc, "metrics and probes are elsewhere");
    for path in [
        "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
        "/andante.v1.ScoreService/NoSuchMethod",
        "/no.such.Service/Method",
    ] {
        let (code, _) = why(call(&served.channel, path, None).await);
        assert_eq!(code, Code::Unauthenticated, "{path}");
        let token = make(&served, "any", &[Role::Score], 0).await.token;
        let code = call(&served.channel, path, Some(&token)).await.err().map(|status| status.code());
        assert!(!matches!(code, Some(Code::Unauthenticated | Code::PermissionDenied)), "{path}: {code:?}");
    }
    served.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_that_is_wrong_over_or_revoked_opens_nothing() {
    let (served, clock) = guarded().await;
    let score = "/andante.v1.ScoreService/Score";
    let made = make(&served, "radio", &[Role::Score], 60_000).await;
    let token = made.token.clone();
    assert_eq!(why(call(&served.channel, score, Some(&token)).await).0, Code::InvalidArgument, "it is let in");

    let unauthenticated = (Code::Unauthenticated, reason::UNAUTHENTICATED.to_owned());
    let other = make(&served, "other", &[Role::Outcome], 0).await.token;
    // The id of one, the secret of another.
    let mixed = format!("{}{}", &token[..25], &other[25..]);
    for wrong in [mixed.as_str(), "andante_", "x", &token[1..], &token.to_uppercase()] {
        assert_eq!(why(call(&served.channel, score, Some(wrong)).await), unauthenticated, "{wrong}");
    }

    clock.pass(60_000);
    let expired = call(&served.channel, score, Some(&token)).await.expect_err("is over");
    assert!(expired.code() == Code::Unauthenticated && expired.message().contains("expired"), "{expired}");

    let operator = operator(served.dir.path());
    let mut client = AccessServiceClient::new(served.channel.clone());
    let lasting = make(&served, "lasting", &[Role::Score], 0).await;
    assert_eq!(why(call(&served.channel, score, Some(&lasting.token)).await).0, Code::InvalidArgument);
    let id = lasting.access_token.expect("is shown").id;
    let request = v1::RevokeTokenRequest { id: id.clone() };
    client.revoke_token(with(&operator, request.clone())).await.expect("is revoked");
    assert_eq!(why(call(&served.channel, score, Some(&lasting.token)).await), unauthenticated);
    assert_eq!(why(client.revoke_token(with(&operator, request)).await).0, Code::NotFound);

    let listed = client.list_tokens(with(&operator, v1::ListTokensRequest {})).await.expect("lists").into_inner();
    let names: Vec<&str> = listed.access_tokens.iter().map(|token| token.name.as_str()).collect();
    assert_eq!(names, ["first-operator", "other", "radio"]);
    let first = v1::RevokeTokenRequest { id: listed.access_tokens[0].id.clone() };
    assert_eq!(
        why(client.revoke_token(with(&operator, first)).await),
        (Code::FailedPrecondition, reason::LAST_OPERATOR.into())
    );
    served.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_authentication_nobody_is_asked() {
    let served = Served::start().await;
    served.server().get_server_info(v1::GetServerInfoRequest {}).await.expect("is answered");
    for token in [None, Some("nonsense")] {
        call(&served.channel, "/andante.v1.AccessService/ListTokens", token).await.expect("is answered");
    }
    served.stop().await;
}

#[cfg(unix)]
#[tokio::test(flavor = "multi_thread")]
async fn the_first_operators_token_is_its_owners_alone() {
    use std::os::unix::fs::PermissionsExt as _;
    let (served, _) = guarded().await;
    let file = served.dir.path().join(OPERATOR_TOKEN_FILE);
    assert_eq!(std::fs::metadata(&file).expect("is there").permissions().mode() & 0o777, 0o600);
    let token = operator(served.dir.path());
    call(&served.channel, "/andante.v1.AccessService/ListTokens", Some(&token)).await.expect("may do everything");
    served.stop().await;
}

/// A channel behind TLS to a server with one of these authorities.
fn tls_channel(served: &Served, name: &'static str, authorities_pem: &str) -> Channel {
    let mut roots = rustls::RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(authorities_pem.as_bytes()) {
        roots.add(certificate.expect("PEM")).expect("an authority");
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("versions")
        .with_root_certificates(roots)
        .with_no_client_auth();
    let mut config = config;
    config.alpn_protocols = vec![b"h2".to_vec()];
    let (connector, address) = (TlsConnector::from(Arc::new(config)), served.grpc);
    let name = ServerName::try_from(name).expect("a name");
    Endpoint::from_static("http://localhost").connect_timeout(PATIENCE).connect_with_connector_lazy(tower::service_fn(
        move |_: Uri| {
            let (connector, name) = (connector.clone(), name.clone());
            async move {
                let tls = connector.connect(name, TcpStream::connect(address).await?).await?;
                Ok::<_, std::io::Error>(TokioIo::new(tls))
            }
        },
    ))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_from_files_is_shown_to_clients() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let made = rcgen::generate_simple_self_signed(["scores.example".to_owned()]).expect("a certificate");
    let (certificate, key) = (dir.path().join("cert.pem"), dir.path().join("key.pem"));
    std::fs::write(&certificate, made.cert.pem()).expect("writes");
    std::fs::write(&key, made.signing_key.serialize_pem()).expect("writes");
    let source = CertificateSource::Files { certificate, key };
    let served = Served::start_as(Setup { auth: true, certificate: Some(source), ..Setup::default() }).await;
    works_over_tls(&served, "scores.example", &made.cert.pem()).await;
    served.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_clusters_own_authority_vouches_for_its_nodes() {
    let source = CertificateSource::Authority { names: vec!["scores.example".to_owned()] };
    let served = Served::start_as(Setup { auth: true, certificate: Some(source), ..Setup::default() }).await;
    let authority = served.node.access().authority_pem().expect("an authority");
    for name in ["scores.example", "localhost", "127.0.0.1"] {
        works_over_tls(&served, name, &authority).await;
    }
    let operator = operator(served.dir.path());
    let mut client = AccessServiceClient::new(tls_channel(&served, "localhost", &authority));
    let told = client.get_authority(with(&operator, v1::GetAuthorityRequest {})).await.expect("is told");
    assert_eq!(told.into_inner().certificate_pem, authority);
    let made = client.create_join_token(with(&operator, v1::CreateJoinTokenRequest { ttl_ms: 0 })).await;
    let made = made.expect("is made").into_inner();
    assert!(andante_cluster::security::JoinToken::parse(&made.join_token).is_ok());
    assert!(made.expires_ms > SystemClock::default().now_ms());
    drop(client);
    served.stop().await;
}

/// Scores over TLS with a token; neither without TLS, nor under another name or authority.
async fn works_over_tls(served: &Served, name: &'static str, authority_pem: &str) {
    let channel = tls_channel(served, name, authority_pem);
    let operator = operator(served.dir.path());
    call(&channel, "/andante.v1.ServerService/GetServerInfo", Some(&operator)).await.expect("is answered");
    assert_eq!(why(call(&channel, "/andante.v1.ScoreService/Score", None).await).0, Code::Unauthenticated);

    let other = rcgen::generate_simple_self_signed([name.to_owned()]).expect("a certificate").cert.pem();
    let broken = [
        tls_channel(served, name, &other),
        tls_channel(served, "elsewhere.example", authority_pem),
        served.channel.clone(),
    ];
    for channel in broken {
        let request = with(&operator, v1::GetServerInfoRequest {});
        let mut client = v1::server_service_client::ServerServiceClient::new(channel);
        let failed = tokio::time::timeout(PATIENCE, client.get_server_info(request)).await.expect("fails soon");
        assert!(failed.is_err());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn those_who_never_finish_a_handshake_hold_up_nobody() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).expect("a certificate");
    let (certificate, key) = (dir.path().join("cert.pem"), dir.path().join("key.pem"));
    std::fs::write(&certificate, made.cert.pem()).expect("writes");
    std::fs::write(&key, made.signing_key.serialize_pem()).expect("writes");
    let source = CertificateSource::Files { certificate, key };
    let served = Served::start_as(Setup { auth: true, certificate: Some(source), ..Setup::default() }).await;
    let mut silent = Vec::new();
    for _ in 0..8 {
        silent.push(TcpStream::connect(served.grpc).await.expect("connects"));
    }
    let channel = tls_channel(&served, "localhost", &made.cert.pem());
    let token = operator(served.dir.path());
    let asked = call(&channel, "/andante.v1.ServerService/GetServerInfo", Some(&token));
    tokio::time::timeout(Duration::from_secs(8), asked).await.expect("at once").expect("is answered");
    drop(silent);
    drop(channel);
    served.stop().await;
}

async fn report(served: &Served, token: &[u8]) -> OutcomeStatus {
    let event = v1::OutcomeEvent { token: token.to_vec(), kind: OutcomeKind::Stream as i32, stream_ms: 45_000 };
    let answer = served.outcome().report(v1::ReportRequest { events: vec![event] }).await.expect("is answered");
    answer.into_inner().results[0].status()
}

/// The id of the key that minted a token.
fn key_of(token: &[u8]) -> u8 {
    token[1]
}

#[tokio::test(flavor = "multi_thread")]
async fn delivery_tokens_outlive_the_rotation_of_their_key_but_not_its_end() {
    let clock = Arc::new(MovedClock::default());
    let settings = Settings { tick_ms: 20, ..Settings::default() };
    let overlap_ms = settings.cluster().token_key_overlap_ms();
    let served = Served::start_as(Setup { settings, clock: clock.clone(), ..Setup::default() }).await;
    let flight = v1::CampaignSpec { end_ms: clock.now_ms() + 24 * HOUR_MS, ..spec("c1") };
    served.create(flight).await;
    let (before, repeated) = (served.place("track-c1").await, served.place("track-c1").await);
    assert_eq!(key_of(&before.token), 1);

    let mut access = AccessServiceClient::new(served.channel.clone());
    let rotation = access.rotate_token_keys(v1::RotateTokenKeysRequest {}).await.expect("rotates").into_inner();
    assert_eq!((rotation.current, rotation.next), (1, 2));
    let again = access.rotate_token_keys(v1::RotateTokenKeysRequest {}).await.expect("is told").into_inner();
    assert_eq!(again, rotation, "one rotation at a time");
    assert_eq!(key_of(&served.place("track-c1").await.token), 1, "the next key is published first");

    clock.pass(andante::settings::KEY_LEAD_MS);
    let minted = async {
        loop {
            let placement = served.place("track-c1").await;
            if key_of(&placement.token) == 2 {
                return placement;
            }
        }
    };
    let after = tokio::time::timeout(PATIENCE, minted).await.expect("the new key mints");
    assert_eq!(report(&served, &before.token).await, OutcomeStatus::Billed);
    assert_eq!(report(&served, &after.token).await, OutcomeStatus::Billed);
    assert_eq!(report(&served, &before.token).await, OutcomeStatus::Duplicate);

    clock.pass(overlap_ms);
    let dropped = async {
        while report(&served, &repeated.token).await != OutcomeStatus::InvalidToken {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(PATIENCE, dropped).await.expect("the old key is dropped");
    served.stop().await;
}

/// Asks a node of the trio for a placement until it mints with a key.
async fn place_with(trio: &Trio, i: usize, key: u8) -> v1::Placement {
    let placed = async {
        loop {
            let placement = trio.place(i, "c1").await;
            if key_of(&placement.token) == key {
                return placement;
            }
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(trio::PATIENCE, placed).await.expect("the key mints")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rotation_reaches_every_node_also_one_that_was_away_and_loses_no_token() {
    let clock = Arc::new(MovedClock::default());
    let settings = Settings { tick_ms: 20, ..Settings::default() };
    let mut trio = Trio::with_clock(2, settings, clock.clone()).await;
    // Their allowances outlive the rotation.
    let lasting = proto::Spec { hold_ms: 600_000, end_ms: clock.now_ms() + HOUR_MS, ..support::campaign::spec("c1") };
    trio.node(0).router().create("create", lasting, trio.deadline()).await.expect("creates");
    let settle = async |trio: &Trio, i: usize, token: &[u8]| {
        trio.node(i).router().report(&streamed(token), trio.deadline()).await[0].status()
    };
    let (present, away) = (0, NODES - 1);
    // Of each node, one for each of the others to settle.
    let mut before = Vec::new();
    for i in 0..NODES {
        before.extend([place_with(&trio, i, 1).await.token, place_with(&trio, i, 1).await.token]);
    }
    trio.crash(away).await;
    let rotation = trio.node(present).rotate_token_keys(trio.deadline()).await.expect("rotates");
    assert_eq!((rotation.current, rotation.next), (1, 2));
    clock.pass(andante::settings::KEY_LEAD_MS);
    let mut after = Vec::new();
    for i in trio.running() {
        after.extend([place_with(&trio, i, 2).await.token, place_with(&trio, i, 2).await.token]);
    }
    trio.run(away).await;
    trio.until("the node that was away is back", |trio| trio.node(away).ready().is_ok()).await;
    after.push(place_with(&trio, away, 2).await.token);
    for (n, token) in before.iter().chain(&after).enumerate() {
        assert_eq!(settle(&trio, (away + n) % NODES, token).await, OutcomeStatus::Billed, "token {n}");
        assert_eq!(settle(&trio, (away + n + 1) % NODES, token).await, OutcomeStatus::Duplicate, "token {n}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn token_keys_rotate_by_themselves_when_they_are_due() {
    let clock = Arc::new(MovedClock::default());
    let settings = Settings { tick_ms: 20, ..Settings::default() };
    let rotation_ms = settings.token_key_rotation_ms;
    let served = Served::start_as(Setup { settings, clock: clock.clone(), ..Setup::default() }).await;
    let mut directory = served.node.host().directory();
    let revision = |directory: &Directory| directory.settings["token_keys"].revision;
    for pass_ms in [rotation_ms, andante::settings::KEY_LEAD_MS] {
        let before = revision(&directory.borrow());
        clock.pass(pass_ms);
        let stepped = directory.wait_for(|directory| revision(directory) != before);
        tokio::time::timeout(PATIENCE, stepped).await.expect("a step is taken").expect("the node runs");
    }
    served.create(v1::CampaignSpec { end_ms: clock.now_ms() + HOUR_MS, ..spec("c1") }).await;
    let minted = async {
        while key_of(&served.place("track-c1").await.token) != 2 {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(PATIENCE, minted).await.expect("the new key mints");
    served.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_asked_of_access_tokens_is_checked_by_field() {
    let (served, _) = guarded().await;
    let operator = operator(served.dir.path());
    let create = async |request| {
        let mut client = AccessServiceClient::new(served.channel.clone());
        served::fields(client.create_token(with(&operator, request)).await)
    };
    let score = v1::Role::Score as i32;
    let ok = v1::CreateTokenRequest { name: "a".into(), roles: vec![score], ttl_ms: 0 };
    assert_eq!(create(v1::CreateTokenRequest { name: "A B".into(), ..ok.clone() }).await, ["name"]);
    assert_eq!(create(v1::CreateTokenRequest { roles: vec![], ..ok.clone() }).await, ["roles"]);
    assert_eq!(create(v1::CreateTokenRequest { roles: vec![score, 0], ..ok.clone() }).await, ["roles[1]"]);
    assert_eq!(create(v1::CreateTokenRequest { ttl_ms: 1, ..ok.clone() }).await, ["ttl_ms"]);
    let mut client = AccessServiceClient::new(served.channel.clone());
    let join = client.create_join_token(with(&operator, v1::CreateJoinTokenRequest { ttl_ms: 1 })).await;
    assert_eq!(served::fields(join), ["ttl_ms"]);
    let revoke = client.revoke_token(with(&operator, v1::RevokeTokenRequest { id: "x".into() })).await;
    assert_eq!(served::fields(revoke), ["id"]);
    served.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn tokens_made_at_the_same_time_are_all_kept() {
    let (served, _) = guarded().await;
    let deadline = tokio::time::Instant::now() + PATIENCE;
    let access = served.node.access();
    let made = (0..12).map(|i| {
        let new = NewToken { name: format!("t{i}"), roles: Roles::from_iter([Role::Score]), ttl_ms: 0 };
        access.create(new, served.node.now_ms(), deadline)
    });
    for made in futures::future::join_all(made).await {
        made.expect("is made");
    }
    assert_eq!(access.list().len(), 13);
    served.stop().await;
}

/// What a command said: its exit code, what it wrote as a result, and what it wrote about a failure.
#[derive(Debug)]
struct Said {
    exit: i32,
    result: String,
    failure: String,
}

impl Said {
    fn result(&self) -> Value {
        serde_json::from_str(&self.result).unwrap_or_else(|e| panic!("{e}: {self:?}"))
    }

    fn failure(&self) -> Value {
        let failure: Value = serde_json::from_str(&self.failure).unwrap_or_else(|e| panic!("{e}: {self:?}"));
        failure["error"].clone()
    }
}

/// Runs `andante access` against a node.
fn access(addr: &str, token: Option<&str>, args: &[&str]) -> Said {
    let mut command = Command::new(env!("CARGO_BIN_EXE_andante"));
    command.arg("access").args(args).env("ANDANTE_ADDR", addr).env_remove("ANDANTE_TOKEN");
    if let Some(token) = token {
        command.env("ANDANTE_TOKEN", token);
    }
    let output = command.output().expect("runs");
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).expect("text");
    let exit = output.status.code().expect("it ends by itself");
    Said { exit, result: text(output.stdout), failure: text(output.stderr) }
}

#[tokio::test(flavor = "multi_thread")]
async fn access_is_administered_from_a_shell() {
    let (served, _) = guarded().await;
    let (addr, operator) = (served.grpc.to_string(), operator(served.dir.path()));
    let run = |args: &[&str]| {
        let said = access(&addr, Some(&operator), args);
        assert_eq!(said.exit, 0, "{args:?}: {said:?}");
        said
    };
    let made = run(&["token", "create", "radio", "--role", "score,outcome", "--ttl", "90d", "--json"]).result();
    assert!(AccessToken::parse(made["token"].as_str().expect("a token")).is_ok());
    assert_eq!(made["access_token"]["roles"], serde_json::json!(["score", "outcome"]));
    // For people: the token alone, so that it can be caught, and a warning beside it.
    let plain = run(&["token", "create", "web", "--role", "campaign"]);
    assert!(AccessToken::parse(plain.result.trim_end()).is_ok(), "one line, the token");
    assert!(plain.failure.contains("can't be shown again"), "{}", plain.failure);

    let listed = run(&["token", "list", "--json"]).result();
    let names: Vec<_> =
        listed["access_tokens"].as_array().expect("a list").iter().map(|token| &token["name"]).collect();
    assert_eq!(names, ["first-operator", "radio", "web"]);
    let table = run(&["token", "list"]).result;
    assert!(names.iter().all(|name| table.contains(name.as_str().expect("text"))), "{table}");
    let id = made["access_token"]["id"].as_str().expect("an id");
    let revoked = run(&["token", "revoke", id, "--json"]).result();
    assert_eq!(revoked["revoked"]["name"], "radio");
    let token = made["token"].as_str();
    assert_eq!(access(&addr, token, &["token", "list", "--json"]).failure()["reason"], reason::UNAUTHENTICATED);

    let join = run(&["join-token", "--ttl", "30m", "--json"]).result();
    let join_token = join["join_token"].as_str().expect("a join token");
    assert!(andante_cluster::security::JoinToken::parse(join_token).is_ok());
    assert!(run(&["ca"]).result.starts_with("-----BEGIN CERTIFICATE-----"));
    let rotation = run(&["rotate-keys", "--json"]).result();
    assert_eq!((&rotation["current"], &rotation["next"]), (&Value::from(1), &Value::from(2)));
    served.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_access_refuses_is_told_to_the_shell_with_field_limit_and_exit_code() {
    let (served, clock) = guarded().await;
    let (addr, operator) = (served.grpc.to_string(), operator(served.dir.path()));
    let score = make(&served, "score", &[Role::Score], 0).await.token;
    let expired = make(&served, "expired", &[Role::Operator], 60_000).await.token;
    clock.pass(60_000);
    let unknown = AccessToken::generate(&SystemRng).reveal();
    let operator = operator.as_str();
    let listed = served.node.access().list().len();

    let list: &[&str] = &["token", "list"];
    for (token, exit, reason, message) in [
        (Some(score.as_str()), 4, reason::ROLE_NEEDED, "operator"),
        (Some(expired.as_str()), 4, reason::UNAUTHENTICATED, "expired"),
        (Some(unknown.as_str()), 4, reason::UNAUTHENTICATED, "access token"),
        (Some("nonsense"), 4, reason::UNAUTHENTICATED, "access token"),
        (None, 4, reason::UNAUTHENTICATED, "access token"),
    ] {
        let text = access(&addr, token, list);
        assert_eq!(text.exit, exit, "{text:?}");
        assert!(text.failure.starts_with("error: ") && text.failure.contains(message), "{text:?}");
        let json = access(&addr, token, &[list, &["--json"]].concat());
        let failure = json.failure();
        assert_eq!((json.exit, &failure["exit_code"]), (exit, &Value::from(exit)));
        assert_eq!(failure["reason"], reason);
        for said in [text, json] {
            assert!(said.result.is_empty(), "{said:?}");
            assert!(token.is_none_or(|token| !said.failure.contains(token)), "the token is told: {said:?}");
        }
    }

    let long = "n".repeat(41);
    let cases: [(&[&str], i32, &str, &str); 8] = [
        (&["token", "create", "A B", "--role", "score"], 4, "name", "1 to 40 lower case letters"),
        (&["token", "create", "", "--role", "score"], 4, "name", "1 to 40 lower case letters"),
        (&["token", "create", &long, "--role", "score"], 4, "name", "1 to 40 lower case letters"),
        (&["token", "create", "a", "--role", "score", "--ttl", "1s"], 4, "ttl_ms", "60000..="),
        (&["token", "create", "a", "--role", "score", "--ttl", "99999d"], 4, "ttl_ms", "60000..="),
        (&["join-token", "--ttl", "8d"], 4, "ttl_ms", "60000..=604800000"),
        (&["token", "revoke", "x"], 4, "id", "16 hexadecimal digits"),
        (&["token", "revoke", "00000000000000AB"], 4, "id", "16 hexadecimal digits"),
    ];
    for (args, exit, field, limit) in cases {
        let text = access(&addr, Some(operator), args);
        let lines = text.failure.lines().any(|line| line.trim_start().starts_with(field) && line.contains(limit));
        assert!(text.exit == exit && lines, "{args:?}: {text:?}");
        let json = access(&addr, Some(operator), &[args, &["--json"]].concat());
        let violation = &json.failure()["violations"][0];
        assert_eq!((json.exit, violation["field"].as_str()), (exit, Some(field)), "{args:?}");
        assert!(violation["description"].as_str().is_some_and(|why| why.contains(limit)), "{args:?}: {json:?}");
    }

    let nobody = access(&addr, Some(operator), &["token", "revoke", "00000000000000ab", "--json"]);
    assert_eq!((nobody.exit, nobody.failure()["reason"].as_str()), (3, Some(reason::NOT_FOUND)));
    let tokens = served.node.access().list();
    let first = tokens.iter().find(|token| token.name == "first-operator").expect("is there");
    let last = access(&addr, Some(operator), &["token", "revoke", &format!("{:016x}", first.id), "--json"]);
    assert_eq!((last.exit, last.failure()["reason"].as_str()), (4, Some(reason::LAST_OPERATOR)));
    for usage in [&["token", "create", "a"][..], &["token", "create", "a", "--role", "nobody"], &["token"]] {
        assert_eq!(access(&addr, Some(operator), usage).exit, 2, "{usage:?}");
    }
    assert_eq!(served.node.access().list().len(), listed, "nothing was changed");
    served.stop().await;
    assert_eq!(access(&addr, Some(operator), list).exit, 5, "nobody answers");
}
