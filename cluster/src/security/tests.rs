//! Handshakes between nodes, over pipes in memory.

use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use bytes::Bytes;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    sync::watch,
};

use super::*;
use crate::{
    NodeId,
    directory::{Directory, Setting},
    env::{Clock, Io, OsThreads, SystemRng},
};

const NOW_MS: u64 = 1_800_000_000_000;
const DAY_MS: u64 = 24 * 60 * 60 * 1_000;
const OURS: [u8; 16] = [5; 16];

/// A clock that stands where it is put.
struct At(AtomicU64);

impl Clock for At {
    fn now_ms(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }

    fn monotonic_micros(&self) -> u64 {
        0
    }
}

fn at(now_ms: u64) -> Arc<dyn Clock> {
    Arc::new(At(AtomicU64::new(now_ms)))
}

fn authority(cluster_id: [u8; 16]) -> Authority {
    Authority::generate(cluster_id, NOW_MS).expect("authority")
}

/// A node of `authority`'s cluster with a certificate made now and a clock that shows `clock_ms`.
fn node_at(authority: &Authority, node_id: NodeId, clock_ms: u64) -> PeerSecurity {
    let mutual = MutualTls::new(authority.cluster_id(), at(clock_ms));
    mutual.install(NodeCertificate::issue(authority, node_id, NOW_MS).expect("certificate")).expect("installed");
    PeerSecurity::Mutual(mutual)
}

fn node(authority: &Authority, node_id: NodeId) -> PeerSecurity {
    node_at(authority, node_id, NOW_MS)
}

fn pipe() -> (Box<dyn Io>, Box<dyn Io>) {
    let (here, there) = tokio::io::duplex(64 << 10);
    (Box::new(here), Box::new(there))
}

type Accepted = io::Result<(Box<dyn Io>, Option<NodeId>)>;

async fn shake(client: &PeerSecurity, wanted: NodeId, server: &PeerSecurity) -> (io::Result<Box<dyn Io>>, Accepted) {
    let (here, there) = pipe();
    tokio::join!(client.connect(here, wanted), server.accept(there))
}

fn why<T>(result: io::Result<T>) -> String {
    result.map(drop).expect_err("refused").to_string()
}

/// Whether bytes pass in both directions.
async fn talk(a: &mut Box<dyn Io>, b: &mut Box<dyn Io>) {
    for (from, to) in [(0, 1), (1, 0)] {
        let ends = [&mut *a, &mut *b];
        ends[from].write_all(b"promote").await.expect("written");
        ends[from].flush().await.expect("flushed");
        let mut heard = [0; 7];
        ends[to].read_exact(&mut heard).await.expect("read");
        assert_eq!(&heard, b"promote");
    }
}

#[tokio::test]
async fn two_nodes_of_a_cluster_know_each_other() {
    let authority = authority(OURS);
    let (one, two) = (node(&authority, 1), node(&authority, 2));
    for (client, client_id, server, server_id) in [(&one, 1, &two, 2), (&two, 2, &one, 1)] {
        let (connected, accepted) = shake(client, server_id, server).await;
        let (mut there, verified) = accepted.expect("accepted");
        assert_eq!(verified, Some(client_id));
        talk(&mut connected.expect("connected"), &mut there).await;
    }
}

#[tokio::test]
async fn nothing_readable_passes_the_wire() {
    let authority = authority(OURS);
    let (one, two) = (node(&authority, 1), node(&authority, 2));
    let (here, mut near) = pipe();
    let (mut far, there) = pipe();
    let relay = tokio::spawn(async move {
        let mut seen: Vec<u8> = Vec::new();
        let (mut up, mut down) = ([0; 4 << 10], [0; 4 << 10]);
        loop {
            tokio::select! {
                n = near.read(&mut up) => match n {
                    Ok(n) if n > 0 => { seen.extend(&up[..n]); far.write_all(&up[..n]).await.expect("relayed"); }
                    _ => return seen,
                },
                n = far.read(&mut down) => match n {
                    Ok(n) if n > 0 => { seen.extend(&down[..n]); near.write_all(&down[..n]).await.expect("relayed"); }
                    _ => return seen,
                },
            }
        }
    });
    let (connected, accepted) = tokio::join!(one.connect(here, 2), two.accept(there));
    let (mut connected, (mut accepted, _)) = (connected.expect("connected"), accepted.expect("accepted"));
    talk(&mut connected, &mut accepted).await;
    drop((connected, accepted));
    let seen = relay.await.expect("relay");
    // Neither the payload nor, with TLS 1.3, the certificates.
    for secret in ["promote", "andante"] {
        assert!(!seen.windows(secret.len()).any(|part| part == secret.as_bytes()), "{secret}");
    }
}

#[tokio::test]
async fn another_node_than_asked_for_is_refused() {
    let authority = authority(OURS);
    let (connected, accepted) = shake(&node(&authority, 1), 3, &node(&authority, 2)).await;
    let why = why(connected);
    assert!(why.contains("node 3") && why.contains("node-2."), "{why}");
    assert!(accepted.is_err());
}

#[tokio::test]
async fn nodes_of_another_cluster_are_refused_on_both_sides() {
    let (ours, theirs) = (authority(OURS), authority([6; 16]));
    // Even one that claims the same cluster id, with an authority of its own.
    for foreign in [theirs, authority(OURS)] {
        let (connected, accepted) = shake(&node(&ours, 1), 2, &node(&foreign, 2)).await;
        let heard = why(connected);
        assert!(heard.contains("node 2 belongs to another cluster"), "{heard}");
        let heard = why(accepted);
        assert!(heard.contains("belongs to another cluster"), "{heard}");
    }
}

#[tokio::test]
async fn a_server_refuses_clients_of_another_cluster_that_would_trust_it() {
    let (ours, theirs) = (authority(OURS), authority([6; 16]));
    // This client shows a certificate of its own cluster to a server it finds by our authority.
    let request = NodeKey::generate().expect("key");
    let foreign = theirs.sign(&request.signing_request().expect("request"), 1, NOW_MS).expect("signed");
    let mut roots = rustls::RootCertStore::empty();
    roots.add(ours.certificate_der().to_vec().into()).expect("root");
    let config = rustls::ClientConfig::builder_with_details(tls::provider(), Arc::new(time::ClockTime(at(NOW_MS))))
        .with_protocol_versions(&[&rustls::version::TLS13])
        .expect("versions")
        .with_root_certificates(roots)
        .with_client_auth_cert(vec![foreign.into()], request.private_key())
        .expect("config");
    let name = rustls::pki_types::ServerName::try_from(name::node_name(OURS, 2)).expect("name");
    let connector = tokio_rustls::TlsConnector::from(Arc::new(config));
    let (here, there) = pipe();
    let server = node(&ours, 2);
    let (connected, accepted) = tokio::join!(connector.connect(name, here), server.accept(there));
    assert!(connected.is_ok(), "this side had nothing against it");
    let heard = why(accepted);
    assert!(heard.contains("another authority signed"), "{heard}");
}

#[tokio::test]
async fn expired_certificates_and_those_of_the_future_are_refused_with_their_dates() {
    let authority = authority(OURS);
    let later = NOW_MS + 30 * DAY_MS + 1_000;
    let earlier = NOW_MS - DAY_MS - 1_000;
    for (clock_ms, words) in [(later, "expired at 2027-02-14"), (earlier, "valid from 2027-01-14")] {
        let (right, off) = (node(&authority, 1), node_at(&authority, 2, clock_ms));
        // The one with the other clock refuses, whichever side it is on; the other hears of it.
        let (connected, accepted) = shake(&off, 1, &right).await;
        let heard = why(connected);
        assert!(heard.contains(words) && heard.contains("clocks"), "{heard}");
        let heard = why(accepted);
        assert!(heard.contains("clocks"), "{heard}");
        let (connected, accepted) = shake(&right, 2, &off).await;
        let heard = why(accepted);
        assert!(heard.contains(words), "{heard}");
        let mut connected = connected.expect("a TLS 1.3 client is done first");
        assert!(connected.read_u8().await.is_err(), "it hears of it in its first read");
    }
    for clock_ms in [NOW_MS - DAY_MS + 1_000, NOW_MS + 30 * DAY_MS - 1_000] {
        let (connected, accepted) = shake(&node(&authority, 1), 2, &node_at(&authority, 2, clock_ms)).await;
        assert!(connected.is_ok() && accepted.is_ok(), "clocks a day off are no matter");
    }
}

#[tokio::test]
async fn without_a_certificate_of_its_own_a_node_refuses_everything() {
    let authority = authority(OURS);
    let bare = PeerSecurity::Mutual(MutualTls::new(OURS, at(NOW_MS)));
    let (connected, accepted) = shake(&bare, 2, &node(&authority, 2)).await;
    assert_eq!(connected.map(drop).expect_err("refused").kind(), io::ErrorKind::NotConnected);
    assert!(accepted.is_err());
    let (connected, accepted) = shake(&node(&authority, 2), 1, &bare).await;
    assert_eq!(accepted.map(drop).expect_err("refused").kind(), io::ErrorKind::NotConnected);
    assert!(connected.is_err());
    let PeerSecurity::Mutual(bare) = bare else { unreachable!() };
    assert!(bare.certificate().is_none());
    let foreign = NodeCertificate::issue(&self::authority([6; 16]), 1, NOW_MS).expect("certificate");
    assert!(matches!(bare.install(foreign), Err(SecurityError::Unusable { .. })));
}

#[tokio::test]
async fn plaintext_names_nobody_and_tls_says_what_it_misses() {
    let authority = authority(OURS);
    let (connected, accepted) = shake(&PeerSecurity::Plaintext, 2, &PeerSecurity::Plaintext).await;
    assert_eq!(accepted.expect("accepted").1, None);
    assert!(connected.is_ok());
    let (mut here, there) = pipe();
    here.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await.expect("written");
    let heard = why(node(&authority, 1).accept(there).await);
    assert!(heard.contains("does not speak TLS"), "{heard}");
}

#[tokio::test]
async fn a_joiner_finds_any_node_of_the_pinned_cluster_and_stays_nameless() {
    let authority = authority(OURS);
    let issued = JoinSecrets::default().issue(&authority, &SystemRng, NOW_MS, JoinSecrets::LIFE);
    let token = issued.expect("token");
    for node_id in [1, 17] {
        let (server, clock) = (node(&authority, node_id), at(NOW_MS));
        let (here, there) = pipe();
        let (connected, accepted) = tokio::join!(connect_for_join(here, &token, &clock), server.accept(there));
        let (mut there, verified) = accepted.expect("accepted");
        assert_eq!(verified, None);
        talk(&mut connected.expect("connected"), &mut there).await;
    }
}

#[tokio::test]
async fn a_joiner_refuses_whoever_the_token_does_not_pin() {
    let (ours, theirs) = (authority(OURS), authority(OURS));
    let token = |authority: &Authority| JoinToken { authority_fingerprint: authority.fingerprint(), secret: [1; 32] };
    let join = async |token: JoinToken, server: PeerSecurity, clock_ms| {
        let (here, there) = pipe();
        let clock = at(clock_ms);
        let (connected, accepted) = tokio::join!(connect_for_join(here, &token, &clock), server.accept(there));
        assert!(accepted.is_err());
        why(connected)
    };
    let heard = join(token(&theirs), node(&ours, 1), NOW_MS).await;
    assert!(heard.contains("another cluster than the join token"), "{heard}");
    let heard = join(token(&ours), node(&ours, 1), NOW_MS + 40 * DAY_MS).await;
    assert!(heard.contains("expired"), "{heard}");

    // Somebody in between shows the pinned authority behind a certificate that it did not sign.
    let key = NodeKey::generate().expect("key");
    let leaf = theirs.sign(&key.signing_request().expect("request"), 1, NOW_MS).expect("signed");
    let chain = vec![leaf.into(), ours.certificate_der().to_vec().into()];
    let config = rustls::ServerConfig::builder_with_provider(tls::provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .expect("versions")
        .with_no_client_auth()
        .with_single_cert(chain, key.private_key())
        .expect("config");
    let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
    let (here, there) = pipe();
    let (token, clock) = (token(&ours), at(NOW_MS));
    let (connected, accepted) = tokio::join!(connect_for_join(here, &token, &clock), acceptor.accept(there));
    assert!(accepted.is_err());
    let heard = why(connected);
    assert!(heard.contains("cluster"), "{heard}");
}

#[tokio::test]
async fn a_joined_node_is_known_by_the_certificate_it_was_given() {
    let authority = authority(OURS);
    let key = NodeKey::generate().expect("key");
    let certificate = authority.sign(&key.signing_request().expect("request"), 4, NOW_MS).expect("signed");
    let certificate = NodeCertificate::new(key, certificate, authority.certificate_der().to_vec());
    let mutual = MutualTls::new(OURS, at(NOW_MS));
    mutual.install(certificate.expect("certificate")).expect("installed");
    let (connected, accepted) = shake(&PeerSecurity::Mutual(mutual), 2, &node(&authority, 2)).await;
    assert!(connected.is_ok());
    assert_eq!(accepted.expect("accepted").1, Some(4));
}

#[tokio::test]
async fn connections_go_on_while_the_certificate_is_replaced() {
    let authority = authority(OURS);
    let (one, two) = (node(&authority, 1), node(&authority, 2));
    let (connected, accepted) = shake(&one, 2, &two).await;
    let (mut connected, mut accepted) = (connected.expect("connected"), accepted.expect("accepted").0);
    for security in [&one, &two] {
        let PeerSecurity::Mutual(mutual) = security else { unreachable!() };
        let old = mutual.certificate().expect("certificate");
        let new = NodeCertificate::issue(&authority, old.node_id(), NOW_MS + DAY_MS).expect("certificate");
        mutual.install(new).expect("installed");
        assert!(mutual.certificate().expect("certificate").not_after_ms() > old.not_after_ms());
    }
    talk(&mut connected, &mut accepted).await;
    let (again, accepted_again) = shake(&one, 2, &two).await;
    talk(&mut again.expect("connected"), &mut accepted_again.expect("accepted").0).await;
    talk(&mut connected, &mut accepted).await;
}

fn directory(authority: &Authority) -> Arc<Directory> {
    let mut directory = Directory::default();
    let value = Bytes::from(authority.encode());
    directory.settings.insert(Authority::SETTING.to_owned(), Setting { value, revision: 7 });
    Arc::new(directory)
}

#[tokio::test]
async fn a_certificate_is_issued_renewed_and_follows_the_authority() {
    let dir = tempfile::tempdir().expect("dir");
    let clock = Arc::new(At(AtomicU64::new(NOW_MS)));
    let mutual = MutualTls::new(OURS, clock.clone());
    let (tell, directories) = watch::channel(Arc::new(Directory::default()));
    let (data_dir, blocking) = (dir.path().to_owned(), Arc::new(OsThreads));
    let task = tokio::spawn(keep_fresh(mutual.clone(), data_dir, directories, 3, clock.clone(), blocking));
    let another_than = async |old: Option<&NodeCertificate>| loop {
        match mutual.certificate() {
            Some(new) if old.is_none_or(|old| old.chain() != new.chain()) => return new,
            _ => tokio::task::yield_now().await,
        }
    };
    let saved = || NodeCertificate::load(dir.path()).expect("loads").expect("saved");

    let authority = authority(OURS);
    tell.send_replace(directory(&authority));
    let first = another_than(None).await;
    assert_eq!((saved().node_id(), saved().chain()), (3, first.chain()));

    // Not due for a while; then it is.
    for (days, renewed) in [(15, false), (19, false), (21, true)] {
        clock.0.store(NOW_MS + days * DAY_MS, Ordering::Relaxed);
        tell.send_replace(directory(&authority));
        for _ in 0..100 {
            tokio::task::yield_now().await;
        }
        if renewed {
            another_than(Some(&first)).await;
        }
    }
    let second = mutual.certificate().expect("certificate");
    assert_eq!(second.not_after_ms(), NOW_MS + (21 + 30) * DAY_MS);
    assert_eq!(saved().chain(), second.chain());

    let restored = self::authority(OURS);
    tell.send_replace(directory(&restored));
    let third = another_than(Some(&second)).await;
    assert_eq!(third.authority_der(), restored.certificate_der());
    drop(tell);
    task.await.expect("ends with the directory");
}

#[test]
fn damaged_requests_and_certificates_are_refused_or_mean_the_same() {
    let authority = authority(OURS);
    let request = NodeKey::generate().expect("key").signing_request().expect("request");
    let certificate = authority.sign(&request, 3, NOW_MS).expect("signed");
    let key = |certificate: &[u8]| name::Contents::read(certificate).expect("reads").public_key;
    for (at, mask) in (0..request.len()).flat_map(|at| [(at, 1), (at, 0x80)]) {
        let mut damaged = request.clone();
        damaged[at] ^= mask;
        if let Ok(signed) = authority.sign(&damaged, 3, NOW_MS) {
            assert_eq!(key(&signed), key(&certificate), "byte {at} of the request");
        }
    }
    for (at, mask) in (0..certificate.len()).flat_map(|at| [(at, 1), (at, 0x80)]) {
        let mut damaged = certificate.clone();
        damaged[at] ^= mask;
        let _ = name::Contents::read(&damaged).and_then(|contents| contents.node());
        assert!(name::Contents::read(&damaged[..at]).is_err(), "cut at {at}");
    }
}

#[test]
fn nothing_secret_shows_in_what_is_formatted() {
    let authority = authority(OURS);
    let certificate = NodeCertificate::issue(&authority, 1, NOW_MS).expect("certificate");
    let key = certificate.key().private_key().secret_der().to_vec();
    let mut secrets = JoinSecrets::default();
    let token = secrets.issue(&authority, &SystemRng, NOW_MS, JoinSecrets::LIFE).expect("token");
    let text = token.encode();
    let record = <crate::proto::AuthorityRecord as prost::Message>::decode(authority.encode().as_slice());
    let record = record.expect("decodes");
    let value = Bytes::from(authority.encode());
    let put = crate::proto::PutSetting { name: "n".into(), value: Some(value.clone()), expected_revision: None };
    let command = crate::proto::directory_command::Command::PutSetting(put);
    let command = crate::proto::DirectoryCommand { command: Some(command) };
    let setting = crate::proto::SettingRecord { name: "n".into(), value: value.clone(), revision: 1 };
    let join = crate::proto::JoinRequest { secret: token.secret.to_vec().into(), ..Default::default() };
    let propose = crate::proto::ProposeRequest { group: 0, command: value.clone() };
    let kept = crate::proto::NodeCertificateRecord { key: key.clone().into(), ..Default::default() };
    let mutual = MutualTls::new(OURS, at(NOW_MS));
    let formatted = [
        format!("{authority:?} {:?} {:?} {record:?}", directory(&authority), crate::raft::types::Command(value)),
        format!("{:?} {certificate:?} {kept:?}", certificate.key()),
        format!("{command:?} {setting:?} {propose:?}"),
        format!("{token:?} {secrets:?} {join:?}"),
        format!("{:?} {}", JoinToken::parse(&text[1..]), JoinToken::parse(&text[1..]).expect_err("no token")),
        format!("{:?} {}", JoinToken::parse(&text[..90]), JoinToken::parse(&text[..90]).expect_err("cut")),
        format!("{:?}", secrets.check(&token.secret, u64::MAX)),
        {
            mutual.install(certificate).expect("installed");
            format!("{:?}", PeerSecurity::Mutual(mutual))
        },
    ]
    .join("\n");
    // However bytes are written: as numbers, escaped, in hex, in base64.
    for secret in [&key[..], &record.key, &token.secret] {
        let part = &secret[secret.len() - 12..];
        let numbers = format!("{part:?}");
        let hex: String = part.iter().map(|byte| format!("{byte:02x}")).collect();
        let escaped = format!("{:?}", Bytes::copy_from_slice(part));
        for written in [numbers.trim_matches(['[', ']']), &hex, escaped.trim_start_matches("b\"").trim_end_matches('"')]
        {
            assert!(!formatted.contains(written), "{formatted}");
        }
    }
    for at in (15..text.len() - 8).step_by(4) {
        assert!(!formatted.contains(&text[at..at + 8]), "{formatted}");
    }
}
