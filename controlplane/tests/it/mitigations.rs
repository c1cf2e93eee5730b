//! Mitigation rules, adapters, escalation and scrubbing: through the API, a real receiver, and both databases.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use controlplane::app::CaptureLimits;
use controlplane::domain::{Actor, Fact, Intent, MitigationStatus, NewMitigation, Outcome};
use controlplane::store::sql::Database;
use reqwest::{Client, Method};
use serde_json::{Value, json};

use crate::cluster::{Cluster, settings};
use crate::process::{Process, json_of};
use crate::receiver::{Mood, Receiver, TOKEN};
use crate::support::{Server, checked};

const RULES: &str = "/api/v1/mitigation/rules";
const HISTORY: &str = "/api/v1/mitigation/rules/history";
const ADAPTERS: &str = "/api/v1/mitigation/adapters";

async fn sqlite() -> Server {
    let folder = tempfile::tempdir().unwrap();
    let database = Database::Sqlite(folder.path().join("cp.sqlite"));
    Server::start_on(&database, folder, None, CaptureLimits::default()).await
}

async fn postgres() -> Option<Server> {
    let cluster = Cluster::shared()?;
    let database = settings(&cluster.database().await);
    let folder = tempfile::tempdir().unwrap();
    Some(Server::start_on(&database, folder, Some(cluster), CaptureLimits::default()).await)
}

macro_rules! contract {
    ($($test:ident),+ $(,)?) => {
        mod on_sqlite {
            $(#[tokio::test]
            async fn $test() {
                super::$test(super::sqlite().await).await;
            })+
        }

        mod on_postgres {
            $(#[tokio::test]
            async fn $test() {
                if let Some(server) = super::postgres().await {
                    super::$test(server).await;
                }
            })+
        }
    };
}

contract! {
    a_rule_is_announced_once_and_withdrawn_once,
    failures_are_tried_again_and_refusals_are_not,
    a_withdrawal_waits_for_the_announcement_under_way,
    a_withdrawal_in_the_moment_of_the_announcement_is_not_lost,
    a_rule_ends_with_its_time_or_when_its_target_is_allowlisted,
    a_claim_is_one_processes_alone_until_it_ends,
    what_the_guard_refuses_is_never_stored,
    a_workspace_has_no_more_rules_than_its_quota,
    an_adapter_goes_after_its_rules,
    tokens_are_sealed_and_never_shown,
    the_policy_keeps_what_is_not_named,
    scrubbing_is_kept_and_never_pretended,
}

async fn webhook(server: &Server, url: &str) -> i64 {
    let body = json!({ "adapter_type": "webhook", "name": "hook", "endpoint": url, "auth_token": TOKEN,
        "config": { "asn": 64500, "communities": ["65535:666"] } });
    server.made(ADAPTERS, &body).await["adapter"]["id"].as_i64().unwrap()
}

fn wanted(target: &str, adapter: i64) -> Value {
    json!({ "target_ip": target, "intent_type": "blackhole", "adapter_id": adapter })
}

async fn make(server: &Server, target: &str, adapter: i64) -> i64 {
    let made = server.made(RULES, &wanted(target, adapter)).await;
    assert_eq!(made["rule"]["status"], "pending");
    made["rule"]["id"].as_i64().unwrap()
}

async fn end(server: &Server, id: i64) -> Value {
    server.made(&format!("{RULES}/{id}/withdraw"), &json!({})).await["rule"].clone()
}

/// The rule of the history with this id.
async fn rule(server: &Server, id: i64) -> Value {
    let (_, listed) = server.get(&format!("{HISTORY}?limit=500")).await;
    listed["rules"].as_array().unwrap().iter().find(|rule| rule["id"] == id).unwrap().clone()
}

async fn refused(server: &Server, path: &str, body: &Value, status: u16, field: &str) -> Value {
    let (got, answer) = server.post(path, body).await;
    assert_eq!(got, status, "{path} {body}: {answer}");
    assert_eq!(answer["error"]["details"][0]["field"], field, "{path} {body}: {answer}");
    answer
}

async fn a_rule_is_announced_once_and_withdrawn_once(server: Server) {
    let receiver = Receiver::start().await;
    let adapter = webhook(&server, &receiver.url).await;
    let body = json!({ "target_ip": "203.0.113.5", "intent_type": "flowspec", "adapter_id": adapter, "ttl": 600,
        "reason": "udp flood" });
    let made = server.made(RULES, &body).await["rule"].clone();
    assert_eq!(
        (&made["target_ip"], &made["ttl"], &made["status"]),
        (&json!("203.0.113.5"), &json!(600), &json!("pending"))
    );
    assert_eq!(made["expires_at"], "2026-05-12T14:40:00Z");
    assert_eq!(server.app.reconcile_due().await.unwrap(), 1);
    assert_eq!(server.app.reconcile_due().await.unwrap(), 0, "nothing is left to do");
    let id = made["id"].as_i64().unwrap();
    let active = rule(&server, id).await;
    assert_eq!((&active["status"], &active["attempts"]), (&json!("active"), &json!(1)));
    assert_eq!(active["announced_at"], crate::support::NOW);

    assert_eq!(end(&server, id).await["status"], "withdrawing");
    assert_eq!(end(&server, id).await["status"], "withdrawing", "twice is once");
    assert_eq!(server.get(RULES).await.1["total"], 1, "it is live until that is confirmed");
    assert_eq!(server.app.reconcile_due().await.unwrap(), 1);
    assert_eq!(rule(&server, id).await["status"], "withdrawn");
    assert_eq!(end(&server, id).await["status"], "withdrawn", "what is gone is gone");
    assert_eq!(server.get(RULES).await.1["total"], 0);
    assert_eq!(server.get(HISTORY).await.1["total"], 1);

    let got = receiver.got();
    assert_eq!(receiver.actions(), ["announce", "withdraw"]);
    let uuid = made["uuid"].as_str().unwrap();
    assert_eq!(got[0].key, Some(format!("{uuid}:announce")));
    assert_eq!(got[1].key, Some(format!("{uuid}:withdraw")));
    let first = &got[0].body;
    for (key, value) in [
        ("version", json!(1)),
        ("rule_id", json!(id)),
        ("rule_uuid", json!(uuid)),
        ("adapter_id", json!(adapter)),
        ("adapter_name", json!("hook")),
        ("target", json!("203.0.113.5/32")),
        ("intent", json!("flowspec")),
        ("ttl", json!(600)),
        ("expires_at", json!("2026-05-12T14:40:00Z")),
        ("reason", json!("udp flood")),
        ("asn", json!(64500)),
        ("communities", json!(["65535:666"])),
        ("next_hop", Value::Null),
        ("sent_at", json!(crate::support::NOW)),
    ] {
        assert_eq!(first[key], value, "{key}");
    }
    let (_, audit) = server.get("/api/v1/audit?limit=500").await;
    let facts: Vec<_> = audit["records"].as_array().unwrap().iter().map(|r| r["action"].as_str().unwrap()).collect();
    for action in
        ["adapter.save", "mitigation.create", "mitigation.announced", "mitigation.withdraw", "mitigation.ended"]
    {
        assert_eq!(facts.iter().filter(|fact| **fact == action).count(), 1, "{action} in {facts:?}");
    }
    assert_eq!(server.get("/api/v1/audit/verify").await.1["intact"], json!(true));
}

async fn failures_are_tried_again_and_refusals_are_not(server: Server) {
    let receiver = Receiver::start().await;
    let adapter = webhook(&server, &receiver.url).await;
    let id = make(&server, "203.0.113.5", adapter).await;
    for (n, mood) in [Mood::Answer(500), Mood::Flood, Mood::Answer(429)].into_iter().enumerate() {
        receiver.turn(mood);
        assert_eq!(server.app.reconcile_due().await.unwrap(), 1, "{mood:?}");
        let waiting = rule(&server, id).await;
        assert_eq!((&waiting["status"], &waiting["attempts"]), (&json!("pending"), &json!(n + 1)), "{mood:?}");
        assert!(!waiting["last_error"].as_str().unwrap().is_empty() && waiting["next_attempt_at"].is_string());
        assert_eq!(server.app.reconcile_due().await.unwrap(), 0, "it waits");
        assert_eq!(server.get(ADAPTERS).await.1["adapters"][0]["status"], "unreachable");
        server.clock.advance(10);
    }
    receiver.turn(Mood::Take);
    assert_eq!(server.app.reconcile_due().await.unwrap(), 1);
    assert_eq!(rule(&server, id).await["status"], "active");
    assert_eq!(server.get(ADAPTERS).await.1["adapters"][0]["status"], "connected");
    let keys: HashSet<_> = receiver.got().into_iter().map(|got| got.key).collect();
    assert_eq!(keys.len(), 1, "one key for all tries");

    for (mood, target, word) in
        [(Mood::Answer(403), "203.0.113.6", "403: as asked"), (Mood::Redirect, "203.0.113.7", "307")]
    {
        receiver.turn(mood);
        let id = make(&server, target, adapter).await;
        server.app.reconcile_due().await.unwrap();
        let failed = rule(&server, id).await;
        assert_eq!(failed["status"], "failed", "{mood:?}");
        assert!(failed["last_error"].as_str().unwrap().contains(word), "{failed}");
    }
    assert_eq!(receiver.elsewhere(), 0, "redirects are not followed");

    // Given up after eight tries; what may have been announced is withdrawn.
    receiver.turn(Mood::Answer(500));
    let id = make(&server, "203.0.113.8", adapter).await;
    for _ in 0..8 {
        server.app.reconcile_due().await.unwrap();
        server.clock.advance(80);
    }
    assert_eq!(rule(&server, id).await["status"], "withdrawing");
    receiver.turn(Mood::Answer(404));
    server.clock.advance(400);
    server.app.reconcile_due().await.unwrap();
    assert_eq!(rule(&server, id).await["status"], "failed", "nothing is announced, and that is confirmed");
    assert_eq!(server.get(RULES).await.1["total"], 1, "the one that is active");
}

async fn a_withdrawal_waits_for_the_announcement_under_way(server: Server) {
    let receiver = Receiver::start().await;
    let adapter = webhook(&server, &receiver.url).await;
    let id = make(&server, "203.0.113.5", adapter).await;
    receiver.turn(Mood::After(Duration::from_millis(500)));
    let app = server.app.clone();
    let under_way = tokio::spawn(async move { app.reconcile_due().await.unwrap() });
    receiver.wait_for(1).await;
    assert_eq!(end(&server, id).await["status"], "withdrawing");
    assert_eq!(server.app.reconcile_due().await.unwrap(), 0, "not while the announcement is under way");
    assert_eq!(receiver.actions(), ["announce"]);
    under_way.await.unwrap();
    server.app.reconcile_due().await.unwrap();
    assert_eq!(receiver.actions(), ["announce", "withdraw"]);
    assert_eq!(rule(&server, id).await["status"], "withdrawn");

    let never = make(&server, "203.0.113.6", adapter).await;
    assert_eq!(end(&server, never).await["status"], "withdrawn", "it was never sent");
    assert_eq!(server.app.reconcile_due().await.unwrap(), 0);
}

async fn a_withdrawal_in_the_moment_of_the_announcement_is_not_lost(server: Server) {
    let receiver = Receiver::start().await;
    let adapter = webhook(&server, &receiver.url).await;
    let mut ids = Vec::new();
    for n in 1..=60 {
        ids.push(make(&server, &format!("203.0.113.{n}"), adapter).await);
    }
    let jobs: Vec<_> = (0..3)
        .map(|_| {
            let app = server.app.clone();
            tokio::spawn(async move { app.reconcile_due().await.unwrap() })
        })
        .collect();
    for id in &ids {
        end(&server, *id).await;
    }
    for job in jobs {
        job.await.unwrap();
    }
    server.app.reconcile_due().await.unwrap();
    assert_eq!(server.get(RULES).await.1["total"], 0);
    let mut last = std::collections::HashMap::new();
    for got in receiver.got() {
        last.insert(got.body["rule_id"].as_i64().unwrap(), got.action().to_owned());
    }
    println!("{} of 60 were announced before their end", last.len());
    assert!(last.values().all(|action| action == "withdraw"), "{last:?}");
}

async fn a_rule_ends_with_its_time_or_when_its_target_is_allowlisted(server: Server) {
    let receiver = Receiver::start().await;
    let adapter = webhook(&server, &receiver.url).await;
    let mut body = wanted("203.0.113.5", adapter);
    body["ttl"] = json!(60);
    let short = server.made(RULES, &body).await["rule"]["id"].as_i64().unwrap();
    let long = make(&server, "203.0.113.0/28", adapter).await;
    server.app.reconcile_due().await.unwrap();
    server.clock.advance(59);
    assert_eq!(server.app.reconcile_due().await.unwrap(), 0);
    server.clock.advance(1);
    assert_eq!(server.app.reconcile_due().await.unwrap(), 1);
    assert_eq!(rule(&server, short).await["status"], "expired");
    assert_eq!(rule(&server, long).await["status"], "active", "0 is without an end");

    server.made("/api/v1/allowlist", &json!({ "ip_address": "198.51.100.1" })).await;
    assert_eq!(server.app.reconcile_due().await.unwrap(), 0, "somebody else's");
    server.made("/api/v1/allowlist", &json!({ "ip_address": "203.0.113.9" })).await;
    assert_eq!(server.app.reconcile_due().await.unwrap(), 1);
    let ended = rule(&server, long).await;
    assert_eq!(ended["status"], "withdrawn");
    let actions = receiver.actions();
    assert_eq!(actions.iter().filter(|a| *a == "withdraw").count(), 2, "{actions:?}");
}

async fn a_claim_is_one_processes_alone_until_it_ends(server: Server) {
    let receiver = Receiver::start().await;
    let adapter = webhook(&server, &receiver.url).await;
    let id = make(&server, "203.0.113.5", adapter).await;
    let (store, now) = (&server.store, server.app.now());
    let first = store.claim_mitigation(now, &[]).await.unwrap().unwrap();
    assert_eq!((first.rule.id, first.rule.attempts), (id, 1));
    assert!(store.claim_mitigation(now.plus_secs(19), &[]).await.unwrap().is_none());
    let later = now.plus_secs(20);
    assert!(store.claim_mitigation(later, &[adapter]).await.unwrap().is_none(), "its adapter is busy");
    let second = store.claim_mitigation(later, &[]).await.unwrap().unwrap();
    assert_eq!((second.rule.id, second.rule.attempts), (id, 2));
    let settle = async |claimed| {
        let done = Outcome::Done;
        store.settle_mitigation(claimed, MitigationStatus::Pending, &done, later).await.unwrap()
    };
    assert_eq!(settle(&first).await, None, "it was lost");
    assert_eq!(settle(&second).await.unwrap().status, MitigationStatus::Active);
    assert_eq!(settle(&second).await, None, "it is over");
}

async fn what_the_guard_refuses_is_never_stored(server: Server) {
    let receiver = Receiver::start().await;
    let adapter = webhook(&server, &receiver.url).await;
    for (n, kind) in ["exabgp", "gobgp", "cloudflare", "bird2", "frr", "radware", "f5"].into_iter().enumerate() {
        let body = json!({ "adapter_type": kind, "name": kind, "endpoint": "https://bgp.example" });
        let made = server.made(ADAPTERS, &body).await["adapter"].clone();
        assert_eq!(made["status"], "not_connected", "{kind}");
        let mut body = wanted("203.0.113.5", made["id"].as_i64().unwrap());
        body["intent_type"] = made["capabilities"][0].clone();
        let answer = refused(&server, RULES, &body, 422, "adapter_id").await;
        assert!(answer["error"]["message"].as_str().unwrap().contains("not connected"), "{answer}");
        let tested = server.made(&format!("{ADAPTERS}/{}/test", made["id"]), &json!({})).await;
        assert_eq!((&tested["test"]["success"], &tested["status"]), (&json!(false), &json!("not_connected")));
        assert_eq!(made["id"], adapter + 1 + i64::try_from(n).unwrap());
    }
    let node = server.deploy("edge-1").await;
    server.made("/api/v1/allowlist", &json!({ "ip_address": "203.0.113.80/29" })).await;
    let own = json!({ "ip_address": "203.0.113.200", "scope": "node", "node": node.uuid });
    server.made("/api/v1/allowlist", &own).await;
    for (target, part) in [
        ("203.0.113.81", "is within 203.0.113.80/29"),
        ("203.0.113.80/29", "is allowlisted"),
        ("203.0.113.0/24", "contains 203.0.113"),
        ("203.0.113.200", "is allowlisted"),
        ("0.0.0.0/0", "wider than /8"),
        ("198.0.0.0/7", "wider than /8"),
        ("::/0", "wider than /19"),
        ("2001:c000::/18", "wider than /19"),
        ("127.0.0.1", "host itself"),
        ("::ffff:203.0.113.81", "write it as IPv4"),
        ("here", "must be"),
    ] {
        let answer = refused(&server, RULES, &wanted(target, adapter), 422, "target_ip").await;
        assert!(answer["error"]["message"].as_str().unwrap().contains(part), "{target}: {answer}");
    }
    refused(&server, RULES, &wanted("203.0.113.5", 9_999), 422, "adapter_id").await;
    let mut body = wanted("203.0.113.5", adapter);
    body["ttl"] = json!(31_536_001);
    refused(&server, RULES, &body, 422, "ttl").await;
    let own = json!({ "adapter_type": "webhook", "name": "own", "endpoint": receiver.url, "capabilities": ["scrubbing"],
        "config": { "prefixes": ["198.51.100.0/24"] } });
    let own = server.made(ADAPTERS, &own).await["adapter"]["id"].as_i64().unwrap();
    refused(&server, RULES, &wanted("198.51.100.1", own), 422, "intent_type").await;
    let mut body = wanted("203.0.113.5", own);
    body["intent_type"] = json!("scrubbing");
    refused(&server, RULES, &body, 422, "target_ip").await;
    assert_eq!(server.get(HISTORY).await.1["total"], 0, "nothing of it is stored");
    assert_eq!(server.app.reconcile_due().await.unwrap(), 0);
    assert!(receiver.got().is_empty());

    make(&server, "203.0.113.5", adapter).await;
    let (status, answer) = server.post(RULES, &wanted("203.0.113.5/32", adapter)).await;
    assert_eq!((status, &answer["error"]["code"]), (409, &json!("already_exists")));
    for (path, field) in [("?limit=0", "limit"), ("?limit=501", "limit"), ("?offset=-1", "offset")] {
        for list in [RULES, HISTORY, ADAPTERS, "/api/v1/scrubbing"] {
            let (status, answer) = server.get(&format!("{list}{path}")).await;
            assert_eq!((status, &answer["error"]["details"][0]["field"]), (400, &json!(field)), "{list}{path}");
        }
    }
    for (path, body) in [
        (RULES, json!({ "intent_type": "blackhole", "adapter_id": 1 })),
        (RULES, json!({ "target_ip": "203.0.113.5", "intent_type": "drop", "adapter_id": 1 })),
        (RULES, json!({ "target_ip": "203.0.113.5", "intent_type": "blackhole", "adapter_id": 1, "ttl": -1 })),
        (ADAPTERS, json!({ "adapter_type": "quagga", "name": "a", "endpoint": "https://a" })),
        (ADAPTERS, json!({ "adapter_type": "webhook", "name": "a" })),
    ] {
        assert_eq!(server.post(path, &body).await.0, 400, "{body}");
    }
    for path in [format!("{RULES}/9999/withdraw"), format!("{ADAPTERS}/9999/test")] {
        assert_eq!(server.post(&path, &json!({})).await.0, 404, "{path}");
    }
    assert_eq!(server.delete(&format!("{ADAPTERS}/9999")).await.0, 404);
}

async fn a_workspace_has_no_more_rules_than_its_quota(server: Server) {
    let adapter = webhook(&server, "http://127.0.0.1:9/").await;
    let ws = server.store.first_workspace().await.unwrap();
    let make = async |n: u32| {
        let target = format!("203.0.{}.{}", n / 250, n % 250);
        let new = NewMitigation::parse(&target, Intent::Blackhole, adapter, 0, String::new()).unwrap();
        let fact = Fact::new(server.app.now(), &Actor::System { workspace: ws }, "test", "mitigation");
        server.store.create_mitigation(ws, new, fact).await
    };
    for n in 0..200 {
        make(n).await.unwrap();
    }
    assert!(make(200).await.unwrap_err().to_string().contains("200 rules already"));
    let (_, listed) = server.get(&format!("{RULES}?limit=1")).await;
    end(&server, listed["rules"][0]["id"].as_i64().unwrap()).await;
    make(200).await.unwrap();
}

async fn an_adapter_goes_after_its_rules(server: Server) {
    let receiver = Receiver::start().await;
    let adapter = webhook(&server, &receiver.url).await;
    let announced = make(&server, "203.0.113.5", adapter).await;
    server.app.reconcile_due().await.unwrap();
    let never = make(&server, "203.0.113.6", adapter).await;
    let elsewhere = json!({ "adapter_type": "webhook", "name": "hook", "endpoint": "https://bgp.example" });
    refused(&server, ADAPTERS, &elsewhere, 422, "endpoint").await;

    receiver.turn(Mood::Answer(503));
    let (status, answer) = server.delete(&format!("{ADAPTERS}/{adapter}")).await;
    assert_eq!((status, &answer["withdrawing"]), (200, &json!(1)), "{answer}");
    assert_eq!(rule(&server, never).await["status"], "withdrawn");
    server.app.reconcile_due().await.unwrap();
    assert_eq!(server.get(ADAPTERS).await.1["adapters"][0]["status"], "deleting", "not before that is confirmed");
    refused(&server, RULES, &wanted("203.0.113.7", adapter), 422, "adapter_id").await;
    refused(&server, ADAPTERS, &elsewhere, 422, "name").await;
    receiver.turn(Mood::Take);
    server.clock.advance(10);
    server.app.reconcile_due().await.unwrap();
    assert_eq!(server.get(ADAPTERS).await.1["total"], 0);
    let ended = rule(&server, announced).await;
    assert_eq!((&ended["status"], &ended["adapter_name"]), (&json!("withdrawn"), &json!("hook")), "the history stays");
}

async fn tokens_are_sealed_and_never_shown(server: Server) {
    let receiver = Receiver::start().await;
    let adapter = webhook(&server, &receiver.url).await;
    let (_, listed) = server.get(ADAPTERS).await;
    assert_eq!(listed["adapters"][0]["has_auth_token"], true);
    assert!(listed["adapters"][0].get("auth_token").is_none());
    let tested = server.made(&format!("{ADAPTERS}/{adapter}/test"), &json!({})).await;
    assert_eq!((&tested["status"], &tested["test"]["success"]), (&json!("connected"), &json!(true)), "{tested}");
    assert_eq!(receiver.actions(), ["test"]);

    // Without a token in the body the old one stays, but is not given to another receiver.
    let mut body = json!({ "adapter_type": "webhook", "name": "hook", "endpoint": receiver.url });
    assert_eq!(server.made(ADAPTERS, &body).await["adapter"]["has_auth_token"], true);
    body["endpoint"] = json!("https://elsewhere.example");
    refused(&server, ADAPTERS, &body, 422, "auth_token").await;
    body["endpoint"] = json!(receiver.url);
    body["auth_token"] = json!("wrong");
    server.made(ADAPTERS, &body).await;
    let tested = server.made(&format!("{ADAPTERS}/{adapter}/test"), &json!({})).await;
    assert_eq!((&tested["test"]["success"], &tested["test"]["http_status"]), (&json!(false), &json!(401)), "{tested}");
    body["auth_token"] = Value::Null;
    assert_eq!(server.made(ADAPTERS, &body).await["adapter"]["has_auth_token"], false);
    body["auth_token"] = json!("a\nb");
    let answer = refused(&server, ADAPTERS, &body, 422, "auth_token").await;
    assert!(!answer.to_string().contains("a\\nb"));
    body["auth_token"] = json!(TOKEN);
    server.made(ADAPTERS, &body).await;

    let (_, audit) = server.get("/api/v1/audit?limit=500").await;
    assert!(!audit.to_string().contains(TOKEN));
    let kept = server.store.adapter(server.store.first_workspace().await.unwrap(), adapter).await.unwrap();
    let sealed = kept.auth_token.unwrap();
    assert!(!sealed.windows(TOKEN.len()).any(|w| w == TOKEN.as_bytes()));
}

async fn the_policy_keeps_what_is_not_named(server: Server) {
    const PATH: &str = "/api/v1/mitigation/escalation";
    let (_, first) = server.get(PATH).await;
    assert_eq!(
        first["escalation"],
        json!({ "thresholds": {}, "ttl": {}, "baseline_mode": "dynamic",
        "geo_lockdown": null, "dry_run": true, "updated_at": null })
    );
    let body = json!({ "thresholds": { "tier1_bps": 1_000_000, "tier2_bps": 5_000_000 }, "ttl": { "tier1": 300 },
        "baseline_mode": "static", "geo_lockdown": { "countries": ["de", "FR"], "action": "block" }, "dry_run": false });
    let saved = server.made(PATH, &body).await["escalation"].clone();
    assert_eq!(saved["geo_lockdown"], json!({ "countries": ["DE", "FR"], "action": "block" }));
    assert_eq!(saved["updated_at"], crate::support::NOW);
    let changed = server.made(PATH, &json!({ "geo_lockdown": null })).await["escalation"].clone();
    assert_eq!((&changed["geo_lockdown"], &changed["thresholds"]), (&Value::Null, &body["thresholds"]));
    assert_eq!(server.get(PATH).await.1["escalation"], changed);
    for (body, field) in [
        (json!({ "thresholds": { "tier1_bps": 5, "tier2_bps": 4 } }), "thresholds"),
        (json!({ "thresholds": { "tier1_bps": 0 } }), "thresholds.tier1_bps"),
        (json!({ "ttl": { "tier1": 31_536_001 } }), "ttl.tier1"),
        (json!({ "geo_lockdown": { "countries": ["XX"], "action": "block" } }), "geo_lockdown.countries"),
    ] {
        refused(&server, PATH, &body, 422, field).await;
    }
    for body in [json!({ "baseline_mode": "guess" }), json!({ "tiers": 3 }), json!({ "dry_run": "no" })] {
        assert_eq!(server.post(PATH, &body).await.0, 400, "{body}");
    }
    assert_eq!(server.get(PATH).await.1["escalation"], changed, "what was refused changed nothing");
}

async fn scrubbing_is_kept_and_never_pretended(server: Server) {
    const PATH: &str = "/api/v1/scrubbing";
    let table: [(&str, &[&str]); 8] = [
        ("cloudflare_magic_transit", &["account_id", "api_token"]),
        ("ovh_mitigation", &["application_key", "application_secret", "consumer_key"]),
        ("hetzner_mitigation", &["user", "password"]),
        ("cloudflare_waf", &["zone_id", "api_token"]),
        ("digitalocean", &["api_token"]),
        ("vultr", &["api_key"]),
        ("aws_shield", &["access_key_id", "secret_access_key", "region"]),
        ("linode", &["api_token"]),
    ];
    for (provider, names) in table {
        let credentials: serde_json::Map<_, _> = names.iter().map(|n| ((*n).to_owned(), json!("sesame"))).collect();
        let mut body = json!({ "name": provider, "provider": provider, "credentials": credentials,
            "prefixes": ["203.0.113.0/24"] });
        let made = server.made(PATH, &body).await["integration"].clone();
        assert_eq!((&made["status"], &made["has_credentials"]), (&json!("not_connected"), &json!(true)));
        assert_eq!(server.post(PATH, &body).await.0, 409);
        body["credentials"] = json!({});
        body["name"] = json!("other");
        assert_eq!(server.post(PATH, &body).await.0, 422);
        let one = format!("{PATH}/{}", made["id"]);
        let (_, status) = server.get(&format!("{one}/status")).await;
        assert_eq!((&status["status"], &status["diverting"]), (&json!("not_connected"), &json!(false)));
        assert_eq!(status["provider"], provider);
        let tested = server.made(&format!("{one}/test"), &json!({})).await;
        assert_eq!(tested["test"]["success"], false);
        for action in ["announce", "withdraw"] {
            let answer = refused(&server, &format!("{one}/{action}"), &json!({}), 422, "provider").await;
            assert!(answer["error"]["message"].as_str().unwrap().contains("not connected"), "{answer}");
        }
        let patched = server.patch(&one, &json!({ "prefixes": [], "credentials": credentials })).await;
        assert_eq!((patched.0, &patched.1["integration"]["prefixes"]), (200, &json!([])));
        assert_eq!(server.patch(&one, &json!({ "credentials": { "other": "sesame" } })).await.0, 422);
        assert_eq!(server.patch(&one, &json!({ "name": "" })).await.0, 422);
    }
    let (_, listed) = server.get(PATH).await;
    assert_eq!(listed["total"], 8);
    let (_, audit) = server.get("/api/v1/audit?limit=500").await;
    assert!(!listed.to_string().contains("sesame") && !audit.to_string().contains("sesame"));
    let one = format!("{PATH}/{}", listed["integrations"][0]["id"]);
    assert_eq!(server.delete(&one).await.0, 200);
    assert_eq!(server.delete(&one).await.0, 404);
    assert_eq!(server.get(&format!("{one}/status")).await.0, 404);
    assert_eq!(server.post(PATH, &json!({ "name": "a", "provider": "akamai", "credentials": {} })).await.0, 400);
}

#[tokio::test]
async fn a_receiver_that_hangs_holds_up_its_own_rules_alone() {
    let server = sqlite().await;
    let (dead, live) = (Receiver::start().await, Receiver::start().await);
    dead.turn(Mood::Hang);
    let stuck = webhook(&server, &dead.url).await;
    let body = json!({ "adapter_type": "webhook", "name": "live", "endpoint": live.url, "auth_token": TOKEN });
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
    let hook = json!({ "adapter_type": "webhook", "name": "hook", "endpoint": receiver.url, "auth_token": TOKEN });
    assert_eq!(post(&process, ADAPTERS, &hook).await.0, 200);
    let (_, tested) = post(&process, &format!("{ADAPTERS}/1/test"), &json!({})).await;
    let message = tested["test"]["message"].as_str().unwrap();
    assert!(message.contains("mitigation_private_endpoints"), "loopback needs leave: {tested}");
    assert!(receiver.got().is_empty());
    drop(process);

    let config = folder.path().join("cp.toml");
    std::fs::write(&config, "mitigation_private_endpoints = true\n").unwrap();
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
    assert_eq!((&listed["rules"][0]["status"], &listed["rules"][0]["attempts"]), (&json!("pending"), &json!(1)));
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
