//! Actions at providers' APIs: Cloudflare, DigitalOcean, Vultr.
//!
//! Like the tools of the machine each has a lane, a journal and a look from time to time. Unlike them it is slow, is
//! shared with other nodes and with people, and may do what it was asked without ever answering. So a `Provider` does
//! not run steps: it *settles* a [`Place`]. It reads what is there, works out what is missing and what is too much, and
//! sends that. Doing, undoing, repairing and starting after a crash are all the same.
//!
//! ```text
//! Keeper ─settle(place, add, keep)─▶ Provider ─look─▶ Api        journal before a request, ids as soon as known
//! ```

mod api;
mod cloudflare;
mod config;
mod digitalocean;
mod keeper;
mod mark;
mod narrow;
mod vultr;

use ftagent_common::api::{Action, CloudId, FirewallId};
use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use self::api::{Api, Fault};
use self::narrow::Taken;
use super::journal::{Journal, JournalError, Kept};
use super::record::Record;

pub use self::config::{CloudConfig, Clouds, RawClouds, check_clouds};
pub use self::keeper::CloudKeeper;
pub use self::mark::node_mark;

/// The tools of this folder.
pub const CLOUDS: [&str; 3] = ["cloudflare", "digitalocean", "vultr"];
/// A provider may still carry out for so long what it did not answer.
const LINGER_NS: u64 = 30_000_000_000;

/// Where an action acts.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Place {
    Zone(String),
    List { account: String, list: String },
    Firewall(String),
    Group(String),
}

impl Place {
    /// Where `action` acts, and on whom.
    fn of(action: &Action) -> Option<(Self, Vec<IpNet>)> {
        let (place, sources) = match action {
            Action::CloudflareBlock(p) => match (&p.zone, &p.account, &p.list) {
                (Some(zone), None, None) => (Self::Zone(zone.to_string()), &p.sources),
                (None, Some(account), Some(list)) => {
                    (Self::List { account: account.to_string(), list: list.to_string() }, &p.sources)
                }
                _ => return None,
            },
            Action::DigitaloceanBlock(p) => (Self::Firewall(p.firewall_id.to_string()), &p.sources),
            Action::VultrBlock(p) => (Self::Group(p.group_id.to_string()), &p.sources),
            _ => return None,
        };
        Some((place, sources.iter().map(IpNet::trunc).collect()))
    }

    fn cloud_id(text: &str) -> Result<CloudId, Fault> {
        CloudId::try_from(text.to_owned()).map_err(|error| Fault::refused(error.to_string()))
    }

    fn firewall_id(text: &str) -> Result<FirewallId, Fault> {
        FirewallId::try_from(text.to_owned()).map_err(|error| Fault::refused(error.to_string()))
    }
}

/// What was begun at a place and is not undone.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CloudEntry {
    pub place: Place,
    pub made: Made,
}

/// What it is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Made {
    /// An object of its own that blocks `source`; no id: no answer gave it yet.
    Object { source: IpNet, id: Option<String> },
    /// What was taken out of the rules of one kind, which `rule` tells, but for their addresses.
    Taken {
        rule: String,
        taken: Taken,
        /// Nothing was left of the rule, which is gone from this place.
        gone: Option<usize>,
    },
}

impl Kept for CloudEntry {
    fn name(&self) -> String {
        let place = serde_json::to_string(&self.place).expect("a place is JSON");
        match &self.made {
            Made::Object { source, .. } => format!("{place} {source}"),
            Made::Taken { rule, taken, .. } => format!("{place} {rule} {}", taken.origin),
        }
    }
}

/// What a provider works with.
struct Work<'a> {
    api: &'a mut Api,
    journal: &'a mut Journal<CloudEntry>,
    record: &'a mut Record,
    /// What objects of this node say.
    mark: &'a str,
    now_ns: u64,
    /// Until when an object that was asked for without an answer may still appear, by its name in the journal.
    unsure: &'a mut std::collections::BTreeMap<String, u64>,
}

impl Work<'_> {
    /// What the journal has of a place.
    fn entries(&self, place: &Place) -> Vec<CloudEntry> {
        self.journal.entries().values().filter(|entry| entry.place == *place).cloned().collect()
    }

    fn begin(&mut self, entries: Vec<CloudEntry>) -> Result<(), Fault> {
        self.journal.begin(entries).map_err(|error: JournalError| Fault::refused(error.to_string()))
    }

    /// What is not written is looked for again at the next start, which does no harm.
    fn gone(&mut self, name: &str) {
        drop(self.journal.gone(name));
        self.unsure.remove(name);
    }

    fn is_unsure(&self, name: &str) -> bool {
        self.unsure.get(name).is_some_and(|until| *until > self.now_ns)
    }

    fn doubt(&mut self, name: &str) {
        self.unsure.insert(name.to_owned(), self.now_ns + LINGER_NS);
    }
}

impl Work<'_> {
    /// What was asked for at `place` and not answered may still be done.
    fn doubt_all(&mut self, place: &Place, fault: Fault, is_sent: bool) -> Fault {
        if is_sent {
            self.entries(place).iter().for_each(|entry| self.doubt(&entry.name()));
        }
        fault
    }

    /// Journals what is taken now that the requests are answered, and lets go of the rest. Whether something may still
    /// appear late, and is kept until it cannot.
    fn conclude(&mut self, before: &[CloudEntry], now: Vec<CloudEntry>) -> Result<bool, Fault> {
        let names: Vec<String> = now.iter().map(Kept::name).collect();
        let is_unsure = |name: &String| self.unsure.get(name).is_some_and(|until| *until > self.now_ns);
        let mut is_pending = false;
        let mut gone = Vec::new();
        let mut kept = Vec::new();
        for entry in before {
            let name = entry.name();
            match now.iter().find(|entry| entry.name() == name) {
                None if is_unsure(&name) => is_pending = true,
                None => gone.push(name),
                Some(_) => {}
            }
        }
        for (entry, name) in now.into_iter().zip(names) {
            // What was given back may be taken once more by what is late.
            let entry = if is_unsure(&name) { with_before(&entry, before) } else { entry };
            if self.journal.entries().get(&name) != Some(&entry) {
                kept.push(entry);
            }
        }
        self.begin(kept)?;
        gone.iter().for_each(|name| self.gone(name));
        Ok(is_pending)
    }
}

/// `entry`, with what the journal still has besides: until the request is answered either may be true.
fn with_before(entry: &CloudEntry, before: &[CloudEntry]) -> CloudEntry {
    let mut both = entry.clone();
    let name = entry.name();
    let old = before.iter().find(|old| old.name() == name);
    if let (Made::Taken { taken, .. }, Some(Made::Taken { taken: old, .. })) = (&mut both.made, old.map(|o| &o.made)) {
        taken.nets = IpNet::aggregate(&taken.nets.iter().chain(&old.nets).copied().collect());
    }
    both
}

/// Who knows one provider's API.
trait Provider {
    /// Makes `place` block what is in `add`, and undoes there what the journal has and is not in `keep`, which holds
    /// `add` too. Whether something may still appear late.
    fn settle(&mut self, place: &Place, add: &[IpNet], keep: &[IpNet], work: &mut Work<'_>) -> Result<bool, Fault>;
}

fn provider(tool: &str) -> Box<dyn Provider> {
    match tool {
        "cloudflare" => Box::new(cloudflare::Cloudflare::default()),
        "digitalocean" => Box::new(digitalocean::Digitalocean),
        _ => Box::new(vultr::Vultr),
    }
}
