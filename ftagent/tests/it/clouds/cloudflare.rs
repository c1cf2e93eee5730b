//! Cloudflare's access rules of a zone and lists of an account, as published.

use std::net::IpAddr;

use ipnet::IpNet;
use serde_json::{Value, json};

use super::receiver::{Cloud, has_keys, query};
use super::{ACCOUNT, LIST, ZONE};

#[derive(Default)]
pub(super) struct Cloudflare {
    rules: Vec<Value>,
    items: Vec<Value>,
    next: u64,
    /// The operation under way: what it does, and after how many looks.
    operation: Option<(String, Vec<Value>, Vec<String>, u32)>,
    over: Vec<String>,
    /// Looks that operations take.
    patience: u32,
}

fn ok(result: Value, info: Value) -> (u16, Value) {
    (200, json!({ "success": true, "errors": [], "messages": [], "result": result, "result_info": info }))
}

fn error(status: u16, code: u32, message: &str) -> (u16, Value) {
    let errors = json!([{ "code": code, "message": message }]);
    (status, json!({ "success": false, "errors": errors, "messages": [], "result": null }))
}

fn net(text: &str) -> Option<IpNet> {
    text.parse::<IpNet>().ok().or_else(|| text.parse::<IpAddr>().ok().map(IpNet::from))
}

impl Cloudflare {
    /// One whose operations on lists end at a later look.
    pub(super) fn slow(patience: u32) -> Self {
        Self { patience, ..Self::default() }
    }

    fn id(&mut self) -> String {
        self.next += 1;
        format!("{:032x}", 0xabc0_0000 + self.next)
    }

    fn rules(&mut self, method: &str, id: &str, asked: &str, body: &Value) -> (u16, Value) {
        match (method, id) {
            ("GET", "") => {
                let per_page: usize = query(asked, "per_page").unwrap_or("20").parse().unwrap();
                assert!((5..=1_000).contains(&per_page), "{asked}");
                let page: usize = query(asked, "page").unwrap_or("1").parse().unwrap();
                let matches = |rule: &&Value| {
                    let notes = rule["notes"].as_str().unwrap().to_ascii_lowercase();
                    let value = query(asked, "configuration.value");
                    let target = query(asked, "configuration.target");
                    query(asked, "notes").is_none_or(|part| notes.contains(&part.to_ascii_lowercase()))
                        && value.is_none_or(|value| net(value) == net(rule["configuration"]["value"].as_str().unwrap()))
                        && target.is_none_or(|target| rule["configuration"]["target"] == *target)
                };
                let all: Vec<Value> = self.rules.iter().filter(matches).cloned().collect();
                let pages = all.len().div_ceil(per_page).max(1);
                let some: Vec<Value> = all.into_iter().skip((page - 1) * per_page).take(per_page).collect();
                ok(json!(some), json!({ "page": page, "per_page": per_page, "total_pages": pages }))
            }
            ("POST", "") => {
                let configuration = &body["configuration"];
                let is_whole = has_keys(body, &["mode", "configuration", "notes"], 2)
                    && has_keys(configuration, &["target", "value"], 2)
                    && body["mode"] == "block"
                    && body["notes"].is_string();
                let value = configuration["value"].as_str().and_then(net);
                let fits = value.is_some_and(|net| match configuration["target"].as_str() {
                    Some("ip") => net.addr().is_ipv4() && net.prefix_len() == 32,
                    Some("ip6") => net.addr().is_ipv6() && net.prefix_len() == 128,
                    Some("ip_range") => {
                        let lengths: &[u8] = if net.addr().is_ipv4() { &[16, 24] } else { &[32, 48, 64] };
                        lengths.contains(&net.prefix_len()) && net == net.trunc()
                    }
                    _ => false,
                });
                if !is_whole || !fits {
                    return error(400, 10_001, "firewallaccessrules.api.invalid_configuration");
                }
                let same = |rule: &Value| {
                    rule["configuration"]["target"] == configuration["target"]
                        && net(rule["configuration"]["value"].as_str().unwrap()) == value
                };
                if self.rules.iter().any(same) {
                    return error(400, 10_009, "firewallaccessrules.api.duplicate_of_existing");
                }
                let mut rule = body.clone();
                rule["id"] = self.id().into();
                if let Some(IpAddr::V6(v6)) = value.filter(|net| net.prefix_len() == 128).map(|net| net.addr()) {
                    // They write such addresses out.
                    let groups: Vec<String> = v6.segments().iter().map(|group| format!("{group:04x}")).collect();
                    rule["configuration"]["value"] = groups.join(":").into();
                }
                self.rules.push(rule.clone());
                ok(rule, Value::Null)
            }
            ("DELETE", id) if body.is_null() => match self.rules.iter().position(|rule| rule["id"] == *id) {
                Some(at) => {
                    self.rules.remove(at);
                    ok(json!({ "id": id }), Value::Null)
                }
                None => error(404, 10_001, "firewallaccessrules.api.not_found"),
            },
            ("PATCH", id) => {
                let rule = self.rules.iter_mut().find(|rule| rule["id"] == *id).unwrap();
                for (key, value) in body.as_object().unwrap() {
                    rule[key] = value.clone();
                }
                ok(rule.clone(), Value::Null)
            }
            other => panic!("{other:?}"),
        }
    }

    fn items(&mut self, method: &str, asked: &str, body: &Value) -> (u16, Value) {
        if method == "GET" {
            let per_page: usize = query(asked, "per_page").unwrap().parse().unwrap();
            assert!((1..=500).contains(&per_page), "{asked}");
            let from: usize =
                query(asked, "cursor").map_or(0, |cursor| cursor.trim_start_matches("c-").parse().unwrap());
            // Small pages, so that there are several.
            let page: Vec<&Value> = self.items.iter().skip(from).take(per_page.min(3)).collect();
            let after = (from + page.len() < self.items.len()).then(|| format!("c-{}", from + page.len()));
            return ok(json!(page), after.map_or(Value::Null, |after| json!({ "cursors": { "after": after } })));
        }
        if self.operation.is_some() {
            return error(400, 10_000, "there is an outstanding bulk operation in progress for this account");
        }
        let (more, less) = match method {
            "POST" => {
                let items = body.as_array().filter(|items| !items.is_empty());
                let is_item =
                    |item: &Value| has_keys(item, &["ip", "comment"], 1) && item["ip"].as_str().and_then(net).is_some();
                match items {
                    Some(items) if items.iter().all(is_item) => (items.clone(), Vec::new()),
                    _ => return error(400, 10_026, "items are not valid"),
                }
            }
            "DELETE" => {
                let ids = body["items"].as_array().filter(|ids| has_keys(body, &["items"], 1) && !ids.is_empty());
                match ids {
                    Some(ids) if ids.iter().all(|id| has_keys(id, &["id"], 1)) => {
                        (Vec::new(), ids.iter().map(|id| id["id"].as_str().unwrap().to_owned()).collect())
                    }
                    _ => return error(400, 10_026, "items are not valid"),
                }
            }
            other => panic!("{other}"),
        };
        let id = self.id();
        self.operation = Some((id.clone(), more, less, self.patience));
        ok(json!({ "operation_id": id }), Value::Null)
    }

    fn look(&mut self, id: &str) -> (u16, Value) {
        if self.over.iter().any(|over| over == id) {
            return ok(json!({ "id": id, "status": "completed", "completed": "2026-01-01T00:00:00Z" }), Value::Null);
        }
        self.pass();
        match &self.operation {
            Some((known, ..)) if known == id => ok(json!({ "id": id, "status": "running" }), Value::Null),
            _ if self.over.iter().any(|over| over == id) => {
                ok(json!({ "id": id, "status": "completed", "completed": "2026-01-01T00:00:00Z" }), Value::Null)
            }
            _ => error(404, 10_013, "no such operation"),
        }
    }

    /// Time passes for the operation under way.
    fn pass(&mut self) {
        let Some((_, _, _, looks)) = &mut self.operation else { return };
        if *looks > 0 {
            *looks -= 1;
            return;
        }
        let Some((id, more, less, _)) = self.operation.take() else { return };
        for mut item in more {
            // What is there is overwritten.
            self.items.retain(|known| net(known["ip"].as_str().unwrap()) != net(item["ip"].as_str().unwrap()));
            item["id"] = self.id().into();
            self.items.push(item);
        }
        self.items.retain(|item| !less.iter().any(|id| item["id"] == *id));
        self.over.push(id);
    }
}

impl Cloud for Cloudflare {
    fn answer(&mut self, method: &str, path: &str, query: &str, body: &Value) -> (u16, Value) {
        let rules = format!("/zones/{ZONE}/firewall/access_rules/rules");
        let lists = format!("/accounts/{ACCOUNT}/rules/lists");
        if let Some(id) = path.strip_prefix(&rules) {
            return self.rules(method, id.trim_start_matches('/'), query, body);
        }
        if path == format!("{lists}/{LIST}/items") {
            if method == "GET" {
                self.pass();
            }
            return self.items(method, query, body);
        }
        match path.strip_prefix(&format!("{lists}/bulk_operations/")) {
            Some(id) if method == "GET" => self.look(id),
            _ => error(404, 7_003, "could not route"),
        }
    }

    fn snapshot(&self) -> Value {
        json!({ "rules": self.rules, "items": self.items })
    }

    fn blocks(&self, source: &str) -> bool {
        let source = net(source).unwrap();
        let has = |text: &Value| net(text.as_str().unwrap()).is_some_and(|net| net.contains(&source));
        self.rules.iter().any(|rule| rule["mode"] == "block" && has(&rule["configuration"]["value"]))
            || self.items.iter().any(|item| has(&item["ip"]))
    }

    fn refusal(&self, status: u16) -> Value {
        error(status, if status == 401 { 10_000 } else { 9_109 }, "Authentication error").1
    }
}
