//! Threat intelligence, feeds and maintenance windows over HTTP.

use std::collections::BTreeSet;
use std::net::IpAddr;

use controlplane::domain::{Actor, Fact, IndicatorValue, NewFeedToken, NewIndicator, Secret, Timestamp, WorkspaceId};
use reqwest::{Method, Response};
use serde_json::{Value, json};

use crate::cluster::raw;
use crate::support::{NOW, Server, UUID, checked, report};

const IMPORT: &str = "/api/v1/threat-intel/import";
const FEEDS: [&str; 3] = ["suricata.rules", "zeek.intel", "plain.txt"];

fn indicator(value: &str, confidence: f64) -> Value {
    json!({ "value": value, "confidence": confidence, "source": "misp" })
}

async fn feed_token(server: &Server) -> String {
    let answer = server.made("/api/v1/workspace/feed-tokens", &json!({ "name": "ids" })).await;
    answer["value"].as_str().unwrap().to_owned()
}

async fn get(server: &Server, token: &str, feed: &str, tag: Option<&str>) -> Response {
    let request = server.client.get(format!("{}/api/v1/feeds/{feed}", server.url)).bearer_auth(token);
    tag.iter().fold(request, |request, tag| request.header("If-None-Match", *tag)).send().await.unwrap()
}

async fn text(server: &Server, token: &str, feed: &str) -> String {
    let answer = get(server, token, feed, None).await;
    assert_eq!(answer.status(), 200, "{feed}");
    assert_eq!(answer.headers()["content-type"], "text/plain; charset=utf-8");
    assert!(answer.headers().contains_key("x-ratelimit-limit"));
    answer.text().await.unwrap()
}

fn fields(answer: &Value) -> Vec<&str> {
    answer["error"]["details"].as_array().unwrap().iter().map(|d| d["field"].as_str().unwrap()).collect()
}

#[tokio::test]
async fn indicators_are_imported_listed_and_deleted() {
    let server = Server::start().await;
    let body = json!({ "indicators": [
        { "value": "198.51.100.7", "kind": "address", "confidence": 0.934, "source": "misp", "description": "botnet",
          "first_seen": "2026-05-01T00:00:00Z", "last_seen": "2026-05-02T00:00:00Z" },
        indicator("198.51.100.128/25", 0.4), indicator("Evil.Example", 1.0),
    ] });
    let answer = server.made(IMPORT, &body).await;
    assert_eq!((&answer["created"], &answer["updated"]), (&json!(3), &json!(0)));
    let first = &answer["indicators"][0];
    assert_eq!((&first["confidence"], &first["kind"]), (&json!(0.93), &json!("address")));
    assert_eq!(first["expires_at"], "2026-06-11T14:30:00Z", "30 days by default");
    let again = json!({ "indicators": [{ "value": "198.51.100.7", "confidence": 0.2, "source": "misp" }] });
    let answer = server.made(IMPORT, &again).await;
    assert_eq!((&answer["created"], &answer["updated"]), (&json!(0), &json!(1)));
    let kept = &answer["indicators"][0];
    assert_eq!((&kept["first_seen"], &kept["last_seen"]), (&json!("2026-05-01T00:00:00Z"), &json!(NOW)));

    let values = async |query: &str| {
        let (status, answer) = server.get(&format!("/api/v1/threat-intel?{query}")).await;
        assert_eq!(status, 200, "{answer}");
        let listed = answer["indicators"].as_array().unwrap();
        listed.iter().map(|i| i["value"].as_str().unwrap().to_owned()).collect::<Vec<_>>()
    };
    assert_eq!(values("").await, ["evil.example", "198.51.100.128/25", "198.51.100.7"]);
    assert_eq!(values("kind=prefix").await, ["198.51.100.128/25"]);
    assert_eq!(values("min_confidence=0.4").await, ["evil.example", "198.51.100.128/25"]);
    assert_eq!(values("value=EVIL.example.").await, ["evil.example"]);
    assert_eq!(values("source=other").await, Vec::<String>::new());
    assert_eq!(values("limit=1&offset=1").await, ["198.51.100.128/25"]);
    for query in ["limit=0", "limit=501", "min_confidence=1.1", "min_confidence=NaN", "value=x", "kind=x", "offset=-1"]
    {
        assert_eq!(server.get(&format!("/api/v1/threat-intel?{query}")).await.0, 400, "{query}");
    }
    let path = format!("/api/v1/threat-intel/{}", kept["id"]);
    assert_eq!(server.delete(&path).await.0, 200);
    assert_eq!(server.delete(&path).await.0, 404);
}

#[tokio::test]
async fn an_import_is_refused_as_a_whole_with_each_index() {
    let server = Server::start().await;
    server.made("/api/v1/allowlist", &json!({ "ip_address": "203.0.113.0/24" })).await;
    let call =
        json!({ "indicators": [indicator("198.51.100.1", 0.5), indicator("x", 0.5), indicator("10.0.0.1", 2.0)] });
    let (status, answer) = server.post(IMPORT, &call).await;
    assert_eq!((status, &answer["error"]["code"]), (422, &json!("validation_error")));
    assert_eq!(fields(&answer), ["indicators[1].value", "indicators[2].value", "indicators[2].confidence"]);
    let call = json!({ "indicators": [indicator("198.51.100.1", 0.5), indicator("203.0.113.9", 0.5)] });
    let (status, answer) = server.post(IMPORT, &call).await;
    assert_eq!((status, fields(&answer)), (422, vec!["indicators[1].value"]));
    assert!(answer["error"]["message"].as_str().unwrap().contains("allowlisted by entry 1 (203.0.113.0/24)"));
    for n in [0, 101] {
        let many: Vec<_> = (0..n).map(|n| indicator(&format!("198.51.100.{n}"), 0.5)).collect();
        let (status, answer) = server.post(IMPORT, &json!({ "indicators": many })).await;
        assert_eq!((status, fields(&answer)), (422, vec!["indicators"]), "{n}");
    }
    for wrong in
        [json!({}), json!({ "indicators": [{ "value": "198.51.100.1" }] }), json!({ "indicators": [], "x": 1 })]
    {
        assert_eq!(server.post(IMPORT, &wrong).await.0, 400, "{wrong}");
    }
    assert_eq!(server.get("/api/v1/threat-intel").await.1["total"], 0);
    let (_, audited) = server.get("/api/v1/audit?action=indicator.import").await;
    assert_eq!((&audited["total"], &audited["records"][0]["result"]), (&json!(1), &json!("refused")));
}

/// Reads a rule by Suricata's grammar: action, protocol, source, direction, destination, options.
fn sid_of(rule: &str, address: &str) -> u64 {
    let (head, options) = rule.split_once(" (").unwrap();
    assert_eq!(head, format!("drop ip {address} any -> $HOME_NET any"), "{rule}");
    let options = options.strip_suffix(";)").unwrap();
    let options: Vec<_> = options.split("; ").map(|o| o.split_once(':').unwrap()).collect();
    let keys: Vec<_> = options.iter().map(|(key, _)| *key).collect();
    assert_eq!(keys, ["msg", "classtype", "sid", "rev"], "{rule}");
    let message = options[0].1.strip_prefix('"').unwrap().strip_suffix('"').unwrap();
    assert!(!message.contains(['"', ';', '\\', ':', '\n']), "{rule}");
    assert_eq!((options[1].1, options[3].1), ("attempted-dos", "1"));
    let sid: u64 = options[2].1.parse().unwrap();
    assert!((9_000_001..=u64::from(u32::MAX)).contains(&sid), "{rule}");
    sid
}

/// Reads a file of the Intel framework strictly.
fn zeek_rows(file: &str) -> Vec<Vec<String>> {
    assert!(file.ends_with('\n'));
    let mut lines = file.lines();
    assert_eq!(lines.next(), Some("#fields\tindicator\tindicator_type\tmeta.source\tmeta.desc"));
    let rows = lines.map(|line| line.split('\t').map(str::to_owned).collect::<Vec<_>>());
    rows.inspect(|row| {
        assert_eq!(row.len(), 4, "{row:?}");
        assert!(row.iter().all(|field| !field.is_empty() && !field.chars().any(char::is_control)), "{row:?}");
        match row[1].as_str() {
            "Intel::ADDR" => assert!(row[0].parse::<IpAddr>().is_ok(), "{row:?}"),
            "Intel::SUBNET" => {
                let (address, bits) = row[0].split_once('/').unwrap();
                assert!(address.parse::<IpAddr>().is_ok() && bits.parse::<u8>().is_ok(), "{row:?}");
            }
            "Intel::DOMAIN" => assert!(row[0].contains('.'), "{row:?}"),
            other => panic!("{other}"),
        }
    })
    .collect()
}

async fn fill(server: &Server) {
    let node = server.deploy("edge-1").await;
    let forged = "11111111-8b86-4011-b42d-00cf4fc964ff";
    let active = "22222222-8b86-4011-b42d-00cf4fc964ff";
    let mut ended = report(UUID, 1, "resolved");
    ended["top_sources"] = json!([
        { "ip": "198.51.100.7", "pps": 4_000, "share": 0.5 }, { "ip": "2001:db8::7", "pps": 9, "share": 0.1 },
        { "ip": "10.0.0.1", "pps": 9, "share": 0.1 }, { "ip": "203.0.113.5", "pps": 9, "share": 0.1 },
    ]);
    let mut spoofed = report(forged, 1, "resolved");
    (spoofed["spoofed"], spoofed["target"]) = (json!(true), json!("203.0.113.6/32"));
    spoofed["top_sources"][0]["ip"] = json!("198.51.100.66");
    let mut going_on = report(active, 1, "active");
    (going_on["target"], going_on["top_sources"][0]["ip"]) = (json!("203.0.113.7/32"), json!("198.51.100.67"));
    for incident in [ended, spoofed, going_on] {
        server.report(&node, "/incidents", &incident).await;
    }
    let mut described = indicator("evil.example", 0.9);
    described["description"] = json!("a \\ \"name\"; with 'signs'");
    let call = json!({ "indicators": [
        indicator("198.51.100.128/25", 0.6), described, indicator("192.0.2.1", 0.4), indicator("192.0.2.2", 0.7),
    ] });
    server.made(IMPORT, &call).await;
}

#[tokio::test]
async fn feeds_hold_what_is_hostile_and_spell_it_strictly() {
    let server = Server::start().await;
    fill(&server).await;
    let token = feed_token(&server).await;
    let expected = ["192.0.2.2", "198.51.100.7", "198.51.100.128/25", "2001:db8::7"];
    assert_eq!(text(&server, &token, "plain.txt").await, expected.map(|line| format!("{line}\n")).concat());
    let rules = text(&server, &token, "suricata.rules").await;
    let sids: Vec<_> = rules.lines().zip(expected).map(|(rule, address)| sid_of(rule, address)).collect();
    assert_eq!(sids, [9_000_001, 9_000_002, 9_000_003, 9_000_004]);
    let rows = zeek_rows(&text(&server, &token, "zeek.intel").await);
    assert_eq!(rows[1], ["198.51.100.7", "Intel::ADDR", "ftagent", "udp_flood, 1 incidents"]);
    assert_eq!(rows[4], ["evil.example", "Intel::DOMAIN", "misp", "a \\x5c \"name\"; with 'signs'"]);
    assert_eq!(rows.len(), 5);

    let lines = async |query: &str| text(&server, &token, &format!("plain.txt?{query}")).await.lines().count();
    assert_eq!(lines("min_confidence=0.4").await, 5);
    assert_eq!(lines("min_confidence=0.95").await, 0);
    server.clock.advance(2 * 86_400);
    assert_eq!(lines("lookback_days=1").await, 0);
    assert_eq!(lines("lookback_days=3").await, 4);
    for query in ["lookback_days=0", "lookback_days=91", "lookback_days=x", "min_confidence=-1", "min_confidence=NaN"] {
        let request = server.client.get(format!("{}/api/v1/feeds/plain.txt?{query}", server.url)).bearer_auth(&token);
        assert_eq!(checked(request).await.0, 400, "{query}");
    }
    server.clock.advance(29 * 86_400);
    for feed in FEEDS {
        let old = text(&server, &token, feed).await;
        assert_eq!(old.lines().filter(|line| !line.starts_with('#')).count(), 0, "{feed}");
    }
}

#[tokio::test]
async fn a_feed_that_did_not_change_is_not_sent_again_and_sids_stay() {
    let server = Server::start().await;
    fill(&server).await;
    let token = feed_token(&server).await;
    let mut tags = BTreeSet::new();
    for feed in FEEDS {
        let tag = get(&server, &token, feed, None).await.headers()["etag"].to_str().unwrap().to_owned();
        for known in [&tag, &format!("W/{tag}"), &format!("\"x\", {tag}"), "*"] {
            let answer = get(&server, &token, feed, Some(known)).await;
            assert_eq!(answer.status(), 304, "{feed} {known}");
            assert_eq!(answer.headers()["etag"], *tag);
            assert_eq!(answer.headers()["cache-control"], "private, no-cache");
            assert!(answer.text().await.unwrap().is_empty());
        }
        assert_eq!(get(&server, &token, feed, Some("\"x\"")).await.status(), 200);
        tags.insert(tag);
    }
    assert_eq!(tags.len(), 3);
    let before = text(&server, &token, "suricata.rules").await;
    let entry = server.made("/api/v1/allowlist", &json!({ "ip_address": "198.51.100.0/26" })).await;
    let without = text(&server, &token, "suricata.rules").await;
    assert!(without.lines().count() == 3 && !without.contains("198.51.100.7 "), "{without}");
    assert!(without.lines().all(|rule| before.contains(rule)), "the others are as they were");
    assert_eq!(server.delete(&format!("/api/v1/allowlist/{}", entry["entry"]["id"])).await.0, 200);
    assert_eq!(text(&server, &token, "suricata.rules").await, before);
    let body = json!({ "status": "false_positive" });
    assert_eq!(server.patch(&format!("/api/v1/incidents/{UUID}"), &body).await.0, 200);
    assert_eq!(text(&server, &token, "plain.txt").await, "192.0.2.2\n198.51.100.128/25\n");
}

#[tokio::test]
async fn a_feed_token_reads_feeds_and_nothing_else() {
    let server = Server::start().await;
    let token = feed_token(&server).await;
    let document = serde_json::to_value(controlplane::http::document()).unwrap();
    let mut tried = 0;
    for (path, item) in document["paths"].as_object().unwrap() {
        for (method, operation) in item.as_object().unwrap() {
            let expected = match operation["tags"][0].as_str().unwrap() {
                "system" => continue,
                "feeds" => 200,
                // A node names itself first: without that no key is looked at.
                "agent" => 401,
                _ => 403,
            };
            let url = path.replace("{id}", "1").replace("{uuid}", "00000000-0000-4000-8000-000000000000");
            let method: Method = method.to_uppercase().parse().unwrap();
            let request = server.client.request(method.clone(), format!("{}{url}", server.url)).bearer_auth(&token);
            let answer = request.json(&json!({})).send().await.unwrap();
            assert_eq!(answer.status(), expected, "{method} {path}");
            tried += 1;
            server.clock.advance(2);
        }
    }
    assert!(tried >= 45, "only {tried} operations");
}

#[tokio::test]
async fn other_credentials_do_not_read_feeds_and_a_feed_token_ends() {
    let server = Server::start().await;
    let node = server.deploy("edge-1").await;
    let url = format!("{}/api/v1/feeds/plain.txt", server.url);
    let read = async |token: &str| {
        let answer = server.client.get(&url).bearer_auth(token).send().await.unwrap();
        (answer.status().as_u16(), answer.text().await.unwrap())
    };
    assert_eq!(checked(server.client.get(&url)).await.0, 401);
    for role in ["owner", "readonly"] {
        let (status, answer) = read(&server.token(role).await).await;
        assert!(status == 403 && answer.contains("\"forbidden\""), "{answer}");
    }
    assert_eq!(read(&"0".repeat(64)).await.0, 401);
    assert_eq!(read(&node.key).await.0, 401, "a node key is none without its node");
    let as_node = server.client.get(&url).bearer_auth(&node.key).header("X-Node-UUID", &node.uuid);
    assert_eq!(checked(as_node).await.0, 403);

    let path = "/api/v1/workspace/feed-tokens";
    let short = server.made(path, &json!({ "name": "short", "expires_at": "2026-05-12T15:00:00Z" })).await;
    let value = short["value"].as_str().unwrap();
    for _ in 0..60 {
        assert_eq!(read(value).await.0, 200);
    }
    assert_eq!(read(value).await.0, 429);
    assert_eq!(read(&feed_token(&server).await).await.0, 200, "another token has its own limit");
    server.clock.advance(1_800);
    let (status, answer) = read(value).await;
    assert!(status == 401 && answer.contains("token_expired"), "{answer}");
    let (_, listed) = server.get(path).await;
    assert_eq!(listed["total"], 2);
    assert!(!listed.to_string().contains(value) && !listed.to_string().contains("hash"), "{listed}");
    assert!(!server.get("/api/v1/audit?action=feed_token.create").await.1.to_string().contains(value));
    let token = feed_token(&server).await;
    let id = server.get(path).await.1["tokens"][0]["id"].clone();
    assert_eq!(read(&token).await.0, 200);
    assert_eq!(server.delete(&format!("{path}/{id}")).await.0, 200);
    assert_eq!(read(&token).await.0, 401);
    assert_eq!(server.delete(&format!("{path}/999")).await.0, 404);
    assert_eq!(server.post(path, &json!({ "name": "" })).await.0, 422);
    assert_eq!(server.post(path, &json!({ "name": "x", "expires_at": NOW })).await.0, 422);
    let admin = server.token("admin").await;
    let refused = server.client.get(format!("{}{path}", server.url)).bearer_auth(admin);
    assert_eq!(checked(refused).await.0, 403, "tokens are the owner's");
}

#[tokio::test]
async fn another_workspaces_data_never_shows_in_a_feed() {
    let server = Server::start().await;
    fill(&server).await;
    raw(&server.database, "INSERT INTO workspaces (name, created_at) VALUES ('other', 0)").await.unwrap();
    let ws = WorkspaceId(2);
    let now: Timestamp = NOW.parse().unwrap();
    let fact = Fact::new(now, &Actor::System { workspace: ws }, "test", "test");
    let secret = Secret::from_random([9; 32]);
    let name = NewFeedToken { name: "theirs".to_owned(), expires_at: None };
    server.store.create_feed_token(ws, &name, &secret.hash(), fact.clone()).await.unwrap();
    for feed in FEEDS {
        let theirs = text(&server, secret.reveal(), feed).await;
        assert_eq!(theirs.lines().filter(|line| !line.starts_with('#')).count(), 0, "{feed}: {theirs}");
    }
    let indicator = NewIndicator {
        value: IndicatorValue::parse("192.0.2.99").unwrap(),
        confidence: 0.9,
        source: "s".to_owned(),
        description: String::new(),
        first_seen: now,
        last_seen: now,
        expires_at: now.plus_secs(60),
    };
    server.store.import_indicators(ws, &[indicator], fact).await.unwrap();
    assert_eq!(text(&server, secret.reveal(), "plain.txt").await, "192.0.2.99\n");
    let ours = feed_token(&server).await;
    for feed in FEEDS {
        assert!(!text(&server, &ours, feed).await.contains("192.0.2.99"), "{feed}");
    }
    assert_eq!(server.get("/api/v1/workspace/feed-tokens").await.1["total"], 1);
    assert_eq!(server.delete("/api/v1/workspace/feed-tokens/1").await.0, 404);
    assert_eq!(server.get("/api/v1/threat-intel?value=192.0.2.99").await.1["total"], 0);
}

#[tokio::test]
async fn a_long_feed_is_sent_in_parts_and_cut_at_its_bound() {
    let server = Server::start().await;
    let many = "WITH RECURSIVE n(i) AS (SELECT 0 UNION ALL SELECT i + 1 FROM n WHERE i < 10499)
        INSERT INTO indicators (workspace_id, source, value, kind, confidence, description, first_seen, last_seen,
                                expires_at, created_at, updated_at)
        SELECT 1, 's', '198.18.' || (i / 250) || '.' || (i % 250), 'address', 0.6, '', 0, 253402300799999999,
               253402300799999999, 0, 0 FROM n";
    raw(&server.database, many).await.unwrap();
    let token = feed_token(&server).await;
    let plain = text(&server, &token, "plain.txt").await;
    assert_eq!(plain.lines().count(), 10_000);
    assert!(plain.starts_with("198.18.0.0\n198.18.0.1\n") && plain.ends_with("198.18.39.249\n"));
    let rules = text(&server, &token, "suricata.rules").await;
    let sids: BTreeSet<_> = rules.lines().zip(plain.lines()).map(|(rule, address)| sid_of(rule, address)).collect();
    assert_eq!((sids.len(), rules.lines().count()), (10_000, 10_000));
    assert_eq!(text(&server, &token, "suricata.rules").await, rules);
    assert_eq!(zeek_rows(&text(&server, &token, "zeek.intel").await).len(), 10_000);
}

#[tokio::test]
async fn a_window_is_created_shown_changed_and_deleted_and_holds_while_it_is_open() {
    let server = Server::start().await;
    let (node, other) = (server.deploy("edge-1").await, server.deploy("edge-2").await);
    let path = "/api/v1/maintenance";
    // The clock stands at a Tuesday, 14:30.
    let body = json!({ "name": "patches", "node": node.uuid,
        "schedule": { "type": "weekly", "weekday": "tuesday", "start": "14:00", "minutes": 45 } });
    let weekly = server.made(path, &body).await["window"].clone();
    assert_eq!((&weekly["open_until"], &weekly["enabled"]), (&json!("2026-05-12T14:45:00Z"), &json!(true)));
    let once =
        json!({ "name": "move", "schedule": { "type": "once", "starts_at": "2026-05-12T15:00:00Z", "minutes": 15 } });
    let once = server.made(path, &once).await["window"].clone();
    assert_eq!((&once["open_until"], &once["node"]), (&json!(null), &json!(null)));

    let ws = server.app.first_workspace().await.unwrap();
    let held = async |node: Option<&str>| {
        let until = server.app.held_until(ws, node.map(|n| n.parse().unwrap())).await.unwrap();
        until.map(|at| at.to_string()).unwrap_or_default()
    };
    let nodes = [Some(node.uuid.as_str()), Some(other.uuid.as_str()), None];
    let all = async || [held(nodes[0]).await, held(nodes[1]).await, held(nodes[2]).await];
    assert_eq!(all().await, ["2026-05-12T14:45:00Z", "", ""]);
    server.clock.advance(900);
    assert_eq!(all().await, ["", "", ""], "the end does not belong to it");
    server.clock.advance(900);
    let until = "2026-05-12T15:15:00Z";
    assert_eq!(all().await, [until, until, until]);
    let listed = async |query: &str| server.get(&format!("{path}?{query}")).await.1;
    let both = listed(&format!("node={}", node.uuid)).await;
    assert_eq!((&both["total"], &both["windows"][0]["open_until"]), (&json!(2), &json!(until)));
    assert_eq!(listed(&format!("node={}", other.uuid)).await["total"], 1);
    assert_eq!(listed("limit=501").await["error"]["code"], "invalid_parameter");

    let one = format!("{path}/{}", once["id"]);
    let (status, changed) = server.patch(&one, &json!({ "enabled": false })).await;
    assert_eq!((status, &changed["window"]["open_until"]), (200, &json!(null)));
    assert_eq!(all().await, ["", "", ""]);
    for (wrong, expected) in [
        (json!({ "schedule": { "type": "once", "starts_at": NOW, "minutes": 15 } }), 422),
        (json!({ "schedule": { "type": "weekly", "weekday": "monday", "start": "25:00", "minutes": 15 } }), 422),
        (json!({ "schedule": { "type": "weekly", "weekday": "monday", "start": "00:00", "minutes": 1_441 } }), 422),
        (json!({ "schedule": { "type": "weekly", "weekday": "someday", "start": "00:00", "minutes": 15 } }), 400),
        (json!({ "schedule": { "type": "once", "starts_at": "now", "minutes": 15 } }), 400),
        (json!({ "schedule": { "type": "once", "starts_at": NOW, "minutes": 15, "x": 1 } }), 400),
        (json!({ "node": node.uuid }), 400),
        (json!({ "name": "" }), 422),
    ] {
        assert_eq!(server.patch(&one, &wrong).await.0, expected, "{wrong}");
    }
    assert_eq!(server.get(&one).await.1["window"]["schedule"], once["schedule"]);
    let nobody = json!({ "name": "w", "node": UUID, "schedule": weekly["schedule"] });
    assert_eq!(server.post(path, &nobody).await.0, 422);
    assert_eq!(server.delete(&one).await.0, 200);
    assert_eq!(server.get(&one).await.0, 404);
    assert_eq!(server.patch(&one, &json!({ "name": "x" })).await.0, 404);
    assert_eq!(server.delete(&format!("/api/v1/nodes/{}", node.uuid)).await.0, 200);
    assert_eq!(listed("").await["total"], 0, "a node's windows go with it");
    let (_, audited) = server.get("/api/v1/audit?object=maintenance/2").await;
    let actions: Vec<_> = audited["records"].as_array().unwrap().iter().map(|r| r["action"].clone()).collect();
    assert_eq!(actions, ["maintenance.delete", "maintenance.update", "maintenance.create"]);
}
