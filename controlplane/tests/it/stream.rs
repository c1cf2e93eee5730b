//! The push stream: at once, whole, resumable.

use std::time::{Duration, Instant};

use ftagent_common::api::{Order, StreamMessage};
use reqwest::{Method, Response};
use serde_json::json;

use crate::support::{Node, Server, UUID, report, rule};

/// A stream read line by line.
pub(crate) struct Lines {
    answer: Response,
    bytes: Vec<u8>,
}

impl Lines {
    pub(crate) async fn open(server: &Server, node: &Node, query: &str) -> Self {
        let answer = server.agent(node, Method::GET, &format!("/stream{query}")).send().await.unwrap();
        assert_eq!(answer.status(), 200);
        assert_eq!(answer.headers()["content-type"], "application/x-ndjson");
        Self { answer, bytes: Vec::new() }
    }

    /// The next message, or none at the end.
    pub(crate) async fn next(&mut self) -> Option<StreamMessage> {
        loop {
            if let Some(end) = self.bytes.iter().position(|b| *b == b'\n') {
                let line: Vec<u8> = self.bytes.drain(..=end).collect();
                return Some(serde_json::from_slice(&line).unwrap());
            }
            let chunk = tokio::time::timeout(Duration::from_secs(20), self.answer.chunk()).await.unwrap();
            self.bytes.extend_from_slice(&chunk.unwrap()?);
        }
    }

    async fn version(&mut self) -> (u64, bool) {
        match self.next().await.unwrap() {
            StreamMessage::Config { config } => (config.version, true),
            StreamMessage::Ping { version } => (version, false),
            StreamMessage::Command { command } => panic!("a command came first: {command:?}"),
        }
    }
}

#[tokio::test]
#[expect(clippy::disallowed_methods, reason = "it measures time")]
async fn a_committed_change_is_pushed_at_once() {
    let server = Server::start().await;
    let node = server.deploy("edge-1").await;
    let mut lines = Lines::open(&server, &node, "").await;
    assert_eq!(lines.version().await, (1, true));
    let mut slowest = Duration::ZERO;
    for n in 0..20 {
        server.made("/api/v1/firewall-rules", &rule(&format!("r{n}"))).await;
        let committed = Instant::now();
        let StreamMessage::Config { config } = lines.next().await.unwrap() else { panic!("no configuration") };
        slowest = slowest.max(committed.elapsed());
        assert_eq!((config.version, config.rules.len()), (n + 2, usize::try_from(n).unwrap() + 1));
    }
    println!("slowest push after the answer: {slowest:?}");
}

#[tokio::test]
async fn a_stream_that_was_cut_resumes_by_version() {
    let server = Server::start().await;
    let node = server.deploy("edge-1").await;
    let mut lines = Lines::open(&server, &node, "").await;
    assert_eq!(lines.version().await, (1, true));
    drop(lines);
    let mut same = Lines::open(&server, &node, "?from=1").await;
    assert_eq!(same.version().await, (1, false), "nothing new: a ping");
    drop(same);
    for name in ["a", "b", "c"] {
        server.made("/api/v1/firewall-rules", &rule(name)).await;
    }
    let mut resumed = Lines::open(&server, &node, "?from=1").await;
    let StreamMessage::Config { config } = resumed.next().await.unwrap() else { panic!("no configuration") };
    assert_eq!((config.version, config.rules.len()), (4, 3), "one snapshot, not three changes");
    // A version from before the database was restored is not newer, only other.
    let mut foreign = Lines::open(&server, &node, "?from=99").await;
    assert_eq!(foreign.version().await, (4, true));
}

#[tokio::test]
async fn commands_are_pushed_and_repeated_until_acknowledged() {
    let server = Server::start().await;
    let node = server.deploy("edge-1").await;
    server.report(&node, "/incidents", &report(UUID, 1, "active")).await;
    let mut lines = Lines::open(&server, &node, "?from=1").await;
    lines.version().await;
    assert_eq!(server.patch("/api/v1/incidents/1", &json!({ "status": "resolved" })).await.0, 200);
    let StreamMessage::Command { command } = lines.next().await.unwrap() else { panic!("no command") };
    assert_eq!(command.order, Order::ResolveIncident { incident: UUID.parse().unwrap(), false_positive: false });
    drop(lines);
    let mut again = Lines::open(&server, &node, "?from=1").await;
    assert_eq!(again.version().await, (1, false), "the first line is never a command");
    assert_eq!(again.next().await, Some(StreamMessage::Command { command: command.clone() }));
    let ack = json!({ "command_id": command.command_id, "status": "failed", "error": "no such incident" });
    server.report(&node, "/commands/ack", &ack).await;
    let mut later = Lines::open(&server, &node, "?from=1").await;
    assert_eq!(later.version().await, (1, false));
    server.made("/api/v1/firewall-rules", &rule("next")).await;
    assert_eq!(later.version().await, (2, true), "the acknowledged command does not come again");
}

#[tokio::test]
async fn a_stream_that_nobody_reads_holds_nobody_up() {
    let server = Server::start().await;
    let node = server.deploy("edge-1").await;
    // Fills the socket's buffers: every change is a configuration of some 100 KiB.
    let sources: Vec<_> = (0..1_000).map(|n| format!("198.51.{}.{}/32", n / 250, n % 250)).collect();
    let stuck = Lines::open(&server, &node, "").await;
    let mut reading = Lines::open(&server, &node, "").await;
    reading.version().await;
    for n in 0..40 {
        let action = json!({ "type": "xdp_drop_source", "sources": sources });
        let body = json!({ "name": format!("r{n}"), "trigger": { "type": "any" }, "action": action });
        server.made("/api/v1/firewall-rules", &body).await;
        assert_eq!(reading.version().await, (n + 2, true));
    }
    drop(stuck);
}

#[tokio::test]
async fn streams_end_when_the_server_drains_or_the_node_is_deleted() {
    let server = Server::start().await;
    let node = server.deploy("edge-1").await;
    let other = server.deploy("edge-2").await;
    let mut lines = Lines::open(&server, &node, "").await;
    let mut others = Lines::open(&server, &other, "").await;
    lines.version().await;
    others.version().await;
    assert_eq!(server.delete(&format!("/api/v1/nodes/{}", node.uuid)).await.0, 200);
    assert_eq!(lines.next().await, None);
    assert_eq!(server.agent(&node, Method::GET, "/stream").send().await.unwrap().status(), 401);
    server.drain.send_replace(true);
    assert_eq!(others.next().await, None);
}
