//! Rules in nf_tables over netlink: for what asks for nftables, and for everything where no program could be attached.
//!
//! One table, `inet ftagent`, or `netdev ftagent` at the ingress of devices, and nothing outside of it. Each call to [`Nftables::reconcile`] looks at what is there,
//! compares it with what should be, and applies the difference in one transaction: doing it twice changes nothing,
//! what somebody deleted comes back, and what is gone already is as good as undone. The table exists only while there
//! is a rule in it. Ends are in the kernel too, so that a dead agent's rules stop by themselves.

mod change;
mod expr;
mod observe;
mod place;
mod plan;
mod socket;
pub(super) mod wire;

use std::collections::{BTreeMap, BTreeSet};
use std::io;

use self::change::Change;
pub use self::place::Place;
pub use self::plan::OfDatapath;
use self::plan::{Plan, Takes};
use self::socket::{BatchError, Nfnetlink, Request};
use self::wire::{Attributes, attribute, message};
use crate::engine::{EnforceResult, Now, Rule, RuleId, RuleSet, Verdict};
use crate::xdp::program::interface_index;

/// The table's name, in whichever family.
pub const TABLE: &str = "ftagent";

/// How often a transaction is built anew because the table changed meanwhile or a rule had to be left out.
const ATTEMPTS: usize = 5;

/// Why nf_tables could not be read or changed.
#[derive(Debug, thiserror::Error)]
pub enum NftablesError {
    #[error("nftables: {0}; the agent needs CAP_NET_ADMIN")]
    Denied(io::Error),
    #[error("nftables: {0}; this kernel lacks nf_tables or a part of it (CONFIG_NF_TABLES, CONFIG_NF_TABLES_INET)")]
    Missing(io::Error),
    #[error("nftables: {0}")]
    Failed(io::Error),
    #[error("nftables: the table changes as fast as it is written; another program works on `{0} ftagent`")]
    Contended(&'static str),
}

impl From<io::Error> for NftablesError {
    fn from(error: io::Error) -> Self {
        match error.raw_os_error() {
            Some(libc::EPERM | libc::EACCES) => Self::Denied(error),
            Some(libc::EPROTONOSUPPORT | libc::EAFNOSUPPORT | libc::EOPNOTSUPP) => Self::Missing(error),
            _ => Self::Failed(error),
        }
    }
}

/// The enforcer. It blocks for as long as the kernel takes, a few milliseconds for thousands of rules: call it where
/// that holds nobody up.
#[derive(Debug, Default)]
pub struct Nftables {
    place: Place,
    takes: Takes,
    /// What was reported to be in force.
    in_force: BTreeMap<RuleId, Rule>,
    /// What is not in force although it should be, and why.
    failing: BTreeMap<RuleId, String>,
    /// Devices that there are none of.
    missing: Vec<String>,
}

impl Nftables {
    /// For rules of [`crate::engine::Point::Nftables`], and for the datapath's too if `fallback`.
    pub fn new(fallback: bool) -> Self {
        let datapath = if fallback { OfDatapath::All } else { OfDatapath::None };
        Self { takes: Takes { named: true, datapath }, ..Self::default() }
    }

    /// For rules of the datapath alone, of which it takes none yet, at the ingress of `devices`.
    pub fn at_ingress(mut devices: Vec<String>) -> Self {
        devices.sort();
        Self { place: Place::Ingress(devices), ..Self::default() }
    }

    /// Takes these rules of the datapath's from the next call on, beside what it takes anyway.
    pub fn set_fallback(&mut self, datapath: OfDatapath) {
        self.takes.datapath = datapath;
    }

    /// The rules that were not in force after the last call although they should have been, and why.
    pub(super) fn failing(&self) -> &BTreeMap<RuleId, String> {
        &self.failing
    }

    /// The devices that were not there at the last call.
    pub(super) fn missing(&self) -> &[String] {
        &self.missing
    }

    /// Hooks in at the ingress of `devices` from the next call on.
    pub fn set_devices(&mut self, mut devices: Vec<String>) {
        devices.sort();
        self.place = Place::Ingress(devices);
    }

    /// Says why rules cannot be carried at `place` on this machine, if they cannot: makes a chain there and takes it back
    /// in one transaction, which nobody sees.
    ///
    /// # Errors
    /// What the kernel lacks, or the right that is missing.
    pub fn try_at(place: &Place) -> Result<(), NftablesError> {
        const PROBE: &str = "ftagent_probe";
        let request = |kind, flags, attributes| Request { kind, flags, attributes };
        let table = || Attributes::default().text(attribute::TABLE_NAME, PROBE);
        let chain = Attributes::default().text(attribute::CHAIN_TABLE, PROBE).text(attribute::CHAIN_NAME, "probe");
        let chain = chain.nested(attribute::CHAIN_HOOK, &place.hook().encode()).text(attribute::CHAIN_TYPE, "filter");
        let requests = [
            // A table of somebody else's by this name is not ours to delete.
            request(message::NEW_TABLE, socket::CREATE | socket::EXCLUSIVE, table()),
            request(message::NEW_CHAIN, socket::CREATE, chain),
            request(message::DEL_TABLE, 0, table()),
        ];
        match Nfnetlink::open(place.family())?.apply(&requests) {
            Ok(()) => Ok(()),
            Err(BatchError::Socket(error)) => Err(error.into()),
            Err(BatchError::Refused(refused)) => {
                let first = refused.into_iter().next().map(|refused| refused.error);
                Err(first.unwrap_or_else(|| io::Error::other("refused")).into())
            }
        }
    }

    /// Makes the table what `desired` says and tells what came into force, what ended and what failed.
    ///
    /// The wall clock only gives rules an end in the kernel, for an agent that dies; the engine's ends are monotonic.
    /// A rule that the kernel refuses is left out, so that it holds up no other.
    pub fn reconcile(&mut self, desired: &RuleSet, now: Now) -> Vec<EnforceResult> {
        let mut plan = Plan::at(&self.place, &self.takes, desired, now);
        let mut failed: BTreeMap<RuleId, String> = BTreeMap::new();
        for (id, why) in &plan.impossible {
            failed.insert(*id, format!("nftables: {why}"));
        }
        let outcome = self.converge(&mut plan, desired, &mut failed, now);
        let is_missing = |name: &&String| !plan.is_empty() && !plan.place.devices().contains(name);
        self.missing = self.place.devices().iter().filter(is_missing).cloned().collect();
        self.results(&plan, outcome, &failed, now.mono_ns)
    }

    /// The ids of the rules that the kernel has, whoever put them there.
    ///
    /// # Errors
    /// When nf_tables cannot be read.
    pub fn observe(&self) -> Result<BTreeSet<RuleId>, NftablesError> {
        let seen = observe::observe(&mut Nfnetlink::open(self.place.family())?)?;
        let elements = seen.sets.values().flat_map(|set| set.elements.values()).filter_map(|e| e.mark.as_ref());
        let marks = seen.rules.iter().filter_map(|rule| rule.mark.as_ref()).chain(elements);
        Ok(marks.filter_map(|mark| mark.name.parse().ok().map(RuleId)).collect())
    }

    /// Deletes the table with everything in it; one that is not there is as good.
    ///
    /// # Errors
    /// When nf_tables cannot be changed.
    pub fn remove_all(&mut self) -> Result<(), NftablesError> {
        self.in_force.clear();
        let attributes = Attributes::default().text(attribute::TABLE_NAME, TABLE);
        let request = Request { kind: message::DEL_TABLE, flags: 0, attributes };
        match Nfnetlink::open(self.place.family())?.apply(&[request]) {
            Ok(()) => Ok(()),
            Err(BatchError::Socket(error)) => Err(error.into()),
            Err(BatchError::Refused(refused)) => match refused.into_iter().next().map(|r| r.error) {
                Some(error) if error.raw_os_error() != Some(libc::ENOENT) => Err(error.into()),
                _ => Ok(()),
            },
        }
    }

    /// Gives the rules that had to be changed.
    fn converge(
        &self,
        plan: &mut Plan,
        desired: &RuleSet,
        failed: &mut BTreeMap<RuleId, String>,
        now: Now,
    ) -> Result<BTreeSet<RuleId>, NftablesError> {
        let mut netlink = Nfnetlink::open(self.place.family())?;
        let mut last = None;
        let mut place = self.place.clone();
        'attempts: for attempt in 0..ATTEMPTS {
            let seen = observe::observe(&mut netlink)?;
            let change = Change::between(&seen, plan);
            let requests: Vec<Request> = change.steps.iter().map(|step| step.request.clone()).collect();
            let refused = match netlink.apply(&requests) {
                Ok(()) => return Ok(change.steps.into_iter().flat_map(|step| step.rules).collect()),
                Err(BatchError::Socket(error)) => return Err(error.into()),
                Err(BatchError::Refused(refused)) => refused,
            };
            let mut left_out = false;
            for refusal in refused {
                let step = refusal.index.and_then(|n| change.steps.get(n));
                if step.is_some_and(|step| step.request.kind == message::NEW_CHAIN) {
                    // Before 6.16 the kernel refuses a chain at devices of which one is not there.
                    let present = place.present(|name| interface_index(name).is_some());
                    if present != place && !present.devices().is_empty() {
                        place = present;
                        plan.place = place.clone();
                        continue 'attempts;
                    }
                    if !place.devices().is_empty() && refusal.error.raw_os_error() == Some(libc::ENOENT) {
                        return Err(refusal.error.into());
                    }
                }
                let rules = step.map(|step| &step.rules[..]);
                // An element expired, or somebody else changed the table, between the look and the transaction.
                // The same errors stand for an expression that the kernel lacks: those do not go away by themselves.
                let raced = is_race(&refusal.error) && attempt < 2;
                if let (Some(rules @ [_, ..]), false) = (rules, raced) {
                    let is_pass = |id| desired.rules.get(id).is_some_and(|rule| rule.verdict == Verdict::Pass);
                    if rules.iter().any(is_pass) {
                        // Rather nothing new than a drop of what must pass.
                        return Err(refusal.error.into());
                    }
                    left_out = true;
                    for id in rules {
                        failed.insert(*id, format!("nftables: {}", refusal.error));
                    }
                } else {
                    last = Some(refusal.error);
                }
            }
            if left_out {
                let mut rest = desired.clone();
                rest.rules.retain(|id, _| !failed.contains_key(id));
                *plan = Plan::at(&place, &self.takes, &rest, now);
            } else if let Some(error) = last.take_if(|e| !is_race(e)) {
                return Err(error.into());
            }
        }
        let contended = NftablesError::Contended(self.place.as_str());
        Err(last.map_or(contended, |error| match is_race(&error) {
            true => NftablesError::Contended(self.place.as_str()),
            false => error.into(),
        }))
    }

    fn results(
        &mut self,
        plan: &Plan,
        outcome: Result<BTreeSet<RuleId>, NftablesError>,
        failed: &BTreeMap<RuleId, String>,
        at_mono_ns: u64,
    ) -> Vec<EnforceResult> {
        let result = |rule, installed, result| EnforceResult { rule, installed, result, at_mono_ns };
        let news = failed.iter().filter(|(id, why)| self.failing.get(id) != Some(why));
        let mut results: Vec<EnforceResult> = news.map(|(id, why)| result(*id, true, Err(why.clone()))).collect();
        let wanted = || plan.wanted.iter().filter(|(id, _)| !failed.contains_key(*id));
        self.failing.clone_from(failed);
        if let Err(error) = &outcome {
            let why = error.to_string();
            plan.wanted.keys().for_each(|id| _ = self.failing.entry(*id).or_insert_with(|| why.clone()));
        }
        let changed = match outcome {
            Ok(changed) => changed,
            Err(error) => {
                // Nothing was applied: what should have begun did not, and what should have ended goes on.
                let why = error.to_string();
                let begun = wanted().filter(|(id, rule)| self.in_force.get(*id) != Some(*rule));
                results.extend(begun.map(|(id, _)| result(*id, true, Err(why.clone()))));
                let ended =
                    self.in_force.keys().filter(|id| !plan.wanted.contains_key(*id) && !failed.contains_key(*id));
                results.extend(ended.map(|id| result(*id, false, Err(why.clone()))));
                return results;
            }
        };
        let begun = wanted().filter(|(id, rule)| changed.contains(*id) || self.in_force.get(*id) != Some(*rule));
        results.extend(begun.map(|(id, _)| result(*id, true, Ok(()))));
        let ended = self.in_force.keys().filter(|id| !plan.wanted.contains_key(*id) && !failed.contains_key(*id));
        results.extend(ended.map(|id| result(*id, false, Ok(()))));
        self.in_force = wanted().map(|(id, rule)| (*id, rule.clone())).collect();
        results
    }
}

fn is_race(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::ENOENT | libc::EEXIST | libc::EBUSY | libc::EINTR | libc::EAGAIN))
}

#[cfg(test)]
mod tests;
