//! Mitigation rules, adapters, escalation and scrubbing: through the API, a real receiver, and both databases.

mod adapters;
mod course;
mod escalation;
mod guard;
mod processes;
mod scrubbing;

use serde_json::{Value, json};

use crate::receiver::TOKEN;
use crate::servers::contract;
use crate::support::Server;

const RULES: &str = "/api/v1/mitigation/rules";
const HISTORY: &str = "/api/v1/mitigation/rules/history";
const ADAPTERS: &str = "/api/v1/mitigation/adapters";

async fn webhook(server: &Server, url: &str) -> i64 {
    let body = json!({ "adapter_type": "webhook", "name": "hook", "endpoint": url, "auth_token": TOKEN,
        "config": { "local_as": 64500, "communities": ["65535:666"], "prefixes": ["203.0.0.0/16"] } });
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
