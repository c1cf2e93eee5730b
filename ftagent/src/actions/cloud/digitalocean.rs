//! DigitalOcean: the rules of a cloud firewall that allow, narrowed.
//!
//! Their API replaces a firewall whole and has no conditional writes. So what is sent is worked out from what was read
//! a moment before, and nothing of it but the addresses of rules is changed: droplets, tags, outbound rules and
//! whatever else a firewall has go back as they came.

use ftagent_common::api::firewall_path;
use hyper::Method;
use ipnet::IpNet;
use serde_json::{Map, Value, json};

use super::api::Fault;
use super::narrow::{self, Item, Taken};
use super::{CloudEntry, Made, Place, Provider, Work};

/// What a firewall says of itself, and takes from nobody.
const THEIRS: [&str; 4] = ["id", "status", "created_at", "pending_changes"];

pub(super) struct Digitalocean;

impl Provider for Digitalocean {
    fn settle(&mut self, place: &Place, add: &[IpNet], keep: &[IpNet], work: &mut Work<'_>) -> Result<bool, Fault> {
        let Place::Firewall(id) = place else {
            return Err(Fault::refused("this is no firewall of DigitalOcean"));
        };
        let path = firewall_path(&Place::firewall_id(id)?);
        let answer = match work.api.read(&path) {
            Ok(answer) => answer.json,
            Err(Fault::Refused { status: 404, .. }) if add.is_empty() => {
                for entry in work.entries(place) {
                    work.record.note("the firewall is gone, and what was narrowed with it");
                    work.gone(&super::Kept::name(&entry));
                }
                return Ok(false);
            }
            Err(fault) => return Err(fault),
        };
        let Some(firewall) = answer["firewall"].as_object() else {
            return Err(Fault::later("DigitalOcean's answer is no firewall"));
        };
        let entries = work.entries(place);
        let plan = plan(place, firewall, &entries, add, keep);
        plan.notes.iter().for_each(|note| work.record.note(note));
        let changed: Vec<_> = plan.entries.iter().filter(|entry| !entries.contains(entry)).collect();
        if plan.is_change {
            if !add.is_empty() && work.api.is_closing() {
                return Err(Fault::later("the agent stops"));
            }
            // What is about to be taken comes first, besides what is still to be given back.
            work.begin(changed.iter().map(|entry| super::with_before(entry, &entries)).collect())?;
            let body = Value::Object(plan.firewall);
            let sent = work.api.change(Method::PUT, &path, Some(&body), work.record);
            sent.map_err(|(fault, is_sent)| work.doubt_all(place, fault, is_sent))?;
        }
        work.conclude(&entries, plan.entries)
    }
}

/// What is to be sent, and what the journal is to say then.
struct Plan {
    firewall: Map<String, Value>,
    is_change: bool,
    entries: Vec<CloudEntry>,
    notes: Vec<String>,
}

/// Works out what a firewall is to be. Pure.
fn plan(place: &Place, firewall: &Map<String, Value>, entries: &[CloudEntry], add: &[IpNet], keep: &[IpNet]) -> Plan {
    let mut wanted = firewall.clone();
    wanted.retain(|key, _| !THEIRS.contains(&key.as_str()));
    let mut rules: Vec<Value> = firewall.get("inbound_rules").and_then(Value::as_array).cloned().unwrap_or_default();
    let before = rules.clone();
    let mut notes = Vec::new();
    let mut taken: Vec<(String, Taken, Option<usize>)> = Vec::new();
    // From the first to the last, so that each finds its place again.
    let mut order: Vec<&CloudEntry> = entries.iter().collect();
    order.sort_by_key(|entry| match &entry.made {
        Made::Taken { taken, gone, .. } => (*gone, taken.at),
        Made::Object { .. } => (None, 0),
    });
    for entry in order {
        let Made::Taken { rule, taken: was, gone } = &entry.made else { continue };
        let (mut was, rule, mut gone) = (was.clone(), rule.clone(), *gone);
        let at = best_rule(&rules, &rule, &was);
        match at {
            Some(at) => {
                let mut items = items_of(&rules[at]);
                let note = narrow::give_back(&mut items, &mut was, keep, false);
                notes.extend(note.map(|note| format!("{note} ({})", was.origin)));
                set_items(&mut rules[at], &items);
                gone = None;
            }
            // Nothing had been left of it: it comes again.
            None if gone.is_some() => {
                let mut items = Vec::new();
                let note = narrow::give_back(&mut items, &mut was, keep, false);
                notes.extend(note.map(str::to_owned));
                if let Some(mut again) = from_kind(&rule).filter(|_| !items.is_empty()) {
                    set_items(&mut again, &items);
                    rules.insert(gone.unwrap_or(rules.len()).min(rules.len()), again);
                    gone = None;
                }
            }
            None => {
                let left = narrow::subtract(&was.nets, &narrow::subtract(&was.nets, keep));
                if left.len() != was.nets.len() {
                    notes.push(format!("somebody deleted the rule of {}: that stands", was.origin));
                }
                was.nets = left;
            }
        }
        if !was.nets.is_empty() {
            taken.push((rule, was, gone));
        }
    }
    let mut left = Vec::new();
    for (at, mut rule) in rules.into_iter().enumerate() {
        let items = items_of(&rule);
        if !is_allow(&rule) || !narrow::allows(&items, add) {
            left.push(rule);
            continue;
        }
        let kind = kind_of(&rule);
        let (mut items, others): (_, Vec<_>) = (items, taken.extract_if(.., |(k, ..)| *k != kind).collect());
        let mut own: Vec<Taken> = taken.drain(..).map(|(_, taken, _)| taken).collect();
        narrow::take(&mut items, &mut own, add, false);
        set_items(&mut rule, &items);
        let is_gone = items.is_empty() && !has_other_sources(&rule);
        let gone = is_gone.then_some(at);
        taken = own.into_iter().map(|taken| (kind.clone(), taken, gone)).chain(others).collect();
        if !is_gone {
            left.push(rule);
        }
    }
    let is_change = left != before;
    for rule in &mut left {
        // A rule without an action allows: it is never left to be guessed.
        if let Some(rule) = rule.as_object_mut() {
            rule.entry("action").or_insert_with(|| json!("allow"));
        }
    }
    wanted.insert("inbound_rules".to_owned(), left.into());
    let entry = |(rule, taken, gone)| CloudEntry { place: place.clone(), made: Made::Taken { rule, taken, gone } };
    Plan { firewall: wanted, is_change, entries: taken.into_iter().map(entry).collect(), notes }
}

/// The rule of that kind from which something was taken, if there are several the one that shows it.
fn best_rule(rules: &[Value], kind: &str, taken: &Taken) -> Option<usize> {
    let of_kind: Vec<usize> =
        (0..rules.len()).filter(|at| is_allow(&rules[*at]) && kind_of(&rules[*at]) == kind).collect();
    let origin = narrow::net(&taken.origin);
    let shows = |at: &&usize| {
        let nets = items_of(&rules[**at]);
        nets.iter().filter_map(|item| narrow::net(&item.text)).any(|net| origin.is_some_and(|o| o.contains(&net)))
    };
    of_kind.iter().find(shows).or(of_kind.first()).copied()
}

fn is_allow(rule: &Value) -> bool {
    rule["action"].as_str().is_none_or(|action| action == "allow")
}

fn items_of(rule: &Value) -> Vec<Item> {
    let texts = rule["sources"]["addresses"].as_array().into_iter().flatten().filter_map(Value::as_str);
    texts.map(|text| Item { text: text.to_owned(), notes: String::new(), piece_of: None }).collect()
}

fn set_items(rule: &mut Value, items: &[Item]) {
    let texts: Vec<&str> = items.iter().map(|item| item.text.as_str()).collect();
    if rule["sources"]["addresses"].is_array() || !texts.is_empty() {
        rule["sources"]["addresses"] = json!(texts);
    }
}

fn has_other_sources(rule: &Value) -> bool {
    let sources = rule["sources"].as_object();
    let is_some = |value: &Value| value.as_array().is_some_and(|all| !all.is_empty());
    sources.is_some_and(|sources| sources.iter().any(|(key, value)| key != "addresses" && is_some(value)))
}

/// A rule but for its addresses, as text: which rule it is.
fn kind_of(rule: &Value) -> String {
    let mut rule = rule.clone();
    if let Some(rule) = rule.as_object_mut() {
        rule.remove("action");
        if let Some(sources) = rule.get_mut("sources").and_then(Value::as_object_mut) {
            sources.remove("addresses");
            // Whether the provider names what is empty says nothing.
            sources.retain(|_, value| !value.is_null() && value.as_array().is_none_or(|all| !all.is_empty()));
        }
    }
    rule.to_string()
}

fn from_kind(kind: &str) -> Option<Value> {
    let mut rule: Value = serde_json::from_str(kind).ok()?;
    rule.as_object()?;
    if !rule["sources"].is_object() {
        rule["sources"] = json!({});
    }
    Some(rule)
}
