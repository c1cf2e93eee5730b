//! Runbooks through the API, started by incidents and by hand, on both databases.

use std::time::Duration;

use controlplane::store::sql::Database;
use serde_json::{Value, json};

use crate::receiver::{Mood, Receiver};
use crate::servers::contract;
use crate::support::{Node, Server, UUID, report};

const RUNBOOKS: &str = "/api/v1/runbooks";

contract! {
    a_runbook_is_made_shown_changed_and_deleted,
    what_is_out_of_bounds_is_refused,
    an_incident_starts_it_once_and_nodes_confirm,
    waits_and_conditions_hold_up_what_comes_after,
    messages_and_calls_tell_the_truth,
    what_is_not_connected_never_succeeds,
    a_made_up_attack_changes_nothing,
    maintenance_holds_it_and_an_end_cancels_it,
    a_claim_that_is_lost_does_nothing_twice,
    what_a_killed_server_had_claimed_is_free_where_no_other_serves,
    too_many_are_cancelled,
    a_step_changes_rules_incidents_and_upstream,
}

fn step(kind: &str, config: Value) -> Value {
    json!({ "action_type": kind, "action_config": config })
}

fn log(message: &str) -> Value {
    step("log", json!({ "message": message }))
}

async fn make(server: &Server, conditions: Value, steps: Vec<Value>) -> i64 {
    let (_, listed) = server.get(RUNBOOKS).await;
    let name = format!("runbook {}", listed["total"]);
    let body = json!({ "name": name, "trigger_conditions": conditions, "steps": steps });
    server.made(RUNBOOKS, &body).await["runbook"]["id"].as_i64().unwrap()
}

async fn executions(server: &Server, id: i64) -> Vec<Value> {
    let (status, listed) = server.get(&format!("{RUNBOOKS}/{id}/executions?limit=500")).await;
    assert_eq!(status, 200, "{listed}");
    listed["executions"].as_array().unwrap().clone()
}

/// The status of the newest execution, and those of its steps.
async fn statuses(server: &Server, id: i64) -> (String, Vec<String>) {
    let all = executions(server, id).await;
    let text = |value: &Value| value["status"].as_str().unwrap().to_owned();
    (text(&all[0]), all[0]["steps"].as_array().unwrap().iter().map(text).collect())
}

async fn runs(server: &Server) -> usize {
    server.app.execute_due().await.unwrap()
}

/// Reports incident number `n`.
async fn incident(server: &Server, node: &Node, n: u32, revision: u32, status: &str) {
    let mut body = report(&uuid(n), revision, status);
    body["target"] = json!(format!("203.0.113.{n}/32"));
    server.report(node, "/incidents", &body).await;
}

fn uuid(n: u32) -> String {
    UUID.replace("0f9619ff", &format!("{n:08x}"))
}

async fn commands(server: &Server, node: &Node) -> Vec<Value> {
    let answer = server.agent(node, reqwest::Method::GET, "/config").send().await.unwrap();
    assert_eq!(answer.status(), 200);
    let pending = server.app.pending_commands(node.uuid.parse().unwrap()).await.unwrap();
    pending.iter().map(|command| serde_json::to_value(command).unwrap()).collect()
}

async fn a_runbook_is_made_shown_changed_and_deleted(server: Server) {
    let body = json!({
        "name": "Auto-mitigate UDP floods", "description": "Block UDP flood traffic and notify the team",
        "trigger_conditions": { "family": "udp_flood", "severity": "critical", "min_pps": 500_000 },
        "steps": [
            log("UDP flood detected, starting mitigation"), step("iptables", json!({ "cmd": "block_udp_flood" })),
            step("wait", json!({ "seconds": 30 })), step("notify_channel", json!({ "channel_id": 5 })),
        ],
    });
    let made = server.made(RUNBOOKS, &body).await["runbook"].clone();
    assert_eq!((&made["active"], &made["steps_count"], &made["execution_count"]), (&json!(true), &json!(4), &json!(0)));
    for key in ["name", "description", "trigger_conditions", "steps"] {
        assert_eq!(made[key], body[key], "{key}");
    }
    let (status, again) = server.post(RUNBOOKS, &body).await;
    assert_eq!((status, &again["error"]["code"]), (409, &json!("already_exists")), "{again}");
    let one = format!("{RUNBOOKS}/{}", made["id"]);
    assert_eq!(server.get(&one).await, (200, json!({ "ok": true, "runbook": made })));
    let toggled = server.made(&format!("{one}/toggle"), &json!({})).await;
    assert_eq!(toggled["runbook"]["active"], false);
    let changed = server.patch(&one, &json!({ "steps": [log("a")], "description": "" })).await;
    assert_eq!((changed.0, &changed.1["runbook"]["steps_count"]), (200, &json!(1)), "{changed:?}");
    assert_eq!(changed.1["runbook"]["trigger_conditions"], body["trigger_conditions"], "what is not named stays");
    assert_eq!(changed.1["runbook"]["active"], false);
    let (_, listed) = server.get(RUNBOOKS).await;
    assert_eq!((&listed["total"], &listed["runbooks"][0]), (&json!(1), &changed.1["runbook"]));
    assert_eq!(server.delete(&one).await.0, 200);
    for (status, _) in
        [server.get(&one).await, server.delete(&one).await, server.get(&format!("{one}/executions")).await]
    {
        assert_eq!(status, 404);
    }
    let (_, audit) = server.get("/api/v1/audit?limit=500").await;
    let facts: Vec<_> = audit["records"].as_array().unwrap().iter().map(|r| r["action"].as_str().unwrap()).collect();
    for action in ["runbook.create", "runbook.toggle", "runbook.update", "runbook.delete"] {
        assert_eq!(facts.iter().filter(|fact| **fact == action).count(), 1, "{action} in {facts:?}");
    }
}

async fn what_is_out_of_bounds_is_refused(server: Server) {
    let good = json!({ "name": "a", "trigger_conditions": {}, "steps": [log("a")] });
    let one = server.made(RUNBOOKS, &good).await["runbook"]["id"].clone();
    let unknown = "0f9619ff-0000-4011-b42d-00cf4fc964ff";
    for (key, value, field) in [
        ("name", json!(""), "name"),
        ("steps", json!([]), "steps"),
        ("steps", json!([step("wait", json!({ "seconds": 0 }))]), "steps[0].action_config.seconds"),
        ("steps", json!([step("iptables", json!({ "cmd": "rm" }))]), "steps[0].action_config.cmd"),
        ("steps", json!([step("webhook", json!({ "url": "ftp://a" }))]), "steps[0].action_config.url"),
        ("trigger_conditions", json!({ "min_pps": 0 }), "trigger_conditions.min_pps"),
        ("trigger_conditions", json!({ "nodes": [unknown] }), "trigger_conditions.nodes"),
    ] {
        let mut body = json!({ "name": "b", "trigger_conditions": {}, "steps": [log("a")] });
        body[key] = value;
        let (status, answer) = server.post(RUNBOOKS, &body).await;
        assert_eq!((status, &answer["error"]["details"][0]["field"]), (422, &json!(field)), "{body}: {answer}");
        let patch = json!({ key: body[key] });
        let (status, answer) = server.patch(&format!("{RUNBOOKS}/{one}"), &patch).await;
        assert_eq!((status, &answer["error"]["details"][0]["field"]), (422, &json!(field)), "{patch}: {answer}");
    }
    for body in [
        json!({ "name": "b", "steps": [log("a")] }),
        json!({ "name": "b", "trigger_conditions": {} }),
        json!({ "name": "b", "trigger_conditions": { "colour": 1 }, "steps": [log("a")] }),
        json!({ "name": "b", "trigger_conditions": { "family": "big" }, "steps": [log("a")] }),
        json!({ "name": "b", "trigger_conditions": {}, "steps": [step("reboot", json!({}))] }),
        json!({ "name": "b", "trigger_conditions": {}, "steps": [step("log", json!({ "message": "a", "x": 1 }))] }),
    ] {
        assert_eq!(server.post(RUNBOOKS, &body).await.0, 400, "{body}");
    }
    assert_eq!(server.post(&format!("{RUNBOOKS}/{one}/run"), &json!({ "node": unknown })).await.0, 422);
    assert_eq!(server.post(&format!("{RUNBOOKS}/9999/run"), &json!({})).await.0, 404);
    for query in ["?limit=0", "?limit=501", "?offset=-1"] {
        for list in [RUNBOOKS.to_owned(), format!("{RUNBOOKS}/{one}/executions")] {
            assert_eq!(server.get(&format!("{list}{query}")).await.0, 400, "{list}{query}");
        }
    }
    assert_eq!(server.get(RUNBOOKS).await.1["total"], 1, "what was refused was not kept");
}

async fn an_incident_starts_it_once_and_nodes_confirm(server: Server) {
    let node = server.deploy("edge-1").await;
    let block = step("iptables", json!({ "cmd": "block_udp_flood", "ttl_secs": 600 }));
    let udp = make(&server, json!({ "family": "udp_flood", "severity": "medium" }), vec![log("seen"), block]).await;
    let other = make(&server, json!({ "family": "syn_flood" }), vec![log("seen")]).await;
    let off = make(&server, json!({}), vec![log("seen")]).await;
    server.made(&format!("{RUNBOOKS}/{off}/toggle"), &json!({})).await;
    incident(&server, &node, 5, 1, "active").await;
    incident(&server, &node, 5, 2, "active").await;
    assert_eq!(runs(&server).await, 1);
    assert_eq!(statuses(&server, udp).await, ("running".to_owned(), vec!["succeeded".to_owned(), "queued".to_owned()]));
    let orders = commands(&server, &node).await;
    assert_eq!(orders.len(), 1, "{orders:?}");
    assert_eq!(orders[0]["order"], json!({ "type": "block", "source": "198.51.100.7/32", "ttl_secs": 600 }));
    let ack = json!({ "command_id": orders[0]["command_id"], "status": "applied" });
    server.report(&node, "/commands/ack", &ack).await;
    assert_eq!(runs(&server).await, 0, "not before it is time");
    server.clock.advance(10);
    assert_eq!(runs(&server).await, 1);
    assert_eq!(statuses(&server, udp).await.0, "succeeded");
    assert!(executions(&server, other).await.is_empty() && executions(&server, off).await.is_empty());
    let (_, shown) = server.get(&format!("/api/v1/incidents/{}", uuid(5))).await;
    let told: Vec<_> =
        shown["incident"]["timeline"].as_array().unwrap().iter().filter(|e| e["kind"] == "runbook").collect();
    assert_eq!(told.len(), 2, "its beginning and its end: {told:?}");
    assert_eq!(told[1]["text"], "system: runbook runbook 0 succeeded (execution 1)");

    // What a node could not do is no success; and an attack that comes back starts it again.
    incident(&server, &node, 5, 3, "resolved").await;
    assert_eq!(runs(&server).await, 0);
    incident(&server, &node, 5, 4, "active").await;
    incident(&server, &node, 5, 5, "active").await;
    runs(&server).await;
    assert_eq!(executions(&server, udp).await.len(), 2);
    let orders = commands(&server, &node).await;
    let ack = json!({ "command_id": orders[0]["command_id"], "status": "failed", "error": "no room" });
    server.report(&node, "/commands/ack", &ack).await;
    server.clock.advance(10);
    runs(&server).await;
    let newest = executions(&server, udp).await[0].clone();
    assert_eq!((&newest["status"], &newest["steps"][1]["message"]), (&json!("failed"), &json!("no room")), "{newest}");
    let (_, shown) = server.get(&format!("{RUNBOOKS}/{udp}")).await;
    assert_eq!(shown["runbook"]["execution_count"], 2);
    assert_eq!(server.get("/api/v1/audit/verify").await.1["intact"], json!(true));
}

async fn waits_and_conditions_hold_up_what_comes_after(server: Server) {
    let node = server.deploy("edge-1").await;
    let steps = vec![
        step("wait", json!({ "seconds": 30 })),
        step("condition", json!({ "status": "active", "min_pps": 1_000 })),
        log("still there"),
        step("condition", json!({ "severity": "critical" })),
        log("not this one"),
    ];
    let id = make(&server, json!({}), steps).await;
    incident(&server, &node, 5, 1, "active").await;
    runs(&server).await;
    assert_eq!(statuses(&server, id).await.1[..2], ["running", "pending"]);
    server.clock.advance(29);
    assert_eq!(runs(&server).await, 0);
    server.clock.advance(1);
    assert_eq!(runs(&server).await, 1);
    let (status, steps) = statuses(&server, id).await;
    assert_eq!(
        (status.as_str(), steps.as_slice()),
        ("succeeded", ["succeeded", "succeeded", "succeeded", "not_met", "skipped"].map(str::to_owned).as_slice())
    );
    let newest = executions(&server, id).await[0].clone();
    assert_eq!(
        (&newest["started_at"], &newest["ended_at"]),
        (&json!("2026-05-12T14:30:00Z"), &json!("2026-05-12T14:30:30Z"))
    );

    let note = step("add_note", json!({ "text": "completed" }));
    let gone = make(&server, json!({ "min_pps": 1 }), vec![step("wait", json!({ "seconds": 5 })), note]).await;
    incident(&server, &node, 6, 1, "active").await;
    runs(&server).await;
    assert_eq!(server.delete(&format!("{RUNBOOKS}/{gone}")).await.0, 200);
    server.clock.advance(5);
    runs(&server).await;
    let (_, shown) = server.get(&format!("/api/v1/incidents/{}", uuid(6))).await;
    let notes = shown["incident"]["notes"].as_array().unwrap();
    assert!(notes.iter().any(|n| n["text"] == "completed"), "executions under way outlive their runbook: {notes:?}");
}

async fn messages_and_calls_tell_the_truth(server: Server) {
    let node = server.deploy("edge-1").await;
    let receiver = Receiver::start_unsigned().await;
    let hook = json!({ "kind": "webhook", "name": "hook", "settings": { "url": receiver.url }, "enabled": true,
        "min_severity": "critical" });
    let channel = server.made("/api/v1/channels", &hook).await["channel"]["id"].clone();
    let worker = tokio::spawn(server.app.clone().deliver(server.drain.subscribe()));
    let steps = vec![
        step("notify_channel", json!({ "channel_id": channel, "message": "look at this" })),
        step("webhook", json!({ "url": receiver.url })),
        step("notify_channel", json!({ "channel_id": 9_999 })),
    ];
    let id = make(&server, json!({}), steps).await;
    receiver.turn(Mood::Answer(503));
    incident(&server, &node, 5, 1, "active").await;
    runs(&server).await;
    let first = executions(&server, id).await[0].clone();
    assert_eq!(first["steps"][1]["status"], "running", "it is tried again: {first}");
    receiver.turn(Mood::Take);
    for _ in 0..4 {
        server.clock.advance(20);
        runs(&server).await;
        tokio::time::sleep(Duration::from_millis(300)).await;
    }
    server.clock.advance(60);
    runs(&server).await;
    let (status, steps) = statuses(&server, id).await;
    assert_eq!((status.as_str(), steps.join(" ").as_str()), ("failed", "succeeded succeeded failed"));
    let last = executions(&server, id).await[0].clone();
    assert!(last["steps"][2]["message"].as_str().unwrap().contains("no such channel"), "{last}");
    let got = receiver.got();
    let told: Vec<_> = got.iter().filter(|got| got.body["event"] == "runbook").collect();
    let messages: Vec<_> = told.iter().map(|got| got.body["message"].as_str().unwrap()).collect();
    assert!(messages.contains(&"look at this") && messages.contains(&""), "{messages:?}");
    for got in &told {
        assert_eq!(got.body["test"], false);
        assert_eq!(got.body["attack"]["sources"], json!(["198.51.100.7"]));
        assert_eq!(got.body["incident"]["uuid"], uuid(5));
        assert_eq!(got.body["execution"], last["uuid"]);
    }
    let mut calls: Vec<_> =
        told.iter().filter(|got| got.body["message"] == "").map(|got| &got.body["delivery"]).collect();
    assert!(calls.len() >= 2);
    calls.dedup();
    assert_eq!(calls.len(), 1, "one key for all tries of a call");
    server.drain.send_replace(true);
    worker.await.unwrap();
}

async fn what_is_not_connected_never_succeeds(server: Server) {
    let node = server.deploy("edge-1").await;
    let slack = json!({ "kind": "slack", "name": "s", "secrets": { "webhook_url": "https://hooks.example/sesame" } });
    let slack = server.made("/api/v1/channels", &slack).await["channel"]["id"].clone();
    let vultr = json!({ "name": "v", "provider": "vultr", "credentials": { "api_key": "k" } });
    let vultr = server.made("/api/v1/scrubbing", &vultr).await["integration"]["id"].clone();
    let bgp = json!({ "adapter_type": "gobgp", "name": "g", "endpoint": "203.0.113.1:50051" });
    let bgp = server.made("/api/v1/mitigation/adapters", &bgp).await["adapter"]["id"].clone();
    let steps = vec![
        step("notify_channel", json!({ "channel_id": slack })),
        step("cloudflare_uam", json!({})),
        step("scrubbing_enable", json!({ "integration_id": vultr })),
        step("scrubbing_enable", json!({ "integration_id": 9_999 })),
        step("mitigation_rule", json!({ "adapter_id": bgp, "intent_type": "blackhole" })),
        log("the end"),
    ];
    let id = make(&server, json!({}), steps).await;
    incident(&server, &node, 5, 1, "active").await;
    runs(&server).await;
    let (status, steps) = statuses(&server, id).await;
    let expected = "not_connected not_connected not_connected failed failed succeeded";
    assert_eq!((status.as_str(), steps.join(" ").as_str()), ("failed", expected));
    assert!(executions(&server, id).await[0]["steps"][4]["message"].as_str().unwrap().contains("not connected"));
    assert_eq!(server.get("/api/v1/mitigation/rules/history").await.1["total"], 0);
}

async fn a_made_up_attack_changes_nothing(server: Server) {
    let node = server.deploy("edge-1").await;
    let receiver = Receiver::start_unsigned().await;
    let steps = vec![
        step("iptables", json!({ "cmd": "block_sources" })),
        step("add_note", json!({ "text": "a" })),
        step("update_incident", json!({ "severity": "critical" })),
        step("condition", json!({ "family": "syn_flood" })),
        step("webhook", json!({ "url": receiver.url })),
    ];
    let id = make(&server, json!({ "family": "syn_flood", "min_pps": 7 }), steps).await;
    server.made(&format!("{RUNBOOKS}/{id}/toggle"), &json!({})).await;
    for body in [json!({}), json!({ "node": node.uuid })] {
        let made = server.made(&format!("{RUNBOOKS}/{id}/run"), &body).await["execution"].clone();
        assert_eq!(
            (&made["status"], &made["trigger"], &made["test"]),
            (&json!("queued"), &json!("manual"), &json!(true))
        );
        assert_eq!(made["incident_id"], Value::Null);
        runs(&server).await;
        let (status, steps) = statuses(&server, id).await;
        let expected = "simulated simulated simulated succeeded succeeded";
        assert_eq!((status.as_str(), steps.join(" ").as_str()), ("succeeded", expected), "{body}");
    }
    assert!(commands(&server, &node).await.is_empty());
    let got = receiver.got();
    assert_eq!((got.len(), &got[0].body["test"], &got[0].body["incident"]), (2, &json!(true), &Value::Null));
    assert_eq!(got[0].body["attack"]["peak_pps"], 7);

    incident(&server, &node, 5, 1, "active").await;
    let real = server.made(&format!("{RUNBOOKS}/{id}/run"), &json!({ "node": node.uuid })).await["execution"].clone();
    assert_eq!(real["test"], false, "there is an incident: everything is carried out");
    runs(&server).await;
    assert_eq!(commands(&server, &node).await.len(), 1);
    assert_eq!(statuses(&server, id).await.1.join(" "), "queued succeeded succeeded not_met skipped");
}

async fn maintenance_holds_it_and_an_end_cancels_it(server: Server) {
    let node = server.deploy("edge-1").await;
    let window = json!({ "type": "once", "starts_at": "2026-05-12T14:00:00Z", "minutes": 60 });
    server.made("/api/v1/maintenance", &json!({ "name": "w", "schedule": window })).await;
    let id = make(&server, json!({}), vec![log("a")]).await;
    incident(&server, &node, 5, 1, "active").await;
    incident(&server, &node, 6, 1, "active").await;
    incident(&server, &node, 6, 2, "resolved").await;
    assert_eq!(runs(&server).await, 0);
    let held = executions(&server, id).await[0].clone();
    assert_eq!((&held["status"], &held["next_at"]), (&json!("queued"), &json!("2026-05-12T15:00:00Z")));
    server.clock.advance(1_800);
    assert_eq!(runs(&server).await, 2);
    let all = executions(&server, id).await;
    assert_eq!((&all[0]["status"], &all[1]["status"]), (&json!("cancelled"), &json!("succeeded")), "{all:?}");
    assert!(all[0]["error"].as_str().unwrap().contains("over before"));
}

async fn a_claim_that_is_lost_does_nothing_twice(server: Server) {
    use controlplane::domain::Deed;
    let node = server.deploy("edge-1").await;
    let id = make(&server, json!({}), vec![step("add_note", json!({ "text": "once" })), log("b")]).await;
    incident(&server, &node, 5, 1, "active").await;
    let (store, now) = (&server.store, server.app.now());
    let first = store.claim_execution(now).await.unwrap().unwrap();
    assert!(store.claim_execution(now.plus_secs(64)).await.unwrap().is_none());
    let note = Deed::Note("once".to_owned());
    let carried = store.carry_out(&first, &note, now).await.unwrap().unwrap();
    assert_eq!(carried.execution.run.position, 1);
    // The process dies here; its claim ends, and the next one goes on behind the step that was settled.
    server.clock.advance(65);
    assert_eq!(runs(&server).await, 1);
    assert_eq!(statuses(&server, id).await.0, "succeeded");
    assert!(store.carry_out(&first, &note, now).await.unwrap().is_none(), "what comes late is not taken");
    let (_, shown) = server.get(&format!("/api/v1/incidents/{}", uuid(5))).await;
    let notes = shown["incident"]["notes"].as_array().unwrap();
    assert_eq!(notes.iter().filter(|n| n["text"] == "once").count(), 1, "{notes:?}");
}

async fn what_a_killed_server_had_claimed_is_free_where_no_other_serves(server: Server) {
    let node = server.deploy("edge-1").await;
    make(&server, json!({}), vec![log("a")]).await;
    incident(&server, &node, 5, 1, "active").await;
    let (store, now) = (&server.store, server.app.now());
    assert!(store.claim_execution(now).await.unwrap().is_some());
    server.app.take_over().await.unwrap();
    let alone = matches!(server.database, Database::Sqlite(_));
    assert_eq!(store.claim_execution(now).await.unwrap().is_some(), alone);
}

async fn too_many_are_cancelled(server: Server) {
    let node = server.deploy("edge-1").await;
    let id = make(&server, json!({}), vec![step("wait", json!({ "seconds": 3_600 }))]).await;
    for n in 1..=201 {
        incident(&server, &node, n, 1, "active").await;
        if n % 4 == 0 {
            server.clock.advance(1);
        }
    }
    let (_, listed) = server.get(&format!("{RUNBOOKS}/{id}/executions?limit=2")).await;
    assert_eq!(listed["total"], 201);
    assert_eq!(
        (&listed["executions"][0]["status"], &listed["executions"][1]["status"]),
        (&json!("cancelled"), &json!("queued"))
    );
    assert!(!listed["executions"][0]["error"].as_str().unwrap().is_empty());
    assert_eq!(server.post(&format!("{RUNBOOKS}/{id}/run"), &json!({})).await.0, 429);
}

async fn a_step_changes_rules_incidents_and_upstream(server: Server) {
    let node = server.deploy("edge-1").await;
    let receiver = Receiver::start().await;
    let hook = json!({ "adapter_type": "webhook", "name": "hook", "endpoint": receiver.url,
        "auth_token": crate::receiver::TOKEN, "config": { "prefixes": ["203.0.113.0/24"] } });
    let adapter = server.made("/api/v1/mitigation/adapters", &hook).await["adapter"]["id"].clone();
    let mut rule = crate::support::rule("spare");
    rule["enabled"] = json!(false);
    let rule = server.made("/api/v1/firewall-rules", &rule).await["rule"]["id"].clone();
    let announce = step("mitigation_rule", json!({ "adapter_id": adapter, "intent_type": "blackhole", "ttl": 60 }));
    let steps = vec![
        step("iptables", json!({ "cmd": "enable_rule", "rule_id": rule })),
        announce.clone(),
        announce,
        step("update_incident", json!({ "severity": "critical", "status": "resolved" })),
        step("iptables", json!({ "cmd": "block_sources" })),
        step("iptables", json!({ "cmd": "disable_rule", "rule_id": rule })),
    ];
    let id = make(&server, json!({}), steps).await;
    incident(&server, &node, 5, 1, "active").await;
    runs(&server).await;
    assert_eq!(statuses(&server, id).await.1.join(" "), "succeeded queued skipped succeeded skipped succeeded");
    let (_, shown) = server.get(&format!("/api/v1/incidents/{}", uuid(5))).await;
    assert_eq!(
        (&shown["incident"]["status"], &shown["incident"]["severity"]),
        (&json!("resolved"), &json!("critical"))
    );
    let orders = commands(&server, &node).await;
    assert_eq!((orders.len(), &orders[0]["order"]["type"]), (1, &json!("resolve_incident")));
    assert_eq!(server.get(&format!("/api/v1/firewall-rules/{rule}")).await.1["rule"]["enabled"], false);
    assert_eq!(server.app.reconcile_due().await.unwrap(), 1);
    server.clock.advance(10);
    runs(&server).await;
    assert_eq!(
        statuses(&server, id).await,
        (
            "succeeded".to_owned(),
            ["succeeded", "succeeded", "skipped", "succeeded", "skipped", "succeeded"].map(str::to_owned).to_vec()
        )
    );
    assert_eq!(receiver.actions(), ["announce"]);
}

#[tokio::test]
async fn two_processes_on_one_database_carry_each_step_out_once() {
    use crate::cluster::{Cluster, settings};
    let Some(cluster) = Cluster::shared() else { return };
    let database = settings(&cluster.database().await);
    let mut servers = Vec::new();
    for _ in 0..2 {
        let folder = tempfile::tempdir().unwrap();
        servers.push(Server::start_on(&database, folder, Some(cluster.clone()), Default::default()).await);
    }
    let first = &servers[0];
    let node = first.deploy("edge-1").await;
    let note = |n: u32| step("add_note", json!({ "text": format!("note {n}") }));
    let id = make(first, json!({}), (1..=5).map(note).collect()).await;
    for n in 1..=40 {
        incident(first, &node, n, 1, "active").await;
    }
    let jobs: Vec<_> = [0, 1, 0, 1]
        .map(|n: usize| {
            let app = servers[n].app.clone();
            tokio::spawn(async move { app.execute_due().await.unwrap() })
        })
        .into_iter()
        .collect();
    let mut turns = Vec::new();
    for job in jobs {
        turns.push(job.await.unwrap());
    }
    println!("turns of each job: {turns:?}");
    assert_eq!(turns.iter().sum::<usize>(), 40);
    let all = executions(first, id).await;
    assert!(all.len() == 40 && all.iter().all(|execution| execution["status"] == "succeeded"));
    for n in [1, 20, 40] {
        let (_, shown) = first.get(&format!("/api/v1/incidents/{}", uuid(n))).await;
        let notes = shown["incident"]["notes"].as_array().unwrap();
        assert_eq!(notes.iter().filter(|note| note["kind"] == "note").count(), 5, "{notes:?}");
    }
    assert_eq!(first.get("/api/v1/audit/verify").await.1["intact"], json!(true));
}
