//! The OpenAPI document says what is so.

use std::collections::BTreeSet;

use reqwest::Method;
use serde_json::Value;

use crate::support::{Server, checked};
use crate::world::World;

const METHODS: [&str; 8] = ["get", "post", "put", "patch", "delete", "head", "options", "trace"];

fn operations(document: &Value) -> impl Iterator<Item = (&String, &String, &Value)> {
    let paths = document["paths"].as_object().unwrap();
    paths.iter().flat_map(|(path, item)| {
        let item = item.as_object().unwrap();
        item.iter().filter(|(m, _)| METHODS.contains(&m.as_str())).map(move |(method, op)| (path, method, op))
    })
}

#[test]
fn every_operation_is_described_with_its_errors() {
    let document = serde_json::to_value(controlplane::http::document()).unwrap();
    assert!(document["openapi"].as_str().unwrap().starts_with("3.1"));
    let mut ids = BTreeSet::new();
    let mut count = 0;
    for (path, method, operation) in operations(&document) {
        count += 1;
        let name = format!("{method} {path}");
        assert!(operation["summary"].as_str().is_some_and(|s| s.len() > 10), "{name} has no summary");
        assert!(operation["tags"].as_array().is_some_and(|t| !t.is_empty()), "{name} has no tag");
        assert!(ids.insert(operation["operationId"].as_str().unwrap().to_owned()), "{name} has another's operationId");
        let responses = operation["responses"].as_object().unwrap();
        for status in ["200", "400", "429", "500", "503"] {
            assert!(responses.contains_key(status), "{name} lacks {status}");
        }
        let system = operation["tags"][0] == "system";
        assert_eq!(responses.contains_key("401"), !system, "{name}");
        if !system {
            assert!(operation["security"].as_array().is_some_and(|s| !s.is_empty()), "{name} has no security");
        }
        for (status, response) in responses {
            assert!(response["description"].as_str().is_some_and(|d| !d.is_empty()), "{name} {status}");
        }
        if let Some(body) = operation.get("requestBody") {
            assert!(responses.contains_key("415") && responses.contains_key("422"), "{name} lacks body errors");
            let kinds: Vec<_> = body["content"].as_object().unwrap().keys().map(String::as_str).collect();
            let expected: &[&str] = match path.as_str() {
                "/api/v1/agent/incidents/{uuid}/pcap" => &["application/octet-stream", "multipart/form-data"],
                _ => &["application/json"],
            };
            assert_eq!(kinds, expected, "{name}");
            assert!(body["content"].as_object().unwrap().values().all(|kind| kind["schema"].is_object()), "{name}");
        }
        let declared: BTreeSet<_> = operation["parameters"]
            .as_array()
            .into_iter()
            .flatten()
            .filter(|p| p["in"] == "path")
            .map(|p| p["name"].as_str().unwrap())
            .collect();
        let used: BTreeSet<_> = path.split('/').filter_map(|s| s.strip_prefix('{')?.strip_suffix('}')).collect();
        assert_eq!(declared, used, "{name}");
    }
    assert!(count >= 35, "only {count} operations");
}

#[test]
fn every_reference_leads_somewhere() {
    let document = serde_json::to_value(controlplane::http::document()).unwrap();
    let text = document.to_string();
    let mut seen = 0;
    for part in text.split("\"$ref\":\"#").skip(1) {
        let pointer = part.split('"').next().unwrap();
        assert!(document.pointer(pointer).is_some(), "{pointer} is missing");
        seen += 1;
    }
    assert!(seen > 50);
}

#[tokio::test]
async fn every_path_of_the_document_is_routed() {
    let server = Server::start().await;
    let served: Value =
        server.client.get(format!("{}/api/openapi.json", server.url)).send().await.unwrap().json().await.unwrap();
    assert_eq!(served, serde_json::to_value(controlplane::http::document()).unwrap());
    for (path, method, operation) in operations(&served) {
        let url = path.replace("{id}", "1").replace("{uuid}", "00000000-0000-4000-8000-000000000000");
        let method: Method = method.to_uppercase().parse().unwrap();
        // Without a token every operation but the public ones asks for one: the route is there.
        let answer = server.client.request(method.clone(), format!("{}{url}", server.url)).send().await.unwrap();
        let expected = if operation["tags"][0] == "system" { 200 } else { 401 };
        assert_eq!(answer.status(), expected, "{method} {path}");
        server.clock.advance(1);
    }
}

#[tokio::test]
async fn every_example_is_a_body_that_is_taken() {
    let world = World::make().await;
    let examples: Value = serde_json::from_str(include_str!("../../src/http/examples.json")).unwrap();
    let examples = examples.as_object().unwrap();
    for (name, body) in examples {
        let (method, path) = name.split_once(' ').unwrap();
        let operation = world.document.operation(method, path).unwrap_or_else(|| panic!("{name} is no operation"));
        let shown = &operation.value["requestBody"]["content"]["application/json"]["example"];
        assert_eq!(shown, body, "{name}");
        let path = operation.path_of(world.id(&operation).unwrap_or_default());
        let server = &world.server;
        let request = match path.strip_prefix("/api/v1/agent") {
            Some(path) => server.agent(&world.node, operation.method.clone(), path),
            None => server.request(operation.method.clone(), &path),
        };
        let (status, answer) = checked(request.json(body)).await;
        // The world may hold the same already.
        assert!(status == 200 || status == 409, "{name}: {status} {answer}");
    }
    let with_body = world.document.operations().iter().filter(|o| world.document.body_schema(o).is_some()).count();
    println!("{} of {with_body} operations with a JSON body have an example", examples.len());
}

#[test]
fn words_are_spelled_as_on_the_wire() {
    let document = serde_json::to_value(controlplane::http::document()).unwrap();
    for (name, word) in [
        ("AttackFamily", "udp_flood"),
        ("Severity", "critical"),
        ("IncidentStatus", "false_positive"),
        ("Role", "readonly"),
        ("DestinationKind", "splunk_hec"),
    ] {
        let words = document["components"]["schemas"][name]["enum"].as_array().unwrap();
        assert!(words.contains(&Value::from(word)), "{name}: {words:?}");
    }
    let mut seen = 0;
    words_in(&document, &mut |word| {
        seen += 1;
        let spelled = word.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_');
        assert!(spelled, "{word} is how Rust spells it, not the wire");
    });
    assert!(seen > 100, "only {seen} words");
    let number = &document["components"]["schemas"]["Heartbeat"]["properties"]["uptime_secs"];
    assert_eq!((&number["minimum"], number.get("format")), (&Value::from(0), None), "2^63 and more are numbers too");
}

/// Every word of every enumeration.
fn words_in(value: &Value, on_word: &mut impl FnMut(&str)) {
    match value {
        Value::Object(object) => {
            for (key, inner) in object {
                match (key.as_str(), inner) {
                    ("enum", Value::Array(words)) => words.iter().filter_map(Value::as_str).for_each(&mut *on_word),
                    _ => words_in(inner, on_word),
                }
            }
        }
        Value::Array(list) => list.iter().for_each(|inner| words_in(inner, on_word)),
        _ => {}
    }
}
