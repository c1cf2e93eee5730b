//! Who may call what: every kind of caller on every operation of the document, and nothing of another workspace.

use reqwest::{Method, RequestBuilder};
use serde_json::{Value, json};

use crate::document::{Document, Operation};
use crate::support::{Node, Server};
use crate::world::World;

/// What may be open to anyone.
const OPEN: [&str; 2] = ["/api/health", "/api/ready"];

/// What an operation answers to a caller whom it does not serve.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Expected {
    /// Anything else than 401 and 403.
    Served,
    Forbidden,
    /// 401 with this code.
    Unknown(&'static str),
}

/// A kind of caller, as its column is called.
struct Caller {
    name: &'static str,
    token: Option<String>,
    node: Option<Node>,
}

impl Caller {
    fn sign(&self, mut request: RequestBuilder) -> RequestBuilder {
        if let Some(token) = &self.token {
            request = request.bearer_auth(token);
        }
        match &self.node {
            Some(node) => request.bearer_auth(&node.key).header("X-Node-UUID", &node.uuid),
            None => request,
        }
    }

    /// What the document promises this caller.
    fn expected(&self, operation: &Operation) -> Expected {
        let callers = operation.callers();
        match self.name {
            _ if callers == ["anyone"] => Expected::Served,
            "nobody" | "stranger" | "revoked token" | "revoked feed token" | "key of another node" => {
                Expected::Unknown("invalid_credentials")
            }
            // At /agent a credential without a node's uuid is none, whatever else it is good for.
            "expired token" | "expired feed token" if callers == ["node"] => Expected::Unknown("invalid_credentials"),
            "expired token" | "expired feed token" => Expected::Unknown("token_expired"),
            name if callers.contains(&name) => Expected::Served,
            name if callers == ["node"] && name != "node" => Expected::Unknown("invalid_credentials"),
            _ => Expected::Forbidden,
        }
    }
}

async fn callers(world: &World) -> Vec<Caller> {
    let server = &world.server;
    let plain = |name, token: String| Caller { name, token: Some(token), node: None };
    let mut all = vec![Caller { name: "nobody", token: None, node: None }, plain("stranger", "0".repeat(64))];
    let make = async |kind: &str, body: Value| {
        let made = server.made(&format!("/api/v1/workspace/{kind}"), &body).await;
        (made["value"].as_str().unwrap().to_owned(), made["token"]["id"].to_string())
    };
    // They end within the second; the clock goes on below.
    let soon = "2026-05-12T14:30:01Z";
    let limit = 1_000_000;
    let expired = json!({ "name": "expired", "role": "owner", "expires_at": soon });
    all.push(plain("expired token", make("tokens", expired).await.0));
    all.push(plain("expired feed token", make("feed-tokens", json!({ "name": "e", "expires_at": soon })).await.0));
    let (value, id) = make("tokens", json!({ "name": "revoked", "role": "owner" })).await;
    assert_eq!(server.delete(&format!("/api/v1/workspace/tokens/{id}")).await.0, 200);
    all.push(plain("revoked token", value));
    let (value, id) = make("feed-tokens", json!({ "name": "revoked" })).await;
    assert_eq!(server.delete(&format!("/api/v1/workspace/feed-tokens/{id}")).await.0, 200);
    all.push(plain("revoked feed token", value));
    for role in ["readonly", "analyst", "admin", "owner"] {
        let body = json!({ "name": role, "role": role, "rate_limit": limit });
        all.push(plain(role, make("tokens", body).await.0));
    }
    all.push(plain("feed", make("feed-tokens", json!({ "name": "feed" })).await.0));
    all.push(Caller { name: "node", token: None, node: Some(world.node.clone()) });
    let crossed = Node { uuid: world.node.uuid.clone(), key: world.other.node.key.clone() };
    all.push(Caller { name: "key of another node", token: None, node: Some(crossed) });
    server.clock.advance(2);
    all
}

#[test]
fn every_operation_declares_its_callers() {
    for operation in Document::read().operations() {
        let name = operation.name();
        let callers = operation.callers();
        assert!(!callers.is_empty(), "{name} declares nobody: make its route with `routes!` of crate::http::access");
        assert_eq!(callers == ["anyone"], OPEN.contains(&operation.path.as_str()), "{name} is open to anyone");
        let roles: Vec<_> = callers.iter().filter(|c| !matches!(**c, "node" | "feed" | "anyone")).collect();
        let text = format!("{} {}", operation.value["summary"], operation.value["description"]);
        match roles.first() {
            Some(least) => assert!(text.contains(&format!("Role: {least}")), "{name} needs {least}, and says: {text}"),
            None => assert!(!text.contains("Role: "), "{name} takes no token, and says: {text}"),
        }
        let schemes: Vec<_> = operation.value["security"].as_array().unwrap().iter().map(|s| s.to_string()).collect();
        for (caller, scheme) in [("owner", "\"token\""), ("node", "\"node_key\""), ("feed", "\"feed_token\"")] {
            assert_eq!(callers.contains(&caller), schemes.iter().any(|s| s.contains(scheme)), "{name}: {schemes:?}");
        }
    }
}

#[tokio::test]
async fn every_caller_gets_from_every_operation_what_the_document_says() {
    let world = World::make().await;
    let server = &world.server;
    let callers = callers(&world).await;
    let mut cells = 0;
    for operation in world.document.operations() {
        for caller in &callers {
            let path = match &caller.node {
                // A node is served what is its own.
                Some(_) if operation.collection() == Some("/api/v1/nodes") => operation.path_of(&world.node.uuid),
                _ => operation.path_of_nothing(),
            };
            let request = server.client.request(operation.method.clone(), format!("{}{path}", server.url));
            // An empty object: whoever may call gets as far as the body or the missing object.
            let request = caller.sign(if operation.method == Method::GET { request } else { request.json(&json!({})) });
            let answer = request.send().await.unwrap();
            let status = answer.status().as_u16();
            let name = format!("{} by {}", operation.name(), caller.name);
            let documented = &operation.value["responses"][status.to_string()];
            assert!(documented.is_object(), "{name}: {status} is not in the document");
            let begin = if operation.streams() && status == 200 {
                Value::Null
            } else {
                let bytes = answer.bytes().await.unwrap();
                serde_json::from_slice(&bytes).unwrap_or_default()
            };
            match caller.expected(&operation) {
                Expected::Served => assert!(!matches!(status, 401 | 403) && status < 500, "{name}: {status} {begin}"),
                Expected::Forbidden => {
                    assert_eq!((status, &begin["error"]["code"]), (403, &json!("forbidden")), "{name}")
                }
                Expected::Unknown(code) => {
                    assert_eq!((status, &begin["error"]["code"]), (401, &json!(code)), "{name}");
                }
            }
            cells += 1;
            server.clock.advance(1);
        }
    }
    println!("{cells} cells: {} callers, {} operations", callers.len(), world.document.operations().len());
    assert!(cells >= 1_000, "only {cells} cells");
}

#[tokio::test]
async fn an_id_of_another_workspace_is_an_id_of_nothing() {
    let world = World::make().await;
    let server = &world.server;
    let before = everything(server, &world).await;
    let mut tried = 0;
    for operation in world.document.operations() {
        let Some(id) = world.id(&operation).filter(|_| !World::is_everybodys(&operation)) else { continue };
        let agents = operation.callers() == ["node"];
        let request =
            server.client.request(operation.method.clone(), format!("{}{}", server.url, operation.path_of(id)));
        let request = if agents {
            let node = &world.other.node;
            request.bearer_auth(&node.key).header("X-Node-UUID", &node.uuid)
        } else {
            request.bearer_auth(&world.other.owner)
        };
        let request = if operation.path.ends_with("/pcap") {
            let chunk = [("content-type", "application/octet-stream"), ("X-Upload-Id", "u")];
            let chunk = chunk.iter().fold(request, |request, (name, value)| request.header(*name, *value));
            chunk.header("X-Chunk-Index", 0).header("X-Chunk-Total", 1).body(vec![0; 24])
        } else {
            match world.body(&operation) {
                Some(body) => request.json(&body),
                None => request,
            }
        };
        let answer = request.send().await.unwrap();
        let status = answer.status().as_u16();
        let text = answer.text().await.unwrap();
        assert_eq!(status, 404, "{}: {text}", operation.name());
        assert!(text.contains("\"not_found\""), "{}: {text}", operation.name());
        tried += 1;
    }
    println!("{tried} operations with an id");
    assert!(tried >= 38, "only {tried} operations have an id");
    assert_eq!(everything(server, &world).await, before, "nothing changed");
    // Lists of the other workspace hold nothing of the first one's.
    for operation in world.document.operations() {
        if operation.method != Method::GET || operation.collection().is_some() || operation.callers()[0] != "readonly" {
            continue;
        }
        if operation.streams() || operation.path.ends_with("/export") || World::is_everybodys(&operation) {
            continue;
        }
        let request = server.client.get(format!("{}{}", server.url, operation.path)).bearer_auth(&world.other.owner);
        let answer: Value = request.send().await.unwrap().json().await.unwrap();
        let expected = if operation.path.ends_with("/nodes") { 1 } else { 0 };
        if let Some(total) = answer.get("total") {
            assert_eq!(total, &json!(expected), "{}: {answer}", operation.name());
        }
        assert!(!answer.to_string().contains(&world.node.uuid), "{}: {answer}", operation.name());
    }
    let feed = server.client.get(format!("{}/api/v1/feeds/plain.txt", server.url)).bearer_auth(&world.other.feed);
    assert_eq!(feed.send().await.unwrap().text().await.unwrap(), "");
}

/// What the first workspace's owner sees of each thing.
async fn everything(server: &Server, world: &World) -> Vec<(String, Value)> {
    let mut seen = Vec::new();
    for (collection, id) in &world.ids {
        let path = format!("{collection}/{id}");
        if let Some(operation) = world
            .document
            .operations()
            .iter()
            .find(|o| o.method == Method::GET && o.collection() == Some(collection) && o.path_of(id) == path)
        {
            seen.push((operation.name(), server.get(&path).await.1));
        }
        if world.document.operation("get", collection).is_some() {
            seen.push((collection.clone(), server.get(collection).await.1));
        }
    }
    seen
}
