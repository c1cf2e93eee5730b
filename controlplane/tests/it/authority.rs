//! The built-in authority with real processes and handshakes: who gets a certificate, who is let in with which, and how
//! both end.

use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use axum_server::Handle;
use controlplane::domain::{Actor, Timestamp};
use controlplane::http::{Context, router};
use controlplane::tls::{Acceptor, MinVersion, Source, Tls};
use rcgen::{CertificateParams, KeyPair};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::time::timeout;

use crate::cluster::Cluster;
use crate::fixture::{Fixture, contract};
use crate::process::{Process, run};
use crate::support::Server;
use crate::tls::{Outside, ask, client, connect};

const AUTHORITY: [(&str, &str); 2] = [("TLS_NAMES", "localhost,127.0.0.1"), ("REQUIRE_CLIENT_CERTIFICATES", "true")];

/// A control plane with its own authority, in a folder or on a database.
struct Plane {
    process: Process,
    root: CertificateDer<'static>,
    token: String,
}

/// A node, and what it says of itself.
#[derive(Clone)]
struct Node {
    uuid: String,
    headers: String,
}

/// The command line's answer, of a command that must succeed.
fn ca(data: &Path, database: &[&str], args: &[&str]) -> String {
    let (ok, text) = run(data, &[database, &["ca"], args].concat());
    assert!(ok, "{args:?}: {text}");
    text
}

fn first_root(data: &Path, database: &[&str]) -> CertificateDer<'static> {
    CertificateDer::from_pem_slice(ca(data, database, &["roots"]).as_bytes()).unwrap()
}

impl Plane {
    fn start(data: &Path, database: &[&str]) -> Self {
        std::fs::create_dir_all(data).unwrap();
        let made = ca(data, database, &["init"]);
        let token = made.lines().find_map(|line| line.strip_prefix("deploy token: ")).unwrap().to_owned();
        let root = first_root(data, database);
        Self { process: Process::start_with(data, database, &AUTHORITY), root, token }
    }

    fn at(&self) -> SocketAddr {
        self.process.address()
    }

    /// Deploys a node, which has no certificate yet.
    async fn deploy(&self, name: &str) -> Node {
        let mut stream = connect(self.at(), "localhost", client(&self.root, None)).await.unwrap();
        let bearer = format!("authorization: Bearer {}\r\n", self.token);
        let body = json!({ "name": name }).to_string();
        let (status, text) = ask(&mut stream, "POST", "/api/deploy", &bearer, &body).await.unwrap();
        assert_eq!(status, 200, "{text}");
        let node: Value = serde_json::from_str(&text).unwrap();
        let (uuid, key) = (node["node_uuid"].as_str().unwrap(), node["api_key"].as_str().unwrap());
        let headers = format!("authorization: Bearer {key}\r\nx-node-uuid: {uuid}\r\n");
        Node { uuid: uuid.to_owned(), headers }
    }

    /// Asks as a node that shows `shown`.
    async fn ask(
        &self,
        node: &Node,
        shown: Option<&(String, String)>,
        path: &str,
        body: &str,
    ) -> Result<(u16, String), String> {
        let shown = shown.map(|(chain, key)| (chain.as_str(), key.as_str()));
        let mut stream = connect(self.at(), "localhost", client(&self.root, shown)).await?;
        let method = if body.is_empty() { "GET" } else { "POST" };
        ask(&mut stream, method, path, &node.headers, body).await
    }

    /// Has a certificate made for a new key.
    async fn enroll(&self, node: &Node, shown: Option<&(String, String)>) -> Result<(String, String), String> {
        let (csr, key) = request();
        let body = json!({ "csr": csr }).to_string();
        let (status, text) = self.ask(node, shown, "/api/v1/agent/certificate", &body).await?;
        if status != 200 {
            return Err(format!("{status} {text}"));
        }
        let answer: Value = serde_json::from_str(&text).unwrap();
        Ok((answer["certificate"].as_str().unwrap().to_owned(), key))
    }

    async fn config(&self, node: &Node, shown: Option<&(String, String)>) -> Result<u16, String> {
        Ok(self.ask(node, shown, "/api/v1/agent/config", "").await?.0)
    }
}

/// A request and its key, PEM.
fn request() -> (String, String) {
    let key = KeyPair::generate().unwrap();
    (CertificateParams::default().serialize_request(&key).unwrap().pem().unwrap(), key.serialize_pem())
}

#[tokio::test]
async fn a_node_comes_in_with_its_own_certificate_alone() {
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("data");
    let plane = Plane::start(&data, &[]);
    let a = plane.deploy("edge-a").await;
    let b = plane.deploy("edge-b").await;
    assert_eq!(plane.config(&a, None).await, Ok(403), "required");
    let shown = plane.enroll(&a, None).await.expect("it was just deployed");
    let other = plane.enroll(&b, None).await.expect("it was just deployed");
    assert_eq!(plane.config(&a, Some(&shown)).await, Ok(200));
    let (status, text) = plane.ask(&b, Some(&shown), "/api/v1/agent/config", "").await.unwrap();
    assert!(status == 403 && text.contains("not one of this node"), "a's certificate with b's key: {text}");
    assert_eq!(plane.config(&a, Some(&other)).await, Ok(403));
    // A certificate of another authority does not even get through the handshake.
    let outside = Outside::new();
    let foreign = outside.issue(&["node"]);
    assert!(plane.config(&a, Some(&foreign)).await.unwrap_err().contains("UnknownCA"));
    // Operators need none, and it is no use to them that they have one of a node.
    let bearer = format!("authorization: Bearer {}\r\n", plane.token);
    let (chain, key) = &shown;
    for config in [client(&plane.root, None), client(&plane.root, Some((chain, key)))] {
        let mut stream = connect(plane.at(), "127.0.0.1", config).await.unwrap();
        assert_eq!(ask(&mut stream, "GET", "/api/v1/nodes", &bearer, "").await.unwrap().0, 200);
    }
    // Renewed with the one it has, as often as a day allows.
    let renewed = plane.enroll(&a, Some(&shown)).await.unwrap();
    assert_eq!((plane.config(&a, Some(&renewed)).await, plane.config(&a, Some(&shown)).await), (Ok(200), Ok(200)));
    let refused = loop {
        if let Err(refused) = plane.enroll(&a, Some(&renewed)).await {
            break refused;
        }
    };
    assert!(refused.starts_with("429"), "{refused}");
    let mut stream = connect(plane.at(), "localhost", client(&plane.root, None)).await.unwrap();
    let path = "/api/v1/audit?action=certificate.issue&limit=500";
    let (_, text) = ask(&mut stream, "GET", path, &bearer, "").await.unwrap();
    assert_eq!(serde_json::from_str::<Value>(&text).unwrap()["total"], 21);
    assert!(!text.contains("PRIVATE KEY") && !ca(&data, &[], &["list"]).contains("PRIVATE"));
}

#[tokio::test]
async fn a_revoked_certificate_ends_at_once_also_by_another_process_and_on_open_streams() {
    revoke(&[]).await;
}

#[tokio::test]
async fn a_revoked_certificate_ends_at_once_on_postgres_too() {
    let Some(cluster) = Cluster::shared() else { return };
    let url = cluster.database().await;
    revoke(&["--database", &url]).await;
}

#[expect(clippy::disallowed_methods, reason = "it measures time")]
async fn revoke(database: &[&str]) {
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("data");
    let plane = Plane::start(&data, database);
    let node = plane.deploy("edge-a").await;
    let shown = plane.enroll(&node, None).await.unwrap();
    let open = async || {
        let config = client(&plane.root, Some((&shown.0, &shown.1)));
        connect(plane.at(), "localhost", config).await.unwrap()
    };
    let mut kept = open().await;
    assert_eq!(ask(&mut kept, "GET", "/api/v1/agent/config", &node.headers, "").await.unwrap().0, 200);
    let mut stream = open().await;
    let request = format!("GET /api/v1/agent/stream HTTP/1.1\r\nhost: cp\r\n{}\r\n", node.headers);
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut piece = [0; 8_192];
    assert!(stream.read(&mut piece).await.unwrap() > 0);
    let revoked = ca(&data, database, &["revoke", "--node", &node.uuid]);
    let when = std::time::Instant::now();
    assert!(revoked.contains("revoked 1 certificates"), "{revoked}");
    let (status, text) = ask(&mut kept, "GET", "/api/v1/agent/config", &node.headers, "").await.unwrap();
    assert!(status == 403 && text.contains("revoked"), "on the connection that was open: {status} {text}");
    let ends = async {
        let mut text = Vec::new();
        while !text.ends_with(b"0\r\n\r\n") {
            let length = stream.read(&mut piece).await.unwrap();
            text.extend_from_slice(&piece[..length]);
        }
    };
    timeout(Duration::from_secs(8), ends).await.expect("the stream ends");
    println!("a stream ends {:?} after the revocation by another process", when.elapsed());
    assert!(plane.enroll(&node, Some(&shown)).await.unwrap_err().starts_with("403"));
    assert!(plane.enroll(&node, None).await.unwrap_err().starts_with("403"), "its leave to enrol has ended too");
    assert!(ca(&data, database, &["list"]).contains("revoked"));
    // An operator lets it in again.
    assert!(ca(&data, database, &["issue", &node.uuid]).contains("until"));
    let again = plane.enroll(&node, None).await.unwrap();
    assert_eq!((plane.config(&node, Some(&again)).await, plane.config(&node, Some(&shown)).await), (Ok(200), Ok(403)));
    // Or signs a request that was carried by hand.
    let (csr, key) = self::request();
    std::fs::write(folder.path().join("r.csr"), csr).unwrap();
    let by_hand = ca(&data, database, &["issue", &node.uuid, "--csr", folder.path().join("r.csr").to_str().unwrap()]);
    assert_eq!(plane.config(&node, Some(&(by_hand, key))).await, Ok(200));
}

#[tokio::test]
async fn a_rotation_has_old_and_new_side_by_side_until_the_old_one_is_retired() {
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("data");
    let mut plane = Plane::start(&data, &[]);
    let node = plane.deploy("edge-a").await;
    let old = plane.enroll(&node, None).await.unwrap();
    let beat = |version: u64| {
        json!({ "protocol_version": 1, "agent_version": "1", "mode": "enforce", "config_version": version }).to_string()
    };
    let trust = async |plane: &Plane, shown: &(String, String)| {
        let (_, text) = plane.ask(&node, Some(shown), "/api/v1/agent/config", "").await.unwrap();
        let config: Value = serde_json::from_str(&text).unwrap();
        (config["version"].as_u64().unwrap(), config["trust"].clone())
    };
    let count = |trust: &Value| trust["roots"].as_str().unwrap().matches("BEGIN").count();
    assert!(!run(&data, &["ca", "promote"]).0 && !run(&data, &["ca", "retire"]).0 && !run(&data, &["ca", "init"]).0);
    plane.ask(&node, Some(&old), "/api/v1/agent/heartbeat", &beat(1)).await.unwrap();
    ca(&data, &[], &["rotate"]);
    assert!(!run(&data, &["ca", "rotate"]).0, "one at a time");
    let (version, told) = trust(&plane, &old).await;
    assert_eq!((count(&told), told["renew_before"].is_null()), (2, true));
    let (ok, text) = run(&data, &["ca", "promote"]);
    assert!(!ok && text.contains("edge-a"), "it does not know the next root yet: {text}");
    plane.ask(&node, Some(&old), "/api/v1/agent/heartbeat", &beat(version)).await.unwrap();
    ca(&data, &[], &["promote"]);
    let (_, told) = trust(&plane, &old).await;
    assert!(told["renew_before"].is_string() && count(&told) == 2);
    let (ok, text) = run(&data, &["ca", "retire"]);
    assert!(!ok && text.contains("edge-a"), "it has no certificate of the new root yet: {text}");
    // The server shows one of the new root soon; both are in what nodes were told.
    let new_root = first_root(&data, &[]);
    let mut tries = 0;
    while connect(plane.at(), "localhost", client(&new_root, None)).await.is_err() {
        tries += 1;
        assert!(tries < 100, "the server does not show the new root's certificate");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    plane.root = new_root;
    let new = plane.enroll(&node, Some(&old)).await.unwrap();
    assert_eq!((plane.config(&node, Some(&old)).await, plane.config(&node, Some(&new)).await), (Ok(200), Ok(200)));
    ca(&data, &[], &["retire"]);
    assert_eq!(plane.config(&node, Some(&new)).await, Ok(200));
    let (_, told) = trust(&plane, &new).await;
    assert_eq!((count(&told), told["retired"].as_array().unwrap().len()), (1, 1));
    // At once by the database, and by the handshake as soon as the roots are read again.
    let refused = async || plane.config(&node, Some(&old)).await;
    assert!(matches!(refused().await, Ok(403) | Err(_)));
    tokio::time::sleep(Duration::from_millis(1_500)).await;
    assert!(refused().await.unwrap_err().contains("UnknownCA"));
}

#[tokio::test]
async fn a_certificate_that_has_ended_is_refused_with_its_reason() {
    let server = Server::start().await;
    #[expect(clippy::disallowed_methods, reason = "certificates are verified by the machine's clock")]
    let now = Timestamp::from(time::OffsetDateTime::now_utc());
    // One that was made 91 days ago ended yesterday.
    server.clock.advance((now.micros() - server.app.now().micros()) / 1_000_000 - 91 * 86_400);
    let app = &server.app;
    let system = Actor::System { workspace: app.first_workspace().await.unwrap() };
    app.init_authority(&system).await.unwrap();
    let node = server.deploy("edge-a").await;
    let issue = async || {
        let (csr, key) = request();
        let request = ftagent_common::api::CertificateRequest { csr };
        (app.issue(&system, node.uuid.parse().unwrap(), &request).await.unwrap().certificate, key)
    };
    let old = issue().await;
    server.clock.advance(91 * 86_400);
    let new = issue().await;
    let source = Source::Authority { names: vec!["localhost".to_owned()] };
    let tls = Tls::open(app.clone(), source, MinVersion::V12).await.unwrap();
    let context = Context::new(app.clone(), 100, server.drain.subscribe()).requiring_certificates(true);
    let acceptor = Acceptor::new(tls.config(), 8, Duration::from_secs(5), context.handshakes());
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    listener.set_nonblocking(true).unwrap();
    let at = listener.local_addr().unwrap();
    let service = router(context, true).into_make_service_with_connect_info::<SocketAddr>();
    let serving = axum_server::from_tcp(listener).unwrap().handle(Handle::new()).acceptor(acceptor);
    tokio::spawn(serving.serve(service));
    let root = CertificateDer::from(app.roots(&system).await.unwrap().remove(0).certificate);
    let headers = format!("authorization: Bearer {}\r\nx-node-uuid: {}\r\n", node.key, node.uuid);
    let config = async |(chain, key): &(String, String)| {
        let mut stream = connect(at, "localhost", client(&root, Some((chain, key)))).await?;
        ask(&mut stream, "GET", "/api/v1/agent/config", &headers, "").await
    };
    assert_eq!(config(&new).await.unwrap().0, 200);
    assert!(config(&old).await.unwrap_err().contains("CertificateExpired"), "the handshake says why");
    // By the control plane's clock, should the machine's be another.
    server.clock.advance(91 * 86_400);
    let (status, text) = config(&new).await.unwrap();
    assert!(status == 403 && text.contains("has expired"), "{text}");
}

contract! {
    roots_have_their_states_and_certificates_their_node,
}

async fn roots_have_their_states_and_certificates_their_node(fixture: Fixture) {
    use controlplane::domain::{Fingerprint, RootState};
    use controlplane::store::{NewCertificate, NewRoot};
    let (store, ws, now) = (&fixture.store, fixture.ws, fixture.now);
    let root = |n: u8| NewRoot {
        name: format!("root {n}"),
        certificate: vec![n; 8],
        fingerprint: Fingerprint([n; 32]),
        sealed_key: vec![n],
        not_after: now.plus_secs(1_000_000),
    };
    assert_eq!(store.trust_of(fixture.node).await.unwrap(), None);
    let before = store.trust_revision().await.unwrap();
    let (state, changed) = store.add_root(ws, &root(1), fixture.fact()).await.unwrap();
    assert_eq!((state, changed), (RootState::Active, controlplane::store::Changed::Shared(ws)));
    assert_ne!(store.trust_revision().await.unwrap(), before);
    assert_eq!(store.add_root(ws, &root(2), fixture.fact()).await.unwrap().0, RootState::Next);
    assert!(store.add_root(ws, &root(3), fixture.fact()).await.is_err(), "one next root at a time");
    let roots = store.roots(ws).await.unwrap();
    assert_eq!(roots.iter().map(|r| r.state).collect::<Vec<_>>(), [RootState::Next, RootState::Active]);
    let certificate = |root: i64, n: u8| NewCertificate {
        root,
        serial: format!("{n:02x}"),
        fingerprint: Fingerprint([n; 32]),
        not_before: now,
        not_after: now.plus_secs(1_000),
    };
    let keep = async |root, n| {
        let day = now.plus_secs(-86_400);
        store.keep_certificate(fixture.node, &certificate(root, n), day, fixture.fact()).await
    };
    assert!(keep(roots[0].id, 1).await.is_err(), "the next root signs nothing");
    keep(roots[1].id, 1).await.unwrap();
    let access = async |node, n: u8| {
        let access = store.node_key(node, Some(Fingerprint([n; 32]))).await.unwrap().unwrap();
        access.standing.map(|s| (s.revoked, s.root))
    };
    assert_eq!(access(fixture.node, 1).await, Some((false, RootState::Active)));
    let other = fixture.deploy("edge-2").await.unwrap();
    assert_eq!((access(other, 1).await, access(fixture.node, 9).await), (None, None));
    store.promote_root(ws, now, false, fixture.fact()).await.unwrap();
    assert_eq!(access(fixture.node, 1).await, Some((false, RootState::Old)));
    keep(roots[0].id, 2).await.unwrap();
    store.retire_roots(ws, now, false, fixture.fact()).await.unwrap();
    assert!(store.retire_roots(ws, now, false, fixture.fact()).await.is_err(), "none is old any more");
    assert_eq!(access(fixture.node, 1).await, Some((false, RootState::Retired)));
    let trust = store.node_config(fixture.node).await.unwrap().trust.unwrap();
    assert_eq!((trust.roots.matches("BEGIN").count(), trust.retired.len()), (1, 1));
    assert!(trust.renew_before.is_some());
    let listed = store.certificates(ws).await.unwrap();
    assert_eq!(listed.len(), 2);
    assert_eq!(store.revoke_node(ws, fixture.node, fixture.fact()).await.unwrap(), 2);
    assert_eq!(access(fixture.node, 2).await, Some((true, RootState::Active)));
    assert!(store.revoke_certificate(ws, 99, fixture.fact()).await.is_err());
    store.delete_node(ws, fixture.node, fixture.fact()).await.unwrap();
    assert_eq!(store.certificates(ws).await.unwrap().len(), 0, "they go with their node");
    fixture.audited().await;
}

/// A certificate is good at every process of one database, and revoked at all of them.
#[tokio::test]
async fn several_processes_share_the_authority() {
    let Some(cluster) = Cluster::shared() else { return };
    let url = cluster.database().await;
    let database = ["--database", url.as_str()];
    let folder = tempfile::tempdir().unwrap();
    let (one, two) = (folder.path().join("one"), folder.path().join("two"));
    let plane = Plane::start(&one, &database);
    // The key that seals the authority's is the same at each.
    std::fs::create_dir_all(&two).unwrap();
    std::fs::copy(one.join("secrets.key"), two.join("secrets.key")).unwrap();
    let second = Process::start_with(&two, &database, &AUTHORITY);
    let node = plane.deploy("edge-a").await;
    let shown = plane.enroll(&node, None).await.unwrap();
    let at_second = async || {
        let config = client(&plane.root, Some((&shown.0, &shown.1)));
        let mut stream = connect(second.address(), "localhost", config).await.unwrap();
        ask(&mut stream, "GET", "/api/v1/agent/config", &node.headers, "").await.unwrap().0
    };
    assert_eq!(at_second().await, 200);
    ca(&one, &database, &["revoke", "--node", &node.uuid]);
    assert_eq!((at_second().await, plane.config(&node, Some(&shown)).await), (403, Ok(403)));
    // With another key it says so.
    let three = folder.path().join("three");
    let (ok, text) = run(&three, &[&database[..], &["ca", "issue", &node.uuid, "--csr", "/dev/null"]].concat());
    assert!(!ok, "{text}");
}

#[tokio::test]
async fn nothing_of_it_is_there_without_an_authority() {
    let server = Server::start().await;
    let node = server.deploy("edge-a").await;
    let (csr, _) = request();
    let post = |body: Value| {
        let request = server.agent(&node, reqwest::Method::POST, "/certificate").json(&body);
        crate::support::checked(request)
    };
    assert_eq!(post(json!({ "csr": csr })).await.0, 404);
    assert_eq!(post(json!({ "csr": "x" })).await.0, 422);
    assert_eq!(post(json!({ "csr": 1 })).await.0, 400);
    let (_, config) = crate::support::checked(server.agent(&node, reqwest::Method::GET, "/config")).await;
    assert!(config.get("trust").is_none());
}
