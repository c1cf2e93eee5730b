//! Vultr's firewall groups, as published.

use ipnet::IpNet;
use serde_json::{Value, json};

use super::UUID;
use super::receiver::{Cloud, has_keys, query};

pub(super) struct Vultr {
    rules: Vec<Value>,
    next: u64,
    most: usize,
}

impl Vultr {
    pub(super) fn new() -> Self {
        let mut vultr = Self { rules: Vec::new(), next: 0, most: 100 };
        for (ip_type, protocol, port, subnet, size, source, notes) in [
            ("v4", "tcp", "443", "0.0.0.0", 0, "", "web"),
            ("v4", "tcp", "22", "192.0.2.0", 24, "", ""),
            ("v6", "tcp", "443", "::", 0, "", "web: six"),
            ("v4", "tcp", "8443", "0.0.0.0", 0, "cloudflare", ""),
            ("v4", "icmp", "", "203.0.113.0", 24, "203.0.113.0/24", "probes"),
        ] {
            vultr.push(json!({
                "ip_type": ip_type, "protocol": protocol, "port": port, "subnet": subnet, "subnet_size": size,
                "source": source, "notes": notes,
            }));
        }
        vultr
    }

    fn push(&mut self, mut rule: Value) -> Value {
        self.next += 1;
        rule["id"] = self.next.into();
        rule["action"] = "accept".into();
        rule["type"] = rule["ip_type"].clone();
        for key in ["port", "source", "notes"] {
            if rule[key].is_null() {
                rule[key] = "".into();
            }
        }
        self.rules.push(rule.clone());
        rule
    }
}

fn error(status: u16, message: &str) -> (u16, Value) {
    (status, json!({ "error": message, "status": status }))
}

fn prefix(rule: &Value) -> Option<IpNet> {
    let size = u8::try_from(rule["subnet_size"].as_u64()?).ok()?;
    IpNet::new(rule["subnet"].as_str()?.parse().ok()?, size).ok()
}

fn is_rule(body: &Value) -> bool {
    let has_port = ["tcp", "udp"].iter().any(|protocol| body["protocol"] == **protocol);
    let known = ["icmp", "tcp", "udp", "gre", "esp", "ah"].iter().any(|protocol| body["protocol"] == **protocol);
    let net = prefix(body).filter(|net| net.trunc() == *net);
    has_keys(body, &["ip_type", "protocol", "subnet", "subnet_size", "port", "notes", "source"], 4)
        && known
        && has_port == body["port"].as_str().is_some_and(|port| !port.is_empty())
        && net.is_some_and(|net| body["ip_type"] == if net.addr().is_ipv4() { "v4" } else { "v6" })
        && body["notes"].as_str().is_none_or(|notes| notes.len() <= 255)
}

impl Cloud for Vultr {
    fn answer(&mut self, method: &str, path: &str, asked: &str, body: &Value) -> (u16, Value) {
        let group = format!("/firewalls/{UUID}");
        let Some(rest) = path.strip_prefix(&group) else { return error(404, "Invalid firewall group.") };
        match (method, rest) {
            ("GET", "") => {
                let group = json!({ "id": UUID, "rule_count": self.rules.len(), "max_rule_count": self.most });
                (200, json!({ "firewall_group": group }))
            }
            ("GET", "/rules") => {
                let per_page: usize = query(asked, "per_page").unwrap().parse().unwrap();
                assert!((1..=500).contains(&per_page));
                let from: usize =
                    query(asked, "cursor").map_or(0, |c| c.trim_start_matches("bmV4dF9f").parse().unwrap());
                // Small pages, so that there are several.
                let page: Vec<&Value> = self.rules.iter().skip(from).take(per_page.min(20)).collect();
                let end = from + page.len();
                let next = if end < self.rules.len() { format!("bmV4dF9f{end}") } else { String::new() };
                let meta = json!({ "total": self.rules.len(), "links": { "next": next, "prev": "" } });
                (200, json!({ "firewall_rules": page, "meta": meta }))
            }
            ("POST", "/rules") => {
                if !is_rule(body) {
                    return error(400, "Invalid rule.");
                }
                let port = |rule: &Value| rule["port"].as_str().unwrap_or_default().to_owned();
                let is_same = |rule: &Value| {
                    rule["protocol"] == body["protocol"]
                        && port(rule) == port(body)
                        && prefix(rule) == prefix(body)
                        && rule["source"] != "cloudflare"
                };
                if self.rules.iter().any(is_same) {
                    return error(400, "This rule is already defined");
                }
                if self.rules.len() >= self.most {
                    return error(400, "The group has all the rules that it may have.");
                }
                let rule = self.push(body.clone());
                (201, json!({ "firewall_rule": rule }))
            }
            ("DELETE", rest) => {
                let id: u64 = rest.strip_prefix("/rules/").unwrap().parse().unwrap();
                match self.rules.iter().position(|rule| rule["id"] == id) {
                    Some(at) => {
                        self.rules.remove(at);
                        (204, Value::Null)
                    }
                    None => error(404, "Invalid rule id."),
                }
            }
            ("PUT", "/most") => {
                self.most = usize::try_from(body.as_u64().unwrap()).unwrap();
                (204, Value::Null)
            }
            other => panic!("{other:?}"),
        }
    }

    fn snapshot(&self) -> Value {
        // A rule that comes again has another number.
        let bare = |rule: &Value| {
            let mut rule = rule.clone();
            rule.as_object_mut().unwrap().remove("id");
            // An empty source is that of the rule's own prefix.
            if rule["source"].as_str().and_then(|s| s.parse::<IpNet>().ok()) == prefix(&rule) {
                rule["source"] = "".into();
            }
            rule.to_string()
        };
        let mut all: Vec<String> = self.rules.iter().map(bare).collect();
        all.sort();
        json!(all)
    }

    fn blocks(&self, source: &str) -> bool {
        let source: IpNet = source.parse::<IpNet>().or_else(|_| format!("{source}/32").parse()).unwrap();
        let open = self.rules.iter().filter(|rule| rule["source"] != "cloudflare");
        !open.filter_map(prefix).any(|net| net.contains(&source) || source.contains(&net))
    }

    fn refusal(&self, status: u16) -> Value {
        error(status, "Invalid API token.").1
    }
}
