//! Captures on their way to a control plane that is real and killed, or made up and difficult.

use std::num::NonZeroU64;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use ftagent::pcap::upload::{Progress, Upload};
use ftagent::pcap::{CaptureId, CapturesStatus, shelf};
use ftagent::sync::{CaptureUploads, Link, LinkConfig, Outgoing, Secret};
use serde_json::json;
use time::OffsetDateTime;
use tokio::sync::watch;
use uuid::Uuid;

use super::controlplane::{ControlPlane, program};
use super::server::{Reply, Seen, Server};
use super::{PATIENCE, config, deployed, ok, quiet_stream, refusal, report, until};

const CHUNK: usize = 2 << 20;
/// Of the capture that is cut in the middle: five chunks and a bit.
const LARGE: usize = 5 * CHUNK + 4_321;
const INCIDENT: Uuid = Uuid::from_u128(1);

/// Puts a capture where the agent's writer would, and lists it.
fn put(dir: &Path, id: impl Into<CaptureId>, length: usize) -> (shelf::Capture, Vec<u8>) {
    let id = id.into();
    let mut bytes = vec![0x0a, 0x0d, 0x0d, 0x0a, 28, 0, 0, 0, 0x4d, 0x3c, 0x2b, 0x1a];
    bytes.extend((0..length - bytes.len()).map(|n| (n / 5) as u8 ^ id.part as u8));
    std::fs::write(dir.join(format!("{id}.pcapng")), &bytes).unwrap();
    let mut capture = shelf::Capture::new(id, "192.0.2.1/32".parse().unwrap(), OffsetDateTime::UNIX_EPOCH);
    (capture.packets, capture.bytes) = (77, length as u64);
    capture.end(shelf::Ended::Resolved);
    (capture, bytes)
}

fn listed(dir: &Path, captures: Vec<shelf::Capture>) -> CapturesStatus {
    CapturesStatus { dir: dir.to_owned(), captures, ..Default::default() }
}

fn uploading(url: String, state: &Path, bytes_per_sec: u64) -> (LinkConfig, watch::Sender<CapturesStatus>) {
    let (sender, captures) = watch::channel(CapturesStatus::default());
    let bytes_per_sec = NonZeroU64::new(bytes_per_sec).unwrap();
    let uploads = CaptureUploads { captures, bytes_per_sec };
    (LinkConfig { captures: Some(uploads), ..config(url, state) }, sender)
}

fn progress(link: &Link, id: impl Into<CaptureId>) -> Option<(Progress, u32)> {
    let status = link.uploads().unwrap();
    status.uploads.get(&id.into().to_string()).map(|upload| (upload.progress, upload.received))
}

fn is_pcap(seen: &Seen) -> bool {
    seen.path.ends_with("/pcap")
}

fn index(seen: &Seen) -> u32 {
    seen.header("x-chunk-index").unwrap().parse().unwrap()
}

fn taken(missing: &[u32]) -> Reply {
    Reply::Json(200, json!({"ok": true, "upload_id": "x", "complete": missing.is_empty(), "missing": missing}))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn chunks_follow_what_is_missing_and_faults_are_waited_out() {
    let mut tries = 0;
    let server = Server::start(move |seen| {
        if super::is_stream(seen) {
            return quiet_stream();
        }
        if !is_pcap(seen) {
            return ok();
        }
        if seen.header("x-capture-part") == Some("2") {
            return refusal(422);
        }
        tries += 1;
        match tries {
            1 => Reply::With(503, vec![("retry-after", "1".to_owned())], String::new()),
            2 => Reply::Close,
            3 => taken(&[1, 2]),
            4 => Reply::Raw(b"HTTP/1.1 200 OK\r\ncontent-length: 7\r\n\r\nnonsens".to_vec()),
            5 => refusal(429),
            6 => taken(&[2]),
            _ => taken(&[]),
        }
    })
    .await;
    let (state, dir) = (deployed(), tempfile::tempdir().unwrap());
    let (settings, captures) = uploading(server.url(), state.path(), 1 << 30);
    let link = Link::start(settings).await.unwrap();
    let (whole, _) = put(dir.path(), INCIDENT, 2 * CHUNK + 5);
    let (part, _) = put(dir.path(), CaptureId { incident: INCIDENT, part: 2 }, 1_000);
    let second = part.id();
    captures.send_replace(listed(dir.path(), vec![whole, part]));
    until("the first is there", || progress(&link, INCIDENT) == Some((Progress::Uploaded, 3))).await;
    until("the second is refused", || progress(&link, second).is_some_and(|p| p.0 == Progress::Refused)).await;
    let seen: Vec<_> = server.seen().into_iter().filter(is_pcap).collect();
    assert!(seen.iter().all(|s| s.path == format!("/api/v1/agent/incidents/{INCIDENT}/pcap")));
    let whole: Vec<_> = seen.iter().filter(|s| s.header("x-chunk-total") == Some("3")).collect();
    assert_eq!(whole.iter().filter(|s| s.status == 200).map(|s| index(s)).collect::<Vec<_>>(), [0, 1, 2]);
    assert!(whole.iter().all(|s| s.header("x-upload-id") == whole[0].header("x-upload-id")));
    assert_eq!(whole[0].header("content-type"), Some("application/octet-stream"));
    assert_eq!((whole[0].header("x-capture-part"), whole[0].header("x-capture-packets")), (Some("1"), Some("77")));
    let small: Vec<_> = seen.iter().filter(|s| s.header("x-capture-part") == Some("2")).collect();
    assert!(small.iter().all(|s| s.header("content-type").unwrap().starts_with("multipart/form-data; boundary=")));
    let status = link.uploads().unwrap();
    assert_eq!((status.waiting, status.sent_bytes), (0, 2 * CHUNK as u64 + 5));
    assert!(status.uploads[&second.to_string()].why.as_ref().unwrap().contains("422"));
    assert!(dir.path().join(format!("{second}.pcapng")).exists(), "the file stays");

    // A restart sends neither again.
    let before = seen.len();
    link.shutdown(PATIENCE).await;
    let (settings, captures_again) = uploading(server.url(), state.path(), 1 << 30);
    let link = Link::start(settings).await.unwrap();
    captures_again.send_replace(captures.borrow().clone());
    until("the states are read", || link.uploads().unwrap().uploads.len() == 2).await;
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert_eq!(server.seen().into_iter().filter(is_pcap).count(), before);
    link.shutdown(PATIENCE).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_capture_waits_for_the_reports_of_its_incident_and_delays_none() {
    let (open_door, door) = watch::channel(false);
    let server = Server::start(move |seen| match &seen.path {
        _ if super::is_stream(seen) => quiet_stream(),
        _ if is_pcap(seen) => Reply::Hang,
        path if path.starts_with("/api/v1/agent/incidents") && !*door.borrow() => refusal(503),
        _ => ok(),
    })
    .await;
    let (state, dir) = (deployed(), tempfile::tempdir().unwrap());
    let (settings, captures) = uploading(server.url(), state.path(), 1 << 30);
    let link = Link::start(settings).await.unwrap();
    link.outgoing.send(Outgoing::Incident(report(1, 1, "active"))).await.unwrap();
    let status = link.status();
    until("the report waits", || status.borrow().spool.queued == 1).await;
    captures.send_replace(listed(dir.path(), vec![put(dir.path(), INCIDENT, 1_000).0]));
    tokio::time::sleep(Duration::from_millis(1_500)).await;
    assert!(!server.seen().iter().any(is_pcap), "the control plane would not know the incident");
    open_door.send_replace(true);
    until("the capture goes", || server.seen().iter().any(is_pcap)).await;
    // The upload gets no answer for two minutes; reports do not care.
    for revision in 2..5 {
        link.outgoing.send(Outgoing::Incident(report(1, revision, "active"))).await.unwrap();
    }
    until("the reports arrive", || status.borrow().spool.queued == 0).await;
    assert_eq!(progress(&link, INCIDENT), Some((Progress::UnderWay, 0)));
    link.shutdown(PATIENCE).await;
}

/// A node of a real control plane with an incident that it knows.
async fn node(control_plane: &ControlPlane, state: &Path, rate: u64) -> (Link, watch::Sender<CapturesStatus>) {
    let (mut settings, captures) = uploading(format!("http://{}", control_plane.address), state, rate);
    settings.deploy_token = Some(Secret::new(&control_plane.token()));
    settings.timing.request = Duration::from_secs(5);
    let link = Link::start(settings).await.unwrap();
    link.outgoing.send(Outgoing::Incident(report(1, 1, "active"))).await.unwrap();
    (link, captures)
}

/// What the control plane has is what the node had.
async fn check_kept(control_plane: &ControlPlane, bytes: &[u8], upload: &Upload) {
    let listed = control_plane.ask("GET", "/api/v1/pcaps", None).await;
    let kept = &listed["pcaps"][0];
    assert_eq!((&listed["total"], &kept["bytes"], &kept["packets"]), (&json!(1), &json!(bytes.len()), &json!(77)));
    assert_eq!((&kept["incident"], &kept["sha256"]), (&json!(INCIDENT), &json!(upload.sha256)));
    let file = control_plane.data.join("captures/files").join(&upload.sha256);
    assert!(std::fs::read(file).unwrap() == bytes);
    assert_eq!(std::fs::read_dir(control_plane.data.join("captures/incoming")).unwrap().count(), 0);
    let incident = control_plane.ask("GET", &format!("/api/v1/incidents/{INCIDENT}"), None).await;
    assert_eq!(incident["incident"]["pcaps"][0]["id"], kept["id"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_upload_goes_on_after_the_control_plane_was_killed() {
    let Some(program) = program() else { return };
    let (data, state, dir) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let mut control_plane = ControlPlane::start_anywhere(&program, data.path());
    let address = control_plane.address;
    let (link, captures) = node(&control_plane, state.path(), 4 << 20).await;
    let (capture, bytes) = put(dir.path(), INCIDENT, LARGE);
    captures.send_replace(listed(dir.path(), vec![capture]));
    let received = || progress(&link, INCIDENT).map_or(0, |(_, received)| received);
    let mut before = Vec::new();
    // In the middle of chunks, each of which takes half a second, and about when the last one completes it.
    for (chunks, millis) in [(1, 200), (3, 400), (5, 5)] {
        until("some chunks are there", || received() >= chunks).await;
        tokio::time::sleep(Duration::from_millis(millis)).await;
        drop(control_plane);
        before.push(received());
        tokio::time::sleep(Duration::from_millis(100)).await;
        control_plane = ControlPlane::start(&program, data.path(), address);
    }
    assert!(before[0] < 6 && before[1] < 6, "it was too fast to be cut: {before:?}");
    until("all of it is there", || progress(&link, INCIDENT).is_some_and(|p| p.0 == Progress::Uploaded)).await;
    let status = link.uploads().unwrap();
    let upload = &status.uploads[&INCIDENT.to_string()];
    println!("{before:?} of 6 chunks at the kills; {} bytes taken for {LARGE}", status.sent_bytes);
    assert_eq!(status.sent_bytes, LARGE as u64, "no chunk was taken twice");
    check_kept(&control_plane, &bytes, upload).await;
    link.shutdown(PATIENCE).await;
}

const DIR: &str = "FTAGENT_TEST_UPLOAD_DIR";
const URL: &str = "FTAGENT_TEST_UPLOAD_URL";
const TOKEN: &str = "FTAGENT_TEST_UPLOAD_TOKEN";

#[tokio::test]
#[ignore = "the process that an_upload_goes_on_after_the_agent_was_killed kills"]
async fn uploader_to_be_killed() {
    let Some(dir) = std::env::var_os(DIR) else { return };
    let dir = Path::new(&dir);
    let (mut settings, captures) = uploading(std::env::var(URL).unwrap(), &dir.join("state"), 4 << 20);
    settings.deploy_token = Some(Secret::new(&std::env::var(TOKEN).unwrap()));
    let link = Link::start(settings).await.unwrap();
    link.outgoing.send(Outgoing::Incident(report(1, 1, "active"))).await.unwrap();
    captures.send_replace(listed(dir, vec![put(dir, INCIDENT, LARGE).0]));
    tokio::time::sleep(Duration::from_secs(60)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_upload_goes_on_after_the_agent_was_killed() {
    let Some(program) = program() else { return };
    let (data, dir) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    std::fs::create_dir(dir.path().join("state")).unwrap();
    let control_plane = ControlPlane::start_anywhere(&program, data.path());
    let mut agent = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "sync::upload::uploader_to_be_killed", "--ignored", "--nocapture"])
        .env(DIR, dir.path())
        .env(URL, format!("http://{}", control_plane.address))
        .env(TOKEN, control_plane.token())
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    let noted = || {
        let bytes = std::fs::read(dir.path().join(format!("{INCIDENT}.upload"))).ok()?;
        serde_json::from_slice::<Upload>(&bytes).ok()
    };
    until("two chunks are there", || noted().is_some_and(|upload| upload.received >= 2)).await;
    agent.kill().unwrap();
    agent.wait().unwrap();
    let before = noted().unwrap();
    assert_eq!(before.progress, Progress::UnderWay, "it was too fast to be cut");

    let (link, captures) = node(&control_plane, &dir.path().join("state"), 1 << 30).await;
    let (capture, bytes) = put(dir.path(), INCIDENT, LARGE);
    captures.send_replace(listed(dir.path(), vec![capture]));
    until("all of it is there", || progress(&link, INCIDENT).is_some_and(|p| p.0 == Progress::Uploaded)).await;
    let status = link.uploads().unwrap();
    let upload = &status.uploads[&INCIDENT.to_string()];
    println!("{} of 6 chunks before the kill, {} bytes after it", before.received, status.sent_bytes);
    assert_eq!(upload.id, before.id);
    let left = LARGE as u64 - u64::from(before.received) * CHUNK as u64;
    assert!(status.sent_bytes <= left, "{} for {left} bytes that were left", status.sent_bytes);
    check_kept(&control_plane, &bytes, upload).await;
    link.shutdown(PATIENCE).await;
}
