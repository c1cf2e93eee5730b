//! Rate limits, as several processes on one PostgreSQL keep them together.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use controlplane::store::Lease;
use reqwest::{Client, RequestBuilder};
use serde_json::{Value, json};

use crate::cluster::Cluster;
use crate::fixture::{Fixture, contract};
use crate::process::{Process, json_of};
use crate::support::checked;

contract! {
    a_budget_is_given_out_once_and_begins_anew,
}

async fn a_budget_is_given_out_once_and_begins_anew(fixture: Fixture) {
    let store = &fixture.store;
    let lease = async |bucket: &str, want, after: i64| {
        let ends = fixture.now.plus_secs(60 + after);
        let leased = store.lease(Lease { bucket: bucket.to_owned(), want, limit: 100, ends }).await.unwrap();
        (leased.granted, leased.left, leased.ends.secs() - fixture.now.secs())
    };
    assert_eq!(lease("a", 60, 0).await, (60, 40, 60));
    assert_eq!(lease("a", 25, 10).await, (25, 15, 60), "the window stays what it is");
    assert_eq!(lease("b", 25, 10).await, (25, 75, 70));
    assert_eq!(lease("a", 25, 20).await, (15, 0, 60));
    assert_eq!(lease("a", 25, 59).await, (0, 0, 60));
    assert_eq!(lease("a", 25, 60).await, (25, 75, 120));
    assert_eq!(lease("a", 25, -3_600).await, (25, 75, -3_540), "the clock was set back");
    // Many at once: never more than there is, whoever asks.
    let mut asking = tokio::task::JoinSet::new();
    for _ in 0..200 {
        let (store, ends) = (store.clone(), fixture.now.plus_secs(60));
        asking.spawn(async move {
            store.lease(Lease { bucket: "c".to_owned(), want: 3, limit: 100, ends }).await.unwrap().granted
        });
    }
    assert_eq!(asking.join_all().await.into_iter().sum::<u32>(), 100);
    assert_eq!(store.forget_windows(fixture.now.plus_secs(61)).await.unwrap(), 2, "a, set back, and c");
    fixture.audited().await;
}

/// Two processes on one database, and the owner's token.
async fn pair(url: &str, folder: &std::path::Path) -> ([Process; 2], String) {
    let first = Process::start(&folder.join("first"), &["--database", url]);
    let owner = first.token().unwrap();
    let second = Process::start(&folder.join("second"), &["--database", url]);
    ([first, second], owner)
}

/// Sends `count` requests, one to each process in turn, eight at a time; how many got which status.
async fn send(count: usize, request: impl Fn(usize) -> RequestBuilder) -> BTreeMap<u16, usize> {
    let mut statuses = BTreeMap::new();
    let requests: Vec<_> = (0..count).map(|n| request(n % 2)).collect();
    let mut requests = requests.into_iter();
    let mut under_way = tokio::task::JoinSet::new();
    loop {
        while under_way.len() < 8
            && let Some(request) = requests.next()
        {
            // The shape of every answer is looked at there: the headers of the limit, and `Retry-After` with 429.
            under_way.spawn(async move { checked(request).await.0 });
        }
        let Some(status) = under_way.join_next().await else { return statuses };
        *statuses.entry(status.unwrap()).or_default() += 1;
    }
}

async fn post(client: &Client, url: &str, token: &str, body: &Value) -> Value {
    client.post(url).bearer_auth(token).json(body).send().await.unwrap().json().await.unwrap()
}

#[tokio::test]
#[expect(clippy::disallowed_methods, reason = "samples are of now")]
async fn two_processes_let_as_much_through_as_one() {
    let Some(cluster) = Cluster::shared() else { return };
    let folder = tempfile::tempdir().unwrap();
    let (processes, owner) = pair(&cluster.database().await, folder.path()).await;
    let client = Client::new();
    let url = |n: usize, path: &str| format!("{}{path}", processes[n].url);

    // A token with a limit of its own: an eighth of it may pass at a process that never asked, and as much may lie
    // unused there.
    let body = json!({ "name": "slow", "role": "readonly", "rate_limit": 80 });
    let token = post(&client, &url(0, "/api/v1/workspace/tokens"), &owner, &body).await["value"].clone();
    let token = token.as_str().unwrap().to_owned();
    let statuses = send(200, |n| client.get(url(n, "/api/v1/nodes")).bearer_auth(&token)).await;
    println!("a token of 80 a minute: {statuses:?}");
    assert!((70..=90).contains(&statuses[&200]) && statuses[&429] == 200 - statuses[&200], "{statuses:?}");
    // Whoever hears no at one process hears it at the other.
    let statuses = send(40, |n| client.get(url(n, "/api/v1/nodes")).bearer_auth(&token)).await;
    assert_eq!(statuses, BTreeMap::from([(429, 40)]));

    let node = post(&client, &url(0, "/api/deploy"), &owner, &json!({ "name": "edge-1" })).await;
    let (uuid, key) = (node["node_uuid"].as_str().unwrap(), node["api_key"].as_str().unwrap());
    let agent = |n: usize, path: &str, body: &Value| {
        client.post(url(n, path)).bearer_auth(key).header("X-Node-UUID", uuid).json(body)
    };
    let heartbeat = json!({ "protocol_version": 1, "agent_version": "0.1.0", "mode": "enforce" });
    let statuses = send(40, |n| agent(n, "/api/v1/agent/heartbeat", &heartbeat)).await;
    println!("heartbeats of 5 a minute: {statuses:?}");
    assert!((5..=7).contains(&statuses[&200]), "{statuses:?}");
    let at = time::OffsetDateTime::now_utc();
    let at = at.format(&time::format_description::well_known::Rfc3339).unwrap();
    let metrics = json!({ "samples": [{ "at": at, "pps": 1, "bps": 1, "dropped_pps": 0 }] });
    let statuses = send(300, |n| agent(n, "/api/v1/agent/metrics", &metrics)).await;
    println!("metrics of 120 a minute: {statuses:?}");
    assert!((105..=135).contains(&statuses[&200]), "{statuses:?}");
    let statuses = send(260, |n| client.get(url(n, "/api/v1/nodes")).bearer_auth("f".repeat(64))).await;
    println!("wrong credentials, 100 a minute: {statuses:?}");
    assert!((88..=112).contains(&statuses[&401]) && statuses[&401] + statuses[&429] == 260, "{statuses:?}");
    // Nobody else is any slower for it.
    assert_eq!(json_of(&client, &url(1, "/api/v1/nodes"), &owner).await["total"], 1);
}

#[tokio::test]
#[expect(clippy::disallowed_methods, reason = "it measures time")]
async fn without_the_database_each_process_goes_by_its_own_count() {
    let Some(cluster) = Cluster::start() else { return };
    let folder = tempfile::tempdir().unwrap();
    let (processes, _) = pair(&cluster.database().await, folder.path()).await;
    let client = Client::new();
    cluster.crash();
    let mut slow = 0;
    for n in 0..100 {
        let sent = Instant::now();
        // A credential that is none needs no database to be refused.
        let (status, answer) = checked(client.get(format!("{}/api/v1/nodes", processes[0].url)).bearer_auth("x")).await;
        assert_eq!(status, 401, "{n}: {answer}");
        assert!(sent.elapsed() < Duration::from_secs(2), "{n}: {:?}", sent.elapsed());
        slow += usize::from(sent.elapsed() > Duration::from_millis(100));
    }
    assert!(slow <= 2, "{slow} requests waited for a database that is away");
    assert_eq!(checked(client.get(format!("{}/api/v1/nodes", processes[0].url)).bearer_auth("x")).await.0, 429);
    assert_eq!(checked(client.get(format!("{}/api/health", processes[1].url))).await.0, 200);
}
