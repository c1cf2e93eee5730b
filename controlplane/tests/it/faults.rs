//! Many writers at once, and a database that dies under them.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use controlplane::app::CaptureLimits;
use controlplane::store::sql::{Database, PostgresSettings};
use ftagent_common::api::Heartbeat;
use nix::sys::signal::{Signal, kill};
use reqwest::{Client, Method};
use serde_json::json;

use crate::cluster::{Cluster, raw, settings};
use crate::support::{Server, checked, report, rule};

const WRITERS: usize = 20;

/// What every write left behind: each rule with its record, a version for each, and a chain without a gap.
async fn check(server: &Server, node: &crate::support::Node, acknowledged: &[String]) {
    let mut present = std::collections::HashSet::new();
    for offset in (0..).step_by(500) {
        let (_, page) = server.get(&format!("/api/v1/firewall-rules?limit=500&offset={offset}")).await;
        let rules = page["rules"].as_array().unwrap();
        present.extend(rules.iter().map(|r| r["name"].as_str().unwrap().to_owned()));
        if rules.is_empty() {
            break;
        }
    }
    let lost: Vec<_> = acknowledged.iter().filter(|name| !present.contains(*name)).collect();
    assert!(lost.is_empty(), "acknowledged and lost: {lost:?}");
    let (_, verdict) = server.get("/api/v1/audit/verify").await;
    assert_eq!(verdict["intact"], json!(true), "{verdict}");
    assert_eq!(server.get("/api/v1/audit?action=rule.create").await.1["total"], json!(present.len()));
    let (_, shown) = server.get(&format!("/api/v1/nodes/{}", node.uuid)).await;
    assert_eq!(shown["node"]["config_version"], json!(present.len() + 1), "a version for each rule");
    println!("{} acknowledged, {} present", acknowledged.len(), present.len());
}

async fn many_writers(server: Server) {
    let node = server.deploy("edge-1").await;
    let server = Arc::new(server);
    let writers: Vec<_> = (0..WRITERS)
        .map(|writer| {
            let (server, node) = (server.clone(), node.clone());
            let text = r#"{"protocol_version":1,"agent_version":"1","mode":"enforce"}"#;
            let alive: Heartbeat = serde_json::from_str(text).unwrap();
            tokio::spawn(async move {
                for n in 0..8 {
                    server.made("/api/v1/firewall-rules", &rule(&format!("r{writer}-{n}"))).await;
                    server.app.heartbeat(node.uuid.parse().unwrap(), &alive).await.unwrap();
                    let uuid = uuid::Uuid::from_u128((writer * 100 + n) as u128).to_string();
                    let mut incident = report(&uuid, 1, "active");
                    incident["target"] = json!(format!("203.0.{writer}.{n}/32"));
                    server.report(&node, "/incidents", &incident).await;
                }
            })
        })
        .collect();
    for writer in writers {
        writer.await.unwrap();
    }
    let names: Vec<_> = (0..WRITERS).flat_map(|w| (0..8).map(move |n| format!("r{w}-{n}"))).collect();
    check(&server, &node, &names).await;
    assert_eq!(server.get("/api/v1/incidents").await.1["total"], json!(WRITERS * 8));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn twenty_writers_keep_chain_and_versions_on_sqlite() {
    let folder = tempfile::tempdir().unwrap();
    let database = Database::Sqlite(folder.path().join("cp.sqlite"));
    let server = Server::start_on(&database, folder, None, CaptureLimits::default()).await;
    many_writers(server).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn twenty_writers_keep_chain_and_versions_on_postgres() {
    let Some(cluster) = Cluster::shared() else { return };
    let database = settings(&cluster.database().await);
    let folder = tempfile::tempdir().unwrap();
    many_writers(Server::start_on(&database, folder, Some(cluster), CaptureLimits::default()).await).await;
}

/// The processes that serve connections of our database, except the one that asks.
const END_SESSIONS: &str = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity
    WHERE datname = current_database() AND pid <> pg_backend_pid()";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_database_that_dies_in_the_middle_gives_503_and_loses_nothing() {
    let Some(cluster) = Cluster::start() else { return };
    let database = settings(&cluster.database().await);
    let folder = tempfile::tempdir().unwrap();
    let server = Server::start_on(&database, folder, Some(cluster.clone()), CaptureLimits::default()).await;
    let node = server.deploy("edge-1").await;
    let token = json!({ "name": "busy", "role": "admin", "rate_limit": 1_000_000 });
    let token = server.made("/api/v1/workspace/tokens", &token).await["value"].as_str().unwrap().to_owned();
    let stop = Arc::new(AtomicBool::new(false));
    let writers: Vec<_> = (0..WRITERS)
        .map(|writer| {
            let (client, url, token) = (Client::new(), server.url.clone(), token.clone());
            let stop = stop.clone();
            tokio::spawn(async move {
                let (mut names, mut refused) = (Vec::new(), 0);
                'writes: for n in 0.. {
                    let name = format!("r{writer}-{n}");
                    // Until it is acknowledged: a commit whose answer was lost shows as the rule being there.
                    loop {
                        if stop.load(Ordering::Relaxed) {
                            break 'writes;
                        }
                        let request = client
                            .request(Method::POST, format!("{url}/api/v1/firewall-rules"))
                            .bearer_auth(&token)
                            .json(&rule(&name));
                        match checked(request).await {
                            (200 | 409, _) => break,
                            (503, answer) => {
                                assert_eq!(answer["error"]["code"], "unavailable", "{answer}");
                                refused += 1;
                                tokio::time::sleep(Duration::from_millis(20)).await;
                            }
                            // The workspace is full.
                            (422, _) => break 'writes,
                            other => panic!("{other:?}"),
                        }
                    }
                    names.push(name);
                }
                (names, refused)
            })
        })
        .collect();
    let pause = async || tokio::time::sleep(Duration::from_millis(400)).await;
    for _ in 0..3 {
        pause().await;
        raw(&database, END_SESSIONS).await.unwrap();
    }
    pause().await;
    // One session's process is killed: PostgreSQL ends all others and recovers.
    kill(cluster.sessions()[0], Signal::SIGKILL).unwrap();
    pause().await;
    pause().await;
    cluster.crash();
    pause().await;
    cluster.start_again();
    pause().await;
    pause().await;
    stop.store(true, Ordering::Relaxed);
    let (mut acknowledged, mut refused) = (Vec::new(), 0);
    for writer in writers {
        let (names, times) = writer.await.unwrap();
        acknowledged.extend(names);
        refused += times;
    }
    assert!(acknowledged.len() > WRITERS, "{} writes", acknowledged.len());
    assert!(refused > 0, "nothing was felt of it");
    println!("{refused} answers of 503");
    check(&server, &node, &acknowledged).await;
}

#[tokio::test]
async fn a_database_that_is_away_is_503_and_readiness_says_so() {
    let Some(cluster) = Cluster::start() else { return };
    let database = settings(&cluster.database().await);
    let folder = tempfile::tempdir().unwrap();
    let server = Server::start_on(&database, folder, Some(cluster.clone()), CaptureLimits::default()).await;
    assert_eq!(server.get("/api/ready").await.0, 200);
    cluster.crash();
    let (status, answer) = server.get("/api/ready").await;
    assert_eq!((status, &answer["error"]["code"]), (503, &json!("unavailable")), "{answer}");
    assert_eq!(server.post("/api/v1/firewall-rules", &rule("r")).await.0, 503);
    assert_eq!(server.get("/api/health").await.0, 200);
    cluster.start_again();
    assert_eq!(server.get("/api/ready").await.0, 200);
    assert_eq!(server.post("/api/v1/firewall-rules", &rule("r")).await.0, 200);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sessions_that_hang_are_given_up_and_their_places_used_again() {
    let Some(cluster) = Cluster::start() else { return };
    let url = cluster.database().await;
    let settings = PostgresSettings::parse(&url, 4, Duration::from_secs(1)).unwrap();
    let database = Database::Postgres(settings);
    let folder = tempfile::tempdir().unwrap();
    let server = Server::start_on(&database, folder, Some(cluster.clone()), CaptureLimits::default()).await;
    let ask = || checked(server.request(Method::GET, "/api/v1/firewall-rules"));
    // All wait for a lock for a while: none is done before every place is taken.
    let held = raw(&database, "BEGIN; LOCK TABLE rules; SELECT pg_sleep(0.6); COMMIT");
    let later = async {
        tokio::time::sleep(Duration::from_millis(100)).await;
        futures_util::future::join_all((0..8).map(|_| ask())).await
    };
    let (held, asked) = tokio::join!(held, later);
    held.unwrap();
    assert_eq!(asked.iter().filter(|(status, _)| *status == 200).count(), 8, "{asked:?}");
    // That of the lock may just be ending.
    let hanging: Vec<_> = cluster.sessions().into_iter().filter(|pid| kill(*pid, Signal::SIGSTOP).is_ok()).collect();
    assert!(hanging.len() >= 4, "{hanging:?}");
    let answers = futures_util::future::join_all((0..8).map(|_| ask())).await;
    for (status, answer) in &answers {
        assert_eq!((*status, &answer["error"]["code"]), (503, &json!("unavailable")), "{answer}");
    }
    let mut tries = 0;
    while ask().await.0 != 200 {
        tries += 1;
        assert!(tries < 10, "the sessions that hang hold every place");
    }
    println!("served again after {tries} more answers of 503");
    // Who was at its end is gone meanwhile.
    hanging.iter().filter(|pid| kill(**pid, Signal::SIGCONT).is_err()).for_each(|pid| println!("{pid} has ended"));
    assert_eq!(server.post("/api/v1/firewall-rules", &rule("r")).await.0, 200);
}
