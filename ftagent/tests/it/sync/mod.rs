//! The link to the control plane against a server that is down, slow, broken, refusing and back again.

pub(crate) mod controlplane;
mod failover;
mod secure;
mod server;
mod upload;

use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use ftagent::sync::spool::Limits;
use ftagent::sync::{Incoming, Link, LinkConfig, LinkError, Outgoing, Secret, Timing};
use ftagent_common::api::{
    AckStatus, CommandAck, DeployRequest, Heartbeat, IncidentReport, MetricsSample, NodeConfig, PROTOCOL_VERSION,
    ProfileReport, ProfileState,
};
use ftagent_common::vocab::Mode;
use serde_json::{Value, json};
use time::OffsetDateTime;
use uuid::Uuid;

use self::server::{Reply, Seen, Server};

const KEY: &str = "0123456789abcdef";
const PATIENCE: Duration = Duration::from_secs(20);

fn timing() -> Timing {
    let ms = Duration::from_millis;
    Timing {
        heartbeat: ms(100),
        metrics: ms(50),
        silence: ms(400),
        poll: ms(60),
        request: ms(500),
        backoff: (ms(10), ms(100)),
        operator: ms(100),
        certificate: ms(50),
        back: ms(50),
    }
}

fn config(url: String, dir: &Path) -> LinkConfig {
    LinkConfig {
        urls: vec![url],
        ca_file: None,
        client: None,
        state_dir: dir.into(),
        deploy_token: None,
        deploy: DeployRequest {
            name: "edge-1".into(),
            ip: "192.0.2.1".into(),
            location: String::new(),
            os: String::new(),
            interface: "eth0".into(),
        },
        limits: Limits::default(),
        timing: timing(),
        captures: None,
        wall: || OffsetDateTime::UNIX_EPOCH,
    }
}

/// A state directory of a node that has its key.
fn deployed() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    let node = json!({"node_uuid": Uuid::from_u128(5), "api_key": KEY});
    std::fs::write(dir.path().join("node.json"), node.to_string()).unwrap();
    dir
}

fn report(uuid: u128, revision: u32, status: &str) -> Box<IncidentReport> {
    let at = format!("2026-05-12T14:30:{:02}Z", revision % 60);
    let report = json!({
        "uuid": Uuid::from_u128(uuid), "revision": revision, "status": status, "target": "192.0.2.1/32",
        "family": "udp_flood", "severity": "high", "confidence": 0.9, "spoofed": false,
        "started_at": "2026-05-12T14:30:00Z", "updated_at": at,
        "peak_pps": 1, "peak_bps": 1, "current_pps": 1, "current_bps": 1,
        "threshold": {"quantity": "pps", "value": 1, "origin": "floor", "ratio": 2.0},
        "packets": 1, "dropped_packets": 0, "source_count": 1,
    });
    Box::new(serde_json::from_value(report).unwrap())
}

fn sample(second: i64) -> MetricsSample {
    let at = OffsetDateTime::from_unix_timestamp(1_780_000_000 + second).unwrap();
    MetricsSample { at, pps: 9, bps: 9, dropped_pps: 0, tcp_pps: 0, udp_pps: 0, icmp_pps: 0, other_pps: 0 }
}

fn heartbeat() -> Heartbeat {
    serde_json::from_value(
        json!({"protocol_version": PROTOCOL_VERSION, "agent_version": "0.1.0", "mode": Mode::Enforce}),
    )
    .unwrap()
}

fn is_stream(seen: &Seen) -> bool {
    seen.path.starts_with("/api/v1/agent/stream")
}

fn ping(version: u64) -> String {
    format!("{}\n", json!({"type": "ping", "version": version}))
}

fn config_line(version: u64) -> String {
    format!("{}\n", json!({"type": "config", "config": {"version": version}}))
}

fn quiet_stream() -> Reply {
    Reply::Stream { pieces: vec![config_line(1)], hold: true }
}

fn ok() -> Reply {
    Reply::Json(200, json!({"ok": true}))
}

fn refusal(status: u16) -> Reply {
    Reply::Json(status, json!({"ok": false, "error": {"code": "refused", "message": "not like this", "details": []}}))
}

/// (uuid, revision, path, started_at) of the incident reports that were accepted, in order.
fn arrived(server: &Server) -> Vec<(u128, u64, String, Value)> {
    let reports = server.accepted("/api/v1/agent/incidents").into_iter();
    reports
        .map(|s| {
            let uuid: Uuid = s.body["uuid"].as_str().unwrap().parse().unwrap();
            (uuid.as_u128(), s.body["revision"].as_u64().unwrap(), s.path, s.body["started_at"].clone())
        })
        .collect()
}

async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let waited = tokio::time::timeout(PATIENCE, async {
        while !holds() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    });
    assert!(waited.await.is_ok(), "{what} did not happen");
}

/// The next configuration or command; the status messages between are skipped.
async fn next(link: &mut Link) -> Incoming {
    loop {
        let incoming = tokio::time::timeout(PATIENCE, link.incoming.recv()).await.expect("something arrives").unwrap();
        if !matches!(incoming, Incoming::Status(_)) {
            return incoming;
        }
    }
}

fn config_version(incoming: &Incoming) -> Option<u64> {
    match incoming {
        Incoming::Config(config) => Some(config.version),
        _ => None,
    }
}

#[tokio::test]
async fn everything_arrives_once_in_order_with_its_own_times_whatever_the_server_does() {
    let dir = deployed();
    let faults: Vec<Reply> = vec![
        refusal(500),
        Reply::With(503, vec![("retry-after", "1".into())], String::new()),
        Reply::With(429, vec![("retry-after", "1".into())], String::new()),
        Reply::Hang,
        Reply::Close,
        Reply::Raw(b"HTTP/1.1 200 OK\r\ncontent-length: 500\r\n\r\n{\"ok\":".to_vec()),
        Reply::Raw(b"\x00\xffgarbage\r\n\r\n".to_vec()),
        Reply::With(200, vec![], "x".repeat(300 << 10)),
        Reply::With(302, vec![("location", "http://127.0.0.1:1/".into())], String::new()),
        Reply::With(404, vec![], "<html>a proxy</html>".into()),
        refusal(401),
    ];
    // Nobody listens at first.
    let placeholder = Server::start(|_| Reply::Close).await;
    let address = placeholder.address;
    placeholder.stop().await;

    let link = Link::start(config(format!("http://{address}"), dir.path())).await.unwrap();
    let expected: Vec<(u128, u32)> = (1..=6_u32).flat_map(|n| [(1, n), (2, n)]).collect();
    for (uuid, revision) in &expected[..4] {
        link.outgoing.send(Outgoing::Incident(report(*uuid, *revision, "active"))).await.unwrap();
    }
    let status = link.status();
    until("the trouble shows", || {
        let status = status.borrow();
        status.spool.queued == 4 && status.last_error.as_deref().is_some_and(|e| e.contains("cannot connect"))
    })
    .await;

    let mut remaining = faults.into_iter();
    let mut answered = 0_usize;
    let server = Server::start_on(address, None, move |seen| {
        if is_stream(seen) {
            return quiet_stream();
        }
        // Every second request is a new fault until there are none left.
        answered += 1;
        if answered % 2 == 1 { remaining.next().unwrap_or_else(ok) } else { ok() }
    })
    .await;
    for (uuid, revision) in &expected[4..] {
        link.outgoing.send(Outgoing::Incident(report(*uuid, *revision, "active"))).await.unwrap();
    }
    until("the queue is empty", || status.borrow().spool.queued == 0).await;
    let got = arrived(&server);
    // The oversized answer was an acceptance that the agent could not read: that message came twice, as it may.
    let mut once: Vec<_> = got.clone();
    once.dedup();
    assert!(got.len() <= once.len() + 1, "{got:?}");
    let expected: Vec<_> = expected
        .iter()
        .map(|&(uuid, revision)| {
            let path = match revision {
                1 => "/api/v1/agent/incidents".to_owned(),
                _ => format!("/api/v1/agent/incidents/{}", Uuid::from_u128(uuid)),
            };
            (uuid, u64::from(revision), path, json!("2026-05-12T14:30:00Z"))
        })
        .collect();
    assert_eq!(once, expected);
    assert_eq!(status.borrow().spool.lost.messages(), 0);
    link.shutdown(Duration::ZERO).await;
    server.stop().await;
}

#[tokio::test]
async fn requests_carry_key_and_node_and_the_resolution_has_its_own_path() {
    let dir = deployed();
    let server = Server::start(|seen| if is_stream(seen) { quiet_stream() } else { ok() }).await;
    let link = Link::start(config(server.url(), dir.path())).await.unwrap();
    link.outgoing.send(Outgoing::Incident(report(3, 4, "resolved"))).await.unwrap();
    let command_id = Uuid::from_u128(8);
    let ack = CommandAck { command_id, status: AckStatus::Failed, error: "why".into(), output: String::new() };
    link.outgoing.send(Outgoing::Ack(ack)).await.unwrap();
    let (application, state) = (Uuid::from_u128(8), ProfileState::Lapsed);
    let lapsed = ProfileReport { application, state, reason: "nobody confirmed it".into() };
    link.outgoing.send(Outgoing::Profile(lapsed)).await.unwrap();
    for second in 0..3 {
        link.outgoing.send(Outgoing::Metrics(sample(second))).await.unwrap();
    }
    link.heartbeat.send_replace(Some(heartbeat()));
    until("all kinds arrive", || {
        ["incidents", "commands/ack", "profiles", "metrics", "heartbeat"]
            .iter()
            .all(|path| !server.accepted(&format!("/api/v1/agent/{path}")).is_empty())
    })
    .await;
    for seen in server.seen() {
        assert_eq!(seen.header("authorization"), Some(format!("Bearer {KEY}").as_str()), "{}", seen.path);
        assert_eq!(seen.header("x-node-uuid"), Some(Uuid::from_u128(5).to_string().as_str()), "{}", seen.path);
        assert_eq!(seen.header("host"), Some(server.address.to_string().as_str()));
    }
    assert_eq!(
        server.accepted("/api/v1/agent/incidents")[0].path,
        format!("/api/v1/agent/incidents/{}/resolve", Uuid::from_u128(3))
    );
    assert_eq!(server.accepted("/api/v1/agent/commands/ack")[0].body["status"], "failed");
    assert_eq!(server.accepted("/api/v1/agent/profiles")[0].body["state"], "lapsed");
    let batch = &server.accepted("/api/v1/agent/metrics")[0].body["samples"];
    assert_eq!(batch.as_array().unwrap().len(), 3, "samples of one interval go together");
    link.shutdown(PATIENCE).await;
    server.stop().await;
}

#[tokio::test]
async fn a_refused_message_is_dropped_and_counted_and_the_next_one_goes() {
    let dir = deployed();
    let server = Server::start(|seen| {
        if is_stream(seen) {
            quiet_stream()
        } else if seen.body["revision"] == 2 {
            refusal(422)
        } else {
            ok()
        }
    })
    .await;
    let link = Link::start(config(server.url(), dir.path())).await.unwrap();
    for revision in 1..=3 {
        link.outgoing.send(Outgoing::Incident(report(1, revision, "active"))).await.unwrap();
    }
    until("two reports arrive", || arrived(&server).len() == 2).await;
    let status = link.status();
    until("the queue is empty", || status.borrow().spool.queued == 0).await;
    let status = status.borrow().clone();
    assert_eq!(status.spool.lost.refused, 1);
    assert!(status.last_error.is_some_and(|e| e.contains("not like this")));
    let asked = server.seen().iter().filter(|s| s.body["revision"] == 2).count();
    assert_eq!(asked, 1, "a refusal is not asked again");
    server.stop().await;
}

#[tokio::test]
async fn a_wrong_key_keeps_the_messages_and_names_the_file() {
    let dir = deployed();
    let right = Arc::new(AtomicUsize::new(0));
    let script_right = Arc::clone(&right);
    let server = Server::start(move |seen| match script_right.load(Ordering::SeqCst) {
        0 => refusal(401),
        _ if is_stream(seen) => quiet_stream(),
        _ => ok(),
    })
    .await;
    let link = Link::start(config(server.url(), dir.path())).await.unwrap();
    link.outgoing.send(Outgoing::Incident(report(1, 1, "active"))).await.unwrap();
    let status = link.status();
    until("the status says so", || {
        let status = status.borrow();
        let said = status.last_error.as_deref();
        status.spool.queued == 1 && said.is_some_and(|e| e.contains("node.json") && e.contains("not accepted"))
    })
    .await;
    assert!(!status.borrow().last_error.as_deref().unwrap().contains(KEY));
    right.store(1, Ordering::SeqCst);
    until("the report arrives", || arrived(&server).len() == 1).await;
    server.stop().await;
}

#[tokio::test]
async fn reports_survive_a_restart_while_the_control_plane_is_away() {
    let dir = deployed();
    let away = "http://127.0.0.1:1".to_owned();
    let link = Link::start(config(away, dir.path())).await.unwrap();
    // Somebody still holds a sender when the link is told to stop.
    let _another = link.outgoing.clone();
    for revision in 1..=20 {
        link.outgoing.send(Outgoing::Incident(report(1, revision, "active"))).await.unwrap();
    }
    link.outgoing.send(Outgoing::Metrics(sample(0))).await.unwrap();
    link.shutdown(Duration::ZERO).await;

    let server = Server::start(|seen| if is_stream(seen) { quiet_stream() } else { ok() }).await;
    let link = Link::start(config(server.url(), dir.path())).await.unwrap();
    let status = link.status();
    until("the queue is empty", || status.borrow().spool.queued == 0).await;
    let revisions: Vec<u64> = arrived(&server).iter().map(|(_, revision, ..)| *revision).collect();
    assert_eq!(revisions, (1..=20).collect::<Vec<u64>>());
    assert_eq!(server.accepted("/api/v1/agent/metrics").len(), 1);
    link.shutdown(PATIENCE).await;
    server.stop().await;
}

#[tokio::test]
async fn the_stream_is_followed_through_cuts_garbage_and_silence() {
    let dir = deployed();
    let command = json!({"type": "command", "command": {"command_id": Uuid::from_u128(9),
        "order": {"type": "block", "source": "198.51.100.7/32", "ttl_secs": 60}}});
    let whole = config_line(3);
    let (first, second) = whole.split_at(20);
    let mut replies = vec![
        Reply::Stream { pieces: vec![config_line(2), format!("{command}\n")], hold: false },
        // Cut in the middle of a line: nothing of it may be believed.
        Reply::Stream { pieces: vec![ping(2), first.into()], hold: false },
        Reply::Stream { pieces: vec!["<html>\n".into()], hold: true },
        Reply::Close,
        // Silence.
        Reply::Stream { pieces: vec![ping(2)], hold: true },
        // A line of a later protocol is skipped, not fatal.
        Reply::Stream {
            pieces: vec!["{\"type\":\"song\",\"text\":\"la\"}\n".into(), first.into(), second.into()],
            hold: true,
        },
    ]
    .into_iter();
    let server = Server::start(move |seen| {
        if is_stream(seen) {
            replies.next().unwrap_or(Reply::Stream { pieces: vec![ping(3)], hold: true })
        } else if seen.path == "/api/v1/agent/config" {
            Reply::Json(200, json!({"version": 2}))
        } else {
            ok()
        }
    })
    .await;
    let mut link = Link::start(config(server.url(), dir.path())).await.unwrap();
    assert_eq!(config_version(&next(&mut link).await), Some(2));
    assert!(matches!(next(&mut link).await, Incoming::Command(c) if c.command_id == Uuid::from_u128(9)));
    assert_eq!(config_version(&next(&mut link).await), Some(3));
    let from: Vec<String> = server.seen().into_iter().filter(is_stream).map(|s| s.path).collect();
    assert_eq!(from[0], "/api/v1/agent/stream?from=0");
    assert!(from[1..6].iter().all(|path| path == "/api/v1/agent/stream?from=2"), "{from:?}");
    let status = link.status();
    assert!(status.borrow().connected);
    assert_eq!(status.borrow().config_version, Some(3));
    link.shutdown(Duration::ZERO).await;
    server.stop().await;
}

#[tokio::test]
async fn without_a_stream_the_configuration_is_polled_with_its_etag() {
    let dir = deployed();
    let version = Arc::new(Mutex::new(7_u64));
    let script_version = Arc::clone(&version);
    let server = Server::start(move |seen| {
        if is_stream(seen) {
            return Reply::With(404, vec![], "no such page".into());
        }
        if seen.path == "/api/v1/agent/commands" {
            let order = json!({"type": "unblock", "source": "198.51.100.7/32"});
            return Reply::Json(
                200,
                json!({"ok": true, "commands": [{"command_id": Uuid::from_u128(6), "order": order}]}),
            );
        }
        let version = *script_version.lock().unwrap();
        let etag = format!("\"{version}\"");
        if seen.header("if-none-match") == Some(&etag) {
            return Reply::With(304, vec![("etag", etag)], String::new());
        }
        Reply::With(200, vec![("etag", etag)], json!({"version": version}).to_string())
    })
    .await;
    let mut link = Link::start(config(server.url(), dir.path())).await.unwrap();
    assert_eq!(config_version(&next(&mut link).await), Some(7));
    assert!(matches!(next(&mut link).await, Incoming::Command(c) if c.command_id == Uuid::from_u128(6)));
    until("it is asked with the tag", || {
        server.seen().iter().filter(|s| s.header("if-none-match") == Some("\"7\"")).count() >= 2
    })
    .await;
    assert!(link.status().borrow().connected);
    *version.lock().unwrap() = 8;
    // The command comes with every look until it is acknowledged.
    while config_version(&next(&mut link).await) != Some(8) {}
    link.shutdown(Duration::ZERO).await;
    server.stop().await;
}

#[tokio::test]
async fn a_ping_of_another_version_fetches_the_configuration() {
    let dir = deployed();
    // The server was restored from a backup: its version is below ours.
    let cached = json!({"config": NodeConfig { version: 50, ..NodeConfig::default() }, "etag": null});
    std::fs::write(dir.path().join("config.json"), cached.to_string()).unwrap();
    let server = Server::start(|seen| match seen {
        seen if is_stream(seen) => Reply::Stream { pieces: vec![ping(4)], hold: true },
        _ => Reply::Json(200, json!({"version": 4})),
    })
    .await;
    let mut link = Link::start(config(server.url(), dir.path())).await.unwrap();
    assert_eq!(config_version(&next(&mut link).await), Some(50));
    assert_eq!(config_version(&next(&mut link).await), Some(4));
    server.stop().await;
}

#[tokio::test]
async fn a_restarted_agent_keeps_the_last_configuration_while_the_control_plane_is_away() {
    let dir = deployed();
    let server = Server::start(|seen| if is_stream(seen) { quiet_stream() } else { ok() }).await;
    let mut link = Link::start(config(server.url(), dir.path())).await.unwrap();
    assert_eq!(config_version(&next(&mut link).await), Some(1));
    link.shutdown(Duration::ZERO).await;
    server.stop().await;
    let mut link = Link::start(config("http://127.0.0.1:1".into(), dir.path())).await.unwrap();
    assert_eq!(config_version(&next(&mut link).await), Some(1));
    assert!(!link.status().borrow().connected);
}

#[tokio::test]
async fn a_machine_becomes_a_node_once() {
    let dir = tempfile::tempdir().unwrap();
    let mut tries = 0;
    let server = Server::start(move |seen| {
        if is_stream(seen) {
            return quiet_stream();
        }
        if seen.path != "/api/deploy" {
            return ok();
        }
        tries += 1;
        match tries {
            1 => Reply::With(503, vec![], String::new()),
            2 => refusal(401),
            _ => Reply::Json(200, json!({"ok": true, "node_uuid": Uuid::from_u128(5), "api_key": KEY})),
        }
    })
    .await;
    let mut with_token = config(server.url(), dir.path());
    with_token.deploy_token = Some(Secret::new("t0ken\n"));
    let link = Link::start(with_token).await.unwrap();
    // Reports are taken before the node exists.
    link.outgoing.send(Outgoing::Incident(report(1, 1, "active"))).await.unwrap();
    until("the report arrives", || arrived(&server).len() == 1).await;
    let deploys: Vec<Seen> = server.seen().into_iter().filter(|s| s.path == "/api/deploy").collect();
    assert_eq!(deploys.len(), 3);
    assert_eq!(deploys[0].method, "POST");
    assert_eq!(deploys[0].header("authorization"), Some("Bearer t0ken"));
    assert_eq!(deploys[0].body["name"], "edge-1");
    assert!(link.status().borrow().last_error.as_deref().is_some_and(|e| e.contains("deploy token is not accepted")));
    link.shutdown(PATIENCE).await;

    use std::os::unix::fs::PermissionsExt;
    let mode = std::fs::metadata(dir.path().join("node.json")).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    // Without the token from now on.
    let link = Link::start(config(server.url(), dir.path())).await.unwrap();
    link.outgoing.send(Outgoing::Incident(report(1, 2, "active"))).await.unwrap();
    until("the next report arrives", || arrived(&server).len() == 2).await;
    assert_eq!(server.seen().iter().filter(|s| s.path == "/api/deploy").count(), 3);
    server.stop().await;
}

#[tokio::test]
async fn a_node_without_key_and_token_does_not_start() {
    let dir = tempfile::tempdir().unwrap();
    let refused = Link::start(config("http://127.0.0.1:1".into(), dir.path())).await.err().unwrap();
    assert!(matches!(refused, LinkError::NoCredentials { .. }), "{refused}");
    assert!(refused.to_string().contains("node.json"), "{refused}");
}

#[tokio::test]
async fn heartbeats_say_how_much_waits() {
    let dir = deployed();
    let server = Server::start(|seen| {
        if is_stream(seen) {
            quiet_stream()
        } else if seen.path.contains("incidents") {
            refusal(503)
        } else {
            ok()
        }
    })
    .await;
    let link = Link::start(config(server.url(), dir.path())).await.unwrap();
    for uuid in 1..=3 {
        link.outgoing.send(Outgoing::Incident(report(uuid, 1, "active"))).await.unwrap();
    }
    link.heartbeat.send_replace(Some(heartbeat()));
    until("a heartbeat tells the depth", || {
        server.accepted("/api/v1/agent/heartbeat").iter().any(|s| s.body["queued"] == 3)
    })
    .await;
    server.stop().await;
}

/// A certificate for 127.0.0.1 and the acceptor that shows it.
fn certificate() -> (String, tokio_rustls::TlsAcceptor) {
    let made = rcgen::generate_simple_self_signed(vec!["127.0.0.1".to_owned()]).unwrap();
    let key = rustls::pki_types::PrivateKeyDer::Pkcs8(made.signing_key.serialize_der().into());
    let config = rustls::ServerConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![made.cert.der().clone()], key)
        .unwrap();
    (made.cert.pem(), tokio_rustls::TlsAcceptor::from(Arc::new(config)))
}

#[tokio::test]
async fn https_trusts_the_named_authority_and_no_other() {
    let (pem, acceptor) = certificate();
    let script = |seen: &Seen| if is_stream(seen) { quiet_stream() } else { ok() };
    let server = Server::start_on("127.0.0.1:0".parse().unwrap(), Some(acceptor), script).await;
    let (other, _) = certificate();
    for (ca, trusted) in [(pem, true), (other, false)] {
        let dir = deployed();
        let ca_file = dir.path().join("ca.pem");
        std::fs::write(&ca_file, ca).unwrap();
        let mut https = config(format!("https://{}", server.address), dir.path());
        https.ca_file = Some(ca_file);
        let link = Link::start(https).await.unwrap();
        link.outgoing.send(Outgoing::Incident(report(1, 1, "active"))).await.unwrap();
        let status = link.status();
        if trusted {
            until("the report arrives", || status.borrow().connected && arrived(&server).len() == 1).await;
        } else {
            until("it is refused and kept", || {
                let status = status.borrow();
                status.spool.queued == 1 && status.last_error.as_deref().is_some_and(|e| e.contains("no TLS"))
            })
            .await;
            assert!(!status.borrow().connected);
            assert_eq!(arrived(&server).len(), 1);
        }
    }
    server.stop().await;
}
