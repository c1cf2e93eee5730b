//! How rules go: announced, tried again, withdrawn, ended.

use std::collections::HashSet;
use std::time::Duration;

use controlplane::domain::{MitigationStatus, Outcome};
use controlplane::store::sql::Database;
use serde_json::{Value, json};

use super::{ADAPTERS, HISTORY, RULES, contract, end, make, rule, wanted, webhook};
use crate::receiver::{Mood, Receiver};
use crate::support::Server;

contract! {
    a_rule_is_announced_once_and_withdrawn_once,
    failures_are_tried_again_and_refusals_are_not,
    a_withdrawal_waits_for_the_announcement_under_way,
    a_withdrawal_in_the_moment_of_the_announcement_is_not_lost,
    a_target_rests_after_its_rule_ended,
    a_rule_ends_with_its_time_or_when_its_target_is_allowlisted,
    a_claim_is_one_processes_alone_until_it_ends,
    what_a_killed_server_had_claimed_is_free_where_no_other_serves,
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
        ("local_as", json!(64500)),
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
    for (n, mood) in [Mood::Answer(500), Mood::Answer(503), Mood::Answer(429)].into_iter().enumerate() {
        receiver.turn(mood);
        assert_eq!(server.app.reconcile_due().await.unwrap(), 1, "{mood:?}");
        let waiting = rule(&server, id).await;
        assert_eq!((&waiting["status"], &waiting["attempts"]), (&json!("pending"), &json!(n + 1)), "{mood:?}");
        assert!(!waiting["last_error"].as_str().unwrap().is_empty() && waiting["next_attempt_at"].is_string());
        assert_eq!(server.app.reconcile_due().await.unwrap(), 0, "it waits");
        assert_eq!(server.get(ADAPTERS).await.1["adapters"][0]["status"], "unreachable");
        server.clock.advance(10);
    }
    // What it says beyond the status is not waited for.
    receiver.turn(Mood::Flood);
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

async fn a_target_rests_after_its_rule_ended(server: Server) {
    let receiver = Receiver::start().await;
    let adapter = webhook(&server, &receiver.url).await;
    let never = make(&server, "203.0.113.6", adapter).await;
    end(&server, never).await;
    let id = make(&server, "203.0.113.6", adapter).await;
    server.app.reconcile_due().await.unwrap();
    end(&server, id).await;
    server.app.reconcile_due().await.unwrap();
    server.clock.advance(59);
    let sent = server.request(reqwest::Method::POST, RULES).json(&wanted("203.0.113.6", adapter)).send().await.unwrap();
    assert_eq!((sent.status().as_u16(), &sent.headers()["retry-after"]), (429, &"1".parse().unwrap()));
    let other = make(&server, "203.0.113.7", adapter).await;
    assert_eq!(rule(&server, other).await["status"], "pending");
    server.clock.advance(1);
    make(&server, "203.0.113.6", adapter).await;
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

async fn what_a_killed_server_had_claimed_is_free_where_no_other_serves(server: Server) {
    let receiver = Receiver::start().await;
    let adapter = webhook(&server, &receiver.url).await;
    make(&server, "203.0.113.5", adapter).await;
    let (store, now) = (&server.store, server.app.now());
    assert!(store.claim_mitigation(now, &[]).await.unwrap().is_some());
    server.app.take_over().await.unwrap();
    let alone = matches!(server.database, Database::Sqlite(_));
    assert_eq!(store.claim_mitigation(now, &[]).await.unwrap().is_some(), alone);
}
