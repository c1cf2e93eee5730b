//! What the fuzzed server holds: one of everything to show and change, some of everything to delete, and nodes.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result};
use serde_json::{Value, json};

use super::server::Server;

/// So many nodes share the calls of the agents' part: each has 5 heartbeats a minute.
const NODES: usize = 120;
/// So many of each kind are there to be deleted.
const SPARES: usize = 9;

/// How one of a collection is made: by POST to where, with which body, and where its id is in the answer. `$n` is
/// another number each time. What the document does not have is left out.
const MAKES: &[(&str, &str, &str, &str)] = &[
    ("/api/v1/allowlist", "", r#"{"ip_address":"192.0.2.$n"}"#, "/entry/id"),
    (
        "/api/v1/mitigation/thresholds",
        "",
        r#"{"target_ip":"203.0.113.$n","thresholds":{"tier1_bps":1000}}"#,
        "/threshold/id",
    ),
    (
        "/api/v1/firewall-rules",
        "",
        r#"{"name":"r$n","trigger":{"type":"any"},"action":{"type":"xdp_drop_source"}}"#,
        "/rule/id",
    ),
    (
        "/api/v1/channels",
        "",
        r#"{"kind":"webhook","name":"c$n","settings":{"url":"http://127.0.0.1:9/","timeout_secs":1}}"#,
        "/channel/id",
    ),
    (
        "/api/v1/integrations",
        "",
        r#"{"kind":"webhook","name":"i$n","settings":{"url":"http://127.0.0.1:9/","timeout_secs":1}}"#,
        "/integration/id",
    ),
    (
        "/api/v1/maintenance",
        "",
        r#"{"name":"w$n","schedule":{"type":"weekly","weekday":"monday","start":"00:00","minutes":15}}"#,
        "/window/id",
    ),
    (
        "/api/v1/threat-intel",
        "/import",
        r#"{"indicators":[{"value":"198.18.0.$n","confidence":0.9,"source":"s"}]}"#,
        "/indicators/0/id",
    ),
    ("/api/v1/workspace/tokens", "", r#"{"name":"t$n","role":"readonly"}"#, "/token/id"),
    ("/api/v1/workspace/feed-tokens", "", r#"{"name":"f$n"}"#, "/token/id"),
    (
        "/api/v1/mitigation/adapters",
        "",
        r#"{"adapter_type":"webhook","name":"a$n","endpoint":"http://127.0.0.1:9/","capabilities":["blackhole"]}"#,
        "/adapter/id",
    ),
    (
        "/api/v1/scrubbing",
        "",
        r#"{"name":"s$n","provider":"digitalocean","credentials":{"api_token":"t"}}"#,
        "/integration/id",
    ),
    (
        "/api/v1/runbooks",
        "",
        r#"{"name":"b$n","trigger_conditions":{"family":"udp_flood"},"steps":[{"action_type":"log","action_config":{"message":"m"}}]}"#,
        "/runbook/id",
    ),
];

/// What was made.
pub(super) struct World {
    nodes: Vec<Value>,
    kept: BTreeMap<String, Value>,
    spare: BTreeMap<String, Vec<Value>>,
    pub(super) feed_token: String,
}

impl World {
    /// Makes everything through the API.
    ///
    /// # Errors
    /// A call that is refused.
    pub(super) fn make(server: &Server, document: &Value) -> Result<Self> {
        let client = &server.client;
        let mut nodes = Vec::new();
        for n in 0..NODES {
            let made = client.post("/api/deploy", &json!({ "name": format!("edge-{n}"), "ip": "203.0.113.5" }))?;
            let incident = format!("00000000-0000-4000-8000-{n:012}");
            nodes.push(json!({ "uuid": made["node_uuid"], "key": made["api_key"], "incident": incident }));
        }
        let mut world = Self { nodes, kept: BTreeMap::new(), spare: BTreeMap::new(), feed_token: String::new() };
        let mut number = 0;
        for (collection, path, body, id) in MAKES {
            let path = format!("{collection}{path}");
            if document["paths"][&path]["post"].is_null() {
                continue;
            }
            for _ in 0..=SPARES {
                number += 1;
                let body = serde_json::from_str(&body.replace("$n", &number.to_string()))?;
                let made = client.post(&path, &body)?;
                let id = made.pointer(id).with_context(|| format!("{path} answers no {id}: {made}"))?;
                world.keep(collection, id);
                if *collection == "/api/v1/workspace/feed-tokens" {
                    world.feed_token = made["value"].as_str().unwrap_or_default().to_owned();
                }
            }
        }
        client.post("/api/v1/integrations", &json!({ "kind": "iptables", "name": "blocks" }))?;
        world.report(server)?;
        Ok(world)
    }

    /// The first is kept, the others are there to be deleted; the last feed token is the one in use.
    fn keep(&mut self, collection: &str, id: &Value) {
        if self.kept.contains_key(collection) && collection != "/api/v1/workspace/feed-tokens" {
            self.spare.entry(collection.to_owned()).or_default().push(id.clone());
        } else {
            self.kept.insert(collection.to_owned(), id.clone());
        }
    }

    /// Each node reports an incident; the first ones also send captures.
    fn report(&mut self, server: &Server) -> Result<()> {
        for (n, node) in self.nodes.clone().iter().enumerate() {
            let text = |key: &str| node[key].as_str().unwrap_or_default().to_owned();
            let bearer = format!("Bearer {}", text("key"));
            let uuid = text("uuid");
            let signed = [("Authorization", bearer.as_str()), ("X-Node-UUID", uuid.as_str())];
            let body = incident(&text("incident"));
            let json = [&signed[..], &[("Content-Type", "application/json")]].concat();
            let answer = server.client.send("POST", "/api/v1/agent/incidents", &json, body.to_string().as_bytes())?;
            let said = String::from_utf8_lossy(&answer.body).into_owned();
            anyhow::ensure!(answer.status == 200, "an incident was refused: {said}");
            if n == 0 {
                let id = serde_json::from_str::<Value>(&said)?["id"].clone();
                self.kept.insert("/api/v1/incidents".to_owned(), id);
                self.kept.insert("/api/v1/nodes".to_owned(), node["uuid"].clone());
            }
            if n <= SPARES {
                let path = format!("/api/v1/agent/incidents/{}/pcap", text("incident"));
                let chunk = [
                    ("Content-Type", "application/octet-stream"),
                    ("X-Upload-Id", "u"),
                    ("X-Chunk-Index", "0"),
                    ("X-Chunk-Total", "1"),
                ];
                let answer = server.client.send("POST", &path, &[&signed[..], &chunk].concat(), &capture(n))?;
                let said = String::from_utf8_lossy(&answer.body).into_owned();
                anyhow::ensure!(answer.status == 200, "a capture was refused: {said}");
                self.keep("/api/v1/pcaps", &serde_json::from_str::<Value>(&said)?["pcap"]["id"]);
            }
        }
        // The integration of kind `iptables` staged a rule for each incident.
        self.kept.insert("/api/v1/firewall-rules/staged".to_owned(), json!(1));
        for node in self.nodes.clone().iter().take(SPARES) {
            let body = json!({ "profile_id": "saas", "suite": "nftables", "node_ids": [node["uuid"]] });
            let made = server.client.post("/api/v1/attack-profiles/apply", &body)?;
            self.keep("/api/v1/attack-profiles/applications", &made["applications"][0]["id"]);
        }
        // Those that nobody reports for may go.
        let spare = self.nodes.split_off(NODES - SPARES);
        self.spare.insert("/api/v1/nodes".to_owned(), spare.iter().map(|node| node["uuid"].clone()).collect());
        Ok(())
    }

    /// Writes what the hooks of the fuzzer read, for calls as nodes or as others.
    ///
    /// # Errors
    /// The file cannot be written.
    pub(super) fn write(&self, server: &Server, as_nodes: bool) -> Result<PathBuf> {
        let path = server.folder.join("world.json");
        let world = json!({ "nodes": self.nodes, "kept": self.kept, "spare": self.spare, "as_nodes": as_nodes });
        fs::write(&path, world.to_string()).with_context(|| format!("cannot write {}", path.display()))?;
        Ok(path)
    }

    /// The headers of one node.
    pub(super) fn node(&self) -> [(&'static str, String); 2] {
        let text = |key: &str| self.nodes[1][key].as_str().unwrap_or_default().to_owned();
        [("Authorization", format!("Bearer {}", text("key"))), ("X-Node-UUID", text("uuid"))]
    }
}

fn incident(uuid: &str) -> Value {
    json!({
        "uuid": uuid, "revision": 1, "status": "active", "target": "203.0.113.5/32", "family": "udp_flood",
        "severity": "high", "confidence": 0.9, "spoofed": false, "started_at": "2026-05-12T14:29:00Z",
        "updated_at": "2026-05-12T14:29:30Z", "peak_pps": 50_000, "peak_bps": 400_000_000, "current_pps": 49_000,
        "current_bps": 390_000_000,
        "threshold": { "quantity": "pps", "value": 10_000, "origin": "floor", "ratio": 5.0 },
        "packets": 1_000_000, "dropped_packets": 990_000, "source_count": 12,
        "top_sources": [{ "ip": "198.51.100.7", "pps": 4_000, "share": 0.5 }],
        "timeline": [{ "at": "2026-05-12T14:29:00Z", "kind": "opened", "text": "seen" }],
    })
}

/// A pcap file with one packet of UDP, told from others by its port.
fn capture(n: usize) -> Vec<u8> {
    let mut file = vec![0xd4, 0xc3, 0xb2, 0xa1, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 0, 0, 1, 0, 0, 0];
    let mut frame = vec![2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2, 8, 0, 0x45, 0, 0, 32, 0, 1, 0, 0, 64, 17, 0, 0];
    frame.extend([198, 51, 100, 7, 203, 0, 113, 5, 0, 53, 0x9c, n.to_le_bytes()[0], 0, 12, 0, 0, 1, 2, 3, 4]);
    file.extend([1, 0, 0, 0, 0, 0, 0, 0, frame.len().to_le_bytes()[0], 0, 0, 0, frame.len().to_le_bytes()[0], 0, 0, 0]);
    file.extend(frame);
    file
}
