//! Cloudflare: an access rule of a zone for each source, or an item of an account's list.
//!
//! Both bear this node's mark. There is one object for each source: what another node or somebody else made is left
//! alone, and made anew by us when it goes while we still want it. An access rule that exists is refused with an error;
//! an item that exists would be overwritten, so that it is never sent.

use std::collections::BTreeMap;
use std::time::Duration;

use ftagent_common::api::{CLOUDFLARE_MARK, access_rule, access_rules, list_item, list_items};
use hyper::Method;
use ipnet::IpNet;
use serde_json::{Value, json};

use super::api::Fault;
use super::narrow::net;
use super::{CloudEntry, Made, Place, Provider, Work};

/// Of one page, and the most pages that are read.
const PER_PAGE: usize = 1_000;
const MAX_PAGES: usize = 100;
const ITEMS_PER_PAGE: usize = 500;
/// The error of an access rule that is there already.
const DUPLICATE: &str = "10009";
/// Between two tries to make what somebody else has there.
const FOUND_NS: u64 = 600_000_000_000;
/// Looks at an operation on a list, which take some ten seconds together.
const LOOKS: u32 = 14;
const FIRST_PAUSE: Duration = Duration::from_millis(25);
const LAST_PAUSE: Duration = Duration::from_secs(1);

#[derive(Default)]
pub(super) struct Cloudflare {
    /// What somebody else blocks, and when to try again.
    found: BTreeMap<String, u64>,
}

/// An object that is there.
#[derive(Debug)]
struct Seen {
    id: String,
    source: IpNet,
    notes: String,
    /// Of an access rule; an item has none.
    mode: Option<String>,
}

impl Seen {
    fn of(json: &Value, value: &Value, notes: &Value) -> Option<Self> {
        Some(Self {
            id: json["id"].as_str().filter(|id| is_id(id))?.to_owned(),
            source: net(value.as_str()?)?,
            notes: notes.as_str().unwrap_or_default().to_owned(),
            mode: json["mode"].as_str().map(str::to_owned),
        })
    }

    fn blocks(&self) -> bool {
        self.mode.as_deref().is_none_or(|mode| mode == "block")
    }
}

/// Ids go into paths.
fn is_id(text: &str) -> bool {
    (1..=64).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_alphanumeric())
}

fn ours(work: &Work<'_>) -> String {
    CLOUDFLARE_MARK.replace("<node>", work.mark)
}

fn entry(place: &Place, source: IpNet, id: Option<String>) -> CloudEntry {
    CloudEntry { place: place.clone(), made: Made::Object { source, id } }
}

fn is_status(fault: &Fault, wanted: u16) -> bool {
    matches!(fault, Fault::Refused { status, .. } if *status == wanted)
}

impl Provider for Cloudflare {
    fn settle(&mut self, place: &Place, add: &[IpNet], keep: &[IpNet], work: &mut Work<'_>) -> Result<bool, Fault> {
        match place {
            Place::Zone(zone) => self.zone(place, &access_rules(&Place::cloud_id(zone)?), (add, keep), work),
            Place::List { account, list } => {
                let (account, list) = (Place::cloud_id(account)?, Place::cloud_id(list)?);
                let operations = format!("/accounts/{account}/rules/lists/bulk_operations");
                List { path: list_items(&account, &list), operations }.settle(place, (add, keep), work)
            }
            _ => Err(Fault::refused("this is no place at Cloudflare")),
        }
    }
}

/// What of the journal is to be undone, with its name.
fn unwanted(place: &Place, keep: &[IpNet], work: &Work<'_>) -> Vec<(String, IpNet, Option<String>)> {
    let one = |entry: CloudEntry| {
        let name = super::Kept::name(&entry);
        match entry.made {
            Made::Object { source, id } if !keep.contains(&source) => Some((name, source, id)),
            _ => None,
        }
    };
    work.entries(place).into_iter().filter_map(one).collect()
}

/// Journals the ids of ours that are there; what of `add` nobody has there.
fn adopt(place: &Place, add: &[IpNet], seen: &[Seen], work: &mut Work<'_>) -> Result<Vec<IpNet>, Fault> {
    let ours = ours(work);
    let (mut missing, mut known) = (Vec::new(), Vec::new());
    for source in add {
        let Some(there) = seen.iter().find(|s| s.source == *source && s.blocks()) else {
            missing.push(*source);
            continue;
        };
        let new = entry(place, *source, Some(there.id.clone()));
        let old = work.journal.entries().get(&super::Kept::name(&new));
        if there.notes == ours && old != Some(&new) {
            known.push(new);
        }
    }
    work.begin(known)?;
    Ok(missing)
}

impl Cloudflare {
    fn zone(
        &mut self,
        place: &Place,
        path: &str,
        (add, keep): (&[IpNet], &[IpNet]),
        work: &mut Work<'_>,
    ) -> Result<bool, Fault> {
        let ours = ours(work);
        let mut is_pending = false;
        // What is this node's, and nobody else's: a zone may have more rules of nodes than can be looked through.
        let mut seen = match rules(path, &format!("notes={}", work.mark), MAX_PAGES, work) {
            Ok(seen) => seen,
            // The zone is gone, and what was in it.
            Err(fault) if add.is_empty() && is_status(&fault, 404) => Vec::new(),
            Err(fault) => return Err(fault),
        };
        for (name, source, id) in unwanted(place, keep, work) {
            let is_ours = |s: &&Seen| match &id {
                Some(id) => s.id == *id,
                None => s.source == source && s.notes == ours,
            };
            let mut there = seen.iter().find(is_ours).map(|s| (s.id.clone(), s.blocks()));
            if there.is_none() && id.is_some() {
                // Somebody may have written other words on it.
                let by_value = rules(path, &by_value(&source), MAX_PAGES, work).or_else(|fault| match fault {
                    fault if is_status(&fault, 404) => Ok(Vec::new()),
                    fault => Err(fault),
                })?;
                there = by_value.iter().find(is_ours).map(|s| (s.id.clone(), s.blocks()));
            }
            match there {
                Some((id, true)) => match work.api.change(Method::DELETE, &format!("{path}/{id}"), None, work.record) {
                    Ok(_) => work.gone(&name),
                    Err((fault, _)) if is_status(&fault, 404) => work.gone(&name),
                    Err((fault, _)) => return Err(fault),
                },
                Some((_, false)) => {
                    work.record.note(&format!("the access rule of {source} does not block any more: it is theirs now"));
                    work.gone(&name);
                }
                None if work.is_unsure(&name) => is_pending = true,
                None => work.gone(&name),
            }
        }
        let now_ns = work.now_ns;
        self.found.retain(|_, until| *until > now_ns);
        if add.iter().any(|source| !seen.iter().any(|s| s.source == *source)) {
            // Whom other nodes block needs no rule of ours. One page of them: what is not on it, a refusal tells.
            seen.extend(rules(path, "notes=ftagent", 1, work)?);
        }
        let mut missing = adopt(place, add, &seen, work)?;
        missing.retain(|source| !self.found.contains_key(&super::Kept::name(&entry(place, *source, None))));
        if missing.is_empty() {
            return Ok(is_pending);
        }
        work.begin(missing.iter().map(|source| entry(place, *source, None)).collect())?;
        for source in missing {
            if work.api.is_closing() {
                return Err(Fault::later("the agent stops"));
            }
            let name = super::Kept::name(&entry(place, source, None));
            match work.api.change(Method::POST, path, Some(&access_rule(&source, &ours)), work.record) {
                Ok(answer) => match answer.json["result"]["id"].as_str().filter(|id| is_id(id)) {
                    Some(id) => work.begin(vec![entry(place, source, Some(id.to_owned()))])?,
                    None => {
                        work.doubt(&name);
                        return Err(Fault::later("Cloudflare made an access rule and did not say which"));
                    }
                },
                Err((Fault::Refused { status: 400 | 409, words, .. }, _)) if words.contains(DUPLICATE) => {
                    let there = rules(path, &by_value(&source), MAX_PAGES, work)?;
                    match there.iter().find(|s| s.source == source) {
                        Some(s) if s.notes == ours && s.blocks() => {
                            work.begin(vec![entry(place, source, Some(s.id.clone()))])?;
                        }
                        theirs => {
                            let mode = theirs.and_then(|s| s.mode.clone()).unwrap_or_default();
                            work.record.note(&format!(
                                "{source} has an access rule of somebody else, with mode {mode}: it is left alone"
                            ));
                            self.found.insert(name.clone(), work.now_ns + FOUND_NS);
                            work.gone(&name);
                        }
                    }
                }
                Err((fault, is_sent)) => {
                    if is_sent {
                        work.doubt(&name);
                    }
                    return Err(fault);
                }
            }
        }
        Ok(is_pending)
    }
}

fn by_value(source: &IpNet) -> String {
    let configuration = access_rule(source, "");
    let text = |key: &str| configuration["configuration"][key].as_str().unwrap_or_default().to_owned();
    // Slashes and colons may stand in a query.
    format!("configuration.target={}&configuration.value={}", text("target"), text("value"))
}

/// The access rules that a query finds, on so many pages at most; more than are ever looked through are an error.
fn rules(path: &str, query: &str, pages: usize, work: &mut Work<'_>) -> Result<Vec<Seen>, Fault> {
    let mut seen = Vec::new();
    for page in 1..=pages {
        let answer = work.api.read(&format!("{path}?{query}&page={page}&per_page={PER_PAGE}"))?;
        let Some(result) = answer.json["result"].as_array() else {
            return Err(Fault::later("Cloudflare's answer is no list of access rules"));
        };
        let one = |rule: &Value| Seen::of(rule, &rule["configuration"]["value"], &rule["notes"]);
        seen.extend(result.iter().filter_map(one));
        let is_last = match answer.json["result_info"]["total_pages"].as_u64() {
            Some(last) => page as u64 >= last,
            None => result.len() < PER_PAGE,
        };
        if is_last {
            return Ok(seen);
        }
    }
    if pages < MAX_PAGES {
        return Ok(seen);
    }
    Err(Fault::refused(format!("there are more than {} access rules to look through", MAX_PAGES * PER_PAGE)))
}

/// A list of an account.
struct List {
    path: String,
    operations: String,
}

impl List {
    fn settle(&self, place: &Place, (add, keep): (&[IpNet], &[IpNet]), work: &mut Work<'_>) -> Result<bool, Fault> {
        let ours = ours(work);
        let seen = match self.items(work) {
            Ok(seen) => seen,
            Err(fault) if add.is_empty() && is_status(&fault, 404) => Vec::new(),
            Err(fault) => return Err(fault),
        };
        let mut is_pending = false;
        let mut going = Vec::new();
        for (name, source, id) in unwanted(place, keep, work) {
            let is_ours = |s: &&Seen| id.as_ref() == Some(&s.id) || s.source == source && s.notes == ours;
            match seen.iter().find(is_ours) {
                Some(item) => going.push((name, item.id.clone())),
                None if work.is_unsure(&name) => is_pending = true,
                None => work.gone(&name),
            }
        }
        if !going.is_empty() {
            let items: Vec<Value> = going.iter().map(|(_, id)| json!({ "id": id })).collect();
            self.change(Method::DELETE, &json!({ "items": items }), work).map_err(|(fault, _)| fault)?;
            going.iter().for_each(|(name, _)| work.gone(name));
        }
        let missing = adopt(place, add, &seen, work)?;
        if missing.is_empty() {
            return Ok(is_pending);
        }
        if work.api.is_closing() {
            return Err(Fault::later("the agent stops"));
        }
        work.begin(missing.iter().map(|source| entry(place, *source, None)).collect())?;
        let items: Vec<Value> = missing.iter().map(|source| list_item(source, &ours)).collect();
        if let Err((fault, is_sent)) = self.change(Method::POST, &items.into(), work) {
            if is_sent {
                let names = missing.iter().map(|source| super::Kept::name(&entry(place, *source, None)));
                names.for_each(|name| work.doubt(&name));
            }
            return Err(fault);
        }
        let there = self.items(work)?;
        if !adopt(place, &missing, &there, work)?.is_empty() {
            return Err(Fault::later("Cloudflare says that the items are added, and does not list them"));
        }
        Ok(is_pending)
    }

    fn items(&self, work: &mut Work<'_>) -> Result<Vec<Seen>, Fault> {
        let mut seen = Vec::new();
        let mut cursor = String::new();
        for _ in 0..MAX_PAGES {
            let answer = work.api.read(&format!("{}?per_page={ITEMS_PER_PAGE}{cursor}", self.path))?;
            let Some(result) = answer.json["result"].as_array() else {
                return Err(Fault::later("Cloudflare's answer is no list of items"));
            };
            seen.extend(result.iter().filter_map(|item| Seen::of(item, &item["ip"], &item["comment"])));
            match answer.json["result_info"]["cursors"]["after"].as_str().filter(|after| !after.is_empty()) {
                Some(after) if after.len() <= 512 && after.bytes().all(is_cursor) => {
                    cursor = format!("&cursor={after}");
                }
                Some(_) => return Err(Fault::refused("Cloudflare's cursor has signs that no URL has")),
                None => return Ok(seen),
            }
        }
        Err(Fault::refused(format!("the list has more than {} items", MAX_PAGES * ITEMS_PER_PAGE)))
    }

    /// Sends an operation and waits for its end.
    fn change(&self, method: Method, body: &Value, work: &mut Work<'_>) -> Result<(), (Fault, bool)> {
        let is_more = method == Method::POST;
        let sent = work.api.change(method, &self.path, Some(body), work.record);
        let answer = sent.map_err(|(fault, is_sent)| match fault {
            // An account has one operation at a time.
            Fault::Refused { why, status: 400 | 409, words } if is_busy(&words) => (Fault::later(why), is_sent),
            fault => (fault, is_sent),
        })?;
        let operation = answer.json["result"]["operation_id"].as_str().filter(|id| is_id(id)).map(str::to_owned);
        let operation =
            operation.ok_or_else(|| (Fault::later("Cloudflare did not say which operation it is"), true))?;
        let mut pause = FIRST_PAUSE;
        for _ in 0..LOOKS {
            let state = work.api.read(&format!("{}/{operation}", self.operations)).map_err(|fault| (fault, true))?;
            match state.json["result"]["status"].as_str() {
                Some("completed") => return Ok(()),
                Some("failed") => {
                    let why = state.json["result"]["error"].as_str().unwrap_or("it does not say why").to_owned();
                    return Err((Fault::refused(format!("Cloudflare could not change the list: {why}")), false));
                }
                _ => {}
            }
            // The time of a stop is for undoing.
            if is_more && work.api.is_closing() {
                break;
            }
            std::thread::sleep(pause);
            pause = (pause * 2).min(LAST_PAUSE);
        }
        Err((Fault::later("Cloudflare has not changed the list yet"), true))
    }
}

fn is_busy(words: &str) -> bool {
    let words = words.to_ascii_lowercase();
    ["pending", "outstanding", "in progress"].iter().any(|part| words.contains(part))
}

/// What may stand in a query as it is.
fn is_cursor(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"-_.~=%".contains(&byte)
}
