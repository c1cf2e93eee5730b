//! DigitalOcean's cloud firewalls, as published.

use std::net::IpAddr;

use ipnet::IpNet;
use serde_json::{Value, json};

use super::UUID;
use super::receiver::{Cloud, has_keys};

pub(super) struct Digitalocean {
    firewall: Value,
}

fn net(text: &str) -> Option<IpNet> {
    text.parse::<IpNet>().ok().or_else(|| text.parse::<IpAddr>().ok().map(IpNet::from))
}

impl Digitalocean {
    pub(super) fn new() -> Self {
        let firewall = json!({
            "id": UUID, "status": "succeeded", "created_at": "2026-01-01T00:00:00Z", "pending_changes": [],
            "name": "edge",
            "inbound_rules": [
                { "action": "allow", "protocol": "tcp", "ports": "443",
                  "sources": { "addresses": ["0.0.0.0/0", "::/0"] } },
                { "action": "allow", "protocol": "tcp", "ports": "22",
                  "sources": { "addresses": ["192.0.2.7"], "tags": ["office"] } },
                { "action": "allow", "protocol": "icmp", "ports": "0",
                  "sources": { "addresses": ["203.0.113.0/24", "198.51.100.0/24"] } },
                { "action": "allow", "protocol": "udp", "ports": "53", "sources": { "addresses": ["198.51.100.7"] } },
                { "action": "allow", "protocol": "udp", "ports": "123", "sources": { "addresses": ["192.0.2.0/24"] } },
            ],
            "outbound_rules": [
                { "action": "allow", "protocol": "udp", "ports": "53", "destinations": { "addresses": ["0.0.0.0/0"] } },
            ],
            "droplet_ids": [8_043_964], "tags": ["web"],
        });
        Self { firewall }
    }
}

fn error(status: u16, id: &str, message: &str) -> (u16, Value) {
    (status, json!({ "id": id, "message": message }))
}

fn is_rule(rule: &Value) -> bool {
    let sources = &rule["sources"];
    let addresses = sources["addresses"].as_array();
    has_keys(rule, &["protocol", "ports", "sources", "action"], 3)
        && ["tcp", "udp", "icmp"].iter().any(|protocol| rule["protocol"] == **protocol)
        && has_keys(sources, &["addresses", "tags", "droplet_ids", "load_balancer_uids", "kubernetes_ids"], 0)
        && sources.as_object().is_some_and(|all| all.values().any(|v| v.as_array().is_some_and(|v| !v.is_empty())))
        && addresses.is_none_or(|all| all.iter().all(|text| text.as_str().and_then(net).is_some()))
}

impl Cloud for Digitalocean {
    fn answer(&mut self, method: &str, path: &str, query: &str, body: &Value) -> (u16, Value) {
        if path != format!("/firewalls/{UUID}") || !query.is_empty() {
            return error(404, "not_found", "The resource you were accessing could not be found.");
        }
        match method {
            "GET" => (200, json!({ "firewall": self.firewall })),
            "PUT" => {
                let keys = ["name", "inbound_rules", "outbound_rules", "droplet_ids", "tags"];
                let Some(rules) = body["inbound_rules"].as_array().filter(|_| has_keys(body, &keys, 1)) else {
                    return error(422, "unprocessable_entity", "not a firewall");
                };
                let is_twice = |(at, rule): (usize, &Value)| rules[..at].contains(rule);
                if !rules.iter().all(is_rule) || rules.iter().enumerate().any(is_twice) {
                    return error(422, "unprocessable_entity", "invalid or duplicate rule");
                }
                for key in keys {
                    // What is not sent goes back to what it is by default.
                    let default = if key == "name" { Value::Null } else { json!([]) };
                    self.firewall[key] = body.get(key).cloned().unwrap_or(default);
                }
                for rule in self.firewall["inbound_rules"].as_array_mut().unwrap() {
                    assert!(rule["action"].is_string(), "a rule without an action allows: {rule}");
                }
                (200, json!({ "firewall": self.firewall }))
            }
            other => panic!("{other}"),
        }
    }

    fn snapshot(&self) -> Value {
        self.firewall.clone()
    }

    fn blocks(&self, source: &str) -> bool {
        let source = net(source).unwrap();
        let rules = self.firewall["inbound_rules"].as_array().unwrap();
        let texts = rules.iter().flat_map(|rule| rule["sources"]["addresses"].as_array().into_iter().flatten());
        !texts.filter_map(|text| net(text.as_str().unwrap())).any(|net| net.contains(&source) || source.contains(&net))
    }

    fn refusal(&self, status: u16) -> Value {
        let id = if status == 401 { "unauthorized" } else { "forbidden" };
        error(status, id, "Unable to authenticate you").1
    }
}
