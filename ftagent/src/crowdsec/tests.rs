//! The thread of the decisions against a LAPI that does as it is told, over real sockets.

use std::path::Path;
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio::time::timeout;

use super::*;

const KEY: &str = "0123456789abcdef0123456789abcdef";
const PATIENCE: Duration = Duration::from_secs(20);

/// What the server does with a question.
enum Does {
    Answers(&'static str, String),
    /// 200 and bytes without end.
    Floods,
    HangsUp,
}

fn ok(new: &[(i64, &str)], deleted: &[i64]) -> Does {
    let one = |id: i64, value: &str, duration: &str| {
        format!(
            "{{\"id\":{id},\"duration\":\"{duration}\",\"origin\":\"cscli\",\"scenario\":\"x\",\"scope\":\"Ip\",\"type\":\"ban\",\"value\":\"{value}\"}}"
        )
    };
    let new: Vec<String> = new.iter().map(|(id, value)| one(*id, value, "1h0m0s")).collect();
    let deleted: Vec<String> = deleted.iter().map(|id| one(*id, "192.0.2.1", "-1s")).collect();
    Does::Answers("200 OK", format!("{{\"new\":[{}],\"deleted\":[{}]}}", new.join(","), deleted.join(",")))
}

/// Serves one question after the other as the script says, and tells each question's first line.
async fn serve(listener: TcpListener, script: Vec<Does>, asked: mpsc::Sender<String>) {
    let mut kept: Option<TcpStream> = None;
    for does in script {
        let (mut socket, head) = loop {
            let mut socket = match kept.take() {
                Some(socket) => socket,
                None => listener.accept().await.expect("a connection").0,
            };
            if let Some(head) = question(&mut socket).await {
                break (socket, head);
            }
        };
        assert!(head.to_ascii_lowercase().contains(&format!("x-api-key: {KEY}")), "{head}");
        asked.send(head.lines().next().expect("a line").to_owned()).await.expect("somebody listens");
        match does {
            Does::Answers(status, body) => {
                let text = format!("HTTP/1.1 {status}\r\nContent-Length: {}\r\n\r\n{body}", body.len());
                socket.write_all(text.as_bytes()).await.expect("taken");
                kept = Some(socket);
            }
            Does::Floods => {
                let head = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n";
                socket.write_all(head).await.expect("taken");
                let chunk = format!("10000\r\n{}\r\n", " ".repeat(0x1_0000));
                while socket.write_all(chunk.as_bytes()).await.is_ok() {}
            }
            Does::HangsUp => drop(socket),
        }
    }
    std::future::pending::<()>().await;
}

/// The head of the next question; nothing when the other side closed.
async fn question(socket: &mut TcpStream) -> Option<String> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let byte = socket.read_u8().await.ok()?;
        head.push(byte);
    }
    String::from_utf8(head).ok()
}

struct Bouncer {
    handle: Handle,
    asked: mpsc::Receiver<String>,
    thread: tokio::task::JoinHandle<std::io::Result<()>>,
}

async fn bouncer(script: Vec<Does>, path: &Path, max_decisions: u32) -> Bouncer {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let url = format!("http://{}", listener.local_addr().expect("an address"));
    let (asks, asked) = mpsc::channel(64);
    tokio::spawn(serve(listener, script, asks));
    let (worker, handle) =
        Worker::new(&config(url, max_decisions), path.to_owned(), Spared::default()).expect("a worker");
    Bouncer { handle, asked, thread: tokio::task::spawn_blocking(move || worker.run()) }
}

fn config(url: String, max_decisions: u32) -> CrowdsecConfig {
    CrowdsecConfig {
        url,
        key: Key::Inline(Secret::new(KEY)),
        ca_certificate: None,
        poll_secs: 1,
        filter: Filter { addresses: true, ranges: true, ..Filter::default() },
        max_decisions,
        action: ListAction::Block,
    }
}

impl Bouncer {
    /// Whether the next question is for every decision.
    async fn next_is_whole(&mut self) -> bool {
        let line = timeout(PATIENCE, self.asked.recv()).await.expect("in time").expect("a question");
        assert!(line.starts_with("GET /v1/decisions/stream?startup="), "{line}");
        line.contains("startup=true")
    }

    /// Waits until these addresses are in force.
    async fn until(&mut self, addresses: &[&str]) {
        let mut now = Vec::new();
        let waited = timeout(PATIENCE, async {
            loop {
                let decided = self.handle.decided.borrow_and_update().clone();
                now = decided
                    .iter()
                    .flat_map(|d| &d.lists)
                    .flat_map(|l| l.list.v4.clone())
                    .map(|n| n.addr().to_string())
                    .collect();
                now.sort();
                if decided.is_some() && now == addresses {
                    return;
                }
                self.handle.decided.changed().await.expect("the thread lives");
            }
        });
        waited.await.unwrap_or_else(|_| panic!("never {addresses:?}: {now:?}"));
    }

    async fn until_status(&mut self, what: &str, is: impl Fn(&CrowdsecStatus) -> bool) -> CrowdsecStatus {
        let status = timeout(PATIENCE, self.handle.status.wait_for(|status| is(status))).await;
        status.unwrap_or_else(|_| panic!("never {what}")).expect("the thread lives").clone()
    }

    async fn stop(self) {
        drop(self.handle);
        self.thread.await.expect("no panic").expect("a runtime");
    }
}

#[tokio::test]
async fn decisions_come_and_go_and_an_answer_that_failed_is_made_up_for_by_a_whole_one() {
    let dir = tempfile::tempdir().expect("a folder");
    let script = vec![
        ok(&[(1, "192.0.2.1"), (2, "192.0.2.2")], &[]),
        ok(&[(3, "192.0.2.3")], &[1]),
        Does::Answers("403 Forbidden", "{\"message\":\"access forbidden\"}".into()),
        // What was deleted meanwhile is not told again, but is not among all there are.
        ok(&[(3, "192.0.2.3")], &[]),
        ok(&[], &[]),
        Does::Answers("200 OK", "{\"new\":[{\"id\":4,\"dur".into()),
        Does::Answers("502 Bad Gateway", "<html>".into()),
        Does::HangsUp,
        Does::HangsUp,
        ok(&[(3, "192.0.2.3"), (5, "192.0.2.5")], &[]),
    ];
    let mut bouncer = bouncer(script, &dir.path().join("crowdsec.bin"), 10).await;
    assert!(bouncer.next_is_whole().await, "the first");
    bouncer.until(&["192.0.2.1", "192.0.2.2"]).await;
    assert!(!bouncer.next_is_whole().await);
    bouncer.until(&["192.0.2.2", "192.0.2.3"]).await;
    assert!(!bouncer.next_is_whole().await, "the one that is refused");
    let status = bouncer.until_status("refused", |s| s.failures.contains_key("refused")).await;
    assert!(!status.connected && status.last_error.as_ref().is_some_and(|e| e.contains("cscli bouncers list")));
    assert!(status.warnings()[0].contains("2 prefixes stay in force"), "{:?}", status.warnings());
    assert!(bouncer.next_is_whole().await, "after a refusal");
    bouncer.until(&["192.0.2.3"]).await;
    assert!(!bouncer.next_is_whole().await);
    assert!(!bouncer.next_is_whole().await, "the one that is cut off");
    for _ in 0..4 {
        assert!(bouncer.next_is_whole().await, "after failures");
    }
    bouncer.until(&["192.0.2.3", "192.0.2.5"]).await;
    let status = bouncer.until_status("connected", |s| s.connected).await;
    let failures: Vec<(&str, u64)> = status.failures.iter().map(|(kind, n)| (kind.as_str(), *n)).collect();
    assert_eq!(failures, [("malformed", 1), ("refused", 1), ("status", 1), ("unreachable", 2)]);
    assert_eq!((status.whole_answers, status.bans, status.last_error), (3, 2, None));
    bouncer.stop().await;
}

#[tokio::test]
async fn a_body_without_end_is_cut_off_and_what_was_known_stays() {
    let dir = tempfile::tempdir().expect("a folder");
    let script = vec![ok(&[(1, "192.0.2.1"), (2, "192.0.2.2")], &[]), Does::Floods];
    let mut bouncer = bouncer(script, &dir.path().join("crowdsec.bin"), 1).await;
    bouncer.until(&["192.0.2.1"]).await;
    let status = bouncer.until_status("cut off", |s| s.failures.contains_key("too_large")).await;
    assert!(status.last_error.as_ref().is_some_and(|e| e.contains("raise crowdsec.max_decisions")), "{status:?}");
    assert_eq!((status.prefixes(), status.not_enforced["beyond_max"]), (1, 1));
    bouncer.stop().await;
}

#[tokio::test]
async fn a_restart_forgets_nothing_while_lapi_is_away() {
    let dir = tempfile::tempdir().expect("a folder");
    let path = dir.path().join("crowdsec.bin");
    // LAPI itself is at 127.0.0.1: what is known of that is not in force, nor after a restart.
    let mut first = bouncer(vec![ok(&[(1, "192.0.2.1"), (2, "127.0.0.1")], &[])], &path, 10).await;
    first.until(&["192.0.2.1"]).await;
    first.stop().await;
    let before = std::fs::read(&path).expect("bans");
    let mut second = bouncer(vec![Does::HangsUp], &path, 10).await;
    second.until(&["192.0.2.1"]).await;
    second.stop().await;
    // Nor while its name has no address: the last one counts.
    std::fs::write(&path, before).expect("room");
    let config = config("http://lapi.invalid:8080".to_owned(), 10);
    let (worker, handle) = Worker::new(&config, path.clone(), Spared::default()).expect("a worker");
    let thread = tokio::task::spawn_blocking(move || worker.run());
    let mut nameless = Bouncer { handle, asked: mpsc::channel(1).1, thread };
    nameless.until(&["192.0.2.1"]).await;
    nameless.stop().await;
    std::fs::write(&path, "something else").expect("room");
    let mut third = bouncer(vec![ok(&[], &[])], &path, 10).await;
    third.until(&[]).await;
    third.stop().await;
    let names: Vec<String> = std::fs::read_dir(dir.path())
        .expect("a folder")
        .map(|e| e.expect("one").file_name().into_string().expect("UTF-8"))
        .collect();
    assert!(names.iter().any(|name| name.starts_with("crowdsec.bin.corrupt-")), "{names:?}");
}

#[tokio::test]
async fn what_the_node_trusts_is_never_banned_and_nothing_is_while_that_is_not_known() {
    let dir = tempfile::tempdir().expect("a folder");
    let script = vec![ok(&[(1, "192.0.2.1"), (2, "192.0.2.2"), (3, "127.0.0.1")], &[])];
    let mut bouncer = bouncer(script, &dir.path().join("crowdsec.bin"), 10).await;
    // LAPI itself is at 127.0.0.1.
    bouncer.until(&["192.0.2.1", "192.0.2.2"]).await;
    let allow = vec!["192.0.2.0/31".parse().expect("a prefix")];
    bouncer.handle.spared.send_replace(Spared { allow, ..Spared::default() });
    bouncer.until(&["192.0.2.2"]).await;
    let status = bouncer.until_status("counted", |s| s.not_enforced.contains_key("allowlisted")).await;
    assert_eq!((status.not_enforced["allowlisted"], status.not_enforced["guarded"], status.bans), (1, 1, 3));
    bouncer.handle.spared.send_replace(Spared { unreadable: true, ..Spared::default() });
    let status = bouncer.until_status("kept back", |s| s.kept_back).await;
    assert!(status.warnings().iter().any(|w| w.contains("until the node's own addresses can be read")));
    bouncer.until(&["192.0.2.2"]).await;
    bouncer.handle.spared.send_replace(Spared::default());
    bouncer.until(&["192.0.2.1", "192.0.2.2"]).await;
    bouncer.stop().await;
}

#[tokio::test]
async fn a_task_that_asks_no_more_is_told() {
    let dir = tempfile::tempdir().expect("a folder");
    let config = config("http://127.0.0.1:1".to_owned(), 10);
    let (worker, handle) = Worker::new(&config, dir.path().join("bans"), Spared::default()).expect("a worker");
    let thread = tokio::task::spawn_blocking(move || worker.without_client().run());
    let mut silent = Bouncer { handle, asked: mpsc::channel(1).1, thread };
    let status = silent.until_status("told", |s| s.failures.contains_key("internal")).await;
    assert!(!status.connected && status.warnings()[0].contains("restart the agent"), "{:?}", status.warnings());
    silent.stop().await;
}
