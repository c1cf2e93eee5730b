//! Adapters: their end, and their tokens.

use serde_json::{Value, json};

use super::{ADAPTERS, RULES, contract, make, refused, rule, wanted, webhook};
use crate::receiver::{Mood, Receiver, TOKEN};
use crate::support::Server;

contract! {
    an_adapter_goes_after_its_rules,
    tokens_are_sealed_and_never_shown,
}

async fn an_adapter_goes_after_its_rules(server: Server) {
    let receiver = Receiver::start().await;
    let adapter = webhook(&server, &receiver.url).await;
    let announced = make(&server, "203.0.113.5", adapter).await;
    server.app.reconcile_due().await.unwrap();
    let never = make(&server, "203.0.113.6", adapter).await;
    let elsewhere = json!({ "adapter_type": "webhook", "name": "hook", "endpoint": "https://bgp.example" });
    refused(&server, ADAPTERS, &elsewhere, 422, "endpoint").await;

    let mut smaller = json!({ "adapter_type": "webhook", "name": "hook", "endpoint": receiver.url });
    refused(&server, ADAPTERS, &smaller, 422, "config.prefixes").await;
    smaller["config"] = json!({ "prefixes": ["203.0.113.4/30"] });
    server.made(ADAPTERS, &smaller).await;

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
