//! Vultr: the rules of a firewall group that accept, narrowed.
//!
//! A rule accepts one prefix. It is replaced by pieces around the source, which say in their notes what they are pieces
//! of: whoever puts them together again, on whatever node, knows the whole and its notes. Pieces come before the whole
//! goes, and the whole comes before they go, so that nobody else is cut off for a moment.

use std::collections::BTreeMap;

use ftagent_common::api::{accept_rule, group_rules, piece_notes, piece_of};
use hyper::Method;
use ipnet::IpNet;
use serde_json::{Value, json};

use super::api::Fault;
use super::narrow::{self, Item, Taken};
use super::{CloudEntry, Made, Place, Provider, Work};

const PER_PAGE: usize = 500;
const MAX_PAGES: usize = 20;
/// What Vultr says of a rule that is there.
const DEFINED: &str = "already defined";

pub(super) struct Vultr;

/// A rule that accepts a prefix from everybody in it.
#[derive(Clone, Debug)]
struct Rule {
    id: u64,
    /// Family, protocol and port.
    kind: String,
    item: Item,
}

impl Rule {
    /// None: it is of another sort, and left alone.
    fn of(json: &Value) -> Option<Self> {
        let text = |key: &str| json[key].as_str().unwrap_or_default();
        if !["", "accept"].contains(&text("action")) {
            return None;
        }
        let size = u8::try_from(json["subnet_size"].as_u64()?).ok()?;
        let prefix = IpNet::new(text("subnet").parse().ok()?, size).ok()?.trunc();
        // Cloudflare's addresses, or those of a balancer.
        let source = text("source");
        if !["", "anywhere"].contains(&source) && narrow::net(source) != Some(prefix) {
            return None;
        }
        let notes = text("notes");
        let (whole, notes) = piece_of(notes).map_or((None, notes), |(whole, notes)| (Some(whole.to_owned()), notes));
        Some(Self {
            id: json["id"].as_u64()?,
            kind: json!({ "v6": prefix.addr().is_ipv6(), "protocol": text("protocol"), "port": text("port") })
                .to_string(),
            item: Item { text: prefix.to_string(), notes: notes.to_owned(), piece_of: whole },
        })
    }
}

impl Provider for Vultr {
    fn settle(&mut self, place: &Place, add: &[IpNet], keep: &[IpNet], work: &mut Work<'_>) -> Result<bool, Fault> {
        let Place::Group(id) = place else { return Err(Fault::refused("this is no firewall group of Vultr")) };
        let id = Place::firewall_id(id)?;
        let path = group_rules(&id);
        let (rules, count) = match rules(&path, work) {
            Ok(rules) => rules,
            Err(Fault::Refused { status: 404, .. }) if add.is_empty() => {
                for entry in work.entries(place) {
                    work.record.note("the firewall group is gone, and what was narrowed with it");
                    work.gone(&super::Kept::name(&entry));
                }
                return Ok(false);
            }
            Err(fault) => return Err(fault),
        };
        let entries = work.entries(place);
        let plan = plan(place, &rules, &entries, add, keep);
        plan.notes.iter().for_each(|note| work.record.note(note));
        if !add.is_empty() && !plan.more.is_empty() {
            if work.api.is_closing() {
                return Err(Fault::later("the agent stops"));
            }
            has_room(&format!("/firewalls/{id}"), count + plan.more.len(), work)?;
        }
        let more = plan.entries.iter().filter(|entry| !entries.contains(entry));
        work.begin(more.map(|entry| super::with_before(entry, &entries)).collect())?;
        for (kind, item) in &plan.more {
            let sent = work.api.change(Method::POST, &path, Some(&body(kind, item)), work.record);
            match sent {
                Ok(_) => {}
                Err((Fault::Refused { status: 400 | 409, words, .. }, _))
                    if words.to_ascii_lowercase().contains(DEFINED) => {}
                Err((fault, is_sent)) => return Err(work.doubt_all(place, fault, is_sent)),
            }
        }
        for id in &plan.less {
            match work.api.change(Method::DELETE, &format!("{path}/{id}"), None, work.record) {
                Ok(_) | Err((Fault::Refused { status: 404, .. }, _)) => {}
                Err((fault, is_sent)) => return Err(work.doubt_all(place, fault, is_sent)),
            }
        }
        work.conclude(&entries, plan.entries)
    }
}

/// Every rule of a group that can be narrowed, and how many rules there are.
fn rules(path: &str, work: &mut Work<'_>) -> Result<(Vec<Rule>, usize), Fault> {
    let (mut rules, mut count) = (Vec::new(), 0);
    let mut cursor = String::new();
    for _ in 0..MAX_PAGES {
        let answer = work.api.read(&format!("{path}?per_page={PER_PAGE}{cursor}"))?;
        let Some(page) = answer.json["firewall_rules"].as_array() else {
            return Err(Fault::later("Vultr's answer is no list of rules"));
        };
        count += page.len();
        rules.extend(page.iter().filter_map(Rule::of));
        match answer.json["meta"]["links"]["next"].as_str().filter(|next| !next.is_empty()) {
            Some(next)
                if next.len() <= 512 && next.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.~=%".contains(&b)) =>
            {
                cursor = format!("&cursor={next}");
            }
            Some(_) => return Err(Fault::refused("Vultr's cursor has signs that no URL has")),
            None => return Ok((rules, count)),
        }
    }
    Err(Fault::refused(format!("the group has more than {} rules", MAX_PAGES * PER_PAGE)))
}

/// Refuses what would end half-way: a group has only so many rules.
fn has_room(path: &str, needed: usize, work: &mut Work<'_>) -> Result<(), Fault> {
    let group = work.api.read(path)?;
    match group.json["firewall_group"]["max_rule_count"].as_u64() {
        Some(most) if needed as u64 > most => Err(Fault::refused(format!(
            "the group may have {most} rules, and would have {needed} for a moment: ask Vultr for more, or accept less"
        ))),
        _ => Ok(()),
    }
}

fn body(kind: &str, item: &Item) -> Value {
    let kind: Value = serde_json::from_str(kind).unwrap_or_default();
    let text = |key: &str| kind[key].as_str().unwrap_or_default();
    let notes = item.piece_of.as_ref().map_or_else(|| item.notes.clone(), |whole| piece_notes(whole, &item.notes));
    match narrow::net(&item.text) {
        Some(prefix) => accept_rule(text("protocol"), text("port"), &prefix, &notes),
        None => Value::Null,
    }
}

/// What is to be made and deleted, and what the journal is to say then.
struct Plan {
    more: Vec<(String, Item)>,
    less: Vec<u64>,
    entries: Vec<CloudEntry>,
    notes: Vec<String>,
}

/// Works out what a group is to be. Pure.
fn plan(place: &Place, rules: &[Rule], entries: &[CloudEntry], add: &[IpNet], keep: &[IpNet]) -> Plan {
    let mut kinds: BTreeMap<&str, (Vec<Item>, Vec<Taken>)> = BTreeMap::new();
    for rule in rules {
        kinds.entry(&rule.kind).or_default().0.push(rule.item.clone());
    }
    for entry in entries {
        let Made::Taken { rule, taken, .. } = &entry.made else { continue };
        kinds.entry(rule).or_default().1.push(taken.clone());
    }
    let mut plan = Plan { more: Vec::new(), less: Vec::new(), entries: Vec::new(), notes: Vec::new() };
    for (kind, (mut items, mut taken)) in kinds {
        for taken in &mut taken {
            let note = narrow::give_back(&mut items, taken, keep, true);
            plan.notes.extend(note.map(|note| format!("{note} ({})", taken.origin)));
        }
        taken.retain(|taken| !taken.nets.is_empty());
        narrow::take(&mut items, &mut taken, add, true);
        let of_kind = || rules.iter().filter(|rule| rule.kind == kind);
        let has = |item: &Item| of_kind().any(|rule| rule.item.text == item.text);
        let is_over = |rule: &&Rule| !items.iter().any(|item| item.text == rule.item.text);
        plan.more.extend(items.iter().filter(|item| !has(item)).map(|item| (kind.to_owned(), item.clone())));
        plan.less.extend(of_kind().filter(is_over).map(|rule| rule.id));
        let made = |taken| Made::Taken { rule: kind.to_owned(), taken, gone: None };
        plan.entries.extend(taken.into_iter().map(|taken| CloudEntry { place: place.clone(), made: made(taken) }));
    }
    plan
}
