//! Several control planes on one PostgreSQL: whatever one of them does, agents and watchers of the other hear of it.

use std::sync::Arc;
use std::time::{Duration, Instant};

use controlplane::app::CaptureLimits;
use controlplane::clock::Clock as _;
use ftagent_common::api::StreamMessage;
use reqwest::{Client, Method};
use serde_json::{Value, json};

use crate::cluster::{Cluster, settings};
use crate::process::{Process, json_of};
use crate::stream::Lines;
use crate::support::{Server, UUID, checked, report, rule};

/// Two servers on one database, the first of which made the workspace.
async fn pair(cluster: &Arc<Cluster>) -> (Server, Server) {
    let database = settings(&cluster.database().await);
    let start = async || {
        let folder = tempfile::tempdir().unwrap();
        Server::start_on(&database, folder, Some(cluster.clone()), CaptureLimits::default()).await
    };
    let first = start().await;
    let mut second = start().await;
    assert!(second.owner.is_empty(), "the workspace is there already");
    second.owner.clone_from(&first.owner);
    for server in [&first, &second] {
        tokio::spawn(server.app.clone().relay(server.drain.subscribe()));
    }
    tokio::time::timeout(Duration::from_secs(20), async {
        while !first.app.listens() || !second.app.listens() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await
    .unwrap();
    (first, second)
}

async fn version(lines: &mut Lines) -> u64 {
    match lines.next().await.unwrap() {
        StreamMessage::Config { config } => config.version,
        other => panic!("no configuration: {other:?}"),
    }
}

#[tokio::test]
#[expect(clippy::disallowed_methods, reason = "it measures time")]
async fn a_change_at_one_reaches_streams_and_watchers_of_the_other() {
    let Some(cluster) = Cluster::shared() else { return };
    let (first, second) = pair(&cluster).await;
    let node = first.deploy("edge-1").await;
    let mut lines = Lines::open(&second, &node, "").await;
    assert_eq!(version(&mut lines).await, 1);
    let mut watcher = second.request(Method::GET, "/api/v1/events").send().await.unwrap();
    let mut delays = Vec::new();
    for n in 0..30 {
        first.made("/api/v1/firewall-rules", &rule(&format!("r{n}"))).await;
        let committed = Instant::now();
        assert_eq!(version(&mut lines).await, n + 2);
        delays.push(committed.elapsed());
    }
    delays.sort();
    println!("push through the other process after the answer: p50 {:?}, max {:?}", delays[15], delays[29]);
    assert!(delays[29] < Duration::from_secs(5), "not by the poll every ten seconds");
    let mut text = String::new();
    while !text.contains("\"r29\"") {
        let piece = tokio::time::timeout(Duration::from_secs(5), watcher.chunk()).await.unwrap().unwrap().unwrap();
        text.push_str(&String::from_utf8_lossy(&piece));
    }
    assert_eq!(text.matches("\"what\":\"created\"").count(), 30, "each event once: {text}");

    // A rule too large for one text on the channel, an order, and the end of a node.
    let sources: Vec<_> = (0..1_000).map(|n| format!("198.51.{}.{}/32", n / 250, n % 250)).collect();
    let action = json!({ "type": "xdp_drop_source", "sources": sources });
    first
        .made("/api/v1/firewall-rules", &json!({ "name": "big", "trigger": { "type": "any" }, "action": action }))
        .await;
    assert_eq!(version(&mut lines).await, 32);
    while !text.contains("198.51.3.249") {
        let piece = tokio::time::timeout(Duration::from_secs(5), watcher.chunk()).await.unwrap().unwrap().unwrap();
        text.push_str(&String::from_utf8_lossy(&piece));
    }
    assert_eq!(first.delete(&format!("/api/v1/nodes/{}", node.uuid)).await.0, 200);
    assert_eq!(lines.next().await, None, "the stream of a node that is gone ends");
}

#[tokio::test]
async fn word_that_was_cut_off_is_made_up_for() {
    let Some(cluster) = Cluster::start() else { return };
    let (first, second) = pair(&cluster).await;
    let node = first.deploy("edge-1").await;
    let mut lines = Lines::open(&second, &node, "").await;
    assert_eq!(version(&mut lines).await, 1);
    let mut watcher = second.request(Method::GET, "/api/v1/events").send().await.unwrap();
    // Every session dies: those that listen too.
    cluster.crash();
    cluster.start_again();
    let mut tries = 0;
    while checked(first.request(Method::POST, "/api/v1/firewall-rules").json(&rule("after"))).await.0 != 200 {
        tries += 1;
        assert!(tries < 20);
    }
    loop {
        match lines.next().await {
            Some(StreamMessage::Config { config }) => {
                assert_eq!(config.version, 2);
                break;
            }
            Some(StreamMessage::Ping { version: 1 }) => {}
            // Its look at the database failed: the agent comes again.
            None => {
                lines = Lines::open(&second, &node, "?from=1").await;
            }
            other => panic!("{other:?}"),
        }
    }
    let mut text = String::new();
    while !text.contains("event: missed") {
        let piece = tokio::time::timeout(Duration::from_secs(20), watcher.chunk()).await.unwrap().unwrap().unwrap();
        text.push_str(&String::from_utf8_lossy(&piece));
    }
}

#[tokio::test]
async fn one_of_two_leads_and_the_other_takes_over() {
    let Some(cluster) = Cluster::shared() else { return };
    let (first, second) = pair(&cluster).await;
    let leads = async |server: &Server| server.store.lead().await.unwrap();
    assert!(leads(&first).await);
    assert!(!leads(&second).await);
    assert!(leads(&first).await, "as long as its session lives");
    let node = first.deploy("edge-1").await;
    first.heartbeat(&node, 0.0).await;
    first.store.close().await;
    let mut tries = 0;
    while !leads(&second).await {
        tries += 1;
        assert!(tries < 50, "nobody leads");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test]
async fn what_a_dead_process_had_claimed_is_free_at_the_second_look() {
    let Some(cluster) = Cluster::shared() else { return };
    let (first, second) = pair(&cluster).await;
    let node = first.deploy("edge-1").await;
    let body = json!({
        "kind": "webhook", "name": "hook", "settings": { "url": "https://192.0.2.1/" }, "secrets": {}, "headers": {},
    });
    first.made("/api/v1/channels", &body).await;
    first.report(&node, "/incidents", &report(UUID, 1, "active")).await;
    for server in [&first, &second] {
        server.app.take_over().await.unwrap();
    }
    assert!(second.store.lead().await.unwrap() || first.store.lead().await.unwrap());
    let claim = async |server: &Server| {
        let now = server.clock.now();
        server.store.claim_deliveries(10, 1, now, now.plus_secs(65)).await.unwrap().len()
    };
    assert_eq!(claim(&first).await, 1);
    let free = async |server: &Server| server.store.free_claims().await.unwrap();
    for _ in 0..3 {
        assert_eq!((free(&first).await, free(&second).await), (0, 0), "both live");
        assert_eq!(claim(&second).await, 0);
    }
    first.store.close().await;
    let mut looks = Vec::new();
    while looks.last() != Some(&1) {
        looks.push(free(&second).await);
        assert!(looks.len() < 50, "{looks:?}");
        if !second.store.lead().await.unwrap() {
            looks.clear();
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
    assert!(looks.len() >= 2, "a session that was cut off has time to come again: {looks:?}");
    assert_eq!(claim(&second).await, 1);
    assert_eq!((free(&second).await, free(&second).await), (0, 0), "its own");
}

#[tokio::test]
async fn the_same_key_at_both_is_answered_once() {
    let Some(cluster) = Cluster::shared() else { return };
    let (first, second) = pair(&cluster).await;
    for round in 0..10 {
        let post = |server: &Server| {
            let request = server.request(Method::POST, "/api/v1/firewall-rules").json(&rule(&format!("r{round}")));
            checked(request.header("Idempotency-Key", format!("k{round}")))
        };
        let (one, other): ((u16, Value), (u16, Value)) = tokio::join!(post(&first), post(&second));
        assert_eq!((one.0, other.0), (200, 200), "{one:?} {other:?}");
        assert_eq!(one.1, other.1, "the same answer");
    }
    assert_eq!(first.get("/api/v1/firewall-rules").await.1["total"], 10);
    let (_, verdict) = second.get("/api/v1/audit/verify").await;
    assert_eq!(verdict["intact"], json!(true));
}

/// Reads a stream of lines or events until `wanted` is in it.
async fn until(answer: &mut reqwest::Response, wanted: &str) -> String {
    let mut text = String::new();
    while !text.contains(wanted) {
        let piece = tokio::time::timeout(Duration::from_secs(20), answer.chunk()).await.unwrap().unwrap();
        text.push_str(&String::from_utf8_lossy(&piece.expect("it goes on")));
    }
    text
}

#[tokio::test]
#[expect(clippy::disallowed_methods, reason = "it measures time")]
async fn one_of_two_programs_is_killed_and_its_agents_go_over() {
    let Some(cluster) = Cluster::shared() else { return };
    let url = cluster.database().await;
    let (one, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let mut first = Process::start(one.path(), &["--database", &url]);
    let second = Process::start(other.path(), &["--database", &url]);
    let (token, client) = (first.token().unwrap(), Client::new());
    let post = async |at: &str, path: &str, body: &Value| {
        let answer = client.post(format!("{at}{path}")).bearer_auth(&token).json(body).send().await.unwrap();
        assert_eq!(answer.status(), 200, "{path}");
        answer.json::<Value>().await.unwrap()
    };
    let node = post(&first.url, "/api/deploy", &json!({ "name": "edge-1" })).await;
    let (uuid, key) = (node["node_uuid"].as_str().unwrap(), node["api_key"].as_str().unwrap());
    let stream = async |at: &str, from: u64| {
        let request = client.get(format!("{at}/api/v1/agent/stream?from={from}")).bearer_auth(key);
        request.header("X-Node-UUID", uuid).send().await.unwrap()
    };
    let mut there = stream(&first.url, 1).await;
    let mut watcher = client.get(format!("{}/api/v1/events", second.url)).bearer_auth(&token).send().await.unwrap();
    // Both listen from their start on, but perhaps not yet.
    tokio::time::sleep(Duration::from_secs(1)).await;
    post(&second.url, "/api/v1/firewall-rules", &rule("at the second")).await;
    until(&mut there, "at the second").await;
    post(&first.url, "/api/v1/firewall-rules", &rule("at the first")).await;
    until(&mut there, "at the first").await;
    until(&mut watcher, "at the first").await;
    let leads = async || {
        let pool = sqlx::PgPool::connect(&url).await.unwrap();
        let query = "SELECT pid FROM pg_locks WHERE locktype = 'advisory' AND objid = 1000 AND granted
                     AND database = (SELECT oid FROM pg_database WHERE datname = current_database())";
        sqlx::query_scalar::<_, i32>(query).fetch_optional(&pool).await.unwrap()
    };
    let before = leads().await.expect("one leads");
    first.child.kill().unwrap();
    let killed = Instant::now();
    while there.chunk().await.is_ok_and(|piece| piece.is_some()) {}
    let mut here = stream(&second.url, 3).await;
    post(&second.url, "/api/v1/firewall-rules", &rule("afterwards")).await;
    let lines = until(&mut here, "afterwards").await;
    println!("the agent has a change of after the kill {:?} after it", killed.elapsed());
    let last: Value = serde_json::from_str(lines.lines().last().unwrap()).unwrap();
    assert_eq!(last["config"]["version"], json!(4), "{last}");
    let leader = loop {
        if let Some(leader) = leads().await.filter(|leader| *leader != before) {
            break leader;
        }
        assert!(killed.elapsed() < Duration::from_secs(15), "nobody leads");
        tokio::time::sleep(Duration::from_millis(100)).await;
    };
    println!("another leads (session {leader}) {:?} after the kill", killed.elapsed());
    let verdict = json_of(&client, &format!("{}/api/v1/audit/verify", second.url), &token).await;
    assert_eq!(verdict["intact"], json!(true));
}
