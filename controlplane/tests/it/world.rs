//! A workspace with one of everything, and another one beside it.

use std::collections::BTreeMap;

use controlplane::domain::{Actor, Deployment, Fact, NewFeedToken, NewToken, Role, Secret, Timestamp, WorkspaceId};
use ftagent_common::api::DeployRequest;
use reqwest::Method;
use serde_json::{Value, json};

use crate::cluster::raw;
use crate::document::{Document, Operation};
use crate::pcap_files::as_the_agent_writes;
use crate::support::{NOW, Node, Server, UUID, checked, report};

/// How one of a collection is made: where to send what, and where its id is in the answer. `$node` stands for the node,
/// `$adapter` for the adapter. What the document does not have is left out.
const MAKES: &[(&str, &str, &str, &str)] = &[
    ("/api/v1/allowlist", "/api/v1/allowlist", r#"{"ip_address":"192.0.2.10"}"#, "/entry/id"),
    (
        "/api/v1/mitigation/thresholds",
        "/api/v1/mitigation/thresholds",
        r#"{"target_ip":"203.0.113.5","thresholds":{"tier1_bps":1000}}"#,
        "/threshold/id",
    ),
    (
        "/api/v1/firewall-rules",
        "/api/v1/firewall-rules",
        r#"{"name":"r","trigger":{"type":"any"},"action":{"type":"xdp_drop_source"}}"#,
        "/rule/id",
    ),
    (
        "/api/v1/channels",
        "/api/v1/channels",
        r#"{"kind":"webhook","name":"c","enabled":false,"settings":{"url":"http://127.0.0.1:9/"}}"#,
        "/channel/id",
    ),
    (
        "/api/v1/integrations",
        "/api/v1/integrations",
        r#"{"kind":"webhook","name":"i","enabled":false,"settings":{"url":"http://127.0.0.1:9/"}}"#,
        "/integration/id",
    ),
    (
        "/api/v1/maintenance",
        "/api/v1/maintenance",
        r#"{"name":"w","schedule":{"type":"weekly","weekday":"monday","start":"00:00","minutes":15}}"#,
        "/window/id",
    ),
    (
        "/api/v1/threat-intel",
        "/api/v1/threat-intel/import",
        r#"{"indicators":[{"value":"198.51.100.7","confidence":0.9,"source":"s"}]}"#,
        "/indicators/0/id",
    ),
    ("/api/v1/workspace/tokens", "/api/v1/workspace/tokens", r#"{"name":"t","role":"owner"}"#, "/token/id"),
    ("/api/v1/workspace/feed-tokens", "/api/v1/workspace/feed-tokens", r#"{"name":"f"}"#, "/token/id"),
    (
        "/api/v1/mitigation/adapters",
        "/api/v1/mitigation/adapters",
        r#"{"adapter_type":"webhook","name":"a","endpoint":"$receiver",
            "config":{"prefixes":["203.0.113.0/24","198.19.0.0/16","2001:db8::/32"]},
            "capabilities":["blackhole","flowspec","scrubbing"]}"#,
        "/adapter/id",
    ),
    (
        "/api/v1/mitigation/rules",
        "/api/v1/mitigation/rules",
        r#"{"target_ip":"203.0.113.50/32","intent_type":"blackhole","adapter_id":$adapter}"#,
        "/rule/id",
    ),
    (
        "/api/v1/scrubbing",
        "/api/v1/scrubbing",
        r#"{"name":"s","provider":"digitalocean","credentials":{"api_token":"t"}}"#,
        "/integration/id",
    ),
    (
        "/api/v1/runbooks",
        "/api/v1/runbooks",
        r#"{"name":"b","trigger_conditions":{"family":"udp_flood"},"steps":[{"action_type":"log","action_config":{"message":"m"}}]}"#,
        "/runbook/id",
    ),
    (
        "/api/v1/attack-profiles/applications",
        "/api/v1/attack-profiles/apply",
        r#"{"profile_id":"saas","suite":"nftables","node_ids":["$node"]}"#,
        "/applications/0/id",
    ),
];

/// What belongs to no workspace: the same for everybody, and nothing of it can be changed.
const EVERYBODYS: &[(&str, &str)] = &[("/api/v1/attack-profiles", "saas")];

/// Bodies where the smallest one that the schema allows is refused for its meaning.
const BODIES: &[(&str, &str, &str)] = &[
    ("POST", "/api/v1/nodes/{uuid}/commands", r#"{"order":{"type":"unblock","source":"198.51.100.7/32"}}"#),
    ("PATCH", "/api/v1/incidents/{id}", r#"{"status":"resolved"}"#),
];

pub(crate) struct World {
    pub(crate) server: Server,
    pub(crate) document: Document,
    pub(crate) node: Node,
    /// The id of one thing, by its collection.
    pub(crate) ids: BTreeMap<String, String>,
    /// Of the other workspace.
    pub(crate) other: Other,
}

/// Credentials of another workspace, which has a node and nothing else.
pub(crate) struct Other {
    pub(crate) owner: String,
    pub(crate) node: Node,
    pub(crate) feed: String,
}

impl World {
    pub(crate) async fn make() -> Self {
        let server = Server::start().await;
        let document = Document::read();
        let node = server.deploy("edge-1").await;
        let mut ids = BTreeMap::from([("/api/v1/nodes".to_owned(), node.uuid.clone())]);
        ids.extend(EVERYBODYS.iter().map(|(collection, id)| ((*collection).to_owned(), (*id).to_owned())));
        // It stages a rule of the incident below, the first of this server.
        server.made("/api/v1/integrations", &json!({ "kind": "iptables", "name": "blocks" })).await;
        ids.insert("/api/v1/firewall-rules/staged".to_owned(), "1".to_owned());
        let opened = server.report(&node, "/incidents", &report(UUID, 1, "active")).await;
        ids.insert("/api/v1/incidents".to_owned(), opened["id"].to_string());
        ids.insert("/api/v1/agent/incidents".to_owned(), UUID.to_owned());
        let upload = server
            .agent(&node, Method::POST, &format!("/incidents/{UUID}/pcap"))
            .header("content-type", "application/octet-stream")
            .header("X-Upload-Id", "u")
            .header("X-Chunk-Index", 0)
            .header("X-Chunk-Total", 1)
            .body(as_the_agent_writes(3, 1));
        let (status, kept) = checked(upload).await;
        assert_eq!(status, 200, "{kept}");
        ids.insert("/api/v1/pcaps".to_owned(), kept["pcap"]["id"].to_string());
        let receiver = receiver().await;
        for (collection, path, body, id) in MAKES {
            if document.operation("post", path).is_none() {
                continue;
            }
            let adapter = ids.get("/api/v1/mitigation/adapters").cloned().unwrap_or_default();
            let body = body.replace("$node", &node.uuid).replace("$receiver", &receiver).replace("$adapter", &adapter);
            let made = server.made(path, &serde_json::from_str(&body).unwrap()).await;
            let id = made.pointer(id).unwrap_or_else(|| panic!("{path} answers no {id}: {made}")).to_string();
            if path.ends_with("/adapters") {
                // Only what was found connected takes rules.
                server.made(&format!("{path}/{id}/test"), &json!({})).await;
            }
            ids.insert((*collection).to_owned(), id);
        }
        let other = other(&server).await;
        Self { server, document, node, ids, other }
    }

    /// The id of the thing that an operation's path names.
    pub(crate) fn id(&self, operation: &Operation) -> Option<&str> {
        let collection = operation.collection()?;
        let id = self.ids.get(collection);
        Some(id.unwrap_or_else(|| panic!("{}: tell MAKES how to make one of {collection}", operation.name())))
    }

    /// Whether the operation is about what belongs to no workspace.
    pub(crate) fn is_everybodys(operation: &Operation) -> bool {
        let of = operation.collection().unwrap_or(&operation.path);
        EVERYBODYS.iter().any(|(collection, _)| *collection == of)
    }

    /// A body that the operation takes, if it takes one.
    pub(crate) fn body(&self, operation: &Operation) -> Option<Value> {
        let schema = self.document.body_schema(operation)?;
        let own = BODIES.iter().find(|(m, path, _)| operation.method == *m && operation.path == *path);
        if operation.path.starts_with("/api/v1/agent/incidents") {
            return Some(report("1f9619ff-8b86-4011-b42d-00cf4fc964ff", 2, "active"));
        }
        Some(own.map_or_else(|| self.document.sample(schema), |(.., body)| serde_json::from_str(body).unwrap()))
    }
}

/// What an adapter can call: takes everything, says nothing.
async fn receiver() -> String {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let router = axum::Router::new().fallback(|| async { axum::Json(json!({})) });
    tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
    format!("http://{address}/")
}

async fn other(server: &Server) -> Other {
    raw(&server.database, "INSERT INTO workspaces (name, created_at) VALUES ('other', 0)").await.unwrap();
    let ws = WorkspaceId(2);
    let now: Timestamp = NOW.parse().unwrap();
    let fact = || Fact::new(now, &Actor::System { workspace: ws }, "test", "test");
    let [owner, key, feed] = [21, 22, 23].map(|byte| Secret::from_random([byte; 32]));
    let token = NewToken { name: "o".to_owned(), role: Role::Owner, rate_limit: Some(1_000_000), expires_at: None };
    server.store.create_token(ws, token, &owner.hash(), fact()).await.unwrap();
    let request: DeployRequest = serde_json::from_value(json!({ "name": "theirs" })).unwrap();
    let uuid = server.store.deploy(ws, &Deployment::check(request).unwrap(), &key.hash(), fact()).await.unwrap();
    let new = NewFeedToken { name: "f".to_owned(), expires_at: None };
    server.store.create_feed_token(ws, &new, &feed.hash(), fact()).await.unwrap();
    let text = |secret: Secret| secret.reveal().to_owned();
    Other { owner: text(owner), node: Node { uuid: uuid.to_string(), key: text(key) }, feed: text(feed) }
}
