//! Conventions and groups of the operators' API.

use controlplane::domain::{Actor, Fact};
use controlplane::store::sql::Database;
use reqwest::Method;
use serde_json::{Value, json};

use crate::cluster::raw;
use crate::support::{Node, Server, UUID, checked, report, rule};

#[tokio::test]
async fn unknown_paths_and_wrong_methods_answer_in_our_shape() {
    let server = Server::start().await;
    for (method, path, expected) in [
        (Method::GET, "/", 404),
        (Method::GET, "/api/v1/nope", 404),
        (Method::POST, "/api/v1/", 404),
        (Method::PUT, "/api/v1/nodes", 405),
        (Method::DELETE, "/api/health", 405),
        (Method::OPTIONS, "/api/v1/allowlist", 405),
        (Method::GET, "/api/v1/nodes/", 404),
        (Method::GET, "/api/docs/../../etc/passwd", 404),
        (Method::GET, "/api/docs/no-such-file", 404),
    ] {
        let (status, answer) = checked(server.request(method.clone(), path)).await;
        assert_eq!(status, expected, "{method} {path}: {answer}");
    }
}

#[tokio::test]
async fn health_readiness_metrics_and_docs_need_no_token() {
    let server = Server::start().await;
    for path in ["/api/health", "/api/ready"] {
        assert_eq!(checked(server.client.get(format!("{}{path}", server.url))).await.0, 200);
    }
    let text = server.client.get(format!("{}/metrics", server.url)).send().await.unwrap().text().await.unwrap();
    assert!(text.contains("ftagent_controlplane_http_answers_total{") && text.ends_with("# EOF\n"), "{text}");
    let docs = server.client.get(format!("{}/api/docs", server.url)).send().await.unwrap();
    assert_eq!(docs.status(), 200);
    let page = docs.text().await.unwrap();
    assert!(!page.contains("http://") && !page.contains("https://"), "the page loads something from outside");
    let script = server.client.get(format!("{}/api/docs/swagger-ui-bundle.js", server.url)).send().await.unwrap();
    assert_eq!(script.status(), 200);
}

#[tokio::test]
async fn an_allowlist_entry_comes_and_goes_as_the_reference_prints_it() {
    let server = Server::start().await;
    let node = server.deploy("edge-1").await;
    let other = server.deploy("edge-2").await;
    let body = json!({ "ip_address": "198.51.100.10", "label": "Monitoring Server", "scope": "workspace" });
    let entry = server.made("/api/v1/allowlist", &body).await["entry"].clone();
    assert_eq!(
        (&entry["ip_address"], &entry["label"], &entry["scope"]),
        (&json!("198.51.100.10"), &json!("Monitoring Server"), &json!("workspace"))
    );
    let (status, answer) = server.post("/api/v1/allowlist", &body).await;
    assert_eq!((status, &answer["error"]["code"]), (409, &json!("already_exists")));
    assert!(answer["error"]["message"].as_str().unwrap().contains("already exists"));
    let scoped = json!({ "ip_address": "2001:db8::/48", "scope": "node", "node": node.uuid });
    server.made("/api/v1/allowlist", &scoped).await;

    let entries = |answer: &Value| answer["entries"].as_array().unwrap().len();
    let (_, all) = server.get("/api/v1/allowlist").await;
    assert_eq!((entries(&all), &all["total"]), (2, &json!(2)));
    assert_eq!(all["entries"][0]["ip_address"], "2001:db8::/48", "newest first");
    assert_eq!(entries(&server.get(&format!("/api/v1/allowlist?node={}", node.uuid)).await.1), 2);
    assert_eq!(entries(&server.get(&format!("/api/v1/allowlist?node={}", other.uuid)).await.1), 1);

    let path = format!("/api/v1/allowlist/{}", entry["id"]);
    assert_eq!(server.delete(&path).await.0, 200);
    assert_eq!(server.delete(&path).await.0, 404);
}

#[tokio::test]
async fn a_rule_is_created_shown_changed_toggled_and_deleted() {
    let server = Server::start().await;
    let created = server.made("/api/v1/firewall-rules", &rule("block")).await["rule"].clone();
    assert_eq!((&created["cooldown_minutes"], &created["enabled"]), (&json!(5), &json!(true)));
    let path = format!("/api/v1/firewall-rules/{}", created["id"]);
    assert_eq!(server.post("/api/v1/firewall-rules", &rule("block")).await.0, 409);
    let (status, changed) = server.patch(&path, &json!({ "cooldown_minutes": 30 })).await;
    assert_eq!((status, &changed["rule"]["cooldown_minutes"]), (200, &json!(30)));
    assert_eq!(changed["rule"]["action"], created["action"]);
    let (_, toggled) = server.post(&format!("{path}/toggle"), &json!({})).await;
    assert_eq!(toggled["rule"]["enabled"], false);
    let (status, refused) = server.patch(&path, &json!({ "cooldown_minutes": 0, "name": "" })).await;
    assert_eq!((status, &refused["error"]["code"]), (422, &json!("validation_error")));
    let fields: Vec<_> = refused["error"]["details"].as_array().unwrap().iter().map(|d| d["field"].clone()).collect();
    assert!(fields.contains(&json!("name")) && fields.contains(&json!("cooldown_minutes")), "{refused}");
    assert_eq!(server.get(&format!("{path}/executions")).await.1["total"], 0);
    assert_eq!(server.delete(&path).await.0, 200);
    assert_eq!(server.get(&path).await.0, 404);
}

#[tokio::test]
async fn a_hundred_thousand_sources_go_from_the_request_to_the_node() {
    let server = Server::start().await;
    let node = server.deploy("edge-1").await;
    server.made("/api/v1/allowlist", &json!({ "ip_address": "2001:db8:f1d2::/48" })).await;
    let sources = |count: u32| -> Vec<String> {
        let one =
            |n: u32| format!("2001:db8:f1d2:{:x}:e3f4:a5b6:c7d8:{:x}/128", 0x1000 + (n >> 8), 0xf000 + (n & 0xff));
        (0..count).map(one).collect()
    };
    let body = |name: &str, kind: &str, count: u32| {
        let mut action = json!({ "type": kind, "sources": sources(count) });
        if kind == "ipset_ban" {
            action["set"] = json!("banned");
        }
        json!({ "name": name, "trigger": { "type": "any" }, "action": action })
    };
    for (kind, most) in [
        ("ipset_ban", 100_000),
        ("nft_drop_source", 100_000),
        ("xdp_drop_source", 1_024),
        ("iptables_drop_source", 256),
        ("ufw_deny_source", 64),
    ] {
        let (status, answer) = server.post("/api/v1/firewall-rules", &body("r", kind, most + 1)).await;
        let detail = &answer["error"]["details"][0];
        assert_eq!((status, &detail["field"]), (422, &json!("action.sources")), "{kind}: {answer}");
        assert!(detail["message"].as_str().unwrap().contains(&format!("at most {most} addresses")), "{kind}: {detail}");
    }
    let many = body("many", "ipset_ban", 100_000);
    let bytes = many.to_string().len();
    assert!(bytes > 4_500_000, "{bytes}");
    // What is shown is short and says what it leaves out.
    let (status, shown) = server.post("/api/v1/firewall-rules/preview", &json!({ "action": many["action"] })).await;
    assert_eq!(status, 200, "{shown}");
    let preview = &shown["preview"];
    assert_eq!(preview["do"][2], json!(["ipset", "restore", "-exist"]));
    let lines: u64 = preview["input"].as_array().unwrap().iter().map(|i| i["lines"].as_u64().unwrap()).sum();
    assert_eq!((lines, &preview["input"][2]["shown"]), (100_000, &json!(16)));
    assert!(preview["warnings"].to_string().contains("allowlisted") && preview.to_string().len() < 100_000);
    let made = server.made("/api/v1/firewall-rules", &many).await;
    assert_eq!(
        made["rule"]["action"],
        many["action"]
            .as_object()
            .map(|action| {
                let mut action = action.clone();
                action.insert("ttl_secs".to_owned(), json!(3_600));
                Value::Object(action)
            })
            .unwrap()
    );
    let (_, config) = checked(server.agent(&node, Method::GET, "/config")).await;
    assert_eq!(config["tool_rules"][0]["action"], made["rule"]["action"]);
    // The record of who did it is not as long, nor does a node get more than it takes.
    let (_, audit) = server.get("/api/v1/audit?action=rule.create").await;
    assert!(audit.to_string().len() < 200_000);
    let (status, answer) = server.post("/api/v1/firewall-rules", &body("more", "ipset_ban", 100_000)).await;
    assert_eq!((status, &answer["error"]["details"][0]["field"]), (422, &json!("action.sources")), "{answer}");
    let path = format!("/api/v1/firewall-rules/{}", made["rule"]["id"]);
    let few = json!({ "action": body("x", "ipset_ban", 10)["action"] });
    assert_eq!(server.patch(&path, &few).await.0, 200);
    assert_eq!(server.post("/api/v1/firewall-rules", &body("more", "ipset_ban", 100_000)).await.0, 200);
    assert_eq!(server.patch(&path, &json!({ "action": many["action"] })).await.0, 422);
}

#[tokio::test]
async fn rules_of_every_tool_are_checked_and_go_to_nodes_apart() {
    let server = Server::start().await;
    let node = server.deploy("edge-1").await;
    for (action, field) in [
        (json!({ "type": "iptables_drop_port", "protocol": "udp", "port": 0 }), "action.port"),
        (json!({ "type": "iptables_rate_limit_source", "pps": 0 }), "action.pps"),
        (json!({ "type": "cloudflare_block" }), "action.zone"),
        (json!({ "type": "ipset_ban", "set": "a", "ttl_secs": 0 }), "action.ttl_secs"),
    ] {
        let body = json!({ "name": "r", "trigger": { "type": "any" }, "action": action });
        let (status, answer) = server.post("/api/v1/firewall-rules", &body).await;
        assert_eq!((status, &answer["error"]["details"][0]["field"]), (422, &json!(field)), "{answer}");
        assert_eq!(server.post("/api/v1/firewall-rules/preview", &json!({ "action": action })).await.0, 422);
    }
    for (action, part) in [
        (json!({ "type": "ipset_ban", "set": "a; reboot" }), "set must be"),
        (json!({ "type": "tc_police_interface", "interface": "-x", "bps": 9_000 }), "interface must be"),
        (json!({ "type": "iptables_drop_source", "colour": 1 }), "colour"),
        (json!({ "type": "run", "cmd": "id" }), "run"),
    ] {
        let body = json!({ "name": "r", "trigger": { "type": "any" }, "action": action });
        let (status, answer) = server.post("/api/v1/firewall-rules", &body).await;
        assert_eq!(status, 400, "{answer}");
        assert!(answer["error"]["message"].as_str().unwrap().contains(part), "{answer}");
    }
    let action = json!({ "type": "iptables_drop_protocol", "protocol": "udp" });
    let body = json!({ "name": "udp", "trigger": { "type": "any" }, "action": action });
    let made = server.made("/api/v1/firewall-rules", &body).await;
    assert!(made["rule"]["warnings"].to_string().contains("drops all udp"), "{made}");
    server.made("/api/v1/firewall-rules", &rule("native")).await;
    let (_, config) = checked(server.agent(&node, Method::GET, "/config")).await;
    let names = |list: &Value| list.as_array().unwrap().iter().map(|r| r["name"].clone()).collect::<Vec<_>>();
    assert_eq!((names(&config["rules"]), names(&config["tool_rules"])), (vec![json!("native")], vec![json!("udp")]));
}

/// Where tools differ, a preview is that of the incident's node, or of the one that is named.
async fn the_means_of_a_node_are_shown(server: &Server, node: &Node) {
    let shown = async |more: Value| {
        let mut body = json!({ "action": { "type": "tc_police_interface", "interface": "eth0", "bps": 8_000 } });
        body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        let preview = server.made("/api/v1/firewall-rules/preview", &body).await["preview"].clone();
        (preview["do"].to_string(), preview["warnings"].to_string(), preview["refused"].clone())
    };
    let (steps, warnings, _) = shown(json!({ "incident": UUID })).await;
    assert!(steps.contains("police") && warnings.contains("a node whose kernel has not"), "{steps} {warnings}");
    let beat = async |means: Value| {
        let mut body = json!({ "protocol_version": 2, "agent_version": "0.1.0", "mode": "enforce" });
        body["means"] = means;
        server.report(node, "/heartbeat", &body).await;
    };
    let lacking = json!([{ "way": "police", "why": "no act_police here" }]);
    beat(json!({ "lacks_busctl": true, "police": { "ways": ["program"], "lacking": lacking } })).await;
    for of in [json!({ "incident": UUID }), json!({ "node": node.uuid })] {
        let (steps, warnings, _) = shown(of).await;
        assert!(steps.contains("tc-bucket") && warnings.contains("no act_police here"), "{steps} {warnings}");
    }
    let firewalld = json!({ "action": { "type": "firewalld_drop_source" }, "node": node.uuid });
    let by_script = server.made("/api/v1/firewall-rules/preview", &firewalld).await;
    assert_eq!(by_script["preview"]["do"][0][0], "firewall-cmd");
    assert!(shown(json!({})).await.0.contains("police"), "for no node in particular");
    beat(json!({ "police": { "ways": [], "lacking": lacking } })).await;
    let (steps, _, refused) = shown(json!({ "node": node.uuid })).await;
    assert!(steps == "[]" && refused.to_string().contains("no way to limit"), "{steps} {refused}");
    let nobody = json!({ "action": { "type": "syn_cookies" }, "node": "00000000-0000-4000-8000-000000000001" });
    assert_eq!(server.post("/api/v1/firewall-rules/preview", &nobody).await.0, 404);
}

#[tokio::test]
async fn a_preview_shows_commands_for_an_example_and_for_a_real_incident() {
    let server = Server::start().await;
    let node = server.deploy("edge-1").await;
    server.report(&node, "/incidents", &report(UUID, 1, "active")).await;
    server.made("/api/v1/allowlist", &json!({ "ip_address": "198.51.100.0/24" })).await;
    let action = json!({ "type": "xdp_drop_source", "ttl_secs": 60 });
    let example = server.made("/api/v1/firewall-rules/preview", &json!({ "action": action })).await;
    assert_eq!(example["preview"]["do"][0][1], "block");
    let trigger = json!({ "type": "pps_threshold", "pps": 50_000 });
    let body = json!({ "action": action, "trigger": trigger, "incident": "inc_0f9619ff" });
    let real = server.made("/api/v1/firewall-rules/preview", &body).await;
    assert_eq!((&real["fires"], &real["context"]["target"]), (&json!(true), &json!("203.0.113.5/32")));
    let warnings = real["preview"]["warnings"].to_string();
    assert!(warnings.contains("198.51.100.0/24 is allowlisted"), "{warnings}");
    let action = json!({ "type": "iptables_drop_source" });
    let tool = server.made("/api/v1/firewall-rules/preview", &json!({ "action": action, "incident": UUID })).await;
    let words =
        |list: &Value| list[0].as_array().unwrap().iter().map(|w| w.as_str().unwrap().to_owned()).collect::<Vec<_>>();
    let (run, undo) = (words(&tool["preview"]["do"]), words(&tool["preview"]["undo"]));
    assert_eq!(run.join(" "), "iptables -w 5 -I INPUT -s 198.51.100.7/32 -m comment --comment ftagent -j DROP");
    assert_eq!(undo.join(" "), run.join(" ").replace("-I", "-D"));
    assert!(tool["preview"]["warnings"].to_string().contains("is allowlisted"), "{tool}");
    the_means_of_a_node_are_shown(&server, &node).await;
    let nothing = json!({ "type": "pps_threshold", "pps": 0 });
    let (status, refused) =
        server.post("/api/v1/firewall-rules/preview", &json!({ "action": action, "trigger": nothing })).await;
    assert_eq!((status, &refused["error"]["details"][0]["field"]), (422, &json!("trigger.pps")));
    assert_eq!(server.get("/api/v1/firewall-rules").await.1["total"], 0, "nothing is stored");
}

#[tokio::test]
async fn thresholds_are_saved_replaced_and_removed() {
    let server = Server::start().await;
    let path = "/api/v1/mitigation/thresholds";
    let body = |tier: u64| json!({ "target_ip": "203.0.113.5", "label": "web", "thresholds": { "tier1_bps": tier } });
    let first = server.made(path, &body(1_000)).await["threshold"].clone();
    let second = server.made(path, &body(2_000)).await["threshold"].clone();
    assert_eq!(first["id"], second["id"]);
    let (_, listed) = server.get(path).await;
    assert_eq!((&listed["total"], &listed["thresholds"][0]["thresholds"]["tier1_bps"]), (&json!(1), &json!(2_000)));
    assert_eq!(server.delete(&format!("{path}/{}", first["id"])).await.0, 200);
    assert_eq!(server.get(path).await.1["total"], 0);
}

#[tokio::test]
async fn bounds_of_lists_are_refused_not_cut() {
    let server = Server::start().await;
    for name in ["a", "b", "c"] {
        server.made("/api/v1/firewall-rules", &rule(name)).await;
    }
    let (_, page) = server.get("/api/v1/firewall-rules?limit=1&offset=1").await;
    assert_eq!((&page["total"], &page["rules"][0]["name"]), (&json!(3), &json!("b")));
    for query in ["limit=0", "limit=501", "limit=-1", "limit=x", "offset=-1", "limit=99999999999999999999", "limit=1e3"]
    {
        let (status, answer) = server.get(&format!("/api/v1/firewall-rules?{query}")).await;
        assert_eq!((status, &answer["error"]["code"]), (400, &json!("invalid_parameter")), "{query}");
    }
}

#[tokio::test]
async fn the_same_key_gives_the_first_answer_again() {
    let server = Server::start().await;
    let send = async |name: &str, key: &str| {
        let request = server.request(Method::POST, "/api/v1/firewall-rules").header("Idempotency-Key", key);
        checked(request.json(&rule(name))).await
    };
    let (first, again) = tokio::join!(send("one", "k1"), send("one", "k1"));
    assert_eq!(first, again);
    assert_eq!(first.0, 200);
    let (status, other) = send("two", "k1").await;
    assert_eq!((status, &other["error"]["details"][0]["field"]), (422, &json!("Idempotency-Key")));
    assert_eq!(send("one", "k2").await.0, 409);
    assert_eq!(server.get("/api/v1/firewall-rules").await.1["total"], 1);
    server.clock.advance(86_401);
    assert_eq!(send("one", "k1").await.0, 409, "a day later the key is free again");
}

#[tokio::test]
async fn an_answer_kept_for_a_key_holds_no_secret_in_the_clear() {
    let server = Server::start().await;
    let request = server.request(Method::POST, "/api/deploy").header("Idempotency-Key", "d1");
    let (_, answer) = checked(request.json(&json!({ "name": "edge-1" }))).await;
    let key = answer["api_key"].as_str().unwrap();
    for entry in std::fs::read_dir(server.folder.path()).unwrap() {
        let path = entry.unwrap().path();
        let bytes = if path.is_dir() { continue } else { std::fs::read(path).unwrap() };
        assert!(!bytes.windows(64).any(|w| w == key.as_bytes()));
        assert!(!bytes.windows(64).any(|w| w == server.owner.as_bytes()));
    }
}

#[tokio::test]
async fn a_workspace_without_subscription_reads_but_does_not_write() {
    let server = Server::start().await;
    let node = server.deploy("edge-1").await;
    raw(&server.database, "UPDATE workspaces SET subscription = 'inactive'").await.unwrap();
    let (status, answer) = server.post("/api/v1/firewall-rules", &rule("r")).await;
    assert_eq!((status, &answer["error"]["code"]), (402, &json!("subscription_required")));
    assert_eq!(server.get("/api/v1/firewall-rules").await.0, 200);
    server.heartbeat(&node, 0.0).await;
}

#[tokio::test]
async fn every_write_is_in_the_audit_chain_and_the_chain_verifies() {
    let server = Server::start().await;
    server.made("/api/v1/firewall-rules", &rule("r")).await;
    server.made("/api/v1/allowlist", &json!({ "ip_address": "198.51.100.10" })).await;
    assert_eq!(server.post("/api/v1/firewall-rules", &rule("r")).await.0, 409);
    let (_, audit) = server.get("/api/v1/audit").await;
    let actions: Vec<_> = audit["records"].as_array().unwrap().iter().map(|r| r["action"].as_str().unwrap()).collect();
    assert_eq!(
        actions,
        ["allowlist.add", "rule.create", "token.create", "workspace.create"],
        "a refused write left none"
    );
    let (_, filtered) = server.get("/api/v1/audit?action=rule.create&object=rule/1&actor=token/1").await;
    assert_eq!(filtered["total"], 1);
    let (_, verdict) = server.get("/api/v1/audit/verify").await;
    assert_eq!((&verdict["intact"], &verdict["records"]), (&json!(true), &json!(4)));

    assert!(raw(&server.database, "UPDATE audit SET actor = 'x'").await.is_err());
    assert!(raw(&server.database, "DELETE FROM audit").await.is_err());
    let drop = match server.database {
        Database::Sqlite(_) => "DROP TRIGGER audit_is_not_edited",
        Database::Postgres(_) => "DROP TRIGGER audit_is_not_changed ON audit",
    };
    raw(&server.database, drop).await.unwrap();
    raw(&server.database, "UPDATE audit SET actor = 'somebody else' WHERE seq = 3").await.unwrap();
    let (_, verdict) = server.get("/api/v1/audit/verify").await;
    assert_eq!((&verdict["intact"], &verdict["broken"]["seq"]), (&json!(false), &json!(3)));
}

#[tokio::test]
async fn incidents_are_listed_filtered_noted_and_exported() {
    let server = Server::start().await;
    let node = server.deploy("=edge,\"1\"").await;
    server.report(&node, "/incidents", &report(UUID, 1, "active")).await;
    let mut second = report("1f9619ff-8b86-4011-b42d-00cf4fc964ff", 1, "active");
    second["started_at"] = json!("2026-05-12T14:30:00Z");
    second["family"] = json!("syn_flood");
    server.report(&node, "/incidents", &second).await;
    let total = async |query: &str| server.get(&format!("/api/v1/incidents?{query}")).await.1["total"].clone();
    assert_eq!(total("").await, 2);
    assert_eq!(total("family=udp_flood&status=active&severity=high").await, 1);
    assert_eq!(total("from=2026-05-12T14:30:00Z").await, 1);
    assert_eq!(total("to=2026-05-12T14:30:00Z").await, 1);
    assert_eq!(total(&format!("node={}", node.uuid)).await, 2);
    assert_eq!(total("status=resolved").await, 0);
    for junk in ["status=open", "severity=1", "family=' OR 1=1 --", "from=yesterday", "node=1;DROP TABLE nodes"] {
        assert_eq!(server.get(&format!("/api/v1/incidents?{junk}")).await.0, 400, "{junk}");
    }
    server.made("/api/v1/incidents/1/notes", &json!({ "text": "looked at\nit" })).await;
    assert_eq!(server.post("/api/v1/incidents/1/notes", &json!({ "text": "\0" })).await.0, 422);
    for reference in ["1", UUID, "inc_0f9619ff"] {
        let (status, answer) = server.get(&format!("/api/v1/incidents/{reference}")).await;
        let incident = &answer["incident"];
        assert_eq!((status, &incident["uuid"], &incident["confidence"]), (200, &json!(UUID), &json!(0.93)));
        assert_eq!(incident["timeline"].as_array().unwrap().len(), 2);
        assert_eq!(incident["notes"][0]["text"], "looked at\nit");
    }
    for (reference, expected) in [("99", 404), ("inc_ffffffff", 404), ("inc_0", 400), ("%27", 400), ("a%00", 400)] {
        assert_eq!(server.get(&format!("/api/v1/incidents/{reference}")).await.0, expected, "{reference}");
    }
    let text = async |format: &str| {
        let request = server.request(Method::GET, &format!("/api/v1/incidents/export?format={format}"));
        request.send().await.unwrap().text().await.unwrap()
    };
    let csv = text("csv").await;
    assert_eq!(csv.lines().count(), 3);
    assert!(csv.contains("\"'=edge,\"\"1\"\"\""), "a formula is quoted: {csv}");
    let lines = text("jsonl").await;
    assert!(lines.lines().all(|l| serde_json::from_str::<Value>(l).is_ok()) && lines.lines().count() == 2);
}

#[tokio::test]
async fn audit_records_leave_as_files_longer_than_what_is_read_at_once() {
    let server = Server::start().await;
    let (status, made) = server.post("/api/v1/nodes", &json!({ "name": "=edge,1", "interface": "eth0" })).await;
    assert_eq!((status, &made["node"]["name"], &made["node"]["status"]), (200, &json!("=edge,1"), &json!("offline")));
    let word = |value: &Value| value.as_str().unwrap().to_owned();
    let node = Node { uuid: word(&made["node"]["uuid"]), key: word(&made["api_key"]) };
    server.heartbeat(&node, 0.0).await;
    let (status, again) = server.post("/api/v1/nodes", &json!({ "name": "=edge,1" })).await;
    assert_eq!((status, &again["error"]["code"]), (409, &json!("already_exists")));

    let workspace = server.store.first_workspace().await.unwrap();
    for i in 0..600 {
        let fact = Fact::new(server.app.now(), &Actor::System { workspace }, "test", format!("thing/{i}"));
        server.store.append(workspace, fact).await.unwrap();
    }
    let (_, verdict) = server.get("/api/v1/audit/verify").await;
    let text = async |query: &str| {
        let request = server.request(Method::GET, &format!("/api/v1/audit/export?{query}"));
        request.send().await.unwrap().text().await.unwrap()
    };
    let rows: Vec<Value> = text("format=jsonl").await.lines().map(|l| serde_json::from_str(l).unwrap()).collect();
    assert_eq!(json!(rows.len()), verdict["records"]);
    assert_eq!(rows[0]["hash"], verdict["hash"]);
    assert!(rows.windows(2).all(|two| two[0]["seq"].as_i64() == two[1]["seq"].as_i64().map(|seq| seq + 1)));
    assert_eq!(text("format=jsonl&action=test").await.lines().count(), 600);
    let csv = text("format=csv&action=node.deploy").await;
    assert_eq!(csv.lines().next(), Some("seq,at,actor,action,object,result,detail,hash"));
    assert!(csv.lines().count() == 2 && csv.contains("\"\"name\"\":\"\"=edge,1\"\""), "{csv}");
    assert!(!text("format=jsonl").await.contains(&node.key), "a key is in no record");
}

#[tokio::test]
async fn events_tell_what_happens() {
    let server = Server::start().await;
    let mut answer = server.request(Method::GET, "/api/v1/events").send().await.unwrap();
    server.made("/api/v1/firewall-rules", &rule("r")).await;
    let chunk = answer.chunk().await.unwrap().unwrap();
    let text = String::from_utf8(chunk.to_vec()).unwrap();
    assert!(text.starts_with("event: rule\ndata: {") && text.contains("\"created\""), "{text}");
    server.drain.send_replace(true);
    while let Some(chunk) = answer.chunk().await.unwrap() {
        assert!(chunk.starts_with(b":"), "only comments come before the end");
    }
}
