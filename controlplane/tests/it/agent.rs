//! What nodes say and ask.

use reqwest::Method;
use serde_json::json;

use crate::support::{Node, Server, UUID, checked, report};

async fn status_of(server: &Server, node: &Node) -> String {
    server.get(&format!("/api/v1/nodes/{}", node.uuid)).await.1["node"]["status"].as_str().unwrap().to_owned()
}

#[tokio::test]
async fn a_node_is_seen_from_deployment_to_silence() {
    let server = Server::start().await;
    let node = server.deploy("edge-1").await;
    let (status, again) = server.post("/api/deploy", &json!({ "name": "edge-1" })).await;
    assert_eq!((status, &again["error"]["code"]), (409, &json!("already_exists")));
    assert_eq!(status_of(&server, &node).await, "offline");
    server.heartbeat(&node, 0.1).await;
    assert_eq!(status_of(&server, &node).await, "online");
    server.heartbeat(&node, 0.8).await;
    assert_eq!(status_of(&server, &node).await, "elevated");
    server.report(&node, "/incidents", &report(UUID, 1, "active")).await;
    assert_eq!(status_of(&server, &node).await, "attack");
    assert_eq!(server.get("/api/v1/nodes?status=attack").await.1["total"], 1);
    server.clock.advance(89);
    assert_eq!(status_of(&server, &node).await, "attack");
    server.clock.advance(1);
    assert_eq!(status_of(&server, &node).await, "offline");
    assert_eq!(server.get("/api/v1/nodes?status=attack").await.1["total"], 0);
    assert_eq!(server.get("/api/v1/nodes?status=offline").await.1["total"], 1);
}

#[tokio::test]
async fn a_sixth_heartbeat_within_a_minute_is_one_too_many() {
    let server = Server::start().await;
    let node = server.deploy("edge-1").await;
    for _ in 0..5 {
        server.heartbeat(&node, 0.0).await;
    }
    let body = json!({ "protocol_version": 1, "agent_version": "0.1.0", "mode": "enforce" });
    let send = async || checked(server.agent(&node, Method::POST, "/heartbeat").json(&body)).await.0;
    assert_eq!(send().await, 429);
    server.clock.advance(60);
    assert_eq!(send().await, 200);
}

#[tokio::test]
async fn reports_replayed_and_reordered_end_in_one_incident_with_the_newest_state() {
    let server = Server::start().await;
    let node = server.deploy("edge-1").await;
    let path = format!("/incidents/{UUID}");
    // An update of an incident that the server never heard of creates it.
    let first = server.report(&node, &path, &report(UUID, 3, "active")).await;
    assert_eq!((&first["applied"], &first["revision"]), (&json!(true), &json!(3)));
    for revision in [1, 2, 3] {
        let late = server.report(&node, &path, &report(UUID, revision, "resolved")).await;
        assert_eq!(
            (&late["applied"], &late["revision"], &late["status"]),
            (&json!(false), &json!(3), &json!("active"))
        );
    }
    // The agent lost its memory: another uuid, the same attack.
    let other = "2f9619ff-8b86-4011-b42d-00cf4fc964ff";
    let same = server.report(&node, "/incidents", &report(other, 1, "active")).await;
    assert_eq!((&same["uuid"], &same["id"]), (&json!(UUID), &first["id"]));
    let end = server.report(&node, &format!("{path}/resolve"), &report(UUID, 9, "active")).await;
    assert_eq!((&end["status"], &end["revision"]), (&json!("resolved"), &json!(9)));
    let (_, listed) = server.get("/api/v1/incidents").await;
    assert_eq!((&listed["total"], &listed["incidents"][0]["peak_pps"]), (&json!(1), &json!(50_009)));
    assert_eq!(listed["incidents"][0]["started_at"], "2026-05-12T14:29:00.123456Z");
    let (_, audit) = server.get("/api/v1/audit?object=incident/1").await;
    let actions: Vec<_> = audit["records"].as_array().unwrap().iter().map(|r| r["action"].clone()).collect();
    assert_eq!(actions, [json!("incident.resolve"), json!("incident.open")]);
}

#[tokio::test]
async fn an_incident_that_a_node_opens_again_is_active_again() {
    let server = Server::start().await;
    let node = server.deploy("edge-1").await;
    let path = format!("/incidents/{UUID}");
    server.report(&node, "/incidents", &report(UUID, 1, "active")).await;
    let mut end = report(UUID, 2, "resolved");
    end["resolved_at"] = json!("2026-05-12T14:29:40Z");
    server.report(&node, &format!("{path}/resolve"), &end).await;
    let shown = async || server.get("/api/v1/incidents").await.1["incidents"][0].clone();
    assert_eq!(shown().await["status"], "resolved");
    // An operator agrees that it is over; the attack does not.
    let (status, _) = server.patch(&format!("/api/v1/incidents/{UUID}"), &json!({ "status": "resolved" })).await;
    assert_eq!(status, 200);
    let back = server.report(&node, &path, &report(UUID, 3, "active")).await;
    assert_eq!((&back["applied"], &back["status"]), (&json!(true), &json!("active")));
    let incident = shown().await;
    assert_eq!((&incident["status"], &incident["resolved_at"]), (&json!("active"), &json!(null)));
    assert_eq!(status_of(&server, &node).await, "offline", "it was never heard of");
    server.heartbeat(&node, 0.8).await;
    assert_eq!(status_of(&server, &node).await, "attack");
    // What was said of the time before it came back changes nothing.
    server.report(&node, &format!("{path}/resolve"), &end).await;
    assert_eq!(shown().await["status"], "active");
    let (_, audit) = server.get("/api/v1/audit?action=incident.reopen").await;
    assert_eq!(audit["total"], 1, "{audit}");
}

#[tokio::test]
async fn a_node_cannot_touch_another_nodes_incident() {
    let server = Server::start().await;
    let node = server.deploy("edge-1").await;
    let other = server.deploy("edge-2").await;
    server.report(&node, "/incidents", &report(UUID, 1, "active")).await;
    let request = server.agent(&other, Method::POST, &format!("/incidents/{UUID}/resolve"));
    assert_eq!(checked(request.json(&report(UUID, 7, "resolved"))).await.0, 409);
    assert_eq!(server.get("/api/v1/incidents/1").await.1["incident"]["status"], "active");
}

#[tokio::test]
async fn executions_are_kept_and_audited_once_each() {
    let server = Server::start().await;
    let node = server.deploy("edge-1").await;
    let rule = server.made("/api/v1/firewall-rules", &crate::support::rule("r")).await["rule"]["id"].clone();
    let execution = |outcome: &str| {
        json!({
            "uuid": "3f9619ff-8b86-4011-b42d-00cf4fc964ff", "rule_id": rule, "incident": UUID,
            "action": { "type": "xdp_drop_source" }, "outcome": outcome, "output": "é".repeat(5_000),
            "commands": [["ftagent", "block", "198.51.100.7/32"]], "at": "2026-05-12T14:29:01Z", "latency_us": 900,
        })
    };
    let mut body = report(UUID, 1, "active");
    body["executions"] = json!([execution("applied")]);
    for _ in 0..3 {
        server.report(&node, "/incidents", &body).await;
    }
    body["executions"] = json!([execution("applied"), execution("undone")]);
    body["revision"] = json!(2);
    server.report(&node, &format!("/incidents/{UUID}"), &body).await;
    let (_, listed) = server.get(&format!("/api/v1/firewall-rules/{rule}/executions")).await;
    assert_eq!(listed["total"], 2);
    assert!(listed["executions"][0]["output"].as_str().unwrap().len() <= 4_096);
    assert_eq!(listed["executions"][0]["node"], node.uuid);
    assert_eq!(server.get("/api/v1/audit?action=execution.apply").await.1["total"], 1);
    assert_eq!(server.get("/api/v1/audit?action=execution.undo").await.1["total"], 1);
    let (_, incident) = server.get("/api/v1/incidents/1").await;
    assert_eq!(incident["incident"]["mitigations"].as_array().unwrap().len(), 2);
}

#[tokio::test]
async fn resolving_by_hand_orders_the_node_and_outlives_its_reports() {
    let server = Server::start().await;
    let node = server.deploy("edge-1").await;
    server.report(&node, "/incidents", &report(UUID, 1, "active")).await;
    let analyst = server.token("analyst").await;
    let url = format!("{}/api/v1/incidents/1", server.url);
    let change = json!({ "status": "false_positive", "severity": "low" });
    let (status, answer) = checked(server.client.patch(&url).bearer_auth(&analyst).json(&change)).await;
    assert_eq!((status, &answer["incident"]["status"]), (200, &json!("false_positive")));
    assert_eq!(answer["incident"]["severity"], "low");
    let (_, commands) = checked(server.agent(&node, Method::GET, "/commands")).await;
    let command = &commands["commands"][0];
    assert_eq!(command["order"], json!({ "type": "resolve_incident", "incident": UUID, "false_positive": true }));
    // What the node said before it heard of it changes nothing.
    let late = server.report(&node, &format!("/incidents/{UUID}"), &report(UUID, 5, "active")).await;
    assert_eq!((&late["applied"], &late["status"]), (&json!(true), &json!("false_positive")));
    let ack = json!({ "command_id": command["command_id"], "status": "applied" });
    for _ in 0..2 {
        server.report(&node, "/commands/ack", &ack).await;
    }
    assert_eq!(checked(server.agent(&node, Method::GET, "/commands")).await.1["commands"], json!([]));
    assert_eq!(server.get("/api/v1/audit?action=command.acknowledge").await.1["total"], 1);
    let (status, answer) = server.patch("/api/v1/incidents/1", &json!({ "status": "active" })).await;
    assert_eq!((status, &answer["error"]["details"][0]["field"]), (422, &json!("status")));
    assert_eq!(server.patch("/api/v1/incidents/1", &json!({})).await.0, 422);
}

#[tokio::test]
async fn an_allowlisted_source_is_not_blocked_by_order() {
    let server = Server::start().await;
    let node = server.deploy("edge-1").await;
    server.made("/api/v1/allowlist", &json!({ "ip_address": "198.51.100.0/24" })).await;
    let path = format!("/api/v1/nodes/{}/commands", node.uuid);
    for (source, ttl, expected) in [
        ("198.51.100.7/32", 60, 422),
        ("198.51.0.0/16", 60, 422),
        ("0.0.0.0/0", 60, 422),
        ("192.0.2.1/32", 0, 422),
        ("192.0.2.1/32", 86_401, 422),
        ("192.0.2.1/32", 60, 200),
    ] {
        let order = json!({ "order": { "type": "block", "source": source, "ttl_secs": ttl } });
        assert_eq!(server.post(&path, &order).await.0, expected, "{source} {ttl}");
    }
    let (_, audit) = server.get("/api/v1/audit?action=command.create").await;
    let results: Vec<_> = audit["records"].as_array().unwrap().iter().map(|r| r["result"].clone()).collect();
    assert_eq!(results, [json!("ok"), json!("refused"), json!("refused")]);
}

#[tokio::test]
async fn metrics_come_back_as_a_series() {
    let server = Server::start().await;
    let node = server.deploy("edge-1").await;
    let samples: Vec<_> = (0..60)
        .map(|n| {
            json!({ "at": format!("2026-05-12T14:29:{n:02}Z"), "pps": n * 10, "bps": n * 1_000, "dropped_pps": n,
                    "tcp_pps": 3, "udp_pps": 1 })
        })
        .collect();
    for _ in 0..2 {
        let answer = server.report(&node, "/metrics", &json!({ "samples": samples })).await;
        assert_eq!(answer["accepted"], 60);
    }
    let window = "from=2026-05-12T14:29:00Z&to=2026-05-12T14:30:00Z";
    let (_, series) = server.get(&format!("/api/v1/nodes/{}/metrics?{window}&step=30", node.uuid)).await;
    let points = series["metrics"].as_array().unwrap();
    assert_eq!(points.len(), 2);
    assert_eq!(
        (&points[0]["at"], &points[0]["pps"], &points[0]["peak_pps"]),
        (&json!("2026-05-12T14:29:00Z"), &json!(145), &json!(290))
    );
    let (_, shown) = server.get(&format!("/api/v1/nodes/{}", node.uuid)).await;
    assert_eq!(shown["protocol_split"]["tcp"], 0.75);
    let far = json!({ "samples": [{ "at": "2036-05-12T14:29:00Z", "pps": 1, "bps": 1, "dropped_pps": 0 }] });
    assert_eq!(server.report(&node, "/metrics", &far).await["accepted"], 0);
    let none = server.agent(&node, Method::POST, "/metrics").json(&json!({ "samples": [] }));
    assert_eq!(checked(none).await.0, 422);
    for query in ["step=0", "step=1", "from=x", "from=2026-05-12T14:31:00Z&to=2026-05-12T14:30:00Z"] {
        let query = if query == "step=1" { "step=1&from=2026-05-01T00:00:00Z" } else { query };
        assert_eq!(server.get(&format!("/api/v1/nodes/{}/metrics?{query}", node.uuid)).await.0, 400, "{query}");
    }
}

#[tokio::test]
async fn a_polling_node_reads_only_what_changed() {
    let server = Server::start().await;
    let node = server.deploy("edge-1").await;
    let other = server.deploy("edge-2").await;
    let get = async |node: &Node, tag: &str| {
        let request = server.agent(node, Method::GET, "/config").header("If-None-Match", tag);
        let answer = request.send().await.unwrap();
        let etag = answer.headers()["etag"].to_str().unwrap().to_owned();
        (answer.status().as_u16(), etag, answer.text().await.unwrap())
    };
    let (status, etag, text) = get(&node, "").await;
    let config: ftagent_common::api::NodeConfig = serde_json::from_str(&text).unwrap();
    assert_eq!((status, etag.as_str(), config.version), (200, "\"1\"", 1));
    assert_eq!(get(&node, "\"1\"").await.0, 304);
    let mut scoped = crate::support::rule("mine");
    scoped["scope"] = json!({ "type": "nodes", "nodes": [node.uuid] });
    server.made("/api/v1/firewall-rules", &scoped).await;
    let (status, etag, text) = get(&node, "\"1\"").await;
    let config: ftagent_common::api::NodeConfig = serde_json::from_str(&text).unwrap();
    assert_eq!((status, etag.as_str(), config.rules.len()), (200, "\"2\"", 1));
    assert_eq!(get(&other, "\"1\"").await.0, 304, "a rule of another node is no change");
    let detection = json!({ "detection": { "mode": "evaluate", "multiplier": 3.0 } });
    assert_eq!(server.patch("/api/v1/workspace", &detection).await.0, 200);
    let (_, _, text) = get(&other, "\"1\"").await;
    assert!(text.contains("\"mode\":\"evaluate\""), "{text}");
    assert_eq!(server.patch("/api/v1/workspace", &json!({ "detection": { "multiplier": 1.0 } })).await.0, 422);
}
