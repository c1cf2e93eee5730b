//! The link and the real control plane over mutual TLS: enrolment, renewal, a rotation under a running stream, and what
//! is said when a certificate is not accepted.
#![expect(clippy::disallowed_methods, reason = "it measures time, and certificates end by the clock")]

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use ftagent::sync::{ClientFiles, Incoming, Link, LinkConfig, Outgoing, Secret};
use ftagent_common::api::Heartbeat;
use serde_json::{Value, json};

use super::controlplane::{ControlPlane, program};
use super::{PATIENCE, config, heartbeat, report, until};

pub(super) const AUTHORITY: [(&str, &str); 2] = [("TLS_NAMES", "127.0.0.1"), ("REQUIRE_CLIENT_CERTIFICATES", "true")];

/// `controlplane ca …`, which must succeed.
fn must(program: &Path, data: &Path, args: &[&str]) -> String {
    on(program, data, &[], args)
}

/// The same with settings in the environment.
fn on(program: &Path, data: &Path, settings: &[(&str, &str)], args: &[&str]) -> String {
    let mut command = Command::new(program);
    for (name, value) in settings {
        command.env(format!("FTAGENT_CP_{name}"), value);
    }
    let output = command.arg("--data").arg(data).arg("ca").args(args).output().unwrap();
    let text = String::from_utf8([output.stdout, output.stderr].concat()).unwrap();
    assert!(output.status.success(), "{args:?}: {text}");
    text
}

/// A control plane with its own authority that requires certificates, and its roots in a file.
fn start(program: &Path, data: &Path) -> ControlPlane {
    start_on(program, data, &AUTHORITY)
}

/// The same with these settings, [`AUTHORITY`] among them.
pub(super) fn start_on(program: &Path, data: &Path, settings: &[(&str, &str)]) -> ControlPlane {
    let made = on(program, data, settings, &["init"]);
    let token = made.lines().find_map(|line| line.strip_prefix("deploy token: ")).unwrap();
    std::fs::write(data.join("token"), token).unwrap();
    std::fs::write(data.join("ca.pem"), on(program, data, settings, &["roots"])).unwrap();
    ControlPlane::start_with(program, data, settings)
}

pub(super) fn settings(plane: &ControlPlane, state: &Path) -> LinkConfig {
    let mut settings = config(format!("https://{}", plane.address), state);
    settings.ca_file = Some(plane.data.join("ca.pem"));
    settings.deploy_token = Some(Secret::new(&plane.token()));
    settings.timing.request = Duration::from_secs(5);
    settings.timing.silence = Duration::from_secs(45);
    settings.timing.heartbeat = Duration::from_secs(13);
    settings.wall = time::OffsetDateTime::now_utc;
    settings
}

fn own(state: &Path) -> Value {
    serde_json::from_slice(&std::fs::read(state.join("client.json")).unwrap()).unwrap()
}

fn serial(state: &Path) -> String {
    own(state)["issued"]["serial"].as_str().unwrap().to_owned()
}

/// As the daemon does: says which configuration is in force.
fn applied(version: u64) -> Heartbeat {
    Heartbeat { config_version: version, ..heartbeat() }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_authority_is_rotated_under_a_running_stream_and_nothing_is_missed() {
    let Some(program) = program() else { return };
    let (data, state) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let plane = start(&program, data.path());
    let mut link = Link::start(settings(&plane, state.path())).await.unwrap();
    let status = link.status();
    until("it is connected with a certificate of its own", || {
        status.borrow().connected && state.path().join("client.json").exists()
    })
    .await;
    let first = serial(state.path());
    let key = own(state.path())["key"].as_str().unwrap().to_owned();
    assert!(key.contains("PRIVATE KEY"));

    // Reports go on all the time, and every one is acknowledged within a second or so.
    let outgoing = link.outgoing.clone();
    let (stop, mut stopped) = tokio::sync::watch::channel(false);
    let queue = link.status();
    let reporter = tokio::spawn(async move {
        let (mut sent, mut longest) = (0_u32, Duration::ZERO);
        while !*stopped.borrow_and_update() {
            sent += 1;
            let begun = tokio::time::Instant::now();
            outgoing.send(Outgoing::Incident(report(1, sent, "active"))).await.unwrap();
            tokio::time::sleep(Duration::from_millis(5)).await;
            while queue.borrow().spool.queued > 0 {
                assert!(begun.elapsed() < PATIENCE, "a report is not acknowledged: {:?}", queue.borrow());
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            longest = longest.max(begun.elapsed());
        }
        (sent, longest)
    });

    let allow = async |n: u32| {
        let entry = json!({"ip_address": format!("198.51.100.{n}"), "label": "x", "scope": "workspace"});
        plane.ask("POST", "/api/v1/allowlist", Some(entry)).await;
    };
    // Every change that is made is pushed, in order.
    let pushed = async |link: &mut Link, n: usize| {
        let arrives = async {
            loop {
                if let Some(Incoming::Config(config)) = link.incoming.recv().await {
                    link.heartbeat.send_replace(Some(applied(config.version)));
                    if config.allowlist.len() == n {
                        return;
                    }
                    assert!(config.allowlist.len() < n);
                }
            }
        };
        tokio::time::timeout(PATIENCE, arrives).await.expect("the change arrives");
    };
    allow(1).await;
    pushed(&mut link, 1).await;
    must(&program, data.path(), &["rotate"]);
    allow(2).await;
    pushed(&mut link, 2).await;
    // The node's heartbeat says that it knows the next root; the command waits for that by itself no more than we do.
    must(&program, data.path(), &["promote", "--force"]);
    allow(3).await;
    pushed(&mut link, 3).await;
    until("it has a certificate of the new root", || serial(state.path()) != first).await;
    must(&program, data.path(), &["retire"]);
    allow(4).await;
    pushed(&mut link, 4).await;
    // The server reads the roots again within a second, and the old one is good for nothing.
    tokio::time::sleep(Duration::from_secs(2)).await;
    allow(5).await;
    pushed(&mut link, 5).await;
    stop.send_replace(true);
    let (sent, longest) = reporter.await.unwrap();
    println!("{sent} reports during the rotation, the longest took {longest:?} to be acknowledged");
    assert!(sent > 20 && longest < Duration::from_secs(3));
    assert_eq!(status.borrow().spool.lost.messages(), 0);
    let incidents = plane.ask("GET", "/api/v1/incidents", None).await;
    assert_eq!((&incidents["total"], &incidents["incidents"][0]["peak_pps"]), (&json!(1), &json!(1)));
    let list = must(&program, data.path(), &["list"]);
    assert!(list.contains("\tretired\t") && list.contains("\tactive\t"), "{list}");
    link.shutdown(PATIENCE).await;

    // A start with the file that holds the old root alone: what the control plane said is kept.
    let mut again = settings(&plane, state.path());
    again.deploy_token = None;
    let link = Link::start(again).await.unwrap();
    let status = link.status();
    until("it is connected again", || status.borrow().connected).await;
    link.shutdown(PATIENCE).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_wrong_with_a_certificate_is_said_and_an_operator_can_mend_it() {
    let Some(program) = program() else { return };
    let (data, state) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let plane = start(&program, data.path());
    let link = Link::start(settings(&plane, state.path())).await.unwrap();
    let status = link.status();
    until("it is connected", || status.borrow().connected).await;
    let node: Value = serde_json::from_slice(&std::fs::read(state.path().join("node.json")).unwrap()).unwrap();
    let node = node["node_uuid"].as_str().unwrap();

    // Renewed when an operator says so.
    let first = serial(state.path());
    must(&program, data.path(), &["renew", node]);
    until("it is renewed", || serial(state.path()) != first).await;

    // Revoked: said, kept, and mended by an operator without a hand on the node.
    must(&program, data.path(), &["revoke", "--node", node]);
    until("the loss is seen", || !status.borrow().connected).await;
    link.outgoing.send(Outgoing::Incident(report(1, 1, "active"))).await.unwrap();
    until("it says why", || {
        let status = status.borrow();
        status.spool.queued == 1 && status.last_error.as_deref().is_some_and(|e| e.contains("revoked"))
    })
    .await;
    // The node asks for another only when one is due; a restart or the next renewal comes to that.
    link.shutdown(Duration::ZERO).await;
    std::fs::remove_file(state.path().join("client.json")).unwrap();
    must(&program, data.path(), &["issue", node]);
    let link = Link::start(settings(&plane, state.path())).await.unwrap();
    let status = link.status();
    until("the report arrives", || status.borrow().connected && status.borrow().spool.queued == 0).await;
    link.shutdown(PATIENCE).await;

    // Of another authority: the handshake fails, and the reason names what to do.
    let outside = rcgen::generate_simple_self_signed(vec!["node".to_owned()]).unwrap();
    let files = ClientFiles { certificate: state.path().join("c.pem"), key: state.path().join("k.pem") };
    std::fs::write(&files.certificate, outside.cert.pem()).unwrap();
    std::fs::write(&files.key, outside.signing_key.serialize_pem()).unwrap();
    let mut foreign = settings(&plane, state.path());
    foreign.client = Some(files.clone());
    let refused = Link::start(foreign.clone()).await.err().unwrap().to_string();
    assert!(refused.contains("k.pem") && refused.contains("chmod 0600"), "{refused}");
    std::fs::set_permissions(&files.key, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
    let link = Link::start(foreign).await.unwrap();
    let status = link.status();
    until("it says what to do", || {
        let said = status.borrow().last_error.clone();
        said.is_some_and(|e| e.contains("does not accept the client certificate") && e.contains("ca issue"))
    })
    .await;
    // Files that an operator replaces are shown as soon as they change.
    let key = rcgen::KeyPair::generate().unwrap();
    let csr = rcgen::CertificateParams::default().serialize_request(&key).unwrap().pem().unwrap();
    std::fs::write(state.path().join("r.csr"), csr).unwrap();
    let signed = must(&program, data.path(), &["issue", node, "--csr", state.path().join("r.csr").to_str().unwrap()]);
    std::fs::write(&files.key, key.serialize_pem()).unwrap();
    std::fs::write(&files.certificate, signed).unwrap();
    until("the new files are shown", || status.borrow().connected).await;
    link.shutdown(Duration::ZERO).await;

    // The server is not the one that is meant.
    let (other, elsewhere) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let impostor = start(&program, other.path());
    let mut wrong = settings(&plane, elsewhere.path());
    wrong.urls = vec![format!("https://{}", impostor.address)];
    let link = Link::start(wrong).await.unwrap();
    let status = link.status();
    until("it says which authority is missing", || {
        status.borrow().last_error.as_deref().is_some_and(|e| e.contains("ca_certificate"))
    })
    .await;
    link.shutdown(Duration::ZERO).await;
    let mut named = settings(&plane, elsewhere.path());
    named.urls = vec![format!("https://localhost:{}", plane.address.port())];
    let link = Link::start(named).await.unwrap();
    let status = link.status();
    until("it says that the name is wrong", || {
        status.borrow().last_error.as_deref().is_some_and(|e| e.contains("tls_names"))
    })
    .await;
    link.shutdown(Duration::ZERO).await;
}
