//! Processes that hang, work beside each other, and die.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use controlplane::app::CaptureLimits;
use reqwest::{Client, Method};
use serde_json::{Value, json};

use super::{ADAPTERS, HISTORY, RULES, make, wanted, webhook};
use crate::cluster::{Cluster, settings};
use crate::process::{Process, json_of};
use crate::receiver::{Mood, Receiver, TOKEN};
use crate::servers::sqlite;
use crate::support::{Server, checked};

#[tokio::test]
async fn a_receiver_that_hangs_holds_up_its_own_rules_alone() {
    let server = sqlite().await;
    let (dead, live) = (Receiver::start().await, Receiver::start().await);
    dead.turn(Mood::Hang);
    let stuck = webhook(&server, &dead.url).await;
    let body = json!({ "adapter_type": "webhook", "name": "live", "endpoint": live.url, "auth_token": TOKEN,
        "config": { "prefixes": ["198.51.100.0/24"] } });
    let free = server.made(ADAPTERS, &body).await["adapter"]["id"].as_i64().unwrap();
    for n in 1..=20 {
        make(&server, &format!("203.0.113.{n}"), stuck).await;
    }
    for n in 1..=20 {
        make(&server, &format!("198.51.100.{n}"), free).await;
    }
    let job = tokio::spawn(server.app.clone().reconcile(server.drain.subscribe()));
    tokio::time::timeout(Duration::from_secs(8), live.wait_for(20)).await.expect("before the dead one times out");
    assert_eq!(dead.got().len(), 4, "four at once, and no more");
    server.drain.send_replace(true);
    tokio::time::timeout(Duration::from_secs(15), job).await.expect("calls have their time").unwrap();
    let (_, listed) = server.get(&format!("{RULES}?limit=500")).await;
    let rules = listed["rules"].as_array().unwrap();
    assert_eq!(rules.iter().filter(|rule| rule["status"] == "active").count(), 20);
    let waiting: Vec<_> = rules.iter().filter(|rule| rule["attempts"] == 1 && rule["status"] == "pending").collect();
    assert_eq!(waiting.len(), 4);
    assert!(waiting[0]["last_error"].as_str().unwrap().contains("no answer within 10 s"), "{}", waiting[0]);
}

#[tokio::test]
async fn two_processes_on_one_database_announce_each_rule_once() {
    let Some(cluster) = Cluster::shared() else { return };
    let database = settings(&cluster.database().await);
    let mut servers = Vec::new();
    for _ in 0..2 {
        let folder = tempfile::tempdir().unwrap();
        servers.push(Server::start_on(&database, folder, Some(cluster.clone()), CaptureLimits::default()).await);
    }
    let receiver = Receiver::start().await;
    receiver.turn(Mood::After(Duration::from_millis(20)));
    let first = &servers[0];
    let adapter = webhook(first, &receiver.url).await;
    for n in 1..=60 {
        make(first, &format!("203.0.113.{n}"), adapter).await;
    }
    let jobs: Vec<_> = servers
        .iter()
        .flat_map(|server| [Arc::clone(&server.app), Arc::clone(&server.app)])
        .map(|app| tokio::spawn(async move { app.reconcile_due().await.unwrap() }))
        .collect();
    let mut calls = Vec::new();
    for job in jobs {
        calls.push(job.await.unwrap());
    }
    println!("calls of each job: {calls:?}");
    assert!(calls.iter().filter(|count| **count > 0).count() >= 2, "more than one took part: {calls:?}");
    let got = receiver.got();
    let keys: HashSet<_> = got.iter().map(|got| got.key.clone().unwrap()).collect();
    assert_eq!((got.len(), keys.len()), (60, 60), "each once");
    let (_, listed) = first.get(&format!("{RULES}?limit=500")).await;
    assert!(listed["rules"].as_array().unwrap().iter().all(|rule| rule["status"] == "active"));
    assert_eq!(first.get("/api/v1/audit/verify").await.1["intact"], json!(true));
}

#[tokio::test]
async fn a_kill_in_the_middle_of_announcing_loses_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let receiver = Receiver::start().await;
    let client = Client::new();
    let process = Process::start(folder.path(), &[]);
    let token = process.token().unwrap();
    let post = async |process: &Process, path: &str, body: &Value| {
        checked(client.request(Method::POST, format!("{}{path}", process.url)).bearer_auth(&token).json(body)).await
    };
    let mut hook = json!({ "adapter_type": "webhook", "name": "hook", "endpoint": receiver.url, "auth_token": TOKEN,
        "config": { "prefixes": ["203.0.113.0/24"] } });
    let (status, answer) = post(&process, ADAPTERS, &hook).await;
    let message = answer["error"]["message"].as_str().unwrap();
    assert!(status == 422 && message.contains("allow_private_destinations"), "loopback needs leave: {answer}");
    let named = receiver.url.replace("127.0.0.1", "localhost");
    hook["endpoint"] = json!(named);
    assert_eq!(post(&process, ADAPTERS, &hook).await.0, 200, "a name is looked up when it is used");
    let (_, tested) = post(&process, &format!("{ADAPTERS}/1/test"), &json!({})).await;
    let message = tested["test"]["message"].as_str().unwrap();
    assert!(message.contains("allow_private_destinations"), "{tested}");
    assert!(receiver.got().is_empty());
    drop(process);

    let config = folder.path().join("cp.toml");
    std::fs::write(&config, "allow_private_destinations = true\n").unwrap();
    let args = ["--config", config.to_str().unwrap()];
    receiver.turn(Mood::Hang);
    let process = Process::start(folder.path(), &args);
    assert_eq!(post(&process, RULES, &wanted("203.0.113.5", 1)).await.0, 200);
    receiver.wait_for(1).await;
    // Dropping it kills it with SIGKILL: it announced, and never heard what came of that.
    drop(process);
    receiver.turn(Mood::Take);
    let process = Process::start(folder.path(), &args);
    let listed = json_of(&client, &format!("{}{RULES}", process.url), &token).await;
    // The new process goes on at once: it may have claimed the rule again already.
    let (status, attempts) = (&listed["rules"][0]["status"], listed["rules"][0]["attempts"].as_u64().unwrap());
    let is_kept = matches!((status.as_str().unwrap(), attempts), ("pending", 1 | 2) | ("active", 2));
    assert!(is_kept, "{}", listed["rules"][0]);
    receiver.wait_for(2).await;
    let got = receiver.got();
    assert_eq!(got[0].key, got[1].key, "a receiver that honours the key sees one");
    let state = async |process: &Process| {
        let listed = json_of(&client, &format!("{}{HISTORY}", process.url), &token).await;
        listed["rules"][0]["status"].as_str().unwrap().to_owned()
    };
    let becomes = async |process: &Process, wanted: &str| {
        tokio::time::timeout(Duration::from_secs(40), async {
            while state(process).await != wanted {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        })
        .await
        .unwrap();
    };
    becomes(&process, "active").await;

    // Killed while it withdraws, too.
    receiver.turn(Mood::Hang);
    assert_eq!(post(&process, &format!("{RULES}/1/withdraw"), &json!({})).await.0, 200);
    receiver.wait_for(3).await;
    drop(process);
    receiver.turn(Mood::Take);
    let process = Process::start(folder.path(), &args);
    becomes(&process, "withdrawn").await;
    assert_eq!(receiver.actions(), ["announce", "announce", "withdraw", "withdraw"]);
    let verdict = json_of(&client, &format!("{}/api/v1/audit/verify", process.url), &token).await;
    assert_eq!(verdict["intact"], json!(true));
}
